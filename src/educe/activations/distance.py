"""How far from natural: measures of a vector and of an activation, and where they stand.

With ``μ`` and ``Σ = Σ_i λ_i w_i w_iᵀ`` the mean and covariance of natural activations,

    share(v)  = Σ_{i≤k} ⟨w_i, v⟩² / ‖v‖²            energy in the top k directions; k/d by chance
    length(v) = √( Σ_i ⟨w_i, v⟩² / λ'_i )           Mahalanobis; that of h is length(h - μ)
    λ'        = (1 - ρ) λ + ρ mean(λ)               shrunk; ρ by OAS (Chen, Wiesel et al. 2010)
    nearest(h) = min over natural activations a of ‖h - a‖

``k`` is the number of directions that hold 90% of the variance. None of these means anything alone:
each is placed among its values for held-out natural activations, for differences between natural
activations, and for random vectors. Massive coordinates are left out of all of them; how much of a
vector lies there is a measure of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from scipy.stats import beta
from torch import Tensor

from educe.activations.natural import Natural, Sample
from educe.activations.subspace import Moments

#: The share of the variance that the top directions hold.
VARIANCE = 0.9
#: Directions beyond those that hold this share of the variance are not used.
USED = 0.99
#: The corpus is too small where held-out activations are so much farther off than those that the
#: covariance was estimated from, as a ratio of mean squared lengths,
OPTIMISM = 1.25
#: or where the top directions hold so much less of their variance.
COVERED = 0.03


@dataclass(frozen=True)
class Geometry:
    """Measures of vectors and activations, by what is known of natural ones."""

    moments: Moments  #: what it is computed from
    vectors: Float[Tensor, "c d"]  #: all ``w`` by variance; zero at massive coordinates
    variance: Float[Tensor, "c"]  #: ``λ``
    shrunk: Float[Tensor, "c"]  #: ``λ'``
    rank: int  #: ``k``
    kept: Bool[Tensor, "d"]  #: coordinates that are not massive

    @classmethod
    def of(
        cls, moments: Moments, *, massive: Sequence[int] = (), rank: int | None = None
    ) -> Geometry:
        """Decompose moments.

        Args:
            moments: Of natural activations.
            massive: Coordinates to leave out.
            rank: Of the top directions; by default those that hold 90% of the variance.
        """
        kept = torch.ones(len(moments.mean), dtype=torch.bool)
        kept[list(massive)] = False
        variance, inside = torch.linalg.eigh(moments.covariance[kept][:, kept])
        variance, inside = variance.flip(0).clamp(min=0), inside.flip(1).T
        vectors = torch.zeros(len(inside), len(kept), dtype=inside.dtype)
        vectors[:, kept] = inside
        if rank is None:
            rank = int((variance.cumsum(0) < VARIANCE * variance.sum()).sum()) + 1
        rho = shrinkage(variance, moments.count)
        shrunk = (1 - rho) * variance + rho * variance.mean()
        return cls(moments, vectors, variance, shrunk, min(rank, len(variance)), kept)

    @property
    def mean(self) -> Float[Tensor, "d"]:
        """``μ``."""
        return self.moments.mean

    @property
    def chance(self) -> tuple[float, float, float]:
        """The share of a random vector: its mean, and what 95% of them lie between."""
        k, rest = self.rank, len(self.vectors) - self.rank
        if not rest:
            return 1.0, 1.0, 1.0
        low, high = beta.ppf([0.025, 0.975], k / 2, rest / 2)
        return k / (k + rest), float(low), float(high)

    @property
    def used(self) -> int:
        """How many of the first directions natural activations use."""
        return int((self.variance.cumsum(0) < USED * self.variance.sum()).sum()) + 1

    @property
    def unused(self) -> tuple[float, float]:
        """The share of the natural variance in the other directions, and of a random vector."""
        natural = self.variance[self.used :].sum() / self.variance.sum()
        return float(natural), 1 - self.used / len(self.vectors)

    def bare(self, v: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
        """Return vectors without their massive coordinates, in double precision."""
        return v.detach().cpu().double() * self.kept

    def energy(self, v: Float[Tensor, "n d"]) -> Float[Tensor, "n c"]:
        """Return which share of each vector's energy lies along each direction.

        Of one that has massive coordinates alone, it is zero along all of them.
        """
        square = (self.bare(v) @ self.vectors.T).square()
        return square / square.sum(1, keepdim=True).clamp(min=torch.finfo(square.dtype).tiny)

    def massive(self, v: Float[Tensor, "n d"]) -> Float[Tensor, "n"]:
        """Return which share of each vector's energy lies in massive coordinates."""
        square = v.detach().cpu().double().square()
        return (square * ~self.kept).sum(1) / square.sum(1)

    def share(self, v: Float[Tensor, "n d"]) -> Float[Tensor, "n"]:
        """Return which share of each vector's energy lies in the top directions."""
        return self.energy(v)[:, : self.rank].sum(1)

    def length(self, v: Float[Tensor, "n d"]) -> Float[Tensor, "n"]:
        """Return the Mahalanobis length of vectors: differences, not activations."""
        return ((self.bare(v) @ self.vectors.T).square() / self.shrunk).sum(1).sqrt()

    def distance(self, h: Float[Tensor, "n d"]) -> Float[Tensor, "n"]:
        """Return the Mahalanobis distance of activations from the mean."""
        return self.length(h.detach().cpu().double() - self.mean)

    def distances(self, h: Float[Tensor, "m d"], v: Float[Tensor, "n d"]) -> Float[Tensor, "n m"]:
        """Return the Mahalanobis distance of activations with each of some vectors added."""
        along = [
            self.bare(x) @ (self.vectors / self.shrunk.sqrt()[:, None]).T
            for x in (h.detach().cpu().double() - self.mean, v)
        ]
        at, moved = (x.square().sum(1) for x in along)
        return (moved[:, None] + at + 2 * along[1] @ along[0].T).clamp(min=0).sqrt()

    def inside(self, v: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
        """Return the part of vectors that lies in the top directions."""
        top = self.vectors[: self.rank]
        return self.bare(v) @ top.T @ top

    def along(self, moments: Moments) -> Float[Tensor, "c"]:
        """Return the mean square of some activations' deviation from the mean, by direction."""
        return (self.vectors @ moments.about(self.mean) * self.vectors).sum(1)


def shrinkage(variance: Float[Tensor, "c"], count: int) -> float:
    """Return the weight of the mean variance that OAS gives for so many activations."""
    d, trace, square = len(variance), float(variance.sum()), float(variance.square().sum())
    spread = square - trace**2 / d
    if spread <= 0:
        return 1.0
    return min(1.0, (square + trace**2) / ((count + 1) * spread))


class Coverage(NamedTuple):
    """How well natural activations are known at some size of the corpus."""

    tokens: int
    share: float  #: of the held-out variance in the top directions
    fitted: float  #: of the variance that they were computed from
    optimism: float  #: mean squared distance, held out over fitted

    @property
    def enough(self) -> bool:
        """Whether what was not seen looks like what was."""
        return self.optimism <= OPTIMISM and self.fitted - self.share <= COVERED


def coverage(geometry: Geometry, fitted: Moments, held: Moments) -> Coverage:
    """Compare held-out activations with those that a geometry was computed from."""
    seen, unseen = geometry.along(fitted), geometry.along(held)
    share, known = (float(x[: geometry.rank].sum() / x.sum()) for x in (unseen, seen))
    far = (unseen / geometry.shrunk).sum() / (seen / geometry.shrunk).sum()
    return Coverage(fitted.count, share, known, float(far))


def learning(natural: Natural) -> list[tuple[Geometry, Coverage]]:
    """Return geometry and coverage at an eighth, a quarter, a half and all of the corpus."""
    *smaller, whole = natural.growing
    last = Geometry.of(whole, massive=natural.massive)
    curve = [Geometry.of(some, massive=natural.massive, rank=last.rank) for some in smaller]
    return [(g, coverage(g, g.moments, natural.held)) for g in (*curve, last)]


def percentile(values: Float[Tensor, "n"], among: Float[Tensor, "m"]) -> Float[Tensor, "n"]:
    """Return which share of others is smaller than each value; of equal ones, half."""
    ordered, values = among.sort().values, values.to(among).contiguous()
    below = torch.searchsorted(ordered, values)
    up_to = torch.searchsorted(ordered, values, right=True)
    return (below + up_to).double() / 2 / len(ordered)


def differences(sample: Sample, n: int, generator: torch.Generator) -> Float[Tensor, "n d"]:
    """Draw differences between natural activations of different documents.

    Documents that begin alike have activations in common: their difference is none.
    """
    apart = torch.zeros(0, sample.rows.shape[1], dtype=torch.float64)
    while len(apart) < n:
        pairs = torch.randint(len(sample.rows), (4 * n, 2), generator=generator)
        documents = sample.document[pairs]
        first, second = pairs[documents[:, 0] != documents[:, 1]][:n].T
        some = sample.rows[first].double() - sample.rows[second].double()
        apart = torch.cat([apart, some[some.any(1)]])
    return apart[:n]


def random_vectors(n: int, geometry: Geometry, generator: torch.Generator) -> Float[Tensor, "n d"]:
    """Draw unit vectors uniformly, without massive coordinates."""
    drawn = torch.randn(n, len(geometry.kept), generator=generator, dtype=torch.float64)
    return torch.nn.functional.normalize(drawn * geometry.kept, dim=1)
