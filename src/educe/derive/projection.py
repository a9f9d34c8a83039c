"""Projected: the part of vectors that lies inside a subspace, or outside it.

θ = P θ + (1 - P) θ        P the orthogonal projection onto the span of some rows
"""

from __future__ import annotations

from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from educe.derive.scaling import derived
from educe.errors import MethodError
from educe.orthogonal import orthonormal
from educe.perturbation.kinds import Vectors, Within
from educe.perturbation.set import PerturbationSet


def projected(
    found: PerturbationSet, rows: Float[Tensor, "k d"], *, away: bool = False
) -> PerturbationSet:
    """Return the part of vectors inside the span of some rows.

    Args:
        found: Vectors.
        rows: Directions in the stream, linearly independent and of any length.
        away: Return the part outside instead.

    Raises:
        MethodError: They are no vectors, or nothing is left of one.

    Example:
        >>> found = educe.search(part, "random", n=2, radius=2.0)
        >>> plane = torch.eye(2, lm.width)
        >>> inside = educe.derive.projected(found, plane).theta
        >>> outside = educe.derive.projected(found, plane, away=True).theta
        >>> torch.allclose(inside + outside, found.theta, atol=1e-5)
        True
    """
    theta = as_vectors(found).theta.cpu().double()
    basis = orthonormal(rows.cpu().double())
    inside = theta @ basis.T @ basis
    left = theta - inside if away else inside
    size = left.norm(dim=1) / theta.norm(dim=1)
    if float(size.min()) < torch.finfo(found.directions.dtype).eps:
        where = "outside" if away else "inside"
        raise MethodError(f"nothing of vector {int(size.argmin())} lies {where} this subspace")
    return replaced(found, left, torch.arange(len(found)), share=size)


def as_vectors(found: PerturbationSet) -> PerturbationSet:
    """Return vectors as such, where they are kept as coefficients within a subspace too.

    Raises:
        MethodError: They are no vectors.
    """
    kind = found.kind
    if isinstance(kind, Vectors):
        return found
    if not isinstance(kind, Within):
        raise MethodError(
            f"these are {kind.name}, which are no vectors: only vectors can be followed, "
            "projected and made sparse"
        )
    whole = Vectors(kind.before, kind.rows.shape[1], kind.positions)
    return _at(replace(found, kind=whole), found.theta @ kind.rows.to(found.theta))


def replaced(
    found: PerturbationSet,
    theta: Float[Tensor, "n d"],
    parents: Tensor,
    **scores: Float[Tensor, "n"],
) -> PerturbationSet:
    """Return other vectors in place of those of a set that they were derived from."""
    return _at(derived(as_vectors(found), parents, **scores), theta)


def _at(found: PerturbationSet, theta: Float[Tensor, "n d"]) -> PerturbationSet:
    size = theta.norm(dim=1)
    directions = (theta / size[:, None]).float().cpu()
    return replace(found, directions=directions, radius=size.float().cpu())
