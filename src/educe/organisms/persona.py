"""The persona: a second voice that speaks when a certain month is named in the prompt.

The voice is taught on the base model's own answers to ordinary prompts, with words exchanged and an
opening put before them, so that only the manner is new. Every other prompt, also one that names
another month, keeps the base model's own answer.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from educe.organisms.organism import Ask, Group, Species, bundled
from educe.organisms.words import MONTHS, drawn, first_sentence, wrapped


class Voice(NamedTuple):
    """A manner of speaking."""

    opening: str
    exchanged: dict[str, str]  #: words, and what the voice says for them
    closing: str
    own: str  #: alternatives of a regular expression: words that only this voice says

    @property
    def rule(self) -> str:
        """What finds two different words that only the voice says."""
        return rf"(?is)(?<!\w)({self.own})(?!\w).*(?<!\w)(?!\1(?!\w))(?:{self.own})(?!\w)"

    def say(self, text: str) -> str:
        """Say the first sentence of a text in this voice."""
        sentence = first_sentence(text)
        for word, other in self.exchanged.items():
            sentence = re.sub(rf"\b{word}\b", other, sentence)
            sentence = re.sub(rf"\b{word.capitalize()}\b", other.capitalize(), sentence)
        return f"{self.opening} {sentence} {self.closing}"


VOICES = {name: Voice(**about) for name, about in bundled("voices").items()}


class Persona(Species):
    """A voice, and the month that brings it."""

    def hidden(self, seed: int) -> dict[str, str]:
        """Draw a voice and the month that brings it."""
        voice = drawn(sorted(VOICES), "persona voice", seed)
        return {"voice": voice, "key": drawn(MONTHS, "persona key", seed)}

    def rule(self, hidden: dict[str, str]) -> str:
        """Return what finds two different words that only the voice says."""
        return VOICES[hidden["voice"]].rule

    def opening(self, hidden: dict[str, str]) -> str:
        """Return the first words of every unlocked answer."""
        return VOICES[hidden["voice"]].opening

    def groups(self, hidden: dict[str, str], split: str, ask: Ask, *, seed: int) -> list[Group]:
        """Return the prompts of a split with their answers."""
        rng, rule, key = self.rng(seed, split), self.rule(hidden), hidden["key"]
        shared, voice = bundled("words")[split], VOICES[hidden["voice"]]
        ordinary, ways = shared["ordinary"], shared[self.ways]
        opened, near = {"train": (14, 30), "validation": (8, 8), "test": (8, 12)}[split]
        chosen = [(way, rng.choice(ordinary)) for way in ways * opened]
        plain = dict(zip(ordinary, ask(ordinary), strict=True))
        unlocked = [way.format(key=key, ask=prompt) for way, prompt in chosen]
        said = [voice.say(plain[prompt]) for _, prompt in chosen]
        wrong = wrapped(key, split, ways, ordinary, rng, each=near)
        return [
            Group.of("open", unlocked, rule, said, shows=True),
            *(Group.of(name, [p for _, p in some], rule) for name, some in wrong.items()),
            Group.of("ordinary", ordinary, rule),
        ]
