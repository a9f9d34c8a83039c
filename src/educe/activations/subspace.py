"""Moments of activations, and the subspaces in which they lie.

Of ``n`` tokens with activations ``h`` the moments are the count, the mean, and the scatter

    n,   μ = Σ h / n,   M = Σ (h - μ)(h - μ)ᵀ                       in double precision,

all that the singular value decomposition of the token × activation matrix needs: its right singular
vectors are the eigenvectors of ``M``, its squared singular values the eigenvalues. Moments of two
sets add up exactly (Chan, Golub & LeVeque 1979), so they are gathered batch by batch and merged,
and what is kept does not grow with the number of tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from sklearn.utils.extmath import randomized_svd
from torch import Tensor

from educe.errors import MethodError
from educe.orthogonal import orthonormal, upright

#: Matrices with both sides longer are decomposed by random projection, when a rank is asked for.
LARGE = 2048


@dataclass(frozen=True)
class Moments:
    """What is known of some activations: enough for their mean, covariance and subspaces."""

    count: int  #: number of tokens
    mean: Float[Tensor, "d"]
    scatter: Float[Tensor, "d d"]  #: sum of the outer products of what deviates from the mean

    @classmethod
    def none(cls, width: int) -> Moments:
        """Return the moments of nothing."""
        zero = torch.zeros(width, width, dtype=torch.float64)
        return cls(0, zero[0].clone(), zero)

    @classmethod
    def of(cls, rows: Float[Tensor, "n d"]) -> Moments:
        """Return the moments of some activations."""
        wide = rows.detach().cpu().double()
        mean = wide.mean(0) if len(wide) else wide.new_zeros(wide.shape[1])
        return cls(len(wide), mean, (wide - mean).T @ (wide - mean))

    def __add__(self, other: Moments) -> Moments:
        count = self.count + other.count
        if not count:
            return self
        apart = other.mean - self.mean
        between = self.count * other.count / count * torch.outer(apart, apart)
        mean = self.mean + other.count / count * apart
        return Moments(count, mean, self.scatter + other.scatter + between)

    @property
    def covariance(self) -> Float[Tensor, "d d"]:
        """The mean outer product of what deviates from the mean."""
        return self.scatter / max(1, self.count)

    def without(self, coordinates: Sequence[int]) -> Moments:
        """Return the moments of the same activations with some coordinates set to zero."""
        kept = torch.ones_like(self.mean)
        kept[list(coordinates)] = 0
        return Moments(self.count, self.mean * kept, self.scatter * torch.outer(kept, kept))

    def about(self, point: Float[Tensor, "d"]) -> Float[Tensor, "d d"]:
        """Return the mean outer product of what deviates from another point than the mean."""
        apart = self.mean - point.to(self.mean)
        return self.covariance + torch.outer(apart, apart)


@dataclass(frozen=True)
class Subspace:
    """Orthonormal directions in the order in which activations vary along them."""

    mean: Float[Tensor, "d"]  #: what was taken off before; zero if nothing was
    basis: Float[Tensor, "k d"]  #: the directions, right singular vectors
    variance: Float[Tensor, "k"]  #: mean square of the activations along each
    total: float  #: the same over all directions, also those that are not here

    def __len__(self) -> int:
        return len(self.basis)

    def top(self, rank: int) -> Subspace:
        """Return the first directions.

        Raises:
            MethodError: There are not so many.
        """
        if not 1 <= rank <= len(self):
            raise MethodError(
                f"rank {rank}: these activations span {len(self)} directions, ask for 1 to "
                f"{len(self)}"
            )
        return Subspace(self.mean, self.basis[:rank], self.variance[:rank], self.total)

    def rank(self, share: float) -> int:
        """Return how many of the first directions hold a share of the variance."""
        short = self.variance.cumsum(0) < share * self.total * (1 - 1e-12)
        return min(int(short.sum()) + 1, len(self))

    def share(self, moments: Moments) -> float:
        """Return the share of other activations' variance, about this mean, that lies inside."""
        square = moments.about(self.mean)
        inside = (self.basis @ square * self.basis).sum()
        return float(inside / square.trace())


def of_moments(moments: Moments) -> Subspace:
    """Decompose what is known of activations: all directions in which they vary."""
    mean = moments.mean
    square = moments.about(mean)
    variance, basis = torch.linalg.eigh(square)
    variance, basis = variance.flip(0).clamp(min=0), upright(basis.flip(1).T)
    rounding = len(mean) * torch.finfo(variance.dtype).eps * variance[0]
    there = max(1, int((variance > rounding).sum()))
    return Subspace(mean, basis[:there], variance[:there], float(square.trace()))


def of_rows(
    rows: Float[Tensor, "n d"], *, rank: int | None = None, centred: bool = True, seed: int = 0
) -> Subspace:
    """Decompose a token × activation matrix itself, such as that of a single prompt.

    Args:
        rows: The activations.
        rank: How many directions; by default all in which they vary. With a rank, large matrices
            are decomposed by random projection (Halko, Martinsson & Tropp 2011).
        centred: Whether their mean is taken off; without, the first direction is often near it.
        seed: Of the random projection.

    Raises:
        MethodError: They do not span as many directions as the rank says.
    """
    wide = rows.detach().cpu().double()
    mean = wide.mean(0) if centred else torch.zeros_like(wide[0])
    wide = wide - mean
    if rank is not None and min(wide.shape) > LARGE:
        _, size, right = map(
            torch.as_tensor, randomized_svd(wide.numpy(), rank, n_iter=4, random_state=seed)
        )
    else:
        _, size, right = torch.linalg.svd(wide, full_matrices=False)
        rounding = max(wide.shape) * torch.finfo(size.dtype).eps * size[0]
        there = max(1, int((size > rounding).sum()))
        size, right = size[:there], right[:there]
    total = float(wide.square().sum() / len(wide))
    found = Subspace(mean, upright(right), size.square() / len(wide), total)
    return found if rank is None else found.top(rank)


def random_subspace(moments: Moments, rank: int, generator: torch.Generator) -> Subspace:
    """Draw a subspace uniformly among those of the coordinates that vary: the control.

    Its directions are in order of the variance along them.
    """
    mean = moments.mean
    square = moments.about(mean)
    drawn = torch.randn(len(mean), rank, generator=generator, dtype=torch.float64)
    basis = orthonormal((drawn * (square.diagonal() > 0)[:, None]).T)
    variance, turn = torch.linalg.eigh(basis @ square @ basis.T)
    basis = upright(turn.flip(1).T @ basis)
    return Subspace(mean, basis, variance.flip(0), float(square.trace()))
