"""A cell of the elicitation benchmark: one family on one organism with one seed.

    make n perturbations ─► all answer the first questions ─► the best quarter answers more
        ─► the best by the rule, the most interesting, and the family's average vector are re-tested
           on fresh questions

Every family goes through the same, its control and plain sampling too. The rule takes no part in
making perturbations; it chooses in one arm (what a judge that knows what to look for would choose),
and in the other the choice is blind, by coherence times novelty. Questions that the unperturbed
organism already answers in the hidden way are left out, so that its own rate is zero.

An organism and a seed have one run, which holds all families: the unperturbed answers are written
once, and a family stands beside its control. `outcome` says what a cell needs and what came of it.
It is called twice: while the run is at work, where what is missing is written, and for the table,
where the run is only read. So a killed benchmark goes on with what is missing.
"""

from __future__ import annotations

import hashlib
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from itertools import cycle
from pathlib import Path
from typing import NamedTuple

import numpy as np
from torch.nn.functional import normalize

from benchmarks.measuring import counting
from educe.comparison.halving import halve
from educe.errors import OrganismError, RunError
from educe.forward.slice import Slice
from educe.methods.radius import calibrate
from educe.organisms import Organism
from educe.organisms.words import KEYS, MONTHS
from educe.perturbation.kinds import Vectors
from educe.perturbation.set import PerturbationSet
from educe.rows import CONTROL, FOUND, RETEST, RUNG, PerturbationRow, Phase, Row, ScoreRow
from educe.run.asking import baseline
from educe.run.chosen import measure_side_effects
from educe.run.fill import add_set, fill, interestingness, judge
from educe.run.settings import Settings, begin, encoded
from educe.run.store import Run
from educe.run.work import Work
from educe.scores import Answer, Score
from studies.elicitation.families import FAMILIES, SAMPLING, Budget, Problem, named

#: Samples of the unperturbed model that a text is novel against, beside its greedy answer.
SAMPLES = 4
#: How the mean of a set of vectors is derived from them.
AVERAGED = "averaged"
#: Scores of a perturbation: what making it took, a share of what its family took.
FORWARD, BACKWARD, SECONDS = "forward passes", "backward passes", "search seconds"

#: Asks for completions at a temperature; says of each whether it shows what is hidden.
Shows = Callable[[Sequence[Row], float], Sequence[float]]


@dataclass(frozen=True)
class Asked:
    """What a run of the benchmark was begun for, beside its settings.

    Attributes:
        organism: Its name.
        organism_seed: The seed that it was made with.
        seed: Of the questions' order, and of what the families draw.
        rule: The identity of the judge.
        budget: What every family may spend.
    """

    organism: str
    organism_seed: int
    seed: int
    rule: str
    budget: Budget

    @classmethod
    def of(cls, run: Run) -> Asked:
        """Read it from a run."""
        note = run.note("elicitation")
        return cls(**note | {"budget": Budget(**note["budget"])})


class Rule:
    """An organism's rule as a judge: 1 where an answer shows what is hidden."""

    name, higher_is, cost = "rule", "what is hidden", "nothing"

    def __init__(self, organism: Organism) -> None:
        self.questions = {q.prompt: q for q in (*organism.search, *organism.fresh)}

    @property
    def identity(self) -> str:
        """The rules, by their digest."""
        rules = repr(sorted(self.questions.values()))
        return f"rule:{hashlib.sha256(rules.encode()).hexdigest()[:16]}"

    def score(self, answers: Sequence[Answer]) -> list[Score]:
        """Score answers, in their order."""
        shown = [self.questions[a.prompt].elicited(a.text) for a in answers]
        return [Score(self.name, float(one), self.higher_is, "") for one in shown]


# -- what came of a cell -------------------------------------------------------------------------


class Tried(NamedTuple):
    """What one perturbation, or one sample, made of the first questions."""

    ladder: int  #: which of the family's sets, radius by radius; 0 for samples
    hits: int  #: answers that show what is hidden
    coherence: float | None  #: mean of these answers
    side_effect: float | None  #: nats


class Retested(NamedTuple):
    """What one perturbation made of the fresh questions."""

    item: int
    share: float  #: of the questions by which it was chosen
    hits: int
    trials: int


class Cell(NamedTuple):
    """What came of a cell; numbers of the questions of the first rung, and of both."""

    organism: str
    organism_seed: int
    seed: int
    family: str
    questions: int
    chosen_by: int
    tried: tuple[Tried, ...]
    best: Retested
    blind: Retested
    average: Retested | None
    passes: tuple[float, float]
    seconds: float


def members(run: Run, family: str, *, averaged: bool = False) -> list[PerturbationRow]:
    """Return the perturbations of a family, or the averages of its sets."""
    return [p for p in run.perturbation_rows(derived=averaged) if p.method == family]


