"""Reading: how likely a completion is to the unperturbed model.

One pass over prompt and completion gives the mean log-likelihood of its tokens. The prompt is read
once, whatever the number of its completions.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch

from educe.forward.forced import continued
from educe.forward.generation import Completion
from educe.model.language import LanguageModel
from educe.model.rendering import PromptBatch


class Reading(NamedTuple):
    """What the unperturbed model makes of one completion."""

    completion: Completion
    logprob: float  #: mean log-likelihood a token, in nats; 0 for an empty completion


def read(
    lm: LanguageModel, batch: PromptBatch, completions: Sequence[Completion]
) -> Iterator[list[Reading]]:
    """Read completions with the unperturbed model, one list a batch.

    Args:
        lm: The model.
        batch: The prompts that the completions answer.
        completions: What to read.
    """
    empty = [Reading(c, 0.0) for c in completions if not c.tokens]
    if empty:
        yield empty
    said = [c for c in completions if c.tokens]
    prompts, tokens = [c.row.prompt for c in said], [c.tokens for c in said]
    for some in continued(lm, batch, prompts, tokens):
        own = [said[i] for i in some.items]
        logprob = some.logprobs.sum(1).cpu() / torch.tensor([len(c.tokens) for c in own])
        yield [Reading(c, float(lp)) for c, lp in zip(own, logprob, strict=True)]
