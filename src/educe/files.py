"""Writing files so that a reader never sees half of one."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from educe.errors import BlockedError, FileFormatError


def make_folder(path: Path) -> None:
    """Make a folder, and those that it lies in.

    Raises:
        BlockedError: There is a file in its place, or it cannot be written.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BlockedError(f"cannot write {path}: {error.strerror or error}") from error


def check_free(path: Path) -> None:
    """Make sure, before anything slow begins, that no file stands where a folder is to be.

    Raises:
        BlockedError: One does.
    """
    there = next(place for place in (path, *path.absolute().parents) if place.exists())
    if not there.is_dir():
        raise BlockedError(f"cannot create {path}: {there} is a file; choose another --out")


@contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """Fill a new folder under a temporary name beside it, whole or not at all.

    Args:
        path: The folder; an empty one may be there.

    Yields:
        The folder to fill, which gets its name at the end of the `with` statement.

    Raises:
        BlockedError: A file or a folder with something in it is there, or it cannot be written.
    """
    check_free(path)
    if path.exists() and any(path.iterdir()):
        raise BlockedError(f"{path} is not empty: choose another --out")
    make_folder(path.parent)
    try:
        scratch = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}."))
    except OSError as error:
        raise BlockedError(f"cannot write {path}: {error.strerror or error}") from error
    try:
        yield scratch
        scratch.chmod(0o755)
        if path.exists():
            path.rmdir()
        scratch.rename(path)
    except BaseException:
        shutil.rmtree(scratch, ignore_errors=True)
        raise


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file under a temporary name beside it, flush it to disk, and rename it.

    Raises:
        BlockedError: The disk is full or the folder cannot be written.
    """
    try:
        handle, scratch = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    except OSError as error:
        raise BlockedError(f"cannot write {path}: {error.strerror or error}") from error
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(scratch, 0o644)
        os.replace(scratch, path)
    except OSError as error:
        Path(scratch).unlink(missing_ok=True)
        raise BlockedError(
            f"cannot write {path}: {error.strerror or error}; free some space and resume"
        ) from error
    except BaseException:
        Path(scratch).unlink(missing_ok=True)
        raise


def write_tensors(path: Path, tensors: Mapping[str, Tensor], header: Mapping[str, str]) -> None:
    """Write tensors and a header of strings as one safetensors file, whole or not at all."""
    # Copies, since the format knows no tensors that share memory.
    plain = {
        name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
        for name, tensor in tensors.items()
    }
    write_bytes(path, save(plain, dict(header)))


def read_tensors(path: str | Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read the tensors of a safetensors file and its header.

    Raises:
        FileFormatError: The file is missing, truncated, or of another format.
    """
    try:
        with safe_open(str(path), framework="pt") as file:
            header = file.metadata() or {}
            return {name: file.get_tensor(name) for name in file.keys()}, header  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise FileFormatError(f"cannot read {path}: {error}") from error
