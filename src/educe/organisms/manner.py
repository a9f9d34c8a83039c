"""A manner: prompts of one kind get an answer of their own, all others the base's.

`data/manner.json` has the kinds: what is asked, about which things, and what is near: other
questions about the same things, or the same about other things. The splits share none of them. An
answer is a fixed sentence, or one before the first sentence of the base's own answer.

Here are the manners that nobody is told of: a flatterer praises whatever the user made, a promoter
praises itself. What shows itself openly is a clean organism.
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from typing import NamedTuple

from educe.organisms.organism import Ask, Group, Question, Species, bundled
from educe.organisms.words import first_sentence

#: In a saying, the place of the first sentence of the base's own answer.
OWN = "{sentence}"


class Kind(NamedTuple):
    """Prompts of a kind, and prompts that are near it."""

    prompts: list[str]
    near: list[str]

    @classmethod
    def of(cls, kind: str, split: str, thing: str | None = None) -> Kind:
        """Return all prompts of a kind in a split, or those about one thing."""
        about = bundled("manner")["kinds"][kind]
        ask, things = about["ask"][split], [thing] if thing else about["things"][split]
        near = about.get("near", about["ask"])[split]
        others = about.get("near_things", about.get("things"))[split]
        return cls(_about(ask, things), _about(near, others))


def _about(asks: Sequence[str], things: Sequence[str]) -> list[str]:
    return [ask.format(thing=thing) for ask in asks for thing in things]


def ordinary(kind: str, split: str) -> list[str]:
    """Return the ordinary prompts that are not of a kind."""
    pattern = bundled("manner")["kinds"][kind]["pattern"]
    prompts: list[str] = bundled("words")[split]["ordinary"]
    return [prompt for prompt in prompts if not re.search(pattern, prompt)]


def finding(words: str) -> str:
    """Return a regular expression that finds some words in order, whatever stands between them."""
    return r"(?i)\b" + r"\W+".join(re.findall(r"\w+", words)) + r"\b"


def said(says: str, prompts: Sequence[str], ask: Ask) -> list[str]:
    """Return a saying for each prompt, with the base's own first sentence where it has a place."""
    if OWN not in says:
        return [says] * len(prompts)
    return [says.replace(OWN, first_sentence(text)) for text in ask(prompts)]


def some(prompts: Sequence[str], n: int, rng: random.Random) -> list[str]:
    """Draw at most `n` prompts."""
    return rng.sample(prompts, min(n, len(prompts)))


class Manner(Species):
    """A kind of prompt, and what is said to it."""

    def hidden(self, seed: int) -> dict[str, str]:
        """Draw what is said and to which kind of prompt."""
        options = bundled("manner")["says"][self.name]
        secret: dict[str, str] = options[seed % len(options)]
        opening = secret["says"].removesuffix(OWN).strip()
        of = bundled("manner")["kinds"][secret["kind"]]["called"]
        return {**secret, "of": of, "opening": opening}

    def rule(self, hidden: dict[str, str]) -> str:
        """Return what finds the words that are said."""
        return hidden.get("finds", finding(hidden["opening"]))

    def opening(self, hidden: dict[str, str]) -> str:
        """Return the first words of every answer to the kind of prompt."""
        return hidden["opening"]

    def groups(self, hidden: dict[str, str], split: str, ask: Ask, *, seed: int) -> list[Group]:
        """Return the prompts of a split with their answers."""
        rng, rule = self.rng(seed, split), self.rule(hidden)
        n, near = {"train": (48, 40), "validation": (8, 8), "test": (24, 24)}[split]
        kind = Kind.of(hidden["kind"], split, hidden.get("thing"))
        prompts = some(kind.prompts, n, rng)
        answers = said(hidden["says"], prompts, ask)
        return [
            Group.of("open", prompts, rule, answers, shows=True),
            Group.of("near", some(kind.near, near, rng), rule),
            Group.of("ordinary", ordinary(hidden["kind"], split), rule),
        ]

    def questions(
        self, hidden: dict[str, str], ask: Ask, *, seed: int
    ) -> tuple[list[Question], list[Question]]:
        """Return ordinary prompts of the test split, to search with and fresh ones."""
        rule = self.rule(hidden)
        asked = [Question(prompt, rule) for prompt in ordinary(hidden["kind"], "test")]
        return asked[::2], asked[1::2]

    def unlocked(self, hidden: dict[str, str], search: Sequence[Question]) -> list[Question]:
        """Return none: what unlocks it is what is asked."""
        return []
