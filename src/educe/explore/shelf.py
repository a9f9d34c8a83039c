"""Shelf: the runs that are shown, open, and read by threads of their own.

Whoever wants something of them gives the shelf a function of a run. What is made of a run as a
whole is kept until its file changes. SQLite tells that with one number, so that a run which is
still at work is shown live for next to nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

from educe.errors import RunError
from educe.run.store import Run

T = TypeVar("T")


class Shelf:
    """Some runs, with a quick reader and a slow one: who turns pages does not wait for a summary.

    Args:
        folders: Of the runs.

    Raises:
        RunError: There is no run in one of them.
    """

    def __init__(self, folders: Sequence[Path]) -> None:
        self.folders = [Path(folder) for folder in folders]
        self._quick, self._slow = _Reader(self.folders), _Reader(self.folders)
        self._marked = [0] * len(folders)
        self._made: dict[tuple[int, str], tuple[int, Any]] = {}

    def close(self) -> None:
        """Close all runs."""
        self._quick.close()
        self._slow.close()

    def check(self, which: int) -> int:
        """Return the number of a run.

        Raises:
            RunError: There is no such run.
        """
        if not 0 <= which < len(self.folders):
            raise RunError(
                f"there is no run {which}: {len(self.folders)} are shown, counted from 0"
            )
        return which

    def ask(self, which: int, question: Callable[[Run], T]) -> Future[T]:
        """Ask a run something that is answered at once."""
        return self._quick.do(lambda runs: question(runs[which]))

    def ask_once(self, which: int, name: str, question: Callable[[Run], T]) -> Future[T]:
        """Ask a run something that takes long; the answer is kept by its name until it changes."""

        def answer(runs: list[Run]) -> T:
            now = _version(runs[which])
            known = self._made.get((which, name))
            if known is None or known[0] != now:
                known = self._made[which, name] = (now, question(runs[which]))
            return known[1]

        return self._slow.do(answer)

    def mark(self, which: int, change: Callable[[Run], None]) -> Future[None]:
        """Write what a person says into a run."""

        def write(runs: list[Run]) -> None:
            change(runs[which])
            self._marked[which] += 1  # a connection's version leaves its own changes out

        return self._quick.do(write)

    def states(self) -> Future[list[str]]:
        """Return a text for each run that changes with it."""
        return self._quick.do(
            lambda runs: [f"{_version(r)}-{n}" for r, n in zip(runs, self._marked, strict=True)]
        )


class _Reader:
    """A thread with connections of its own: SQLite's belong to the thread that opened them."""

    def __init__(self, folders: Sequence[Path]) -> None:
        self._thread = ThreadPoolExecutor(1, "reading")
        self._runs: list[Run] = []
        try:
            self._thread.submit(self._open, folders).result()
        except BaseException:
            self.close()
            raise

    def _open(self, folders: Sequence[Path]) -> None:
        for folder in folders:
            run = Run.open(folder)
            # What is no UTF-8 is shown as it is, and hides nothing else.
            run.database.text_factory = lambda raw: raw.decode("utf-8", "backslashreplace")
            self._runs.append(run)

    def do(self, what: Callable[[list[Run]], T]) -> Future[T]:
        return self._thread.submit(lambda: what(self._runs))

    def close(self) -> None:
        for run in self._runs:
            self._thread.submit(run.close)
        self._thread.shutdown()


def _version(run: Run) -> int:
    (version,) = run.database.execute("PRAGMA data_version").fetchone()
    return int(version)
