"""Pools: where the vectors come from that a model is hardened under.

    found     perturbations of a run
    random    drawn anew each time, after several layers, at the dose of those found
    fresh     what the run's own search finds on the model as it is then, anew in each round

A layer's unit is the median norm of the stream there, so a dose is as large at one layer as at
another. Of the layers from the source up, every second is trained on; the others are for testing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import torch

from educe import methods
from educe.comparison.summary import summarise
from educe.derive.listing import taken
from educe.derive.projection import as_vectors
from educe.errors import MethodError
from educe.forward.slice.norms import after_first, median_norm
from educe.hardening.pushes import Push
from educe.hardening.records import FRESH
from educe.perturbation.kinds import Vectors, Within
from educe.perturbation.set import PerturbationSet
from educe.run.preparing import Search
from educe.run.work import Work


class Layers(NamedTuple):
    """Layers after which random vectors are added, with the median norm of the stream there."""

    trained: dict[int, float]
    others: dict[int, float]


def chosen(work: Work, numbers: Sequence[int], count: int) -> list[int]:
    """Return the numbers of perturbations of a run: those named, or the first in its own order."""
    return list(dict.fromkeys(numbers)) or [
        item.row.id for item in summarise(work.run).found[:count]
    ]


def vectors(work: Work, numbers: Sequence[int]) -> PerturbationSet:
    """Return perturbations of a run as vectors.

    Raises:
        MethodError: They are no vectors that are added at all tokens, or of several kinds.
    """
    found = taken(work.run, numbers)
    if not isinstance(found.kind, Vectors | Within) or found.kind.positions != "all":
        raise MethodError(
            f"these are {found.kind.name} at positions {found.kind.positions!r}, and a model is "
            "hardened under vectors that are added at all tokens: search again for such"
        )
    return as_vectors(found)


def radius(found: PerturbationSet) -> float:
    """Return the median size of vectors; one that was turned round has a radius below zero."""
    return float(found.radius.abs().median())


def pushes(found: PerturbationSet) -> list[Push]:
    """Return vectors at their radii as pushes.

    Example:
        >>> from educe.hardening.pools import pushes
        >>> found = educe.search(part, "random", n=2, radius=3.0)
        >>> pushes(found)[1].layer, round(float(pushes(found)[1].vector.norm()), 4)
        (1, 3.0)
    """
    return [Push(found.kind.before, theta) for theta in found.theta]


def layers(work: Work, source: int) -> Layers:
    """Return every second layer from the source up, and the others; the last is left out."""
    at = range(source, work.lm.depth - 1)
    batch = work.asked
    with work.lm.watching(at) as streams:
        work.lm.forward(batch.ids, batch.mask)
    norms = {i: median_norm(streams[i], after_first(batch.mask)) for i in at}
    return Layers({i: norms[i] for i in at[::2]}, {i: norms[i] for i in at[1::2]})


def drawn(at: dict[int, float], dose: float, generator: torch.Generator, *, width: int) -> Push:
    """Draw a direction uniform on the sphere, after one of some layers.

    Args:
        at: The layers with their units.
        dose: The length, in these units.
        generator: What draws.
        width: Of the stream.

    Example:
        >>> from educe.hardening.pools import drawn
        >>> push = drawn({2: 10.0}, 0.5, torch.Generator().manual_seed(0), width=32)
        >>> push.layer, round(float(push.vector.norm()), 4)
        (2, 5.0)
    """
    layer = list(at)[int(torch.randint(len(at), (1,), generator=generator))]
    direction = torch.randn(width, generator=generator)
    return Push(layer, direction * (dose * at[layer] / float(direction.norm())))


def check_searched(work: Work) -> None:
    """Make sure that a run can search anew.

    Raises:
        MethodError: Its perturbations were given to it.
    """
    if work.settings.given:
        raise MethodError(
            "the perturbations of this run were given to it, so it has no search to make anew: "
            f"leave {FRESH} out of --pool"
        )


def searched(work: Work, like: PerturbationSet, *, n: int, seed: int) -> list[Push]:
    """Search on the model as it is now, by the run's method, at the median radius of some vectors.

    Args:
        work: The run at work, which is not changed.
        like: The vectors.
        n: How many are searched.
        seed: Of the search.
    """
    search = Search(work)
    found = methods.search(
        search.part,
        search.settings.method,
        n=n,
        radius=radius(like),
        seed=seed,
        over=search.settings.over,
        config=search.config,
    )
    return pushes(as_vectors(replace(found, outputs=None, scores={})))
