"""Thompson sampling over settings (Thompson 1933).

    θ_a ~ Beta(1 + hits_a, 1 + misses_a) for each arm a;  pull argmax θ_a;  observe a hit or a miss

Abu Baker & Babu-Saheer (arXiv 2606.29646) use it over cells of layer and noise size: a uniform
sweep spends most of a budget where little happens, and the best cell hits 2 to 10 times as often.

A round can pull several arms, each by its own draw from the same posteriors, so that they are
written as one batch. The generator of a round follows from the seed and the round's number, so a
tuning that goes on asks for the same rows again and finds them in its run.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float
from scipy.stats import beta

from educe.comparison.stats import rate
from educe.errors import MethodError


class Setting(NamedTuple):
    """A way to make perturbations."""

    method: str
    source: float  #: a layer, or a fraction of the depth
    radius: str  #: a number, or a share of the calibrated one such as ``0.5x``
    sign: int = 1  #: -1: the same perturbations with the other sign

    def __str__(self) -> str:
        sign = "" if self.sign > 0 else " -"
        return f"{self.method}{sign} at {self.source:g}, radius {self.radius}"


class Thompson:
    """A bandit with an arm for each setting, or for anything else.

    Args:
        arms: What can be pulled.
        seed: Of the draws.

    Attributes:
        hits: Of each arm.
        pulls: Of each arm.
        rounds: How often `choose` was called.
    """

    def __init__(self, arms: Sequence[Any], seed: int = 0) -> None:
        if not arms:
            raise MethodError("a bandit without arms: give at least one setting")
        self.arms, self.seed, self.rounds = list(arms), seed, 0
        self.hits, self.pulls = np.zeros(len(arms), int), np.zeros(len(arms), int)

    def choose(self, k: int = 1) -> list[int]:
        """Return the arms to pull now, by their places: ``k`` independent draws."""
        rng = np.random.default_rng([self.seed, self.rounds])
        self.rounds += 1
        drawn = rng.beta(1 + self.hits, 1 + self.pulls - self.hits, (k, len(self.arms)))
        return drawn.argmax(1).tolist()

    def update(self, arm: int, hit: bool) -> None:
        """Note what a pull gave."""
        self.hits[arm] += hit
        self.pulls[arm] += 1

    @property
    def mean(self) -> Float[np.ndarray, "a"]:
        """The posterior mean of each arm's rate."""
        return (1 + self.hits) / (2 + self.pulls)

    def interval(self) -> Float[np.ndarray, "a 2"]:
        """Return the central 95% posterior interval of each arm's rate."""
        return beta.ppf(
            [0.025, 0.975], (1 + self.hits)[:, None], (1 + self.pulls - self.hits)[:, None]
        )

    def ranked(self) -> list[int]:
        """Return the arms from best to worst: by the lower end of the Wilson interval.

        Not by the posterior mean, which is a half for an arm that was never pulled. Ties go to
        the arm that was pulled more, then to one drawn at random.
        """
        order = np.random.default_rng(self.seed).permutation(len(self.arms))
        low = [rate(h, t).low for h, t in zip(self.hits.tolist(), self.pulls.tolist(), strict=True)]
        return np.lexsort((order, -self.pulls, -np.array(low))).tolist()
