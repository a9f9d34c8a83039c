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
    """Logarithmic derivatives of coordinates.

    Attributes:
        rate: ``a_j``, ``[n, g]``.
        weight: Their weights, which add up to 1, ``[n, g]``.
    """

    rate: Float[Tensor, "n g"]
    weight: Float[Tensor, "n g"]

    @property
    def mean(self) -> Float[Tensor, "n"]:
        """The weighted mean: 1 in an orthonormal basis."""
        return (self.weight * self.rate).sum(1)

    @property
    def variance(self) -> Float[Tensor, "n"]:
        """The weighted variance: the squared turning rate in an orthonormal basis."""
        return (self.weight * (self.rate - self.mean[:, None]).square()).sum(1)

    @property
    def plain(self) -> Float[Tensor, "n"]:
        """The unweighted variance. Coordinates near zero have no bound: expect it to jump."""
        return self.rate.var(1, correction=0)

    @property
    def spread(self) -> Float[Tensor, "n"]:
        """The unweighted interquartile range, which such coordinates do not spoil."""
        low, high = self.rate.quantile(self.rate.new_tensor([0.25, 0.75]), dim=1)
        return high - low

    @property
    def turned(self) -> Float[Tensor, "n g"]:
        """How the variance is spread: each coordinate's share of it."""
        part = self.weight * (self.rate - self.mean[:, None]).square()
        return part / part.sum(1, keepdim=True)

    @property
    def participation(self) -> Float[Tensor, "n"]:
        """Participation ratio of these shares, ``1 / Σ share²``, of all coordinates there are.

        1 / g when one coordinate does all the turning, 1 when all do as much; about a third in a
        random basis, where shares are squares of normal numbers.
        """
        return 1 / self.turned.square().sum(1) / self.rate.shape[1]

    @property
    def top(self) -> Float[Tensor, "n"]:
        """The share of the turning in the `TOP` coordinates that have most of it."""
        return self.turned.topk(min(TOP, self.rate.shape[1]), dim=1).values.sum(1)

    @property
    def constant(self) -> Float[Tensor, "n"]:
        """The weight of the coordinates that stay nearly constant."""
        return (self.weight * (self.rate < CONSTANT)).sum(1)

    def numbers(self) -> dict[str, Float[Tensor, "n"]]:
        """Return all of it by name."""
        names = ("mean", "variance", "plain", "spread", "participation", "top", "constant")
        return {name: getattr(self, name) for name in names}


def rates(basis: Basis, v: Float[Tensor, "n d"], turn: Float[Tensor, "n d"]) -> Rates:
    """Return how the coordinates of directions change as these turn.

    Args:
        basis: The basis.
        v: Unit directions.
        turn: ``dv / d log R``.
    """
    return of_coordinates(basis.along(v), basis.along(turn), basis)


def of_coordinates(
    at: Float[Tensor, "n m"], moved: Float[Tensor, "n m"], basis: Basis | None = None
) -> Rates:
    """Return the rates of coordinates ``R · at`` whose derivatives in ``log R`` are ``moved``.

    Args:
        at: Coordinates of unit directions.
        moved: Their derivatives.
        basis: Puts them into groups; by default each is its own.
    """
    square, product = at.square(), at * moved
    if basis is not None:
        square, product = basis.summed(square), basis.summed(product)
    tiny = math.sqrt(torch.finfo(square.dtype).tiny)
    return Rates(1 + product / square.clamp(min=tiny), square / square.sum(1, keepdim=True))
