"""Ablations: a direction that is taken away from the stream after one block, at every token.

    h  →  h - R ⟨h - a, r⟩ w           with ⟨r, w⟩ = 1: at R = 1 nothing is left along r but a's

``r`` is what is looked for, ``w`` what is taken away for it, and at ``a`` nothing is: a
perturbation is a row of these three, one after the other (see `educe.activations.project`).
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

from educe.model.blocks import hooked, stream_out, with_stream
from educe.model.language import LanguageModel
from educe.perturbation.kind import At, Keep, everywhere
from educe.perturbation.vectors import AfterBlock


@dataclass(frozen=True)
class Ablations(AfterBlock):
    """One direction each, taken away from the stream after one block.

    Attributes:
        layer: The block.
        width: Width of the stream.
    """

    name: ClassVar[str] = "ablations"
    tensor: ClassVar[str] = "ablations"

    layer: int
    width: int

    @property
    @override
    def size(self) -> int:
        return 3 * self.width

    @override
    def draw(self, n: int, generator: torch.Generator) -> Float[Tensor, "n s"]:
        """Draw directions uniform on the sphere, to be taken away about the origin."""
        unit = torch.nn.functional.normalize(torch.randn(n, self.width, generator=generator), dim=1)
        return torch.cat([unit, unit, torch.zeros_like(unit)], 1)

    @override
    def unit(self, median_norm: float, taken: Callable[[Sequence[str]], list[float]]) -> float:
        """Return 1: at that radius the direction is gone."""
        return 1.0

    @override
    def scaled(self, directions: Float[Tensor, "n s"], radius: Any) -> Float[Tensor, "n s"]:
        read, write, about = directions.split(self.width, dim=1)
        return torch.cat([read, write * radius, about], 1)

    @override
    def normalised(self, theta: Float[Tensor, "n s"]) -> Float[Tensor, "n s"]:
        """Scale what is taken away so that nothing is left of what is looked for."""
        read, write, about = theta.split(self.width, dim=1)
        return torch.cat([read, write / (read * write).sum(1, keepdim=True), about], 1)

    @override
    @contextmanager
    def changing(
        self,
        lm: LanguageModel,
        theta: Float[Tensor, "n s"],
        items: Sequence[int],
        at: At = everywhere,
    ) -> Iterator[Keep]:
        rows = [theta]

        def hook(module: nn.Module, args: Any, output: Any) -> Any:
            stream = stream_out(output)
            own = rows[0].to(stream)[:, None, None]
            read, write, about = own.split(self.width, dim=-1)
            apart = stream.unflatten(0, (len(own), -1))
            along = ((apart - about) * read).sum(-1, keepdim=True)
            return with_stream(output, (apart - along * write).flatten(0, 1))

        def keep(items: Tensor) -> None:
            rows[0] = rows[0][items.to(rows[0].device)]

        with hooked([lm.blocks[self.layer].register_forward_hook(hook)]):
            yield keep
