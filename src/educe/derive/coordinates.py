"""Which coordinates stay while the radius changes.

For a path ``θ(R) = R v(R)`` with ``‖v‖ = 1``, and a coordinate ``θ_j`` in an orthonormal basis,

    a_j = d log|θ_j| / d log R = 1 + w_j / v_j,        w = dv / d log R.

Under rescaling alone every ``a_j`` is 1. With weights ``θ_j² / R² = v_j²``, which add up to 1,

    Σ_j v_j² a_j = 1        and        Σ_j v_j² (a_j - 1)² = ‖w‖² = R² ‖dv/dR‖²:

the weighted mean says nothing, and the weighted variance is the squared turning rate of the
direction, in every orthonormal basis the same (docs/continuation.md has the proof). What a basis
can tell is how the turning is spread over its coordinates. In a group of several, as heads are,
``s = ‖P θ‖`` takes the place of ``|θ_j|``. The atoms of heads and of neurons overlap, so there the
weights are divided by their sum, and the mean is ``d log‖(s_g)‖ / d log R``, near 1 and not 1.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from educe.derive.bases import Basis

#: The share of the turning in so many coordinates is reported.
TOP = 10
#: Coordinates count as constant where ``a_j`` is below this: they change less than the root of R.
CONSTANT = 0.5


class Rates(NamedTuple):
    """Logarithmic derivatives of coordinates."""

    rate: Float[Tensor, "n g"]  #: ``a_j``
    weight: Float[Tensor, "n g"]  #: their weights, which add up to 1

    def numbers(self) -> dict[str, Float[Tensor, "n"]]:
        """Return statistics of the coordinates, by name.

        ``mean`` and ``variance`` are weighted: in an orthonormal basis 1, and the squared turning
        rate. ``plain`` is the unweighted variance, which jumps where coordinates are near zero, and
        ``spread`` the unweighted interquartile range, which does not. ``participation`` is the
        participation ratio of the coordinates' shares of the variance, ``1 / Σ share²``, of all
        there are: 1 / g when one does all the turning, 1 when all do as much; about a third in a
        random basis, where shares are squares of normal numbers. ``top`` is the share of the
        `TOP` that have most of it, and ``constant`` the weight of those that stay nearly constant.
        """
        rate, weight = self
        mean = (weight * rate).sum(1)
        part = weight * (rate - mean[:, None]).square()
        turned = part / part.sum(1, keepdim=True)
        low, high = rate.quantile(rate.new_tensor([0.25, 0.75]), dim=1)
        return {
            "mean": mean,
            "variance": part.sum(1),
            "plain": rate.var(1, correction=0),
            "spread": high - low,
            "participation": 1 / turned.square().sum(1) / rate.shape[1],
            "top": turned.topk(min(TOP, rate.shape[1]), dim=1).values.sum(1),
            "constant": (weight * (rate < CONSTANT)).sum(1),
        }


def rates(basis: Basis, v: Float[Tensor, "n d"], turn: Float[Tensor, "n d"]) -> Rates:
    """Return how the coordinates of unit directions change as these turn by ``dv / d log R``."""
    at, moved = basis.along(v), basis.along(turn)
    square, product = basis.summed(at.square()), basis.summed(at * moved)
    tiny = math.sqrt(torch.finfo(square.dtype).tiny)
    return Rates(1 + product / square.clamp(min=tiny), square / square.sum(1, keepdim=True))
