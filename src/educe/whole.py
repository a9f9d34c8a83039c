"""Numbers and seeds that are asked for: which of them are taken.

A seed is from 0 to 2³² − 1: so every library that draws takes it, and so do the seeds that the job
makes of it, `2 (1000 seed + k)`.
"""

from __future__ import annotations

import math
import re
from numbers import Integral
from reprlib import repr  # short, however long the value is
from typing import Annotated, Any, NamedTuple, get_args, get_origin

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


class AtLeast(NamedTuple):
    """The least that a setting may be, as in ``steps: Annotated[int, AtLeast(1)]``."""

    low: int


class Above(NamedTuple):
    """What a setting has to be above, as in ``step: Annotated[float, Above(0)]``."""

    low: int


def check_bounds(name: str, value: Any, hint: Any) -> None:
    """Make sure that a value is within the bounds that the hint of its setting declares, if any.

    Raises:
        MethodError: It is not, or it is to be whole and is not.
    """
    if get_origin(hint) is not Annotated:
        return
    kind, *bounds = get_args(hint)
    for bound in bounds:
        if kind is int:
            check_whole(name, value, bound.low)
        elif isinstance(bound, AtLeast) and not value >= bound.low:
            raise MethodError(f"{name} is {repr(value)}: give {bound.low} or a number above it")
        elif isinstance(bound, Above) and not value > bound.low:
            raise MethodError(f"{name} is {repr(value)}: give a number above {bound.low}")


def check_seed(value: object) -> None:
    """Make sure that a value is a seed.

    Raises:
        MethodError: It is not.
    """
    check_whole("seed", value, 0, SEEDS)


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
