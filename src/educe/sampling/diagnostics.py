"""Diagnostics of chains, and the posterior read as answers.

    τ         integrated autocorrelation time, in steps (Sokal; emcee's window), the longest of all
    ESS       steps × walkers / τ, and the same for each evaluation that was paid
    R-hat     rank-normalised, over independent ensembles (Vehtari et al. 2021; arviz)
    modes     components of a Gaussian mixture, chosen by BIC, joined where no valley is between

What a chain says of the behaviour: a direction matters where the posterior is narrower than the
prior or away from zero; it is free where the posterior is the prior.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from educe.errors import MethodError

#: Steps, at least, before anything is said of a chain.
STEPS = 8
#: A chain has mixed below this R-hat, and with so many autocorrelation times.
MIXED, LONG = 1.05, 20
#: Proposals accepted: below, walkers stay where they are.
LOW = 0.05
#: A posterior's width as a share of the prior's: narrow below, free above; and so many widths from
#: zero it is on one side.
NARROW, FREE, ASIDE = 0.6, 0.85, 2.0
#: The most components of the mixture; a valley is lower than this share of the lower peak.
COMPONENTS, VALLEY = 12, 0.6
#: Points that modes are looked for among, at most, and the share of all that a mode has at least.
AMONG, LEAST = 2000, 0.03
#: The share of a setting's square length that its largest coordinates carry.
CARRIED = 0.9


class Diagnosis(NamedTuple):
    """How well a chain has mixed."""

    acceptance: float
    autocorrelation: float  #: the longest autocorrelation time, in steps
    effective: float  #: effective sample size
    per_evaluation: float  #: the same for each evaluation
    rhat: float | None  #: the largest of all coordinates; None for a single ensemble
    warnings: tuple[str, ...]  #: in plain words; none where the chain has mixed


class Direction(NamedTuple):
    """What the posterior says of a direction."""

    name: str
    mean: float  #: in units of the prior's standard deviation
    sd: float
    says: str  #: matters, free or undecided


class Mode(NamedTuple):
    """A mode of the posterior."""

    share: float
    mean: tuple[float, ...]


class Answers(NamedTuple):
    """What the posterior says of the behaviour."""

    directions: tuple[Direction, ...]
    needed: float  #: directions that carry 90% of a setting, in the median
    by_prior: float  #: the same of draws of the prior: fewer are needed only where it says more
    modes: tuple[Mode, ...]  #: largest first

    @property
    def sentences(self) -> list[str]:
        """Return the answers in words."""
        of = {
            word: [d.name for d in self.directions if d.says == word]
            for word in ("matters", "free", "undecided")
        }
        mattering = f"what matters: {', '.join(of['matters'])}" if of["matters"] else "none matters"
        many = len(self.modes)
        apart = " and ".join(f"{m.share:.0%}" for m in self.modes)
        return [
            f"of {len(self.directions)} directions {mattering}; free: {len(of['free'])}, "
            f"undecided: {len(of['undecided'])}",
            f"how sparse: {self.needed:.0f} of {len(self.directions)} directions carry "
            f"{CARRIED:.0%} of a setting, in the median (by the prior {self.by_prior:.0f})",
            "one mode" if many == 1 else f"{many} separate modes, with {apart} of the draws",
        ]


def states(chain: Sequence[np.ndarray], kept: Sequence[bool]) -> Float[np.ndarray, "s e w k"]:
    """Return the states that count: at the own temperature, without the first half of them.

    Raises:
        MethodError: There are too few.
    """
    own = np.array(chain)[np.array(kept, dtype=bool)] if len(chain) else np.zeros((0, 1, 1, 1))
    if len(own) < STEPS:
        raise MethodError(
            f"the chain has {len(own)} steps at its own temperature, too few to say anything: give "
            "a larger budget, or fewer walkers"
        )
    return own[len(own) // 2 :]


def diagnose(
    chain: Float[np.ndarray, "s e w k"], *, acceptance: float, evaluations: int
) -> Diagnosis:
    """Say how well a chain has mixed.

    Args:
        chain: States that count.
        acceptance: The share of proposals that were accepted.
        evaluations: What was paid for them.

    Example:
        >>> from educe.sampling.diagnostics import diagnose
        >>> chain = np.random.default_rng(0).normal(size=(200, 2, 8, 3))
        >>> told = diagnose(chain, acceptance=0.3, evaluations=3200)
        >>> told.warnings, round(told.per_evaluation, 1)
        ((), 1.0)
    """
    from emcee.autocorr import integrated_time

    steps, ensembles, walkers, k = chain.shape
    flat = chain.reshape(steps, -1, k)
    moved = np.ptp(flat, axis=0).max(1) > 0
    moving = bool(moved.any())
    tau = float(np.max(integrated_time(flat[:, moved], tol=0))) if moving else float(steps)
    tau = max(tau, 1.0)
    ess = steps * ensembles * walkers / tau
    rhat = _rhat(chain) if ensembles > 1 and moving else None
    warnings = []
    if not moving or acceptance < LOW:
        warnings.append(
            f"hardly any proposal was accepted ({acceptance:.1%}): raise the temperature, "
            "take more samples of each setting, or search in fewer directions"
        )
    elif not moved.all():
        warnings.append(f"{int((~moved).sum())} of {len(moved)} walkers never moved: go on longer")
    if steps < LONG * tau:
        warnings.append(
            f"the chain is {steps / tau:.0f} autocorrelation times long, and {LONG} are needed: "
            f"its means are rough; a budget {math.ceil(LONG * tau / steps)} times as large would do"
        )
    if rhat is not None and rhat > MIXED:
        warnings.append(
            f"independent ensembles have not found the same distribution (R-hat {rhat:.2f}, above "
            f"{MIXED}): shares of modes are not to be trusted; go on longer, or begin hotter"
        )
    return Diagnosis(acceptance, tau, ess, ess / max(1, evaluations), rhat, tuple(warnings))


def _rhat(chain: np.ndarray) -> float:
    """Return the largest R-hat: an ensemble is a chain, its walkers one after the other."""
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # of what arviz will become
        import arviz

        steps, ensembles, walkers, k = chain.shape
        draws = chain.transpose(1, 0, 2, 3).reshape(ensembles, steps * walkers, k)
        each = [float(arviz.rhat(draws[:, :, i], method="rank")) for i in range(k)]
    return max(each)


def answer(
    chain: Float[np.ndarray, "s e w k"],
    names: Sequence[str],
    prior: Float[np.ndarray, "n k"],
    *,
    seed: int = 0,
) -> Answers:
    """Read a posterior as answers.

    Args:
        chain: States that count.
        names: Of the directions.
        prior: Draws of the prior, to compare with.
        seed: Of the points that modes are looked for among.

    Example:
        >>> from educe.sampling.diagnostics import answer
        >>> draw = np.random.default_rng(0)
        >>> chain = draw.normal(size=(100, 1, 8, 2)) * [0.1, 1.0] + [2.0, 0.0]
        >>> told = answer(chain, ["one", "two"], draw.normal(size=(500, 2)))
        >>> [d.says for d in told.directions], len(told.modes)
        (['matters', 'free'], 1)
    """
    z = chain.reshape(-1, chain.shape[-1])
    mean, sd, wide = z.mean(0), z.std(0), prior.std(0)
    directions = []
    for i, name in enumerate(names):
        share, aside = sd[i] / wide[i], abs(mean[i]) / max(sd[i], 1e-12)
        says = "matters" if share < NARROW or aside > ASIDE else "undecided"
        if share > FREE and aside < 0.5:
            says = "free"
        directions.append(Direction(name, float(mean[i]), float(sd[i]), says))
    return Answers(tuple(directions), _needed(z), _needed(prior), modes(z, seed=seed))


def _needed(z: Float[np.ndarray, "n k"]) -> float:
    """Return how many coordinates carry most of the square length of a setting, in the median."""
    square = -np.sort(-np.square(z), axis=1)
    carried = square.cumsum(1) / square.sum(1, keepdims=True)
    return float(np.median((carried < CARRIED).sum(1) + 1))


def modes(z: Float[np.ndarray, "n k"], *, seed: int = 0) -> tuple[Mode, ...]:
    """Return the modes among some points, the largest first.

    Components of a mixture belong to one mode unless their points thin out between them: a skewed
    or curved mode is one, however many components describe it.
    """
    draw = np.random.default_rng(seed)
    some = z[draw.permutation(len(z))[:AMONG]]
    of = _components(some, seed)
    label = np.arange(of.max() + 1)
    for i in label:
        for j in range(i):
            if not _valley(some[of == i], some[of == j]):
                label[label == label[i]] = label[j]
    of = label[of]
    found = [(float((of == one).mean()), some[of == one].mean(0)) for one in np.unique(of)]
    found = sorted((f for f in found if f[0] >= LEAST), key=lambda f: -f[0])
    return tuple(Mode(share, tuple(mean.tolist())) for share, mean in found)


def _components(z: Float[np.ndarray, "n k"], seed: int) -> Int[np.ndarray, "n"]:
    """Return to which Gaussian of a mixture points belong, of as many as BIC chooses."""
    from sklearn.mixture import GaussianMixture

    best, low, worse = np.zeros(len(z), dtype=int), np.inf, 0
    most = len(np.unique(z, axis=0)) // (2 * z.shape[1] + 2)  # each has a covariance to be known
    for m in range(1, min(COMPONENTS, max(1, most)) + 1):
        fit = GaussianMixture(m, random_state=seed, reg_covar=1e-4).fit(z)
        if (bic := fit.bic(z)) < low:
            low, worse = bic, 0
            best = np.unique(fit.predict(z), return_inverse=True)[1]
        elif (worse := worse + 1) == 2:
            break
    return best


def _valley(one: Float[np.ndarray, "n k"], other: Float[np.ndarray, "m k"]) -> bool:
    """Return whether fewer points lie between two components than at both.

    By a kernel estimate of their density along the line through both means, not by the mixture,
    which is low between neighbours on any bent or even ridge.
    """
    line = other.mean(0) - one.mean(0)
    along = [(part - one.mean(0)) @ line / (line @ line) for part in (one, other)]
    width = np.mean([part.std() for part in along]) * (len(one) + len(other)) ** -0.2
    grid = np.linspace(0, 1, 21)[:, None]
    height = np.exp(-0.5 * np.square((grid - np.concatenate(along)) / width)).sum(1)
    return bool(height.min() < VALLEY * min(height[0], height[-1]))
