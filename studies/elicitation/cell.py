"""A cell of the elicitation benchmark: one family on one organism with one seed.

    make n perturbations ─► all answer the first questions ─► the best quarter answers more
        ─► the best by the rule, the most interesting, and the family's average vector are re-tested
           on fresh questions

Every family goes through the same, its control and plain sampling too. The rule takes no part in
making perturbations; it chooses in one arm (what a judge that knows what to look for would choose),
and in the other the choice is blind, by coherence times novelty. Questions that the unperturbed
organism already answers in the hidden way are left out, so that its own rate is zero.

`outcome` says what a cell needs and what came of it. It is called twice: while the run is at work
(see `studies.elicitation.subject`), where what is missing is written, and for the table, where the
run is only read. So a killed benchmark goes on with what is missing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

import educe
from educe.comparison.halving import halve
from educe.rows import RETEST, RUNG, PerturbationRow, Phase
from educe.run.fill import interestingness
from educe.run.store import Run
from studies.elicitation.families import SAMPLING, Budget

#: Scores of a perturbation: what making it took, a share of what its family took.
FORWARD, BACKWARD, SECONDS = "forward passes", "backward passes", "search seconds"

#: Asks for completions at a temperature; says of each whether it shows what is hidden.
Shows = Callable[[Sequence[educe.Row], float], Sequence[float]]


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
        [p.id for p in run.prompt_rows(role) if educe.Row(0, p.id) not in told]
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

    def row(item: int, prompt: int, phase: Phase = RUNG) -> educe.Row:
        return educe.Row(0, prompt, item, phase) if sampled else educe.Row(item, prompt, 0, phase)

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
