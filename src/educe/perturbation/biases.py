"""Biases: vectors at several places at once, each added to what one projection returns.

    W x  →  W x + θ_l          on one projection of each block of a band, the same for every token

A perturbation is a row of ``L`` vectors, block after block; each has norm one in a unit
perturbation. It is what an adapter ``W + R b aᵀ`` becomes when ``R ⟨a, x⟩``, which lets the token
decide, gives way to a constant (see `educe.derive.ungating`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor
from typing_extensions import override

from educe.perturbation.low_rank import Adapters
from educe.perturbation.projected import Projected


@dataclass(frozen=True)
class Biases(Projected):
    """One vector for each block of a band, added to what a projection of it returns.

    Attributes:
        first: The first block of the band; from 1 on.
        paths: The module of each block, by its name in the transformers model.
        width: Width of what they return: that of the stream.
    """

    name: ClassVar[str] = "biases"
    tensor: ClassVar[str] = "biases"

    first: int
    paths: tuple[str, ...]
    width: int

    @classmethod
    def like(cls, kind: Adapters) -> Biases:
        """Return the biases of the projections that some adapters are on."""
        return cls(kind.first, kind.paths, kind.width)

    @property
    @override
    def size(self) -> int:
        return self.width * len(self.paths)

    @override
    def columns(self, theta: Float[Tensor, "n s"]) -> list[Float[Tensor, "n 1 d"]]:
        """Return the vector of each block."""
        return list(theta.unflatten(1, (len(self.paths), 1, self.width)).unbind(1))

    @override
    def split(self, theta: Float[Tensor, "n s"]) -> list[tuple[Tensor, ...]]:
        """Return the vector of each block."""
        return [(vector,) for vector in self.columns(theta)]

    @override
    def written(
        self, parts: tuple[Tensor, ...], x: Float[Tensor, "n m i"]
    ) -> Float[Tensor, "n 1 d"]:
        (vector,) = parts
        return vector
