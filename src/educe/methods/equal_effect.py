"""A control as strong as what was found: random perturbations scaled to its effect.

    ‖Δ(R v)‖ = median over those found of ‖Δ‖,    for each random v by itself

At one norm a search wins by being louder: random adapters of the norm of searched ones move the
target twenty times less. What random perturbations of the same effect do as well is no finding of
the search.
"""

from __future__ import annotations

import math
from dataclasses import replace

from torch import Tensor

from educe.forward.slice import Slice
from educe.methods.radius import response
from educe.perturbation.set import PerturbationSet
from educe.roots import crossing

#: Where the median effect of those found is more than so many times that of the control, their norm
#: says little.
LOUDER = 2.0
#: How near the effects come, as logarithms, and after how many looks it is given up.
NEAR, ROUNDS = math.log(1.1), 8


def louder(found: PerturbationSet, control: PerturbationSet) -> bool:
    """Return whether those found have far more effect than their control of the same norm."""
    ours, theirs = (float(some.scores["effect"].median()) for some in (found, control))
    return math.isfinite(ours) and ours > LOUDER * theirs > 0


def at_equal_effect(
    part: Slice, control: PerturbationSet, found: PerturbationSet
) -> PerturbationSet:
    """Return a control scaled, each by itself, to the median effect of what was found.

    Args:
        part: The slice on which both act.
        control: Random perturbations, with the score ``effect``.
        found: Those found, with the score ``effect``.

    Returns:
        Those of the control that reach the effect within a factor of 64 of their radius, with the
        effect that they have.
    """
    part = part.on(control.kind)
    v = control.directions.to(part.device, part.work_dtype)

    def effect(items: Tensor, radii: Tensor) -> Tensor:
        some = radii[:, None].to(part.device, part.work_dtype)
        return response(part.on(control.kind.select(items)), v[items], some)[:, 0].double().cpu()

    wanted = float(found.scores["effect"].median())
    reached = crossing(
        effect,
        control.radius.double(),
        wanted,
        slope=1.0,
        near=NEAR,
        rounds=ROUNDS,
        known=[(control.radius.double(), control.scores["effect"].double())],
    )
    there = ((reached.value / wanted).log().abs() <= NEAR).nonzero()[:, 0].tolist()
    scaled = replace(
        control, radius=reached.radius.float(), scores={"effect": reached.value.float()}
    )
    return scaled.select(there)
