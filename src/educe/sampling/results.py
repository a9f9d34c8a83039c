"""Results: what comes of a sampling, and as a run keeps it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any, NamedTuple

import numpy as np

from educe.comparison.stats import Estimate
from educe.plain import as_data
from educe.sampling.annealing import Stop
from educe.sampling.diagnostics import Answers, Diagnosis
from educe.sampling.diversity import Archived
from educe.sampling.evaluating import Terms
from educe.sampling.objective import Round
from educe.sampling.settings import Sampling


class Find(NamedTuple):
    """A setting that was kept."""

    number: int
    parent: int
    arm: str
    seen: float  #: the mean objective when it was chosen, so too good
    again: Estimate  #: on fresh prompts, or fresh samples
    text: str  #: of the re-test, that scores highest


class Sampled(NamedTuple):
    """What came of a sampling."""

    name: str
    file: str  #: of the finds, in the folder of the run's tensors; the control's, if any, is next
    control_file: str | None
    dimensions: int
    finds: list[Find]  #: of both arms, best first within each
    evaluations: dict[str, int]  #: settings, by arm
    best: dict[str, float]  #: the highest mean objective, by arm
    curves: dict[str, list[tuple[int, float]]]  #: evaluations, and the best so far, by arm
    diagnosis: Diagnosis | None
    answers: Answers | None
    archives: dict[str, Archived]  #: of ``diversity``, by arm
    path: list[Stop]  #: of ``anneal``


def means(rounds: Sequence[Round]) -> list[tuple[np.ndarray, float]]:
    """Return settings with the means of what they were evaluated at, the best first."""
    each: dict[bytes, tuple[np.ndarray, list[float]]] = {}
    for one in rounds:
        for z, value in zip(one.z, one.came.value.tolist(), strict=True):
            each.setdefault(z.tobytes(), (z, []))[1].append(value)
    return sorted(((z, float(np.mean(own))) for z, own in each.values()), key=lambda m: -m[1])


def curve(rounds: Sequence[Round]) -> list[tuple[int, float]]:
    """Return the best estimate so far after each round."""
    spent = np.cumsum([len(one.z) for one in rounds]).tolist()
    best = np.maximum.accumulate([one.came.value.max() for one in rounds]).tolist()
    return list(zip(spent, best, strict=True))


def plain(told: Sampled, asked: Sampling, terms: Terms) -> dict[str, Any]:
    """Return what JSON can hold of what came of a sampling."""
    data = as_data(told) | {"asked": asdict(asked), "terms": terms.told}
    if told.answers is not None:
        data["answers"]["sentences"] = told.answers.sentences
    for arm, one in told.archives.items():
        data["archives"][arm] |= {"elites": one.elites.tolist(), "cells": one.cells.tolist()}
    return data
