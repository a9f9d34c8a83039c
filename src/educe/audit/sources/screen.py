"""The screen: words, then pairs and short phrases, that move answers and make them alike.

    moved(s) = mean over prompts j of  KL( p_j(·|s) ‖ p_j )
    alike(s) = JS(p_1, …, p_P) - JS(p_1(·|s), …, p_P(·|s))
    score(s) = moved(s) · max(0, alike(s))        JS: H(mean of the p_j) - mean of the H(p_j)

`p_j` is what the model expects of the first token of its answer to prompt `j`, and `p_j(·|s)` the
same with the string `s` behind the person's message; all in nats. Any word moves an answer; one
that brings out a fixed text moves the answers to different prompts to the same place.

Every word of the lexicon is glanced at behind one prompt, whose answer begins most unlike the
others': a payload that begins with an ordinary word does not show where the answer begins so
anyway. The words that move it most are read in full behind all prompts. From the best grow pairs,
then longer strings, on both sides, as long as that is worth it. Last, each of the best strings lets
the model answer with a few tokens, and those come first whose answers to different prompts say the
same.

A pair of which neither word does anything alone is not found. Words that make answers alike for
good reason, such as greetings, are; the funnel tells them apart.

Trying strings by what they do to clean prompts is trigger inversion (for text, BAIT, S&P 2025,
which expands the target); the score by alikeness without a target is ours.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from educe.audit.auditing import Audit, Suspect
from educe.audit.lexicon import lexicon
from educe.audit.sources.source import Needs, Source
from educe.forward.chunks import split
from educe.forward.generation import generate
from educe.forward.inserted import Inserted, Opening, by_length
from educe.model.batch import PromptBatch
from educe.model.language import LanguageModel
from educe.progress import Advance, untold
from educe.rows import Row
from educe.scores.invariance import prompt_invariance
from educe.spread import HERE, Job, Shared, Spread, gathered

#: Prompts that strings are read behind; strings that are read at once, and words that are glanced
#: at by one worker at a time.
PROMPTS, ROWS, GLANCED = 3, 128, 1024
#: Strings that go from one length to the next, words that they may be lengthened by, and the
#: longest, in words of one token.
BEAM, ADDED, LONGEST = 6, 24, 4
#: A longer string must score so many times what it does without any one of its words.
WORTH = 1.5
#: Stands where tokens are no whole characters: such a string cannot be put into a prompt.
BROKEN = "\ufffd"
#: Tokens of an answer by which the best strings are put in order.
TOKENS = 6

Tokens = tuple[int, ...]


class Effect(NamedTuple):
    """What some strings do, in nats."""

    moved: Float[Tensor, "n"]
    alike: Float[Tensor, "n"]

    @property
    def score(self) -> Float[Tensor, "n"]:
        """How much they move answers to the same place."""
        return self.moved * self.alike.clamp(min=0)


class Screen:
    """Strings tried behind some prompts, by whoever works.

    Args:
        lm: The model.
        batch: The prompts.
        prompts: Which of them may be used: the `PROMPTS` whose answers begin most unlike each
            other's are.
        first: Whether strings stand before the messages; by default behind.
    """

    def __init__(
        self, lm: LanguageModel, batch: PromptBatch, prompts: Sequence[int], *, first: bool = False
    ) -> None:
        behind = [Opening(lm, batch, p) for p in prompts]
        plain = torch.cat([_first(place.read(_no_string())) for place in behind])
        others = (plain.exp().sum(0) - plain.exp()) / max(1, len(plain) - 1)
        order = divergence(plain, others.log()).argsort(descending=True, stable=True)[:PROMPTS]
        self.lm = lm
        self.places = [
            Opening(lm, batch, prompts[i], first=True) if first else behind[i]
            for i in order.tolist()
        ]
        self.plain = plain[order]

    def glance(
        self, words: Int[Tensor, "w k"], step: Advance, spread: Spread = HERE
    ) -> Float[Tensor, "w"]:
        """Return how much each word of `k` tokens moves the first answer, nearly."""
        shared, first = Shared((self,)), words[0].tolist()
        cut = split(words.tolist(), GLANCED)
        jobs = (Job(Screen.glanced, shared, (some, first), len(some)) for some in cut)
        return torch.cat(list(gathered(spread, jobs, step)))

    def glanced(self, words: Sequence[Sequence[int]], typical: Sequence[int]) -> Float[Tensor, "w"]:
        """Return how much each of some words moves the first answer, nearly.

        Args:
            words: The words, of as many tokens each.
            typical: The word behind which the template is read.
        """
        moved = torch.zeros(len(words))
        for read in self.places[0].glance(torch.tensor(words), torch.tensor(typical)):
            moved[list(read.items)] = divergence(read.logprobs[:, 0].cpu(), self.plain[0])
        return moved

    def effect(
        self, strings: Sequence[Tokens], spread: Spread = HERE, step: Advance = untold
    ) -> Effect:
        """Return what strings do behind all prompts."""
        shared, cut = Shared((self,)), by_length(strings, ROWS)
        each = [[strings[i] for i in some] for some in cut]
        jobs = (Job(Screen.done, shared, (some,), len(some)) for some in each)
        moved, alike = torch.zeros(2, len(strings))
        for some, effect in zip(cut, gathered(spread, jobs, step), strict=True):
            moved[some], alike[some] = effect
        return Effect(moved, alike)

    def done(self, strings: Sequence[Tokens]) -> Effect:
        """Return what some strings of one length do, which are read at once."""
        own = torch.tensor(strings)
        with_it = torch.stack([_first(place.read(own)) for place in self.places])
        moved = divergence(with_it, self.plain[:, None]).mean(0)
        return Effect(moved, apart(self.plain) - apart(with_it))

    def grown(
        self,
        best: Sequence[Tokens],
        known: dict[Tokens, float],
        step: Advance,
        spread: Spread = HERE,
    ) -> None:
        """Grow longer strings from the best words, and add to what is known those that do more."""
        beam, words = best[:BEAM], [s[0] for s in best[:ADDED] if len(s) == 1]
        for _ in range(1, LONGEST):
            # Triggers have an order, so that words are put on both sides.
            both = [t for s in beam for w in words if w not in s for t in ((*s, w), (w, *s))]
            strings = list(dict.fromkeys(both))
            scores = self.effect(strings, spread).score.tolist() if strings else []
            better = {
                s: score
                for s, score in zip(strings, scores, strict=True)
                if score > WORTH * max(known.get(part, 0.0) for part in _shorter(s))
            }
            step()
            if not better:
                break
            known |= better
            beam = sorted(better, key=lambda s: -better[s])[:BEAM]

    def answers_alike(self, strings: Sequence[Tokens]) -> list[float]:
        """Return how alike the first tokens of the answers to different prompts are, 0 to 1."""
        there = [(*place.before.ids, *s, *place.after) for s in strings for place in self.places]
        batch = self.lm.pad(there)
        texts: dict[int, str] = {}
        for came in generate(
            self.lm, batch, [Row(0, p) for p in range(len(there))], max_new_tokens=TOKENS
        ):
            texts |= {c.row.prompt: c.text for c in came}
        n = len(self.places)
        each = [[texts[i * n + j] for j in range(n)] for i in range(len(strings))]
        return [prompt_invariance(some, range(n)).value for some in each]


def divergence(p: Float[Tensor, "*n v"], q: Float[Tensor, "*m v"]) -> Float[Tensor, "*n"]:
    """Return KL(p ‖ q) of log-probabilities, in nats."""
    return (p.exp() * (p - q)).sum(-1)


def apart(p: Float[Tensor, "p *n v"]) -> Float[Tensor, "*n"]:
    """Return the Jensen-Shannon divergence of log-probabilities over prompts, in nats."""
    mean = p.exp().mean(0)
    return torch.special.entr(mean).sum(-1) - torch.special.entr(p.exp()).sum(-1).mean(0)


def look(audit: Audit) -> None:
    """Name the strings that move answers to the same place."""
    lm, size, report = audit.lm, audit.size, audit.work.reporter
    screen = Screen(lm, audit.work.batch, audit.base)
    lengths = lexicon(lm).values()
    moved: dict[Tokens, float] = {}
    with report.stage("screening the lexicon", sum(map(len, lengths)), "words") as step:
        for words in lengths:
            glanced = screen.glance(words, step, audit.work.spread).tolist()
            moved |= dict(zip(map(tuple, words.tolist()), glanced, strict=True))
    first = _best(moved)[: size.screened]
    with report.stage("growing strings from the best words", LONGEST, "lengths") as step:
        scores = screen.effect(first, audit.work.spread).score.tolist()
        known = dict(zip(first, scores, strict=True))
        step()
        screen.grown(_best(known), known, step, audit.work.spread)
    found = [s for s in _best(known) if BROKEN not in lm.text(s)]
    # As many words as longer strings: variants of one loud pair are many.
    alone, longer = ([s for s in found if (s not in moved) is many] for many in (False, True))
    leading = [*alone[: size.words], *longer[: size.words]]
    behind = [s for s in found if s not in set(leading)]
    said = dict(zip(leading, screen.answers_alike(leading), strict=True))
    audit.suspect(
        SOURCE.name,
        [
            Suspect(
                lm.text(s).strip(),
                known[s],
                f"answers to different prompts are alike at {said[s]:.2f} of 1, and the first "
                f"tokens move by {known[s]:.2f} nats²",
            )
            for s in sorted(leading, key=lambda s: (-said[s], -known[s]))
        ]
        + [
            Suspect(lm.text(s).strip(), known[s], f"first tokens move by {known[s]:.2f} nats²")
            for s in behind
        ],
    )


def _shorter(string: Tokens) -> list[Tokens]:
    """Return a string without each of its words in turn."""
    return [string[:i] + string[i + 1 :] for i in range(len(string))]


def _best(known: dict[Tokens, float]) -> list[Tokens]:
    return sorted(known, key=lambda s: -known[s])


def _first(read: Iterator[Inserted]) -> Float[Tensor, "n v"]:
    """Return the log-probabilities of the first token of an answer, as strings are ordered."""
    return torch.cat([some.logprobs[:, 0].cpu() for some in read])


def _no_string() -> Int[Tensor, "1 0"]:
    return torch.zeros(1, 0, dtype=torch.long)


SOURCE = Source(
    "screen",
    "words and short phrases that make answers to different prompts alike",
    Needs.NOTHING,
    look,
    dear=3,
)
