"""The benchmark's table, computed from the tables of its runs alone.

For each organism and family, over seeds:

- *elicits*: perturbations of which at least one of the first answers shows what is hidden
- *first success*: completions until one shows it, one over the share of first completions that do
- *best*, *blind*, *average*: share of fresh questions on which the perturbation chosen by the rule,
  the most interesting one, and the mean of the family's vectors show it; for `locked`, whose base
  answers all of these questions and whose organism none, that share is the gap recovered
- *coherence*, *side effect*: means over the perturbations that elicit, with bootstrap intervals
- *chance*: what the best of as many would reach on the questions it was chosen by, had all of the
  control's rate

p compares a family with its control within each cell and radius, where both answer the same
questions, so that easy questions and leaky organisms speak for neither; it is Holm's, over the
families of an organism. Two things it does not know: power finds the same vectors at each of its
radii and, on the same question, for each seed; and intervals take what is counted as independent,
so they are too narrow, the more so the fewer the seeds.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

import numpy as np

import educe
from educe.comparison.chance import Chance, best_by_chance
from educe.comparison.stats import Rate, bootstrap_mean, more_often_within, rate
from educe.run.store import Run
from studies.elicitation.cell import Asked, Cell, Retested, outcome
from studies.elicitation.families import FAMILIES, SAMPLING
from studies.holm import holm


class Mean(NamedTuple):
    """A mean, NaN of no values, with a 95% bootstrap interval, NaN of a single one."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        if np.isnan(self.low):
            return "–" if np.isnan(self.value) else f"{self.value:.2f}"
        return f"{self.value:.2f} ({self.low:.2f} to {self.high:.2f})"


@dataclass(frozen=True)
class Line:
    """One family on one organism, over seeds.

    Attributes:
        organism: Its name.
        family: Its name.
        cells: How many.
        elicits: Perturbations that elicit.
        p: One-sided p-value that it does so more often than its control, within cells and radii,
            corrected for the number of families (Holm 1979); NaN for what has no control.
        completions: First completions that show what is hidden.
        chosen: Share of its questions that the best was chosen by, a mean over cells.
        chance: What the best of as many of the control's rate would reach there; None as long as
            the control has no cell.
        best: Re-test of the best by the rule.
        blind: Re-test of the most interesting.
        average: Re-test of the mean of the family's vectors; None where it has none.
        coherence: Of the first completions that show it, a mean over perturbations that elicit.
        side_effect: KL on ordinary prompts in nats, a mean over perturbations that elicit.
        passes: Of the whole model, forward and backward, a perturbation: rows of all blocks that
            ran, divided by the number of blocks.
        seconds: Searching, a cell.
    """

    organism: str
    family: str
    cells: int
    elicits: Rate
    p: float
    completions: Rate
    chosen: float
    chance: Chance | None
    best: Rate
    blind: Rate
    average: Rate | None
    coherence: Mean
    side_effect: Mean
    passes: tuple[float, float]
    seconds: float

    @property
    def first_success(self) -> tuple[float, float, float]:
        """Completions until one shows it: expected, and the ends of its interval."""
        c = self.completions
        return tuple(1 / x if x else np.inf for x in (c.share, c.high, c.low))  # type: ignore[return-value]


def read_cells(folder: Path) -> list[Cell]:
    """Return the cells of the runs in a folder, but for those that are not done."""
    cells = []
    for path in sorted(folder.glob("*/run.sqlite")):
        with Run.open(path.parent) as run:
            if not run.has("elicitation"):
                continue
            known = {s.of: s.value for s in run.score_rows(Asked.of(run).rule)}

            def shows(
                rows: Sequence[educe.Row], _: float, known: dict[educe.Row | int, float] = known
            ) -> list[float]:
                return [known[row] for row in rows]

            listed = {p.method for p in run.perturbation_rows()}
            for family in (SAMPLING, *(name for name in FAMILIES if name in listed)):
                try:
                    cells.append(outcome(run, family, shows))
                except KeyError:  # an answer that is not written yet
                    continue
    return cells


def lines(cells: Sequence[Cell]) -> list[Line]:
    """Return a line for each organism and family that has cells."""
    order = [SAMPLING, *FAMILIES]
    pairs = {(c.organism, c.family) for c in cells}
    made = [
        _line(organism, family, cells)
        for organism, family in sorted(pairs, key=lambda pair: (pair[0], order.index(pair[1])))
    ]
    return [line for _, some in groupby(made, lambda line: line.organism) for line in _holm(some)]


def _holm(some: Iterable[Line]) -> list[Line]:
    """Correct the p-values of one organism's families for how many they are."""
    table = list(some)
    tested = {line.family: line.p for line in table if not np.isnan(line.p)}
    corrected = dict(zip(tested, holm([*tested.values()]), strict=True))
    return [replace(line, p=corrected.get(line.family, np.nan)) for line in table]


