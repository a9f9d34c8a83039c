"""What the target does as the radius changes: exact, from one forward-mode product.

With the direction ``v`` held, ``d Δ(R v) / d log R = J θ``. From it, for every coordinate of the
effect, ``b_i = d log|Δ_i| / d log R = (J θ)_i / Δ_i``. Weighted by ``Δ_i² / ‖Δ‖²``,

    Σ b_i = e = d log‖Δ‖ / d log R,           the response exponent,
    variance of b_i = ‖du / d log R‖²,         u = Δ / ‖Δ‖: the effect's own squared turning rate,

by the identity of `educe.derive.coordinates` about the effect. Without weights or logarithms, the
variance over ``i`` of ``dΔ_i / dR`` is 0 only where all coordinates grow alike. The same holds for
the neurons of the target block's MLP, by what they hand to its output projection.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from educe.derive.coordinates import Rates
from educe.forward.slice import Slice
from educe.forward.slice.shift import Shift


class Response(NamedTuple):
    """The effect of vectors, and how it changes with their radius."""

    effect: Float[Tensor, "n d"]  #: ``Δ(R v)``
    moved: Float[Tensor, "n d"]  #: ``J θ``
    radius: Float[Tensor, "n"]  #: ``R``

    @property
    def size(self) -> Float[Tensor, "n"]:
        """``‖Δ‖``."""
        return self.effect.norm(dim=1)

    @property
    def exponent(self) -> Float[Tensor, "n"]:
        """``d log‖Δ‖ / d log R``."""
        return (self.effect * self.moved).sum(1) / self.effect.square().sum(1)

    @property
    def rates(self) -> Rates:
        """Of every coordinate: their weighted mean is the exponent."""
        square = self.effect.square()
        return Rates(self.moved / self.effect, square / square.sum(1, keepdim=True))

    @property
    def turning(self) -> Float[Tensor, "n"]:
        """``‖du / d log R‖``: the root of the weighted variance of the rates."""
        along = self.exponent[:, None] * self.effect
        return (self.moved - along).norm(dim=1) / self.size

    @property
    def slope_variance(self) -> Float[Tensor, "n"]:
        """Variance over coordinates of ``dΔ_i / dR``, in squared activations per squared radius."""
        return (self.moved / self.radius[:, None]).var(1, correction=0)


def response(part: Slice, theta: Float[Tensor, "n s"]) -> Response:
    """Return what vectors do at the target and how it changes with their radius."""
    return Response(*part.jvp(theta, theta), theta.norm(dim=1))


def with_neurons(part: Slice, theta: Float[Tensor, "n d"]) -> tuple[Response, Response]:
    """Return `response`, and the same for the neurons of the target's MLP, from one pass.

    The effect on neurons is the change of what they hand to the output projection, averaged as the
    target's is.

    Raises:
        EffectError: A value is NaN or infinite.
        ModelError: The block has no single output projection, or an operation of the model has no
            forward-mode derivative.
    """
    projection = part.lm.unwrapped.get_submodule(part.lm.projection(part.target, "mlp").path)
    given: list[Tensor] = []
    handle = projection.register_forward_pre_hook(lambda module, args: given.append(args[0]))

    def both(shift: Shift) -> Tensor:
        n, p, k, _ = shift.values.shape
        taken = given[-1].reshape(n, p, -1, given[-1].shape[-1])[:, :, -k:]
        given.clear()
        # Tokens that are read before the first perturbed one are not replayed, nor do they change.
        weights = shift.weights[:, -taken.shape[2] :]
        neurons = torch.einsum("npkd,pk->nd", taken.to(weights), weights)
        return torch.cat([shift.mean, neurons], 1)

    # The last row is no perturbation: what neurons hand over then is what they change from.
    rows = torch.cat([theta, torch.zeros_like(theta[:1])])
    try:
        value, moved = part.jvp(rows, rows, of=both)
    finally:
        handle.remove()
    radius, d = theta.norm(dim=1), part.width
    changed = (value - value[-1:])[:-1, d:]
    return Response(value[:-1, :d], moved[:-1, :d], radius), Response(
        changed, moved[:-1, d:], radius
    )
