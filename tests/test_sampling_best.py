"""One best setting, archives, annealing, diagnostics, combinations: on toys with known answers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import educe
from educe.derive.combining import agreement, averaged, between
from educe.errors import MethodError
from educe.sampling.annealing import Annealed
from educe.sampling.best import CMA, TPE, Around, Draws
from educe.sampling.diagnostics import answer, diagnose, modes
from educe.sampling.diversity import Diversity, archived
from educe.sampling.objective import Evaluated, Prior, drive

TOP = np.array([1.2, -0.8, 0.5])
FLAT = Prior("flat")


def bump(z: np.ndarray) -> Evaluated:
    return Evaluated(-np.square(z - TOP).sum(1), np.zeros(len(z)), np.tanh(z[:, :2]))


def best(rounds: list[Any]) -> np.ndarray:
    z = np.concatenate([one.z for one in rounds])
    return z[np.concatenate([one.came.value for one in rounds]).argmax()]


@pytest.mark.parametrize("kind", [CMA, TPE])
def test_the_top_is_found_nearer_than_by_draws(kind: Any) -> None:
    found = best(drive(kind(3, 12, prior=FLAT), bump, budget=240))
    drawn = best(drive(Draws(3, 12, prior=FLAT), bump, budget=240))
    assert np.linalg.norm(found - TOP) < 0.25
    assert np.linalg.norm(found - TOP) < np.linalg.norm(drawn - TOP)


def test_a_walk_around_a_find_stays_on_its_sphere_and_goes_to_the_nearest_point() -> None:
    start = np.array([0.0, 1.0, 1.0])
    sampler = Around(3, 12, start=start)
    rounds = drive(sampler, bump, budget=1300)
    z = np.concatenate([one.z for one in rounds])
    assert np.allclose(np.linalg.norm(z, axis=1), np.linalg.norm(start))
    nearest = TOP / np.linalg.norm(TOP) * np.linalg.norm(start)
    assert np.allclose(best(rounds), nearest, atol=0.1)
    assert 0 < sampler.acceptance < 1


def test_under_noise_a_walk_gives_up_a_lucky_best() -> None:
    """Every neighbour is worse; one draw of the start is lucky. Its mean comes down."""
    calls = iter([5.0, *[0.0] * 1000])

    def lucky(z: np.ndarray) -> Evaluated:
        values = np.full(len(z), 1.0)
        values[0] = next(calls)
        return Evaluated(values + 1e-3 * z[:, 0], np.zeros(len(z)))

    sampler = Around(2, 4, start=np.array([1.0, 0.0]))
    rounds = drive(sampler, lucky, budget=5 * 8)
    assert np.array_equal(rounds[4].z[0], [1, 0])  # the mean of 5, 0, 0, 0 is above 1
    assert not np.array_equal(rounds[7].z[0], [1, 0])


def test_an_archive_is_what_brute_force_puts_together() -> None:
    ranges = [(-1.0, 1.0), (-1.0, 1.0)]
    rounds = drive(Diversity(3, 10, ranges=ranges, cells=5, prior=FLAT), bump, budget=200)
    told = archived(rounds, ranges, cells=5, lowest=-50.0)
    values = np.concatenate([one.came.value for one in rounds])
    measures = np.concatenate([one.came.measures for one in rounds])
    held: dict[tuple[int, ...], int] = {}
    for i, where in enumerate(np.floor((measures + 1) / 2 * 5).clip(0, 4).astype(int)):
        cell = tuple(where.tolist())
        if cell not in held or values[i] > values[held[cell]]:
            held[cell] = i
    assert told.coverage == pytest.approx(len(held) / 25)
    assert told.qd_score == pytest.approx(sum(values[i] + 50 for i in held.values()))
    assert {tuple(c): e for c, e in zip(told.cells.tolist(), told.elites, strict=True)} == held
    assert (np.diff(values[told.elites]) <= 0).all()


def test_annealing_follows_a_find_through_the_norm() -> None:
    sampler = Annealed(3, 12, TOP[[1, 0, 2]], shares=(1.0, 0.5), steps=60, temperature=0.05)
    drive(sampler, bump, budget=10**6)
    chain = np.array(sampler.chain)
    for part, share in ((chain[:60], 1.0), (chain[60:], 0.5)):
        assert np.allclose(np.linalg.norm(part, axis=-1), share * 3**0.5)
        mean = part[30:].mean((0, 1, 2))
        assert mean @ TOP / np.linalg.norm(mean) / np.linalg.norm(TOP) > 0.97
    assert [stop.share for stop in sampler.path] == [1.0, 0.5]
    assert sampler.path[1].cosine > 0.95 > sampler.path[0].cosine
    reached = -np.square(np.linalg.norm(TOP) - np.array([1.0, 0.5]) * 3**0.5)
    assert [stop.value for stop in sampler.path] == pytest.approx(reached.tolist(), abs=0.2)


# -- diagnostics -----------------------------------------------------------------------------------


def test_effective_samples_of_a_chain_whose_autocorrelation_is_known() -> None:
    """An AR(1) chain with coefficient 0.8 has τ = (1 + 0.8) / (1 - 0.8) = 9."""
    draw, x = np.random.default_rng(0), np.zeros((4000, 2, 10, 1))
    for t in range(1, len(x)):
        x[t] = 0.8 * x[t - 1] + draw.standard_normal(x.shape[1:])
    told = diagnose(x, acceptance=0.5, evaluations=80_000)
    assert told.autocorrelation == pytest.approx(9, rel=0.1)
    assert told.per_evaluation == pytest.approx(1 / 9, rel=0.1)
    assert told.rhat == pytest.approx(1, abs=0.02)
    assert told.warnings == ()


def test_a_chain_that_has_not_mixed_is_told_so() -> None:
    draw = np.random.default_rng(0)
    apart = draw.normal(size=(100, 2, 8, 1)) + np.array([0.0, 3.0])[None, :, None, None]
    assert diagnose(apart, acceptance=0.3, evaluations=1).rhat > 1.3
    assert any("R-hat" in w for w in diagnose(apart, acceptance=0.3, evaluations=1).warnings)
    drift = np.cumsum(draw.normal(size=(60, 2, 8, 1)), 0)
    said = " ".join(diagnose(drift, acceptance=0.3, evaluations=1).warnings)
    assert "autocorrelation times long" in said
    still = np.zeros((50, 2, 8, 1)) + draw.normal(size=(1, 2, 8, 1))
    assert "hardly any proposal" in " ".join(
        diagnose(still, acceptance=0.0, evaluations=1).warnings
    )


def test_modes_are_counted_and_weighed() -> None:
    draw = np.random.default_rng(0)
    two = np.concatenate([draw.normal(-3, 0.5, (600, 2)), draw.normal(3, 0.5, (1400, 2))])
    found = modes(two)
    assert [m.share for m in found] == pytest.approx([0.7, 0.3], abs=0.03)
    assert np.allclose(found[0].mean, 3, atol=0.1)
    skewed = np.exp(draw.normal(0, 0.7, (2000, 1))) * np.ones(2) + draw.normal(0, 0.3, (2000, 2))
    x, angle = draw.normal(0, 0.8, 2000), draw.uniform(0, 2 * np.pi, 2000)
    bent = np.stack([x, x**2 + draw.normal(0, 0.25, 2000)], 1)
    ring = np.stack([np.cos(angle), np.sin(angle)], 1) + draw.normal(0, 0.1, (2000, 2))
    for some in (skewed, bent, ring):
        assert len(modes(some)) == 1  # however many Gaussians describe it
    three = np.repeat([[1.2, 0.0], [-1.0, 1.0], [-0.4, -1.4]], [1000, 600, 400], axis=0)
    found = modes(three + draw.normal(0, 0.35, (2000, 2)))
    assert [m.share for m in found] == pytest.approx([0.5, 0.3, 0.2], abs=0.03)
    assert len(modes(np.zeros((50, 2)))) == 1


def test_a_posterior_says_what_matters_what_is_free_and_how_few_are_needed() -> None:
    draw = np.random.default_rng(0)
    z = draw.normal(size=(500, 2, 8, 4)) * [0.05, 1.0, 0.3, 0.7] + [6.0, 0.0, 0.0, 0.4]
    told = answer(z, list("abcd"), draw.normal(size=(4000, 4)))
    assert [d.says for d in told.directions] == ["matters", "free", "matters", "undecided"]
    assert told.needed == 1
    # Of four standard normal coordinates the largest three carry 90% of the square, more or less.
    assert told.by_prior == 3
    assert "1 of 4 directions carry 90%" in told.sentences[1]
    assert "what matters: a, c" in told.sentences[0]
    assert told.sentences[2] == "one mode"


# -- combinations ----------------------------------------------------------------------------------


def test_between_two_vectors_the_angle_grows_evenly(tiny_lm: Any) -> None:
    part = educe.Slice(tiny_lm, ["Hi."], source=1, target=3)
    found = educe.search(part, "random", n=3, radius=2.0)
    found.radius[1] = 8.0
    made = between(found, [0.25, 0.5, 0.75])
    u, v = found.directions[:2].double()
    angle = torch.arccos(u @ v)
    for row, t in zip(made.directions[:3].double(), (0.25, 0.5, 0.75), strict=True):
        assert torch.arccos(u @ row) == pytest.approx(float(t * angle), abs=1e-3)
        assert torch.linalg.matrix_rank(torch.stack([u, v, row]), tol=1e-4) == 2
    assert made.radius[:3].tolist() == pytest.approx([2 * 4**t for t in (0.25, 0.5, 0.75)])
    assert made.scores["parent"].tolist() == [0, 0, 1, 0, 0, 2, 1, 1, 2]
    with pytest.raises(MethodError, match="opposite"):
        between(educe.derive.scaled(found[:1], [1, -1]))


def test_the_average_of_noisy_copies_recovers_the_direction(tiny_lm: Any) -> None:
    part = educe.Slice(tiny_lm, ["Hi."], source=1, target=3)
    found = educe.search(part, "random", n=40, radius=2.0)
    wanted = torch.nn.functional.normalize(torch.linspace(-1, 2, tiny_lm.width), dim=0)
    sign = torch.ones(40)
    sign[1::2] = -1
    noisy = sign[:, None] * (0.6 * wanted + 0.8 * found.directions)
    found.directions[:] = noisy / noisy.norm(dim=1, keepdim=True)
    cosines = agreement(found, wanted)
    assert cosines[0] == pytest.approx(float(found.directions[0] @ wanted), abs=1e-5)
    assert cosines[-1] > 0.95 > cosines[0]
    assert float(averaged(found).directions[0] @ wanted) == pytest.approx(float(cosines[-1]))
