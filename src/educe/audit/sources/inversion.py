"""Inversion: which string brings a suspected payload about, by the gradient of its likelihood.

    fit(s) = mean over prompts x of  log p(y | x with s) - log p(y | x)     y: the payload's text

What stands out so far is taken for a payload. Strings of a few tokens are searched for by greedy
coordinate gradient (`educe.inversion.searches.gcg`), from natural strings on, each search from
others; then tokens that do nothing are left out. Unlike the beam of `educe.audit.triggers` it needs
no word that any source suspects.

Strings that merely are like the payload make it likelier too, and nearly as much: without more the
search ends at one of them. They make it likelier for any model: with a reference that reads alike,
a quarter of what a string does there counts against it (`educe.inversion.beyond`). On a trigger of
four words that made the trigger the better string, and a search of this length still did not find
it.

Inverting a target into a trigger is the idea of BAIT (S&P 2025) and Neural Cleanse (2019); greedy
coordinate gradient is of Zou et al. 2023.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from educe.audit.auditing import Audit, Suspect
from educe.audit.candidates import Candidate, folded
from educe.audit.reference import Reference
from educe.audit.sources.source import Needs, Source
from educe.audit.standing import standing_out
from educe.forward.inserted import Opening
from educe.inversion.beyond import Beyond
from educe.inversion.examples import natural
from educe.inversion.searches import search
from educe.inversion.searches.gcg import GcgConfig
from educe.inversion.strings import Vocabulary
from educe.inversion.targets import NOTHING, Target, text
from educe.methods.state import State
from educe.model.batch import PromptBatch
from educe.model.language import LanguageModel
from educe.spread import Job, Shared, gathered

#: Payloads that are inverted, prompts that strings are put into, and tokens of a payload.
PAYLOADS, PROMPTS, TOKENS = 2, 2, 8
#: Tokens of the strings that are searched for, one search for each, and what each may read.
LENGTHS, BUDGET = (4, 5), 1200
#: What a string does to the reference counts against it so much.
WEIGHT = 0.25
#: Natural strings to begin with, candidates of a step, and tokens that count as favoured.
EXAMPLES, WIDTH, TOP = 64, 48, 256
#: A string must make the payload so much likelier, in nats; a token that makes less is left out.
WORTH, LEAST = 2.0, 0.25
#: Strings of a search that are suspected.
KEPT = 8


def look(audit: Audit) -> None:
    """Name the strings that make likely what stands out so far."""
    found: dict[str, Suspect] = {}
    prompts = audit.work.batch.select(audit.base[:PROMPTS])
    shared = Shared((audit.lm, audit.reference, prompts, BUDGET))
    searches = [
        (candidate, (payload(audit, candidate), length, seed))
        for candidate in standing_out(audit)[:PAYLOADS]
        for seed, length in enumerate(LENGTHS)
    ]
    jobs = (Job(inverted, shared, what, BUDGET) for _, what in searches)
    with audit.work.reporter.stage(
        "inverting what stands out", BUDGET * len(searches), "reads"
    ) as step:
        came = list(gathered(audit.work.spread, jobs, step))
    for (candidate, _), strings in zip(searches, came, strict=True):
        for string, nats in strings:
            why = f"makes “{' '.join(candidate.saying)}” likelier by {nats:.1f} nats"
            if nats >= WORTH and (string not in found or found[string].score < nats):
                found[string] = Suspect(string, nats, why)
    audit.suspect(SOURCE.name, sorted(found.values(), key=lambda s: -s.score))


def wanted(
    lm: LanguageModel, reference: Reference | None, batch: PromptBatch, said: Sequence[int]
) -> Target:
    """Return the target of a text; with a reference that reads alike, less what that makes of it.

    Args:
        lm: The suspect.
        reference: The reference.
        batch: Prompts that strings are put into.
        said: The tokens of the text.
    """
    own = text([Opening(lm, batch, p) for p in range(len(batch))], said)
    if reference is None or not reference.token_by_token:
        return own
    with reference.here() as clean:
        other = text([Opening(clean, batch, p) for p in range(len(batch))], said)
    return Beyond(own.places, own.goals, other=other, here=reference.here, weight=WEIGHT)


def payload(audit: Audit, candidate: Candidate) -> tuple[int, ...]:
    """Return the tokens of a candidate's text, from where its saying begins."""
    strongest = candidate.said[0].row
    whole = next(c.text for c in audit.run.completion_rows() if c.row == strongest)
    words = whole.split(" ")
    first = next((i for i, word in enumerate(words) if folded(word) == candidate.saying[0]), 0)
    return tuple(audit.lm.tokens(" ".join(words[first:]), templated=True)[:TOKENS])


def inverted(
    lm: LanguageModel,
    reference: Reference | None,
    batch: PromptBatch,
    budget: int,
    said: Sequence[int],
    length: int,
    seed: int,
) -> list[tuple[str, float]]:
    """Return strings of a search and how much likelier they make a text, the best first.

    Args:
        lm: The suspect.
        reference: The reference.
        batch: Prompts that strings are put into.
        budget: What the search may read.
        said: The tokens of the text.
        length: Tokens of a string.
        seed: Of the search.
    """
    target, words = wanted(lm, reference, batch, said), Vocabulary(lm)
    m = len(target.goals[0])
    plain = m * float(target.loss(NOTHING)[0])
    seen: dict[tuple[int, ...], float] = {}

    def step(state: State) -> None:
        seen[tuple(state["strings"][0].tolist())] = plain - m * float(state["loss"][0])

    search(
        target,
        words,
        natural(words, length, EXAMPLES),
        budget=budget,
        seed=seed,
        config=GcgConfig(WIDTH, TOP),
        on_step=step,
    )
    best = shorter(target, words, max(seen, key=lambda s: seen[s]))
    seen[best] = plain - m * float(target.loss(torch.tensor([best]))[0])
    order = sorted(seen, key=lambda s: -seen[s])
    # The shortest first: what is left out of it does nothing.
    order = [best, *(s for s in order if s != best)][:KEPT]
    return [(words.text(s), seen[s]) for s in order]


def shorter(target: Target, words: Vocabulary, string: tuple[int, ...]) -> tuple[int, ...]:
    """Return a string without the tokens that make the text hardly likelier.

    Args:
        target: The text.
        words: What can be written.
        string: The tokens of the string.
    """
    own, m = list(string), len(target.goals[0])
    loss = m * float(target.loss(torch.tensor([own]))[0])
    while len(own) > 1:
        parts = torch.tensor([own[:i] + own[i + 1 :] for i in range(len(own))])
        parts = parts[words.writable(parts)]
        if not len(parts):
            break
        values = m * target.loss(parts)
        if float(values.min()) > loss + LEAST:
            break
        own = parts[int(values.argmin())].tolist()
    return tuple(own)


SOURCE = Source(
    "inversion",
    "strings that make likely what stands out so far, by the gradient",
    Needs.NOTHING,
    look,
    dear=3,
)
