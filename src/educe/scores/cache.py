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
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from pathlib import Path

from educe.errors import FileFormatError, JudgeError
from educe.progress import Reporter, Silent
from educe.scores import Answer, Judge, Score, Streaming, compares

#: The file in a run's folder.
FILE = "judging.sqlite"
#: Answers that a judge without batches of its own gets at once.
BATCH = 64
#: Keys that one query asks for.
ASKED = 500

SCHEMA = """
PRAGMA journal_mode = WAL;
PRAGMA synchronous = NORMAL;
CREATE TABLE IF NOT EXISTS scores (
  key TEXT PRIMARY KEY,
  judge TEXT NOT NULL,
  value REAL NOT NULL,
  higher_is TEXT NOT NULL,
  why TEXT NOT NULL
) WITHOUT ROWID;
"""


class Cached:
    """A judge whose scores are kept, and which is one itself.

    Args:
        judge: Who judges what is not kept yet.
        path: The file; a new one is made.
        reporter: Is told of the progress (see `educe.progress`).

    Attributes:
        judged: How many answers were not kept already.
    """

    def __init__(self, judge: Judge, path: str | Path, *, reporter: Reporter | None = None) -> None:
        self.judge, self.path = judge, Path(path)
        self.reporter = reporter or Silent()
        self.name, self.higher_is, self.cost = judge.name, judge.higher_is, judge.cost
        self.compares, self.judged = compares(judge), 0

    @property
    def identity(self) -> str:
        """The judge's own."""
        return self.judge.identity

    def score(self, answers: Sequence[Answer | Sequence[Answer]]) -> list[Score]:
        """Score answers, or groups of them by a judge that compares; those kept are for free.

        Raises:
            JudgeError: The file cannot be written.
            FileFormatError: It is something else.
        """
        keys = [_key(self.identity, each) for each in answers]
        with _opened(self.path) as database:
            known = dict(_read(database, keys))
            # Equal answers are judged once.
            first = {key: line for line, key in reversed([*enumerate(keys)]) if key not in known}
            todo = sorted(first.values())
            self.judged += len(todo)
            if not todo:
                return [known[key] for key in keys]
            with self.reporter.stage(f"judging: {self.name[:19]}", len(todo), "answers") as step:
                for came in _coming(self.judge, [answers[line] for line in todo]):
                    made = {keys[todo[place]]: score for place, score in came}
                    with database:
                        database.executemany(
                            "INSERT OR REPLACE INTO scores VALUES (?, ?, ?, ?, ?)",
                            [(key, *score) for key, score in made.items()],
                        )
                    known |= made
                    step(len(came))
        return [known[key] for key in keys]


def _coming(judge: Judge, answers: Sequence) -> Iterator[list[tuple[int, Score]]]:
    if isinstance(judge, Streaming):
        yield from judge.stream(answers)
        return
    for at in range(0, len(answers), BATCH):
        yield list(enumerate(judge.score(answers[at : at + BATCH]), at))


def _key(identity: str, answer: Answer | Sequence[Answer]) -> str:
    group = [answer] if isinstance(answer, Answer) else answer
    return hashlib.sha256(json.dumps([identity, *group], ensure_ascii=True).encode()).hexdigest()


def _read(database: sqlite3.Connection, keys: Sequence[str]) -> Iterable[tuple[str, Score]]:
    for at in range(0, len(keys), ASKED):
        some = keys[at : at + ASKED]
        marks = ",".join("?" * len(some))
        for key, *score in database.execute(f"SELECT * FROM scores WHERE key IN ({marks})", some):
            yield key, Score(*score)


@contextmanager
def _opened(path: Path) -> Iterator[sqlite3.Connection]:
    """Open a file of scores; where an error leaves a new one empty, it is removed."""
    empty = not path.exists()
    try:
        with closing(sqlite3.connect(path)) as database:
            database.executescript(SCHEMA)
            try:
                yield database
            finally:
                with suppress(sqlite3.Error):  # the first error is the one to tell
                    empty &= not database.execute("SELECT count(*) FROM scores").fetchone()[0]
    except sqlite3.OperationalError as error:
        raise JudgeError(
            f"cannot keep scores in {path}: {error}; free some space, mend the permissions, or "
            "choose another --cache"
        ) from error
    except sqlite3.DatabaseError as error:
        raise FileFormatError(f"{path} is no file of scores: {error}") from error
    finally:
        if empty:
            for end in ("-wal", "-shm", ""):
                path.with_name(f"{path.name}{end}").unlink(missing_ok=True)
