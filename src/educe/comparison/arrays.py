"""Arrays: columns of a frame as a named tuple, for who selects rows thousands of times.

What takes a frame tens of microseconds takes an array one. Rows are known by their places, so that
a selection copies the columns that it needs and no more.
"""

from __future__ import annotations

from typing import Any, NamedTuple, TypeVar

import numpy as np
import pandas as pd

Kind = TypeVar("Kind", bound=NamedTuple)


def arrays(kind: type[Kind], some: pd.DataFrame) -> Kind:
    """Return the columns that a named tuple has fields for, as views; categories stay such."""
    return kind(*(some[name].values for name in kind._fields))


def where(some: Kind, which: np.ndarray) -> Kind:
    """Return the rows for which something is true, or those at some places."""
    columns: tuple[Any, ...] = tuple(some)
    return type(some)(*(column[which] for column in columns))


def apart(values: np.ndarray, some: np.ndarray) -> dict[int, np.ndarray]:
    """Return where each whole number stands, by that number, in order.

    Args:
        values: Whole numbers, ``[r]``.
        some: For which of them this is asked, ``[r]`` true or false.
    """
    at = np.flatnonzero(some)
    at = at[np.argsort(values[at], kind="stable")]
    ordered = values[at]
    starts = np.flatnonzero(ordered[1:] != ordered[:-1]) + 1
    parts = np.split(at, starts) if len(at) else []
    return {int(values[part[0]]): part for part in parts}
