"""Equal: found and random perturbations at radii at which something else is the same.

At the radius that a search used, one set can win by being louder. So each perturbation is scaled
to one effect ``‖Δ‖`` (the median of those found), or to one damage of ordinary text (the 95th
percentile of the divergence), and writes and is judged anew.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from educe.comparison.stats import Rate, bootstrap_mean, more_often, rate
from educe.comparison.verdict import DAMAGED, SAME

if TYPE_CHECKING:
    import pandas as pd


class Arm(NamedTuple):
    """Some perturbations, each at its radius; radius, effect and damage are medians."""

    reached: int  #: how many have such a radius
    shows: Rate  #: those with an answer that the judge scores from the threshold on
    new: Rate  #: those whose texts are coherent and new (see `educe.comparison.summary`)
    nonsense: Rate  #: those whose texts are damaged
    interestingness: tuple[float, float, float]  #: mean, with a 95% bootstrap interval
    radius: float
    effect: float
    kl_p95: float  #: 95th percentile of the divergence, nats


class Equal(NamedTuple):
    """Two arms at equal something; the p-values are of Fisher's exact test, one-sided."""

    at: str  #: radius, effect or kl
    value: float | None
    dose: float  #: that those found were used with
    found: Arm
    control: Arm
    p_shows: float  #: that more of those found show it
    p_new: float  #: that more of those found write what is coherent and new
    p_nonsense: float  #: that more of those found write nonsense


def equal(
    at: str,
    value: float | None,
    dose: float,
    found: pd.DataFrame,
    control: pd.DataFrame,
) -> Equal:
    """Compare the points of two arms (see `educe.comparison.points`), and say what is equal."""
    one, other = arm(found), arm(control)
    p = (more_often(getattr(one, of), getattr(other, of)) for of in ("shows", "new", "nonsense"))
    return Equal(at, value, dose, one, other, *p)


def arm(points: pd.DataFrame) -> Arm:
    """Sum up some perturbations, each of which has written something.

    A score from one half on says that an answer shows the behaviour.
    """

    def share(there: pd.Series) -> Rate:
        return rate(int(there.sum()), len(points))

    damaged = points.coherence < DAMAGED
    middle = points[["radius", "effect", "kl_p95"]].abs().median().fillna(0.0)
    return Arm(
        len(points),
        share(points.best >= 0.5),
        share(~damaged & (points.novelty >= SAME)),
        share(damaged),
        bootstrap_mean(points.interestingness.tolist() or [0.0]),
        *middle.tolist(),
    )