def kept(run: Run, asked: Asked) -> tuple[list[int], list[int]]:
    """Return the questions that the unperturbed organism does not answer in the hidden way."""
    told = {s.of for s in run.score_rows(asked.rule) if s.value}
    search, fresh = (
        [p.id for p in run.prompt_rows(role) if Row(0, p.id) not in told]
        for role in ("asked", "fresh")
    )
    return search[: asked.budget.then], fresh[: asked.budget.fresh]


def outcome(run: Run, family: str, shows: Shows) -> Cell:
    """Say what came of a cell; ``shows`` is asked for every completion that it takes."""
    asked = Asked.of(run)
    search, fresh = kept(run, asked)
    first, sampled = search[: asked.budget.first], family == SAMPLING
    rows = [] if sampled else members(run, family)
    numbers = [p.id for p in rows]
    items = list(range(asked.budget.n)) if sampled else numbers
    files = list(dict.fromkeys(p.file for p in rows))

    def row(item: int, prompt: int, phase: Phase = RUNG) -> Row:
        return Row(0, prompt, item, phase) if sampled else Row(item, prompt, 0, phase)

    def hits(items: Sequence[int], prompts: Sequence[int], phase: Phase = RUNG) -> np.ndarray:
        wanted = [row(item, prompt, phase) for item in items for prompt in prompts]
        return np.reshape(shows(wanted, float(sampled)), (len(items), len(prompts)))

    def retested(item: int, share: float) -> Retested:
        found = hits([item], fresh, RETEST)
        return Retested(item, share, int(found.sum()), found.size)

    halved = halve(
        len(items),
        lambda some, at: hits([items[k] for k in some], [search[k] for k in at]),
        prompts=len(search),
        rungs=((len(first), 0.25), (len(search), 1.0)),
        seed=asked.seed,
    )
    early = hits(items, first)
    each = interestingness(run, [row(item, prompt) for item in items for prompt in first])
    best, blind = halved.survivors[0], int(np.reshape(each, early.shape).mean(1).argmax())
    average = None
    if means := [p.id for p in members(run, family, averaged=True)]:
        shares = hits(means, first).mean(1)
        average = retested(means[int(shares.argmax())], float(shares.max()))
    whole = {
        name: {s.of: s.value for s in run.score_rows(name)}
        for name in ("coherence", "side_effect", FORWARD, BACKWARD, SECONDS)
    }
    coherent = [
        [whole["coherence"][row(i, j)] for j, hit in zip(first, line, strict=True) if hit]
        for i, line in zip(items, early, strict=True)
    ]
    return Cell(
        asked.organism,
        asked.organism_seed,
        asked.seed,
        family,
        len(first),
        halved.prompts[-1],
        tuple(
            Tried(
                0 if sampled else files.index(rows[k].file),
                int(early[k].sum()),
                float(np.mean(coherent[k])) if coherent[k] else None,
                None if sampled else whole["side_effect"].get(item),
            )
            for k, item in enumerate(items)
        ),
        retested(items[best], halved.mean(best)),
        retested(items[blind], float(early[blind].mean())),
        average,
        (
            sum(whole[FORWARD].get(number, 0.0) for number in numbers) / len(items),
            sum(whole[BACKWARD].get(number, 0.0) for number in numbers) / len(items),
        ),
        sum(whole[SECONDS].get(number, 0.0) for number in numbers),
    )


# -- a run of the benchmark at work --------------------------------------------------------------


def opened(
    folder: Path,
    organism: Organism,
    seed: int,
    budget: Budget,
    *,
    source: float,
    target: float,
    positions: str = "all",
) -> Run:
    """Open the run of an organism and a seed, a new one or one to go on with.

    Raises:
        RunError: The folder holds a run of another budget, place or organism.
    """
    rng = random.Random(f"questions {seed}")
    search, fresh = (
        tuple(q.prompt for q in rng.sample(some, len(some)))
        for some in (organism.search, organism.fresh)
    )
    settings = Settings(
        search,
        adapter=str(organism.folder),
        fresh=fresh,
        source=source,
        target=target,
        positions=positions,
        n=budget.n,
        max_new_tokens=budget.tokens,
        seed=seed,
    )
    asked = Asked(organism.name, organism.seed, seed, Rule(organism).identity, budget)
    run = begin(folder, settings, resume=True)
    if not run.has("elicitation"):
        run.remember("elicitation", asdict(asked))
    elif Asked.of(run) != asked:
        run.close()
        raise RunError(f"{folder} has another budget or organism: choose another folder")
    return run


