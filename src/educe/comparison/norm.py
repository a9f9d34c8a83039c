"""Norm: what the norm tells of a run: curves, the radius by rules, spreads, comparisons.

    linearisation   ‖Δ(R v) - R J v‖ / ‖R J v‖ = 0.5     the rule of `educe.methods.radius`, for one
    vector steepest        R = argmax e(R)                       past the edge of the plateau
    budget          95th percentile of KL_t(R v) = 1 nat  what ordinary text may lose

The first looks at the slice alone, the second at how the effect grows, the third at what is damaged
(iso-KL calibration, as in `wassname/steering-lite`). All of it is read from the tables of the run,
which `educe.derive.norms` fills; radii are shares of the one that was used.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from educe.comparison.equal import Equal, equal
from educe.comparison.points import beside, nearest, points_of
from educe.comparison.spread import SCORES, Spread, spread
from educe.comparison.stats import finite
from educe.comparison.verdict import DAMAGED, SAME
from educe.rows import ARMS
from educe.run.store import Run

if TYPE_CHECKING:
    import pandas as pd

#: The name by which a run remembers what was asked.
NOTE = "norm"

#: Shares of the used radius at which texts are written.
SHARES = (0.125, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0)

#: Shares at which the effect alone is looked at, which costs next to nothing: six an octave.
FINE = tuple(2 ** (k / 6 - 4) for k in range(37))

#: The exponent from which on an effect is said to leave its plateau, and the one below which it is
#: said to saturate.
LEAVING, SATURATED = 1.25, 0.5


@dataclass(frozen=True)
class Asked:
    """What was asked of the norm."""

    numbers: Sequence[int]  #: perturbations that have curves
    compared: int  #: the most perturbations of each arm that are compared
    budget: float  #: nats at the 95th percentile of ordinary tokens
    judge: str | None  #: name of who judges answers, if anyone does
    identity: str | None  #: by which its scores are kept
    ordinary: str  #: where the ordinary prompts came from
    prompts: int  #: how many these are
    kl: str  #: name of the scores by the mean divergence on them
    kl_p95: str  #: name of the scores by its 95th percentile


class Marks(NamedTuple):
    """Shares at which a curve changes; None where that is not reached on the grid."""

    plateau: float | None  #: the smallest at which ``e ≥ 1.25``
    saturation: float | None  #: the smallest past the maximum of ``e`` at which ``e ≤ 0.5``
    onset: float | None  #: the smallest with new text (see `educe.comparison.verdict.SAME`)
    nonsense: float | None  #: the smallest with damage (see `educe.comparison.verdict.DAMAGED`)


class Choices(NamedTuple):
    """The radius by each rule; None where no radius has it."""

    linearisation: float | None
    steepest: float | None
    budget: float | None


class Curve(NamedTuple):
    """What a perturbation does at radii of one sign (see `educe.comparison.points`)."""

    number: int
    arm: str
    sign: int
    dose: float  #: as it was used
    points: pd.DataFrame  #: with texts
    fine: pd.DataFrame  #: with exponents
    marks: Marks
    choices: Choices


class Norm(NamedTuple):
    """What the norm tells."""

    asked: Asked
    curves: list[Curve]  #: of each perturbation asked for, and each of its signs
    used: pd.DataFrame  #: the points that are compared, as they were used
    spreads: list[Spread]  #: of each score, over those found at each radius apart
    equal: list[Equal]  #: both arms as used, at equal effect, at equal damage, radius by radius


def norm_of(run: Run) -> Norm | None:
    """Return what the norm tells of a run; None where that was not asked."""
    if not run.has(NOTE):
        return None
    asked = Asked(**run.note(NOTE))
    points = points_of(run, kl=asked.kl, kl_p95=asked.kl_p95, judge=asked.identity)
    curves = [
        _curve(side, sign * radius, asked.budget)
        for number, radius in points.radius.loc[list(asked.numbers)].items()
        for sign in (1, -1)
        for side in [beside(points, number, sign).set_index("radius", drop=False)]
        if sign * radius in side.index
    ]
    used = points.loc[[n for arm in ARMS for n in compared(run, arm, asked.compared)]]
    return Norm(asked, curves, used, _spreads(used), _comparisons(points, used, asked.budget))


def compared(run: Run, arm: str, most: int) -> list[int]:
    """Return at most so many perturbations of an arm, from all radii and all along the list."""
    rows = run.perturbation_rows(arm)
    step = max(1.0, len(rows) / most)
    return [rows[int(i * step)].id for i in range(min(most, len(rows)))]


def median_effect(used: pd.DataFrame) -> float:
    """Return the effect at which arms are compared: the median of those found, as used."""
    effect = used.effect[used.arm == "found"]
    return float(effect[effect > 0].median())


# -- curves ------------------------------------------------------------------------------------


def _curve(side: pd.DataFrame, radius: float, budget: float) -> Curve:
    """Return a curve from the points of one perturbation and sign, and the signed radius used."""
    own, fine = (side.loc[[share * radius for share in grid]] for grid in (SHARES, FINE))
    used = side.loc[radius]
    choices = Choices(
        finite(float(used.linear_radius) / abs(radius)),
        steepest(fine),
        _first(nearest(side, "kl_p95", budget)),
    )
    sign, dose = (1 if radius > 0 else -1), abs(float(used.dose))
    return Curve(int(used.number), used.arm, sign, dose, own, fine, marks(fine, own), choices)


def steepest(fine: pd.DataFrame) -> float | None:
    """Return the share of a grid at which the exponent is largest."""
    return _first(fine.loc[fine.exponent.dropna().nlargest(1).index])


def marks(fine: pd.DataFrame, texts: pd.DataFrame) -> Marks:
    """Return where a curve changes.

    Args:
        fine: Points with exponents, the smallest share first.
        texts: Points with texts, likewise.
    """
    past = fine[fine.share.abs() > (steepest(fine) or math.inf)]
    return Marks(
        _first(fine[fine.exponent >= LEAVING]),
        _first(past[past.exponent <= SATURATED]),
        _first(texts[texts.novelty >= SAME]),
        _first(texts[texts.coherence < DAMAGED]),
    )


def _first(points: pd.DataFrame) -> float | None:
    return next(iter(points.share.abs().tolist()), None)


# -- the arms ----------------------------------------------------------------------------------


def _spreads(used: pd.DataFrame) -> list[Spread]:
    """Return the spread of each score, over the perturbations of each radius apart."""
    told = []
    for _, found in used[used.arm == "found"].groupby("radius"):
        for score in SCORES:
            arms = (found, _beside(used, found))
            both = [own[(own.effect > 0) & own[score].notna()] for own in arms]
            if min(map(len, both)) >= 3 and np.ptp([*both[0][score], *both[1][score]]):
                told.append(spread(score, *both))
    return told


def _comparisons(points: pd.DataFrame, used: pd.DataFrame, budget: float) -> list[Equal]:
    """Compare the arms as they were used, at equal effect, and at equal damage.

    Those found at each radius apart. As used, random ones are those of the nearest radius; where
    something else is made equal, their radius does not matter, and all are compared.
    """
    control = used[used.arm == "control"]
    told = []
    for at, what, value in (
        ("radius", "", None),
        ("effect", "effect", median_effect(used)),
        ("kl", "kl_p95", budget),
    ):
        for _, found in used[used.arm == "found"].groupby("radius"):
            arms = [found, control if value else _beside(used, found)]
            if value:
                sides = ([beside(points, n, 1) for n in arm.number] for arm in arms)
                there = ([i for s in own for i in nearest(s, what, value).index] for own in sides)
                arms = [points.loc[own] for own in there]
            told.append(equal(at, value, float(found.dose.iloc[0]), *arms))
    return told


def _beside(used: pd.DataFrame, found: pd.DataFrame) -> pd.DataFrame:
    """Return the random ones of the radius that is nearest to that of some found."""
    control = used[used.arm == "control"]
    away = np.log(control.radius / found.radius.iloc[0]).abs()
    return control[away == away.min()]
