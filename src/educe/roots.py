"""Roots: the radius at which something that grows with it has a wanted value.

The search is in ``log R`` and the logarithm of the value, where a power law is a straight line: by
secants until two radii have the wanted value between them, and between these by secants and
halving in turn.

Every value costs passes of a model, models break down at large radii, and some values are known
beforehand; several perturbations share a pass. `scipy.optimize.elementwise` takes neither infinite
nor known values, and three times as many evaluations of a power law.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

#: Values of some items at radii of their own; what is NaN or infinite is too large.
Measure = Callable[[Int[Tensor, "k"], Float[Tensor, "k"]], Float[Tensor, "k"]]

#: The longest step outside of a bracket, and the slopes that a secant is believed.
STEP, SLOPES = math.log(4.0), (0.1, 8.0)


class Found(NamedTuple):
    """Of the radii that were looked at, those with the value nearest to the wanted one."""

    radius: Float[Tensor, "n"]
    value: Float[Tensor, "n"]  #: infinite where no radius has a finite one


def crossing(
    measure: Measure,
    start: Float[Tensor, "n"],
    wanted: float,
    *,
    slope: float,
    near: float,
    rounds: int,
    within: tuple[float, float] = (1 / 64, 64.0),
    known: Sequence[tuple[Float[Tensor, "n"], Float[Tensor, "n"]]] = (),
) -> Found:
    """Return the radius at which a measure has a wanted value, for each of some items.

    Of several crossings between radii that were looked at, the one at the smallest is taken.

    Args:
        measure: The value of some items at radii of their own.
        start: First radii.
        wanted: The value.
        slope: With which power of the radius it grows, as long as nothing is known of that.
        near: An item is done when the logarithm of its value is as near as that.
        rounds: The most values of an item.
        within: How far from the first radius others may be, as factors.
        known: Radii and values that are known already.
    """
    # Logarithms of radii, and of the values there by the wanted one.
    seen: list[dict[float, float]] = [{} for _ in start]
    for radii, values in known:
        for own, radius, value in zip(seen, radii.tolist(), values.tolist(), strict=True):
            own[math.log(radius)] = _share(value, wanted)
    for _ in range(rounds):
        asked: dict[int, float] = {}
        for i, own in enumerate(seen):
            first = math.log(float(start[i]))
            low, high = (first + math.log(factor) for factor in within)
            x = min(high, max(low, _next(own, first, slope)))
            if x not in own and min(map(abs, own.values()), default=math.inf) > near:
                asked[i] = x
        if not asked:
            break
        items, radii = (
            torch.tensor(list(asked)),
            torch.tensor(list(asked.values()), dtype=torch.float64).exp(),
        )
        for (i, x), value in zip(asked.items(), measure(items, radii).tolist(), strict=True):
            seen[i][x] = _share(value, wanted)
    best = [min(own.items(), key=lambda point: abs(point[1])) for own in seen]
    radius, value = torch.tensor(best, dtype=torch.float64).reshape(-1, 2).exp().unbind(1)
    return Found(radius, value * wanted)


def _share(value: float, wanted: float) -> float:
    """Return the logarithm of a value by the wanted one; what broke down is too large."""
    return math.log(max(value, 1e-30) / wanted) if math.isfinite(value) else math.inf


def _next(seen: dict[float, float], first: float, slope: float) -> float:
    """Return where to look next, given points at which the sought function is not zero."""
    if not seen:
        return first
    ordered = sorted(seen.items())
    for (a, low), (b, high) in pairwise(ordered):
        if low < 0 < high:
            if not math.isfinite(high) or (len(seen) > 5 and len(seen) % 2):
                return (a + b) / 2
            return a + (b - a) * min(0.95, max(0.05, -low / (high - low)))
    over = ordered[0][1] > 0
    x, y = ordered[0] if over else ordered[-1]
    if not math.isfinite(y):  # there is no number to go by
        return x - math.log(2)
    finite = [point for point in ordered if math.isfinite(point[1])]
    if len(finite) > 1:
        (a, low), (b, high) = finite[:2] if over else finite[-2:]
        own = (high - low) / (b - a)
        slope = min(own, SLOPES[1]) if own > SLOPES[0] else slope
    return x + min(STEP, max(-STEP, -y / slope))
