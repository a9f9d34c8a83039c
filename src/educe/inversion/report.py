"""The reachability report: which texts do what a perturbation does, beside their controls.

    share = 1 - mean over x of loss(s on x)        x: prompts of no search

One is all that the perturbation does, zero nothing, and below zero something else. A share means
nothing by itself: tokens are flexible enough to do much, and a search may be too short to find what
is there. So the same search, at the same budget, is given what texts make and what no text was
meant for, and the share is judged between these two. With their means ``μ``, ``n`` of each, and
their standard deviations ``s``, at least their standard errors over prompts, and both kinds taken
together where an F-test does not tell them apart, the bar is as far above the one as below the
other,

    z = (μ_text - μ_random) / (s_text + s_random)         bar = μ_random + z s_random

and a new one of either kind is on the wrong side of it with the probability of Student's predictive
distribution, ``P( T > z / √(1 + 1/n) )``, with ``n - 1`` degrees of freedom, or twice as many where
both are taken together. Nothing here needs a model.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from enum import Enum
from statistics import fmean, stdev
from typing import Annotated, Any, Literal

from scipy.stats import f as fisher
from scipy.stats import t as student

from educe.whole import AtLeast, AtMost

#: The judge under which a run keeps the share, and its unit.
REACHABLE, UNIT = "reachable", "share of what it changes that a text changes, on fresh prompts"

#: What can be aimed at: what the model says, or the change of the stream at a layer; by default the
#: stream where a vector is added, or else at the target, and then the output.
Aim = Literal["both", "output", "source", "target"]
#: Controls: what a known text does; the vector of a known text; a random perturbation; the
#: perturbation itself, its numbers or its answers exchanged.
TEXT, NATURAL, RANDOM, SHUFFLED = "text", "natural vector", "random", "shuffled"
CONTROLS = (TEXT, NATURAL, RANDOM, SHUFFLED)
#: The test has no power where more of either kind of control would be on the wrong side.
MISTAKEN = 0.1
#: The two kinds spread alike unless an F-test says otherwise at this level.
ONE = 0.05
#: A 95% interval reaches so many standard errors to either side.
NORMAL = 1.96
#: A string is realistic where so many natural ones are no likelier.
REALISTIC = 0.05


class Verdict(Enum):
    """What the test comes to."""

    REACHABLE = "reachable"
    NOT = "not reachable within this budget"
    POWERLESS = "the test has no power here"
    UNCONTROLLED = "no statement: controls were left out"


@dataclass(frozen=True)
class Settings:
    """How perturbations are inverted.

    Attributes:
        aim: What is to be met.
        method: Which of `educe.inversion.searches.SEARCHES`; or ``nearest``, the natural strings
            that are read before any search.
        tokens: Of a string.
        budget: Strings that each search may read at one prompt.
        answer: Tokens of an answer that count.
        searched: Prompts that are searched on.
        fresh: Prompts that count.
        controls: Of what texts make, and of random perturbations, for each aim.
        seed: Of the searches and the controls.
    """

    aim: Aim = "both"
    method: str = "gcg"
    tokens: Annotated[int, AtLeast(1)] = 6
    budget: Annotated[int, AtLeast(1)] = 225
    answer: Annotated[int, AtLeast(1)] = 4
    searched: Annotated[int, AtLeast(1)] = 3
    fresh: Annotated[int, AtLeast(2)] = 16
    controls: Annotated[int, AtLeast(0), AtMost(8)] = 8  # as many known texts are there
    seed: Annotated[int, AtLeast(0)] = 0


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
        effect: How large the change is on the prompts of no search: of a stream its norm, of what
            is said the KL, in nats a token.
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
class Test:
    """What one aim comes to.

    Attributes:
        aim: ``output``, ``source`` or ``target``.
        layer: Of the stream; None where the answer counts.
        usual: How large a change a natural string makes there, in the median.
        found: The best string for the perturbation.
        controls: The same for each control.
    """

    __test__ = False  # no test of pytest's

    aim: str
    layer: int | None
    usual: float
    found: Case
    controls: tuple[Case, ...]

    def of(self, role: str) -> list[Case]:
        """Return the controls of a role."""
        return [case for case in self.controls if case.role == role]

    @property
    def made(self) -> list[Case]:
        """Controls that a text makes: of an output what texts do, of a stream their vectors."""
        return self.of(TEXT) or self.of(NATURAL)

    @property
    def controlled(self) -> bool:
        """Whether there are enough controls of both kinds for a statement."""
        return min(len(self.made), len(self.of(RANDOM))) > 1

    @property
    def bar(self) -> float:
        """What a share must exceed."""
        return between(self.made, self.of(RANDOM))[0]

    @property
    def mistaken(self) -> float:
        """How many of either kind of control would be on the wrong side of the bar."""
        return between(self.made, self.of(RANDOM))[1]

    @property
    def verdict(self) -> Verdict:
        """What the test comes to."""
        if not self.controlled:
            return Verdict.UNCONTROLLED
        # No string at all has a share of zero: a bar below that would let anything pass.
        if self.mistaken > MISTAKEN or self.bar <= 0:
            return Verdict.POWERLESS
        return Verdict.REACHABLE if self.found.share > self.bar else Verdict.NOT

    def data(self) -> dict[str, Any]:
        """Return all of it as JSON can hold it."""
        bar = {"bar": self.bar, "mistaken": self.mistaken} if self.controlled else {}
        return asdict(self) | {"verdict": self.verdict.value} | bar

    @classmethod
    def read(cls, kept: Mapping[str, Any]) -> Test:
        """Return what `data` wrote."""
        own = (kept["aim"], kept["layer"], kept["usual"], case(kept["found"]))
        return cls(*own, tuple(map(case, kept["controls"])))

    @property
    def words(self) -> str:
        """Say in a few sentences what the evidence allows."""
        own = self.found
        where = "of what is said" if self.layer is None else f"at layer {self.layer}"
        what = f"direction of the change {where}"
        does = f"has {own.share:.0%} of it on fresh prompts ({own.low:.0%} to {own.high:.0%})"
        said = [f"{what}: {self.verdict.value}", f"the best string, “{own.string}”, {does}"]
        beside = [
            f"{name} {_span([case.share for case in some])}"
            for name, some in (
                ("what known texts do is reached to", self.of(TEXT)),
                ("vectors of known texts are reached to", self.of(NATURAL)),
                ("random ones to", self.of(RANDOM)),
                ("the shuffled one to", self.of(SHUFFLED)),
            )
            if some
        ]
        said += ["; ".join(beside)] if beside else []
        if self.controlled:
            wrong = f"{self.mistaken:.0%} of either would be on the wrong side of it"
            said.append(f"the bar between texts and random ones is {self.bar:.0%}, and {wrong}")
            if own.low < self.bar < own.high:
                said.append("the interval holds the bar: a longer search may say otherwise")
        times = own.effect / self.usual
        said.append(f"its change is {times:.2g} times as large as a natural string's")
        if own.alike is not None and own.plain is not None:
            likely = "a realistic text" if own.realistic else "no realistic text"
            said.append(
                f"the string is {likely} ({own.natural:.0%} of natural ones are no likelier), and "
                f"answers with it are like those under the perturbation at {own.alike:.2f} of 1, "
                f"plain ones at {own.plain:.2f}"
            )
        return ". ".join(f"{one[:1].upper()}{one[1:]}" for one in said) + "."


@dataclass(frozen=True)
class Reachability:
    """Whether a text does what a perturbation does, with the evidence.

    Attributes:
        number: The perturbation.
        arm: Found or control.
        norm: Its norm, and that of random ones.
        settings: How it was inverted.
        tests: One for each aim.
    """

    number: int
    arm: str
    norm: float
    settings: Settings
    tests: tuple[Test, ...]

    @property
    def verdict(self) -> Verdict:
        """Reachable where one test says so; not reachable where one says that, and none reachable.

        What can say nothing does not count against what can.
        """
        said = {test.verdict for test in self.tests}
        return next(one for one in Verdict if one in said)

    @property
    def words(self) -> str:
        """Say what all tests come to, and then each."""
        said = self.verdict.value
        told = [f"{said[:1].upper()}{said[1:]}.", *(test.words for test in self.tests)]
        if (n := self.settings.controls) < Settings.controls:
            told.append(
                f"Only {n} of {Settings.controls} controls of a kind were run, as asked: it says "
                "less than it could."
            )
        return " ".join(told)

    def data(self) -> dict[str, Any]:
        """Return all of it, and the words, as JSON can hold it."""
        tests = [test.data() for test in self.tests]
        said = {"verdict": self.verdict.value, "words": self.words}
        return asdict(self) | {"tests": tests} | said

    @classmethod
    def read(cls, kept: Mapping[str, Any]) -> Reachability:
        """Return what `data` wrote."""
        own, tests = (kept["number"], kept["arm"], kept["norm"]), map(Test.read, kept["tests"])
        return cls(*own, Settings(**kept["settings"]), tuple(tests))


def between(made: Sequence[Case], random: Sequence[Case]) -> tuple[float, float]:
    """Return the bar between two kinds of cases, and how many of either are on its wrong side."""
    (m, s), (n, r) = _spread(made), _spread(random)
    few = min(len(made), len(random))
    free = few - 1
    low, high = sorted((s, r))
    if high**2 <= low**2 * fisher.isf(ONE / 2, free, free):  # they may well spread alike
        s = r = math.sqrt((s**2 + r**2) / 2)
        free *= 2
    z = (m - n) / max(s + r, 1e-9)
    return n + z * r, float(student.sf(z / math.sqrt(1 + 1 / few), free))


def _spread(cases: Sequence[Case]) -> tuple[float, float]:
    """Return the mean of shares, and how far they lie apart.

    Few that happen to agree lie no closer than each could be told from its prompts.
    """
    shares, errors = [c.share for c in cases], [(c.high - c.low) / (2 * NORMAL) for c in cases]
    return fmean(shares), max(stdev(shares), fmean(errors))


def case(kept: Mapping[str, Any]) -> Case:
    """Return a case as it was kept."""
    lists = {name: tuple(map(tuple, kept[name])) for name in ("curve", "front")}
    lists["texts"] = tuple(kept["texts"])
    return Case(**{**kept, **lists})


def _span(shares: Sequence[float]) -> str:
    if len(shares) == 1:
        return f"{shares[0]:.0%}"
    return f"{min(shares):.0%} to {max(shares):.0%} ({len(shares)})"
