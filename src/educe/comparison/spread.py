"""Spread: whether the top of a set is an outlier, and whether it is more than a loud one.

Each score is looked at over a set of perturbations and over matched random ones. The top of ``n``
is held against its own set, by Grubbs' test (Grubbs 1950; one-sided), and against the random set:

    p = 1 - (1 - (1 + random ones that reach it) / (1 + random ones))^n

the chance that the best of ``n`` drawn like the random ones is as high (each a Monte-Carlo
p-value, corrected for the choice of the best as by Šidák 1967). Then both again on what is left of
the score after its regression, over both sets, on the logarithm of the effect: an outlier there is
more than a larger norm. Grubbs' test takes normal values; of scores in few steps it says little.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from scipy.stats import linregress
from scipy.stats import t as student

if TYPE_CHECKING:
    import pandas as pd

#: Scores that are looked at.
SCORES = ("coherence", "novelty", "interestingness", "kl", "kl_p95", "score")


class Top(NamedTuple):
    """The highest of a set."""

    number: int
    value: float
    grubbs: float  #: p-value within its own set
    random: float  #: p-value against the random set


class Spread(NamedTuple):
    """One score over a set and over the random one."""

    score: str
    dose: float  #: that those found were used with
    found: tuple[float, ...]  #: lowest, quartiles and highest
    control: tuple[float, ...]
    top: Top  #: the highest found
    left: Top  #: the highest after the regression on the log effect
    explained: float  #: share of the variance that the regression takes away


def spread(score: str, found: pd.DataFrame, control: pd.DataFrame) -> Spread:
    """Return how a score is distributed.

    Args:
        score: Its name.
        found: Points of one radius, with that score and an effect above zero.
        control: Those of random ones.
    """
    own, random = (arm[score].to_numpy(float) for arm in (found, control))
    effects = np.concatenate([found.effect, control.effect])
    left, explained = without(np.concatenate([own, random]), np.log(effects))
    numbers, n = found.number.tolist(), len(found)
    return Spread(
        score,
        float(found.dose.iloc[0]),
        _five(own),
        _five(random),
        _top(numbers, own, random),
        _top(numbers, left[:n], left[n:]),
        explained,
    )


def without(values: np.ndarray, x: np.ndarray) -> tuple[np.ndarray, float]:
    """Return what least squares on ``x`` leave of values, and the share of variance they take."""
    if not (np.ptp(values) and np.ptp(x)):
        return values - values.mean(), 0.0
    line = linregress(x, values)
    return values - line.slope * x - line.intercept, float(line.rvalue**2)


def grubbs(values: Sequence[float] | np.ndarray) -> float:
    """Return the one-sided p-value of the largest value among normal ones.

    1 for fewer than three, and where all others are alike, so that nothing says how they spread.

    From ``G = (max - mean) / s`` and ``t² = n (n-2) G² / ((n-1)² - n G²)``, with Bonferroni's
    bound, which is exact where no two values can be as far out.
    """
    data = np.sort(np.asarray(values, float))
    n = len(data)
    if n < 3 or data[0] == data[-2]:
        return 1.0
    g = (data[-1] - data.mean()) / data.std(ddof=1)
    room = (n - 1) ** 2 - n * g * g
    return float(min(1.0, n * student.sf(math.sqrt(n * (n - 2) * g * g / room), n - 2)))


def against(top: float, n: int, control: Sequence[float] | np.ndarray) -> float:
    """Return the chance that the best of ``n`` drawn like the control is as high."""
    each = (1 + sum(value >= top for value in control)) / (1 + len(control))
    return 1 - (1 - each) ** n


def _top(numbers: Sequence[int], found: np.ndarray, control: np.ndarray) -> Top:
    best = int(found.argmax())
    value = float(found[best])
    return Top(numbers[best], value, grubbs(found), against(value, len(found), control))


def _five(values: np.ndarray) -> tuple[float, ...]:
    return tuple(np.quantile(values, [0, 0.25, 0.5, 0.75, 1]).tolist())
