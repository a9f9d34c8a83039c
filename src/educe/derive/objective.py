"""What a vector is optimised for while its radius changes, with first and second derivatives.

    effect     g(θ) = ‖Δ(θ)‖                          DCT's ⟨u, Δ⟩ with its own u = Δ / ‖Δ‖
    melbo      g(θ) = Σ_prompts (Σ_tokens ‖Z(θ) - Z(0)‖ᵖ)^(1/q)
    toward     g(θ) = ⟨c, Δ(θ)⟩                       a fixed target: shuffled, it is the null

A stationary point on the sphere of radius ``R`` is where ``∇g`` is parallel to ``θ``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol, Self

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from educe.forward.slice import Slice
from educe.forward.slice.shift import Shift
from educe.methods import configured


class Objective(Protocol):
    """One value for each of some vectors."""

    def climb(
        self, part: Slice, theta: Float[Tensor, "n s"]
    ) -> tuple[Float[Tensor, "n"], Float[Tensor, "n s"]]:
        """Return its values and gradients."""

    def hvp(
        self, part: Slice, theta: Float[Tensor, "n s"], tangent: Float[Tensor, "n s"]
    ) -> Float[Tensor, "n s"]:
        """Return its Hessians times ``tangent``, row by row, exactly."""

    def select(self, items: Bool[Tensor, "n"]) -> Objective:
        """Return the objective of some of the vectors."""


class _Alike:
    """An objective that is the same for every vector."""

    def select(self, items: Tensor) -> Self:
        """Return itself."""
        return self


@dataclass(frozen=True)
class Effect(_Alike):
    """The norm of the effect: what DCT, with its own outputs, and power steering look for."""

    def climb(self, part: Slice, theta: Tensor) -> tuple[Tensor, Tensor]:
        """Return its values and gradients, ``Jᵀ u``."""
        effect = part.effect(theta)
        size = effect.norm(dim=1, keepdim=True)
        return size[:, 0], part.vjp(theta, effect / size)[1]

    def hvp(self, part: Slice, theta: Tensor, tangent: Tensor) -> Tensor:
        """Return ``∇²⟨u, Δ⟩ t + Jᵀ (1 - u uᵀ) J t / ‖Δ‖``."""
        effect, moved = part.jvp(theta, tangent)
        size = effect.norm(dim=1, keepdim=True)
        u = effect / size
        across = (moved - (moved * u).sum(1, keepdim=True) * u) / size
        return part.hvp(theta, u, tangent) + part.vjp(theta, across)[1]


@dataclass(frozen=True)
class Melbo(_Alike):
    """MELBO's objective (see `educe.methods.melbo`)."""

    power: float = 2.0  #: ``p``
    root: float = 1.0  #: ``q``

    def climb(self, part: Slice, theta: Tensor) -> tuple[Tensor, Tensor]:
        """Return its values and gradients."""
        return part.value_and_grad(theta, self._of)

    def hvp(self, part: Slice, theta: Tensor, tangent: Tensor) -> Tensor:
        """Return its Hessians times ``tangent``."""
        return part.objective_hvp(theta, self._of, tangent)

    def _of(self, shift: Shift) -> Tensor:
        # As `melbo.objective`, whose second derivative is NaN where nothing moves: at padding.
        square = shift.values.square().sum(-1)
        still = square == 0
        powers = torch.where(still, 1.0, square).pow(self.power / 2)
        return torch.where(still, 0.0, powers).sum(-1).pow(1 / self.root).sum(-1)


@dataclass(frozen=True)
class Toward:
    """How far a vector moves the target in a direction that is given for it."""

    outputs: Float[Tensor, "n d"]  #: the directions ``c``

    def climb(self, part: Slice, theta: Tensor) -> tuple[Tensor, Tensor]:
        """Return its values and gradients, ``Jᵀ c``."""
        effect, gradient = part.vjp(theta, self.outputs)
        return (effect * self.outputs).sum(1), gradient

    def hvp(self, part: Slice, theta: Tensor, tangent: Tensor) -> Tensor:
        """Return its Hessians times ``tangent``."""
        return part.hvp(theta, self.outputs, tangent)

    def select(self, items: Tensor) -> Toward:
        """Return the objective of some of the vectors."""
        return Toward(self.outputs[items])


def of_method(method: str, settings: Mapping[str, Any]) -> Objective:
    """Return what a method's vectors are optimised for: its own objective, or the effect."""
    if method != "melbo":
        return Effect()
    config = configured(method, dict(settings))
    return Melbo(config.power, config.root)
