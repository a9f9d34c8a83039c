"""What the target does as the radius changes: exact, from one forward-mode product.

With the direction ``v`` held, ``d Δ(R v) / d log R = J θ``. From it, for every coordinate of the
effect, ``b_i = d log|Δ_i| / d log R = (J θ)_i / Δ_i``. Weighted by ``Δ_i² / ‖Δ‖²``,

    Σ b_i = e = d log‖Δ‖ / d log R,           the response exponent,
    variance of b_i = ‖du / d log R‖²,         u = Δ / ‖Δ‖: the effect's own squared turning rate,

by the identity of `educe.refine.coordinates` about the effect. The same holds for the neurons of
the target block's MLP, by what they hand to its output projection.

How the direction itself would turn at the next radius is told, for any vector, by

    pull = d ahead / d log R = (1 - a aᵀ) H θ / ‖∇g‖,        a = ahead = normalise ∇g(R v),

a second-order product: where ``θ`` is stationary, the first term of the series that solves for
``dv / d log R`` (see `educe.refine.continuation`).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn.attention import SDPBackend, sdpa_kernel

from educe.refine.coordinates import Rates
from educe.refine.objective import Objective
from educe.slice import Slice

#: Vectors whose neurons are watched at once.
TOGETHER = 8


class Response(NamedTuple):
    """The effect of vectors, and how it changes with their radius.

    Attributes:
        effect: ``Δ(R v)``.
        moved: ``J θ``.
    """

    effect: Float[Tensor, "n d"]
    moved: Float[Tensor, "n d"]

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
        """Of every coordinate: its weighted mean is the exponent."""
        square = self.effect.square()
        return Rates(self.moved / self.effect, square / square.sum(1, keepdim=True))

    @property
    def turning(self) -> Float[Tensor, "n"]:
        """``‖du / d log R‖``: the root of the weighted variance of the rates."""
        along = self.exponent[:, None] * self.effect
        return (self.moved - along).norm(dim=1) / self.size

    @property
    def variance(self) -> Float[Tensor, "n"]:
        """Variance over coordinates of ``d Δ_i / d log R``, as a share of their mean square."""
        return self.moved.var(1, correction=0) / self.moved.square().mean(1)


def response(part: Slice, theta: Float[Tensor, "n s"]) -> Response:
    """Return what vectors do at the target and how it changes with their radius."""
    return Response(*part.jvp(theta, theta))


class Pull(NamedTuple):
    """Where the objective rises from a vector, and how that turns with its radius.

    Attributes:
        ahead: ``normalise ∇g``.
        turn: ``d ahead / d log R``.
        sine: Of the angle between ``∇g`` and the vector.
    """

    ahead: Float[Tensor, "n s"]
    turn: Float[Tensor, "n s"]
    sine: Float[Tensor, "n"]


def pull(part: Slice, objective: Objective, theta: Float[Tensor, "n s"]) -> Pull:
    """Return where objectives rise, and how that turns with the radius."""
    _, gradient = objective.climb(part, theta)
    steep = gradient.norm(dim=1, keepdim=True)
    ahead = gradient / steep
    bent = objective.hvp(part, theta, theta) / steep
    turn = bent - (bent * ahead).sum(1, keepdim=True) * ahead
    v = theta / theta.norm(dim=1, keepdim=True)
    sine = (ahead - (ahead * v).sum(1, keepdim=True) * v).norm(dim=1)
    return Pull(ahead, turn, sine)


def neurons(part: Slice, theta: Float[Tensor, "n d"]) -> Response:
    """Return the same as `response` for the neurons of the target block's MLP.

    Their effect is the change of what they hand to the output projection, averaged as the target's
    is, over all prompts in one pass.

    Raises:
        ModelError: The block has no single output projection.
    """
    projection = part.lm.unwrapped.get_submodule(part.lm.projection(part.target, "mlp").path)
    given: list[Tensor] = []
    handle = projection.register_forward_pre_hook(lambda module, args: given.append(args[0]))

    def at(some: Tensor) -> Tensor:
        given.clear()
        shift = part.shift(some)
        n, p, k, _ = shift.values.shape
        read = given[0].reshape(n, p, -1, given[0].shape[-1])[:, :, -k:]
        # Tokens that are read before the first perturbed one are not replayed, nor do they change.
        weights = shift.weights[:, -read.shape[2] :]
        return torch.einsum("npkd,pk->nd", read.to(weights), weights)

    parts = []
    try:
        with torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
            still = at(torch.zeros_like(theta[:1]))
            for some in theta.split(TOGETHER):
                with forward_ad.dual_level():
                    came = forward_ad.unpack_dual(at(forward_ad.make_dual(some.clone(), some)))
                    parts.append(torch.stack([came.primal - still, came.tangent]))
    finally:
        handle.remove()
    return Response(*torch.cat(parts, 1))
