"""Ensemble samplers: walkers that propose by each other (Goodman & Weare 2010; ter Braak 2006).

    stretch     y = x_j + ζ (x - x_j)                           g(ζ) ∝ 1/√ζ on [1/2, 2]
    de          y = x + γ (x_i - x_j)                           γ = 2.38/√(2k); one in ten, γ = 1
    snooker     y = x + γ P (x_i - x_j)                         P onto the line x - x_l, γ = 1.7
    kde         y ~ a kernel density estimate of the others

The moves are emcee's; half of the walkers move at a time, by the other half. ``de`` mixes
differential evolution, whose jumps with γ = 1 lead from mode to mode, with a fifth of snooker
moves. Snooker is ours: emcee 3.1.6 scales the jump by ‖x - x_l‖ and halves the logarithm of the
Jacobian, and gives a variance of 0.63 for 1 in eight dimensions.

**Noise.** The density is exp f̂/T with noise of variance ``v`` in f̂. Taken as it is, the chain
samples from π exp(v(z)/2T²), and a lucky draw stays for long. Here a proposal enters at

    f̂/T - v/2T²

which makes its exponential unbiased (a pseudo-marginal chain; Andrieu & Roberts 2009), and every
so many steps all current states are evaluated anew and enter at ``f̂/T + v/2T²``. That is a Gibbs
step: given the state, the noise that an unbiased chain carries is N(v, v). With new evaluations at
every step it is the penalty method (Ceperley & Dewing 1999). For Gaussian noise of known variance
both leave π as it is, whatever the interval.

**Tempering.** The temperature begins ``hot`` times as high, falls to its own, and rises and falls
again, as often as asked; what is kept was drawn at the own temperature.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from jaxtyping import Bool, Float

from educe.errors import MethodError
from educe.sampling.objective import Evaluated, Prior, Walk

MoveName = Literal["de", "stretch", "kde"]
#: Walkers of an ensemble, at least: snooker goes by three of the other half.
LEAST = 6
#: The share of a cycle of the temperature that is spent above the own one.
WARM = 1 / 3


@dataclass
class Ensemble:
    """Independent ensembles of walkers, side by side.

    Attributes:
        k: Dimensions.
        walkers: Of each ensemble; an even number, at least twice the dimensions and six.
        ensembles: How many.
        move: How they propose.
        steps: How many steps; for the schedule of the temperature.
        temperature: Of the density.
        hot: How many times as high it begins.
        cycles: How often it falls from there.
        again: Steps between new evaluations of all current states; 0 for never.
        corrected: Take the noise for noise, as above.
        prior: The prior.
        start: Where the walkers begin, ``[ensembles, walkers, k]``; by default drawn by the prior.
        seed: Of everything that is drawn.
        chain: The states after each step, ``[steps, ensembles, walkers, k]``.
        values: The estimates that the states stand with, ``[steps, ensembles, walkers]``.
        kept: Whether a step was taken at the own temperature.

    Example:
        >>> from educe.sampling.ensemble import Ensemble
        >>> from educe.sampling.objective import Evaluated, drive
        >>> def nothing(z):  # the prior alone, but for rounding
        ...     return Evaluated(1e-9 * z[:, 0], np.zeros(len(z)))
        >>> sampler = Ensemble(k=2, walkers=8, ensembles=2, steps=50)
        >>> rounds = drive(sampler, nothing, budget=816)
        >>> np.array(sampler.chain).shape
        (50, 2, 8, 2)
    """

    k: int
    walkers: int
    ensembles: int = 2
    move: MoveName = "de"
    steps: int = 100
    temperature: float = 1.0
    hot: float = 1.0
    cycles: int = 1
    again: int = 0
    corrected: bool = True
    prior: Prior = field(default_factory=Prior)
    start: np.ndarray | None = None
    seed: int = 0
    chain: list[np.ndarray] = field(default_factory=list)
    values: list[np.ndarray] = field(default_factory=list)
    kept: list[bool] = field(default_factory=list)
    _accepted: int = 0
    _proposed: int = 0

    def __post_init__(self) -> None:
        least = max(2 * self.k, LEAST)
        if self.walkers < least or self.walkers % 2:
            raise MethodError(
                f"{self.walkers} walkers in {self.k} dimensions: give an even number, at least "
                f"{least}, or a smaller basis"
            )
        if self.steps < 1:
            raise MethodError("the budget is spent before a single step: give more")

    @property
    def acceptance(self) -> float | None:
        """The share of proposals that were accepted."""
        return self._accepted / self._proposed if self._proposed else None

    def walk(self) -> Walk:
        """Walk; see `educe.sampling.objective.Sampler`."""
        draw = np.random.RandomState(self.seed)
        moves, weights = _moves(self.move)
        shape = (self.ensembles, self.walkers, self.k)
        first = self.prior.draw(self.ensembles * self.walkers, self.k, draw)
        x = first.reshape(shape) if self.start is None else self.start.copy()
        for one in x:
            if np.linalg.matrix_rank(one - one.mean(0)) < self.k:
                raise MethodError(
                    "the walkers begin in fewer dimensions than there are: spread them"
                )
        came = yield x.reshape(-1, self.k)
        f, v, side = self._known(came, fresh=True)
        for step, factor in enumerate(schedule(self.steps, self.hot, self.cycles)):
            heat = self.temperature * factor
            move = moves[draw.choice(len(moves), p=weights)]
            halves = np.array([draw.permutation(self.walkers) % 2 for _ in range(self.ensembles)])
            for half in (0, 1):
                ours = halves == half
                y, jacobian = _proposed(move, x, ours, draw)
                new = self._known((yield y), fresh=False)
                log_y = self.prior.log(y) + _weighed(*new, heat) + jacobian
                log_x = self.prior.log(x[ours]) + _weighed(f[ours], v[ours], side[ours], heat)
                taken = np.log(draw.random_sample(len(y))) < log_y - log_x
                at = tuple(axis[taken] for axis in np.nonzero(ours))
                x[at] = y[taken]
                for old, own in zip((f, v, side), new, strict=True):
                    old[at] = own.reshape(-1)[taken]
                self._accepted, self._proposed = (
                    self._accepted + taken.sum(),
                    self._proposed + len(y),
                )
            if self.again and (step + 1) % self.again == 0:
                f, v, side = self._known((yield x.reshape(-1, self.k)), fresh=True)
            self.chain.append(x.copy())
            self.values.append(f.copy())
            self.kept.append(factor == 1)

    def _known(self, came: Evaluated, *, fresh: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return estimates, variances, and on which side of the noise they are entered."""
        side = np.full(len(came.value), (1.0 if fresh else -1.0) * self.corrected)
        known = (came.value.astype(float), came.variance.astype(float), side)
        if not fresh:
            return known
        shape = (self.ensembles, self.walkers)
        return known[0].reshape(shape), known[1].reshape(shape), known[2].reshape(shape)


