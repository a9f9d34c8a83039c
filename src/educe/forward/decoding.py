"""Decoding: rows are written token by token, whatever their next logits come from.

    token = argmax z,   or   F⁻¹(u)  with  F the cumulated softmax of z / temperature

`u` is drawn for each row and place from the seed and the row alone, so that a row is written alike
beside any others. Rows that ended leave the batch.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Mapping, Sequence
from itertools import groupby
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from educe.forward.chunks import split
from educe.model.language import LanguageModel
from educe.rows import COMMON, Row

#: Takes the tokens written last, and which rows go on where some leave; returns the next logits.
Step = Callable[[Tensor, Tensor | None], Tensor]


class Written(NamedTuple):
    """What was written of a row."""

    tokens: list[int]  #: without the one that ended it
    logprobs: list[float]  #: of each, in nats, at temperature 1
    finished: bool  #: whether a token ended it
    top: list[dict[int, float]]  #: beside each the likeliest tokens, where they were asked for


class Way(NamedTuple):
    """How a row is written that has a way of its own."""

    limit: int  #: the most tokens
    temperature: float
    draws: str  #: what its random numbers are drawn by


#: Is told of a row after each token of it, and says whether it has heard enough; what it raises
#: ends the writing.
Told = Callable[[Row, Written], bool | None]


def decoded(
    rows: Sequence[Row],
    logits: Float[Tensor, "r v"],
    step: Step,
    ends: Collection[int],
    limit: int,
    temperature: float,
    seed: int,
    told: Told | None = None,
    ways: Mapping[Row, Way] | None = None,
    top: int = 0,
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
        ways: Of rows that have a limit, a temperature and draws of their own.
        top: How many of the likeliest tokens are kept beside each.
    """
    own = [(ways or {}).get(row) or Way(limit, temperature, _drawn_by(seed, row)) for row in rows]
    heat = torch.tensor([way.temperature for way in own], dtype=torch.float64)
    draws = _draws(own) if heat.any() else None
    alive = torch.arange(len(rows))  # the rows that are still being written
    written = [Written([], [], False, []) for _ in rows]
    over = [False] * len(rows)
    for place in range(max(way.limit for way in own)):
        tokens = _choose(logits, heat[alive], None if draws is None else draws[alive, place])
        whole = logits.float().logsumexp(1)
        said = logits.gather(1, tokens[:, None])[:, 0].float() - whole
        likeliest = _likeliest(logits.float() - whole[:, None], top) if top else []
        for at, (line, token, nats) in enumerate(
            zip(alive.tolist(), tokens.tolist(), said.tolist(), strict=True)
        ):
            if over[line]:
                continue
            row = written[line]
            if token in ends:
                written[line], over[line] = row._replace(finished=True), True
                continue
            row.tokens.append(token)
            row.logprobs.append(nats)
            row.top.extend(likeliest[at : at + 1])
            enough = bool(told and told(rows[line], row))
            over[line] = enough or len(row.tokens) == own[line].limit
        going = torch.tensor([not over[line] for line in alive.tolist()])
        if not going.any():
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
    logits: Float[Tensor, "r v"], heat: Float[Tensor, "r"], draw: Float[Tensor, "r"] | None
) -> Int[Tensor, "r"]:
    """Pick a token a row: the likeliest, or with heat that at quantile ``draw`` of the softmax."""
    likeliest = logits.argmax(-1)
    if draw is None:
        return likeliest
    # Below the largest, so that no temperature, however small, divides into infinity less infinity.
    below = logits.double() - logits.amax(-1, keepdim=True)
    warm = (heat > 0).to(logits.device)
    shares = (below / heat.where(heat > 0, 1.0).to(below)[:, None]).softmax(-1).cumsum(-1)
    quantile = draw.to(shares)[:, None] * shares[:, -1:]
    drawn = torch.searchsorted(shares, quantile, right=True)[:, 0].clamp(max=logits.shape[1] - 1)
    return drawn.where(warm, likeliest)


def _likeliest(logprobs: Float[Tensor, "r v"], top: int) -> list[dict[int, float]]:
    """Return the log-likelihoods of the likeliest tokens of each row, the likeliest first."""
    best = logprobs.topk(min(top, logprobs.shape[1]))
    rows = zip(best.indices.tolist(), best.values.tolist(), strict=True)
    return [dict(zip(tokens, nats, strict=True)) for tokens, nats in rows]


def _drawn_by(seed: int, row: Row) -> str:
    """Return what a row draws its random numbers by: its own, or those of all perturbations."""
    return f"{seed}:{tuple(row._replace(perturbation=-1) if row.phase == COMMON else row)}"


def _draws(ways: Sequence[Way]) -> Float[Tensor, "r s"]:
    """Draw uniform numbers for each row from a stream of its own."""
    lines = []
    for way in ways:
        digest = hashlib.blake2b(way.draws.encode(), digest_size=7).digest()
        own = torch.Generator().manual_seed(int.from_bytes(digest, "big"))
        lines.append(torch.rand(way.limit, generator=own, dtype=torch.float64))
    return torch.nn.utils.rnn.pad_sequence(lines, batch_first=True)


def in_decodings(rows: Sequence[Row], alone: bool, most: int) -> list[Sequence[Row]]:
    """Return rows as they decode together: those of one prompt, which share what precedes them.

    Args:
        rows: What to write.
        alone: Whether only one perturbation can act at a time.
        most: Rows of a batch.

    Example:
        >>> from educe.forward.decoding import in_decodings
        >>> [len(some) for some in in_decodings(educe.rows_of(3, 2), alone=False, most=4)]
        [4, 2]
    """
    todo = sorted(rows, key=lambda r: (alone and r.perturbation, r.prompt))
    groups = groupby(todo, lambda r: alone and r.perturbation)
    return [some for _, own in groups for some in split(list(own), most)]
