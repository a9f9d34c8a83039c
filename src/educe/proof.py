"""The proof at loading: educe's hold on a model is right, or the model is refused."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from transformers import DynamicCache

from educe.blocks import stream_in
from educe.errors import ModelError, as_model_error


class Held(Protocol):
    """What the proof needs of a model that educe has its hold on: `LanguageModel` has it."""

    name: str

    @property
    def unwrapped(self) -> Any: ...  # noqa: D102

    @property
    def blocks(self) -> list[nn.Module]: ...  # noqa: D102

    @property
    def depth(self) -> int: ...  # noqa: D102

    @property
    def width(self) -> int: ...  # noqa: D102

    def forward(  # noqa: D102
        self, ids: Tensor, mask: Tensor, *, cache: Any = None, last: int = 1
    ) -> Tensor: ...

    def adding(  # noqa: D102
        self, layer: int, value: Callable[[Tensor], Tensor]
    ) -> AbstractContextManager[Any]: ...


def prove(lm: Held, ids: Tensor) -> None:
    """Show that hooks on the blocks act on the residual stream, and on nothing else.

    Show too that padding on the left and decoding with a cache, as `educe.generate` does, give
    the model's own logits: an architecture that ignores either would write other text.
    """
    mask = torch.ones_like(ids)
    plain = lm.forward(ids, mask)
    draw = torch.Generator().manual_seed(0)
    for layer in sorted({0, lm.depth // 2, lm.depth - 2} & set(range(lm.depth - 1))):
        moved: list[Tensor] = []

        def note(module: nn.Module, args: Any, kwargs: Any, into: Any = moved) -> None:
            into.append(stream_in(args, kwargs)[0])

        handle = lm.blocks[layer + 1].register_forward_pre_hook(note, with_kwargs=True)
        try:
            with lm.adding(layer, torch.zeros_like):
                zero = lm.forward(ids, mask)
            step = torch.randn(lm.width, generator=draw).to(moved[0]) * moved[0].std()
            with lm.adding(layer, step.expand_as):
                lm.forward(ids, mask)
        finally:
            handle.remove()
        if not torch.allclose(zero, plain, rtol=1e-4, atol=1e-4 * float(plain.abs().max())):
            raise ModelError(f"{lm.name}: adding zero after block {layer} changes the logits")
        if not torch.allclose(moved[0] + step, moved[1]):
            raise ModelError(
                f"{lm.name}: adding a vector after block {layer} does not move the residual "
                "stream by that vector; educe cannot perturb this architecture"
            )
    padded, ones = torch.cat([ids[:, :2], ids], 1), torch.cat([0 * mask[:, :2], mask], 1)
    with as_model_error(f"{lm.name} for decoding with a cache"):
        cache = DynamicCache(config=lm.unwrapped.config)
        lm.forward(padded[:, :-1], ones[:, :-1], cache=cache)
        decoded = lm.forward(padded[:, -1:], ones, cache=cache)
    # A model that forgets what came before is off by more than its logits vary; rounding in
    # half precision, with experts that flip, stays far below.
    if (decoded - plain).float().norm() > 0.3 * (plain - plain.mean()).float().norm():
        raise ModelError(
            f"{lm.name}: padding on the left or decoding with a cache changes the logits; "
            "educe cannot generate with this architecture"
        )
