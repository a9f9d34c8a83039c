"""Side effects of directions, and the radius at which each has a given one."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor

from educe.forward.benign import Ordinary
from educe.methods.radius import surviving
from educe.perturbation.kinds import Kind
from educe.roots import Found, crossing


def at_kl(
    ordinary: Ordinary,
    kind: Kind,
    directions: Float[Tensor, "n s"],
    budget: float,
    *,
    start: Float[Tensor, "n"],
    passes: int = 4,
    tolerance: float = 0.1,
) -> Found:
    """Return the radius at which each direction has a side effect, the nearest of those measured.

    Args:
        ordinary: Measures side effects.
        kind: The kind of the directions.
        directions: Unit perturbations.
        budget: The side effect, in nats a token.
        start: Radii to begin at.
        passes: The most measurements.
        tolerance: A direction is done when ``log KL`` is as near as that.
    """

    def measure(items: Tensor, radii: Tensor) -> Tensor:
        return side_effect(ordinary, kind.select(items), directions[items], radii)

    return crossing(measure, start, budget, slope=2.0, near=tolerance, rounds=passes)


def side_effect(
    ordinary: Ordinary, kind: Kind, directions: Float[Tensor, "n s"], radius: Float[Tensor, "n"]
) -> Float[Tensor, "n"]:
    """Return the side effect of each perturbation; infinite where the model breaks down."""
    theta = kind.scaled(directions, radius.to(directions)[:, None])

    def measured(items: Tensor) -> Tensor:
        return ordinary.damage(theta[items], kind.select(items)).high.double().cpu()[:, None]

    broken = torch.full((1, 1), math.inf, dtype=torch.float64)
    return surviving(measured, torch.arange(len(theta)), broken)[:, 0]
