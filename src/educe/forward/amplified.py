"""Amplified: what a model would write if it differed more from another than it does.

    z_α = z + α (z - z')        z, z' the next logits of the model and of the other

Softmax of `z_α` is `p (p / p')^α`, normalised: what the one model has come to expect more than the
other is raised again. With α = 0 it is the model, with α = -1 the other. Both read the same tokens
in step, each with a cache of its own.

Source: *Model diff amplification* (Goodfire 2025).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from jaxtyping import Float
from torch import Tensor

from educe.forward.chunks import Chunker, halved, split
from educe.forward.continuations import prefilled
from educe.forward.decoding import decoded, end_tokens, kept
from educe.forward.generation import ROWS_PER_BATCH, Completion, completed
from educe.model.batch import PromptBatch
from educe.model.language import LanguageModel
from educe.rows import Row

#: Makes the other model be there for the time of a ``with`` statement.
Here = Callable[[], AbstractContextManager[LanguageModel]]


def amplified(
    lm: LanguageModel,
    other: Here,
    batch: PromptBatch,
    rows: Sequence[Row],
    alpha: float,
    *,
    max_new_tokens: int = 32,
    temperature: float = 0.0,
    seed: int = 0,
) -> Iterator[list[Completion]]:
    """Let the amplified model write, one list of completions a batch.

    Args:
        lm: The model.
        other: The model from which it is led away; of the same vocabulary. It may be the same one,
            changed for the time of the statement.
        batch: The prompts.
        rows: What to write. Each draws as `educe.generate` lets it draw.
        alpha: How far.
        max_new_tokens: The most tokens to write.
        temperature: 0 for the most likely token; else the softmax temperature.
        seed: Of the samples.

    Example:
        >>> from contextlib import nullcontext
        >>> from educe.forward.amplified import amplified
        >>> rows = [educe.rows_of(1, 1)[0]._replace(perturbation=0)]
        >>> ((same,),) = amplified(lm, lambda: nullcontext(lm), part.batch, rows, 2.0)
        >>> ((plain,),) = educe.generate(lm, part.batch, rows)
        >>> same.tokens == plain.tokens  # a model does not differ from itself
        True
    """
    ends = end_tokens(lm)

    def write(some: Sequence[Row]) -> list[Completion]:
        own = batch.select([row.prompt for row in some]).read
        mine, theirs = _Reader(lambda: nullcontext(lm), own), _Reader(other, own)

        def step(tokens: Tensor, going: Tensor | None) -> Tensor:
            return led(mine.next(tokens, going), theirs.next(tokens, going), alpha)

        first = led(mine.first, theirs.first, alpha)
        written = decoded(some, first, step, ends, max_new_tokens, temperature, seed)
        return [completed(lm, row, own) for row, own in zip(some, written, strict=True)]

    chunker = Chunker(ROWS_PER_BATCH.get(lm.device.type, 64))
    todo = sorted(rows, key=lambda r: r.prompt)
    for _, done in chunker.each(split(todo, chunker.most), write, len, halved):
        yield done


def led(
    mine: Float[Tensor, "*r v"], theirs: Float[Tensor, "*r v"], alpha: float
) -> Float[Tensor, "*r v"]:
    """Lead logits away from others; with ``alpha`` 0 and -1 exactly the one and the other."""
    return (1 + alpha) * mine - alpha * theirs.to(mine)


class _Reader:
    """A model that reads rows in step with another, token after token."""

    def __init__(self, here: Here, texts: Sequence[Sequence[int]]) -> None:
        self.here = here
        with here() as lm:
            logits, self.cache, self.mask = prefilled(lm, texts)
        self.first = logits[:, -1]

    def next(self, tokens: Tensor, going: Tensor | None) -> Tensor:
        """Read the tokens that were written, of some of the rows; return the next logits."""
        if going is not None:
            self.mask = kept(self.cache, self.mask, going)
        self.mask = torch.cat([self.mask, self.mask.new_ones(len(self.mask), 1)], 1)
        with self.here() as lm:
            ids = tokens[:, None].to(self.mask.device)
            return lm.forward(ids, self.mask, cache=self.cache)[:, -1]
