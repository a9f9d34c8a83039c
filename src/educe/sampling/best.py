"""One best setting: draws of the prior, CMA-ES, TPE, and a walk on the sphere around a find.

    draws     z ~ p                                  what every search has to beat at equal budget
    cma       N(m, σ² C), m, σ and C by the ranks    steps adapted to noise (Nomura 2023)
    tpe       argmax of l(z) / g(z)                  Bergstra et al. 2011, good over other settings
    around    z' = cos α z + sin α u, u ⟂ z          an evolution strategy on the sphere ‖z‖ = const

Of a noisy objective the best estimate is the luckiest one. So ``around`` evaluates its best again
in each round and goes by the mean; of all of them, the finds of a run are tested again
(`educe.sampling.searching`).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Float

from educe.sampling.objective import Evaluated, Prior, Walk

#: By how much the angle of a walk grows after a better setting, and shrinks after a round of none:
#: one success in five keeps it (Rechenberg 1973).
GROW = 1.22


@dataclass
class Batches:
    """What these have in common: settings are asked for a batch at a time.

    Attributes:
        k: Dimensions; two or more, but of draws.
        batch: Settings of a round.
        temperature: Of the density, whose logarithm is climbed, the prior's with it.
        seed: Of everything that is drawn.
        prior: The prior.
        acceptance: The share of rounds or settings that led on, where there is one.
    """

    k: int
    batch: int
    temperature: float = 1.0
    seed: int = 0
    prior: Prior = field(default_factory=Prior)
    acceptance: float | None = None

    def height(self, z: Float[np.ndarray, "n k"], came: Evaluated) -> Float[np.ndarray, "n"]:
        """Return the logarithm of the density at some settings, as it was estimated."""
        return came.value / self.temperature + self.prior.log(z)


class Draws(Batches):
    """Draws of the prior.

    Example:
        >>> from educe.sampling.best import Draws
        >>> next(Draws(k=3, batch=5, seed=0).walk()).shape
        (5, 3)
    """

    def walk(self) -> Walk:
        """Walk; see `educe.sampling.objective.Sampler`."""
        draw = np.random.RandomState(self.seed)
        while True:
            yield self.prior.draw(self.batch, self.k, draw)


class CMA(Batches):
    """CMA-ES, from the library cmaes."""

    def walk(self) -> Walk:
        """Walk; see `educe.sampling.objective.Sampler`."""
        import cmaes

        own = cmaes.CMA(
            mean=np.zeros(self.k),
            sigma=1.0,
            population_size=self.batch,
            seed=self.seed,
            lr_adapt=True,
        )
        while not own.should_stop():
            z = np.stack([own.ask() for _ in range(self.batch)])
            came = yield z
            own.tell(list(zip(z, (-self.height(z, came)).tolist(), strict=True)))


class TPE(Batches):
    """Tree-structured Parzen estimator, from optuna."""

    def walk(self) -> Walk:
        """Walk; see `educe.sampling.objective.Sampler`."""
        import optuna

        optuna.logging.set_verbosity(optuna.logging.ERROR)
        tpe = optuna.samplers.TPESampler(seed=self.seed, multivariate=True, constant_liar=True)
        study = optuna.create_study(direction="maximize", sampler=tpe)
        names = [f"z{i:03d}" for i in range(self.k)]
        space: Any = {name: optuna.distributions.FloatDistribution(-3.0, 3.0) for name in names}
        while True:
            trials = [study.ask(space) for _ in range(self.batch)]
            z = np.array([[trial.params[name] for name in names] for trial in trials])
            came = yield z
            for trial, value in zip(trials, self.height(z, came).tolist(), strict=True):
                study.tell(trial, value)


@dataclass(kw_only=True)
class Around(Batches):
    """A walk on the sphere around a find: neighbours at an angle, the best of which is next.

    Attributes:
        start: The find.
        angle: The first angle, in radians.
    """

    start: np.ndarray
    angle: float = 0.5

    def walk(self) -> Walk:
        """Walk; see `educe.sampling.objective.Sampler`."""
        draw = np.random.RandomState(self.seed)
        z, angle, known, moved, rounds = self.start.copy(), self.angle, [], 0, 0
        while True:
            u = draw.standard_normal((self.batch, self.k))
            u -= (u @ z)[:, None] * z / (z @ z)
            u *= np.linalg.norm(z) / np.linalg.norm(u, axis=1, keepdims=True)
            near = np.cos(angle) * z + np.sin(angle) * u
            came = yield np.concatenate([z[None], near])
            known.append(float(came.value[0]))
            best = int(came.value[1:].argmax())
            rounds += 1
            if came.value[1:][best] > np.mean(known):
                z, known, moved = near[best], [float(came.value[1:][best])], moved + 1
                angle = min(angle * GROW, np.pi / 2)
            else:
                angle = max(angle / GROW**0.25, 0.01)
            self.acceptance = moved / rounds
