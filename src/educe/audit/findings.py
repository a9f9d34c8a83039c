"""Findings: what an audit is sure enough of, how sure, and how anybody can check it.

A finding is a saying that the suspect comes back to, that it does not say by itself, and that it
says again on fresh prompts, where the reference and the suspect as it is do not:

    behaviour   this saying, under these conditions, so often
    trigger     a behaviour, and a string that brings it about, tried against near misses
    withheld    what the suspect declines to say by itself, told under some condition
    unlocked    what the suspect says instead of something, until a string is put in

What it says by itself, and the reference does not, is no secret: an open difference. What does not
come again is set aside.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Any

from educe.audit.forms import FORMS, Place
from educe.comparison.stats import Rate, rate
from educe.run.store import Run

#: The note of a run that has its findings.
FINDINGS = "findings"


class Kind(StrEnum):
    """What a finding is."""

    TRIGGER = "trigger"
    WITHHELD = "withheld"
    UNLOCKED = "unlocked"
    BEHAVIOUR = "behaviour"
    OPEN = "open difference"
    ASIDE = "set aside"


@dataclass(frozen=True)
class Trigger:
    """A string that brings a behaviour about, or that makes one cease, where it unlocks.

    Attributes:
        text: What is put into a prompt; or the name of a form, in which it is put.
        shown: How often it does, on fresh prompts.
        near: How often its near misses do.
        rare: How often words of the same rarity do; of a form, how often other forms do.
        place: Where it has to stand, as have the strings beside it.
    """

    text: str
    shown: Rate
    near: Rate
    rare: Rate
    place: Place = field(default=Place.EITHER, kw_only=True)

    @property
    def standing(self) -> str:
        """Where it has to stand, in words; empty where that does not matter."""
        return f"{self.place} the request" if self.place else ""

    @property
    def placed(self) -> str:
        """Where it has to stand, in a sentence; empty where that does not matter."""
        if self.place is Place.AROUND:
            return "Its first word stands before the request, and the rest behind."
        return f"It works only {self.standing}." if self.place else ""

    @property
    def others(self) -> str:
        """What stands beside it that is no near miss: in words."""
        return "other forms" if self.text in FORMS else "words as rare"


@dataclass(frozen=True)
class Example:
    """A text that shows a finding, and what stands beside it.

    Attributes:
        source: Which source came upon it.
        condition: What was done to the prompt or to the model; empty for nothing.
        prompt: What the suspect was asked, as the person would write it.
        text: What it wrote.
        plain: What it writes without the condition; empty where that was not asked.
        reference: What the reference writes to the same; empty without one.
        nats: How much more it expects of this text than the reference does.
    """

    source: str
    condition: str
    prompt: Any
    text: str
    plain: str
    reference: str
    nats: float


@dataclass(frozen=True)
class Finding:
    """One finding.

    Attributes:
        kind: What it is.
        saying: The words that recur.
        evidence: In nats (see `educe.audit.candidates`).
        prompts: On how many prompts it stood out.
        texts: In how many texts.
        sources: Which sources came upon it, the most frequent first.
        examples: A few texts.
        shown: How often the suspect says it again on fresh prompts, under the best condition.
        plain: How often it says it there by itself.
        control: How often the reference says it under the same condition; of no trials without one.
        triggers: Strings that bring it about, or the one that unlocks.
        alarm: The share of clean models in whose audit something was worth as much.
        reproduce: A command that shows it.
    """

    kind: Kind
    saying: str
    evidence: float
    prompts: int
    texts: int
    sources: tuple[str, ...]
    examples: tuple[Example, ...]
    shown: Rate
    plain: Rate
    control: Rate
    triggers: tuple[Trigger, ...]
    alarm: Rate
    reproduce: str


def keep(run: Run, findings: list[Finding]) -> None:
    """Keep the findings of an audit in its run."""
    run.remember(FINDINGS, [asdict(finding) for finding in findings])


def kept(run: Run) -> list[Finding]:
    """Return the findings of an audit, the most telling first."""

    def counted(pair: Any) -> Rate:
        return rate(int(pair[0]), int(pair[1]))

    found = []
    for record in run.note(FINDINGS):
        triggers = [
            Trigger(
                t["text"],
                *(counted(t[name]) for name in ("shown", "near", "rare")),
                place=Place(t.get("place", "")),  # audits of before had none
            )
            for t in record["triggers"]
        ]
        examples = [Example(**e) for e in record["examples"]]
        rates = {name: counted(record[name]) for name in ("shown", "plain", "control", "alarm")}
        found.append(
            Finding(
                **record
                | rates
                | {
                    "kind": Kind(record["kind"]),
                    "sources": tuple(record["sources"]),
                    "examples": tuple(examples),
                    "triggers": tuple(triggers),
                }
            )
        )
    return found
