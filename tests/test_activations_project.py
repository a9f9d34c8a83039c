"""Taking directions away: closed forms, an independent library, and logits by brute force."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

import tiny
from educe.activations.distance import Geometry
from educe.activations.project import (
    ablating,
    ablating_weights,
    equal_variance,
    injection,
    oblique,
    plain,
)
from educe.activations.subspace import Moments
from educe.errors import MethodError, ModelError
from educe.model.language import LanguageModel
from educe.perturbation import positions as where
from toy_slice import normal

#: Architectures in which a norm stands between a matrix and the stream, or experts write to it.
NO_MATRIX = {"gemma2", "gemma3", "olmo2", "mixtral", "gpt_oss", "qwen3_next"}


def rows(n: int = 400, width: int = 6) -> Tensor:
    """Return activations with a mean and a covariance that is not round."""
    return normal(n, width) @ normal(width, width, seed=1) + 3 * normal(width, seed=2)


# -- projections -----------------------------------------------------------------------------------


def test_plain_projection_takes_away_the_coordinate_and_nothing_else() -> None:
    h, u = rows(), normal(2, 6, seed=3)
    found = plain(u)(h)
    assert float((found @ u.T).abs().max()) < 1e-10
    projector = torch.linalg.pinv(u) @ u
    torch.testing.assert_close(found, h - h @ projector)
    about = plain(u, h.mean(0))(h)
    torch.testing.assert_close(about.mean(0), h.mean(0))
    torch.testing.assert_close(about @ u.T, (h.mean(0) @ u.T).expand(len(h), 2))


@pytest.mark.parametrize("k", [1, 3])
def test_oblique_projection_is_its_closed_form(k: int) -> None:
    h, u = rows(), normal(k, 6, seed=3)
    sigma, mean = torch.tensor(np.cov(h.numpy().T, bias=True)), h.mean(0)
    found = oblique(u, Moments.of(h))(h)
    by_hand = torch.stack(
        [x - sigma @ u.T @ torch.linalg.inv(u @ sigma @ u.T) @ u @ (x - mean) for x in h]
    )
    torch.testing.assert_close(found, by_hand)
    apart = found - found.mean(0)
    # Nothing that is left correlates with what was taken away.
    assert float((apart.T @ (h - mean) @ u.T).abs().max()) < 1e-8 * float(h.square().sum())


def test_oblique_projection_is_that_of_concept_erasure() -> None:
    """Erasing the concept ``uᵀh`` with LEACE (Belrose et al. 2023) is the same map."""
    leace = pytest.importorskip("concept_erasure")
    h, u = rows(), normal(2, 6, seed=3)
    exact = {"shrinkage": False, "constrain_cov_trace": False, "svd_tol": 1e-9}
    eraser = leace.LeaceEraser.fit(h, h @ u.T, **exact)
    torch.testing.assert_close(oblique(u, Moments.of(h))(h), eraser(h), rtol=1e-6, atol=1e-6)


def test_oblique_projection_is_least_squares_on_what_is_left() -> None:
    """Without that library: what is left is the residual of a regression on ``uᵀ(h - μ)``."""
    h, u = rows(), normal(2, 6, seed=3)
    apart = (h - h.mean(0)).numpy()
    known = apart @ u.numpy().T
    residual = apart - known @ np.linalg.lstsq(known, apart, rcond=None)[0]
    np.testing.assert_allclose(
        oblique(u, Moments.of(h))(h), residual + h.mean(0).numpy(), atol=1e-9
    )


@pytest.mark.parametrize("form", ["plain", "mean", "oblique"])
def test_taking_away_twice_changes_nothing(form: str) -> None:
    h, u = rows(), normal(2, 6, seed=3)
    known = Moments.of(h)
    make = {"plain": plain(u), "mean": plain(u, known.mean), "oblique": oblique(u, known)}
    once = make[form](h)
    torch.testing.assert_close(make[form](once), once)


def test_directions_that_depend_on_each_other_are_refused() -> None:
    with pytest.raises(MethodError, match="depend on each other"):
        plain(torch.ones(2, 4))


def counterexample(n: int = 500) -> tuple[Tensor, Tensor]:
    """Return ``a = x b + y c`` with orthonormal ``b``, ``c``, ``d``, and those three."""
    b, c, d = torch.linalg.qr(normal(8, 3, seed=7)).Q.T
    x, y = 10 * normal(n, 1, seed=8), 3 * normal(n, 1, seed=9)
    x, y = x - x.mean(), y - y.mean()
    y = y - x * (x * y).sum() / x.square().sum()  # uncorrelated, as the example has them
    return x * b + y * c, torch.stack([b, c, d])


def test_plain_projection_injects_an_unused_direction_and_the_oblique_one_does_not() -> None:
    """The counterexample of the discussion of MELBO: projecting away ``(b - d)/√2``."""
    a, (b, _, d) = counterexample()
    assert float((a @ d).abs().max()) < 1e-12
    u, known = (b - d)[None] / 2**0.5, Moments.of(a)
    bent, clean = plain(u)(a), oblique(u, known)(a)
    torch.testing.assert_close(bent @ d, a @ b / 2)  # half of x is in d now
    torch.testing.assert_close(clean @ d, torch.zeros(len(a), dtype=a.dtype))
    torch.testing.assert_close(clean, a - (a @ b)[:, None] * b)  # x b is gone, y c is whole
    there = Geometry.of(known)
    told = {"plain": injection(plain(u), there), "oblique": injection(oblique(u, known), there)}
    assert told["plain"].outside == pytest.approx(0.5)
    assert told["plain"].natural < 1e-10
    share = float((a @ b).square().sum() / a.square().sum())
    assert told["plain"].after == pytest.approx(share / 4)  # half of b's deviation is in d now
    assert told["oblique"].outside < 1e-10
    assert told["oblique"].after < 1e-10


def test_injection_is_that_of_the_activations_themselves() -> None:
    h, u = (
        normal(300, 12) @ torch.diag(2.0 ** -torch.arange(12, dtype=torch.float64)),
        normal(1, 12),
    )
    known = Moments.of(h)
    told = injection(plain(u), Geometry.of(known))
    size, turn = torch.linalg.eigh(torch.tensor(np.cov(h.numpy().T, bias=True)))
    held = size.flip(0).cumsum(0) / size.sum()
    unused = turn.flip(1)[:, int((held < 0.99).sum()) + 1 :]
    change = h - plain(u)(h)
    assert told.unused == unused.shape[1]
    assert told.outside == pytest.approx(
        float((change @ unused).square().sum() / change.square().sum())
    )
    after, before = (x - x.mean(0) for x in (plain(u)(h), h))
    assert told.after == pytest.approx(
        float((after @ unused).square().sum() / before.square().sum())
    )
    assert told.natural == pytest.approx(
        float((before @ unused).square().sum() / before.square().sum())
    )
    assert told.chance == pytest.approx(unused.shape[1] / 12)


def test_random_directions_of_equal_variance_have_it_and_differ() -> None:
    known = Moments.of(rows())
    draw = torch.Generator().manual_seed(0)
    for u in (normal(6, seed=5), torch.linalg.eigh(known.covariance).eigenvectors[:, -2]):
        unit = torch.nn.functional.normalize(u, dim=0)
        wanted = float(unit @ known.covariance @ unit)
        found = equal_variance(wanted, known, 5, draw)
        torch.testing.assert_close(
            (found @ known.covariance * found).sum(1), torch.full((5,), wanted, dtype=torch.float64)
        )
        torch.testing.assert_close(found.norm(dim=1), torch.ones(5, dtype=torch.float64))
        assert float((found @ found.T).abs().triu(1).max()) < 0.9999


# -- in a model ------------------------------------------------------------------------------------


def by_hand(lm: LanguageModel, ids: Tensor, u: Tensor, layer: int, at: Tensor) -> Tensor:
    """Return the logits when ``u`` is taken from the stream after a block, at some tokens."""
    block = lm.hf.get_submodule(tiny.path(lm.hf))[layer]

    def hook(module: object, args: object, output: Tensor) -> Tensor:
        stream = output[0] if isinstance(output, tuple) else output
        less = at[:, None] * ((stream @ u)[..., None] * u)
        return (stream - less, *output[1:]) if isinstance(output, tuple) else stream - less

    handle = block.register_forward_hook(hook)
    try:
        return lm.hf(input_ids=ids, use_cache=False).logits
    finally:
        handle.remove()


@pytest.mark.parametrize("positions", ["all", "prompt", "last:2", "generated"])
def test_a_direction_is_taken_away_after_a_layer_at_the_positions(
    tiny64: LanguageModel, positions: str
) -> None:
    ids = torch.tensor(tiny.ragged([7]))
    u = torch.nn.functional.normalize(normal(32), dim=0)
    at = tiny.chosen(positions, 7).double()
    with ablating(tiny64, plain(u[None]), [1], positions=positions), torch.no_grad():
        found = tiny64.hf(input_ids=ids, use_cache=False).logits
    torch.testing.assert_close(found, by_hand(tiny64, ids, u, 1, at))
    plainly = tiny64.hf(input_ids=ids, use_cache=False).logits
    assert torch.equal(found, plainly) == (not at.any())
    assert torch.equal(plainly, tiny64.hf(input_ids=ids, use_cache=False).logits)


def test_a_generated_token_is_one_that_runs_alone(tiny64: LanguageModel) -> None:
    u = normal(1, 32)
    stream = normal(2, 1, 32)
    for positions in where.NAMES:
        with ablating(tiny64, plain(u), [1], positions=positions):
            hooks = list(tiny64.blocks[1]._forward_hooks.values())
            found = hooks[-1](tiny64.blocks[1], (), stream)
        assert torch.equal(found, stream) == (positions in ("prompt", "asked"))


@pytest.mark.parametrize("form", ["origin", "mean", "oblique"])
def test_taken_from_weights_is_taken_from_activations(
    lm_of: Callable[..., LanguageModel], any_lm: LanguageModel, form: str
) -> None:
    name = any_lm.name
    if name in NO_MATRIX:
        pytest.skip("other tests have it")
    if name == "bloom":
        pytest.skip("in float64 it gives NaN where a prompt is padded, and is refused")
    lm = lm_of(name, torch.float64)
    known = Moments.of(rows(200, 32))
    u = normal(2, 32, seed=4)
    ablation = {"origin": plain(u), "mean": plain(u, known.mean), "oblique": oblique(u, known)}[
        form
    ]
    ids = torch.tensor(tiny.ragged([9, 9]))
    mask = torch.ones_like(ids)
    untouched = lm.forward(ids, mask, last=0)
    try:
        with ablating(lm, ablation):
            by_activations = lm.forward(ids, mask, last=0)
        with ablating_weights(lm, ablation):
            by_weights = lm.forward(ids, mask, last=0)
    except ModelError as error:
        assert name in ("bloom", "granitemoehybrid")
        pytest.skip(str(error))
    torch.testing.assert_close(by_weights, by_activations, rtol=1e-6, atol=1e-6)
    assert float((by_weights - untouched).abs().max()) > 1e-3
    assert torch.equal(lm.forward(ids, mask, last=0), untouched)


@pytest.mark.parametrize("name", ["llama", "gemma2", "mixtral", "falcon"])
def test_taken_from_all_of_the_stream_nothing_is_left_within_a_block_either(
    lm_of: Callable[..., LanguageModel], name: str
) -> None:
    lm = lm_of(name)
    u = torch.nn.functional.normalize(normal(1, 32).float(), dim=1)
    ids = torch.tensor(tiny.ragged([6]))
    seen: list[Tensor] = []
    members = [
        m for block in lm.blocks for m in block.modules() if "norm" in type(m).__name__.lower()
    ]
    first = {id(block): next(iter(block.children())) for block in lm.blocks}
    assert first
    handles = [m.register_forward_pre_hook(lambda m, a: seen.append(a[0])) for m in members]
    try:
        with ablating(lm, plain(u)), lm.watching(range(lm.depth)) as streams:
            lm.forward(ids, torch.ones_like(ids))
    finally:
        for handle in handles:
            handle.remove()
    for stream in streams.values():
        assert float((stream @ u.T).abs().max()) < 1e-4 * float(stream.norm())
    # What norms before attention and before the feed-forward part read; those after do not count.
    left = [float((x @ u.T).abs().max() / x.norm()) for x in seen]
    assert sum(share < 1e-4 for share in left) >= lm.depth


@pytest.mark.parametrize("name", sorted(NO_MATRIX))
def test_weights_are_left_alone_where_no_matrix_writes_to_the_stream(
    lm_of: Callable[..., LanguageModel], name: str
) -> None:
    lm = lm_of(name)
    ids = torch.tensor(tiny.ragged([6]))
    before = lm.forward(ids, torch.ones_like(ids))
    with (
        pytest.raises(ModelError, match="from activations instead"),
        ablating_weights(lm, plain(normal(1, 32))),
    ):
        pass
    assert torch.equal(lm.forward(ids, torch.ones_like(ids)), before)
