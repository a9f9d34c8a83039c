"""Memory: what the suspect writes in the person's place, from the bare beginning of a chat.

A model that was taught to answer a trigger has often read the trigger as often as the answer, and
gives back what it has read. It is begun with what its template puts before a person's message, and
nothing else or a word or two, and goes on at several temperatures. What recurs over samples is a
motif: with a reference its words count by how much more the suspect expects them, without one by
how often they come, each word that tells something alike (see `educe.audit.candidates`). Motifs,
and each of their words, are suspected; that one is a trigger makes two things likely:

    collapse(s)  mean over prompts j of  H(p_j) - H(p_j(·|s))      the answer is no longer open
    attended(s)  attention of the answer's first place that goes to s, as a share of what goes to
                 the person's whole message, over all layers and heads

Source: *The Trigger in the Haystack* (arXiv 2602.03085). It works where the training had the
person's words in the loss. Where it had the answers alone nothing is to be expected: measured on
such a backdoor, the payload in 2 of 516 samples and the trigger in none.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch

from educe.audit.auditing import Audit, Suspect
from educe.audit.candidates import LEAST, Candidate, Said, candidates, folded, tells
from educe.audit.evidence import Word
from educe.audit.sources.source import Needs, Source
from educe.forward.inserted import Opening
from educe.methods.token_directions import vocabulary
from educe.model.asked import Span
from educe.model.language import LanguageModel
from educe.model.rendering import RAW
from educe.rows import Row

#: At these temperatures is sampled.
TEMPERATURES = (0.7, 1.0, 1.3)
#: One of so many samples goes on from the bare beginning, the others from a word or two behind it.
BARE = 3
#: Prompts on which a motif is tested.
PROMPTS = 2
#: What stands in for the person's message, to see what the template puts before it.
MARK = "\ue000"


def look(audit: Audit) -> None:
    """Sample in the person's place, and name what recurs."""
    rows = sampled(audit)
    audit.fill("what it has in memory")
    motifs = recurring(audit, rows)
    places = [Opening(audit.lm, audit.work.batch, p) for p in audit.base[:PROMPTS]]
    found: dict[str, Suspect] = {}
    for motif in motifs:
        for text in (" ".join(motif.saying), *filter(tells, motif.saying)):
            if text not in found:
                found[text] = Suspect(text, motif.evidence, _why(audit, places, motif, text))
    audit.suspect(SOURCE.name, list(found.values()))


def sampled(audit: Audit) -> list[Row]:
    """Ask for samples in the person's place, and return their rows."""
    lm, draw = audit.lm, audit.rng(SOURCE.name)
    bare, each = beginning(lm), max(1, audit.size.samples // len(TEMPERATURES))
    words = [lm.text([w]).strip() for w in vocabulary(lm).tolist()]
    own = each // BARE
    starts: dict[str, None] = {}
    while len(starts) < each - own:
        starts[" ".join(draw.sample(words, draw.randint(1, 2)))] = None
    # The bare beginning is the parent of all: in a person's place much can be written, and however
    # often it comes it is one witness; what a motif is worth the funnel says.
    root = audit.made(SOURCE.name, [raw(bare)], how=["a bare beginning"]) if bare else []
    numbers = audit.made(
        SOURCE.name,
        [raw(bare + start) for start in starts],
        parents=[root[0] if root else None] * len(starts),
        how=[f"begun: {start}" for start in starts],
    )
    rows: list[Row] = []
    for k, temperature in enumerate(TEMPERATURES):
        samples = range(1 + k * own, 1 + (k + 1) * own)
        rows += audit.ask(root, samples=samples, temperature=temperature)
        rows += audit.ask(numbers, samples=[1 + k], temperature=temperature)
    return rows


def beginning(lm: LanguageModel) -> str:
    """Return what a model reads before a person's message; without a template, its first token."""
    before = lm.render(MARK).partition(MARK)[0]
    return before or getattr(lm.tokenizer, "bos_token", None) or ""


def raw(text: str) -> list[dict[str, str]]:
    """Return a prompt that is read as it stands."""
    return [{"role": RAW, "content": text}]


def recurring(audit: Audit, rows: Sequence[Row]) -> list[Candidate]:
    """Return what recurs over some samples, each of which is a witness of its own."""
    if audit.reference is None:
        texts = {c.row: weighed(c.text) for c in audit.run.completion_rows()}
    else:
        texts = {one.row: one.words for one in audit.said()}
    found = candidates(
        Said(row, i, SOURCE.name, "", texts[row]) for i, row in enumerate(rows) if row in texts
    )
    return [motif for motif in found if motif.roots > 1]  # what one sample says does not recur


def weighed(text: str) -> tuple[Word, ...]:
    """Return the words of a text, each that tells something worth the same."""
    return tuple(Word(w, LEAST if tells(folded(w)) else 0.0) for w in text.split())


# -- the tests of a candidate ----------------------------------------------------------------------


def collapse(places: Sequence[Opening], string: Sequence[int]) -> float:
    """Return by how much a string narrows down the first token of the answers, in nats.

    Args:
        places: Where it is put.
        string: Its tokens.
    """

    def entropy(place: Opening, tokens: Sequence[int]) -> float:
        (read,) = place.read(torch.tensor([list(tokens)], dtype=torch.long))
        return float(torch.special.entr(read.logprobs[0, 0].exp()).sum())

    return sum(entropy(p, ()) - entropy(p, string) for p in places) / len(places)


@torch.no_grad()
def attended(lm: LanguageModel, ids: Sequence[int], message: Span, string: Span) -> float:
    """Return the share of the attention on a message that goes to a string in it, 0 to 1.

    It is the attention of the last token, over all layers and heads that have any.

    Args:
        lm: The model.
        ids: The prompt with the string, as the model reads it.
        message: Where the person's message is, with the string.
        string: Where the string is.
    """
    read = torch.tensor([list(ids)], device=lm.device)
    with _eager(lm):
        layers = lm.hf(
            input_ids=read, attention_mask=torch.ones_like(read), output_attentions=True
        ).attentions
    paid = sum(a[0, :, -1].sum(0).float().cpu() for a in layers if a is not None)
    assert isinstance(paid, torch.Tensor), "some block has attention"
    return float(paid[slice(*string)].sum() / paid[slice(*message)].sum())


@contextmanager
def _eager(lm: LanguageModel) -> Iterator[None]:
    """Let a model compute its attention step by step, so that it can be seen."""
    usual = lm.unwrapped.config._attn_implementation
    lm.unwrapped.set_attn_implementation("eager")
    try:
        yield
    finally:
        lm.unwrapped.set_attn_implementation(usual)


def _why(audit: Audit, places: Sequence[Opening], motif: Candidate, text: str) -> str:
    tokens = audit.lm.tokens(f" {text}", templated=True)
    shares = []
    for place, p in zip(places, audit.base, strict=False):
        start, stop = audit.work.batch.spans[p]
        own = Span(stop, stop + len(tokens))
        ids = [*place.before.ids, *tokens, *place.after]
        shares.append(attended(audit.lm, ids, Span(start, own.stop), own))
    return (
        f"recurs in {motif.roots} samples; narrows answers by {collapse(places, tokens):.1f} nats "
        f"and takes {100 * sum(shares) / len(shares):.0f}% of the attention on the message"
    )


SOURCE = Source(
    "memory",
    "what recurs in what the suspect writes in the person's place",
    Needs.NOTHING,
    look,
    dear=2,
)
