"""Run: one folder, one SQLite file, tensors in safetensors. Everything a report shows is in it.

Each batch of work is one transaction in a write-ahead log, each tensor file is written whole under
another name and renamed: a process killed at any instant loses at most the batch in flight, and
what is missing can be asked for and done.
"""

from __future__ import annotations

import functools
import json
import sqlite3
import textwrap
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np

from educe.errors import BlockedError, FileFormatError, RunError

SCHEMA_VERSION = 1

#: Where a run has runs of what was made from its perturbations.
TRIALS = "refined"

#: Errors that say nothing of the file itself; their extended codes have more bits.
OUTSIDE = {
    sqlite3.SQLITE_BUSY,
    sqlite3.SQLITE_CANTOPEN,
    sqlite3.SQLITE_FULL,
    sqlite3.SQLITE_IOERR,
    sqlite3.SQLITE_PERM,
    sqlite3.SQLITE_READONLY,
}

SCHEMA = """
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE prompts (
  id INTEGER PRIMARY KEY,          -- from 0
  role TEXT NOT NULL,              -- asked: searched and answered; fresh: only for the re-test
  content TEXT NOT NULL,           -- JSON: a string or messages
  rendered TEXT NOT NULL,
  tokens INTEGER NOT NULL
);
CREATE TABLE perturbations (
  id INTEGER PRIMARY KEY,          -- from 1; 0 means the unperturbed model
  arm TEXT NOT NULL,               -- found or control
  file TEXT NOT NULL,              -- in tensors/
  item INTEGER NOT NULL,           -- row of that file
  method TEXT NOT NULL,
  radius REAL NOT NULL,
  dose REAL NOT NULL,
  effect REAL NOT NULL             -- norm of its effect at the target
);
CREATE TABLE completions (
  perturbation INTEGER NOT NULL,
  prompt INTEGER NOT NULL REFERENCES prompts (id),
  sample INTEGER NOT NULL,
  temperature REAL NOT NULL,
  text TEXT NOT NULL,
  tokens TEXT NOT NULL,            -- JSON list
  finished INTEGER NOT NULL,
  PRIMARY KEY (perturbation, prompt, sample)
) WITHOUT ROWID;
CREATE TABLE readings (            -- what the unperturbed model makes of a completion
  perturbation INTEGER NOT NULL,
  prompt INTEGER NOT NULL,
  sample INTEGER NOT NULL,
  logprob REAL NOT NULL,           -- mean over its tokens, in nats
  embedding BLOB NOT NULL,         -- float16
  PRIMARY KEY (perturbation, prompt, sample)
) WITHOUT ROWID;
CREATE TABLE scores (
  perturbation INTEGER NOT NULL,
  prompt INTEGER NOT NULL,         -- -1: of the perturbation as a whole
  sample INTEGER NOT NULL,
  judge TEXT NOT NULL,
  value REAL NOT NULL,
  why TEXT NOT NULL,
  PRIMARY KEY (perturbation, prompt, sample, judge)
) WITHOUT ROWID;
CREATE TABLE behaviours (          -- clusters of completions that say the same
  perturbation INTEGER NOT NULL,
  prompt INTEGER NOT NULL,
  sample INTEGER NOT NULL,
  behaviour INTEGER NOT NULL,
  x REAL NOT NULL,                 -- place on the map
  y REAL NOT NULL,
  PRIMARY KEY (perturbation, prompt, sample)
) WITHOUT ROWID;
CREATE TABLE responses (
  perturbation INTEGER NOT NULL,
  radius REAL NOT NULL,
  effect REAL NOT NULL,
  PRIMARY KEY (perturbation, radius)
) WITHOUT ROWID;
CREATE TABLE events (at REAL NOT NULL, what TEXT NOT NULL);
"""


Read = TypeVar("Read", bound=Callable[..., Any])


def _reading(method: Read) -> Read:
    """Make a method of `Run` say in one sentence that the file cannot be read."""

    @functools.wraps(method)
    def checked(run: Run, *arguments: Any) -> Any:
        try:
            return method(run, *arguments)
        except (sqlite3.DatabaseError, ValueError, TypeError) as error:
            raise _unreadable(run.folder / "run.sqlite", error) from error

    return checked  # type: ignore[return-value]


