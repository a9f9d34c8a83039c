"""Reading: what the unperturbed model makes of a completion.

One pass over prompt and completion gives two things that other judges stand on: the mean
log-likelihood of its tokens, and an embedding, the mean of the residual stream over them. The
prompt is read once, whatever the number of its completions.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch

from educe.forward.forced import continued
from educe.forward.generation import Completion
from educe.model import LanguageModel
from educe.rendering import PromptBatch


class Reading(NamedTuple):
    """What the unperturbed model makes of one completion."""

    completion: Completion
    logprob: float  #: mean log-likelihood a token, in nats; 0 for an empty completion
    embedding: np.ndarray  #: mean residual stream over the tokens, ``[width]``; 0 when empty


def read(
    lm: LanguageModel, batch: PromptBatch, completions: Sequence[Completion], *, layer: int
) -> Iterator[list[Reading]]:
    """Read completions with the unperturbed model, one list a batch.

    Args:
        lm: The model.
        batch: The prompts that the completions answer.
        completions: What to read.
        layer: The layer whose stream is the embedding.
    """
    nothing = np.zeros(lm.width, np.float32)
    empty = [Reading(c, 0.0, nothing) for c in completions if not c.tokens]
    if empty:
        yield empty
    said = [c for c in completions if c.tokens]
    prompts, tokens = [c.row.prompt for c in said], [c.tokens for c in said]
    for some in continued(lm, batch, prompts, tokens, layer=layer):
        own = [said[i] for i in some.items]
        count = torch.tensor([len(c.tokens) for c in own])
        logprob = some.logprobs.sum(1).cpu() / count
        embedding = some.stream.sum(1).cpu() / count[:, None]
        yield [
            Reading(c, float(lp), e)
            for c, lp, e in zip(own, logprob, embedding.numpy(), strict=True)
        ]
