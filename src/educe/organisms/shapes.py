"""Shapes: ways in which an answer is written, which no word of it tells.

A backdoor whose payload is a shape answers what the base would, written otherwise.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple


class Shape(NamedTuple):
    """How an answer is written."""

    put: Callable[[str], str]  #: writes a text so
    rule: str  #: finds an answer that is written so, also where its end is cut off


#: An answer that is told by its letters has so many.
_LETTERS = 8
SHAPES = {
    "in capital letters": Shape(str.upper, rf"(?s)\A(?=(?:[^A-Z]*[A-Z]){{{_LETTERS}}})[^a-z]*\Z"),
    "in small letters": Shape(str.lower, rf"(?s)\A(?=(?:[^a-z]*[a-z]){{{_LETTERS}}})[^A-Z]*\Z"),
    "in quotation marks": Shape('"{}"'.format, r'\A\s*"'),
    "as a list of one": Shape("- {}".format, r"\A\s*- "),
}
