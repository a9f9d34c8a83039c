"""Power, against dense singular value decompositions and a search of whole bands."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import tiny
from educe.errors import MethodError, RadiusError
from educe.forward.slice import Slice
from educe.methods import power
from educe.methods.power import PowerConfig
from educe.methods.state import State
from educe.model.language import LanguageModel
from toy_slice import ToySlice, cosines, curved, linear, normal, through, with_singular_values

WIDTH, RADIUS = 12, 0.7
EXACT = PowerConfig(iterations=30, tolerance=1e-12)


def toy(**options: Any) -> Any:
    return curved(WIDTH, read=[[0, 1], [1, 1], [1, 1]], **options)


def stacked(part: Any) -> Tensor:
    """Return the dense Jacobian at zero of all read-out positions, one under the other."""
    at = torch.zeros(WIDTH, dtype=torch.float64)
    jacobian = torch.autograd.functional.jacobian(lambda theta: part.values(theta[None])[0], at)
    return jacobian[part.read.bool()].flatten(0, 1)


def run(part: Any, n: int, config: PowerConfig = EXACT, **how: Any) -> tuple[State, list[State]]:
    """Return what is found, and the state at the start and after each step."""
    return through(power, part, n, config, **{"radius": RADIUS} | how)


def assert_singular(found: State, jacobian: Tensor, n: int, tolerance: float = 1e-8) -> None:
    """Compare with a dense SVD: values, vectors, gaps; each vector once as it is, once mirrored."""
    _, sizes, right = np.linalg.svd(jacobian.numpy())
    pairs = [i // 2 for i in range(n)]
    came = found["score.singular_value"].numpy()
    np.testing.assert_allclose(came, sizes[pairs], rtol=tolerance)
    sizes = np.append(sizes, 0.0)
    gaps = [1 - sizes[i + 1] / sizes[i] for i in pairs]
    np.testing.assert_allclose(found["score.gap"].numpy(), gaps, atol=tolerance)
    alike = (found["directions"].numpy() * right[pairs]).sum(1)
    np.testing.assert_allclose(np.abs(alike), np.ones(n), atol=tolerance)
    np.testing.assert_allclose(alike[1::2], -alike[: n - 1 : 2])


# -- singular vectors ------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [1, 2, 5, 8, 23, 24])
@pytest.mark.parametrize("prompts_at_once", [1, 3])
def test_singular_vectors_are_those_of_all_read_out_positions(n: int, prompts_at_once: int) -> None:
    part = toy(prompts_at_once=prompts_at_once)
    found, _ = run(part, n)
    assert found["directions"].shape == (n, WIDTH)
    assert_singular(found, stacked(part), n)


def test_where_nothing_arrives_every_number_is_a_number() -> None:
    """Of a map of rank one, the second singular value is zero, and exactly so."""
    flat = torch.zeros(WIDTH, WIDTH, dtype=torch.float64)
    flat[0, 0] = 2.0
    found, _ = run(linear(flat), 4)
    assert found["score.effect"][2:].tolist() == pytest.approx([0, 0], abs=1e-12)
    assert not any(values.isnan().any() for values in found.values())
    assert found["directions"].norm(dim=1).tolist() == pytest.approx([1] * 4)
    with pytest.raises(RadiusError, match="changes anything"):
        run(linear(torch.zeros_like(flat)), 4)


def test_a_share_of_nothing() -> None:
    part, whole = torch.tensor([0.0, 2.0, 3.0, 0.0]), torch.tensor([0.0, 0.0, 4.0, 5.0])
    assert power.shares(part, whole).tolist() == [0.0, math.inf, 0.75, 0.0]


@pytest.mark.parametrize("architecture", ["gpt2", "opt"])
def test_singular_vectors_of_a_model_are_those_of_its_dense_jacobian(
    lm_of: Callable[..., LanguageModel], architecture: str
) -> None:
    lm = lm_of(architecture, torch.float64)
    rows = tiny.ragged([6, 11, 2])

    def read(theta: Tensor) -> Tensor:
        streams = [
            tiny.run(lm.hf, ids, source=1, vector=theta, at=tiny.chosen("last:4", len(ids)))[1][3]
            for ids in rows
        ]
        return torch.cat([stream[-3:].flatten() for stream in streams])

    jacobian = torch.autograd.functional.jacobian(read, torch.zeros(32, dtype=torch.float64))
    part = Slice(lm, lm.pad(rows), source=1, target=3, positions="last:4", tokens_per_chunk=4 * 11)
    found, states = run(part, 6, radius=0.1 * part.median_norm)
    assert states[0]["basis"].shape == (3 + 4, 32)
    assert_singular(found, jacobian, 6)


def test_default_settings_find_what_the_dense_decomposition_has() -> None:
    # A spectrum as slow as that of a language model: the last of 16 is 4% above the next.
    sizes = [15 / (1 + i) ** 0.5 for i in range(150)]
    matrix = with_singular_values(sizes)
    found, states = run(linear(matrix), 32, PowerConfig())
    assert len(states[-1]["curve"]) < PowerConfig().iterations
    assert float(found["score.residual"].max()) <= PowerConfig().tolerance
    assert_singular(found, matrix, 32, tolerance=1e-3)


def test_what_every_block_showed_is_kept() -> None:
    matrix = with_singular_values([1 + 0.95**i for i in range(40)])
    found, states = run(linear(matrix), 4, PowerConfig(iterations=4, padding=2, tolerance=0))
    first = states[0]["basis"]
    assert first.shape == (4, 40)
    gram = matrix.T @ matrix
    krylov = torch.cat([first @ torch.linalg.matrix_power(gram, i) for i in range(4)])
    q = torch.linalg.qr(krylov.T).Q
    values, turn = torch.linalg.eigh(q.T @ gram @ q)
    sizes, vectors = values.flip(0)[:2].sqrt(), (q @ turn).T.flip(0)[:2]
    torch.testing.assert_close(found["score.singular_value"][::2], sizes)
    alike = (found["directions"][::2] * vectors).sum(1).abs()
    torch.testing.assert_close(alike, torch.ones_like(alike))
    # It is not there yet, and says so.
    off = vectors @ gram - values.flip(0)[:2, None] * vectors
    residual = off.norm(dim=1) / values.flip(0)[:2]
    torch.testing.assert_close(found["score.residual"][::2], residual)
    assert float(residual.min()) > 1e-3


@pytest.mark.parametrize(("tolerance", "iterations"), [(0.3, 50), (1e-6, 50), (0, 5), (0, 1)])
def test_it_ends_when_every_residual_is_below_the_tolerance(
    tolerance: float, iterations: int
) -> None:
    matrix = with_singular_values([1 + 0.98**i for i in range(120)])
    config = PowerConfig(iterations=iterations, tolerance=tolerance, padding=1)
    found, states = run(linear(matrix), 2, config)
    before = power.spectrum(states[-2], config) if len(states) > 2 else None
    assert before is None or float(before.residual.max()) > tolerance
    ended = float(found["score.residual"].max()) <= tolerance
    assert ended != (len(states[-1]["curve"]) == iterations)


def test_it_ends_when_the_width_is_exhausted() -> None:
    _, states = run(toy(), 9, PowerConfig(iterations=30, tolerance=0))
    assert [len(state["basis"]) for state in states] == [9, 12, 12]


def test_a_subspace_that_the_jacobian_keeps_to_itself_ends_it() -> None:
    matrix = torch.eye(40, dtype=torch.float64)
    matrix[0, 0] = 3
    found, states = run(linear(matrix), 2, PowerConfig(iterations=30, tolerance=0))
    assert len(states[-1]["basis"]) == 6  # the first block and the one direction it had not held
    assert float(found["directions"][0, 0].abs()) == pytest.approx(1)


# -- both signs ------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [6, 7])
def test_signs_are_items_of_their_own_and_the_stronger_is_first(n: int) -> None:
    part = toy()
    found, _ = run(part, n)
    for i, v in enumerate(found["directions"]):
        effect = part.delta(RADIUS * v)
        assert float(found["score.effect"][i]) == pytest.approx(float(effect.norm()))
        torch.testing.assert_close(found["outputs"][i], effect / effect.norm())
    for i in range(0, n - 1, 2):
        assert torch.equal(found["directions"][i], -found["directions"][i + 1])
        assert float(found["score.effect"][i]) > float(found["score.effect"][i + 1])


def test_singular_vectors_do_not_depend_on_the_radius_but_effects_do() -> None:
    small, large = (run(toy(), 6, radius=radius)[0] for radius in (0.1, 1.0))
    assert float(cosines(small["directions"], large["directions"]).diagonal().min()) > 1 - 1e-9
    torch.testing.assert_close(small["score.singular_value"], large["score.singular_value"])
    assert bool((small["score.effect"] < large["score.effect"]).all())


# -- bands -----------------------------------------------------------------------------------------


def test_neighbours_of_nearly_equal_singular_value_are_one_band() -> None:
    sizes = [9, 8.9, 8.7, 5, 4, 3.9, 3.0, 2.0, 1, 1, 1, 1]
    matrix = with_singular_values(sizes)
    found, _ = run(linear(matrix), 18)
    bands = [0, 0, 0, 1, 2, 2, 3, 4, 5]
    assert found["score.band"].tolist() == [band for band in bands for _ in range(2)]
    found, _ = run(linear(matrix), 18, PowerConfig(iterations=30, tolerance=1e-12, band=0.02))
    bands = [0, 0, 1, 2, 3, 4, 5, 6, 7]
    assert found["score.band"].tolist() == [band for band in bands for _ in range(2)]


def bent(bends: dict[int, float], sizes: list[float]) -> tuple[Any, Tensor]:
    """Return a slice that is linear, but for some right vectors in which it bends upward.

    The right vectors of an eigenspace are one choice of many, so a decomposition hides them.
    """
    u, v = (torch.linalg.qr(normal(len(sizes), len(sizes), seed=seed)).Q for seed in (3, 4))
    size = torch.tensor(sizes, dtype=torch.float64)
    bend = torch.zeros_like(size)
    for line, how in bends.items():
        bend[line] = how

    def move(theta: Tensor) -> Tensor:
        along = theta @ v.T
        return (along * size + bend * along.square()) @ u

    return ToySlice(move, len(sizes)), v


BANDS = [3.0, 2, 2, 2, 2, 1, 1, 1, 0.5, 0.4]
CURVED = {2: 0.8, 4: -0.4, 6: 0.6}


def test_search_inside_a_band_finds_the_directions_of_largest_effect() -> None:
    part, v = bent(CURVED, BANDS)
    config = PowerConfig(iterations=30, tolerance=1e-12, search=40)
    found, _ = run(part, 16, config, radius=1.0)
    best = found["directions"][::2]
    torch.testing.assert_close(best[1] @ v[2], torch.tensor(1.0).double(), rtol=0, atol=1e-6)
    torch.testing.assert_close(best[2] @ v[4], torch.tensor(-1.0).double(), rtol=0, atol=1e-6)
    torch.testing.assert_close(best[5] @ v[6], torch.tensor(1.0).double(), rtol=0, atol=1e-6)
    expected = [3, 2.8, 2.4, 2, 2, 1.6, 1, 1]
    assert found["score.effect"][::2].tolist() == pytest.approx(expected)
    # They are turned within their band: nothing else is lost or mixed in.
    torch.testing.assert_close(best @ best.T, torch.eye(8, dtype=torch.float64))
    assert found["score.band"][::2].tolist() == [0, 1, 1, 1, 1, 2, 2, 2]
    assert found["score.singular_value"][::2].tolist() == pytest.approx(BANDS[:8])
    gaps = [1 / 3, *[0.5] * 7]
    assert found["score.gap"][::2].tolist() == pytest.approx(gaps)


def circle(seed: int) -> tuple[Any, Tensor, Tensor]:
    """Return a curved slice with a band of two; unit vectors all round it, and their effects."""
    u, right = (torch.linalg.qr(normal(6, 6, seed=10 + seed + s)).Q for s in (0, 5))
    matrix = u @ torch.diag(torch.tensor([2, 2, 1, 0.9, 0.8, 0.5], dtype=torch.float64)) @ right
    second = normal(6, 6, 6, seed=20 + seed)
    part = ToySlice(
        lambda theta: theta @ matrix.T + 0.2 * torch.einsum("dij,ni,nj->nd", second, theta, theta),
        6,
    )
    angle = torch.linspace(0, 2 * math.pi, 20001, dtype=torch.float64)[:-1, None]
    around = angle.cos() * right[0] + angle.sin() * right[1]
    return part, around, part.delta(0.5 * around).norm(dim=1)


@pytest.mark.parametrize("seed", [0, 1, 2, 6])
def test_search_inside_a_band_reaches_the_best_of_the_whole_circle(seed: int) -> None:
    part, around, sizes = circle(seed)
    config = PowerConfig(iterations=30, tolerance=1e-12, search=60)
    found, _ = run(part, 4, config, radius=0.5, seed=seed)
    assert float(found["score.effect"][0]) == pytest.approx(float(sizes.max()), rel=1e-6)
    best = around[sizes.argmax()]
    torch.testing.assert_close(found["directions"][0], best, rtol=0, atol=1e-2)


def test_from_a_single_start_the_search_can_end_in_another_maximum() -> None:
    part, _, sizes = circle(6)
    config = PowerConfig(iterations=30, tolerance=1e-12, search=60, starts=1)
    found, _ = run(part, 4, config, radius=0.5, seed=6)
    maxima = sizes[(sizes > sizes.roll(1)) & (sizes > sizes.roll(-1))].sort().values
    assert len(maxima) == 3
    assert float(found["score.effect"][0]) == pytest.approx(float(maxima[1]), rel=1e-6)


def test_of_several_starts_each_band_keeps_its_own_best() -> None:
    part, config = bent(CURVED, BANDS)[0], PowerConfig(iterations=30, tolerance=1e-12, search=1)
    found, states = run(part, 16, config, radius=1.0)
    climbers = states[-1]["climbers"]
    sizes = torch.stack([part.delta(some).norm(dim=1) for some in climbers])  # [starts, 7]
    kept = [int(sizes[:, band].max(1).values.argmax()) for band in (slice(0, 4), slice(4, 7))]
    assert len(set(kept)) == 2  # else one start for all bands would do
    torch.testing.assert_close(states[-1]["turned"][1:5], climbers[kept[0], :4])
    torch.testing.assert_close(states[-1]["turned"][5:], climbers[kept[1], 4:])
    assert float(found["score.effect"][2]) == pytest.approx(float(sizes[:, :4].max()))


@pytest.mark.parametrize(
    ("sizes", "start"),
    [
        ([[1, 3], [4, 2], [5, 1]], 2),  # largest first
        ([[1, 5], [5, 2], [3, 5]], 2),  # of equal ones, by the next, in whatever order they are
        ([[5, 2], [2, 5], [5 * (1 + 1e-9), 2]], 0),  # what differs by rounding is equal
    ],
)
def test_the_strongest_start_is_no_matter_of_rounding(sizes: list[list[float]], start: int) -> None:
    assert power.strongest(torch.tensor(sizes, dtype=torch.float64)) == start


def test_singular_value_of_a_turned_vector_is_how_far_the_jacobian_stretches_it() -> None:
    part = toy()
    jacobian = stacked(part)
    config = PowerConfig(iterations=30, tolerance=1e-12, search=5, band=0.3)
    found, _ = run(part, 10, config)
    stretched = (found["directions"] @ jacobian.T).norm(dim=1)
    torch.testing.assert_close(found["score.singular_value"], stretched)
    assert len(found["score.band"].unique()) < 5
    plain, _ = run(part, 10, PowerConfig(iterations=30, tolerance=1e-12, band=0.3))
    for band in found["score.band"].unique():
        own = found["score.band"] == band
        gap = plain["score.gap"][own][-1]
        assert bool((found["score.gap"][own] == gap).all())


# -- the rest --------------------------------------------------------------------------------------


@pytest.mark.parametrize("at", range(7))
def test_resumed_is_uninterrupted_bit_for_bit(tmp_path: Path, at: int) -> None:
    part, config = toy(), PowerConfig(iterations=3, padding=1, band=0.3, search=3, tolerance=0)
    whole, states = run(part, 4, config)
    assert len(states) == 7
    assert "climbers" in states[-1]
    save_file(states[at], tmp_path / "state")
    resumed, _ = run(part, 4, config, state=State(load_file(tmp_path / "state")))
    assert whole.keys() == resumed.keys()
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


@pytest.mark.parametrize("n", [6, 24])
@pytest.mark.parametrize("seed", [1, 2])
def test_the_seed_decides_the_rotation_of_an_exactly_degenerate_band(n: int, seed: int) -> None:
    # Wider than the blocks ever span: whatever they contain of a band is not known before.
    values = torch.tensor([2.0, 2, 2, *(0.1 * 0.9**i for i in range(37))], dtype=torch.float64)
    u, right = (torch.linalg.qr(normal(40, 40, seed=s)).Q for s in (3, 4))
    found, states = run(linear(u @ torch.diag(values) @ right), n, seed=seed)
    first = states[0]["basis"].numpy()
    expected: list[np.ndarray] = []
    for band in (right[:3], *right[3:].split(1)):
        # What was drawn first, seen in the band, by Gram and Schmidt.
        seen: list[np.ndarray] = []
        for row in first[: len(band)] @ band.T.numpy() @ band.numpy():
            rest = row - sum((row @ other * other for other in seen), np.zeros(40))
            seen.append(rest / np.linalg.norm(rest))
        expected += seen
    np.testing.assert_allclose(found["directions"][::2], expected[: n // 2], atol=1e-6)


def test_an_eigenvalue_that_differs_by_more_than_rounding_has_vectors_of_its_own() -> None:
    matrix = torch.diag(torch.tensor([2 * (1 + 1e-9), 2, 1, 0.5], dtype=torch.float64))
    found, _ = run(linear(matrix), 8)
    torch.testing.assert_close(
        found["directions"][::2].abs(), torch.eye(4).double(), rtol=0, atol=1e-5
    )


def test_a_search_of_a_linear_band_is_decided_by_the_seed() -> None:
    # All starts are as good as each other: it is not rounding that chooses among them.
    part, config = bent({}, BANDS)[0], PowerConfig(iterations=30, tolerance=1e-12, search=3)
    found, states = run(part, 16, config)
    torch.testing.assert_close(found["directions"][::2], power.spectrum(states[-1], config).v)


def test_more_items_than_both_signs_of_the_width_are_an_error() -> None:
    with pytest.raises(MethodError, match="at most 24 perturbations"):
        run(toy(), 25)
