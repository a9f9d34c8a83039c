"""What was gathered of a model on a corpus, and its controls, kept in the user's cache.

The name of a file is a SHA-256 of all that decides what is in it: the model's digest, the tokens of
the corpus, the places (a token that is massive at one is left out at all), the seed, the device and
the settings. So moments of another model are never taken for its own, and what is read back is what
was written, bit for bit. A file that is damaged is told of and made anew. Of all files the latest
used stay, up to `ROOM`; delete ``educe/natural`` in the cache folder to be rid of them.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import platformdirs
from torch import Tensor

from educe import digest
from educe.activations import natural, reading
from educe.activations.natural import Gathered, Natural, Sample
from educe.activations.reading import Piece, Place
from educe.activations.subspace import Moments
from educe.errors import FileFormatError, RunError
from educe.files import read_tensors, write_tensors
from educe.model import LanguageModel
from educe.progress import Reporter, Silent
from educe.rendering import Prompt

T = TypeVar("T")

#: Counts up whenever other numbers would be gathered, or kept in another way.
FORMAT = 1
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

    def unpacked(tensors: dict[str, Tensor], rest: Any) -> Gathered:
        return _unpacked(tensors, rest, places)._replace(name=name)

    return once(name, make, _packed, unpacked, reporter)


def once(
    name: str,
    make: Callable[[], T],
    packed: Callable[[T], tuple[dict[str, Tensor], Any]],
    unpacked: Callable[[dict[str, Tensor], Any], T],
    reporter: Reporter | None = None,
) -> T:
    """Return what is kept by a name; it is made when it is not there.

    Args:
        name: Has a digest of all that decides what is made.
        make: Makes it.
        packed: Returns tensors, and the rest as JSON can hold it.
        unpacked: Takes these and returns what was packed.
        reporter: Is told when a file is damaged or cannot be written.
    """
    say = (reporter or Silent()).say
    path = folder() / f"{name}.safetensors"
    if path.exists():
        try:
            found = unpacked(*_read(path))
            path.touch()  # used last
        except (FileFormatError, OSError) as error:
            say(f"what was kept of the corpus is damaged, so it is made again: {error}")
        else:
            return found
    made = make()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _write(path, *packed(made))
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


def _packed(gathered: Gathered) -> tuple[dict[str, Tensor], Any]:
    tensors: dict[str, Tensor] = {}
    counts, first = {}, {}
    for place, known in gathered.natural.items():
        moments = (*known.parts, known.held)
        for i, some in enumerate(moments):
            tensors |= {f"{place} mean {i}": some.mean, f"{place} scatter {i}": some.scatter}
        for name, sample in (("bank", known.bank), ("sample", known.sample)):
            tensors |= {f"{place} {name} {k}": v for k, v in sample._asdict().items()}
        counts[str(place)] = [some.count for some in moments]
        first[str(place)] = known.first_norm
    rest = {
        "counts": counts,
        "first": first,
        "texts": gathered.texts,
        "documents": gathered.documents,
        "massive": gathered.massive,
    }
    return tensors, rest


def _unpacked(tensors: dict[str, Tensor], rest: Any, places: Sequence[Place]) -> Gathered:
    def one(place: Place) -> Natural:
        *parts, held = (
            Moments(count, tensors[f"{place} mean {i}"], tensors[f"{place} scatter {i}"])
            for i, count in enumerate(rest["counts"][str(place)])
        )
        bank, sample = (
            Sample(*(tensors[f"{place} {name} {field}"] for field in Sample._fields))
            for name in ("bank", "sample")
        )
        return Natural(place, tuple(parts), held, bank, sample, rest["first"][str(place)])

    return Gathered(
        {place: one(place) for place in places},
        [Piece(*piece) for piece in rest["texts"]],
        rest["documents"],
        rest["massive"],
    )


def _write(path: Path, tensors: Mapping[str, Tensor], rest: Any) -> None:
    told = json.dumps(rest)
    write_tensors(path, tensors, {"rest": told, "checksum": _checksum(tensors, told)})


def _read(path: Path) -> tuple[dict[str, Tensor], Any]:
    tensors, header = read_tensors(path)
    told = header.get("rest", "")
    if header.get("checksum") != _checksum(tensors, told):
        raise FileFormatError(f"{path} does not hold what was written")
    return tensors, json.loads(told)


def _checksum(tensors: Mapping[str, Tensor], told: str) -> str:
    content = hashlib.sha256(told.encode())
    for name in sorted(tensors):
        content.update(f"{name} {tuple(tensors[name].shape)}".encode())
        content.update(digest.checksum(tensors[name]))
    return content.hexdigest()


def _make_room(newest: Path) -> None:
    """Delete the files that were used longest ago, as long as all take too much room."""
    files = sorted(newest.parent.glob("*.safetensors"), key=lambda file: file.stat().st_mtime)
    taken = sum(file.stat().st_size for file in files)
    for file in files:
        if taken > ROOM and file != newest:
            taken -= file.stat().st_size
            file.unlink()
