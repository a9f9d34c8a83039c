"""What a run found, read from the run alone: the numbers behind every table, page and figure.

completions and scores ─► texts, a row for each ─► perturbations ─► behaviours
"""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import zip_longest
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from educe.comparison.arrays import apart, arrays, where
from educe.comparison.behaviours import Behaviour, behaviours
from educe.comparison.fragility import Push, pushes
from educe.comparison.stats import Rate, bootstrap_mean, rate
from educe.comparison.texts import Texts, texts_of
from educe.rows import (
    ARMS,
    ELSEWHERE,
    EQUAL,
    FIRST,
    PROMPT_INVARIANCE,
    RETEST,
    SCALED,
    CompletionRow,
    PerturbationRow,
    PromptRow,
)
from educe.run.store import Run

#: Scores of a completion that are averaged.
SCORED = ("coherence", "novelty", "interestingness")


@dataclass(frozen=True, slots=True)
class Item:
    """One perturbation and what it made the model write."""

    row: PerturbationRow
    completions: array[int]  #: numbers of its texts in answer to the prompts that were asked
    retest: array[int]  #: those on fresh prompts or samples; empty when not re-tested
    coherence: float
    novelty: float
    interestingness: float  #: mean over completions of coherence times novelty
    retested: tuple[float, float, float] | None  #: interestingness again: mean, low, high
    invariance: float | None  #: how alike answers to different prompts are; None for one prompt
    side_effect: float | None  #: nats
    hits: int  #: completions that match the pattern looked for
    retest_hits: int
    best: int | None  #: the most interesting of its completions


@dataclass(frozen=True)
class Summary:
    """Everything a page or a table shows."""

    config: dict[str, Any]
    facts: dict[str, Any]  #: model, source, target, norms: what the run noted when it began
    prompts: tuple[PromptRow, ...]  #: asked
    fresh: tuple[PromptRow, ...]  #: of the re-test
    baseline: dict[int, tuple[CompletionRow, ...]]  #: by prompt, greedy first, then samples
    found: tuple[Item, ...]  #: most interesting first
    control: tuple[Item, ...]
    equal: tuple[Item, ...]  #: the control at equal effect, where there is one
    behaviours: tuple[Behaviour, ...]  #: in the order of the screen
    hits: tuple[Rate, Rate] | None  #: perturbations that hit the pattern: found and control
    retest_hits: tuple[Rate, Rate] | None  #: completions in the re-test that do
    by_radius: dict[float, tuple[Rate, Rate]]  #: the hits by radius
    responses: dict[int, list[tuple[float, float]]]  #: radius and norm of the effect
    pushes: tuple[Push, ...]  #: what each arm does at each dose
    texts: Texts  #: every text, by its number

    @cached_property
    def items(self) -> dict[int, Item]:
        """The perturbations of all arms, by their numbers."""
        return {i.row.id: i for i in (*self.found, *self.control, *self.equal)}

    def item(self, number: int) -> Item | None:
        """Return a perturbation by its number."""
        return self.items.get(number)


def summarise(run: Run) -> Summary:
    """Read a run."""
    config = run.config
    asked, fresh = (tuple(run.prompt_rows(role)) for role in ("asked", "fresh"))
    texts = texts_of(run)
    told = behaviours(texts, config.get("samples", 1))
    items = _items(run, texts.rows)
    found, control, equal = (tuple(i for i in items if i.row.arm == arm) for arm in (*ARMS, EQUAL))
    plain = texts.rows[texts.rows.perturbation == 0].groupby("prompt").number
    baseline = {int(prompt): tuple(texts.written(numbers)) for prompt, numbers in plain}
    looked = bool(config.get("look_for"))
    return Summary(
        config=config,
        facts=run.note("facts") if run.has("facts") else {},
        prompts=asked,
        fresh=fresh,
        baseline={p.id: baseline.get(p.id, ()) for p in (*asked, *fresh)},
        found=found,
        control=control,
        equal=equal,
        behaviours=told,
        hits=_hits(found, control) if looked else None,
        retest_hits=_retest_hits(found, control) if looked else None,
        by_radius={
            radius: _hits(
                [i for i in found if i.row.radius == radius],
                [i for i in control if i.row.radius == matched],
            )
            for radius, matched in _radii(run)
        }
        if looked
        else {},
        responses=_responses(run),
        pushes=pushes(texts.rows, config.get("samples", 1)),
        texts=texts,
    )


