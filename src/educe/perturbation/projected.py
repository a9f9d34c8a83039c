"""Projected: what is added to what one projection of each block of a band returns.

    adapters       W  ←  W + R b aᵀ        the columns of a and of b have norm one
    biases         W x  →  W x + θ_l       the same vector for every token

The projections stay as they are: hooks add beside them, so rows of one batch have a perturbation
each. How much of ``b`` an adapter adds depends on the token ``x``, by ``⟨a, x⟩``; where that gives
way to a constant it becomes a bias (see `educe.derive.ungating`).
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from typing_extensions import override

from educe.errors import LayerError, SteeringError
from educe.model.blocks import hooked
from educe.model.language import LanguageModel
from educe.perturbation.kind import At, Keep, Kind, everywhere


class Projected(Kind):
    """What changes the output of one projection of each block of a band.

    Attributes:
        first: The first block of the band; from 1 on.
        paths: The module of each block, by its name in the transformers model.
    """

    first: int
    paths: tuple[str, ...]

    @property
    @override
    def before(self) -> int:
        return self.first - 1

    @property
    @override
    def last(self) -> int:
        return self.first + len(self.paths) - 1

    @override
    def draw(self, n: int, generator: torch.Generator) -> Float[Tensor, "n s"]:
        """Draw every column uniform on its sphere."""
        return self.normalised(torch.randn(n, self.size, generator=generator))

    @abstractmethod
    def split(self, theta: Float[Tensor, "n s"]) -> list[tuple[Tensor, ...]]:
        """Return what each block gets, every part ``[n, columns, width]``."""

    @abstractmethod
    def written(
        self, parts: tuple[Tensor, ...], x: Float[Tensor, "n m i"]
    ) -> Float[Tensor, "n #m d"]:
        """Return what is added to the output of a projection that takes ``x``."""

    @override
    @contextmanager
    def changing(
        self,
        lm: LanguageModel,
        theta: Float[Tensor, "n s"],
        items: Sequence[int],
        at: At = everywhere,
    ) -> Iterator[Keep]:
        parts = self.split(theta)
        ran: set[int] = set()
        heard: set[int] = set()

        def note(block: int) -> Callable[..., None]:
            return lambda module, args, output: ran.add(block)

        def change(block: int) -> Callable[..., Tensor]:
            def hook(module: nn.Module, args: Any, output: Tensor) -> Tensor:
                heard.add(block)
                own = tuple(part.to(output) for part in parts[block])
                x = args[0].reshape(len(own[0]), -1, args[0].shape[-1])
                rows = output.reshape(len(x), -1, output.shape[-1])
                return (rows + self.written(own, x)).reshape(output.shape)

            return hook

        def keep(items: Tensor) -> None:
            parts[:] = [tuple(part[items.to(part.device)] for part in own) for own in parts]

        modules = [lm.unwrapped.get_submodule(path) for path in self.paths]
        handles = [module.register_forward_hook(change(i)) for i, module in enumerate(modules)]
        blocks = lm.blocks[self.first : self.last + 1]
        handles += [block.register_forward_hook(note(i)) for i, block in enumerate(blocks)]
        with hooked(handles):
            yield keep
        if ran - heard:
            raise SteeringError(
                f"{self.paths[min(ran - heard)]} was never called: the {self.name} would do nothing"
            )


@dataclass(frozen=True)
class Adapters(Projected):
    """Low-rank adapters ``W ← W + R b aᵀ`` on one projection of each block of a band.

    The numbers of a perturbation are, block after block, the columns of ``a`` and those of ``b``;
    each column has norm one, so every term of the sum has spectral norm ``R``. They act on every
    token, as weights do. See `adapters` for how to make one.

    Attributes:
        first: The first block of the band; from 1 on.
        paths: The module of each block, by its name in the transformers model.
        inputs: Width of what each takes.
        width: Width of what they return: that of the stream.
        rank: Columns of ``a`` and of ``b``.

    Example:
        >>> kind = adapters(lm, first=2, blocks=2)
        >>> kind.paths
        ('model.layers.2.self_attn.o_proj', 'model.layers.3.self_attn.o_proj')
        >>> kind.size  # a and b, both as wide as the stream, for each of two blocks
        128
    """

    name: ClassVar[str] = "adapters"
    tensor: ClassVar[str] = "factors"

    first: int
    paths: tuple[str, ...]
    inputs: tuple[int, ...]
    width: int
    rank: int = 1

    @property
    @override
    def size(self) -> int:
        return self.rank * (sum(self.inputs) + self.width * len(self.inputs))

    @override
    def split(self, theta: Float[Tensor, "n s"]) -> list[tuple[Tensor, ...]]:
        """Return ``a`` and ``b`` of each block."""
        sizes = [self.rank * width for inner in self.inputs for width in (inner, self.width)]
        parts = [part.unflatten(1, (self.rank, -1)) for part in theta.split(sizes, 1)]
        return list(zip(parts[::2], parts[1::2], strict=True))

    def joined(self, factors: Sequence[tuple[Tensor, ...]]) -> Float[Tensor, "n s"]:
        """Undo `split`."""
        return torch.cat([part.flatten(1) for pair in factors for part in pair], 1)

    @override
    def columns(self, theta: Float[Tensor, "n s"]) -> list[Float[Tensor, "n k w"]]:
        """Return ``a`` and ``b`` of each block: the columns of each, one below the other."""
        return [part for pair in self.split(theta) for part in pair]

    @override
    def scaled(self, directions: Float[Tensor, "n s"], radius: Any) -> Float[Tensor, "n s"]:
        factor = torch.as_tensor(radius, dtype=directions.dtype, device=directions.device)
        factor = factor[:, :, None] if factor.ndim else factor
        return self.joined([(a, factor * b) for a, b in self.split(directions)])

    @override
    def unit(self, median_norm: float, taken: Callable[[Sequence[str]], list[float]]) -> float:
        """Return the radius at which a random adapter adds as much as the stream's median norm.

        A random unit ``a`` meets an input ``x`` of width ``i`` with ``⟨a, x⟩² = ‖x‖² / i`` in the
        mean, so what the ``k`` columns of one block add has norm ``R ‖x‖ √(k / i)``.
        """
        norms = zip(taken(self.paths), self.inputs, strict=True)
        added = [norm * (self.rank / i) ** 0.5 for norm, i in norms]
        return median_norm * len(added) / sum(added)

    @override
    def written(
        self, parts: tuple[Tensor, ...], x: Float[Tensor, "n m i"]
    ) -> Float[Tensor, "n m d"]:
        a, b = parts
        return x @ a.mT @ b


def adapters(
    lm: LanguageModel,
    *,
    first: int,
    blocks: int,
    projection: Literal["attention", "mlp"] = "attention",
    rank: int = 1,
) -> Adapters:
    """Return the kind of adapters on the output projections of a band of blocks.

    Args:
        lm: The model.
        first: The first block.
        blocks: How many.
        projection: Of the token mixer (attention), or of the feed-forward part.
        rank: Columns of each factor.

    Raises:
        LayerError: The band does not lie between block 1 and the last.
        ModelError: A block has no such projection.

    Example:
        >>> kind = adapters(lm, first=2, blocks=1, projection="mlp", rank=4)
        >>> educe.search(part.on(kind), "random", n=3, radius=0.5)
        PerturbationSet(3 adapters by random; layers 1 to 3 of llama; ...)
    """
    if not (first >= 1 and blocks >= 1 and first + blocks <= lm.depth):
        raise LayerError(
            f"blocks {first} to {first + blocks - 1} cannot hold adapters: {lm.name} has blocks "
            f"0 to {lm.depth - 1}, and the band begins at 1 or later"
        )
    found = [lm.projection(block, projection) for block in range(first, first + blocks)]
    return Adapters(
        first,
        tuple(p.path for p in found),
        tuple(p.inputs for p in found),
        lm.width,
        rank,
    )


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
