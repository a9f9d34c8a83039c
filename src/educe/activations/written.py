"""What the model writes, changed in several ways at one layer: all of them in one batch.

In every row a vector is added to the stream, or a direction is taken away from it, or neither:

    h ← h + v - ⟨h - a, r⟩ w          with v = 0, or with w = 0

A step of generation costs hardly more for ten rows than for one: the weights are read once.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn
from typing_extensions import override

from educe.activations.project import Ablation
from educe.blocks import stream_out, with_stream
from educe.forward.generation import generate
from educe.kinds.kind import Keep
from educe.kinds.vectors import AfterBlock
from educe.model import LanguageModel
from educe.rendering import PromptBatch
from educe.rows import Row


@dataclass(frozen=True)
class _Changes(AfterBlock):
    """Of every row ``v``, ``r``, ``w`` and ``a``, one after the other."""

    name: ClassVar[str] = "changes"

    layer: int
    width: int
    positions: str

    @property
    @override
    def size(self) -> int:
        return 4 * self.width

    @override
    def added(
        self, theta: Float[Tensor, "n s"], items: Sequence[int], places: Sequence[int]
    ) -> Float[Tensor, "n 1 1 d"]:
        return theta[:, None, None, : self.width]

    @override
    @contextmanager
    def changing(
        self, lm: LanguageModel, theta: Float[Tensor, "n s"], items: Sequence[int]
    ) -> Iterator[Keep]:
        rows = [theta[:, None, self.width :]]

        def hook(module: nn.Module, args: Any, output: Any) -> Any:
            stream = stream_out(output)
            read, write, about = rows[0].to(stream).split(self.width, dim=-1)
            along = ((stream - about) * read).sum(-1, keepdim=True)
            return with_stream(output, stream - along * write)

        def keep(items: Tensor) -> None:
            rows[0] = rows[0][items.to(rows[0].device)]

        handle = lm.blocks[self.layer].register_forward_hook(hook)
        try:
            yield keep
        finally:
            handle.remove()


def written(
    lm: LanguageModel,
    prompts: PromptBatch,
    layer: int,
    changes: Sequence[Float[Tensor, "1 d"] | Ablation | None],
    *,
    positions: str,
    limit: int,
) -> list[str]:
    """Return what the model writes to the first prompt under each change.

    Args:
        lm: The model.
        prompts: Prompts.
        layer: After which it is changed.
        changes: Vectors that are added; ablations of one direction, which act at all tokens; or
            None for the model as it is.
        positions: Tokens to which vectors are added.
        limit: The most tokens that are written.
    """
    zero = torch.zeros(lm.width)

    def theta(change: Tensor | Ablation | None) -> Tensor:
        vector, read, write, about = zero, zero, zero, zero
        if isinstance(change, Ablation):
            (read,), (write,), about = change.read, change.write, change.about
        elif change is not None:
            (vector,) = change
        return torch.cat([part.detach().cpu().double() for part in (vector, read, write, about)])

    kind = _Changes(layer, lm.width, positions)
    rows = [Row(i + 1, 0) for i in range(len(changes))]
    made = torch.stack([theta(change) for change in changes])
    texts = {
        done.row.perturbation: done.text
        for batch in generate(lm, prompts, rows, made, kind=kind, max_new_tokens=limit)
        for done in batch
    }
    return [texts[i + 1] for i in range(len(changes))]
