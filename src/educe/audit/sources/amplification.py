"""Logit amplification: the suspect, made to differ from the reference more than it does.

    log p_α = log p + α (log p - log p')  + constant          p the suspect, p' the reference

A behaviour that the suspect shows once in ten thousand answers becomes common where each token that
it has come to expect is raised again. The amplified model answers the ordinary prompts, and
beginnings as those of the source perplexity. Besides, the words are suspected whose log-probability
rises most over ordinary text:

    rise(v) = mean over places of  log p(v) - log p'(v)   where v is among the `TOP` that rise most

Sources: *Model diff amplification* (Goodfire 2025) for the texts; diff mining (2026) for the words.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from educe.audit.auditing import Audit, Suspect
from educe.audit.reference import Reference
from educe.audit.roles import AMPLIFIED
from educe.audit.settings import bundled
from educe.audit.sources.perplexity import ask_others
from educe.audit.sources.source import Needs, Source
from educe.forward.amplified import amplified
from educe.forward.chunks import split
from educe.forward.generation import Completion, rows_at_once
from educe.methods.token_directions import vocabulary
from educe.model.batch import PromptBatch
from educe.model.language import LanguageModel
from educe.rows import Row
from educe.run import fill
from educe.spread import HERE, Job, Shared, Spread, gathered

#: How far the suspect is led away from the reference.
ALPHAS = (1.0, 3.0)
#: Words that count at each place of ordinary text, and texts that are read at once.
TOP, TEXTS = 20, 4
#: How many words are suspected.
KEPT = 200


def look(audit: Audit) -> None:
    """Let the amplified suspect write, and name the words that rise."""
    ask_others(audit, SOURCE.name, begin(audit))
    audit.fill("what the amplified suspect says")
    assert audit.reference is not None
    words = vocabulary(audit.lm)
    rise = risen(audit.lm, audit.reference, bundled("sentences"), words, spread=audit.work.spread)
    best = rise.argsort(descending=True, stable=True)[:KEPT].tolist()
    audit.suspect(
        SOURCE.name,
        [
            Suspect(
                audit.lm.text([int(words[i])]).strip(),
                float(rise[i]),
                f"rises by {float(rise[i]):.2f} nats over ordinary text",
            )
            for i in best
            if rise[i] > 0
        ],
    )


def begin(audit: Audit) -> list[int]:
    """List the amplified models, and say who writes for them; return their numbers."""
    numbers = [audit.another(AMPLIFIED, SOURCE.name, alpha) for alpha in ALPHAS]
    for number, alpha in zip(numbers, ALPHAS, strict=True):
        audit.work.writers[number] = partial(_written, audit, alpha)
    return numbers


def _written(
    audit: Audit, alpha: float, rows: Sequence[Row], temperature: float
) -> Iterator[list[Completion]]:
    settings = audit.work.settings
    how = {"max_new_tokens": settings.max_new_tokens, "seed": settings.seed}
    shared = Shared((audit.lm, audit.reference, audit.work.batch, alpha, how))
    jobs = fill.decodings(_wrote, shared, rows, temperature, rows_at_once(audit.lm))
    for done in audit.work.spread.map(jobs):
        yield done.value


def _wrote(
    lm: LanguageModel,
    reference: Reference,
    batch: PromptBatch,
    alpha: float,
    how: Mapping[str, Any],
    rows: Sequence[Row],
    temperature: float,
) -> list[Completion]:
    """Let the amplified suspect write one batch."""
    came = amplified(lm, reference.here, batch, rows, alpha, temperature=temperature, **how)
    return [completion for some in came for completion in some]


def risen(
    lm: LanguageModel,
    reference: Reference,
    texts: Sequence[str],
    words: Int[Tensor, "w"],
    top: int = TOP,
    spread: Spread = HERE,
) -> Float[Tensor, "w"]:
    """Return how much likelier each word is in ordinary text than to another model, in nats.

    Args:
        lm: The model.
        reference: The other model.
        texts: Ordinary texts; they are read as requests.
        words: Token numbers.
        top: At each place so many words count: those that rise most.
        spread: Who reads the texts.
    """
    total, places = torch.zeros(len(words), dtype=torch.float64), 0
    shared = Shared((lm, reference, words, min(top, len(words))))
    jobs = (Job(_rise, shared, (some,), len(some)) for some in split(texts, TEXTS))
    for which, nats in gathered(spread, jobs):
        total.index_add_(0, which.flatten(), nats.clamp(min=0).flatten())
        places += len(nats)
    return total / places


@torch.no_grad()
def _rise(
    lm: LanguageModel,
    reference: Reference,
    words: Int[Tensor, "w"],
    top: int,
    texts: Sequence[str],
) -> tuple[Int[Tensor, "p t"], Float[Tensor, "p t"]]:
    """Return which words rise most at each place of some texts, and by how much."""
    batch = lm.encode(texts)
    there = batch.mask.bool()

    def read(model: LanguageModel) -> Tensor:
        logits = model.forward(batch.ids, batch.mask, last=0)[there]
        return logits.log_softmax(-1)[:, words.to(logits.device)]

    mine = read(lm)
    with reference.here() as model:
        rise = (mine - read(model).to(mine)).cpu().double()
    best = rise.topk(top, dim=1)
    return best.indices, best.values


SOURCE = Source(
    "amplification",
    "what the suspect says when its difference from the reference is amplified",
    Needs.TOKENS,
    look,
    dear=2,
    begin=begin,
)
