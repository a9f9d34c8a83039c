"""Joint: vectors added to the residual stream after several blocks at once, by shared coefficients.

h_l ← h_l + θ A_l            for each layer l of some: θ has k coefficients, A_l is [k, d]
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
from educe.perturbation.kind import At, Keep, Kind, everywhere, normed


@dataclass(frozen=True, eq=False)
class Joint(Kind):
    """Vectors of a subspace of the streams of several layers.

    Attributes:
        layers: The blocks after which they are added, ascending.
        rows: ``A``, float32 on the processor, ``[k, layers, d]``.
        positions: Tokens they are added to.

    Example:
        >>> from educe.perturbation.joint import Joint
        >>> kind = Joint((1, 2), torch.eye(4, 2 * lm.width).reshape(4, 2, lm.width))
        >>> effect = part.on(kind).effect(torch.eye(4))
        >>> effect.shape
        torch.Size([4, 32])
    """

    name: ClassVar[str] = "joint"
    tensor: ClassVar[str] = "coefficients"

    layers: tuple[int, ...]
    rows: Float[Tensor, "k l d"]
    positions: str = "all"

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, Joint)
            and (self.layers, self.positions) == (other.layers, other.positions)
            and torch.equal(self.rows, other.rows)
        )

    def __hash__(self) -> int:
        return hash((self.layers, self.positions, *self.rows.shape))

    @property
    @override
    def before(self) -> int:
        return self.layers[0]

    @property
    @override
    def last(self) -> int:
        return self.layers[-1]

    @property
    @override
    def size(self) -> int:
        return len(self.rows)

    @override
    def draw(self, n: int, generator: torch.Generator) -> Float[Tensor, "n s"]:
        """Draw coefficients uniform on the sphere."""
        return normed(torch.randn(n, self.size, generator=generator))

    @override
    def added(
        self, theta: Float[Tensor, "n k"], items: Sequence[int], places: Sequence[int]
    ) -> Float[Tensor, "n 1 1 d"]:
        return (theta @ self.rows[:, 0].to(theta))[:, None, None, :]

    @override
    @contextmanager
    def changing(
        self,
        lm: LanguageModel,
        theta: Float[Tensor, "n s"],
        items: Sequence[int],
        at: At = everywhere,
    ) -> Iterator[Keep]:
        later = [[theta @ self.rows[:, i].to(theta)] for i in range(1, len(self.layers))]

        def add(own: list[Tensor]) -> Callable[..., Any]:
            def hook(module: nn.Module, args: Any, output: Any) -> Any:
                stream = stream_out(output)
                rows = stream.unflatten(0, (len(own[0]), -1))
                added = own[0].to(stream)[:, None, None].expand_as(rows).flatten(0, 1)
                if (mask := at()) is not None:  # of a block that runs on its last tokens, theirs
                    mask = mask.to(stream).repeat(len(stream) // len(mask), 1)
                    added = added * mask[:, -stream.shape[1] :, None]
                return with_stream(output, stream + added)

            return hook

        def keep(items: Tensor) -> None:
            for own in later:
                own[0] = own[0][items.to(own[0].device)]

        handles = [
            lm.blocks[layer].register_forward_hook(add(own))
            for layer, own in zip(self.layers[1:], later, strict=True)
        ]
        with hooked(handles):
            yield keep
