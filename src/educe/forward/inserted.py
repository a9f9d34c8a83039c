"""Many strings put into one place of a prompt: what stands before it runs once for all of them.

    [ before | string | after | what follows ]
      cached   read for every string

What is read of each is the log-probabilities at its last tokens: of the first token of an answer,
or of every token of a text that is forced behind it.

`Opening.glance` is for very many strings, and nearly as good. Of what stands behind the string only
the last token is read anew, and the others stay what they are behind some other string: what a
string does to the answer's first token directly is counted, what it does by way of the template's
tokens is not. Measured on the trigger that comes with the package, over 200 words and six prompts:
the divergences that it gives correlate with the exact ones at 0.95 to 0.999.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import DynamicCache, DynamicLayer

from educe.errors import PromptError
from educe.forward.chunks import Chunker, halved, split
from educe.forward.continuations import Cached
from educe.model.batch import PromptBatch
from educe.model.language import LanguageModel

#: Strings that are read at once, at most: logits over a vocabulary weigh more than what they are
#: computed from.
ROWS = 256


class Inserted(NamedTuple):
    """What a model makes of some strings.

    Attributes:
        items: Which these are.
        logprobs: Log-probabilities of every token at the last positions.
    """

    items: Sequence[int]
    logprobs: Float[Tensor, "r m v"]


class Opening:
    """A place in a prompt into which strings are put: behind the person's message, or before it.

    A space stands between both, as `tokens` and what follows the place have it.

    Args:
        lm: The model.
        batch: The prompts.
        prompt: Which of them.
        first: Whether the place is before the message and not behind it.

    Raises:
        PromptError: The message cannot be found among the prompt's tokens.

    Example:
        >>> from educe.forward.inserted import Opening
        >>> place = Opening(lm, part.batch, 0)
        >>> (read,) = place.read(torch.tensor([[5], [6], [7]]))
        >>> read.logprobs.shape[:2]
        torch.Size([3, 1])
    """

    def __init__(
        self, lm: LanguageModel, batch: PromptBatch, prompt: int, *, first: bool = False
    ) -> None:
        span, ids = batch.spans[prompt], batch.read[prompt]
        if span.start == span.stop:
            raise PromptError(
                f"the person's message cannot be found in prompt {prompt + 1} as {lm.name} reads "
                "it: nothing can be put before or behind it"
            )
        at = span.start if first else span.stop
        self.lm, self.first, self.before, self.after = lm, first, Cached(lm, ids[:at]), ids[at:]
        if first:
            message = lm.text(ids[span.start : span.stop])
            self.after = (*lm.tokens(f" {message}", templated=True), *ids[span.stop :])

    def tokens(self, string: str) -> tuple[int, ...]:
        """Return a string as it stands there; an empty one has none."""
        text = string if self.first else f" {string}"
        return tuple(self.lm.tokens(text, templated=True)) if string else ()

    @torch.no_grad()
    def read(self, strings: Int[Tensor, "n k"], follows: Sequence[int] = ()) -> Iterator[Inserted]:
        """Read strings of one length, a batch at a time.

        Args:
            strings: Their tokens.
            follows: Tokens that are forced as the answer: log-probabilities are returned at each
                of them; without, at the first token of the answer.
        """
        lm, n = self.lm, len(strings)
        behind = torch.tensor([*self.after, *follows[:-1]], device=lm.device)
        last = max(1, len(follows))
        tokens = strings.shape[1] + len(behind)

        def run(items: Sequence[int]) -> Inserted:
            own = strings[list(items)].to(lm.device)
            ids = torch.cat([own, behind.expand(len(own), -1)], 1)
            mask = ids.new_ones(len(own), len(self.before.ids) + ids.shape[1])
            logits = lm.forward(ids, mask, cache=self.before.for_rows(len(own)), last=last)
            return Inserted(items, logits.float().log_softmax(-1))

        yield from _in_chunks(
            n, max(1, min(Chunker.of(lm.device).most // tokens, ROWS // last)), run
        )

    @torch.no_grad()
    def glance(
        self, strings: Int[Tensor, "n k"], typical: Int[Tensor, "k"] | None = None
    ) -> Iterator[Inserted]:
        """Read the first token of the answer behind strings of one length, nearly and at less cost.

        Where the model's cache is more than keys and values of every token, they are read in full.

        Args:
            strings: Their tokens.
            typical: The string that stands in for all others, behind which the template's tokens
                are what they are; by default the first.
        """
        lm, at, between = self.lm, len(self.before.ids), self.after[:-1]
        typical = strings[0] if typical is None else typical
        ids = torch.tensor([[*typical.tolist(), *between]], device=lm.device)
        cache = self.before.for_rows(1) or DynamicCache(config=lm.unwrapped.config)
        if not between or any(type(layer) is not DynamicLayer for layer in cache.layers):
            yield from self.read(strings)
            return
        lm.forward(ids, ids.new_ones(1, at + ids.shape[1]), cache=cache)
        first = at + strings.shape[1]
        kept = [(own.keys[:, :, first:], own.values[:, :, first:]) for own in cache.layers]

        def run(items: Sequence[int]) -> Inserted:
            own = strings[list(items)].to(lm.device)
            rows = len(own)
            cache = self.before.for_rows(rows) or DynamicCache(config=lm.unwrapped.config)
            lm.forward(own, own.new_ones(rows, first), cache=cache)
            for layer, (keys, values) in zip(cache.layers, kept, strict=True):
                layer.keys = torch.cat([layer.keys, keys.expand(rows, -1, -1, -1)], 2)
                layer.values = torch.cat([layer.values, values.expand(rows, -1, -1, -1)], 2)
            last = own.new_full((rows, 1), self.after[-1])
            mask = own.new_ones(rows, first + len(self.after))
            logits = lm.forward(last, mask, cache=cache)
            return Inserted(items, logits.float().log_softmax(-1))

        yield from _in_chunks(len(strings), ROWS, run)


def by_length(strings: Sequence[Sequence[int]], most: int) -> list[list[int]]:
    """Return the places of strings of one length, at most so many at once, for each length."""
    found: dict[int, list[int]] = {}
    for i, own in enumerate(strings):
        found.setdefault(len(own), []).append(i)
    return [list(some) for own in found.values() for some in split(own, most)]


def _in_chunks(n: int, rows: int, run: Callable[[Sequence[int]], Inserted]) -> Iterator[Inserted]:
    for _, done in Chunker(rows).each(split(range(n), rows), run, len, halved):
        yield done
