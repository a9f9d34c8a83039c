"""Gradients against dense Fisher matrices, and what is both present and used against its theory."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

import tiny
from educe.activations import corpus, inside, natural, reading
from educe.activations.balanced import Components, balanced, orthogonal, subspace
from educe.activations.gradients import pulled, sampled, sweep
from educe.activations.reading import Place
from educe.errors import MethodError
from educe.model.language import LanguageModel
from toy_slice import normal

IDS = [70, 101, 32, 116, 97]


def gradients_of(lm: LanguageModel, drawn: Tensor, counted: list[int], layer: int) -> Tensor:
    """Return the gradients of drawn tokens, a row a draw: ``[draws, tokens, width]``."""
    ids = torch.tensor([IDS]).expand(len(drawn), -1)
    at = torch.zeros(len(drawn), len(IDS), dtype=torch.bool)
    at[:, counted] = True
    return pulled(lm, ids, torch.ones_like(ids), [layer, 3], drawn, at).gradients[layer]


def drawn(lm: LanguageModel, tokens: Tensor, counted: list[int]) -> Tensor:
    every = torch.zeros(len(tokens), len(IDS), dtype=torch.long)
    every[:, counted] = tokens[:, None].expand(-1, len(counted))
    return every


@pytest.mark.parametrize(("layer", "at"), [(0, 2), (2, 4)])
def test_expected_squares_of_gradients_are_the_dense_fisher_metric(
    tiny64: LanguageModel, layer: int, at: int
) -> None:
    last = len(IDS) - 1

    def logits(v: Tensor) -> Tensor:
        there = torch.arange(len(IDS)) == at
        return tiny.run(tiny64.hf, IDS, source=layer, vector=v, at=there)[0][last]

    zero = torch.zeros(32, dtype=torch.float64)
    jacobian = torch.autograd.functional.jacobian(logits, zero)
    p = logits(zero).softmax(0)
    fisher = jacobian.T @ (p.diag() - torch.outer(p, p)) @ jacobian
    g = gradients_of(tiny64, drawn(tiny64, torch.arange(262), [last]), [last], layer)[:, at]
    torch.testing.assert_close(g.T @ (p[:, None] * g), fisher)
    torch.testing.assert_close(p @ g, zero)  # so independent draws do not mix in the mean


def test_the_gradient_of_several_draws_is_the_sum_of_theirs(tiny64: LanguageModel) -> None:
    tokens = torch.tensor([65, 200])
    both, first, second = (
        gradients_of(tiny64, drawn(tiny64, tokens, at), at, 1) for at in ([1, 3], [1], [3])
    )
    torch.testing.assert_close(both, first + second)
    assert float(second.abs().max()) > 0
    assert not first[:, 2:].any()  # what comes later changes nothing before


def test_tokens_are_drawn_as_often_as_they_are_likely() -> None:
    p = torch.tensor([0.5, 0.0, 0.3, 0.2])
    found = sampled(p.expand(20_000, 4), torch.Generator().manual_seed(0)).bincount(minlength=4)
    spread = (20_000 * p * (1 - p)).sqrt()
    assert ((found - 20_000 * p).abs() <= 5 * spread).all()


@pytest.mark.parametrize("massive", [1000.0, 12.0])
def test_a_sweep_counts_the_tokens_that_natural_activations_count(
    tiny_lm: LanguageModel, monkeypatch: pytest.MonkeyPatch, massive: float
) -> None:
    monkeypatch.setattr(reading, "MASSIVE", massive)
    layers, seed = [1, 2], int(massive)  # what is kept of one is not taken for the other
    found = sweep(tiny_lm, corpus.documents(), layers, limit=9000, seed=seed)
    pieces = list(reading.pieces(tiny_lm, corpus.documents(), limit=9000))
    every = sum(len(p.ids) - p.skip for p in pieces if not natural.is_held(p.document))
    known = natural.gathered(tiny_lm, pieces, [Place(layer) for layer in layers]).natural
    for layer in layers:
        here, there = found.layers[layer].activations, known[Place(layer)].moments
        assert here.count == there.count == found.tokens
        assert (here.count == every) == (massive == 1000)  # else some tokens are left out
        torch.testing.assert_close(here.mean, there.mean, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(here.covariance, there.covariance, rtol=1e-3, atol=1e-3)
        used = found.layers[layer].gradients
        torch.testing.assert_close(
            found.layers[layer].importance,
            used.covariance + torch.outer(used.mean, used.mean),
        )


# -- what is both present and used -----------------------------------------------------------------


def matrices(width: int = 7) -> tuple[Tensor, Tensor]:
    some = normal(50, width) @ normal(width, width, seed=1)
    return some.T @ some / 50, (lambda w: w @ w.T)(normal(width, 4, seed=2))


def loss(kept: Components, covariance: Tensor, importance: Tensor) -> float:
    """Return the mean harm of leaving out what is not kept."""
    rest = torch.eye(len(covariance), dtype=torch.float64) - kept.read.T @ kept.write
    return float((rest @ importance @ rest.T * covariance).sum())


def test_values_are_eigenvalues_of_the_product_and_components_are_biorthogonal() -> None:
    covariance, importance = matrices()
    found = balanced(normal(7, seed=3), covariance, importance)
    product = np.linalg.eigvals((covariance @ importance).numpy())
    np.testing.assert_allclose(found.value, np.sort(product.real)[::-1], atol=1e-9)
    torch.testing.assert_close(found.read @ found.write.T, torch.eye(7, dtype=torch.float64))
    coefficients = found.read @ covariance @ found.read.T
    torch.testing.assert_close(coefficients, torch.eye(7, dtype=torch.float64))


def test_no_other_projection_loses_less() -> None:
    covariance, importance = matrices()
    mean = torch.zeros(7, dtype=torch.float64)
    found = balanced(mean, covariance, importance)
    for k in (1, 2, 3):
        best = loss(found.top(k), covariance, importance)
        assert best == pytest.approx(float(found.value[k:].sum()), rel=1e-9)
        others = [orthogonal(mean, square).top(k) for square in (covariance, importance)]
        for seed in range(20):
            read, write = normal(k, 7, seed=seed), normal(k, 7, seed=100 + seed)
            read = torch.linalg.inv(read @ write.T) @ read
            others.append(Components(mean, read, write, mean[:k], mean == 0))
        assert all(loss(other, covariance, importance) > best for other in others)


def test_all_components_are_everything_and_massive_coordinates_stay() -> None:
    covariance, importance = matrices()
    covariance[:, 0] = covariance[0] = 0  # nothing varies along the first
    h, mean = normal(5, 7, seed=4), normal(7, seed=3)
    whole = balanced(mean, covariance, importance, massive=[6])
    torch.testing.assert_close(whole.only(h), h)
    some = whole.top(2)
    torch.testing.assert_close(some.only(h)[:, 6], h[:, 6])
    torch.testing.assert_close(some.without(h)[:, 6], h[:, 6])
    torch.testing.assert_close(some.only(mean[None]), mean[None])
    free = slice(0, 6)
    torch.testing.assert_close((some.only(h) + some.without(h))[:, free], (h + mean)[:, free])


def test_a_search_in_the_balanced_subspace_is_in_what_components_write() -> None:
    covariance, importance = matrices()
    found = balanced(normal(7, seed=3), covariance, importance)
    made = subspace(found, 3)
    inside_it = found.write[:3] @ made.basis.T @ made.basis
    torch.testing.assert_close(inside_it, found.write[:3])
    along = (made.basis @ covariance * made.basis).sum(1)
    torch.testing.assert_close(made.variance, along)
    assert made.total == pytest.approx(float(covariance.trace()))
    with pytest.raises(MethodError, match="1 to 7"):
        subspace(found, 8)


def test_within_balanced_is_of_the_layer_that_is_searched(tiny_lm: LanguageModel) -> None:
    found = inside.described(tiny_lm, tiny_lm.encode(["Hello there."]), 1, "balanced:5")
    known = sweep(tiny_lm, corpus.documents(), [1]).layers[1]
    value, vectors = np.linalg.eig((known.activations.covariance @ known.importance).numpy())
    top = torch.as_tensor(vectors[:, np.argsort(-value.real)[:5]].real.copy())
    torch.testing.assert_close(found.basis.T @ found.basis @ top, top)
