"""An organism and a seed of the elicitation benchmark: one run, at work on all families.

The unperturbed answers are written once, and a family stands beside its control.
"""

from __future__ import annotations

import hashlib
import random
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from functools import cached_property
from itertools import cycle
from pathlib import Path

from torch.nn.functional import normalize

import educe
from benchmarks.measuring import counting
from educe.errors import OrganismError, RunError
from educe.organisms import Organism
from educe.organisms.words import KEYS, MONTHS
from educe.perturbation.kinds import Vectors
from educe.rows import CONTROL, FOUND, ScoreRow
from educe.run.asking import baseline
from educe.run.chosen import measure_side_effects
from educe.run.fill import add_set, fill, judge
from educe.run.settings import Settings, begin, encoded
from educe.run.store import Run
from educe.run.work import Work
from studies.elicitation.cell import BACKWARD, FORWARD, SECONDS, Asked, Cell, kept, members, outcome
from studies.elicitation.families import FAMILIES, SAMPLING, Budget, Problem, named

#: Samples of the unperturbed model that a text is novel against, beside its greedy answer.
SAMPLES = 4
#: How the mean of a set of vectors is derived from them.
AVERAGED = "averaged"


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

    def score(self, answers: Sequence[educe.Answer]) -> list[educe.Score]:
        """Score answers, in their order."""
        shown = [self.questions[a.prompt].elicited(a.text) for a in answers]
        return [educe.Score(self.name, float(one), self.higher_is, "") for one in shown]


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
        **organism.how,
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
        judge(work, self.rule, [educe.Row(0, j) for j in everything])
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

    def _shows(self, rows: Sequence[educe.Row], temperature: float) -> list[float]:
        self.work.run.ask(rows, temperature)
        fill(self.work, "answers")
        return judge(self.work, self.rule, rows)

    @cached_property
    def problem(self) -> Problem:
        """What a family is given."""
        lm, s = self.work.lm, self.work.settings
        prompts = {p.id: p.content for p in self.work.run.prompt_rows()}
        some = [prompts[j] for j in self.search[: self.asked.budget.prompts]]
        part = educe.Slice(
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
            educe.calibrate(part, seed=s.seed).radius,
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
        self, family: str, file: str, some: educe.PerturbationSet, parents: list[int] | None = None
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


def _read(part: educe.Slice, some: educe.PerturbationSet) -> list[float]:
    """Return the norm of each one's effect at the target, of those above it at the next layer."""
    if some.kind.before != part.source:
        part = educe.Slice(
            part.lm,
            part.batch,
            source=some.kind.before,
            target=max(part.target, some.kind.last + 1),
            positions=some.kind.positions,
        )
    effect = part.on(some.kind).effect(some.theta.to(part.device))
    return [float(size) for size in effect.norm(dim=1)]


def averages(sets: Sequence[educe.PerturbationSet]) -> list[educe.PerturbationSet] | None:
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
