"""What was gathered of a model on a corpus, and its controls, kept in the user's cache.

The name of a file has a SHA-256 of all that decides what is in it, so moments of another model are
never taken for its own, and what is read back is what was written, bit for bit. A file that is
damaged is told of and made anew. Of all files the latest used stay, up to `ROOM`; delete
``educe/natural`` in the cache folder to be rid of them.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Sequence
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, TypeVar, cast

import platformdirs
import torch

from educe.errors import FileFormatError, RunError
from educe.files import write_bytes
from educe.progress import Reporter, Silent

T = TypeVar("T")

#: Bytes of a SHA-256.
CHECKSUM = 32
#: Bytes that all files may take together; the latest one stays whatever its size.
ROOM = 4 * 10**9


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
