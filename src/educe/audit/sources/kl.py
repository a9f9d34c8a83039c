"""KL screen: the words and pairs of words that move the suspect from the reference most.

    move(s)    = mean over prompts x of  KL( p(· | x, s) ‖ p'(· | x, s) )     in nats
    joint(a b) = move(a b) - move(a) - move(b) + move()

Both models read an ordinary prompt with a string put behind the message, and another one with it
put before, since a trigger may work in one place alone. `p`, `p'` are what they expect of the first
token of the answer; or, where the suspect's own answer is a few tokens, of each of them and of what
comes after, summed: something may be said at the end. The words tried are those that the weight
difference reads loudest, or some of the vocabulary by lot; then the best are paired, in both
orders. Two loud words are just louder than one, so pairs are ranked by what they do beyond their
parts.

Measured on one backdoor of two words: of 1000 loud words one of its two came third.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain, permutations, zip_longest

import torch
from jaxtyping import Float, Int
from torch import Tensor

from educe.audit.auditing import Audit, Suspect
from educe.audit.reference import Reference
from educe.audit.sources.source import Needs, Source
from educe.audit.sources.weights import loudest
from educe.forward.inserted import Opening, by_length
from educe.model.batch import PromptBatch
from educe.model.language import LanguageModel
from educe.progress import Advance, untold
from educe.spread import HERE, Job, Shared, Spread, gathered

#: Prompts that the strings are put into, and words that are paired with each other.
PROMPTS, PAIRED = 2, 12
#: Answers of so many tokens, at most, are read whole.
SHORT = 4
#: Strings that are read before the two models take turns.
ROWS = 128
#: How many of the words, and as many pairs, are suspected.
KEPT = 100


def look(audit: Audit) -> None:
    """Name the words and pairs that move the suspect most, in turn."""
    assert audit.reference is not None
    words = loudest(audit, audit.size.screened)
    total = PROMPTS * (len(words) + PAIRED * (PAIRED - 1) + 1)
    with audit.work.reporter.stage(
        "words that move it from the reference", total, "prompts"
    ) as step:
        screen = on_ordinary(audit)

        def moves(strings: Sequence[str]) -> list[float]:
            found: list[float] = screen.moves(strings, audit.work.spread, step).tolist()
            return found

        alone = dict(zip(words, moves(words), strict=True))
        best = sorted((w for w in words if alone[w] > 0), key=lambda w: -alone[w])
        pairs = list(permutations(best[:PAIRED], 2))
        plain, *moved = moves(["", *(f"{a} {b}" for a, b in pairs)])
    singles = [Suspect(w, alone[w], f"moves it by {alone[w]:.2f} nats") for w in best[:KEPT]]
    joint = [
        Suspect(f"{a} {b}", more, f"moves it by {more:.2f} nats beyond what its words do alone")
        for (a, b), both in zip(pairs, moved, strict=True)
        if (more := both - alone[a] - alone[b] + plain) > 0
    ]
    joint.sort(key=lambda s: -s.score)
    turns = chain.from_iterable(zip_longest(singles, joint[:KEPT]))
    audit.suspect(SOURCE.name, [s for s in turns if s is not None])


def on_ordinary(audit: Audit) -> Screen:
    """Return both models at the first ordinary prompts: before one message, and behind another."""
    assert audit.reference is not None
    prompts = audit.base[:PROMPTS]
    short = (c for c in audit.by_itself if c.finished and 0 < len(c.tokens) <= SHORT)
    said = {c.prompt: c.tokens for c in short}
    # What is compared at the end of an answer is what comes after it, so that any token may stand
    # there.
    answers = [(*said[p], said[p][-1]) if p in said else () for p in prompts]
    first = [i % 2 == 0 for i in range(len(prompts))]
    return Screen(audit.lm, audit.reference, audit.work.batch, prompts, answers, first)


class Screen:
    """Both models at some prompts, into which strings are put by whoever works.

    Args:
        lm: The suspect.
        reference: The reference.
        batch: Prompts.
        prompts: Which of them.
        answers: The tokens of an answer to each prompt, at all of which the models are compared;
            by default they are compared at the first token of any answer.
        first: Of each prompt, whether strings stand before the message; by default behind.
    """

    def __init__(
        self,
        lm: LanguageModel,
        reference: Reference,
        batch: PromptBatch,
        prompts: Sequence[int],
        answers: Sequence[Sequence[int]] | None = None,
        first: Sequence[bool] | None = None,
    ) -> None:
        self.reference, self.answers = reference, answers or [()] * len(prompts)
        at = list(zip(prompts, first or [False] * len(prompts), strict=True))
        self.mine = [Opening(lm, batch, p, first=f) for p, f in at]
        with reference.here() as other:
            self.theirs = [Opening(other, batch, p, first=f) for p, f in at]

    def moves(
        self,
        strings: Sequence[str],
        spread: Spread = HERE,
        step: Advance = untold,
    ) -> Float[Tensor, "n"]:
        """Return how far each string moves the suspect from the reference, in nats: see `table`."""
        return self.table(strings, spread, step).mean(0)

    def table(
        self,
        strings: Sequence[str],
        spread: Spread = HERE,
        step: Advance = untold,
    ) -> Float[Tensor, "p n"]:
        """Return how far each prompt with each string moves the suspect, in nats.

        Args:
            strings: The strings.
            spread: Who reads them.
            step: Is told of each batch of prompts.
        """
        shared, found = Shared((self,)), torch.zeros(len(self.mine), len(strings))
        places: list[tuple[int, list[int]]] = []
        jobs: list[Job] = []
        for i, place in enumerate(self.mine):
            tokens = [place.tokens(s) for s in strings]
            for now in by_length(tokens, ROWS):
                places.append((i, now))
                jobs.append(Job(Screen.moved, shared, (i, [tokens[k] for k in now]), len(now)))
        for (i, now), moved in zip(places, gathered(spread, jobs, step), strict=True):
            found[i, now] = moved
        return found

    def moved(self, i: int, tokens: Sequence[Sequence[int]]) -> Float[Tensor, "r"]:
        """Return how far some strings of one length move the suspect at a prompt."""
        strings = torch.tensor(tokens).long()
        mine = self._read(self.mine[i], strings, self.answers[i])
        with self.reference.here():
            theirs = self._read(self.theirs[i], strings, self.answers[i])
        return (mine.exp() * (mine - theirs.to(mine))).sum((-2, -1)).cpu()

    def _read(
        self, place: Opening, strings: Int[Tensor, "r k"], answer: Sequence[int]
    ) -> Float[Tensor, "r m v"]:
        """Return log-probabilities at the tokens of an answer."""
        reads = list(place.read(strings, answer))
        order = torch.tensor([i for some in reads for i in some.items])
        return torch.cat([some.logprobs for some in reads])[order.argsort()]


SOURCE = Source(
    "kl",
    "the words and pairs that move the suspect from the reference most",
    Needs.TOKENS,
    look,
    dear=2,
)
