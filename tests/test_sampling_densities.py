"""Samplers on densities that are known: moments, quantiles, weights of modes, noise, resuming."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from scipy.stats import kstest, norm

from educe.errors import JudgeError, MethodError
from educe.sampling.elliptical import EllipticalSlice
from educe.sampling.ensemble import Ensemble, Snooker, schedule
from educe.sampling.objective import Evaluated, Objective, Prior, drive

PRIOR = Prior("gaussian")
#: A correlated Gaussian, and how a mixture of two spheres is mixed.
MEAN, SD, CORRELATION = np.array([0.4, -0.6]), np.array([0.5, 0.8]), 0.8
COVARIANCE = np.outer(SD, SD) * np.array([[1, CORRELATION], [CORRELATION, 1]])
WEIGHT, APART, WIDTH = 0.3, 1.1, 0.4


def gaussian(z: np.ndarray) -> np.ndarray:
    apart = z - MEAN
    return -0.5 * (apart @ np.linalg.inv(COVARIANCE) * apart).sum(1)


def mixture(z: np.ndarray) -> np.ndarray:
    rest = -0.5 * np.square(z[:, 1:] / WIDTH).sum(1)
    each = [
        np.log(share) + norm.logpdf(z[:, 0], at, WIDTH)
        for share, at in ((WEIGHT, -APART), (1 - WEIGHT, APART))
    ]
    return np.logaddexp(*each) + rest


def mixed(x: np.ndarray) -> np.ndarray:
    """The cumulated distribution of the mixture's first coordinate."""
    return WEIGHT * norm.cdf(x, -APART, WIDTH) + (1 - WEIGHT) * norm.cdf(x, APART, WIDTH)


def given(density: Callable[[np.ndarray], np.ndarray]) -> Objective:
    """An objective whose density under the Gaussian prior is a given one."""
    return lambda z: Evaluated(density(z) - PRIOR.log(z), np.zeros(len(z)))


SAMPLERS: dict[str, Callable[[int], Any]] = {
    move: lambda steps, move=move: Ensemble(2, 128, ensembles=2, move=move, steps=steps, seed=5)
    for move in ("de", "stretch", "kde")
} | {
    "hot to cold": lambda steps: Ensemble(2, 128, steps=steps, hot=6, cycles=2, seed=5),
    "slice": lambda steps: EllipticalSlice(2, 256, steps=steps, seed=5),
}


