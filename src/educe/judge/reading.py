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
from transformers import DynamicCache

from educe.forward.generation import Completion
from educe.model import LanguageModel
from educe.rendering import PromptBatch

#: Completions read together; their logits over the vocabulary are the memory that counts.
ROWS_PER_BATCH = 32


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
    for prompt in sorted({c.row.prompt for c in completions}):
        ids, mask = batch.ids[prompt : prompt + 1], batch.mask[prompt : prompt + 1]
        ids, mask = ids[:, mask[0].bool()], mask[:, mask[0].bool()]
        mine = [c for c in completions if c.row.prompt == prompt]
        # Of similar length together: less padding.
        mine.sort(key=lambda c: len(c.tokens))
        for at in range(0, len(mine), ROWS_PER_BATCH):
            yield _read(lm, ids, mask, mine[at : at + ROWS_PER_BATCH], layer)


def _read(
    lm: LanguageModel,
    ids: torch.Tensor,
    mask: torch.Tensor,
    completions: list[Completion],
    layer: int,
) -> list[Reading]:
    nothing = np.zeros(lm.width, np.float32)
    longest = max(len(c.tokens) for c in completions)
    if longest == 0:
        return [Reading(c, 0.0, nothing) for c in completions]
    rows = len(completions)
    written = torch.zeros(rows, longest, dtype=torch.long)
    there = torch.zeros(rows, longest, dtype=torch.long)
    for line, completion in enumerate(completions):
        written[line, : len(completion.tokens)] = torch.tensor(completion.tokens)
        there[line, : len(completion.tokens)] = 1
    written, there = written.to(ids.device), there.to(ids.device)

    cache = DynamicCache(config=lm.unwrapped.config)
    first = lm.forward(ids, mask, cache=cache)
    for held in cache.layers:
        held.reorder_cache(torch.zeros(rows, dtype=torch.long, device=ids.device))
    with lm.watching([layer]) as streams:
        rest = lm.forward(
            written, torch.cat([mask.expand(rows, -1), there], 1), cache=cache, last=0
        )
    logits = torch.cat([first.expand(rows, -1, -1), rest[:, :-1]], 1).float()
    said = logits.gather(-1, written[..., None])[..., 0] - logits.logsumexp(-1)
    counts = there.sum(1)
    mean = (said * there).sum(1) / counts.clamp(min=1)
    stream = streams[layer].float() * there[..., None].to(streams[layer].device)
    pooled = stream.sum(1) / counts.clamp(min=1)[:, None].to(stream.device)
    return [
        Reading(c, float(lp), e)
        for c, lp, e in zip(completions, mean, pooled.cpu().numpy(), strict=True)
    ]
