"""Writing files whole or not at all."""

from __future__ import annotations

import errno
import json
import os
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from educe import files
from educe.errors import RunError

OLD, NEW = b"old " * 20, b"new " * 30  # fewer than a buffer holds


@pytest.fixture(params=["over", "fresh"])
def path(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A file to write: one that is there already, and one that is not."""
    made = tmp_path / "kept.bin"
    if request.param == "over":
        made.write_bytes(OLD)
    return made


def untouched(path: Path, before: bytes | None) -> bool:
    """Return whether the folder holds what it held, and nothing else."""
    now = {file.name: file.read_bytes() for file in path.parent.iterdir()}
    return now == ({} if before is None else {path.name: before})


def before(path: Path) -> bytes | None:
    return path.read_bytes() if path.exists() else None


def test_a_file_holds_what_was_written(path: Path) -> None:
    files.write_bytes(path, NEW)
    assert untouched(path, NEW)
    assert path.stat().st_mode & 0o777 == 0o644


def test_content_is_on_the_disk_before_the_file_takes_its_name(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flushed: list[int] = []
    was = before(path)

    def fsync(handle: int) -> None:
        flushed.append(os.fstat(handle).st_ino)
        assert os.fstat(handle).st_size == len(NEW)

    def replace(source: Any, target: Any) -> None:
        assert os.stat(source).st_ino in flushed
        assert Path(source).read_bytes() == NEW
        assert Path(source).parent == path.parent  # else it would be copied, not renamed
        assert before(path) == was
        rename(source, target)

    rename = os.replace
    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "replace", replace)
    files.write_bytes(path, NEW)
    assert untouched(path, NEW)


@pytest.mark.parametrize("crash", [KeyboardInterrupt, MemoryError, SystemExit])
@pytest.mark.parametrize("where", ["fsync", "replace", "chmod"])
def test_a_crash_in_the_middle_leaves_what_was_there(
    path: Path, monkeypatch: pytest.MonkeyPatch, where: str, crash: type[BaseException]
) -> None:
    was = before(path)

    def fail(*args: Any) -> None:
        raise crash

    monkeypatch.setattr(os, where, fail)
    with pytest.raises(crash):
        files.write_bytes(path, NEW)
    assert untouched(path, was)


@pytest.mark.parametrize("where", ["fsync", "replace"])
@pytest.mark.parametrize(
    ("code", "reason"), [(errno.ENOSPC, "No space left on device"), (errno.EIO, "Input/output")]
)
def test_a_full_disk_is_an_error_in_one_sentence(
    path: Path, monkeypatch: pytest.MonkeyPatch, where: str, code: int, reason: str
) -> None:
    was = before(path)

    def fail(*args: Any) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, where, fail)
    with pytest.raises(RunError, match=reason) as error:
        files.write_bytes(path, NEW)
    assert str(error.value).startswith(f"cannot write {path}: ")
    assert "\n" not in str(error.value)
    assert untouched(path, was)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_a_disk_that_fills_while_writing_is_an_error(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    was = before(path)
    really = files.tempfile.mkstemp

    def on_a_full_disk(**options: Any) -> tuple[int, str]:
        handle, name = really(**options)
        os.close(handle)
        return os.open("/dev/full", os.O_WRONLY), name

    monkeypatch.setattr(files.tempfile, "mkstemp", on_a_full_disk)
    with pytest.raises(RunError, match="No space left on device; free some space and resume"):
        files.write_bytes(path, NEW)
    assert untouched(path, was)


def test_a_folder_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "nowhere" / "file"
    with pytest.raises(RunError, match="No such file or directory") as error:
        files.write_bytes(path, NEW)
    assert str(error.value).startswith(f"cannot write {path}: ")


def test_tensors_are_read_back_from_the_published_format(tmp_path: Path) -> None:
    path = tmp_path / "some.safetensors"
    numbers = torch.arange(12, dtype=torch.float32).reshape(3, 4)
    tensors = {
        "plain": numbers,
        "turned": numbers.T,  # not contiguous
        "part": numbers[1:2],  # shares memory with the first
        "learned": numbers[0].clone().requires_grad_(True),
        "double": numbers[0].double() / 3,
        "none": torch.zeros(0, 4),
    }
    files.write_tensors(path, tensors, {"about": "ü", "seed": "3"})
    raw = path.read_bytes()
    (size,) = struct.unpack("<Q", raw[:8])
    header = json.loads(raw[8 : 8 + size])
    assert header.pop("__metadata__") == {"about": "ü", "seed": "3"}
    assert header.keys() == tensors.keys()
    for name, entry in header.items():
        first, last = entry["data_offsets"]
        kind = {"F32": np.float32, "F64": np.float64}[entry["dtype"]]
        values = np.frombuffer(raw[8 + size :][first:last], kind).reshape(entry["shape"])
        np.testing.assert_array_equal(values, tensors[name].detach().numpy())


def interrupted(path: Path) -> None:
    path.write_bytes(NEW)
    raise KeyboardInterrupt


def test_a_folder_is_whole_or_not_there(tmp_path: Path) -> None:
    for name in ("new", "empty"):
        path = tmp_path / name / "in"
        if name == "empty":
            path.mkdir(parents=True)
        with pytest.raises(KeyboardInterrupt), files.whole_folder(path) as folder:
            interrupted(folder / "half")
        assert [p.name for p in path.parent.iterdir()] == ["in"] * (name == "empty")
        with files.whole_folder(path) as folder:
            assert not (path / "kept").exists()
            (folder / "kept").write_bytes(NEW)
        assert [p.name for p in path.parent.iterdir()] == ["in"]
        assert (path / "kept").read_bytes() == NEW
        assert path.stat().st_mode & 0o777 == 0o755
        with pytest.raises(RunError, match="is not empty"), files.whole_folder(path):
            pass
        assert (path / "kept").read_bytes() == NEW
