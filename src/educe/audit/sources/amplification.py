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

from collections.abc import Iterator, Sequence
from functools import partial

import torch
from jaxtyping import Float, Int
from torch import Tensor

from educe.audit.auditing import Audit, Suspect
from educe.audit.roles import AMPLIFIED
from educe.audit.settings import bundled
from educe.audit.sources.perplexity import ask_others
from educe.audit.sources.source import Needs, Source
from educe.forward.amplified import Here, amplified
from educe.forward.generation import Completion
from educe.methods.token_directions import vocabulary
from educe.model.language import LanguageModel
from educe.rows import Row

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
    rise = risen(audit.lm, audit.reference.here, bundled("sentences"), words)
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
    assert audit.reference is not None
    settings = audit.work.settings
    yield from amplified(
        audit.lm,
        audit.reference.here,
        audit.work.batch,
        rows,
        alpha,
        temperature=temperature,
        max_new_tokens=settings.max_new_tokens,
        seed=settings.seed,
    )


@torch.no_grad()
def risen(
    lm: LanguageModel, other: Here, texts: Sequence[str], words: Int[Tensor, "w"], top: int = TOP
) -> Float[Tensor, "w"]:
    """Return how much likelier each word is in ordinary text than to another model, in nats.

    Args:
        lm: The model.
        other: Makes the other model be there.
        texts: Ordinary texts; they are read as requests.
        words: Token numbers.
        top: At each place so many words count: those that rise most.
    """
    total, places = torch.zeros(len(words), dtype=torch.float64), 0
    for first in range(0, len(texts), TEXTS):
        batch = lm.encode(texts[first : first + TEXTS])
        there = batch.mask.bool()

        def read(model: LanguageModel) -> Tensor:
            logits = model.forward(batch.ids, batch.mask, last=0)[there]  # noqa: B023
            return logits.log_softmax(-1)[:, words.to(logits.device)]

        mine = read(lm)
        with other() as model:
            rise = (mine - read(model).to(mine)).cpu().double()
        best = rise.topk(min(top, len(words)), dim=1)
        total.index_add_(0, best.indices.flatten(), best.values.clamp(min=0).flatten())
        places += len(rise)
    return total / places


SOURCE = Source(
    "amplification",
    "what the suspect says when its difference from the reference is amplified",
    Needs.TOKENS,
    look,
    dear=2,
    begin=begin,
)
