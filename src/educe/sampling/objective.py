"""Objectives, priors and samplers: the small interface between what is searched and how.

An objective takes settings ``z``, a row each, and says how good each is and how sure that is:

    f̂(z) = f(z) + noise,     noise ~ N(0, v(z))                    `Evaluated(value, variance)`

A sampler draws from, or climbs, the density

    log π(z) = log p(z) + f(z) / T            p the prior, T the temperature

and never evaluates: its `walk` is a generator that yields settings and is sent what came of them.
`drive` joins the two. A setting that is yielded again is evaluated again. Since a walk follows from
its seed and from what it was sent, to go on with one is to walk again over what is known.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol

import numpy as np
from jaxtyping import Float

from educe.errors import JudgeError, MethodError

#: The first evaluations, of which not all may be alike.
FIRST = 24


class Evaluated(NamedTuple):
    """What is known of some settings after one evaluation of each."""

    value: Float[np.ndarray, "n"]  #: estimates
    variance: Float[np.ndarray, "n"]  #: of the noise of each; 0 where there is none
    measures: Float[np.ndarray, "n m"] | None = None  #: of behaviour, for quality-diversity

    def __getitem__(self, at: slice) -> Evaluated:  # type: ignore[override]
        measures = None if self.measures is None else self.measures[at]
        return Evaluated(self.value[at], self.variance[at], measures)


Objective = Callable[[np.ndarray], Evaluated]
Walk = Generator[np.ndarray, Evaluated, None]


class Sampler(Protocol):
    """Walks through settings. A new one is a file with a class that has this."""

    def walk(self) -> Walk:
        """Yield settings ``[n, k]`` to evaluate; is sent an `Evaluated` of them."""

    @property
    def acceptance(self) -> float | None:
        """The share of proposals that were accepted so far, if it has proposals."""


@dataclass(frozen=True)
class Prior:
    """A prior of unit variance in every coordinate, the same at all: where settings are looked for.

    Attributes:
        shape: gaussian; laplace, which prefers few coordinates; or flat, which prefers nothing.

    Example:
        >>> from educe.sampling.objective import Prior
        >>> Prior("gaussian").log(np.zeros((1, 3)) + 2.0).tolist()
        [-6.0]
    """

    shape: Literal["gaussian", "laplace", "flat"] = "gaussian"

    def log(self, z: Float[np.ndarray, "n k"]) -> Float[np.ndarray, "n"]:
        """Return its logarithm, up to a constant."""
        if self.shape == "laplace":
            return -(2**0.5) * np.abs(z).sum(1)
        return -0.5 * np.square(z).sum(1) if self.shape == "gaussian" else np.zeros(len(z))

    def draw(self, n: int, k: int, draw: np.random.RandomState) -> Float[np.ndarray, "n k"]:
        """Draw settings; of a flat prior, which has none to draw, those of a Gaussian."""
        if self.shape == "laplace":
            return draw.laplace(scale=0.5**0.5, size=(n, k))
        return draw.standard_normal((n, k))


class Round(NamedTuple):
    """Settings that were evaluated together."""

    z: Float[np.ndarray, "n k"]
    came: Evaluated


def drive(
    sampler: Sampler,
    objective: Objective,
    *,
    budget: int,
    after: Callable[[Round], None] = lambda one: None,
) -> list[Round]:
    """Let a sampler walk until its budget of evaluations is spent, or it ends.

    Args:
        sampler: Who asks.
        objective: Who answers.
        budget: The most evaluations; a round that would go beyond it is not begun.
        after: Is told of every round.

    Raises:
        JudgeError: The objective is no number, or the same for all settings.
        MethodError: The budget is too small for one round.

    Example:
        >>> from educe.sampling.objective import Evaluated, Prior, drive
        >>> from educe.sampling.best import Draws
        >>> def bowl(z):
        ...     return Evaluated(-np.square(z).sum(1), np.zeros(len(z)))
        >>> rounds = drive(Draws(k=2, batch=8, seed=0), bowl, budget=16)
        >>> [len(one.z) for one in rounds]
        [8, 8]
    """
    rounds: list[Round] = []
    walk, spent = sampler.walk(), 0
    points = next(walk, None)
    while points is not None and spent + len(points) <= budget:
        points = points.copy()  # which the walk may go on to change
        came = objective(points)
        spent += len(points)
        rounds.append(Round(points, came))
        check(rounds)
        after(rounds[-1])
        try:
            points = walk.send(came)
        except StopIteration:
            break
    if not rounds and points is not None:
        raise MethodError(
            f"a budget of {budget} evaluations is less than the {len(points)} of one round: give "
            "more, or fewer walkers"
        )
    return rounds


def check(rounds: list[Round]) -> None:
    """Make sure that there is something to go by.

    Raises:
        JudgeError: The objective is no number, or the same for all settings.
    """
    last = rounds[-1].came
    if bad := int((~np.isfinite(last.value) | ~np.isfinite(last.variance)).sum()):
        raise JudgeError(
            f"the objective of {bad} of {len(last.value)} settings is NaN or infinite: the judge "
            "cannot score their texts, or the radius is so large that the model breaks down; what "
            "was evaluated before is kept"
        )
    values = np.concatenate([one.came.value for one in rounds])
    before = len(values) - len(last.value)
    if before < FIRST <= len(values) and np.ptp(values) == 0:
        raise JudgeError(
            f"the objective is {values[0]:g} for each of the first {len(values)} settings, so "
            "there is nothing to go by: use another judge, a larger radius, or --wanted to explore "
            "by likelihood; what was evaluated is kept"
        )