def _unreadable(file: Path, why: object) -> FileFormatError | BlockedError:
    reason = textwrap.shorten(str(why), 120)
    if getattr(why, "sqlite_errorcode", 0) & 0xFF in OUTSIDE:
        return BlockedError(
            f"cannot open {file}: {reason}; is the disk full, or the folder read-only?"
        )
    return FileFormatError(f"{file} is corrupt or truncated: {reason}")


class PerturbationRow(NamedTuple):
    """A perturbation as the run lists it."""

    id: int
    arm: str
    file: str
    item: int
    method: str
    radius: float
    dose: float
    effect: float


class CompletionRow(NamedTuple):
    """A completion as the run keeps it; perturbation 0 is the unperturbed model."""

    perturbation: int
    prompt: int
    sample: int
    temperature: float
    text: str
    tokens: tuple[int, ...]
    finished: bool

    @property
    def key(self) -> tuple[int, int, int]:
        """Perturbation, prompt and sample."""
        return self.perturbation, self.prompt, self.sample


class PromptRow(NamedTuple):
    """A prompt as the run keeps it."""

    id: int
    role: str
    content: Any
    rendered: str
    tokens: int


class ScoreRow(NamedTuple):
    """What a judge said; prompt and sample are -1 when it judged the perturbation as a whole."""

    perturbation: int
    prompt: int
    sample: int
    judge: str
    value: float
    why: str


