"""Elliptical slice sampling for a Gaussian prior (Murray, Adams & MacKay 2010).

    z(φ) = z cos φ + ν sin φ,      ν ~ p,     log L(z(φ)) > log L(z) + log u

The ellipse through the state and a draw of the prior has states of the prior alone on it; a bracket
of angles shrinks until one is likely enough. There is nothing to tune, and where the likelihood
varies in few directions the number of all of them does not matter, so it serves in full width too.
Chains are independent, and those that are still shrinking are evaluated together.

The likelihood has to be the same when it is asked again: judged texts come with common random
numbers.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from educe.sampling.objective import Evaluated, Prior, Walk


@dataclass
class EllipticalSlice:
    """Independent chains; see above.

    Attributes:
        k: Dimensions.
        walkers: Chains.
        steps: How many steps.
        temperature: Of the likelihood.
        start: Where they begin, ``[walkers, k]``; by default drawn from the prior.
        seed: Of everything that is drawn.
        chain: The states after each step, ``[steps, walkers, 1, k]``: ensembles of one.
        kept: True for each.

    Example:
        >>> from educe.sampling.elliptical import EllipticalSlice
        >>> from educe.sampling.objective import Evaluated, drive
        >>> def near_one(z):  # N(1, 1) as likelihood, N(0, 1) as prior: N(1/2, 1/2)
        ...     return Evaluated(-0.5 * np.square(z - 1).sum(1), np.zeros(len(z)))
        >>> sampler = EllipticalSlice(k=1, walkers=50, steps=100)
        >>> rounds = drive(sampler, near_one, budget=100_000)
        >>> round(float(np.mean(sampler.chain[10:])), 1)
        0.5
    """

    k: int
    walkers: int
    steps: int = 100
    temperature: float = 1.0
    start: np.ndarray | None = None
    seed: int = 0
    chain: list[np.ndarray] = field(default_factory=list)
    kept: list[bool] = field(default_factory=list)
    _asked: int = 0

    @property
    def acceptance(self) -> float | None:
        """Steps for each evaluation: every step ends with one that is likely enough."""
        return len(self.chain) * self.walkers / self._asked if self._asked else None

    def walk(self) -> Walk:
        """Walk; see `educe.sampling.objective.Sampler`."""
        draw, prior = np.random.RandomState(self.seed), Prior("gaussian")
        z = prior.draw(self.walkers, self.k, draw) if self.start is None else self.start.copy()
        log_like = self._likelihood((yield z))
        for _ in range(self.steps):
            nu = prior.draw(self.walkers, self.k, draw)
            level = log_like + np.log(draw.random_sample(self.walkers))
            phi = draw.random_sample(self.walkers) * 2 * np.pi
            low, high = phi - 2 * np.pi, phi.copy()
            going, start = np.arange(self.walkers), z.copy()
            while len(going):
                at = phi[going, None]
                y = start[going] * np.cos(at) + nu[going] * np.sin(at)
                came = self._likelihood((yield y))
                self._asked += len(y)
                inside = came > level[going]
                z[going[inside]], log_like[going[inside]] = y[inside], came[inside]
                going = going[~inside]
                behind = phi[going] < 0
                low[going[behind]], high[going[~behind]] = phi[going[behind]], phi[going[~behind]]
                phi[going] = low[going] + draw.random_sample(len(going)) * (high - low)[going]
            self.chain.append(z[:, None].copy())
            self.kept.append(True)

    def _likelihood(self, came: Evaluated) -> np.ndarray:
        return came.value.astype(float) / self.temperature
