"""The file of a run: it is opened in seconds however large it is, and damage is one sentence.

A small file is checked whole when it is opened. Of a large one that would take minutes, so only
what says what the run is gets checked; damage of the texts and scores is met where they are read,
and every cursor says so in the same sentence.
"""

from __future__ import annotations

import functools
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

from educe.errors import FileFormatError
from educe.run.migrations import MIGRATIONS, SCHEMA_VERSION, migrate
from educe.run.schema import OUTSIDE, unreadable

#: Bytes of a file up to which all of it is checked: some seconds of reading.
WHOLE = 2**28
#: Tables that are checked in a larger one, which grow with the perturbations and not with texts.
ALWAYS = ("meta", "prompts", "perturbations")


def opened(file: Path) -> sqlite3.Connection:
    """Open the file of a run, and bring its tables up to those of this educe.

    Args:
        file: The file, which has to be there.

    Raises:
        FileFormatError: It is damaged, or of another version.
        BlockedError: It cannot be opened, as on a full disk.
    """
    database = sqlite3.connect(file, factory=_Connection)
    try:
        (version,) = database.execute("PRAGMA user_version").fetchone()
        # What a migration writes anew has to be sound, whatever that takes.
        small = version != SCHEMA_VERSION or file.stat().st_size <= WHOLE
        for part in ("1",) if small else ALWAYS:
            (health,) = database.execute(f"PRAGMA quick_check({part})").fetchone()
            if health != "ok":
                raise unreadable(file, health)
        if version != SCHEMA_VERSION and version not in MIGRATIONS:
            raise FileFormatError(
                f"{file} has version {version}, this educe reads {SCHEMA_VERSION}"
            )
        migrate(database, version)
        database.execute("PRAGMA journal_mode = WAL")
        database.execute("PRAGMA synchronous = NORMAL")
    except sqlite3.DatabaseError as error:
        database.close()
        raise unreadable(file, error) from error
    except BaseException:
        database.close()
        raise
    return database


def _telling(method: Callable[..., Any]) -> Any:
    """Return a method of `sqlite3.Cursor` that says in one sentence that the file is damaged."""

    @functools.wraps(method)
    def told(cursor: Any, *given: Any, **named: Any) -> Any:
        try:
            return method(cursor, *given, **named)
        except (sqlite3.DatabaseError, UnicodeDecodeError) as error:
            cursor.close()  # or the traceback keeps the file open
            # What is outside the file has another sentence where it is written, and read.
            known = getattr(error, "sqlite_errorcode", 0) & 0xFF in OUTSIDE
            if known or isinstance(error, sqlite3.IntegrityError | sqlite3.ProgrammingError):
                raise
            raise unreadable(cursor.connection.file, error) from error

    return told


class _Cursor(sqlite3.Cursor):
    """A cursor that says of a damaged file what `unreadable` does."""

    execute = _telling(sqlite3.Cursor.execute)
    executemany = _telling(sqlite3.Cursor.executemany)
    executescript = _telling(sqlite3.Cursor.executescript)
    fetchone = _telling(sqlite3.Cursor.fetchone)
    fetchmany = _telling(sqlite3.Cursor.fetchmany)
    fetchall = _telling(sqlite3.Cursor.fetchall)
    __next__ = _telling(sqlite3.Cursor.__next__)


class _Connection(sqlite3.Connection):
    """A connection all of whose cursors are such ones."""

    def __init__(self, file: Path, *how: Any, **named: Any) -> None:
        super().__init__(file, *how, **named)
        self.file = file

    def cursor(self, factory: Any = _Cursor) -> Any:
        return super().cursor(factory)

    def execute(self, *asked: Any) -> Any:
        return self.cursor().execute(*asked)

    def executemany(self, *asked: Any) -> Any:
        return self.cursor().executemany(*asked)

    def executescript(self, script: str) -> Any:
        return self.cursor().executescript(script)
