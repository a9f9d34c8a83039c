"""Listing: perturbations of a run as a set, and what is derived from them as rows of the same run.

A file is named by what was asked, so what is asked for again goes on where it was cut off: the file
and its rows are there or not, and `educe.run.fill` writes what is missing.
"""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch

from educe.derive.projection import as_vectors
from educe.errors import MethodError, RunError
from educe.model.language import LanguageModel
from educe.options import ALONE, SpreadOptions
from educe.perturbation.set import PerturbationSet
from educe.progress import Reporter
from educe.rows import Row
from educe.run import asking
from educe.run.fill import add_set, check_known, fill, groups, interestingness, judge
from educe.run.store import Run
from educe.run.work import Work, at_work
from educe.scores import Judge
from educe.scores.rules import Regex


@contextmanager
def deriving(
    run: Run,
    numbers: Sequence[int] = (),
    lm: LanguageModel | None = None,
    reporter: Reporter | None = None,
    spread: SpreadOptions = ALONE,
) -> Iterator[Work]:
    """Work on a finished run in a ``with`` statement, to derive from some of its perturbations.

    Args:
        run: The run.
        numbers: The perturbations, by their numbers.
        lm: Its model, when it is loaded already.
        reporter: Is told of the progress (see `educe.progress`).
        spread: Who writes, scores and judges.

    Raises:
        RunError: The run is not finished or has no such perturbation, its model is another now, or
            another process is at work on it.
    """
    if not run.has("seconds"):
        raise RunError(f"the run in {run.folder} is not finished: educe discover --resume first")
    check_known(run, numbers, derived=None)
    with at_work(run, lm, reporter, spread) as work:
        yield work


def taken(run: Run, numbers: Sequence[int], *, vectors: bool = False) -> PerturbationSet:
    """Return perturbations of a run as a set, in the order asked for.

    Args:
        run: The run.
        numbers: Their numbers.
        vectors: Return coefficients within a subspace as the vectors that they stand for.

    Raises:
        MethodError: They are of several kinds, or are to be vectors and are none.
    """
    file = next(p.file for p in run.perturbation_rows(derived=None) if p.id == numbers[0])
    first = replace(PerturbationSet.load(run.tensors / file), outputs=None, scores={})
    members = groups(run, numbers)
    parts = [replace(first, kind=g.kind, directions=g.directions, radius=g.radius) for g in members]
    if vectors:
        parts = [as_vectors(part) for part in parts]
    if any(part.kind != parts[0].kind for part in parts):
        raise MethodError("these are perturbations of several kinds: name some of one kind")
    listed = [number for some in members for number in some.numbers]
    whole = replace(
        parts[0],
        directions=torch.cat([part.directions for part in parts]),
        radius=torch.cat([part.radius for part in parts]),
    )
    return whole.select([listed.index(number) for number in numbers])


def named(how: str, **asked: Any) -> str:
    """Return a name for what was derived in a way, by everything that it depends on."""
    told = json.dumps([how, asked], sort_keys=True)
    return f"{how}-{hashlib.sha256(told.encode()).hexdigest()[:10]}"


def add(
    work: Work,
    file: str,
    how: str,
    numbers: Sequence[int],
    make: Callable[[], PerturbationSet],
    *,
    arm: str | None = None,
) -> list[int]:
    """List derived perturbations once; return their numbers.

    Args:
        work: The run at work.
        file: The file that holds them, among the run's tensors.
        how: How they were derived.
        numbers: The perturbations that they were derived from, as the set knows its parents.
        make: Derives them, where the file is not there yet.
        arm: Their arm; by default that of each one's parent.
    """
    run = work.run
    if known := [p.id for p in run.perturbation_rows(derived=True) if p.file == file]:
        return known
    if not (run.tensors / file).exists():
        make().save(run.tensors / file)
    made = PerturbationSet.load(run.tensors / file)
    part = work.part.on(made.kind)
    effect = part.effect(made.theta.to(part.device, part.work_dtype)).norm(dim=1)
    parents = [numbers[int(row)] for row in made.scores["parent"]]
    arms = {p.id: p.arm for p in run.perturbation_rows(derived=None)}
    own = [arm or arms[parent] for parent in parents]
    return add_set(run, own, file, made, effect.tolist(), parents=parents, how=how)


def answers(
    work: Work,
    numbers: Sequence[int],
    *,
    what: str,
    by: Judge | None = None,
    roles: Sequence[str] = ("asked",),
) -> dict[int, list[float]]:
    """Return what the answers of perturbations score; missing texts are written.

    Args:
        work: The run at work.
        numbers: The perturbations.
        what: These texts, for a person.
        by: The judge; by default whether a text has what the run looks for, or else its
            interestingness.
        roles: The prompts that are answered; by default those that were searched with.
    """
    samples = range(work.settings.samples)
    rows = [Row(i, j, k) for i in numbers for j in work.prompts(*roles) for k in samples]
    work.run.ask(rows, work.settings.temperature)
    return _scored(work, rows, by, what)


def again(work: Work, numbers: Sequence[int], *, what: str) -> dict[int, list[float]]:
    """Return what they score on fresh prompts, or where there are none on fresh samples."""
    return _scored(work, asking.retest(work, numbers), None, what)


def looked_for(run: Run) -> Judge | None:
    """Return the judge of what a run looks for, if it looks for anything."""
    pattern: str | None = run.config.get("look_for")
    return Regex(pattern) if pattern is not None else None


def _scored(work: Work, rows: Sequence[Row], by: Judge | None, what: str) -> dict[int, list[float]]:
    fill(work, what)
    by = by or looked_for(work.run)
    values = interestingness(work.run, rows) if by is None else judge(work, by, rows, what)
    scores: dict[int, list[float]] = defaultdict(list)
    for row, value in zip(rows, values, strict=True):
        scores[row.perturbation].append(value)
    return scores
