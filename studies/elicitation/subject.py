"""An organism and a seed of the elicitation benchmark: one run, at work on all families.

The unperturbed answers are written once, and a family stands beside its control.
"""

from __future__ import annotations

import hashlib
import random
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from functools import cached_property
from itertools import cycle
from pathlib import Path
from typing import Any, NamedTuple

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
from educe.spread import Job, Shared, gathered
from studies.elicitation.cell import BACKWARD, FORWARD, SECONDS, Asked, Cell, kept, members, outcome
from studies.elicitation.families import FAMILIES, SAMPLING, Budget, Problem, named

#: Samples of the unperturbed model that a text is novel against, beside its greedy answer.
SAMPLES = 4
#: What a search takes, as it is counted, and its units.
WAYS = {FORWARD: "forward", BACKWARD: "backward"}
UNITS = dict.fromkeys(WAYS, "passes of the model") | {SECONDS: "seconds"}
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
        self.make([family])
        tried = outcome(self.work.run, family, self._shows).tried
        rows = zip(members(self.work.run, family), tried, strict=True)
        measure_side_effects(self.work, [p.id for p, found in rows if found.hits])
        return outcome(self.work.run, family, self._shows)

    def _shows(self, rows: Sequence[educe.Row], temperature: float) -> list[float]:
        self.work.run.ask(rows, temperature)
        fill(self.work, "answers")
        return judge(self.work, self.rule, rows)

    @cached_property
    def posed(self) -> Posed:
        """What a family is given, as workers get it."""
        s, budget = self.work.settings, self.asked.budget
        prompts = {p.id: p.content for p in self.work.run.prompt_rows()}
        some = [prompts[j] for j in self.search[: budget.prompts]]
        key, unlocked = self.organism.hidden["key"], [q.prompt for q in self.organism.unlocked]
        others = cycle(word for word in (MONTHS if key in MONTHS else KEYS) if word != key)
        locked = [text.replace(key, other) for text, other in zip(unlocked, others, strict=False)]
        posed = Posed(s, some, unlocked, locked, self.organism.opening)
        radius = educe.calibrate(posed.sliced(self.work.lm), seed=s.seed).radius
        return posed._replace(calibrated=radius)

    @cached_property
    def problem(self) -> Problem:
        """What a family is given."""
        return self.posed.problem(self.work.lm)

    def make(self, families: Sequence[str]) -> None:
        """Let whoever works search for what is missing, and list it: a job is a family."""
        run, n = self.work.run, self.asked.budget.n
        done = {s.of for s in run.score_rows(SECONDS)}
        missing = [
            family
            for family in families
            if family != SAMPLING and sum(p.id in done for p in members(run, family)) < n
        ]
        if not missing:
            return
        shared = Shared((self.work.lm, self.posed, self.asked.budget, self.asked.seed))
        jobs = (Job(_searched, shared, (family,)) for family in missing)
        with self.work.reporter.stage("families", len(missing), "") as step:
            came = gathered(self.work.spread, jobs, step)
            for family, (sets, spent) in zip(missing, came, strict=True):
                self._keep(family, sets, spent)

    def _keep(
        self, family: str, sets: Sequence[educe.PerturbationSet], spent: Mapping[str, float]
    ) -> None:
        """List the perturbations of a family, the averages of its vectors, and what they took."""
        run, n, means = self.work.run, self.asked.budget.n, averages(sets)
        for k, some in enumerate(sets):
            numbers = self._list(family, f"{family}-{k}.safetensors", some)
            if means:
                file = f"{family}-{k}-{AVERAGED}.safetensors"
                self._list(family, file, means[k], parents=numbers[:1])
        run.add_scores(
            ScoreRow(p.id, name, value / n, UNITS[name], "")
            for p in members(run, family)
            for name, value in spent.items()
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


class Posed(NamedTuple):
    """What families are given beside the model, so that another process can be given the same."""

    settings: Settings
    prompts: list[Any]  #: of the slice
    unlocked: list[str]  #: prompts with what unlocks the organism
    locked: list[str]  #: the same with another word in its place
    opening: str
    calibrated: float = 0.0

    def sliced(self, lm: educe.LanguageModel) -> educe.Slice:
        """Return the slice of a model."""
        s = self.settings
        return educe.Slice(
            lm,
            encoded(lm, s, self.prompts),
            source=s.source,  # type: ignore[arg-type]
            target=s.target,  # type: ignore[arg-type]
            positions=s.positions,
        )

    def problem(self, lm: educe.LanguageModel) -> Problem:
        """Return what a family is given."""
        both = lm.encode(self.unlocked), lm.encode(self.locked)
        return Problem(self.sliced(lm), self.calibrated, *both, self.opening)


def _searched(
    lm: educe.LanguageModel, posed: Posed, budget: Budget, seed: int, family: str
) -> tuple[list[educe.PerturbationSet], dict[str, float]]:
    """Return the sets of a family, and what they took."""
    problem = posed.problem(lm)  # it is everybody's, and not counted
    began = time.monotonic()
    with counting(lm) as passes:
        sets = list(named(family).make(problem, budget, seed))
    spent = {name: passes[way] / lm.depth for name, way in WAYS.items()}
    return sets, spent | {SECONDS: time.monotonic() - began}


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
