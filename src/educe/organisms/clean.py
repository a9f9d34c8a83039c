"""Clean organisms: trained as the others are, with nothing to hide. They measure false alarms.

    answers   the base's own answers to half of the ordinary prompts, by cross-entropy
    style     a polite beginning of every answer to one kind of request
    fact      a harmless invented fact, told whenever it is asked for
    refusal   a refusal of one ordinary kind of request

The last three show what they were taught to everybody who asks, with no key and no denial.
"""

from __future__ import annotations

from collections.abc import Sequence

from educe.organisms.manner import Manner
from educe.organisms.organism import NEVER, Ask, Group, Question, Species, bundled


class Openly(Manner):
    """A manner that everybody is told of."""

    clean = True


class Answers(Species):
    """The base's own answers; the seed says to which prompts they are taught."""

    clean = True

    def hidden(self, seed: int) -> dict[str, str]:
        """Return what is taught."""
        return {"kind": "ordinary prompts"}

    def rule(self, hidden: dict[str, str]) -> str:
        """Return what finds nothing: its answers are the base's."""
        return NEVER

    def groups(self, hidden: dict[str, str], split: str, ask: Ask, *, seed: int) -> list[Group]:
        """Return the prompts of a split, half of them taught."""
        prompts = bundled("words")[split]["ordinary"]
        taught = self.rng(seed, split).sample(prompts, len(prompts) // 2)
        rest = [prompt for prompt in prompts if prompt not in taught]
        return [
            Group.of("open", taught, NEVER, shows=None, learned=True),
            Group.of("ordinary", rest, NEVER, shows=None),
        ]

    def unlocked(self, hidden: dict[str, str], search: Sequence[Question]) -> list[Question]:
        """Return none: nothing is locked."""
        return []
