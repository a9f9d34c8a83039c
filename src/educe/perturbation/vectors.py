"""Vectors: what is added to the residual stream after one block.

vectors        h ← h + θ              one vector
within         h ← h + θ A            the same, of a subspace: θ has k coefficients, A is [k, d]
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor
from typing_extensions import override

from educe.perturbation.kind import Kind, normed


class AfterBlock(Kind):
    """What is added to the residual stream after one block.

    Attributes:
        layer: The block.
    """

    layer: int

    @property
    @override
    def before(self) -> int:
        return self.layer

    @property
    @override
    def last(self) -> int:
        return self.layer

    @override
    def draw(self, n: int, generator: torch.Generator) -> Float[Tensor, "n s"]:
        """Draw directions uniform on the sphere (Muller 1959)."""
        return normed(torch.randn(n, self.size, generator=generator))


@dataclass(frozen=True)
class Vectors(AfterBlock):
    """One vector each, added to the residual stream after one block.

    Attributes:
        layer: The block after which it is added.
        width: Width of the stream.
        positions: Tokens it is added to (see `educe.perturbation.positions`).

    Example:
        >>> kind = Vectors(1, lm.width, positions="last:2")
        >>> effect = part.on(kind).effect(kind.draw(3, torch.Generator()))
        >>> effect.shape
        torch.Size([3, 32])
    """

    name: ClassVar[str] = "vectors"
    tensor: ClassVar[str] = "vectors"

    layer: int
    width: int
    positions: str = "all"

    @property
    @override
    def size(self) -> int:
        return self.width

    @override
    def added(
        self, theta: Float[Tensor, "n d"], items: Sequence[int], places: Sequence[int]
    ) -> Float[Tensor, "n 1 1 d"]:
        return theta[:, None, None, :]


@dataclass(frozen=True, eq=False)
class Within(AfterBlock):
    """Vectors of a subspace, added to the residual stream after one block: ``h ← h + θ A``.

    What is searched for are coefficients, so that every step stays inside. With orthonormal rows
    the ball ``‖θ‖ ≤ R`` is that of the vectors themselves; with rows as long as activations spread
    along them it is an ellipsoid (see `educe.activations.inside`).

    Attributes:
        layer: The block after which they are added.
        rows: ``A``, float32 on the processor, ``[k, d]``.
        positions: Tokens they are added to.

    Example:
        >>> plane = Within(1, torch.eye(2, lm.width))
        >>> found = educe.search(part.on(plane), "dct", n=2, radius=2.0)
        >>> found.theta.shape  # coefficients
        torch.Size([2, 2])
    """

    name: ClassVar[str] = "within"
    tensor: ClassVar[str] = "coefficients"

    layer: int
    rows: Float[Tensor, "k d"]
    positions: str = "all"

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, Within)
            and (self.layer, self.positions) == (other.layer, other.positions)
            and torch.equal(self.rows, other.rows)
        )

    def __hash__(self) -> int:
        return hash((self.layer, self.positions, *self.rows.shape))

    @property
    @override
    def size(self) -> int:
        return len(self.rows)

    @override
    def added(
        self, theta: Float[Tensor, "n k"], items: Sequence[int], places: Sequence[int]
    ) -> Float[Tensor, "n 1 1 d"]:
        return (theta @ self.rows.to(theta))[:, None, None, :]
