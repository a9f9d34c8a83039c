"""Scaling: perturbations of a run at other radii, each listed as derived from the one it scales.

A negative radius is the perturbation with its sign turned. Who wants to know what one does at a
radius asks here for its number there; what stands in the run already is not measured again.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence

import torch

from educe.methods.radius import growth, response
from educe.progress import Advance
from educe.rows import SCALED, PerturbationRow, ScoreRow
from educe.run.fill import Group, groups
from educe.run.store import Run
from educe.run.work import Work

#: A perturbation by its number, and a radius.
At = tuple[int, float]

#: Perturbations that are measured and kept together.
BATCH = 16

#: The score that says how the effect of a perturbation grows at its radius.
EXPONENT = "exponent"


def scaled(
    work: Work, wanted: Iterable[At], step: Advance = lambda steps: None
) -> list[PerturbationRow]:
    """Return perturbations at some radii; list those that are not listed, with their effects.

    A perturbation at its own radius is itself. The effect of one that breaks the model down is
    infinite.

    Args:
        work: The run at work.
        wanted: Perturbations, and for each a radius, negative for the other sign.
        step: Is told how many more are there.
    """
    run, pairs = work.run, list(wanted)
    rows = {p.id: p for p in run.perturbation_rows(derived=None)}
    known = {(p.parent or 0, p.radius): p for p in rows.values() if p.how == SCALED}
    known |= {(p.id, p.radius): p for p in rows.values()}
    missing = [pair for pair in dict.fromkeys(pairs) if pair not in known]
    step(len(pairs) - len(missing))
    for first in range(0, len(missing), BATCH):  # in this order, wherever a process is killed
        some = missing[first : first + BATCH]
        effects: dict[At, float] = {}
        for own, group in at_radii(run, some):
            part = work.part.on(group.kind)
            v = group.directions.to(part.device, part.work_dtype)
            sizes = response(part, v, group.radius[:, None])[:, 0].nan_to_num(math.inf, math.inf)
            effects |= dict(zip(own, sizes.tolist(), strict=True))
        made = [
            rows[n]._replace(
                id=len(rows) + i,
                parent=n,
                how=SCALED,
                radius=radius,
                dose=rows[n].dose * radius / rows[n].radius,
                effect=effects[n, radius],
            )
            for i, (n, radius) in enumerate(some, 1)
        ]
        run.add_perturbations(made)
        rows |= {p.id: p for p in made}
        known |= dict(zip(some, made, strict=True))
        step(len(some))
    return [known[pair] for pair in pairs]


def exponents(work: Work, numbers: Iterable[int]) -> None:
    """Score how the effects of perturbations grow at their radii, where that is not known.

    Raises:
        ModelError: An operation of the model has no forward-mode derivative.
    """
    for some, group in at_radii(work.run, without(work.run, EXPONENT, numbers)):
        part = work.part.on(group.kind)
        v = group.directions.to(part.device, part.work_dtype)
        found = growth(part, v, group.radius[:, None]).exponent[:, 0].tolist()
        work.run.add_scores(
            ScoreRow(n, EXPONENT, e, "d log effect / d log radius", "")
            for (n, _), e in zip(some, found, strict=True)
        )


def without(run: Run, judge: str, numbers: Iterable[int]) -> list[At]:
    """Return those of some perturbations that a judge has not scored, each with its own radius."""
    radius = {p.id: p.radius for p in run.perturbation_rows(derived=None)}
    done = {s.of for s in run.score_rows(judge)}
    return [(n, radius[n]) for n in dict.fromkeys(numbers) if n not in done]


def at_radii(run: Run, wanted: Sequence[At], most: int = BATCH) -> Iterator[tuple[list[At], Group]]:
    """Yield perturbations at radii in batches of one kind, each batch with what it is of."""
    for group in groups(run, [n for n, _ in wanted]):
        place = {n: i for i, n in enumerate(group.numbers)}
        own = [pair for pair in wanted if pair[0] in place]
        for first in range(0, len(own), most):
            some = own[first : first + most]
            items = torch.tensor([place[n] for n, _ in some])
            radii = torch.tensor([radius for _, radius in some])
            numbers, kind = [n for n, _ in some], group.kind.select(items)
            yield some, Group(numbers, kind, group.directions[items], radii)
