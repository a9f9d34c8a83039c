"""Combinations of a run's vectors as rows of it: written, scored, and compared with a direction."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import mean
from typing import NamedTuple

from educe.derive.combining import agreement, averaged, between
from educe.derive.listing import add, answers, named, taken
from educe.derive.projection import as_vectors
from educe.errors import MethodError
from educe.perturbation.set import PerturbationSet
from educe.rows import AVERAGED, BETWEEN
from educe.run.work import Work
from educe.scores import Judge


class Combined(NamedTuple):
    """A perturbation, and what its answers score."""

    number: int
    of: tuple[int, ...]  #: of what it was combined
    share: float | None  #: of the way from the first to the second; None for an average
    score: float


class Combinations(NamedTuple):
    """What came of combining vectors."""

    own: dict[int, float]  #: what the vectors themselves score
    combined: list[Combined]
    cosines: list[float]  #: of the average of the first 1, 2, … with a supervised vector, if given


def combine(
    work: Work, numbers: Sequence[int], by: Judge | None = None, *, against: Path | None = None
) -> Combinations:
    """Combine vectors of a run, and score what the model writes.

    Args:
        work: The run at work.
        numbers: Two vectors or more.
        by: The judge; by default what the run looks for, or interestingness.
        against: A set whose first vector is a supervised direction.

    Raises:
        MethodError: There are not two, or they are no vectors.
    """
    if len(numbers) < 2:
        raise MethodError("combining needs two vectors: name two or more")
    found = taken(work.run, numbers, vectors=True)
    pairs = [(a, b) for i, a in enumerate(numbers) for b in numbers[i + 1 :]]
    file = f"{named(BETWEEN, numbers=list(numbers))}.safetensors"
    rows = add(work, file, BETWEEN, numbers, lambda: between(found))
    shares = PerturbationSet.load(work.run.tensors / file).scores["share"].tolist()
    ways = [pair for pair in pairs for _ in range(len(rows) // len(pairs))]
    name = f"{named(AVERAGED, numbers=list(numbers))}.safetensors"
    (average,) = add(work, name, AVERAGED, numbers, lambda: averaged(found))
    scores = answers(work, [*numbers, *rows, average], what="combinations", by=by)
    told = {number: mean(own) for number, own in scores.items()}
    made = [Combined(n, way, t, told[n]) for n, way, t in zip(rows, ways, shares, strict=True)]
    made.append(Combined(average, tuple(numbers), None, told[average]))
    cosines: list[float] = []
    if against is not None:
        direction = as_vectors(PerturbationSet.load(against)).directions[0]
        cosines = agreement(found, direction).tolist()
    return Combinations({n: told[n] for n in numbers}, made, cosines)
