"""Equal: found and random perturbations at radii at which something else is the same.

At the radius that a search used, one set can win by being louder. So each perturbation is scaled
to one effect ``‖Δ‖`` (the median of those found), or to one damage of ordinary text (the 95th
percentile of the divergence), and writes and is judged anew.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from educe.comparison.stats import Rate, bootstrap_mean, more_often, rate
from educe.comparison.verdict import DAMAGED, SAME
from educe.norm.points import Point


class Arm(NamedTuple):
    """Some perturbations, each at its radius.

    Attributes:
        reached: How many have such a radius.
        shows: Those with an answer that the judge scores from the threshold on.
        new: Those whose texts are coherent and new (see `educe.comparison.summary`).
        nonsense: Those whose texts are damaged.
        striking: Mean of coherence times novelty, with a 95% bootstrap interval.
        radius: Median radius.
        effect: Median effect.
        high: Median 95th percentile of the divergence, in nats.
    """

    reached: int
    shows: Rate
    new: Rate
    nonsense: Rate
    striking: tuple[float, float, float]
    radius: float
    effect: float
    high: float


class Equal(NamedTuple):
    """Two arms at equal something; the p-values are of Fisher's exact test, one-sided."""

    at: str  #: radius, effect or kl
    value: float | None
    found: Arm
    control: Arm
    p_shows: float  #: that more of those found show it
    p_new: float  #: that more of those found write what is coherent and new
    p_nonsense: float  #: that more of those found write nonsense


def equal(
    at: str,
    value: float | None,
    found: Sequence[Point],
    control: Sequence[Point],
    *,
    threshold: float = 0.5,
) -> Equal:
    """Compare two arms.

    Args:
        at: What is equal.
        value: How much of it.
        found: Points of those found.
        control: Points of random ones.
        threshold: A score from here on says that an answer shows the behaviour.
    """
    one, other = arm(found, threshold), arm(control, threshold)
    return Equal(
        at,
        value,
        one,
        other,
        more_often(one.shows, other.shows),
        more_often(one.new, other.new),
        more_often(one.nonsense, other.nonsense),
    )


def arm(points: Sequence[Point], threshold: float = 0.5) -> Arm:
    """Sum up some perturbations."""

    def share(there: Sequence[bool]) -> Rate:
        return rate(sum(there), len(there))

    def middle(name: str) -> float:
        values = [abs(v) for p in points if (v := getattr(p, name)) is not None]
        return float(np.median(values)) if values else 0.0

    return Arm(
        len(points),
        share([p.best >= threshold for p in points]),
        share([p.coherence >= DAMAGED and p.novelty >= SAME for p in points]),
        share([p.coherence < DAMAGED for p in points]),
        bootstrap_mean([p.coherence * p.novelty for p in points] or [0.0]),
        middle("radius"),
        middle("effect"),
        middle("high"),
    )
