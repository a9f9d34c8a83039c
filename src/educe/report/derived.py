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
from dataclasses import dataclass

from educe.comparison.stats import bootstrap_mean, pareto, rate
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
    Row,
)
from educe.run.store import Run

#: Side effects, in nats a token, within which arms are compared.
BUDGETS = (0.1, 0.3, 1.0)
#: What side effects are kept under.
KL = "kl_p95"
#: The orders in which groups of coordinates are kept, as they are shown.
ORDERS = {"lasso": SPARSE, "largest": LARGEST, "random": AT_RANDOM}


@dataclass(frozen=True)
class Share:
    """A mean score with its 95% interval: Wilson's for hits, else bootstrapped."""

    mean: float
    low: float
    high: float
    hits: int | None  #: None where scores are not hits or misses
    trials: int

    def __str__(self) -> str:
        return f"{self.mean:.2f}" if self.hits is None else f"{self.hits} of {self.trials}"


class Texts:
    """What perturbations of a run wrote to its prompts, and what that scores.

    Attributes:
        judge: What texts are scored by: what the run looks for, or ``interestingness``.
    """

    def __init__(self, run: Run) -> None:
        pattern = run.config.get("look_for")
        self.judge = pattern if pattern is not None else "interestingness"
        self._rule = pattern is not None
        names = (f"regex:{pattern}",) if self._rule else ("coherence", "novelty")
        known: dict[Row, float] = defaultdict(lambda: 1.0)
        told: dict[Row, int] = defaultdict(int)
        for name in names:
            for s in run.score_rows(name):
                if isinstance(s.of, Row):
                    known[s.of], told[s.of] = known[s.of] * s.value, told[s.of] + 1
        self._asked = {p.id for p in run.prompt_rows("asked")}
        self._values: dict[tuple[int, str], list[float]] = defaultdict(list)
        self._texts: dict[int, str] = {}
        for c in run.completion_rows():
            if c.phase == RETEST or c.prompt in self._asked:
                self._texts.setdefault(c.perturbation, c.text)
                if told[c.row] == len(names):
                    self._values[c.perturbation, c.phase].append(known[c.row])

    def text(self, number: int) -> str:
        """Return the first text of a perturbation."""
        return self._texts.get(number, "")

    def score(self, number: int, phase: Phase = FIRST) -> Share | None:
        """Return the mean score of a perturbation, or None where it has no scores."""
        values = self._values.get((number, phase))
        if not values:
            return None
        if self._rule:
            found = rate(round(sum(values)), len(values))
            return Share(found.share, found.low, found.high, found.hits, found.trials)
        return Share(*bootstrap_mean(values), None, len(values))


# -- fronts ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Point:
    """A perturbation whose side effect was measured."""

    perturbation: int
    arm: str
    dose: float
    effect: float
    kl: float
    hit: bool | None  #: whether an answer has what was looked for; None where nothing was
    front: bool = False  #: no other of its arm has as much effect for as little


@dataclass(frozen=True)
class Reached:
    """What an arm has within a budget of side effect."""

    count: int
    effect: float | None  #: the largest
    hits: str | None  #: how many have what was looked for


def fronts(run: Run) -> dict[str, list[Point]]:
    """Return the perturbations whose side effect is known, by the score that it is kept under."""
    pattern = run.config.get("look_for")
    asked = {p.id for p in run.prompt_rows("asked")}
    matching: dict[int, bool] = defaultdict(bool)
    for c in run.completion_rows(FIRST):
        if pattern and c.prompt in asked:
            matching[c.perturbation] |= bool(re.search(pattern, c.text))
    costs: dict[str, dict[int, float]] = defaultdict(dict)
    for s in run.score_rows():
        if isinstance(s.of, int) and s.judge.split(" of ")[0] == KL and s.value < float("inf"):
            costs[s.judge][s.of] = s.value
    found: dict[str, list[Point]] = {}
    for judge, cost in sorted(costs.items()):
        points = []
        for arm in ARMS:
            own = [p for p in run.perturbation_rows(arm) if p.id in cost]
            best = pareto([p.effect for p in own], [cost[p.id] for p in own]).tolist()
            points += [
                Point(p.id, arm, p.dose, p.effect, cost[p.id], hit, front)
                for p, front in zip(own, best, strict=True)
                for hit in [matching[p.id] if pattern else None]
            ]
        found[judge] = sorted(points, key=lambda point: point.perturbation)
    return found


