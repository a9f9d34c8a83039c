"""Run: one folder, one SQLite file of five tables, tensors in safetensors beside it.

    prompts         what the model is asked, and in which role
    perturbations   what is done to the model; a derived one has a parent
    completions     what it writes then; asked for, and written as soon as there is a text
    scores          what judges say, of completions and of perturbations as a whole
    meta            what was asked for, and what is known of the run as a whole

Each batch of work is one transaction in a write-ahead log, each tensor file is written whole under
another name and renamed: a process killed at any instant loses at most the batch in flight, and
what is missing can be asked for and done (see `educe.run.fill`).
"""

from __future__ import annotations

import json
import shutil
import sqlite3
import weakref
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from tempfile import mkdtemp
from typing import Any, Self

from educe.errors import BlockedError, RunError
from educe.rows import KEPT, OWN, CompletionRow, PerturbationRow, PromptRow, Row, ScoreRow
from educe.run.database import opened
from educe.run.frames import Frames
from educe.run.lock import locked
from educe.run.schema import (
    COMPLETION,
    UNSCORED,
    as_json,
    begin,
    reading,
    renamed,
    reporting,
    unreadable,
)


class Run(Frames):
    """An open run. Use `create` or `open`; close it, or use it in a ``with`` statement.

    Where an error or an interrupt ends the ``with`` statement of a run that was created for it,
    before the run has kept anything that was computed, the run is removed: nothing stands in the
    way of another try. Only where it is blocked, as by a full disk, it is left for --resume.
    """

    def __init__(self, folder: Path, database: sqlite3.Connection) -> None:
        self.folder = folder
        self.database = database
        self._created = False
        self._made: list[Path] = []  # folders that were not there before it, the deepest first

    @property
    def tensors(self) -> Path:
        """The folder of tensor files."""
        return self.folder / "tensors"

    @classmethod
    def create(cls, folder: str | Path, config: Mapping[str, Any]) -> Self:
        """Begin a run in a new or empty folder.

        Raises:
            RunError: The folder holds something, or cannot be written.
            BlockedError: Another process begins a run there, or is at work on it.
        """
        folder = Path(folder)
        file, tensors = folder / "run.sqlite", folder / "tensors"
        # Written under another name: a run file is either absent or has its tables and settings.
        scratch, journal = folder / ".run.sqlite.new", folder / ".run.sqlite.new-journal"
        ours = {scratch, journal, tensors, folder / ".lock"}  # left by a process killed in here
        made = [place for place in (folder, *folder.parents) if not place.exists()]
        try:
            if (folder.exists() and not file.exists()) and (
                set(folder.iterdir()) - ours or any(tensors.glob("*"))
            ):
                raise RunError(f"{folder} is not empty and holds no run: choose another --out")
            tensors.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise RunError(f"cannot create {folder}: {error.strerror or error}") from error
        with locked(folder), reporting(folder):
            if file.exists():
                raise RunError(
                    f"{folder} holds another run: use --resume to go on with it, or --out"
                )
            scratch.unlink(missing_ok=True)
            journal.unlink(missing_ok=True)
            with closing(sqlite3.connect(scratch)) as database, database:
                begin(database, config)
            scratch.rename(file)
        run = cls.open(folder)
        run._created, run._made = True, made
        return run

    @classmethod
    def in_memory(cls, config: Mapping[str, Any]) -> Self:
        """Begin a run in memory; its tensors lie in a temporary folder, which goes with it."""
        database = sqlite3.connect(":memory:")
        with database:
            begin(database, config)
        run = cls(Path(mkdtemp(prefix="educe-")), database)
        run.tensors.mkdir()
        weakref.finalize(run, _forget, database, run.folder)
        return run

    @classmethod
    def open(cls, folder: str | Path) -> Self:
        """Open an existing run.

        Raises:
            RunError: There is no run in that folder.
            FileFormatError: Its file is corrupt, or of another version.
        """
        folder = Path(folder)
        file = folder / "run.sqlite"
        if not file.is_file():
            raise RunError(f"there is no run in {folder}")
        database = opened(file)
        try:
            run = cls(folder, database)
            run.config  # noqa: B018 - a run without settings is none
        except (ValueError, KeyError, AttributeError) as error:
            database.close()
            raise unreadable(file, error) from error
        except BaseException:
            database.close()
            raise
        return run

    def close(self) -> None:
        """Close the database file."""
        self.database.close()

    def __enter__(self) -> Run:
        return self

    def __exit__(self, kind: type[BaseException] | None, *exception: object) -> None:
        ended = kind is not None and not issubclass(kind, BlockedError)
        empty = self._created and ended and not self._kept()
        self.close()
        if empty:
            self._remove()

    def _kept(self) -> bool:
        """Return whether anything was computed: rows, tensors, a layer map, runs inside the run."""
        ours = {"run.sqlite", "run.sqlite-wal", "run.sqlite-shm", self.tensors.name, ".lock"}
        return bool(
            self.perturbation_rows()
            or self.texts_kept()
            or any(self.tensors.iterdir())
            or {file.name for file in self.folder.iterdir()} - ours
        )

    def _remove(self) -> None:
        """Remove the files of a run that has kept nothing, and the folders made for it."""
        for file in (".lock", "run.sqlite-wal", "run.sqlite-shm", "run.sqlite"):
            (self.folder / file).unlink(missing_ok=True)
        self.tensors.rmdir()
        for place in self._made:
            if any(place.iterdir()):
                break
            place.rmdir()

    # -- what is known of the run as a whole ---------------------------------------------------

    @property
    def config(self) -> dict[str, Any]:
        """What was asked for."""
        return renamed(self.note("config"))

    @reading
    def note(self, key: str) -> Any:
        """Return something remembered by name.

        Raises:
            KeyError: There is nothing by that name.
        """
        found = self.database.execute("SELECT value FROM meta WHERE key = ?", (key,)).fetchone()
        if found is None:
            raise KeyError(key)
        return json.loads(found[0])

    @reading
    def has(self, key: str) -> bool:
        """Return whether something is remembered by that name."""
        query = "SELECT 1 FROM meta WHERE key = ?"
        return self.database.execute(query, (key,)).fetchone() is not None

    def remember(self, key: str, value: Any) -> None:
        """Remember something that JSON can hold by name."""
        with self.writing():
            self.database.execute(
                "INSERT OR REPLACE INTO meta VALUES (?, ?)", (key, as_json(value))
            )

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Run what is inside as one transaction.

        Raises:
            RunError: The disk is full or the file cannot be written; the run stays as it was.
        """
        with reporting(self.folder), self.database:
            yield

    # -- rows --------------------------------------------------------------------------------

    def add_prompts(self, prompts: Sequence[PromptRow]) -> None:
        """Keep prompts, once."""
        with self.writing():
            self.database.executemany(
                "INSERT OR IGNORE INTO prompts VALUES (?, ?, ?, ?, ?, ?, ?)",
                [p._replace(content=as_json(p.content)) for p in prompts],
            )

    @reading
    def prompt_rows(self, role: str | None = None) -> list[PromptRow]:
        """Return the prompts, or those of one role, in order; `OWN` ones when asked for alone."""
        rows = self.database.execute("SELECT * FROM prompts ORDER BY id")
        found = [p._replace(content=json.loads(p.content)) for p in map(PromptRow._make, rows)]
        return [p for p in found if (p.role != OWN if role is None else p.role == role)]

    def add_perturbations(self, rows: Sequence[PerturbationRow]) -> None:
        """List perturbations."""
        with self.writing():
            self.database.executemany(
                "INSERT INTO perturbations VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", rows
            )

    @reading
    def perturbation_rows(
        self,
        arm: str | None = None,
        *,
        derived: bool | None = False,
        of: Collection[int] | None = None,
    ) -> list[PerturbationRow]:
        """Return the perturbations, or those of one arm, in order.

        Args:
            arm: Which.
            derived: Whether those that came later, derived or added; None for all.
            of: Their numbers, where only these are read.
        """
        query = f"SELECT * FROM perturbations WHERE {_among('id', of)} ORDER BY id"
        rows = self.database.execute(query)
        return [
            p
            for p in map(PerturbationRow._make, rows)
            if arm in (None, p.arm) and derived in (None, bool(p.how))
        ]

    @property
    def perturbations_kept(self) -> int:
        """How many perturbations are listed; the last one has this number."""
        return int(self.database.execute("SELECT count(*) FROM perturbations").fetchone()[0])

    @reading
    def texts_kept(self, prompts: Collection[int] | None = None) -> int:
        """Return how many texts are written that count, of all prompts or of some."""
        query = f"SELECT count(*) FROM completions WHERE text IS NOT NULL AND phase != '{KEPT}'"
        found = self.database.execute(f"{query} AND {_among('prompt', prompts)}")
        return int(found.fetchone()[0])

    def ask(self, rows: Iterable[Row], temperature: float) -> None:
        """Ask for completions; those that were asked for already stay as they are."""
        with self.writing():
            self.database.executemany(
                "INSERT OR IGNORE INTO completions "
                "(perturbation, prompt, sample, phase, temperature) VALUES (?, ?, ?, ?, ?)",
                [(*row, temperature) for row in rows],
            )

    @reading
    def missing(self) -> dict[float, list[Row]]:
        """Return the rows that were asked for and are not written yet, by temperature."""
        rows = self.database.execute(
            "SELECT temperature, perturbation, prompt, sample, phase FROM completions "
            "WHERE text IS NULL ORDER BY id"
        )
        found: dict[float, list[Row]] = {}
        for temperature, *row in rows:
            found.setdefault(temperature, []).append(Row(*row))
        return found

    def add_completions(self, rows: Iterable[CompletionRow]) -> None:
        """Keep a batch of completions in one transaction."""
        with self.writing():
            self.database.executemany(
                "INSERT INTO completions "
                "(perturbation, prompt, sample, phase, temperature, text, tokens, finished) "
                "VALUES (?, ?, ?, ?, ?, ?, ?, ?) "
                "ON CONFLICT DO UPDATE SET text = excluded.text, tokens = excluded.tokens, "
                "finished = excluded.finished",
                [(*c.row, *c[1:3], as_json(list(c.tokens)), int(c.finished)) for c in rows],
            )

    @reading
    def completion_rows(
        self,
        phase: str | None = None,
        *,
        of: Collection[int] | None = None,
        unscored: str | None = None,
    ) -> list[CompletionRow]:
        """Return what is written, or what of one phase, by perturbation, prompt and sample.

        Args:
            phase: Which; `KEPT` ones are left out where it is not this.
            of: Numbers of perturbations, where only theirs is read.
            unscored: A judge, where only what it has not scored is read.
        """
        new = UNSCORED.format("?")
        rows = self.database.execute(
            "SELECT perturbation, prompt, sample, phase, temperature, text, tokens, finished "
            f"FROM completions c WHERE text IS NOT NULL AND {_among('perturbation', of)} "
            f"AND {new if unscored else '? IS NULL'} ORDER BY perturbation, prompt, phase, sample",
            (unscored,),
        )
        found = [
            CompletionRow(Row(*row), temperature, text, tuple(json.loads(tokens)), bool(done))
            for *row, temperature, text, tokens, done in rows
        ]
        return [c for c in found if (c.phase != KEPT if phase is None else c.phase == phase)]

    def add_scores(self, rows: Iterable[ScoreRow]) -> None:
        """Keep scores, in place of what the same judge said before."""
        of_completions, of_perturbations = [], []
        for score in rows:
            value = score.value if abs(score.value) < float("inf") else None
            if isinstance(score.of, int):
                of_perturbations.append((score.of, score.judge, value, *score[3:]))
            else:
                of_completions.append((*score.of, score.judge, value, *score[3:]))
        with self.writing():
            self.database.executemany(
                f"INSERT OR REPLACE INTO scores VALUES ({COMPLETION}, NULL, ?, ?, ?, ?)",
                of_completions,
            )
            self.database.executemany(
                "INSERT OR REPLACE INTO scores VALUES (NULL, ?, ?, ?, ?, ?)", of_perturbations
            )

    @reading
    def judges(self) -> list[str]:
        """Return the names of the scores that there are."""
        return [name for (name,) in self.database.execute("SELECT DISTINCT judge FROM scores")]

    @reading
    def score_rows(
        self, judge: str | None = None, *, of: Collection[int] | None = None
    ) -> list[ScoreRow]:
        """Return the scores, or those of one judge; a value that there is not is infinite.

        Args:
            judge: Which.
            of: Numbers of perturbations, where only their scores are read.
        """
        said = "judge, value, unit, why"
        mine = "c.perturbation AS p, prompt, sample, phase, s.perturbation AS whole"
        wanted = "judge = coalesce(?1, judge)"
        query = (
            f"SELECT {mine}, {said} FROM scores s LEFT JOIN completions c ON c.id = s.completion "
            f"WHERE {wanted}"
        )
        if of is not None:  # begun from the texts, which have an index by perturbation
            query = (
                f"SELECT {mine}, {said} FROM completions c JOIN scores s ON s.completion = c.id "
                f"WHERE {_among('c.perturbation', of)} AND {wanted} UNION ALL "
                f"SELECT NULL, NULL, NULL, NULL, perturbation, {said} FROM scores "
                f"WHERE {_among('perturbation', of)} AND {wanted}"
            )
        query = f"SELECT * FROM ({query}) ORDER BY coalesce(whole, p), prompt, phase, sample, judge"
        return [
            ScoreRow(
                Row(p, *row) if whole is None else whole,
                name,
                float("inf") if value is None else value,
                unit,
                why,
            )
            for p, *row, whole, name, value, unit, why in self.database.execute(query, (judge,))
        ]


def _among(column: str, numbers: Collection[int] | None) -> str:
    """Return a condition: all, or those of some numbers, which may be many."""
    return "1" if numbers is None else f"{column} IN ({','.join(map(str, sorted(numbers)))})"


def _forget(database: sqlite3.Connection, folder: Path) -> None:
    """Close a run in memory, and remove its tensors."""
    database.close()
    shutil.rmtree(folder, ignore_errors=True)
