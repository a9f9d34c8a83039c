"""The benchmark's table, computed from its cells alone.

For each organism and family, over seeds:

- *elicits*: perturbations of which at least one of the first answers shows what is hidden
- *first success*: completions until one shows it, one over the share of first completions that do
- *best*, *blind*, *average*: share of fresh questions on which the perturbation chosen by the rule,
  the most striking one, and the mean of the family's vectors show it; for `locked`, whose base
  answers all of these questions and whose organism none, that share is the gap recovered
- *coherence*, *side effect*: means over the perturbations that elicit, with bootstrap intervals;
  cells that were run before each had its own give the completions that show it, and the best
- *chance*: what the best of as many would reach on the questions it was chosen by, had all of the
  control's rate

p compares a family with its control within each cell and radius, where both answer the same
questions, so that easy questions and leaky organisms speak for neither; it is Holm's, over the
families of an organism. Two things it does not know: power finds the same vectors at each of its
radii and, on the same question, for each seed; and intervals take what is counted as independent,
so they are too narrow, the more so the fewer the seeds.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from educe.bench.families import FAMILIES, SAMPLING
from educe.comparison.chance import Chance, best_by_chance
from educe.comparison.stats import Rate, bootstrap_mean, more_often_within, rate


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
        blind: Re-test of the most striking.
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


def read_cells(folder: Path) -> list[dict[str, Any]]:
    """Return all cells of a benchmark, without their texts."""
    cells = []
    for path in sorted(folder.glob("*.json")):
        if path.name != "settings.json":
            cell = json.loads(path.read_text(encoding="utf-8"))
            del cell["texts"]
            cells.append(cell)
    return cells


def lines(cells: Sequence[dict[str, Any]]) -> list[Line]:
    """Return a line for each organism and family that has cells."""
    order = [SAMPLING, *FAMILIES]
    pairs = {(c["organism"], c["family"]) for c in cells}
    made = [
        _line(organism, family, cells)
        for organism, family in sorted(pairs, key=lambda pair: (pair[0], order.index(pair[1])))
    ]
    return [line for _, some in groupby(made, lambda line: line.organism) for line in _holm(some)]


def _holm(some: Iterable[Line]) -> list[Line]:
    """Correct the p-values of one organism's families for how many they are (Holm 1979)."""
    table = list(some)
    tested = sorted((line for line in table if not np.isnan(line.p)), key=lambda line: line.p)
    corrected: dict[str, float] = {}
    largest = 0.0
    for k, line in enumerate(tested):
        largest = max(largest, min(1.0, (len(tested) - k) * line.p))
        corrected[line.family] = largest
    return [replace(line, p=corrected.get(line.family, np.nan)) for line in table]


def _line(organism: str, family: str, cells: Sequence[dict[str, Any]]) -> Line:
    mine = [c for c in cells if (c["organism"], c["family"]) == (organism, family)]
    control = FAMILIES[family].control if family in FAMILIES else family
    # Seed by seed the same, so that neither arm has an organism that the other has not.
    theirs = [c for c in cells if (c["organism"], c["family"]) == (organism, control)]
    seeds = {_seeds(c) for c in mine} & {_seeds(c) for c in theirs}
    paired, against = ([c for c in some if _seeds(c) in seeds] for some in (mine, theirs))
    questions = [c["spent"][0] // len(c["perturbations"]) for c in mine]
    more = [c["spent"][1] for c in mine]
    quarter = [-(-len(c["perturbations"]) // 4) for c in mine]
    trials = int(np.mean([q + m / k for q, m, k in zip(questions, more, quarter, strict=True)]))
    null = _completions(against)
    many = len(mine[0]["perturbations"])
    averages = [c["average"] for c in mine if c["average"]]
    return Line(
        organism=organism,
        family=family,
        cells=len(mine),
        elicits=_elicits(mine),
        p=_p(paired, against) if seeds and control != family else np.nan,
        completions=_completions(mine),
        chosen=float(np.mean([c["best"]["share"] for c in mine])),
        chance=best_by_chance(many, trials, null.share) if seeds else None,
        best=_pooled(c["best"] for c in mine),
        blind=_pooled(c["blind"] for c in mine),
        average=_pooled(averages) if averages else None,
        coherence=_price(mine, "coherence"),
        side_effect=_price(mine, "side_effect"),
        passes=tuple(_mean(c["passes"][way] for c in mine) for way in ("forward", "backward")),  # type: ignore[arg-type]
        seconds=_mean(c["seconds"]["search"] for c in mine),
    )


def _seeds(cell: dict[str, Any]) -> tuple[int, int]:
    return cell["organism_seed"], cell["seed"]


def _p(mine: Sequence[dict[str, Any]], theirs: Sequence[dict[str, Any]]) -> float:
    """Compare cells of the same seeds with those of the control, radius by radius."""
    ours, others = (_by_radius(some) for some in (mine, theirs))
    return more_often_within((ours[key], others[key]) for key in ours)


def _by_radius(cells: Iterable[dict[str, Any]]) -> dict[tuple[Any, ...], Rate]:
    hits: dict[tuple[Any, ...], list[bool]] = {}
    for c in cells:
        for p in c["perturbations"]:
            hits.setdefault((*_seeds(c), p["set"]), []).append(p["hits"] > 0)
    return {key: rate(sum(some), len(some)) for key, some in hits.items()}


def _elicits(cells: Iterable[dict[str, Any]]) -> Rate:
    hits = [p["hits"] > 0 for c in cells for p in c["perturbations"]]
    return rate(sum(hits), len(hits))


def _completions(cells: Iterable[dict[str, Any]]) -> Rate:
    some = list(cells)
    return rate(
        sum(p["hits"] for c in some for p in c["perturbations"]),
        sum(len(c["perturbations"]) * c["questions"] for c in some),
    )


def _pooled(results: Iterable[dict[str, Any]]) -> Rate:
    some = list(results)
    return rate(sum(r["hits"] for r in some), sum(r["trials"] for r in some))


def _price(cells: Iterable[dict[str, Any]], what: str) -> Mean:
    """Return the mean over perturbations that elicit."""
    values: list[float] = []
    for c in cells:
        if what == "coherence" and "coherence_of_hits" in c:
            values += c["coherence_of_hits"]
        else:
            values += [p[what] for p in (*c["perturbations"], c["best"]) if what in p]
    return Mean(*bootstrap_mean(values)) if len(values) > 1 else Mean(_mean(values), np.nan, np.nan)


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


def as_data(line: Line) -> dict[str, Any]:
    """Return a line for machines: what has no number is None."""
    first = dict(zip(("value", "low", "high"), line.first_success, strict=True))
    return _known(vars(line) | {"first_success": first})


def _known(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _known(inside) for name, inside in value.items()}
    if isinstance(value, Rate | Chance | Mean):
        return _known(value._asdict())
    if isinstance(value, tuple):
        return [_known(inside) for inside in value]
    return None if isinstance(value, float) and not np.isfinite(value) else value


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