def sampled(name: str, density: Callable[[np.ndarray], np.ndarray], steps: int) -> np.ndarray:
    """States far enough apart to be taken for independent, ``[n, 2]``."""
    sampler = SAMPLERS[name](steps)
    drive(sampler, given(density), budget=10**9)
    chain = np.array(sampler.chain)[np.array(sampler.kept)]
    return chain[len(chain) // 3 :: 20].reshape(-1, 2)


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_correlated_gaussian(name: str) -> None:
    z = sampled(name, gaussian, 120 if name == "slice" else 300)
    assert np.allclose(z.mean(0), MEAN, atol=0.08)
    assert np.allclose(np.cov(z.T), COVARIANCE, atol=0.08)
    for line in (np.array([1.0, 0.0]), np.array([0.6, -0.8])):
        along = norm(MEAN @ line, np.sqrt(line @ COVARIANCE @ line))
        assert kstest(z @ line, along.cdf).statistic < 0.05


@pytest.mark.parametrize("name", SAMPLERS)
def test_two_modes_with_their_weights(name: str) -> None:
    steps = {"stretch": 800, "slice": 160}.get(name, 400)  # the one mixes slowly, the other fast
    z = sampled(name, mixture, steps)
    assert abs((z[:, 0] < 0).mean() - WEIGHT) < 0.06
    assert kstest(z[:, 0], mixed).statistic < 0.06
    assert kstest(z[:, 1], norm(0, WIDTH).cdf).statistic < 0.06


def banana(z: np.ndarray) -> np.ndarray:
    return norm.logpdf(z[:, 0], 0, 1.2) + norm.logpdf(z[:, 1], np.square(z[:, 0]) / 2, WIDTH)


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_bent_ridge(name: str) -> None:
    z = sampled(name, banana, {"stretch": 800, "slice": 160}.get(name, 400))
    assert kstest(z[:, 0], norm(0, 1.2).cdf).statistic < 0.06
    assert kstest(z[:, 1] - np.square(z[:, 0]) / 2, norm(0, WIDTH).cdf).statistic < 0.06


def test_a_funnel_in_many_dimensions() -> None:
    """The width of seven coordinates is the exponential of half the first."""

    def funnel(z: np.ndarray) -> np.ndarray:
        widths = np.exp(z[:, :1] / 2)
        return norm.logpdf(z[:, 0]) + norm.logpdf(z[:, 1:], 0, widths).sum(1)

    sampler = Ensemble(8, 128, ensembles=2, steps=600, seed=5)
    drive(sampler, given(funnel), budget=10**9)
    chain = np.array(sampler.chain)[np.array(sampler.kept)]
    z = chain[len(chain) // 3 :: 20].reshape(-1, 8)
    assert kstest(z[:, 0], norm.cdf).statistic < 0.05
    assert kstest(z[:, 1] * np.exp(-z[:, 0] / 2), norm.cdf).statistic < 0.05


def test_snooker_alone_is_right_in_many_dimensions() -> None:
    """emcee's own gives 0.63 here."""
    sampler = Ensemble(8, 200, ensembles=1, steps=500, prior=Prior("flat"), seed=1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("educe.sampling.ensemble._moves", lambda name: ([Snooker()], [1.0]))
        drive(
            sampler, lambda z: Evaluated(-0.5 * np.square(z).sum(1), np.zeros(len(z))), budget=10**9
        )
    assert np.square(sampler.chain[100:]).mean() == pytest.approx(1, abs=0.05)


# -- noise -----------------------------------------------------------------------------------------


def noisy(seed: int) -> Objective:
    """N(0, 1) in each of two dimensions, with noise that grows along the first."""
    draw = np.random.default_rng(seed)

    def objective(z: np.ndarray) -> Evaluated:
        v = 0.2 + 1.5 / (1 + np.exp(-3 * z[:, 0]))
        return Evaluated(np.sqrt(v) * draw.standard_normal(len(z)), v)

    return objective


def under_noise(*, corrected: bool, again: int, seed: int = 3) -> np.ndarray:
    sampler = Ensemble(2, 200, 2, steps=300, corrected=corrected, again=again, seed=seed)
    drive(sampler, noisy(seed), budget=10**9)
    return np.array(sampler.chain[60:]).reshape(-1, 2)


@pytest.mark.parametrize("again", [0, 1, 10])
def test_noise_that_is_taken_for_noise_leaves_the_density_as_it_is(again: int) -> None:
    z = under_noise(corrected=True, again=again)
    assert abs(z[:, 0].mean()) < 0.12
    assert z[:, 0].var() == pytest.approx(1, abs=0.15)


def test_noise_that_is_taken_for_density_pulls_to_where_it_is_loud() -> None:
    """By quadrature: the weight exp(v/2) moves the mean."""
    x = np.linspace(-6, 6, 2001)
    weight = norm.pdf(x) * np.exp((0.2 + 1.5 / (1 + np.exp(-3 * x))) / 2)
    moved = (x * weight).sum() / weight.sum()
    assert moved > 0.25
    assert under_noise(corrected=False, again=0)[:, 0].mean() == pytest.approx(moved, abs=0.12)


# -- what all walks share --------------------------------------------------------------------------


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_walk_over_what_is_known_goes_on_as_if_it_had_never_stopped(name: str) -> None:
    whole = SAMPLERS[name](12)
    rounds = drive(whole, given(mixture), budget=10**9)
    known = iter(rounds[: len(rounds) // 2])
    paid: list[int] = []

    def resumed(z: np.ndarray) -> Evaluated:
        if (one := next(known, None)) is not None:
            assert np.array_equal(one.z, z)
            return one.came
        paid.append(len(z))
        return given(mixture)(z)

    other = SAMPLERS[name](12)
    again = drive(other, resumed, budget=10**9)
    assert np.array_equal(np.array(whole.chain), np.array(other.chain))
    assert [len(one.z) for one in again[len(again) // 2 :]] == paid


def test_the_temperature_widens_what_is_drawn() -> None:
    """exp(-z²/2T) under a flat prior has the variance T."""
    sampler = Ensemble(1, 128, steps=200, temperature=3.0, prior=Prior("flat"), seed=2)
    drive(sampler, lambda z: Evaluated(-0.5 * z[:, 0] ** 2, np.zeros(len(z))), budget=10**9)
    assert np.var(sampler.chain[40:]) == pytest.approx(3, rel=0.15)


@pytest.mark.parametrize("shape", ["gaussian", "laplace"])
def test_a_prior_has_unit_variance_and_is_what_it_draws(shape: Any) -> None:
    prior = Prior(shape)
    assert prior.draw(20_000, 2, np.random.RandomState(0)).var() == pytest.approx(1, abs=0.05)
    x = np.linspace(-12, 12, 4001)[:, None]
    weight = np.exp(prior.log(x))
    assert (x[:, 0] ** 2 * weight).sum() / weight.sum() == pytest.approx(1, abs=1e-3)


def test_the_temperature_falls_rises_and_falls_again() -> None:
    factors = schedule(60, 8.0, 2)
    assert factors[0] == 8
    assert factors[10:30] == [1.0] * 20
    assert max(factors[30:]) == 8
    assert factors[-20:] == [1.0] * 20
    assert np.argmax(factors[30:]) in range(3, 7)
    assert schedule(5, 1.0) == [1.0] * 5


def test_a_budget_is_not_exceeded() -> None:
    rounds = drive(SAMPLERS["de"](1000), given(gaussian), budget=1200)
    assert sum(len(one.z) for one in rounds) == 256 + 7 * 128
    with pytest.raises(MethodError, match="less than the 256 of one round"):
        drive(SAMPLERS["de"](10), given(gaussian), budget=60)


# -- objectives that cannot be followed ------------------------------------------------------------


def test_a_nan_ends_in_a_sentence() -> None:
    def broken(z: np.ndarray) -> Evaluated:
        return Evaluated(np.where(z[:, 0] > 0, np.nan, 0.0), np.zeros(len(z)))

    with pytest.raises(JudgeError, match=r"of 256 settings is NaN or infinite.*is kept"):
        drive(SAMPLERS["de"](10), broken, budget=10**6)


def test_a_constant_ends_in_a_sentence() -> None:
    paid: list[int] = []

    def flat(z: np.ndarray) -> Evaluated:
        paid.append(len(z))
        return Evaluated(np.full(len(z), 0.25), np.zeros(len(z)))

    with pytest.raises(JudgeError, match=r"is 0\.25 for each of the first 256 settings"):
        drive(SAMPLERS["slice"](10), flat, budget=10**6)
    assert sum(paid) == 256


@pytest.mark.parametrize("walkers", [6, 9])
def test_walkers_are_at_least_twice_the_dimensions_and_even(walkers: int) -> None:
    with pytest.raises(MethodError, match=r"in 4 dimensions: give an even number, at least 8"):
        Ensemble(4, walkers)


def test_walkers_span_all_dimensions() -> None:
    start = np.zeros((2, 8, 2)) + np.arange(8)[None, :, None]
    with pytest.raises(MethodError, match="fewer dimensions"):
        next(Ensemble(2, 8, start=start).walk())