def schedule(steps: int, hot: float, cycles: int = 1) -> list[float]:
    """Return by how much the temperature is higher at each step: from hot to cold, and back.

    Example:
        >>> from educe.sampling.ensemble import schedule
        >>> [round(factor, 2) for factor in schedule(9, 4.0)]
        [4.0, 2.52, 1.59, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0]
    """
    factors: list[float] = []
    for part in np.array_split(np.arange(steps), cycles):
        warm = int(len(part) * WARM) if hot > 1 else 0
        up = warm // 2 if factors else 0  # the first begins hot
        rise = [hot ** ((i + 1) / (up + 1)) for i in range(up)]
        fall = [hot ** (1 - i / (warm - up)) for i in range(warm - up)]
        factors += [*rise, *fall, *[1.0] * (len(part) - warm)]
    return factors


class Snooker:
    """Along the line to another walker, by the difference of two more (ter Braak & Vrugt 2008)."""

    gamma = 1.7

    def setup(self, x: np.ndarray) -> None:
        """Set nothing up."""

    def get_proposal(
        self, x: np.ndarray, others: Sequence[np.ndarray], random: np.random.RandomState
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return proposals, and the logarithm of the Jacobian of each."""
        (pool,) = others
        rows = random.random_sample((len(x), len(pool))).argsort(1)[:, :3]  # three that differ
        z, one, two = (pool[rows[:, i]] for i in range(3))
        before = np.linalg.norm(x - z, axis=1, keepdims=True)
        line = (x - z) / before
        y = x + self.gamma * line * ((one - two) * line).sum(1, keepdims=True)
        after = np.linalg.norm(y - z, axis=1)
        return y, (x.shape[1] - 1) * (np.log(after) - np.log(before[:, 0]))


def _moves(name: MoveName) -> tuple[list[Any], list[float]]:
    from emcee import moves

    if name == "stretch":
        return [moves.StretchMove()], [1.0]
    if name == "kde":
        return [moves.KDEMove()], [1.0]
    return [moves.DEMove(), moves.DEMove(gamma0=1.0), Snooker()], [0.7, 0.1, 0.2]


def _proposed(
    move: Any,
    x: Float[np.ndarray, "e w k"],
    ours: Bool[np.ndarray, "e w"],
    draw: np.random.RandomState,
) -> tuple[np.ndarray, np.ndarray]:
    """Return what a half of each ensemble proposes by the other half, and its Jacobian."""
    made = []
    for one, own in zip(x, ours, strict=True):
        move.setup(one)
        made.append(move.get_proposal(one[own], [one[~own]], draw))
    return np.concatenate([y for y, _ in made]), np.concatenate([log for _, log in made])


def _weighed(f: np.ndarray, v: np.ndarray, side: np.ndarray, heat: float) -> np.ndarray:
    """Return estimates as they enter the acceptance."""
    return f / heat + side * v / (2 * heat**2)