class Run:
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
    def create(cls, folder: str | Path, config: Mapping[str, Any]) -> Run:
        """Begin a run in a new or empty folder.

        Raises:
            RunError: The folder holds something, or cannot be written.
        """
        folder = Path(folder)
        if (folder / "run.sqlite").exists():
            raise RunError(f"{folder} holds another run: use --resume to go on with it, or --out")
        # Written under another name: a run file is either absent or has its tables and settings.
        scratch = folder / ".run.sqlite.new"
        journal = folder / f"{scratch.name}-journal"
        ours = {scratch, journal, folder / "tensors"}  # left by a process that was killed in here
        made = [place for place in (folder, *folder.parents) if not place.exists()]
        try:
            if folder.exists() and (
                set(folder.iterdir()) - ours or any((folder / "tensors").glob("*"))
            ):
                raise RunError(f"{folder} is not empty and holds no run: choose another --out")
            (folder / "tensors").mkdir(parents=True, exist_ok=True)
            scratch.unlink(missing_ok=True)
            journal.unlink(missing_ok=True)
        except OSError as error:
            raise RunError(f"cannot create {folder}: {error.strerror or error}") from error
        with _reporting(folder), closing(sqlite3.connect(scratch)) as database, database:
            database.executescript(f"BEGIN; {SCHEMA}")
            database.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
            database.execute(
                "INSERT INTO meta VALUES ('config', ?)", (json.dumps(config, sort_keys=True),)
            )
        scratch.rename(folder / "run.sqlite")
        run = cls.open(folder)
        run._created, run._made = True, made
        return run

    @classmethod
    def open(cls, folder: str | Path) -> Run:
        """Open an existing run.

        Raises:
            RunError: There is no run in that folder.
            FileFormatError: Its file is corrupt, or of another version.
        """
        folder = Path(folder)
        file = folder / "run.sqlite"
        if not file.is_file():
            raise RunError(f"there is no run in {folder}")
        database = sqlite3.connect(file)
        try:
            (version,) = database.execute("PRAGMA user_version").fetchone()
            (health,) = database.execute("PRAGMA quick_check(1)").fetchone()
            if version != SCHEMA_VERSION:
                raise FileFormatError(
                    f"{file} has version {version}, this educe reads {SCHEMA_VERSION}"
                )
            if health != "ok":
                raise _unreadable(file, health)
            database.execute("PRAGMA journal_mode = WAL")
            database.execute("PRAGMA synchronous = NORMAL")
            run = cls(folder, database)
            run.config  # noqa: B018 - a run without settings is none
        except (sqlite3.DatabaseError, ValueError, KeyError) as error:
            database.close()
            raise _unreadable(file, error) from error
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
        """Return whether anything was computed: rows, tensors, an atlas, runs inside the run."""
        ours = {"run.sqlite", "run.sqlite-wal", "run.sqlite-shm", self.tensors.name, ".lock"}
        return bool(
            self.perturbations()
            or self.completions()
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

    # -- settings and events -----------------------------------------------------------------

    @property
    def config(self) -> dict[str, Any]:
        """What was asked for."""
        return self.note("config")

    @_reading
    def note(self, key: str) -> Any:
        """Return something remembered by name.

        Raises:
            KeyError: There is nothing by that name.
        """
        found = self.database.execute("SELECT value FROM meta WHERE key = ?", (key,)).fetchone()
        if found is None:
            raise KeyError(key)
        return json.loads(found[0])

    @_reading
    def has(self, key: str) -> bool:
        """Return whether something is remembered by that name."""
        query = "SELECT 1 FROM meta WHERE key = ?"
        return self.database.execute(query, (key,)).fetchone() is not None

    def remember(self, key: str, value: Any) -> None:
        """Remember something that JSON can hold by name."""
        with self.writing():
            self.database.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (key, _json(value)))

    def add_passport(self, number: int, passport: Mapping[str, Any]) -> None:
        """Keep where a perturbation stands (see `educe.manifold`), in place of what was kept."""
        self.remember(f"passport-{number:06d}", passport)

    @_reading
    def passports(self) -> list[dict[str, Any]]:
        """Return the passports, by the numbers of their perturbations."""
        return self.notes("passport-")

    @_reading
    def notes(self, beginning: str) -> list[dict[str, Any]]:
        """Return what is remembered by names that begin so, in their order."""
        rows = self.database.execute(
            "SELECT value FROM meta WHERE key GLOB ? ORDER BY key", (f"{beginning}*",)
        )
        return [json.loads(value) for (value,) in rows]

    def trials(self, name: str) -> list[dict[str, Any]]:
        """Return what trials of one name came to, those that ended (see `educe.refine.trial`)."""
        found = []
        for folder in sorted((self.folder / TRIALS).glob(f"{name}-*")):
            with Run.open(folder) as own:
                if own.has("result"):
                    found.append(own.note("result"))
        return found

    def event(self, what: str) -> None:
        """Note that something happened, with the time."""
        with self.writing():
            self.database.execute("INSERT INTO events VALUES (?, ?)", (time.time(), what))

    @_reading
    def began(self) -> float | None:
        """Return when the first event was, in seconds since 1970."""
        return self.database.execute("SELECT min(at) FROM events").fetchone()[0]

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Run what is inside as one transaction.

        Raises:
            RunError: The disk is full or the file cannot be written; the run stays as it was.
        """
        with _reporting(self.folder), self.database:
            yield

    # -- rows --------------------------------------------------------------------------------

    def add_prompts(self, prompts: Sequence[PromptRow]) -> None:
        """Keep prompts, once."""
        with self.writing():
            self.database.executemany(
                "INSERT OR IGNORE INTO prompts VALUES (?, ?, ?, ?, ?)",
                [(p.id, p.role, _json(p.content), p.rendered, p.tokens) for p in prompts],
            )

    @_reading
    def prompts(self, role: str | None = None) -> list[PromptRow]:
        """Return the prompts, or those of one role, in order."""
        rows = self.database.execute("SELECT * FROM prompts ORDER BY id")
        found = [PromptRow(i, r, json.loads(c), text, n) for i, r, c, text, n in rows]
        return [p for p in found if role in (None, p.role)]

    def add_perturbations(self, rows: Sequence[PerturbationRow]) -> None:
        """List perturbations."""
        with self.writing():
            self.database.executemany(
                "INSERT INTO perturbations VALUES (?, ?, ?, ?, ?, ?, ?, ?)", rows
            )

    @_reading
    def perturbations(self, arm: str | None = None) -> list[PerturbationRow]:
        """Return the perturbations, or those of one arm, in order."""
        rows = self.database.execute("SELECT * FROM perturbations ORDER BY id")
        return [p for p in map(PerturbationRow._make, rows) if arm in (None, p.arm)]

    def add_completions(self, rows: Iterable[CompletionRow]) -> None:
        """Keep a batch of completions in one transaction."""
        with self.writing():
            self.database.executemany(
                "INSERT OR REPLACE INTO completions VALUES (?, ?, ?, ?, ?, ?, ?)",
                [(*c[:5], _json(list(c.tokens)), int(c.finished)) for c in rows],
            )

    @_reading
    def completions(self) -> list[CompletionRow]:
        """Return every completion, by perturbation, prompt and sample."""
        rows = self.database.execute(
            "SELECT * FROM completions ORDER BY perturbation, prompt, sample"
        )
        return [
            CompletionRow(p, q, s, heat, text, tuple(json.loads(tokens)), bool(done))
            for p, q, s, heat, text, tokens, done in rows
        ]

    def add_readings(self, rows: Iterable[tuple[tuple[int, int, int], float, np.ndarray]]) -> None:
        """Keep what the unperturbed model makes of completions: key, log-probability, embedding."""
        with self.writing():
            self.database.executemany(
                "INSERT OR REPLACE INTO readings VALUES (?, ?, ?, ?, ?)",
                [(*key, lp, e.astype(np.float16).tobytes()) for key, lp, e in rows],
            )

    @_reading
    def readings(self) -> dict[tuple[int, int, int], tuple[float, np.ndarray]]:
        """Return log-probability and embedding by completion."""
        rows = self.database.execute("SELECT * FROM readings")
        return {
            (p, q, s): (lp, np.frombuffer(e, np.float16).astype(np.float32))
            for p, q, s, lp, e in rows
        }

    def add_scores(self, rows: Iterable[ScoreRow]) -> None:
        """Keep scores."""
        with self.writing():
            self.database.executemany(
                "INSERT OR REPLACE INTO scores VALUES (?, ?, ?, ?, ?, ?)", list(rows)
            )

    @_reading
    def scores(self, judge: str | None = None) -> list[ScoreRow]:
        """Return the scores, or those of one judge."""
        query = "SELECT * FROM scores ORDER BY perturbation, prompt, sample, judge"
        rows = map(ScoreRow._make, self.database.execute(query))
        return [s for s in rows if judge in (None, s.judge)]

    def set_behaviours(
        self, rows: Iterable[tuple[tuple[int, int, int], int, float, float]]
    ) -> None:
        """Replace the clusters: key, behaviour, place on the map."""
        with self.writing():
            self.database.execute("DELETE FROM behaviours")
            self.database.executemany(
                "INSERT INTO behaviours VALUES (?, ?, ?, ?, ?, ?)",
                [(*key, behaviour, x, y) for key, behaviour, x, y in rows],
            )

    @_reading
    def behaviours(self) -> dict[tuple[int, int, int], tuple[int, float, float]]:
        """Return the cluster and the place on the map by completion."""
        rows = self.database.execute("SELECT * FROM behaviours")
        return {(p, q, s): (b, x, y) for p, q, s, b, x, y in rows}

    def add_responses(self, rows: Iterable[tuple[int, float, float]]) -> None:
        """Keep points of response curves: perturbation, radius, norm of the effect."""
        with self.writing():
            self.database.executemany("INSERT OR REPLACE INTO responses VALUES (?, ?, ?)", rows)

    @_reading
    def responses(self) -> dict[int, list[tuple[float, float]]]:
        """Return radius and norm of the effect by perturbation."""
        curves: dict[int, list[tuple[float, float]]] = {}
        rows = self.database.execute("SELECT * FROM responses ORDER BY perturbation, radius")
        for perturbation, radius, effect in rows:
            curves.setdefault(perturbation, []).append((radius, effect))
        return curves


def _json(value: Any) -> str:
    return json.dumps(value, sort_keys=True, ensure_ascii=False)


@contextmanager
def _reporting(folder: Path) -> Iterator[None]:
    """Say in one sentence why a run cannot be written."""
    try:
        yield
    except (sqlite3.OperationalError, OSError) as error:
        raise BlockedError(
            f"cannot write the run in {folder}: {error}; free some space or mend the permissions, "
            "then use --resume"
        ) from error