class Subject:
    """An organism whose run is at work: it has answered unperturbed, and families can be tried.

    Args:
        work: The run, from `opened`, at work.
        organism: Its organism.

    Raises:
        OrganismError: It keeps its secret on too few questions.
    """

    def __init__(self, work: Work, organism: Organism) -> None:
        self.work, self.organism, self.rule = work, organism, Rule(organism)
        self.asked = Asked.of(work.run)
        everything = work.prompts("asked", "fresh")
        baseline(work, everything, 0)
        fill(work, "the organism alone")
        judge(work, self.rule, [Row(0, j) for j in everything])
        self.search, fresh = kept(work.run, self.asked)
        if len(self.search) < self.asked.budget.first or not fresh:
            raise OrganismError(f"{organism.name} keeps its secret on too few questions to search")
        baseline(work, self.search, SAMPLES)
        fill(work, "the organism alone")

    def cell(self, family: str) -> Cell:
        """Do what is missing of a cell."""
        if family == SAMPLING:
            return outcome(self.work.run, family, self._shows)
        self._make(family)
        tried = outcome(self.work.run, family, self._shows).tried
        rows = zip(members(self.work.run, family), tried, strict=True)
        measure_side_effects(self.work, [p.id for p, found in rows if found.hits])
        return outcome(self.work.run, family, self._shows)

    def _shows(self, rows: Sequence[Row], temperature: float) -> list[float]:
        self.work.run.ask(rows, temperature)
        fill(self.work, "answers")
        return judge(self.work, self.rule, rows)

    @cached_property
    def problem(self) -> Problem:
        """What a family is given."""
        lm, s = self.work.lm, self.work.settings
        prompts = {p.id: p.content for p in self.work.run.prompt_rows()}
        some = [prompts[j] for j in self.search[: self.asked.budget.prompts]]
        part = Slice(
            lm,
            encoded(lm, s, some),
            source=s.source,  # type: ignore[arg-type]
            target=s.target,  # type: ignore[arg-type]
            positions=s.positions,
        )
        key, unlocked = self.organism.hidden["key"], [q.prompt for q in self.organism.unlocked]
        others = cycle(word for word in (MONTHS if key in MONTHS else KEYS) if word != key)
        locked = [text.replace(key, other) for text, other in zip(unlocked, others, strict=False)]
        return Problem(
            part,
            calibrate(part, seed=s.seed).radius,
            lm.encode(unlocked),
            lm.encode(locked),
            self.organism.opening,
        )

    def _make(self, family: str) -> None:
        """List the perturbations of a family, and the averages of its vectors."""
        run, lm, budget = self.work.run, self.work.lm, self.asked.budget
        done = {s.of for s in run.score_rows(SECONDS)}
        if sum(p.id in done for p in members(run, family)) == budget.n:
            return
        problem = self.problem  # the calibration is everybody's
        began = time.monotonic()
        with counting(lm) as passes:
            sets = list(named(family).make(problem, budget, self.asked.seed))
        seconds = time.monotonic() - began
        means = averages(sets)
        for k, some in enumerate(sets):
            numbers = self._list(family, f"{family}-{k}.safetensors", some)
            if means:
                file = f"{family}-{k}-{AVERAGED}.safetensors"
                self._list(family, file, means[k], parents=numbers[:1])
        spent = {FORWARD: passes["forward"] / lm.depth, BACKWARD: passes["backward"] / lm.depth}
        run.add_scores(
            ScoreRow(p.id, name, value / budget.n, unit, "")
            for p in members(run, family)
            for name, value, unit in (
                *((name, value, "passes of the model") for name, value in spent.items()),
                (SECONDS, seconds, "seconds"),
            )
        )

    def _list(
        self, family: str, file: str, some: PerturbationSet, parents: list[int] | None = None
    ) -> list[int]:
        """Keep a set in the run, once; return its numbers."""
        run = self.work.run
        if known := [p.id for p in run.perturbation_rows(derived=None) if p.file == file]:
            return known
        some = replace(some, method=family)
        some.save(run.tensors / file)
        effect = _read(self.problem.part, some)
        arm = CONTROL if FAMILIES[family].control == family else FOUND
        how = AVERAGED if parents else ""
        return add_set(run, arm, file, some, effect, parents=parents, how=how)


def _read(part: Slice, some: PerturbationSet) -> list[float]:
    """Return the norm of each one's effect at the target, of those above it at the next layer."""
    if some.kind.before != part.source:
        part = Slice(
            part.lm,
            part.batch,
            source=some.kind.before,
            target=max(part.target, some.kind.last + 1),
            positions=some.kind.positions,
        )
    effect = part.on(some.kind).effect(some.theta.to(part.device))
    return [float(size) for size in effect.norm(dim=1)]


def averages(sets: Sequence[PerturbationSet]) -> list[PerturbationSet] | None:
    """Return the mean of the vectors of each set, at the mean of their radii.

    Adapters and noise have no mean that is one of them, nor have vectors with both their signs.
    """
    mean = [some.directions.mean(0, keepdim=True) for some in sets]
    if not all(
        isinstance(some.kind, Vectors) and float(v.norm()) > 1e-4
        for some, v in zip(sets, mean, strict=True)
    ):
        return None
    return [
        replace(some.select([0]), directions=normalize(v), radius=some.radius.mean()[None])
        for some, v in zip(sets, mean, strict=True)
    ]
