"""Numbers and seeds that are asked for: what of them can be meant.

A seed is from 0 to 2³² − 1: so every library that draws takes it, and so do the seeds that the job
makes of it, `2 (1000 seed + k)`.
"""

from __future__ import annotations

import math
import re
from numbers import Integral

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
        raise MethodError(f"{name} is {value!r}: {_wanted(low, high)}")


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
        raise ValueError(f"{text!r} cannot be meant, {_wanted(low, high)}")
    return int(text)


def read_real(text: str) -> float:
    """Read a finite number in plain digits, with a point or an exponent.

    Raises:
        ValueError: It is not written so, or too large.
    """
    if not re.fullmatch(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?", text):
        raise ValueError(f"{text!r} cannot be meant, give a number")
    if not math.isfinite(float(text)):
        raise ValueError(f"{text!r} is too large")
    return float(text)


def _wanted(low: int, high: int) -> str:
    bounds = f"from {low} to {high}" if high != MOST else f"of {low} or more"
    return f"give a whole number {bounds}"
