"""Choice: three ways to choose the radius of one perturbation, side by side.

    linearisation   ‖Δ(R v) - R J v‖ / ‖R J v‖ = 0.5     the rule of `educe.radius`, for one vector
    steepest        R = argmax e(R)                       past the edge of the plateau
    budget          95th percentile of KL_t(R v) = 1 nat  what ordinary text may lose

The first looks at the slice alone, the second at how the effect grows, the third at what is damaged
(iso-KL calibration, as in `wassname/steering-lite`). The last one is a root in log-log, where KL is
close to a straight line of slope 2 while the radius is small.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor

from educe.errors import RadiusError
from educe.forward.slice import Slice
from educe.radius import calibrate

#: The budget: nats at the 95th percentile of tokens.
BUDGET = 1.0

#: A root is found when the value is this near to the wanted one, as a share of it.
NEAR = 0.05

#: How far from the first radius a root is looked for, as a factor, and for how many rounds.
FAR, ROUNDS = 64.0, 12

#: Values of some items at some radii: ``measure(items, radii) -> values``.
Measure = Callable[[Tensor, Float[Tensor, "k"]], Float[Tensor, "k"]]


def linear(part: Slice, direction: Float[Tensor, "s"], *, sign: int = 1) -> float:
    """Return the radius at which one perturbation's relative linearisation error is 0.5.

    NaN where no radius has it.
    """
    try:
        return calibrate(part, along=part.kind.scaled(direction[None], float(sign))).radius
    except RadiusError:
        return math.nan


def crossing(
    measure: Measure,
    start: Float[Tensor, "n"],
    wanted: float,
    *,
    known: Sequence[tuple[Float[Tensor, "n"], Float[Tensor, "n"]]] = (),
) -> Float[Tensor, "n"]:
    """Return the radius at which something that grows with it has a wanted value, for each item.

    Regula falsi in log-log inside a bracket, which is opened by doubling or halving. Of several
    crossings between radii that are known, the one at the smallest radius is taken.

    Args:
        measure: The value of some items at radii of their own; NaN counts as too large.
        start: First radii.
        wanted: The value.
        known: Radii and values that are known already.

    Returns:
        Radii; NaN where none within a factor of 64 of the first has the value.
    """
    found = torch.full_like(start, math.nan)
    seen: list[list[tuple[float, float]]] = [[] for _ in start]
    for radii, values in known:
        for own, r, value in zip(seen, radii.tolist(), values.tolist(), strict=True):
            own.append(_logs(r, value, wanted))
    for _ in range(ROUNDS):
        asked: dict[int, float] = {}
        for i, own in enumerate(seen):
            if math.isfinite(float(found[i])):
                continue
            near = [(abs(y), x) for x, y in own if abs(y) <= math.log1p(NEAR)]
            if near:
                found[i] = math.exp(min(near)[1])
                continue
            first = math.log(float(start[i]))
            x = _next(own, first)
            if abs(x - first) <= math.log(FAR):
                asked[i] = x
        if not asked:
            break
        items = torch.tensor(list(asked))
        radii = torch.tensor([math.exp(x) for x in asked.values()], dtype=start.dtype)
        for i, r, value in zip(asked, radii.tolist(), measure(items, radii).tolist(), strict=True):
            seen[i].append(_logs(r, value, wanted))
    return found


def _logs(radius: float, value: float, wanted: float) -> tuple[float, float]:
    """Return the logarithms of a radius, and of a value as a share of the wanted one."""
    log = math.log(max(value, 1e-30) / wanted) if math.isfinite(value) else math.inf
    return math.log(radius), log


def _next(seen: Sequence[tuple[float, float]], first: float) -> float:
    """Return where to look next, given points at which the sought function is not zero."""
    ordered = sorted(seen)
    if not ordered:
        return first
    for (a, low), (b, high) in pairwise(ordered):
        if low < 0 < high:
            if not math.isfinite(high) or len(seen) > 5:  # a curve that bends: halve
                return (a + b) / 2
            share = -low / (high - low)
            return a + (b - a) * min(0.95, max(0.05, share))
    if ordered[0][1] > 0:
        return ordered[0][0] - math.log(2)
    return ordered[-1][0] + math.log(2)
