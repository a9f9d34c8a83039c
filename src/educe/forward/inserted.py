"""Many strings put into one place of a prompt: what stands before it runs once for all of them.

    [ before | string | after | what follows ]
      cached   read for every string

What is read of each is the log-probabilities at its last tokens: of the first token of an answer,
or of every token of a text that is forced behind it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from educe.errors import PromptError
from educe.forward.chunks import Chunker, halved, split
from educe.forward.forced import Cached
from educe.model.language import LanguageModel
from educe.model.rendering import PromptBatch


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
        self.lm, self.before, self.after = lm, Cached(lm, ids[:at]), ids[at:]

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

        # Logits over a vocabulary weigh more than what they are computed from.
        rows = max(1, min(Chunker.of(lm.device).most // tokens, 256 // last))
        for _, done in Chunker(rows).each(split(range(n), rows), run, len, halved):
            yield done
