"""Shrunk: perturbations as small as they can be and still do what they do.

The radius falls step by step, each perturbation alone, until what is measured is below a share of
what it was at its own radius. The last radius at which it was still there is kept. What is measured
is up to the caller; of a run it is

    look-for    how often the run's pattern is found in the answers to its prompts
    a judge     the mean score of the same answers
    exponent    d log‖Δ‖ / d log R, exactly

With ``optimise`` the vector is improved at every radius on the way, as in
`educe.derive.continuation`; without, its direction stays.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from statistics import mean
from typing import NamedTuple

import torch

from educe.derive.continuation import PathConfig, followed
from educe.derive.listing import add, answers, looked_for, named, taken
from educe.derive.scaling import scaled
from educe.errors import MethodError
from educe.forward.slice import Slice
from educe.perturbation.set import PerturbationSet
from educe.rows import FOLLOWED, SHRUNK
from educe.run import scaling
from educe.run.scaling import EXPONENT
from educe.run.work import Work
from educe.scores import Judge


class Shrunk(NamedTuple):
    """How far one perturbation could shrink."""

    curve: tuple[tuple[float, float], ...]  #: shares of its radius, and what was measured there
    kept: (
        float | None
    )  #: the smallest share with enough of it; None where there was nothing to keep


def shrunk(
    found: PerturbationSet,
    measure: Callable[[PerturbationSet], Sequence[float]],
    *,
    keep: float = 0.8,
    low: float = 0.1,
    steps: int = 4,
    part: Slice | None = None,
) -> PerturbationSet:
    """Return perturbations at the smallest radius at which enough is left of what they do.

    Those of which there was nothing to keep, as a rate of zero, are left out. The scores are the
    ``share`` of the radius and what is ``measured`` there.

    Args:
        found: Perturbations; vectors, where a slice is given.
        measure: Takes perturbations and returns a number for each.
        keep: The share of what is measured at the own radius that is to stay.
        low: The smallest radius that is looked at, as a share of the own.
        steps: Radii for each halving.
        part: Improve the directions at every radius on the way, on this slice.

    Example:
        >>> found = educe.search(part, "random", n=2, radius=2.0)
        >>> def effect(some):
        ...     return part.effect(some.theta).norm(dim=1).tolist()
        >>> small = educe.derive.shrunk(found, effect, keep=0.5)
        >>> bool((small.radius < found.radius).all())
        True
    """
    config = _downwards(low, steps)
    path = scaled(found, config.shares) if part is None else followed(found, part, config)
    many = len(config.shares)

    def at(items: list[int], k: int) -> Sequence[float]:
        return measure(path.select([i * many + k for i in items]))

    return _kept(path, walk(config.shares, len(found), at, keep), config.shares)


def walk(
    shares: Sequence[float],
    many: int,
    measure: Callable[[list[int], int], Sequence[float]],
    keep: float,
) -> list[Shrunk]:
    """Go down the radii with so many perturbations, each until too little is left.

    ``shares`` ascend; ``measure`` takes some perturbations and the place of a share.
    """
    curves: list[list[tuple[float, float]]] = [[] for _ in range(many)]
    kept: list[float | None] = [None] * many
    going = list(range(many))
    for k in reversed(range(len(shares))):
        for i, value in zip(list(going), measure(going, k) if going else (), strict=True):
            curves[i].append((shares[k], value))
            start = curves[i][0][1]
            if start > 0 and value >= keep * start:
                kept[i] = shares[k]
            else:
                going.remove(i)
    return [Shrunk(tuple(curve), share) for curve, share in zip(curves, kept, strict=True)]


def shrink(
    work: Work,
    numbers: Sequence[int],
    by: str | Judge,
    *,
    keep: float = 0.8,
    low: float = 0.1,
    steps: int = 4,
    optimise: bool = False,
) -> tuple[list[Shrunk], str]:
    """Shrink perturbations of a run: every radius looked at, and what is kept, are rows of it.

    Args:
        work: The run at work.
        numbers: The perturbations.
        by: ``look-for``, ``exponent``, or a judge.
        keep: As in `shrunk`.
        low: As in `shrunk`.
        steps: As in `shrunk`.
        optimise: Improve the directions of vectors at every radius on the way.

    Returns:
        What came of each, and the file of those of which something was kept.

    Raises:
        MethodError: The run looks for nothing, or they are no vectors and are to be improved.
    """
    if by == "look-for" and looked_for(work.run) is None:
        raise MethodError("the run looks for nothing: shrink --by exponent or by a judge")
    config = _downwards(low, steps)
    many = len(config.shares)
    asked = {"numbers": list(numbers), "low": low, "steps": steps}
    found = taken(work.run, numbers, vectors=optimise)
    path = scaled(found, config.shares)
    if optimise:
        file = f"{named(f'{FOLLOWED}-down', **asked)}.safetensors"
        rows = add(work, file, FOLLOWED, numbers, lambda: followed(found, work.part, config))
        path = PerturbationSet.load(work.run.tensors / file)

    def measure(items: list[int], k: int) -> Sequence[float]:
        if optimise and k < many - 1:
            own = [rows[i * many + k] for i in items]
        else:
            at = [(numbers[i], config.shares[k] * float(found.radius[i])) for i in items]
            own = [p.id for p in scaling.scaled(work, at)]
        if by == EXPONENT:
            scaling.exponents(work, own)
            known = {s.of: s.value for s in work.run.score_rows(EXPONENT)}
            return [known[number] for number in own]
        judge, everything = None if isinstance(by, str) else by, ("asked", "fresh")
        scores = answers(work, own, by=judge, roles=everything, what="smaller perturbations")
        return [mean(scores[number]) for number in own]

    done = walk(config.shares, len(numbers), measure, keep)
    told = by if isinstance(by, str) else by.identity
    name = f"{named(SHRUNK, **asked, by=told, keep=keep, optimise=optimise)}.safetensors"
    if any(one.kept is not None for one in done):
        add(work, name, SHRUNK, numbers, lambda: _kept(path, done, config.shares))
    return done, name


def _downwards(low: float, steps: int) -> PathConfig:
    return PathConfig(low=low, high=1.0, steps=steps, converging=0)


def _kept(
    path: PerturbationSet, done: Sequence[Shrunk], shares: Sequence[float]
) -> PerturbationSet:
    """Return of each perturbation on a path down the smallest one that was kept."""
    kept = [(i, one.kept, dict(one.curve)) for i, one in enumerate(done) if one.kept is not None]
    small = path.select([i * len(shares) + shares.index(share) for i, share, _ in kept])
    measured = torch.tensor([curve[share] for _, share, curve in kept])
    known = {name: small.scores[name] for name in ("parent", "share")}
    return replace(small, method=SHRUNK, scores={**known, "measured": measured})