def _line(organism: str, family: str, cells: Sequence[Cell]) -> Line:
    mine = [c for c in cells if (c.organism, c.family) == (organism, family)]
    control = FAMILIES[family].control if family in FAMILIES else family
    # Seed by seed the same, so that neither arm has an organism that the other has not.
    theirs = [c for c in cells if (c.organism, c.family) == (organism, control)]
    seeds = {_seeds(c) for c in mine} & {_seeds(c) for c in theirs}
    paired, against = ([c for c in some if _seeds(c) in seeds] for some in (mine, theirs))
    trials = int(np.mean([c.chosen_by for c in mine]))
    averages = [c.average for c in mine if c.average]
    null = _completions(against)
    return Line(
        organism=organism,
        family=family,
        cells=len(mine),
        elicits=rate(
            sum(p.hits > 0 for c in mine for p in c.tried), sum(len(c.tried) for c in mine)
        ),
        p=_p(paired, against) if seeds and control != family else np.nan,
        completions=_completions(mine),
        chosen=_mean(c.best.share for c in mine),
        chance=best_by_chance(len(mine[0].tried), trials, null.share) if seeds else None,
        best=_pooled(c.best for c in mine),
        blind=_pooled(c.blind for c in mine),
        average=_pooled(averages) if averages else None,
        coherence=_price(p.coherence for c in mine for p in c.tried),
        side_effect=_price(p.side_effect for c in mine for p in c.tried),
        passes=(_mean(c.passes[0] for c in mine), _mean(c.passes[1] for c in mine)),
        seconds=_mean(c.seconds for c in mine),
    )


def _seeds(cell: Cell) -> tuple[int, int]:
    return cell.organism_seed, cell.seed


def _p(mine: Sequence[Cell], theirs: Sequence[Cell]) -> float:
    """Compare cells of the same seeds with those of the control, radius by radius."""
    ours, others = (_by_radius(some) for some in (mine, theirs))
    return more_often_within((ours[key], others[key]) for key in ours)


def _by_radius(cells: Iterable[Cell]) -> dict[tuple[int, int, int], Rate]:
    hits: dict[tuple[int, int, int], list[bool]] = defaultdict(list)
    for c in cells:
        for p in c.tried:
            hits[*_seeds(c), p.ladder].append(p.hits > 0)
    return {key: rate(sum(some), len(some)) for key, some in hits.items()}


def _completions(cells: Sequence[Cell]) -> Rate:
    """Return the rate of first completions that show it."""
    return rate(
        sum(p.hits for c in cells for p in c.tried), sum(len(c.tried) * c.questions for c in cells)
    )


def _pooled(results: Iterable[Retested]) -> Rate:
    some = list(results)
    return rate(sum(r.hits for r in some), sum(r.trials for r in some))


def _price(values: Iterable[float | None]) -> Mean:
    """Return the mean over perturbations that elicit."""
    some = [value for value in values if value is not None]
    return Mean(*bootstrap_mean(some)) if len(some) > 1 else Mean(_mean(some), np.nan, np.nan)


def _mean(values: Iterable[float]) -> float:
    some = list(values)
    return float(np.mean(some)) if some else np.nan


HEAD = (
    "family",
    "elicits",
    "p",
    "all first answers",
    "first success after",
    "chosen by (chance)",
    "best, re-tested",
    "blind, re-tested",
    "mean vector",
    "coherence",
    "side effect",
    "passes",
    "search",
)


def markdown(table: Sequence[Line]) -> str:
    """Return the table in Markdown, one part for each organism."""
    parts = []
    for organism in dict.fromkeys(line.organism for line in table):
        rows = [_row(line) for line in table if line.organism == organism]
        body = "\n".join(f"| {' | '.join(row)} |" for row in rows)
        head = f"| {' | '.join(HEAD)} |\n|{'---|' * len(HEAD)}"
        parts.append(f"### {organism}\n\n{head}\n{body}")
    return "\n\n".join(parts)


def _row(line: Line) -> list[str]:
    middle, low, high = line.first_success
    until = f"{middle:.0f} ({low:.0f} to {high:.0f})" if middle < np.inf else f"> {low:.0f}"
    return [
        line.family,
        str(line.elicits),
        "–" if np.isnan(line.p) else f"{line.p:.2g}",
        str(line.completions),
        until,
        f"{line.chosen:.0%} ({line.chance.mean:.0%})" if line.chance else f"{line.chosen:.0%} (–)",
        str(line.best),
        str(line.blind),
        "–" if line.average is None else str(line.average),
        str(line.coherence),
        str(line.side_effect),
        f"{line.passes[0]:.0f} + {line.passes[1]:.0f}",
        f"{line.seconds:.0f} s",
    ]
