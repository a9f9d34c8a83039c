"""Biases: vectors at several places at once, each added to what one projection returns.

    W x  →  W x + θ_l          on one projection of each block of a band, the same for every token

A perturbation is a row of ``L`` vectors, block after block; each has norm one in a unit
perturbation. It is what an adapter ``W + R b aᵀ`` becomes when ``R ⟨a, x⟩``, which lets the token
decide, gives way to a constant (see `educe.refine.degate`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn
from typing_extensions import override

from educe.errors import SteeringError
from educe.kinds import Adapters, Keep, Kind
from educe.model import LanguageModel


@dataclass(frozen=True)
class Biases(Kind):
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
    def before(self) -> int:
        return self.first - 1

    @property
    @override
    def last(self) -> int:
        return self.first + len(self.paths) - 1

    @property
    @override
    def size(self) -> int:
        return self.width * len(self.paths)

    @override
    def columns(self, theta: Float[Tensor, "n s"]) -> list[Float[Tensor, "n 1 d"]]:
        """Return the vector of each block."""
        return list(theta.unflatten(1, (len(self.paths), 1, self.width)).unbind(1))

    @override
    def draw(self, n: int, generator: torch.Generator) -> Float[Tensor, "n s"]:
        """Draw every vector uniform on its sphere."""
        return self.normalised(torch.randn(n, self.size, generator=generator))

    @override
    @contextmanager
    def changing(
        self, lm: LanguageModel, theta: Float[Tensor, "n s"], items: Sequence[int]
    ) -> Iterator[Keep]:
        vectors = self.columns(theta)
        heard = [0] * len(vectors)

        def add(block: int) -> Callable[..., Tensor]:
            def hook(module: nn.Module, args: Any, output: Tensor) -> Tensor:
                heard[block] += 1
                vector = vectors[block].to(output)
                rows = output.reshape(len(vector), -1, self.width)
                return (rows + vector).reshape(output.shape)

            return hook

        def keep(items: Tensor) -> None:
            vectors[:] = [vector[items.to(vector.device)] for vector in vectors]

        modules = [lm.unwrapped.get_submodule(path) for path in self.paths]
        handles = [module.register_forward_hook(add(i)) for i, module in enumerate(modules)]
        try:
            yield keep
        finally:
            for handle in handles:
                handle.remove()
        if not all(heard):
            raise SteeringError(
                f"{self.paths[heard.index(0)]} was never called: the biases would do nothing"
            )
