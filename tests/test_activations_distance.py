"""Distances: known quantiles of a Gaussian, planted subspaces, and scikit-learn's shrinkage."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.stats import chi2, kstest
from sklearn.covariance import OAS

from educe.activations import distance
from educe.activations.distance import Geometry, coverage, differences, percentile, random_vectors
from educe.activations.natural import Natural, Sample
from educe.activations.reading import Place
from educe.activations.subspace import Moments
from test_activations_subspace import planted
from toy_slice import normal


def gaussian(n: int, width: int = 8, *, seed: int = 0) -> torch.Tensor:
    """Return a Gaussian sample whose covariance is far from round, the same for all seeds."""
    mix = normal(width, width, seed=99)
    return normal(n, width, seed=seed) @ mix + 10 * normal(width, seed=98)


def test_squared_distances_of_a_gaussian_are_chi_square() -> None:
    geometry = Geometry.of(Moments.of(gaussian(200_000)))
    fresh = gaussian(5000, seed=1)
    assert kstest(geometry.distance(fresh).square().numpy(), chi2(8).cdf).pvalue > 0.01
    apart = fresh[:2500] - fresh[2500:]  # twice the covariance
    assert kstest(geometry.length(apart).square().numpy() / 2, chi2(8).cdf).pvalue > 0.01


def test_distances_are_those_of_the_inverse_of_the_shrunk_covariance() -> None:
    rows = gaussian(30)
    own = OAS().fit(rows.numpy())
    geometry = Geometry.of(Moments.of(rows))
    assert distance.shrinkage(geometry.variance, 30) == pytest.approx(own.shrinkage_)
    np.testing.assert_allclose(
        geometry.distance(rows).square(), own.mahalanobis(rows.numpy()), rtol=1e-8
    )


def test_shrinkage_is_whole_where_there_is_no_spread_and_small_with_much_data() -> None:
    assert distance.shrinkage(torch.ones(5, dtype=torch.float64), 10) == 1.0
    assert distance.shrinkage(torch.arange(1.0, 9, dtype=torch.float64), 10**6) < 1e-4


def test_energy_within_the_planted_subspace_is_whole_and_by_chance_a_share() -> None:
    rows, basis, _ = planted(3000, 40, 4, noise=1e-4)
    geometry = Geometry.of(Moments.of(rows), rank=4)
    inside = normal(10, 4) @ basis
    draw = torch.Generator().manual_seed(0)
    random = random_vectors(4000, geometry, draw)
    assert float(geometry.share(inside).min()) > 0.999
    mean, low, high = geometry.chance
    assert mean == pytest.approx(0.1)
    shares = geometry.share(random)
    assert float(shares.mean()) == pytest.approx(mean, abs=0.005)
    assert float(((shares > low) & (shares < high)).double().mean()) == pytest.approx(
        0.95, abs=0.01
    )
    unit = torch.nn.functional.normalize(inside, dim=1)
    assert float(geometry.length(random).min()) > 10 * float(geometry.length(unit).max())
    torch.testing.assert_close(geometry.inside(inside), inside, rtol=0, atol=1e-3)


def test_the_rank_holds_ninety_per_cent() -> None:
    geometry = Geometry.of(Moments.of(gaussian(1000)))
    held = geometry.variance.cumsum(0) / geometry.variance.sum()
    assert held[geometry.rank - 1] >= 0.9
    assert geometry.rank == 1 or held[geometry.rank - 2] < 0.9
    assert Geometry.of(Moments.of(gaussian(1000)), rank=8).chance == (1.0, 1.0, 1.0)


def test_massive_coordinates_are_in_no_measure() -> None:
    rows = gaussian(2000)
    loud = rows.clone()
    loud[:, 3] = 1e4 * normal(2000, seed=5)
    kept = [i for i in range(8) if i != 3]
    geometry, alone = (
        Geometry.of(Moments.of(loud), massive=[3]),
        Geometry.of(Moments.of(rows[:, kept])),
    )
    torch.testing.assert_close(geometry.distance(loud), alone.distance(rows[:, kept]))
    v = normal(5, 8, seed=6)
    torch.testing.assert_close(geometry.share(v), alone.share(v[:, kept]))
    assert not random_vectors(3, geometry, torch.Generator().manual_seed(0))[:, 3].any()


def test_distances_with_vectors_added_are_those_of_the_sums() -> None:
    rows, fresh, vectors = gaussian(50), gaussian(4, seed=2), normal(3, 8, seed=7)
    geometry = Geometry.of(Moments.of(rows), massive=[2])
    wanted = torch.stack([geometry.distance(fresh + v) for v in vectors])
    torch.testing.assert_close(geometry.distances(fresh, vectors), wanted)


def test_coverage_is_computed_from_moments_as_from_the_activations() -> None:
    rows, fresh = gaussian(60), gaussian(80, seed=3)
    geometry = Geometry.of(Moments.of(rows), rank=3)
    known = coverage(geometry, Moments.of(rows), Moments.of(fresh))
    far = geometry.distance(fresh).square().mean() / geometry.distance(rows).square().mean()
    assert known.optimism == pytest.approx(float(far))
    apart = (fresh - rows.mean(0)) @ geometry.vectors.T
    assert known.share == pytest.approx(float(apart[:, :3].square().sum() / apart.square().sum()))


def test_a_small_corpus_is_called_too_small_and_a_large_one_is_not() -> None:
    held = Moments.of(gaussian(20_000, 40, seed=4))
    for count, enough in ((60, False), (20_000, True)):
        some = Moments.of(gaussian(count, 40))
        assert coverage(Geometry.of(some), some, held).enough is enough


def test_the_learning_curve_goes_over_the_growing_corpus() -> None:
    parts = tuple(Moments.of(gaussian(n, 40, seed=n)) for n in (100, 101, 200, 400))
    empty = Sample.none(40)
    natural = Natural(Place(0), parts, Moments.of(gaussian(500, 40, seed=5)), empty, empty, 0.0)
    curve = distance.learning(natural)
    assert [known.tokens for _, known in curve] == [100, 201, 401, 801]
    assert len({geometry.rank for geometry, _ in curve}) == 1
    assert [known.optimism for _, known in curve] == sorted(
        (known.optimism for _, known in curve), reverse=True
    )


def test_percentiles_count_ties_by_half() -> None:
    among = torch.tensor([1.0, 2.0, 2.0, 3.0])
    found = percentile(torch.tensor([0.0, 1.0, 2.0, 3.0, 9.0]), among)
    assert found.tolist() == [0, 0.125, 0.5, 0.875, 1]


def test_differences_are_between_documents() -> None:
    documents = torch.tensor([0, 0, 0, 1])
    rows = torch.tensor([[0.0], [1.0], [2.0], [10.0]])
    found = differences(
        Sample(rows, documents, torch.zeros(4)), 50, torch.Generator().manual_seed(0)
    )
    assert set(found.abs()[:, 0].tolist()) == {8, 9, 10}
    assert found.dtype == torch.float64


def test_documents_that_begin_alike_do_not_differ_there() -> None:
    """Two documents share their first activation; no difference is zero, so none is 0/0 of it."""
    rows = torch.tensor([[5.0], [1.0], [5.0], [10.0]])
    sample = Sample(rows, torch.tensor([0, 0, 1, 1]), torch.zeros(4))
    found = differences(sample, 400, torch.Generator().manual_seed(0))
    assert set(found.abs()[:, 0].tolist()) == {4, 5, 9}
    assert len(found) == 400
