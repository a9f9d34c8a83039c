"""Projected: what is added to what one projection of each block of a band returns.

    W x  →  W x + f(x)         on one projection of each block of a band, f from the numbers θ

The projections stay as they are: hooks add beside them, so rows of one batch have a perturbation
each (see `educe.perturbation.low_rank` and `educe.perturbation.biases`).
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from typing_extensions import override

from educe.errors import SteeringError
from educe.model.blocks import hooked
from educe.model.language import LanguageModel
from educe.perturbation.kind import Keep, Kind


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
        self, lm: LanguageModel, theta: Float[Tensor, "n s"], items: Sequence[int]
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
