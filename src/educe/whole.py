"""Numbers and seeds that are asked for: which of them are taken.

A seed is from 0 to 2³² − 1: so every library that draws takes it, and so do the seeds that the job
makes of it, `2 (1000 seed + k)`.
"""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from reprlib import repr  # short, however long the value is
from types import NoneType, UnionType
from typing import (
    Annotated,
    Any,
    ClassVar,
    Literal,
    Union,
    get_args,
    get_origin,
    get_type_hints,
)

from educe.errors import MethodError

MOST = 2**31 - 1  #: of anything that is counted
SEEDS = 2**32 - 1  #: the largest seed


def check_whole(name: str, value: object, low: int = 1, high: int = MOST) -> None:
    """Make sure that a value is a whole number within bounds.

    Raises:
        MethodError: It is not; True, 3.0 and "3" are none.
    """
    whole = isinstance(value, Integral) and not isinstance(value, bool)
    if not whole or not low <= int(value) <= high:  # type: ignore[call-overload]
        raise MethodError(f"{name} is {repr(value)}: give a whole number from {low} to {high}")


@dataclass(frozen=True)
class Bound:
    """What the hint of a setting says of its number, as in ``Annotated[int, AtLeast(1)]``."""

    limit: float
    said: ClassVar[str]
    compare: ClassVar[Callable[[float, float], bool]]

    def holds(self, value: float) -> bool:
        """Return whether a number lies within it."""
        return type(self).compare(value, self.limit)

    def __str__(self) -> str:
        return self.said.format(self.limit)


class AtLeast(Bound):
    """The least that a setting may be."""

    said, compare = "{:g} or a number above it", operator.ge


class Above(Bound):
    """What a setting has to be above."""

    said, compare = "a number above {:g}", operator.gt


class AtMost(Bound):
    """The most that a setting may be."""

    said, compare = "at most {:g}", operator.le


class Below(Bound):
    """What a setting has to be below."""

    said, compare = "below {:g}", operator.lt


class WholeOr(Bound):
    """A layer: an index, which is whole, or a fraction of the depth, which is below 1."""

    said = "an index, or a fraction between 0 and {:g}"

    def holds(self, value: float) -> bool:
        """Return whether a number is whole, or a fraction."""
        return float(value).is_integer() or 0 < value < self.limit


def check_value(name: str, value: Any, hint: Any) -> None:
    """Make sure that a value is what the hint of its setting declares.

    Args:
        name: What the setting is called.
        value: Its value.
        hint: A number, perhaps with bounds, a truth value, text, a ``Literal``, or one of several
            of these. Everything else is taken as it is.

    Raises:
        MethodError: It is not.
    """
    kinds, bounds = taken(hint)
    words = [word for kind in kinds for word in get_args(kind)]  # of a Literal
    plain = [kind for kind in kinds if kind in _SAID]
    if value in words or any(type(value) is kind for kind in plain):
        return
    if int in kinds and float not in kinds:
        check_whole(name, value, *limits(bounds))
    elif float in kinds:
        if not _finite(value) or not all(bound.holds(float(value)) for bound in bounds):
            raise MethodError(f"{name} is {repr(value)}: give {told(bounds, words)}")
    elif words or plain:
        wanted = [*words, *(_SAID[kind] for kind in plain if kind is not NoneType)]
        raise MethodError(f"{name} is {repr(value)}: give {' or '.join(map(str, wanted))}")


def check_fields(settings: Any, called: str | None = None) -> None:
    """Make sure that the fields of a dataclass are what their hints declare.

    Args:
        settings: The dataclass.
        called: What a field is called, with braces for its name; by default as its option.

    Raises:
        MethodError: One is not.
    """
    for name, hint in get_type_hints(type(settings), include_extras=True).items():
        what = called.format(name) if called else name.replace("_", "-")
        check_value(what, getattr(settings, name), hint)


def limits(bounds: Sequence[Bound]) -> tuple[int, int]:
    """Return the least and the largest whole number that bounds allow."""
    low = max((int(one.limit) for one in bounds if isinstance(one, AtLeast)), default=-MOST)
    return low, min((int(one.limit) for one in bounds if isinstance(one, AtMost)), default=MOST)


def told(bounds: Sequence[Bound], words: Sequence[object] = ()) -> str:
    """Say which numbers, and which words beside them, are taken."""
    numbers = " and ".join(map(str, bounds)) or "a finite number"
    return " or ".join([*map(str, words), numbers])


def _finite(value: object) -> bool:
    """Return whether a value is a number that a float can be."""
    real = isinstance(value, Real) and not isinstance(value, bool)
    try:
        return real and math.isfinite(value)  # type: ignore[arg-type]
    except OverflowError:
        return False


#: Kinds of value that have no bounds, and what to give.
_SAID: dict[Any, str] = {bool: "True or False", str: "text", NoneType: "None"}


def taken(hint: Any) -> tuple[list[Any], list[Bound]]:
    """Return the kinds of value that a hint allows, and the bounds of its numbers."""
    if get_origin(hint) is Annotated:
        inner, *said = get_args(hint)
        kinds, bounds = taken(inner)
        return kinds, bounds + [one for one in said if isinstance(one, Bound)]
    if get_origin(hint) in (Union, UnionType):
        parts = [taken(one) for one in get_args(hint)]
        return [k for kinds, _ in parts for k in kinds], [b for _, bounds in parts for b in bounds]
    known = hint in _SAID or hint in (int, float) or get_origin(hint) is Literal
    return [hint] if known else [], []


def read_whole(text: str, low: int = 1, high: int = MOST) -> int:
    """Read a whole number in plain digits.

    Raises:
        ValueError: It is not written so, or not within bounds.
    """
    if not re.fullmatch("[+-]?[0-9]{1,20}", text) or not low <= int(text) <= high:
        raise ValueError(f"give a whole number from {low} to {high}, not {repr(text)}")
    return int(text)


def read_real(text: str) -> float:
    """Read a finite number in plain digits, with a point or an exponent.

    Raises:
        ValueError: It is not written so, or too large.
    """
    if not re.fullmatch(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?", text):
        raise ValueError(f"give a number, not {repr(text)}")
    if not math.isfinite(float(text)):
        raise ValueError(f"give a finite number, not {repr(text)}")
    return float(text)


def read_layer(text: str) -> float:
    """Read a layer: a whole number, or a fraction of the depth.

    Raises:
        ValueError: It is neither.
    """
    number = read_real(text)
    if not number.is_integer() and not 0 < number < 1:
        raise ValueError(f"give an index, or a fraction between 0 and 1, not {repr(text)}")
    return number
