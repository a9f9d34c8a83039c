"""What the best of many reaches by chance, and how surprising a best is.

With ``n`` candidates that all hit at rate ``p``, and ``T`` trials each, the largest count ``M`` has

    P(M ≤ k) = F(k)ⁿ,      E[M / T] = Σ_{k<T} (1 - F(k)ⁿ) / T,      P(M ≥ k) = 1 - F(k - 1)ⁿ,

``F`` the binomial distribution function: 512 candidates, 32 trials and 3% give a best of 15%
without any candidate being better than another. The rate is not known but estimated from the
control. The p-value is taken at the rate's upper confidence limit of level ``1 - β`` and ``β`` is
added to it, which is valid whatever the rate is (Berger & Boos 1994).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy.stats import beta, binom

#: β: the chance that the rate lies above its limit, and the smallest p-value there is.
DOUBT = 0.001
#: Draws of a mean, for scores that are not hits or misses.
DRAWS = 100_000


class Chance(NamedTuple):
    """The best of many that are all alike, as a share of the trials."""

    mean: float
    low: float  #: 5% quantile
    high: float  #: 95% quantile


def best_by_chance(n: int, trials: int, rate: float) -> Chance:
    """Return the largest share of hits among candidates of one and the same rate. Exact.

    Args:
        n: Candidates.
        trials: Of each.
        rate: Their rate.

    Example:
        >>> print(f"{best_by_chance(512, 32, 0.03).mean:.0%}")
        15%
    """
    below = binom.cdf(np.arange(trials + 1), trials, rate) ** n
    low, high = (int(np.argmax(below >= q)) / trials for q in (0.05, 0.95))
    return Chance(float((1 - below[:-1]).sum() / trials), low, high)


def p_of_best(hits: int, n: int, trials: int, control: tuple[int, int]) -> float:
    """Return the p-value of the best of ``n`` candidates, corrected for there being ``n``.

    The hypothesis is that every candidate has the rate of the control, taken as one: a small value
    says that some candidate beats the *average* control, not that it beats the best one. Where
    candidates were dropped on the way, the best of those left is no better than the best of all,
    so the value is valid and on the safe side.

    Args:
        hits: Of the best.
        n: Candidates that it is the best of.
        trials: Of each.
        control: Hits and trials of the control, without any selection.
    """
    seen, of = control
    limit = beta.ppf(1 - DOUBT, seen + 1, of - seen) if seen < of else 1.0
    return min(1.0, _any_reaches(float(binom.sf(hits - 1, trials, limit)), n) + DOUBT)


def best_mean_by_chance(
    n: int, trials: int, values: Sequence[float], best: float, *, seed: int = 0
) -> tuple[Chance, float]:
    """Return the same two for scores of any size, by simulation.

    Candidates draw their scores from ``values``, with replacement. That these are a sample too is
    left out.

    Args:
        n: Candidates.
        trials: Of each.
        values: Scores of the control, without any selection.
        best: The mean score of the best.
        seed: Of the draws.
    """
    rng = np.random.default_rng(seed)
    means = np.sort(rng.choice(np.asarray(values, float), (DRAWS, trials)).mean(1))
    # The best of n has quantile q where one has q^(1/n); its mean is over equal steps of q.
    steps = (np.arange(DRAWS) + 0.5) / DRAWS
    low, high = np.quantile(means, np.array([0.05, 0.95]) ** (1 / n))
    expected = np.quantile(means, steps ** (1 / n)).mean()
    reached = DRAWS - int(np.searchsorted(means, best - 1e-9))
    share = (reached + 1) / (DRAWS + 1)
    return Chance(float(expected), float(low), float(high)), _any_reaches(share, n)


def _any_reaches(share: float, n: int) -> float:
    """Return 1 - (1 - share)ⁿ, to full precision."""
    return 1.0 if share >= 1 else float(-np.expm1(n * np.log1p(-share)))
