"""What was derived from perturbations of a run, and what it came to: read from the run's tables.

    fronts      effect against side effect, of every perturbation whose side effect was measured
    sparse      vectors of few groups of coordinates, beside the largest and random groups
    scans       adapters without their gates, at every sign and size, beside random ones

Nothing here needs a model. What is not finished yet is left out.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence
from functools import cached_property
from typing import NamedTuple

import numpy as np
import pandas as pd

from educe.comparison.stats import Estimate, Rate, estimate, pareto, rate
from educe.perturbation.set import PerturbationSet
from educe.rows import (
    ARMS,
    AT_RANDOM,
    FIRST,
    LARGEST,
    RETEST,
    SPARSE,
    UNGATED,
    PerturbationRow,
    Phase,
)
from educe.run.store import Run

#: Side effects, in nats a token, within which arms are compared.
BUDGETS = (0.1, 0.3, 1.0)
#: What side effects are kept under.
KL = "kl_p95"
#: The orders in which groups of coordinates are kept, as they are shown.
ORDERS = {"lasso": SPARSE, "largest": LARGEST, "random": AT_RANDOM}


class Texts:
    """What perturbations of a run wrote to its prompts, and what that scores.

    Attributes:
        pattern: What the run looks for, if it does.
        judge: What texts are scored by: that, or ``interestingness``.
    """

    def __init__(self, run: Run) -> None:
        self.run, self.pattern = run, run.config.get("look_for")
        self.judge = "interestingness" if self.pattern is None else self.pattern
        self._asked = {p.id for p in run.prompt_rows("asked")}

    @cached_property
    def written(self) -> pd.DataFrame:
        """The texts of the first count on the prompts asked, and of the re-test."""
        texts = self.run.completions
        return texts[texts.prompt.isin(self._asked) | (texts.phase == RETEST)]

    @cached_property
    def _values(self) -> dict[tuple[int, str], np.ndarray]:
        rule = self.pattern is not None
        names = [f"regex:{self.pattern}"] if rule else ["coherence", "novelty"]
        scores, keys = self.run.scores, ["perturbation", "prompt", "sample", "phase"]
        here = scores[scores.judge.isin(names) & scores.prompt.notna()]
        each = here.pivot(index=keys, columns="judge", values="value").reindex(columns=names)
        value = each.prod(axis=1, skipna=False).dropna().reset_index(name="value")
        value = value[value.prompt.isin(self._asked) | (value.phase == RETEST)]
        groups = value.groupby(["perturbation", "phase"]).value
        return {(int(n), phase): own.to_numpy()[:, None] for (n, phase), own in groups}

    @cached_property
    def _first(self) -> dict[int, str]:
        return self.written.groupby("perturbation").text.first().to_dict()

    def text(self, number: int) -> str:
        """Return the first text of a perturbation."""
        return self._first.get(number, "")

    def score(self, number: int, phase: Phase = FIRST) -> Estimate | None:
        """Return the mean score of a perturbation, or None where it has no scores."""
        values = self._values.get((number, phase))
        return None if values is None else estimate(values, self.pattern is not None)


# -- fronts ----------------------------------------------------------------------------------------


class Point(NamedTuple):
    """A perturbation whose side effect was measured."""

    perturbation: int
    arm: str
    dose: float
    effect: float
    kl: float
    hit: bool | None  #: whether an answer has what was looked for; None where nothing was
    front: bool = False  #: no other of its arm has as much effect for as little


class Reached(NamedTuple):
    """What an arm has within a budget of side effect."""

    n: int
    effect: float | None  #: the largest
    hits: Rate | None  #: how many have what was looked for


def fronts(run: Run) -> dict[str, list[Point]]:
    """Return the perturbations whose side effect is known, by the score that it is kept under."""
    costs = defaultdict[str, dict[int, float]](dict)
    for judge in run.judges():
        for s in run.score_rows(judge) if judge.split(" of ")[0] == KL else ():
            if isinstance(s.of, int) and s.value < float("inf"):
                costs[judge][s.of] = s.value
    if not costs:
        return {}
    texts = Texts(run)
    first, pattern = texts.written[texts.written.phase == FIRST], texts.pattern
    matching = {
        n
        for n, text in zip(first.perturbation, first.text, strict=True)
        if pattern is not None and re.search(pattern, text)
    }
    found: dict[str, list[Point]] = {}
    for judge, cost in sorted(costs.items()):
        found[judge] = []
        for arm in ARMS:
            own = [p for p in run.perturbation_rows(arm) if p.id in cost]
            best = pareto([p.effect for p in own], [cost[p.id] for p in own]).tolist()
            for p, front in zip(own, best, strict=True):
                hit = None if pattern is None else p.id in matching
                found[judge].append(Point(p.id, arm, p.dose, p.effect, cost[p.id], hit, front))
        found[judge].sort()
    return found


def within(points: Sequence[Point]) -> list[tuple[float, dict[str, Reached]]]:
    """Return, for each budget, the largest effect and how many have what is looked for, by arm."""

    def reached(own: list[Point]) -> Reached:
        hits = [p.hit for p in own if p.hit is not None]
        told = rate(sum(hits), len(hits)) if hits else None
        return Reached(len(own), max((p.effect for p in own), default=None), told)

    return [
        (budget, {a: reached([p for p in points if p.arm == a and p.kl <= budget]) for a in ARMS})
        for budget in BUDGETS
    ]


# -- sparse ----------------------------------------------------------------------------------------


class SparseVector(NamedTuple):
    """What a vector came to; orders as in `ORDERS`, and ``whole`` for the vector itself."""

    number: int
    needed: dict[str, int]  #: the fewest groups that keep enough, by order
    kept: list[str]  #: names of the groups that the sparse vector keeps, the most important first
    norm: float  #: its norm as a share of the vector's
    scores: dict[str, Estimate]
    again: dict[str, Estimate]  #: in the re-test
    texts: dict[str, str]


class Sparse(NamedTuple):
    """Vectors that were made sparse in a basis."""

    name: str
    basis: str
    groups: int  #: that the basis has
    keep: float
    judge: str
    vectors: list[SparseVector]
    curves: pd.DataFrame  #: the ``share`` of the effect that so many ``groups`` keep, by ``order``


def sparse(run: Run) -> list[Sparse]:
    """Return the vectors of a run that were made sparse, each time together."""
    texts, found = Texts(run), []
    listed = by_file(run, *ORDERS.values())
    for file in [f for f, rows in listed.items() if rows[0].how == SPARSE]:
        name = file.removesuffix("-sparse.safetensors")
        files = {order: f"{name}-{how.split()[-1]}.safetensors" for order, how in ORDERS.items()}
        if not set(files.values()) <= listed.keys():
            continue
        sets = {order: PerturbationSet.load(run.tensors / own) for order, own in files.items()}
        first, vectors = sets["lasso"], []
        for i, row in enumerate(listed[file]):
            numbers = {order: listed[own][i].id for order, own in files.items()}
            numbers = {"whole": row.parent or 0, **numbers}
            first_count, again = (
                {k: s for k, n in numbers.items() if (s := texts.score(n, phase))}
                for phase in (FIRST, RETEST)
            )
            if len(first_count) == len(again) == len(numbers):
                needed = {order: int(made.scores["needed"][i]) for order, made in sets.items()}
                kept, norm = first.config["kept"][i], float(first.scores["norm"][i])
                written = {order: texts.text(number) for order, number in numbers.items()}
                vectors.append(
                    SparseVector(numbers["whole"], needed, kept, norm, first_count, again, written)
                )
        if len(vectors) == len(listed[file]):
            rows = [
                (vector.number, order, int(score.split()[1]), value)
                for order, made in sets.items()
                for score, values in made.scores.items()
                if score.startswith("share ")
                for vector, value in zip(vectors, values.tolist(), strict=True)
            ]
            curves = pd.DataFrame(rows, columns=["number", "order", "groups", "share"])
            c = first.config
            facts = (name, c["basis"], c["groups"], c["keep"], texts.judge)
            found.append(Sparse(*facts, vectors, curves.sort_values("groups", kind="stable")))
    return found


# -- without the gate ------------------------------------------------------------------------------


class Cell(NamedTuple):
    """An adapter as found, or one sign and size of it without its gate."""

    number: int  #: of the adapter
    arm: str
    share: float | None  #: ``± M``; None with the gate
    effect: float
    score: Estimate
    again: Estimate | None  #: in the re-test; only the best are tested again
    text: str


class Scan(NamedTuple):
    """Adapters without their gates, beside random ones."""

    name: str
    judge: str
    gated: list[Cell]
    cells: list[Cell]

    @property
    def best(self) -> dict[str, Cell]:
        """The best of each arm: those that were tested again."""
        return {cell.arm: cell for cell in self.cells if cell.again}


def scans(run: Run) -> list[Scan]:
    """Return the scans of adapters of a run without their gates."""
    texts, found = Texts(run), []
    shares = {s.of: s.value for s in run.score_rows("share")}
    known = {p.id: p for p in run.perturbation_rows(derived=None)}
    listed = by_file(run, UNGATED)

    def told(rows: Sequence[PerturbationRow]) -> list[Cell]:
        each = ((p, texts.score(p.id), texts.score(p.id, RETEST)) for p in rows)
        return [
            Cell(p.parent or p.id, p.arm, shares.get(p.id), p.effect, s, again, texts.text(p.id))
            for p, s, again in each
            if s
        ]

    for file in [f for f in listed if f.endswith("-found.safetensors")]:
        name = file.removesuffix("-found.safetensors")
        rows = [*listed[file], *listed.get(f"{name}-control.safetensors", ())]
        parents = dict.fromkeys(p.parent for p in listed[file] if p.parent is not None)
        scan = Scan(name, texts.judge, told([known[n] for n in parents]), told(rows))
        if len(scan.cells) == len(rows) and len(scan.best) == len(ARMS):
            found.append(scan)
    return found


def by_file(run: Run, *hows: str) -> dict[str, list[PerturbationRow]]:
    """Return the rows that were derived in some ways, by their file."""
    listed: dict[str, list[PerturbationRow]] = defaultdict(list)
    for p in run.perturbation_rows(derived=True):
        if p.how in hows:
            listed[p.file].append(p)
    return listed