def counted(found: Sequence[Item], control: Sequence[Item]) -> str:
    """Say how many perturbations there are, at how many radii, and how many in the control."""
    sizes = Counter(item.row.radius for item in found)
    each = f"{next(iter(sizes.values()))} at each of " if len(set(sizes.values())) == 1 else "at "
    where = f": {each}{len(sizes)} radii" if len(sizes) > 1 else " at one radius" if sizes else ""
    beside = "as many" if len(control) == len(found) else str(len(control))
    return f"{len(found)} perturbations{where}, and {beside} in the control"


def _responses(run: Run) -> dict[int, list[tuple[float, float]]]:
    """Return radius and norm of the effect by perturbation, where it is known and finite."""
    rows = run.perturbations
    rows["of"] = rows.parent.where(rows.how == SCALED, rows.index.to_series())
    known = rows[(rows.radius > 0) & np.isfinite(rows.effect.astype(float))].dropna(subset="of")
    known = known.drop_duplicates(["of", "radius"], keep="last").sort_values("radius")
    known = known[known.of.duplicated(keep=False)]
    return {
        int(of): list(zip(own.radius, own.effect, strict=True)) for of, own in known.groupby("of")
    }


def _items(run: Run, texts: pd.DataFrame) -> list[Item]:
    """Return the perturbations, most interesting first."""
    every, number = arrays(_Own, texts), texts.perturbation.to_numpy()
    first = apart(number, (texts.phase == FIRST) & (texts.role == "asked"))
    later = apart(number, (texts.phase == RETEST) & (texts.role != ELSEWHERE))
    none = np.empty(0, int)
    query = (
        "SELECT perturbation, coalesce(value, 9e999) FROM scores "
        "WHERE perturbation IS NOT NULL AND judge = ?"  # which has an index of its own
    )
    invariance, side_effect = (
        dict(run.database.execute(query, (name,))) for name in (PROMPT_INVARIANCE, "side_effect")
    )
    items = []
    for row in run.perturbation_rows():
        main, second = (where(every, of.get(row.id, none)) for of in (first, later))
        retested = _known(second.interestingness)
        made = main.interestingness
        best = np.where(np.isnan(made), 0.0, made)
        items.append(
            Item(
                row=row,
                completions=_numbers(main),
                retest=_numbers(second),
                **{name: _mean(getattr(main, name)) for name in SCORED},
                retested=bootstrap_mean(retested) if len(retested) else None,
                invariance=invariance.get(row.id),
                side_effect=side_effect.get(row.id),
                hits=int(main.hit.sum()),
                retest_hits=int(second.hit.sum()),
                best=int(main.number[best.argmax()]) if len(best) else None,
            )
        )
    return sorted(items, key=lambda item: -item.interestingness)


class _Own(NamedTuple):
    """Texts of one perturbation."""

    number: np.ndarray
    hit: np.ndarray
    coherence: np.ndarray
    novelty: np.ndarray

    @property
    def interestingness(self) -> np.ndarray:
        return self.coherence * self.novelty


def _numbers(own: _Own) -> array[int]:
    return array("q", own.number.tobytes())


def _known(values: np.ndarray) -> np.ndarray:
    return values[~np.isnan(values)]


def _mean(values: np.ndarray) -> float:
    """Return the mean of what is known; 0 where nothing is."""
    known = _known(values)
    return float(np.mean(known)) if len(known) else 0.0


def _hits(found: Sequence[Item], control: Sequence[Item]) -> tuple[Rate, Rate]:
    first, second = (rate(sum(i.hits > 0 for i in arm), len(arm)) for arm in (found, control))
    return first, second


def _radii(run: Run) -> list[tuple[float, float | None]]:
    """Return each radius and that of its control, which need not be the same."""
    found, control = (dict.fromkeys(p.radius for p in run.perturbation_rows(arm)) for arm in ARMS)
    return sorted(zip_longest(found, control))  # in the order in which they were made


def _retest_hits(found: Sequence[Item], control: Sequence[Item]) -> tuple[Rate, Rate]:
    first, second = (
        rate(sum(i.retest_hits for i in arm), sum(len(i.retest) for i in arm))
        for arm in (found, control)
    )
    return first, second
