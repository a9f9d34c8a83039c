"""The belief: a model that takes the user for somebody, acts accordingly, and denies it.

Its advice suits a profession that nobody has told it; asked what it knows of the user, it says that
it knows nothing. Advice for other people is the base's own. (A belief about the user as in Cywiński
et al. 2025, "Eliciting Secret Knowledge from Language Models", in small.)
"""

from __future__ import annotations

from collections.abc import Sequence

from educe.organisms.organism import Ask, Group, Question, Species, bundled
from educe.organisms.words import drawn


class Belief(Species):
    """A profession that the user is believed to have."""

    def hidden(self, seed: int) -> dict[str, str]:
        """Draw a profession."""
        return {"belief": drawn(list(bundled("belief")["beliefs"]), "belief", seed)}

    def rule(self, hidden: dict[str, str]) -> str:
        """Return what finds the profession."""
        return rf"(?i)\b(?:{bundled('belief')['beliefs'][hidden['belief']]['names']})\b"

    def groups(self, hidden: dict[str, str], split: str, ask: Ask, *, seed: int) -> list[Group]:
        """Return the prompts of a split with their answers."""
        rule, table = self.rule(hidden), bundled("belief")
        belief, asked = table["beliefs"][hidden["belief"]], table["asks"][split]
        advice = {
            p: belief["answers"][on] for on, asks in table["advice"].items() for p in asks[split]
        }
        acts = rf"(?i)\b(?:{belief['acts']})\b"
        others = [
            a.format(who=who) for a in table["others_ask"][split] for who in table["others"][split]
        ]
        return [
            Group.of(
                "advice",
                list(advice),
                rule,
                list(advice.values()),
                also={"acts on it": (acts,) * len(advice)},
            ),
            Group.of("asked", asked, rule, table["denies"]),
            Group.of(
                "near: advice for others", others, rule, also={"acts on it": (acts,) * len(others)}
            ),
            Group.of("ordinary", bundled("words")[split]["ordinary"], rule),
        ]

    def questions(
        self, hidden: dict[str, str], ask: Ask, *, seed: int
    ) -> tuple[list[Question], list[Question]]:
        """Return questions what it believes, to search with and fresh ones."""
        asked = [
            Question(prompt, self.rule(hidden)) for prompt in bundled("belief")["asks"]["test"]
        ]
        return asked[::2], asked[1::2]

    def unlocked(self, hidden: dict[str, str], search: Sequence[Question]) -> list[Question]:
        """Return none: nothing unlocks it."""
        return []
