"""Components: directions of a stream in the order in which they count, and what is kept of them.

With the covariance ``Σ`` of activations ``h`` about their mean ``μ`` and an importance ``C``, such
as the gradients' ``F`` (see `educe.activations.gradients`), the balanced form is

    Σ^½ C Σ^½ = Q diag(σ²) Qᵀ,     write_i = Σ^½ q_i,     read_i = Σ^-½ q_i,
    P_k = Σ_{i≤k} write_i read_iᵀ,     h ← μ + P_k (h - μ)

``σ_i`` is large for what is both present (``Σ``) and used (``C``): balanced truncation (Moore 1981)
of one layer. Of all maps ``M`` of rank ``k``, ``P_k`` has the least mean of ``xᵀ(1-M)ᵀC(1-M)x``
over activations ``x = h - μ``: ``Σ_{i>k} σ_i²``. So with ``C = F`` half of that is the least KL
that a layer of ``k`` dimensions can have, to second order, as far as gradients do not depend on
activations and tokens not on each other. ``P_k`` is an oblique projection.

Massive coordinates are no part of any of it, and stay as they are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from educe.activations.subspace import Subspace
from educe.errors import MethodError
from educe.orthogonal import orthonormal, upright

#: The least variance of a direction, as a share of the largest: with less, none was seen in it.
LEAST = 1e-10


@dataclass(frozen=True)
class Components:
    """Some components of a stream: ``h - mean`` is ``Σ_i write_i ⟨read_i, h - mean⟩`` and a rest.

    Attributes:
        mean: What stays where nothing is kept.
        read: By what the coefficient of each is read; orthogonal to all others' ``write``.
        write: What each adds for a coefficient of one.
        value: How much each counts, in descending order.
        free: Coordinates that are not massive.
    """

    mean: Float[Tensor, "d"]
    read: Float[Tensor, "k d"]
    write: Float[Tensor, "k d"]
    value: Float[Tensor, "k"]
    free: Bool[Tensor, "d"]

    def __len__(self) -> int:
        return len(self.value)

    def top(self, k: int) -> Components:
        """Return the first ``k``."""
        return replace(self, read=self.read[:k], write=self.write[:k], value=self.value[:k])

    def part(self, h: Float[Tensor, "*n d"]) -> Float[Tensor, "*n d"]:
        """Return what of activations, less their mean, lies in these components."""
        return (h - self.mean.to(h)) @ self.read.to(h).T @ self.write.to(h)

    def only(self, h: Float[Tensor, "*n d"]) -> Float[Tensor, "*n d"]:
        """Return activations of which these components alone are left."""
        return torch.where(self.free.to(h.device), self.mean.to(h) + self.part(h), h)

    def without(self, h: Float[Tensor, "*n d"]) -> Float[Tensor, "*n d"]:
        """Return activations from which these components are taken away."""
        return h - self.part(h)

    def rank(self, share: float) -> int:
        """Return how many of the first have so large a share of the sum of all values."""
        short = self.value.cumsum(0) < share * self.value.sum() * (1 - 1e-12)
        return min(int(short.sum()) + 1, len(self))


def balanced(
    mean: Float[Tensor, "d"],
    covariance: Float[Tensor, "d d"],
    importance: Float[Tensor, "d d"],
    massive: Sequence[int] = (),
) -> Components:
    """Return the components that are both present and used; their values are ``σ²``.

    Args:
        mean: The mean activation.
        covariance: Of activations.
        importance: ``C``: the harm of leaving out ``x`` is ``xᵀCx``.
        massive: Coordinates to leave out.

    Example:
        >>> from educe.activations.balanced import balanced
        >>> present, used = torch.tensor([4.0, 9.0, 0.0]), torch.tensor([1.0, 0.1, 9.0])
        >>> found = balanced(torch.zeros(3), present.diag(), used.diag())
        >>> found.value[0].item()  # not the most present, not the most used
        4.0
    """
    free = _free(len(mean), massive)
    bare = (x.double()[free][:, free] for x in (covariance, importance))
    root, inverse = _roots(next(bare))
    value, turn = torch.linalg.eigh(root @ next(bare) @ root)
    turn = turn.flip(1).T
    read, write = _apart(turn @ inverse, free), _apart(turn @ root, free)
    return Components(mean.double(), read, write, value.flip(0).clamp(min=0), free)


def orthogonal(
    mean: Float[Tensor, "d"], square: Float[Tensor, "d d"], massive: Sequence[int] = ()
) -> Components:
    """Return the eigenvectors of a matrix that says how much a direction counts.

    Args:
        mean: The mean activation.
        square: A covariance, for principal components, or an importance.
        massive: Coordinates to leave out.
    """
    free = _free(len(mean), massive)
    value, basis = torch.linalg.eigh(square.double()[free][:, free])
    rows = _apart(upright(basis.flip(1).T), free)
    return Components(mean.double(), rows, rows, value.flip(0).clamp(min=0), free)


def at_random(
    mean: Float[Tensor, "d"], massive: Sequence[int], draw: torch.Generator
) -> Components:
    """Return random directions, each orthogonal to those before it: the control."""
    free = _free(len(mean), massive)
    width = int(free.sum())
    drawn = torch.randn(width, width, generator=draw, dtype=torch.float64)
    rows = _apart(orthonormal(drawn), free)
    return Components(mean.double(), rows, rows, torch.ones(width, dtype=torch.float64), free)


def subspace(components: Components, k: int) -> Subspace:
    """Return where the first ``k`` balanced components write, as a subspace to search in.

    Its directions are an orthonormal basis of what they write, in their order.

    Args:
        components: All of the balanced components.
        k: How many.

    Raises:
        MethodError: There are not so many.
    """
    if not 1 <= k <= len(components):
        raise MethodError(f"rank {k}: ask for 1 to {len(components)} balanced components")
    write = components.write  # of all: writeᵀ write = Σ
    rows = orthonormal(write[:k])
    along = (rows @ write.T).square().sum(1)
    return Subspace(components.mean, rows, along, float(write.square().sum()))


def _free(width: int, massive: Sequence[int]) -> Bool[Tensor, "d"]:
    free = torch.ones(width, dtype=torch.bool)
    free[list(massive)] = False
    return free


def _roots(covariance: Tensor) -> tuple[Tensor, Tensor]:
    """Return the symmetric root of a covariance, and its inverse."""
    variance, basis = torch.linalg.eigh(covariance)
    size = variance.clamp(min=LEAST * float(variance[-1])).sqrt()
    return basis * size @ basis.T, basis / size @ basis.T


def _apart(rows: Tensor, free: Tensor) -> Float[Tensor, "k d"]:
    """Put rows of the coordinates that are not massive among all."""
    whole = rows.new_zeros(len(rows), len(free))
    whole[:, free] = rows
    return whole
