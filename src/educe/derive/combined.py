"""Combinations of a run's vectors as rows of it: written, scored, and compared with a direction."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path
from statistics import mean
from typing import NamedTuple

from educe.derive.combining import agreement, averaged, between
from educe.derive.listing import add, answers, named, taken
from educe.derive.projection import as_vectors
from educe.errors import MethodError
from educe.perturbation.set import PerturbationSet
from educe.rows import AVERAGED, BETWEEN, FIRST, FOUND
from educe.run.store import Run
from educe.run.work import Work
from educe.scores import Answer, Judge
from educe.scores.rules import Regex


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


def sharing(run: Run, pattern: str) -> list[int]:
    """Return what was found and shares an effect: a pattern in an answer, the most often first.

    Raises:
        JudgeError: The pattern is no regular expression.
    """
    told = run.completion_rows(FIRST, of={p.id for p in run.perturbation_rows(FOUND)})
    shown = Regex(pattern).score([Answer("", c.text, ()) for c in told])
    each = Counter(c.perturbation for c, one in zip(told, shown, strict=True) if one.value)
    return [number for number, _ in each.most_common()]


def combine(
    work: Work,
    numbers: Sequence[int],
    by: Judge | None = None,
    *,
    against: Path | None = None,
    pairs: bool = True,
) -> Combinations:
    """Combine vectors of a run, and score what the model writes.

    Args:
        work: The run at work.
        numbers: Two vectors or more.
        by: The judge; by default what the run looks for, or interestingness.
        against: A set whose first vector is a supervised direction.
        pairs: Whether to look between each two as well; of many copies there is the average alone.

    Raises:
        MethodError: There are not two, or they are no vectors.
    """
    if len(numbers) < 2:
        raise MethodError(
            f"combining needs two vectors and here are {len(numbers)}: name more, or another "
            "pattern to share"
        )
    found = taken(work.run, numbers, vectors=True)
    rows: list[int] = []
    shares: list[float] = []
    ways: list[tuple[int, int]] = []
    if pairs:
        file = f"{named(BETWEEN, numbers=list(numbers))}.safetensors"
        rows = add(work, file, BETWEEN, numbers, lambda: between(found))
        shares = PerturbationSet.load(work.run.tensors / file).scores["share"].tolist()
        each = list(combinations(numbers, 2))
        ways = [pair for pair in each for _ in range(len(rows) // len(each))]
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
