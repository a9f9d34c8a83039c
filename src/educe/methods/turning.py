"""The turning of the effect with the radius, as a term of an objective.

With ``m = J(θ) θ``, the derivative of the effect in ``log R``, and ``e = ⟨Δ, m⟩ / ‖Δ‖²``,

    V(θ) = ‖m - e Δ‖² / ‖Δ‖²

is the squared rate at which the effect's direction turns: the variance over the target's
coordinates of ``d log|Δ_i| / d log R``, weighted by ``Δ_i²`` (docs/continuation.md). It is zero
where growing the vector makes its effect larger and nothing else. A method that ascends ``g`` with
the weight ``W``, its setting ``turning``, ascends ``log g + W · V``, that is, adds ``W g ∇V`` to
its gradient:

    ∇V = Jᵀ (∂V/∂Δ + ∂V/∂m) + ∇²⟨∂V/∂m, Δ⟩ θ.

A weight above zero looks for effects that change as they grow, one below zero for those that do
not. The value costs one forward-mode product, the gradient two more, one of them of second order.
"""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from educe.forward.slice import Slice
from educe.methods.state import directed


def turned(
    part: Slice, theta: Float[Tensor, "n s"]
) -> tuple[Float[Tensor, "n"], Float[Tensor, "n s"]]:
    """Return ``V`` of some vectors, and its gradient, exactly."""
    effect, moved = part.jvp(theta, theta)
    square = directed(effect)[1].square()[:, None]
    exponent = (effect * moved).sum(1, keepdim=True) / square
    across = moved - exponent * effect
    by_moved = 2 * across / square
    by_effect = -exponent * by_moved - 2 * across.square().sum(1, keepdim=True) * effect / square**2
    _, first = part.vjp(theta, by_effect + by_moved)
    return across.square().sum(1) / square[:, 0], first + part.hvp(theta, by_moved, theta)
