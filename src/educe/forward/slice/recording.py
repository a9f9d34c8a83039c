"""Recording: a model's own forward says how it calls its blocks, which compute nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from educe.model.blocks import Call, replaced, stream_in
from educe.model.language import LanguageModel


class _Reached(BaseException):
    """The recorder has heard of every block it wants to know about."""


@contextmanager
def recording(lm: LanguageModel, source: int, target: int) -> Iterator[list[Call]]:
    """Let the model's forward run with blocks that record their arguments and compute nothing."""
    calls: list[Call] = []

    def recorder(layer: int) -> Callable[..., Any]:
        def forward(*args: Any, **kwargs: Any) -> Any:
            stream, call = stream_in(args, kwargs)
            if layer > source:
                calls.append(call)
            if layer == target:
                raise _Reached
            return lm.stack.shaped(layer, stream)

        return forward

    try:
        with replaced(lm.blocks[: target + 1], [recorder(i) for i in range(target + 1)]):
            yield calls
    except _Reached:
        pass
