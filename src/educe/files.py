"""Writing files so that a reader never sees half of one."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save
from torch import Tensor

from educe.errors import RunError


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file under a temporary name beside it, flush it to disk, and rename it.

    Raises:
        RunError: The disk is full or the folder cannot be written.
    """
    try:
        handle, scratch = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    except OSError as error:
        raise RunError(f"cannot write {path}: {error.strerror or error}") from error
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(scratch, 0o644)
        os.replace(scratch, path)
    except OSError as error:
        Path(scratch).unlink(missing_ok=True)
        raise RunError(
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
