"""Standard output and error of any encoding, on any terminal, open or closed.

A job that is done must not be lost for want of a place to print: a sign that an encoding lacks is
written in ASCII, and what nobody takes is dropped. JSON is ASCII, and so the same everywhere.
"""

from __future__ import annotations

import codecs
import io
import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TextIO

from educe.errors import OutputError
from educe.plain import as_data
from educe.visible import visible

#: Our own signs, where an encoding lacks them; such a terminal needs no marks of direction.
_ASCII = str.maketrans(
    {"→": "->", "←": "<-", "↓": "v", "↑": "^", "–": "-", "−": "-", "…": "...", "·": "-", "×": "x"}
    | {"°": " deg", "✓": "+", "\xa0": " ", "\u2068": "", "\u2069": ""}
)


class _Lasting(io.FileIO):
    """A file that can be written to for ever: after a first error, what is written is dropped."""

    failure: OSError | None = None

    def write(self, data: Any) -> int:
        if self.failure is None:
            try:
                return super().write(data)
            except OSError as error:
                self.failure = error
        return memoryview(data).nbytes


@contextmanager
def lasting() -> Iterator[None]:
    """Let standard output and error take everything, for the time of a command."""
    codecs.register_error("educe.ascii", _in_ascii)
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = _opened(sys.stdout), _opened(sys.stderr)
    try:
        yield
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        sys.stdout, sys.stderr = before


def check_taken() -> None:
    """Make sure that standard output took everything; a reader that has gone has seen enough.

    Raises:
        OutputError: It did not, as when the disk is full.
    """
    sys.stdout.flush()
    failure = getattr(_raw(sys.stdout), "failure", None)
    if failure and not isinstance(failure, BrokenPipeError):
        raise OutputError(f"standard output cannot be written to: {failure.strerror or failure}")


def print_text(text: str = "") -> None:
    """Print lines on standard output, with what a terminal would obey as escapes."""
    print(visible(text))


def print_json(data: Any, indent: int | None = None) -> None:
    """Print data as JSON in ASCII; NaN and infinity, which JSON lacks, are null."""
    print(json.dumps(as_data(data), indent=indent, allow_nan=False))


def _opened(stream: TextIO | None) -> TextIO:
    """Return a stream in the place of another, which is closed where it is None."""
    if stream is None:
        return open(os.devnull, "w", encoding="utf-8")
    if not isinstance(stream, io.TextIOWrapper):
        return stream
    stream.flush()
    if type(_raw(stream)) is not io.FileIO:  # a console of Windows, or memory
        stream.reconfigure(errors="educe.ascii")
        return stream
    return io.TextIOWrapper(
        io.BufferedWriter(_Lasting(stream.fileno(), "w", closefd=False)),
        encoding=stream.encoding,
        errors="educe.ascii",
        # Of a stream that was unbuffered (`python -u`), each line is to be seen at once.
        line_buffering=stream.line_buffering or stream.write_through,
        write_through=stream.write_through,
    )


def _raw(stream: TextIO) -> object:
    buffer = getattr(stream, "buffer", None)
    return getattr(buffer, "raw", buffer)  # unbuffered, it is the file itself


def _in_ascii(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    text = error.object[error.start : error.end].translate(_ASCII)
    return text.encode("ascii", "backslashreplace").decode("ascii"), error.end
