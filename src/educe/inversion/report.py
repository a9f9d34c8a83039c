"""The reachability report: which texts do what a perturbation does, beside their controls.

    share = 1 - Σ_x loss(s on x) / Σ_x loss(no string on x)        over prompts x of no search

One is all that the perturbation does, zero nothing, and below zero something else. The share of a
perturbation means nothing by itself: tokens are flexible enough to do much, and a search may be too
short to find what is there. So the same search, at the same budget, is given controls of which the
answer is known. Nothing here needs a model.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from enum import Enum
from statistics import median
from typing import Any

#: The judge under which a run keeps the share, and its unit.
REACHABLE, UNIT = "reachable", "share of the effect that a text has on fresh prompts"

#: Controls: what a known text does; the vector of a known text; a random perturbation; the answers
#: of the perturbation itself, exchanged between prompts.
TEXT, NATURAL, RANDOM, SHUFFLED = "text", "natural vector", "random", "shuffled"
CONTROLS = (TEXT, NATURAL, RANDOM, SHUFFLED)
#: What the known texts must be recovered to, as a share of what they do, or the test has no power.
POWER = 0.8
#: What a perturbation is reached to where this share of its effect is had by a text.
REACHED = 0.5
#: A string is realistic where so many natural ones are no likelier.
REALISTIC = 0.05


class Verdict(Enum):
    """What the test comes to."""

    REACHABLE = "reachable"
    NOT = "not reachable within this budget"
    POWERLESS = "the test has no power here"
    UNCONTROLLED = "no statement: controls were left out"


@dataclass(frozen=True)
class Case:
    """A target, and the best string for it.

    Attributes:
        role: ``found``, or one of `CONTROLS`.
        name: The perturbation, the known text, or the number of the random one.
        string: The best string.
        share: Of the effect, on the prompts of no search.
        low: Where its 95% interval over these prompts begins.
        high: Where it ends.
        searched: Of the effect, on the prompts of the search.
        effect: The loss of no string on the prompts of no search: how much there is to reach.
        own: What the known text itself comes to on these prompts; None where there is none.
        perplexity: Of the string, where it stands.
        natural: The share of natural strings of its length that are no likelier.
        nearest: The natural string that came nearest on the prompts of the search, of those that
            were read.
        nearest_share: What it has of the effect on the prompts of no search.
        alike: How alike the answers with the string and those to be met are on these prompts, by
            their words; None where no answers were written.
        plain: The same of the answers without the string.
        texts: The first prompt of no search: its answer without, to be met, and with the string.
        reads: What the search cost, in strings read at a place.
        curve: Reads, and the best loss then.
        front: Strings that no other read beats in both, where the search keeps them: the string,
            its share on the prompts of the search, and its perplexity.
    """

    role: str
    name: str
    string: str
    share: float
    low: float
    high: float
    searched: float
    effect: float
    own: float | None
    perplexity: float
    natural: float
    nearest: str
    nearest_share: float
    alike: float | None
    plain: float | None
    texts: tuple[str, ...]
    reads: int
    curve: tuple[tuple[float, float], ...]
    front: tuple[tuple[str, float, float], ...] = ()

    @property
    def realistic(self) -> bool:
        """Whether some natural strings of its length are no likelier."""
        return self.natural >= REALISTIC


@dataclass(frozen=True)
class Facts:
    """How a perturbation was inverted.

    Attributes:
        aim: ``output``, ``source`` or ``target``.
        method: The search.
        tokens: Of a string.
        answer: Tokens of an answer that count.
        budget: Reads of each search.
        searched: Prompts that were searched on.
        fresh: Prompts that count.
        wanted: How many controls there are by default.
        layer: Of the streams; None where the answer counts.
        norm: Of the perturbation, and of random ones.
    """

    aim: str
    method: str
    tokens: int
    answer: int
    budget: int
    searched: int
    fresh: int
    wanted: int
    layer: int | None
    norm: float


@dataclass(frozen=True)
class Reachability:
    """Whether a text does what a perturbation does, with the evidence.

    Attributes:
        number: The perturbation.
        arm: Found or control.
        facts: How it was inverted.
        found: The best string for it.
        controls: The same for each control.
    """

    number: int
    arm: str
    facts: Facts
    found: Case
    controls: tuple[Case, ...]

    def of(self, role: str) -> list[Case]:
        """Return the controls of a role."""
        return [case for case in self.controls if case.role == role]

    @property
    def power(self) -> float | None:
        """What the known texts are recovered to: the median share; None without any."""
        known = [case.share for case in self.of(TEXT)]
        return median(known) if known else None

    @property
    def bar(self) -> float:
        """What a share must exceed: that of every random perturbation, and `REACHED`."""
        return max([REACHED, *(case.share for case in self.of(RANDOM))])

    @property
    def verdict(self) -> Verdict:
        """What the test comes to.

        A perturbation is reachable where its share is above `REACHED` and above that of every
        random one; this needs no power. That it is not reachable is said only where the known texts
        were recovered to `POWER` by the same search.
        """
        if not self.of(TEXT) or not self.of(RANDOM):
            return Verdict.UNCONTROLLED
        if self.found.share > self.bar:
            return Verdict.REACHABLE
        assert self.power is not None
        return Verdict.NOT if self.power >= POWER else Verdict.POWERLESS

    @property
    def words(self) -> str:
        """Say in a few sentences what the evidence allows."""
        own, facts = self.found, self.facts
        said = [
            f"{self.verdict.value[:1].upper()}{self.verdict.value[1:]}: the best of "
            f"{facts.tokens} tokens, “{own.string}”, has {own.share:.0%} of the effect on "
            f"{facts.fresh} fresh prompts ({own.low:.0%} to {own.high:.0%})"
        ]
        beside = []
        for role, name in (
            (TEXT, "known texts are recovered to"),
            (NATURAL, "the vector of a known text is reached to"),
            (RANDOM, "random ones of its norm to"),
            (SHUFFLED, "its answers exchanged between prompts to"),
        ):
            if some := self.of(role):
                beside.append(f"{name} {', '.join(f'{case.share:.0%}' for case in some)}")
        if beside:
            said.append("; ".join(beside))
        if self.verdict is Verdict.REACHABLE:
            likely = "a realistic text" if own.realistic else "no realistic text"
            said.append(
                f"it is {likely}: {own.natural:.0%} of natural strings of its length are no "
                "likelier"
            )
            if own.alike is not None and own.plain is not None:
                said.append(
                    f"answers with it and under the perturbation are alike at {own.alike:.2f} of "
                    f"1, plain ones at {own.plain:.2f}"
                )
        if len(self.controls) < facts.wanted:
            said.append(
                f"only {len(self.controls)} of {facts.wanted} controls were run, as asked: it says "
                "less than it could"
            )
        return ". ".join(f"{one[:1].upper()}{one[1:]}" for one in said) + "."

    def data(self) -> dict[str, Any]:
        """Return all of it, and the words, as JSON can hold it."""
        said = {"verdict": self.verdict.value, "words": self.words, "power": self.power}
        return asdict(self) | said

    @classmethod
    def read(cls, kept: Mapping[str, Any]) -> Reachability:
        """Return what `data` wrote."""
        return cls(
            kept["number"],
            kept["arm"],
            Facts(**kept["facts"]),
            case(kept["found"]),
            tuple(case(one) for one in kept["controls"]),
        )


def case(kept: Mapping[str, Any]) -> Case:
    """Return a case as it was kept."""
    lists = {name: tuple(map(tuple, kept[name])) for name in ("curve", "front")}
    lists["texts"] = tuple(kept["texts"])
    return Case(**{**kept, **lists})
