"""Stationary: directions improved on a sphere until the objective is stationary there.

With ``t = (1 - v vᵀ) ∇g(R v)``, the gradient along the sphere, a step is

    v ← normalise(v + τ B t),

``B`` an estimate of the inverse of minus the Hessian: limited-memory BFGS (Liu & Nocedal 1989), in
the coordinates of the stream. It begins as ``1 / ⟨∇g, v⟩``, for which the step is ``normalise ∇g``:
DCT's own fixed-point map, and for any objective a power iteration. ``τ`` is 1, halved where ``g``
would fall; no step turns a direction by more than 45°.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from educe.derive.objective import Objective
from educe.forward.slice import Slice

#: Steps that the estimate of the curvature is made from.
MEMORY = 8


class Iterate(NamedTuple):
    """Directions after some iterates."""

    v: Float[Tensor, "n s"]
    value: Float[Tensor, "n"]  #: the objective
    sine: Float[Tensor, "n"]  #: of the angle between gradient and vector: 0 at a stationary point

    def replaced(self, items: Bool[Tensor, "n"], by: Iterate) -> Iterate:
        """Return these with some of them replaced."""
        return Iterate(*(put(old, items, new) for old, new in zip(self, by, strict=True)))


def converge(
    part: Slice,
    objective: Objective,
    v: Float[Tensor, "n s"],
    radius: Float[Tensor, "n"],
    *,
    iterates: int,
    tolerance: float,
) -> Iterate:
    """Improve unit directions at a radius each; the objective of none of them falls.

    They are done when their sine is below the tolerance, or the iterates, each one value and
    gradient, are spent.
    """

    def look(items: Tensor, at: Tensor) -> tuple[Iterate, Tensor, Tensor]:
        """Return where some of them are, ``t``, and what ``B`` begins as."""
        value, gradient = objective.select(items).climb(part, at * radius[items, None])
        along, size = (gradient * at).sum(1), gradient.norm(dim=1)
        across = gradient - along[:, None] * at
        uphill = along > 0
        sine = torch.where(uphill, across.norm(dim=1) / size, 1.0)
        return Iterate(at, value, sine), across, 1 / torch.where(uphill, along, size)

    everyone = torch.ones(len(v), dtype=torch.bool, device=v.device)
    best, slope, scale = look(everyone, v)
    share = torch.ones_like(radius)
    steps: list[_Step] = []
    for _ in range(iterates):
        going = best.sine >= tolerance
        if not going.any():
            break
        ascent = _ascent(slope, steps, scale)
        ascent = share[:, None] * ascent / ascent.norm(dim=1, keepdim=True).clamp(min=1)
        there = _unit(best.v[going] + ascent[going])
        ventured, further, _ = look(going, there)
        rose = ventured.value >= best.value[going]
        took = going.clone()
        took[going] = rose
        new = best.replaced(took, Iterate(*(x[rose] for x in ventured)))
        flatter = put(slope, took, further[rose])
        steps = [*steps[1 - MEMORY :], _Step.of(new.v - best.v, slope - flatter)]
        best, slope, scale = new, flatter, torch.where(steps[-1].bent, steps[-1].scale, scale)
        share = torch.where(took, (2 * share).clamp(max=1), torch.where(going, share / 2, share))
    return best


class _Step(NamedTuple):
    """A step that was taken, what the gradient lost over it, and the inverse of their product;
    zero for rows that did not move, or where the objective does not bend down."""

    moved: Float[Tensor, "n s"]
    lost: Float[Tensor, "n s"]
    inverse: Float[Tensor, "n"]

    @classmethod
    def of(cls, moved: Tensor, lost: Tensor) -> _Step:
        product = (moved * lost).sum(1)
        size = moved.norm(dim=1) * lost.norm(dim=1)
        bent = product > torch.finfo(product.dtype).eps * size
        return cls(moved, lost, torch.where(bent, 1 / product, 0.0))

    @property
    def bent(self) -> Bool[Tensor, "n"]:
        return self.inverse > 0

    @property
    def scale(self) -> Float[Tensor, "n"]:
        return 1 / (self.inverse * self.lost.square().sum(1))


def _ascent(slope: Tensor, steps: list[_Step], scale: Tensor) -> Float[Tensor, "n s"]:
    """Return ``B t``, by the two loops of limited-memory BFGS."""
    ahead, shares = slope, []
    for step in reversed(steps):
        shares.append(step.inverse * (step.moved * ahead).sum(1))
        ahead = ahead - shares[-1][:, None] * step.lost
    ahead = scale[:, None] * ahead
    for step, taken in zip(steps, reversed(shares), strict=True):
        excess = taken - step.inverse * (step.lost * ahead).sum(1)
        ahead = ahead + excess[:, None] * step.moved
    return ahead


def put(values: Tensor, items: Bool[Tensor, "n"], new: Tensor) -> Tensor:
    """Return values with those of some items replaced."""
    changed = values.clone()
    changed[items] = new
    return changed


def _unit(rows: Float[Tensor, "n s"]) -> Float[Tensor, "n s"]:
    return rows / rows.norm(dim=1, keepdim=True)
