"""Moments and subspaces: against numpy and scikit-learn, and planted low-rank activations."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA

from educe.activations import subspace
from educe.activations.subspace import Moments, of_moments, of_rows, random_subspace
from educe.errors import MethodError
from toy_slice import normal


def planted(n: int, width: int, rank: int, *, noise: float = 0.0, seed: int = 0) -> tuple:
    """Return activations of low rank about a mean, and the directions, their spread falling."""
    basis = torch.linalg.qr(normal(width, rank, seed=seed)).Q.T
    spread = 2.0 ** -torch.arange(rank, dtype=torch.float64)
    rows = normal(n, rank, seed=seed + 1) * spread @ basis + 5 * normal(width, seed=seed + 2)
    return rows + noise * normal(n, width, seed=seed + 3), basis, spread


def test_moments_are_those_of_numpy() -> None:
    rows = normal(50, 7) + 3
    known = Moments.of(rows)
    assert known.count == 50
    np.testing.assert_allclose(known.mean, rows.numpy().mean(0))
    np.testing.assert_allclose(known.covariance, np.cov(rows.numpy().T, bias=True), atol=1e-12)
    point = normal(7, seed=9)
    apart = rows - point
    torch.testing.assert_close(known.about(point), apart.T @ apart / 50)


def test_streamed_moments_are_those_of_the_batch_in_any_order() -> None:
    rows = normal(101, 6) * 3 + 100  # a mean far from zero, where sums of squares lose digits
    parts = [Moments.of(part) for part in rows.split([1, 40, 0, 60])]
    whole = Moments.of(rows)
    forward = sum(parts, Moments.none(6))
    pairs = (parts[3] + parts[1]) + (parts[2] + parts[0])
    for merged in (forward, pairs):
        assert merged.count == 101
        torch.testing.assert_close(merged.mean, whole.mean)
        torch.testing.assert_close(merged.scatter, whole.scatter, rtol=1e-10, atol=1e-9)


def test_nothing_added_to_nothing_is_nothing() -> None:
    nothing = Moments.none(3) + Moments.of(torch.zeros(0, 3))
    assert nothing.count == 0
    assert not nothing.mean.isnan().any()


def test_a_planted_subspace_is_found_with_its_variances() -> None:
    rows, basis, _ = planted(400, 20, 4)
    found = of_moments(Moments.of(rows))
    assert len(found) == 4
    torch.testing.assert_close(found.basis.T @ found.basis, basis.T @ basis, rtol=0, atol=1e-6)
    own = PCA().fit(rows.numpy())
    np.testing.assert_allclose(found.variance, own.explained_variance_[:4] * 399 / 400, rtol=1e-8)
    assert found.share(Moments.of(rows)) == pytest.approx(1)
    assert found.top(2).share(Moments.of(rows)) == pytest.approx(
        own.explained_variance_ratio_[:2].sum()
    )


@pytest.mark.parametrize("centred", [True, False])
def test_moments_and_matrix_have_the_same_singular_vectors(centred: bool) -> None:
    rows = normal(30, 8) @ torch.diag(torch.arange(1.0, 9, dtype=torch.float64)) + 2
    by_matrix = of_rows(rows, centred=centred)
    _, size, _ = np.linalg.svd(rows.numpy() - (rows.numpy().mean(0) if centred else 0))
    np.testing.assert_allclose(by_matrix.variance, size**2 / 30)
    if centred:
        by_moments = of_moments(Moments.of(rows))
        torch.testing.assert_close(by_moments.variance, by_matrix.variance)
        cosines = (by_moments.basis * by_matrix.basis).sum(1).abs()
        torch.testing.assert_close(cosines, torch.ones(8, dtype=torch.float64))
        assert by_moments.total == pytest.approx((size**2).sum() / 30)


def test_without_centring_the_mean_is_the_first_direction() -> None:
    rows = normal(40, 6) + 50
    mean = torch.nn.functional.normalize(rows.mean(0), dim=0)
    assert float((of_rows(rows, centred=False).basis[0] @ mean).abs()) > 0.999
    assert float((of_rows(rows).basis[0] @ mean).abs()) < 0.9


def test_rank_is_the_fewest_directions_with_a_share() -> None:
    variance = torch.tensor([6.0, 3.0, 1.0], dtype=torch.float64)
    found = subspace.Subspace(torch.zeros(3), torch.eye(3), variance, 10.0)
    assert [found.rank(share) for share in (0.5, 0.6, 0.61, 0.9, 0.95, 1.0)] == [1, 1, 2, 2, 3, 3]
    with pytest.raises(MethodError, match="span 3 directions"):
        found.top(4)


def test_a_single_prompt_spans_no_more_than_its_tokens() -> None:
    found = of_rows(normal(5, 30))
    assert len(found) == 4  # one is lost to the mean
    with pytest.raises(MethodError, match="rank 5"):
        of_rows(normal(5, 30), rank=5)


def test_random_projection_finds_what_the_exact_decomposition_does(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rows, _, _ = planted(120, 80, 6, noise=1e-3)
    exact = of_rows(rows, rank=5)
    monkeypatch.setattr(subspace, "LARGE", 50)
    called = []
    plain = subspace.randomized_svd
    monkeypatch.setattr(
        subspace, "randomized_svd", lambda *a, **k: called.append(1) or plain(*a, **k)
    )
    quick = of_rows(rows, rank=5)
    assert called
    torch.testing.assert_close(quick.variance, exact.variance, rtol=1e-3, atol=0)
    assert float((quick.basis * exact.basis).sum(1).abs().min()) > 0.999
    assert quick.total == pytest.approx(exact.total)


def test_a_random_subspace_holds_the_chance_share() -> None:
    moments = Moments.of(
        normal(500, 40) @ torch.diag(torch.linspace(0.1, 2, 40, dtype=torch.double))
    )
    draw = torch.Generator().manual_seed(0)
    some = [random_subspace(moments, 10, draw) for _ in range(200)]
    for one in some[:3]:
        torch.testing.assert_close(one.basis @ one.basis.T, torch.eye(10, dtype=torch.float64))
        along = (one.basis @ moments.covariance * one.basis).sum(1)
        torch.testing.assert_close(one.variance, along)
        assert (one.variance.diff() <= 0).all()
    shares = [one.share(moments) for one in some]
    assert np.mean(shares) == pytest.approx(0.25, abs=0.01)


def test_coordinates_that_are_left_out_are_in_no_subspace() -> None:
    moments = Moments.of(normal(100, 6) * torch.tensor([1, 1, 900.0, 1, 1, 1])).without([2])
    assert of_moments(moments).basis.shape == (5, 6)
    assert float(of_moments(moments).basis[:, 2].abs().max()) < 1e-12
    drawn = random_subspace(moments, 3, torch.Generator().manual_seed(0))
    assert float(drawn.basis[:, 2].abs().max()) < 1e-12