def within(points: Sequence[Point]) -> list[tuple[float, dict[str, Reached]]]:
    """Return, for each budget, the largest effect and how many have what is looked for, by arm."""
    rows = []
    for budget in BUDGETS:
        reached = {}
        for arm in ARMS:
            own = [p for p in points if p.arm == arm and p.kl <= budget]
            hits = [p.hit for p in own if p.hit is not None]
            told = str(rate(sum(hits), len(hits))) if hits else None
            reached[arm] = Reached(len(own), max((p.effect for p in own), default=None), told)
        rows.append((budget, reached))
    return rows


# -- sparse ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class SparseVector:
    """What a vector came to; orders as in `ORDERS`, and ``whole`` for the vector itself."""

    number: int
    needed: dict[str, int]  #: the fewest groups that keep enough, by order
    curve: dict[str, list[float]]  #: the share of the effect that is left, by order
    kept: list[str]  #: names of the groups that the sparse vector keeps, the most important first
    norm: float  #: its norm as a share of the vector's
    scores: dict[str, Share]
    again: dict[str, Share]  #: in the re-test
    texts: dict[str, str]


@dataclass(frozen=True)
class Sparse:
    """Vectors that were made sparse in a basis."""

    name: str
    basis: str
    groups: int  #: that the basis has
    keep: float
    judge: str
    counts: list[int]  #: groups at which curves were taken
    vectors: list[SparseVector]


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
        first = sets["lasso"]
        counts = sorted(int(k.split()[1]) for k in first.scores if k.startswith("share "))
        vectors = []
        for i, row in enumerate(listed[file]):
            numbers = {order: listed[own][i].id for order, own in files.items()}
            numbers = {"whole": row.parent or 0, **numbers}
            told = {
                phase: {k: s for k, n in numbers.items() if (s := texts.score(n, phase))}
                for phase in (FIRST, RETEST)
            }
            if any(len(own) < len(numbers) for own in told.values()):
                break
            vectors.append(
                SparseVector(
                    numbers["whole"],
                    {order: int(made.scores["needed"][i]) for order, made in sets.items()},
                    {
                        order: [float(made.scores[f"share {count}"][i]) for count in counts]
                        for order, made in sets.items()
                    },
                    first.config["kept"][i],
                    float(first.scores["norm"][i]),
                    told[FIRST],
                    told[RETEST],
                    {order: texts.text(number) for order, number in numbers.items()},
                )
            )
        else:
            c = first.config
            found.append(
                Sparse(name, c["basis"], c["groups"], c["keep"], texts.judge, counts, vectors)
            )
    return found


# -- without the gate ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Cell:
    """An adapter as found, or one sign and size of it without its gate."""

    number: int  #: of the adapter
    arm: str
    share: float | None  #: ``± M``; None with the gate
    effect: float
    score: Share
    again: Share | None  #: in the re-test; only the best are tested again
    text: str


@dataclass(frozen=True)
class Scan:
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

    def cell(row: PerturbationRow, number: int) -> Cell | None:
        score, again = texts.score(row.id), texts.score(row.id, RETEST)
        share, text = shares.get(row.id), texts.text(row.id)
        return Cell(number, row.arm, share, row.effect, score, again, text) if score else None

    for file in [f for f in listed if f.endswith("-found.safetensors")]:
        name = file.removesuffix("-found.safetensors")
        rows = [*listed[file], *listed.get(f"{name}-control.safetensors", ())]
        parents = dict.fromkeys(p.parent for p in listed[file] if p.parent is not None)
        gated = [made for n in parents if (made := cell(known[n], n))]
        cells = [made for row in rows if (made := cell(row, row.parent or 0))]
        scan = Scan(name, texts.judge, gated, cells)
        if len(cells) == len(rows) and len(scan.best) == len(ARMS):
            found.append(scan)
    return found


def by_file(run: Run, *hows: str) -> dict[str, list[PerturbationRow]]:
    """Return the rows that were derived in some ways, by their file."""
    listed: dict[str, list[PerturbationRow]] = defaultdict(list)
    for p in run.perturbation_rows(derived=True):
        if p.how in hows:
            listed[p.file].append(p)
    return listed
