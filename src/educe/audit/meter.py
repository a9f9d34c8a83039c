"""The meter: what a part of an audit costs, in passes, tokens and seconds.

A token counts as one when it went through every block of the model: a search that runs half of the
blocks pays half a token for each.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from educe.model.blocks import hooked
from educe.model.language import LanguageModel


class Meter:
    """Counts what some models compute.

    Attributes:
        spent: By part: ``passes`` (calls of a whole model), ``tokens`` and ``seconds``.
    """

    def __init__(self, *models: LanguageModel) -> None:
        self.models = {id(lm): lm for lm in models}.values()
        self.spent: dict[str, dict[str, float]] = {}

    @contextmanager
    def counting(self, part: str) -> Iterator[None]:
        """Count what is computed inside a ``with`` statement to a part."""
        own = self.spent.setdefault(part, {"passes": 0.0, "tokens": 0.0, "seconds": 0.0})

        def tokens(share: float) -> Any:
            def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
                stream = args[0] if args else next(iter(kwargs.values()))
                own["tokens"] += share * stream.shape[0] * stream.shape[1]

            return hook

        def passed(module: nn.Module, args: Any) -> None:
            own["passes"] += 1

        handles = []
        for lm in self.models:
            handles.append(lm.hf.register_forward_pre_hook(passed))
            for block in lm.blocks:
                # A block that hands on a known stream calls nothing inside: it costs nothing.
                inner = next(iter(block.children()), block)
                handles.append(
                    inner.register_forward_pre_hook(tokens(1 / lm.depth), with_kwargs=True)
                )
        began = time.monotonic()
        try:
            with hooked(handles):
                yield
        finally:
            own["seconds"] += time.monotonic() - began
