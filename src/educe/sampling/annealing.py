"""Annealing: from the best the temperature rises and falls again, at one norm after the other.

Walkers begin around a find, at a small angle. At each share of the norm an ensemble begins ``hot``
and cools to its own temperature, on the sphere of that norm; where it ends, the next one begins. So
a find is followed through the norm as in `educe.derive.continuation`, with a distribution in place
of one maximum, and it can leave a basin that closes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from educe.sampling.ensemble import Ensemble
from educe.sampling.objective import Walk

#: How far from the find the walkers begin, as a share of its length.
SPREAD = 0.2


class Stop(NamedTuple):
    """Where an ensemble stood at one norm, after it had cooled."""

    share: float  #: of the prior's root mean square norm
    value: float  #: the mean estimate of the states while cold
    cosine: float  #: of the mean direction to that of the norm before


@dataclass
class Annealed:
    """Ensembles at one norm after the other.

    Attributes:
        k: Dimensions.
        walkers: Of the one ensemble.
        start: The find, ``[k]``.
        shares: Norms, as shares of the prior's root mean square, √k.
        steps: At each norm.
        temperature: Of the density.
        hot: How many times as high it begins.
        seed: Of everything that is drawn.
        chain: States, on their spheres, ``[steps, 1, walkers, k]``.
        kept: Whether a step was taken at the own temperature.
        path: What came of each norm.
    """

    k: int
    walkers: int
    start: np.ndarray
    shares: Sequence[float]
    steps: int = 20
    temperature: float = 1.0
    hot: float = 4.0
    seed: int = 0
    chain: list[np.ndarray] = field(default_factory=list)
    kept: list[bool] = field(default_factory=list)
    path: list[Stop] = field(default_factory=list)
    acceptance: float | None = None

    def walk(self) -> Walk:
        """Walk; see `educe.sampling.objective.Sampler`."""
        draw = np.random.RandomState(self.seed)
        away = draw.standard_normal((1, self.walkers, self.k)) / self.k**0.5
        unit = self.start / np.linalg.norm(self.start)
        states = self.k**0.5 * (unit + SPREAD * away)
        before = unit
        for i, share in enumerate(self.shares):
            own = Ensemble(
                self.k,
                self.walkers,
                ensembles=1,
                steps=self.steps,
                temperature=self.temperature,
                hot=self.hot,
                start=states,
                seed=self.seed + i,
            )
            walk = own.walk()
            z = next(walk)
            while True:
                came = yield self._on_sphere(z, share)
                try:
                    z = walk.send(came)
                except StopIteration:
                    break
            states, self.acceptance = own.chain[-1], own.acceptance
            self.chain += [self._on_sphere(z, share) for z in own.chain]
            self.kept += own.kept
            mean = self._on_sphere(states, 1.0).mean((0, 1))
            cosine = float(mean @ before / (np.linalg.norm(mean) * np.linalg.norm(before)))
            cold = np.array(own.values)[np.array(own.kept)]
            self.path.append(Stop(share, float(cold.mean()), cosine))
            before = mean

    def _on_sphere(self, z: Float[np.ndarray, "*n k"], share: float) -> Float[np.ndarray, "*n k"]:
        return share * self.k**0.5 * z / np.linalg.norm(z, axis=-1, keepdims=True)
