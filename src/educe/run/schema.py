"""Schema: the tables of a run's file, and why it cannot be read or written, in one sentence."""

from __future__ import annotations

import functools
import json
import sqlite3
import textwrap
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from educe.errors import BlockedError, FileFormatError
from educe.run.migrations import SCHEMA_VERSION

#: Settings, and settings and names of methods, that older runs know by another name.
RENAMED = {"quiet": "retain", "quiet_by": "retain_by", "ordinary": "retain_prompts"}
RENAMED_IN_METHODS = {"hold": "turning"}
RENAMED_METHODS = {"words": "tokens"}

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
  tokens INTEGER NOT NULL,
  parent INTEGER REFERENCES prompts (id),
  how TEXT NOT NULL DEFAULT ''     -- how it was made from its parent
);
CREATE TABLE perturbations (
  id INTEGER PRIMARY KEY,          -- from 1; 0 is the unperturbed model, which has no row
  parent INTEGER REFERENCES perturbations (id),
  how TEXT NOT NULL,               -- how it was derived from its parent
  arm TEXT NOT NULL,               -- found or control
  method TEXT NOT NULL,
  file TEXT NOT NULL,              -- in tensors/
  item INTEGER NOT NULL,           -- row of that file
  radius REAL NOT NULL,            -- negative for the other sign
  dose REAL NOT NULL,
  effect REAL NOT NULL             -- norm of its effect at the target
);
CREATE TABLE completions (
  id INTEGER PRIMARY KEY,
  perturbation INTEGER NOT NULL,
  prompt INTEGER NOT NULL REFERENCES prompts (id),
  phase TEXT NOT NULL,
  sample INTEGER NOT NULL,
  temperature REAL NOT NULL,
  text TEXT,                       -- NULL until it is written
  tokens TEXT,                     -- JSON list
  finished INTEGER,
  UNIQUE (perturbation, prompt, phase, sample)
);
CREATE TABLE scores (
  completion INTEGER REFERENCES completions (id),
  perturbation INTEGER,            -- where it is of the perturbation as a whole
  judge TEXT NOT NULL,
  value REAL,                      -- NULL: there is none, as where the model breaks down
  unit TEXT NOT NULL,
  why TEXT NOT NULL,
  CHECK ((completion IS NULL) <> (perturbation IS NULL))
);
CREATE UNIQUE INDEX of_completion ON scores (completion, judge) WHERE completion IS NOT NULL;
CREATE UNIQUE INDEX of_perturbation ON scores (perturbation, judge) WHERE perturbation IS NOT NULL;
"""

#: A completion's id by its row.
COMPLETION = (
    "(SELECT id FROM completions WHERE perturbation = ? AND prompt = ? AND sample = ? "
    "AND phase = ?)"
)

#: Of a completion `c`, that a judge has not scored it.
UNSCORED = "NOT EXISTS (SELECT 1 FROM scores s WHERE s.completion = c.id AND s.judge = {})"

Read = TypeVar("Read", bound=Callable[..., Any])


def reading(method: Read) -> Read:
    """Make a method of a run say in one sentence that the file cannot be read."""

    @functools.wraps(method)
    def checked(run: Any, *arguments: Any, **named: Any) -> Any:
        try:
            return method(run, *arguments, **named)
        except (sqlite3.DatabaseError, ValueError, TypeError, RecursionError) as error:
            raise unreadable(run.folder / "run.sqlite", error) from error

    return checked  # type: ignore[return-value]


def unreadable(file: Path, why: object) -> FileFormatError | BlockedError:
    """Return the error that says why a file cannot be read."""
    reason = textwrap.shorten(str(why), 120)
    if getattr(why, "sqlite_errorcode", 0) & 0xFF in OUTSIDE:
        return BlockedError(
            f"cannot open {file}: {reason}; is the disk full, or the folder read-only?"
        )
    return FileFormatError(f"{file} is corrupt or truncated: {reason}")


@contextmanager
def reporting(folder: Path) -> Iterator[None]:
    """Say in one sentence why a run cannot be written."""
    try:
        yield
    except (sqlite3.OperationalError, OSError) as error:
        raise BlockedError(
            f"cannot write the run in {folder}: {error}; free some space or mend the permissions, "
            "then use --resume"
        ) from error


def begin(database: sqlite3.Connection, config: Mapping[str, Any]) -> None:
    """Make the tables, and keep what was asked for."""
    database.executescript(f"BEGIN; {SCHEMA}")
    database.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
    database.executemany(
        "INSERT INTO meta VALUES (?, ?)",
        [("config", as_json(config)), ("began", as_json(time.time()))],
    )


def as_json(value: Any) -> str:
    """Write a value as a table holds it."""
    return json.dumps(value, sort_keys=True, ensure_ascii=False)


def renamed(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of a run by the names that they have now."""
    now = {RENAMED.get(name, name): value for name, value in config.items()}
    if "method" in now:
        now["method"] = RENAMED_METHODS.get(now["method"], now["method"])
    if "method_settings" in now:
        own = now["method_settings"].items()
        now["method_settings"] = {RENAMED_IN_METHODS.get(name, name): v for name, v in own}
    return now
