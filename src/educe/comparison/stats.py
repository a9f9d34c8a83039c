"""Intervals and tests for what is counted and averaged."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from functools import cache
from typing import NamedTuple

import numpy as np
from scipy.stats import binomtest, fisher_exact, hypergeom

#: Values that a bootstrap draws at a time.
PICKS = 2**22


def finite(value: float) -> float | None:
    """Return a number as JSON can hold it: none where it is NaN or infinite."""
    return value if math.isfinite(value) else None


class Rate(NamedTuple):
    """Hits among trials, with a 95% Wilson interval."""

    hits: int
    trials: int
    low: float
    high: float

    @property
    def share(self) -> float:
        """Hits divided by trials; NaN without trials."""
        return self.hits / self.trials if self.trials else math.nan

    def __str__(self) -> str:
        return f"{self.hits} of {self.trials} ({self.low:.0%} to {self.high:.0%})"


@cache
def rate(hits: int, trials: int) -> Rate:
    """Return a rate with its Wilson score interval (Wilson 1927) at 95%."""
    if trials == 0:
        return Rate(0, 0, 0.0, 1.0)
    between = binomtest(hits, trials).proportion_ci(0.95, method="wilson")
    return Rate(hits, trials, float(between.low), float(between.high))


@cache
def more_often(found: Rate, control: Rate) -> float:
    """Return the one-sided p-value of Fisher's exact test that ``found`` is the larger rate."""
    table = [
        [found.hits, found.trials - found.hits],
        [control.hits, control.trials - control.hits],
    ]
    return float(fisher_exact(table, alternative="greater").pvalue)


def more_often_within(strata: Iterable[tuple[Rate, Rate]]) -> float:
    """Return the one-sided p-value that found is the larger rate, compared stratum by stratum.

    Exact and conditional (Birch 1964, the exact form of Cochran-Mantel-Haenszel): within a stratum
    the hits of both arms fall on found as in a draw without replacement. What all trials of a
    stratum share, such as an easy question, then speaks for neither arm. With one stratum it is
    Fisher's test.

    Args:
        strata: Found and control of each.
    """
    chances, hits = np.ones(1), 0
    for found, control in strata:
        trials, total = found.trials + control.trials, found.hits + control.hits
        own = hypergeom(trials, total, found.trials).pmf(np.arange(total + 1))
        chances, hits = np.convolve(chances, own), hits + found.hits
    return min(1.0, float(chances[hits:].sum()))


def comparisons(totals: Sequence[int], found: int, control: int, *, level: float = 0.05) -> int:
    """Return by how many comparisons a p-value is to be multiplied (Tarone 1990).

    Bonferroni's correction, less the comparisons that cannot become significant whatever the split:
    a behaviour seen twice has no chance of it, and should not cost the others theirs.

    Args:
        totals: Hits of both arms together, for each behaviour.
        found: Trials of the one arm.
        control: Trials of the other.
        level: The level of significance.
    """
    smallest = []
    for total in totals:
        inside = min(total, found)
        best = more_often(rate(inside, found), rate(total - inside, control))
        smallest.append(best)
    return next(
        k for k in range(1, len(smallest) + 2) if sum(p <= level / k for p in smallest) <= k
    )


def bootstrap_mean(
    values: Sequence[float] | np.ndarray, *, seed: int = 0, draws: int = 2000
) -> tuple[float, float, float]:
    """Return a mean and its 95% percentile bootstrap interval."""
    data, rng = np.asarray(values, dtype=float), np.random.default_rng(seed)
    at_once = max(1, PICKS // len(data))
    parts = [min(at_once, draws - first) for first in range(0, draws, at_once)]
    means = [data[rng.integers(len(data), size=(n, len(data)))].mean(1) for n in parts]
    low, high = np.quantile(np.concatenate(means), [0.025, 0.975])
    return float(data.mean()), float(low), float(high)


class Estimate(NamedTuple):
    """A mean score with its 95% interval: Wilson's for hits, else bootstrapped over prompts."""

    mean: float
    low: float
    high: float
    trials: int
    hits: int | None  #: None where scores are not hits or misses

    @property
    def short(self) -> str:
        """Without its interval."""
        return f"{self.mean:.2f}" if self.hits is None else f"{self.hits} of {self.trials}"

    def __str__(self) -> str:
        form = ".2f" if self.hits is None else ".0%"
        return f"{self.short} ({self.low:{form}} to {self.high:{form}})"


def estimate(scores: np.ndarray, hits: bool) -> Estimate:
    """Return the mean of scores with its interval, ``[prompts, samples]`` of one perturbation.

    Args:
        scores: The scores.
        hits: Whether they are hits and misses.
    """
    if hits:
        found = rate(int(scores.sum()), scores.size)
        return Estimate(found.share, found.low, found.high, found.trials, found.hits)
    return Estimate(*bootstrap_mean(scores.mean(1).tolist()), scores.size, None)


def pareto(effect: Sequence[float] | np.ndarray, cost: Sequence[float] | np.ndarray) -> np.ndarray:
    """Return which points no other has both at least the effect and at most the cost of.

    Of equal points all are returned.
    """
    gain, price = np.asarray(effect, dtype=float), np.asarray(cost, dtype=float)
    as_good = (gain[:, None] >= gain) & (price[:, None] <= price)  # row beats column, or equals it
    better = as_good & ((gain[:, None] > gain) | (price[:, None] < price))
    return np.logical_not(better.any(0))
