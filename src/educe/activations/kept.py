"""What was gathered of a model on a corpus, and its controls, kept in the user's cache.

The name of a file is a SHA-256 of all that decides what is in it: the model's digest, the tokens of
the corpus, the places (a token that is massive at one is left out at all), the seed, the device and
the settings. So moments of another model are never taken for its own, and what is read back is what
was written, bit for bit. A file that is damaged is told of and made anew. Of all files the latest
used stay, up to `ROOM`; delete ``educe/natural`` in the cache folder to be rid of them.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, TypeVar, cast

import platformdirs
import torch

from educe.activations import natural, reading
from educe.activations.natural import Gathered, Natural, Sample
from educe.activations.reading import Piece, Place
from educe.activations.subspace import Moments
from educe.errors import FileFormatError, RunError
from educe.files import write_bytes
from educe.model import digest
from educe.model.language import LanguageModel
from educe.model.rendering import Prompt
from educe.progress import Reporter, Silent

T = TypeVar("T")

#: Counts up whenever other numbers would be gathered, or kept in another way.
FORMAT = 2
#: What is gathered consists of these.
KINDS = (Gathered, Natural, Place, Moments, Sample, Piece)
#: Bytes of a SHA-256.
CHECKSUM = 32
#: Bytes that all files may take together; the latest one stays whatever its size.
ROOM = 4 * 10**9


def gather(
    lm: LanguageModel,
    documents: Iterable[Prompt],
    places: Sequence[Place],
    *,
    limit: int | None = None,
    seed: int = 0,
    reporter: Reporter | None = None,
) -> Gathered:
    """Return what `educe.activations.natural.gather` does, of the cache if it is there.

    Documents up to the limit are held in memory, as text.

    Raises:
        PromptError: The corpus is so small that nothing of it can be held out.
    """
    taken: list[Prompt] = []
    name = _name(lm, reading.pieces(lm, _noting(documents, taken), limit=limit), places, seed)

    def make() -> Gathered:
        made = natural.gather(lm, taken, places, limit=limit, seed=seed, reporter=reporter)
        return made._replace(name=name)

    return once(name, make, KINDS, reporter)


def once(
    name: str, make: Callable[[], T], kinds: Sequence[type], reporter: Reporter | None = None
) -> T:
    """Return what is kept by a name; it is made when it is not there.

    Args:
        name: Has a digest of all that decides what is made.
        make: Makes it.
        kinds: What it consists of, beside tensors and plain values: nothing else is read back.
        reporter: Is told when a file is damaged or cannot be written.
    """
    say = (reporter or Silent()).say
    path = folder() / f"{name}.pt"
    if path.exists():
        try:
            found = _read(path, kinds)
            path.touch()  # used last
        except (FileFormatError, OSError) as error:
            say(f"what was kept of the corpus is damaged, so it is made again: {error}")
        else:
            return cast(T, found)
    made = make()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _write(path, made)
        _make_room(path)
    except (RunError, OSError) as error:
        say(f"what was read of the corpus is not kept for the next time: {error}")
    return made


def folder() -> Path:
    """Return the folder of these files."""
    return platformdirs.user_cache_path("educe") / "natural"


def _noting(documents: Iterable[Prompt], taken: list[Prompt]) -> Iterator[Prompt]:
    for document in documents:
        taken.append(document)
        yield document


def _name(lm: LanguageModel, pieces: Iterable[Piece], places: Sequence[Place], seed: int) -> str:
    settings = {
        "format": FORMAT,
        "model": digest.whole(digest.parts(lm.hf, lm.tokenizer)),  # as its weights are now
        "device": lm.device.type,
        "places": places,
        "seed": seed,
        "reading": [reading.MASSIVE, reading.TOKENS_PER_BATCH, reading.AHEAD],
        "keeping": [natural.HELD, natural.PARTS, natural.BANK, natural.SAMPLE],
        "texts": [natural.TEXTS, natural.SHORTEST, natural.LONGEST],
    }
    content = hashlib.sha256(json.dumps(settings).encode())
    for piece in pieces:
        content.update(json.dumps(piece).encode())
    return content.hexdigest()


def _write(path: Path, made: object) -> None:
    """Write a file: its content, and a SHA-256 of it."""
    content = io.BytesIO()
    torch.save(made, content)
    checksum = hashlib.sha256(content.getbuffer()).digest()
    content.write(checksum)
    write_bytes(path, content.getvalue())


def _read(path: Path, kinds: Sequence[type]) -> Any:
    whole = memoryview(path.read_bytes())
    content, checksum = whole[:-CHECKSUM], whole[-CHECKSUM:]
    if checksum != hashlib.sha256(content).digest():
        raise FileFormatError(f"{path} does not hold what was written")
    try:
        with torch.serialization.safe_globals(list(kinds)):
            return torch.load(io.BytesIO(content), weights_only=True)
    except UnpicklingError as error:
        raise FileFormatError(f"{path} is of another educe: {error}") from error


def _make_room(newest: Path) -> None:
    """Delete the files that were used longest ago, as long as all take too much room."""
    files = sorted(newest.parent.glob("[!.]*"), key=lambda file: file.stat().st_mtime)
    taken = sum(file.stat().st_size for file in files)
    for file in files:
        if taken > ROOM and file != newest:
            taken -= file.stat().st_size
            file.unlink()
