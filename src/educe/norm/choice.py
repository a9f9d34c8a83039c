"""Choice: three ways to choose the radius of one perturbation, side by side.

    linearisation   ‖Δ(R v) - R J v‖ / ‖R J v‖ = 0.5     the rule of `educe.radius`, for one vector
    steepest        R = argmax e(R)                       past the edge of the plateau
    budget          95th percentile of KL_t(R v) = 1 nat  what ordinary text may lose

The first looks at the slice alone, the second at how the effect grows, the third at what is damaged
(iso-KL calibration, as in `wassname/steering-lite`). KL grows with the square of the radius while
that is small.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from educe.errors import RadiusError
from educe.forward.slice import Slice
from educe.radius import calibrate
from educe.roots import Measure, crossing

#: The budget: nats at the 95th percentile of tokens.
BUDGET = 1.0

#: A root is found when the value is this near to the wanted one, as a share of it.
NEAR = 0.05

#: For how many rounds a root is looked for.
ROUNDS = 12


def linear(part: Slice, direction: Float[Tensor, "s"], *, sign: int = 1) -> float:
    """Return the radius at which one perturbation's relative linearisation error is 0.5.

    NaN where no radius has it.
    """
    try:
        return calibrate(part, along=part.kind.scaled(direction[None], float(sign))).radius
    except RadiusError:
        return math.nan


def at_value(
    measure: Measure,
    start: Float[Tensor, "n"],
    wanted: float,
    *,
    slope: float,
    known: Sequence[tuple[Float[Tensor, "n"], Float[Tensor, "n"]]] = (),
) -> Float[Tensor, "n"]:
    """Return the radius at which something has a wanted value, for each item.

    The arguments are those of `educe.roots.crossing`.

    Returns:
        Radii; NaN where none within a factor of 64 of the first has the value.
    """
    near = math.log1p(NEAR)
    found = crossing(measure, start, wanted, slope=slope, near=near, rounds=ROUNDS, known=known)
    there = (found.value / wanted).log().abs() <= near
    return torch.where(there, found.radius, math.nan).to(start)
