"""Batches: answers as judges get them, cut in one way whoever judges them.

What a language model says of an answer can depend, by rounding, on the answers beside it. So each
batch holds the same ones whether this process judges or others do, and what a killed process left
is cut as it would have been.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from educe.scores import Judge, Score
from educe.scores.asking import runs_here
from educe.spread import Job, Local, Shared, Spread

#: Answers of a batch; after each the scores are kept.
AT_ONCE = 64


def in_batches(
    judge: Judge, answers: Sequence[Any], spread: Spread
) -> Iterator[tuple[list[tuple[int, Score]], str]]:
    """Score answers; yield what came with the place of its answer, and how fast workers are.

    Args:
        judge: Who judges.
        answers: What is judged.
        spread: Who does it, where a model judges that they can have; else this process does.
    """
    shared = Shared((judge,))
    jobs = (
        Job(_scored, shared, (at, answers[at : at + AT_ONCE]), len(answers[at : at + AT_ONCE]))
        for at in range(0, len(answers), AT_ONCE)
    )
    for done in (spread if runs_here(judge) else Local()).map(jobs):
        yield done.value, done.note


def _scored(judge: Judge, at: int, answers: Sequence[Any]) -> list[tuple[int, Score]]:
    return list(enumerate(judge.score(answers), at))
