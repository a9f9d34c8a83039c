"""Decoding: rows are written token by token, whatever their next logits come from.

    token = argmax z,   or   F⁻¹(u)  with  F the cumulated softmax of z / temperature

`u` is drawn for each row and place from the seed and the row alone, so that a row is written alike
beside any others. Rows that ended leave the batch.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from educe.model.language import LanguageModel
from educe.rows import COMMON, Row

#: Takes the tokens written last, and which rows go on where some leave; returns the next logits.
Step = Callable[[Tensor, Tensor | None], Tensor]
#: Is told of the tokens of a row after each one; what it raises ends the writing.
Told = Callable[[Row, Sequence[int]], None]


class Written(NamedTuple):
    """What was written of a row."""

    tokens: list[int]  #: without the one that ended it
    logprobs: list[float]  #: of each, in nats, at temperature 1
    finished: bool  #: whether a token ended it


def decoded(
    rows: Sequence[Row],
    logits: Float[Tensor, "r v"],
    step: Step,
    ends: Collection[int],
    limit: int,
    temperature: float,
    seed: int,
    told: Told | None = None,
) -> list[Written]:
    """Write rows to their end, or to ``limit`` tokens.

    Args:
        rows: What each draws by.
        logits: Of the first token of each.
        step: Goes on.
        ends: Tokens that end a text.
        limit: The most tokens.
        temperature: 0 for the most likely token.
        seed: Of the draws.
        told: Is told of each token as it is written.
    """
    draws = _draws(seed, rows, limit) if temperature > 0 else None
    alive = torch.arange(len(rows))  # the rows that are still being written
    written = [Written([], [], False) for _ in rows]
    for place in range(limit):
        tokens = _choose(logits, temperature, None if draws is None else draws[alive, place])
        said = logits.gather(1, tokens[:, None])[:, 0].float() - logits.float().logsumexp(1)
        for line, token, nats in zip(alive.tolist(), tokens.tolist(), said.tolist(), strict=True):
            if written[line].finished:
                continue
            if token in ends:
                written[line] = written[line]._replace(finished=True)
            else:
                written[line].tokens.append(token)
                written[line].logprobs.append(nats)
                if told:
                    told(rows[line], written[line].tokens)
        going = torch.tensor([not written[line].finished for line in alive.tolist()])
        if place + 1 == limit or not going.any():
            break
        keep = None
        if going.float().mean() <= 0.75:
            # Rows that ended leave a quarter at a time: each removal copies the cache.
            keep = going.nonzero()[:, 0]
            alive, tokens = alive[keep], tokens[keep.to(tokens.device)]
        logits = step(tokens, keep)
    return written


def kept(cache: Any, mask: Int[Tensor, "r t"], going: Int[Tensor, "k"]) -> Int[Tensor, "k t"]:
    """Leave some of the rows in a cache; return their mask."""
    going = going.to(mask.device)
    for layer in cache.layers:
        layer.reorder_cache(going)
    return mask[going]


def end_tokens(lm: LanguageModel) -> set[int]:
    """Return the tokens that end a text of a model."""
    ends: set[int] = set()
    for holder in (getattr(lm.unwrapped, "generation_config", None), lm.tokenizer):
        found = getattr(holder, "eos_token_id", None)
        ends.update([found] if isinstance(found, int) else found or [])
    return ends


def _choose(
    logits: Float[Tensor, "r v"], temperature: float, draw: Float[Tensor, "r"] | None
) -> Int[Tensor, "r"]:
    """Pick a token a row: the most likely, or the one at quantile ``draw`` of the softmax."""
    if draw is None:
        return logits.argmax(-1)
    # Below the largest, so that no temperature, however small, divides into infinity less infinity.
    below = logits.double() - logits.amax(-1, keepdim=True)
    shares = (below / temperature).softmax(-1).cumsum(-1)
    quantile = draw.to(shares)[:, None] * shares[:, -1:]
    return torch.searchsorted(shares, quantile, right=True)[:, 0].clamp(max=logits.shape[1] - 1)


def _draws(seed: int, rows: Sequence[Row], limit: int) -> Float[Tensor, "r s"]:
    """Draw uniform numbers for each row from a stream of its own, or of all perturbations."""
    lines = []
    for row in rows:
        own_row = row._replace(perturbation=-1) if row.phase == COMMON else row
        digest = hashlib.blake2b(f"{seed}:{tuple(own_row)}".encode(), digest_size=7).digest()
        own = torch.Generator().manual_seed(int.from_bytes(digest, "big"))
        lines.append(torch.rand(limit, generator=own, dtype=torch.float64))
    return torch.stack(lines)
