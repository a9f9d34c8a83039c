"""Scores kept by content, so that nothing is judged twice.

    key = SHA-256 of (the judge's identity, prompt, text and unperturbed texts of each answer)

One SQLite file holds them. What a judge hands over together is one transaction: a batch of a model
that runs here, a single reply of a server. So a process that is killed loses at most the batch or
the calls in flight, and the same command goes on from there.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import TypeGuard

from educe.errors import FileFormatError, JudgeError
from educe.progress import Reporter, Silent
from educe.scores import Answer, Judge, Score, Streaming
from educe.scores.language_model import Theme

#: The file in a run's folder.
FILE = "judging.sqlite"
#: Answers that a judge without batches of its own gets at once.
BATCH = 64
#: Keys that one query asks for.
ASKED = 500

SCHEMA = """
CREATE TABLE IF NOT EXISTS scores (
  key TEXT PRIMARY KEY,
  judge TEXT NOT NULL,
  value REAL NOT NULL,
  higher_is TEXT NOT NULL,
  why TEXT NOT NULL
) WITHOUT ROWID
"""


class Cached:
    """A judge whose scores are kept, and which is one itself.

    Args:
        judge: Who judges what is not kept yet.
        path: The file; a new one is made.
        reporter: Is told of the progress (see `educe.progress`).

    Attributes:
        kept: Of the answers scored so far, how many were kept already.
        judged: How many were not.
    """

    def __init__(self, judge: Judge, path: str | Path, *, reporter: Reporter | None = None) -> None:
        self.judge, self.path = judge, Path(path)
        self.reporter = reporter or Silent()
        self.name, self.higher_is, self.cost = judge.name, judge.higher_is, judge.cost
        self.kept = self.judged = 0

    @property
    def identity(self) -> str:
        """The judge's own."""
        return self.judge.identity

    def score(self, answers: Sequence[Answer]) -> list[Score]:
        """Score answers, those that are kept for free.

        Raises:
            JudgeError: The file cannot be written.
            FileFormatError: It is something else.
        """

        def work(lines: Sequence[int]) -> Iterator[list[tuple[int, Score]]]:
            return _coming(self.judge, [answers[line] for line in lines])

        return self._through([[answer] for answer in answers], work)

    def compare(self, groups: Sequence[Sequence[Answer]]) -> list[Score]:
        """Score groups of answers by a judge that compares, likewise.

        Raises:
            JudgeError: The judge does not compare, or the file cannot be written.
            FileFormatError: The file is something else.
        """
        judge = self.judge
        if not isinstance(judge, Theme):
            raise JudgeError(f"{self.name} judges single answers and compares none: use theme")

        def work(lines: Sequence[int]) -> Iterator[list[tuple[int, Score]]]:
            return judge.streamed([groups[line] for line in lines])

        return self._through(groups, work)

    def _through(
        self,
        groups: Sequence[Sequence[Answer]],
        work: Callable[[Sequence[int]], Iterator[list[tuple[int, Score]]]],
    ) -> list[Score]:
        keys = [_key(self.identity, group) for group in groups]
        with _reporting(self.path), _opened(self.path) as database:
            database.execute("PRAGMA journal_mode = WAL")
            database.execute("PRAGMA synchronous = NORMAL")
            database.execute(SCHEMA)
            known = dict(_read(database, keys))
            # Equal answers are judged once.
            first = {key: line for line, key in reversed([*enumerate(keys)]) if key not in known}
            todo = sorted(first.values())
            self.kept += sum(key in known for key in keys)
            self.judged += len(todo)
            if todo:
                with self.reporter.stage(
                    f"judging: {self.name[:19]}", len(todo), "answers"
                ) as step:
                    for came in work(todo):
                        made = {keys[todo[place]]: score for place, score in came}
                        with database:
                            database.executemany(
                                "INSERT OR REPLACE INTO scores VALUES (?, ?, ?, ?, ?)",
                                [
                                    (key, s.judge, s.value, s.higher_is, s.why)
                                    for key, s in made.items()
                                ],
                            )
                        known |= made
                        step(len(came))
        return [known[key] for key in keys]


def compares(judge: Judge) -> TypeGuard[Theme | Cached]:
    """Return whether a judge, or the one whose scores it keeps, scores groups of answers."""
    return isinstance(judge.judge if isinstance(judge, Cached) else judge, Theme)


def _coming(judge: Judge, answers: Sequence[Answer]) -> Iterator[list[tuple[int, Score]]]:
    if isinstance(judge, Streaming):
        yield from judge.stream(answers)
        return
    for at in range(0, len(answers), BATCH):
        yield list(enumerate(judge.score(answers[at : at + BATCH]), at))


def _key(identity: str, group: Sequence[Answer]) -> str:
    whole = json.dumps([identity, *group], ensure_ascii=True)
    return hashlib.sha256(whole.encode()).hexdigest()


def _read(database: sqlite3.Connection, keys: Sequence[str]) -> Iterable[tuple[str, Score]]:
    for at in range(0, len(keys), ASKED):
        some = keys[at : at + ASKED]
        marks = ",".join("?" * len(some))
        for key, *score in database.execute(f"SELECT * FROM scores WHERE key IN ({marks})", some):
            yield key, Score(*score)


@contextmanager
def _opened(path: Path) -> Iterator[sqlite3.Connection]:
    """Open a file of scores; where an error leaves a new one empty, it is removed."""
    new = not path.exists()
    with closing(sqlite3.connect(path)) as database:
        try:
            yield database
        except BaseException:
            with suppress(sqlite3.Error):  # the first error is the one to tell
                new = new and not database.execute("SELECT count(*) FROM scores").fetchone()[0]
            database.close()
            if new:
                for end in ("-wal", "-shm", ""):
                    path.with_name(f"{path.name}{end}").unlink(missing_ok=True)
            raise


@contextmanager
def _reporting(path: Path) -> Iterator[None]:
    """Say in one sentence why scores cannot be kept."""
    try:
        yield
    except sqlite3.OperationalError as error:
        raise JudgeError(
            f"cannot keep scores in {path}: {error}; free some space, mend the permissions, or "
            "choose another --cache"
        ) from error
    except sqlite3.DatabaseError as error:
        raise FileFormatError(f"{path} is no file of scores: {error}") from error
