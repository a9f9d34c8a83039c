"""The lock of a run: one process is at work on it at a time, wherever its folder is."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from educe.errors import BlockedError


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep other processes from a run in a ``with`` statement.

    The lock is the system's own, which goes with the process however that ends. A file system that
    knows none is refused: a mark of ours would stay behind a process that was killed, and SQLite
    needs locks as well.

    Args:
        folder: The folder of the run.

    Raises:
        BlockedError: Another process is at work on it, or nobody can tell.
    """
    lock = FileLock(folder / ".lock", timeout=0, fallback_to_soft=False)
    try:
        lock.acquire()
    except Timeout:
        raise BlockedError(f"another process is at work on {folder}: wait for it") from None
    except (OSError, NotImplementedError) as error:
        raise BlockedError(
            f"cannot lock {folder}: {error}; a run needs a folder that can be written, on a file "
            "system with locks, which some network file systems lack"
        ) from error
    try:
        yield
    finally:
        lock.release()
