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
import textwrap
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from pathlib import Path

from educe.errors import FileFormatError, JudgeError
from educe.progress import Reporter, Silent
from educe.scores import Answer, Judge, Score, Streaming, compares, in_order
from educe.scores.asking import runs_here
from educe.scores.batches import in_batches
from educe.spread import Local, Spread

#: The file in a run's folder.
FILE = "judging.sqlite"
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
        return in_order(came for came, _ in self.coming(answers))

    def coming(
        self, answers: Sequence[Answer | Sequence[Answer]], spread: Spread | None = None
    ) -> Iterator[tuple[list[tuple[int, Score]], str]]:
        """Score answers; yield what came with the places of its answers, those kept first.

        Args:
            answers: What is judged.
            spread: Who judges, in batches, where a model of this process does (see
                `educe.scores.batches`). By default, and where a server does, the judge's own
                batches are kept, which can be single answers.
        """
        keys = [_key(self.identity, each) for each in answers]
        with _opened(self.path) as database:
            known = dict(_read(database, keys))
            yield [(line, known[key]) for line, key in enumerate(keys) if key in known], ""
            # Equal answers are judged once.
            lines: dict[str, list[int]] = {}
            for line, key in enumerate(keys):
                if key not in known:
                    lines.setdefault(key, []).append(line)
            todo = [own[0] for own in lines.values()]
            self.judged += len(todo)
            if not todo:
                return
            texts = [answers[line] for line in todo]
            if spread is not None and runs_here(self.judge):
                coming = in_batches(self.judge, texts, spread)
            else:
                coming = _coming(self.judge, texts)
            with self.reporter.stage(f"judging: {self.name[:19]}", len(todo), "answers") as step:
                for came, note in coming:
                    made = {keys[todo[place]]: score for place, score in came}
                    with database:
                        database.executemany(
                            "INSERT OR REPLACE INTO scores VALUES (?, ?, ?, ?, ?)",
                            [(key, *score) for key, score in made.items()],
                        )
                    step(len(came), note)
                    yield [(line, s) for key, s in made.items() for line in lines[key]], note


def _coming(judge: Judge, answers: Sequence) -> Iterator[tuple[list[tuple[int, Score]], str]]:
    """Yield scores as a judge has them: in its own batches, where it has some."""
    if isinstance(judge, Streaming):
        for came in judge.stream(answers):
            yield came, ""
    else:
        yield from in_batches(judge, answers, Local())


def _key(identity: str, answer: Answer | Sequence[Answer]) -> str:
    group = [answer] if isinstance(answer, Answer) else answer
    return hashlib.sha256(json.dumps([identity, *group], ensure_ascii=True).encode()).hexdigest()


def _read(database: sqlite3.Connection, keys: Sequence[str]) -> Iterable[tuple[str, Score]]:
    for at in range(0, len(keys), ASKED):
        some = keys[at : at + ASKED]
        query = f"SELECT * FROM scores WHERE key IN ({','.join('?' * len(some))})"
        with _damage_told():
            found = database.execute(query, some).fetchall()
        for key, *score in found:
            yield key, Score(*score)


def _line(error: Exception) -> str:
    """Return what SQLite says in one line: it repeats names of the file, which may be anything."""
    return textwrap.shorten(str(error), 120)


@contextmanager
def _damage_told() -> Iterator[None]:
    """Let a text that cannot be decoded, which SQLite may put into what it says, be its error."""
    try:
        yield
    except UnicodeDecodeError as error:
        raise sqlite3.DatabaseError(str(error)) from error


@contextmanager
def _opened(path: Path) -> Iterator[sqlite3.Connection]:
    """Open a file of scores; where an error leaves a new one empty, it is removed."""
    empty = not path.exists()
    try:
        with closing(sqlite3.connect(path)) as database:
            with _damage_told():
                database.executescript(SCHEMA)
            try:
                yield database
            finally:
                with suppress(sqlite3.Error):  # the first error is the one to tell
                    empty &= not database.execute("SELECT count(*) FROM scores").fetchone()[0]
    except sqlite3.OperationalError as error:
        raise JudgeError(
            f"cannot keep scores in {path}: {_line(error)}; free some space, mend the permissions, "
            "or choose another --cache"
        ) from error
    except sqlite3.DatabaseError as error:
        raise FileFormatError(f"{path} is no file of scores: {_line(error)}") from error
    finally:
        if empty:
            for end in ("-wal", "-shm", ""):
                path.with_name(f"{path.name}{end}").unlink(missing_ok=True)
