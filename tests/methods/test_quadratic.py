"""Quadratic DCT, against dense second derivatives and planted quadratic factors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn.functional import normalize

from educe.errors import MethodError
from educe.methods import quadratic
from educe.methods.quadratic import QuadraticDctConfig
from educe.methods.state import State
from toy_slice import ToySlice, cosines, curved, linear, normal, through

WIDTH, RADIUS = 7, 1.3


def toy() -> Any:
    return curved(WIDTH)


def planted(m: int, d: int, *, seed: int = 0) -> tuple[Any, Tensor, Tensor, Tensor]:
    """Return ``J θ + ½ Σ_l a_l ⟨v_l, θ⟩² u_l``, its linear part larger, and ``a``, ``u``, ``v``."""
    u, v = (normalize(normal(m, d, seed=seed + k), dim=1) for k in (1, 0))
    a = torch.linspace(2, 1, m, dtype=torch.float64)
    slope = 3 * normal(d, d, seed=seed + 2) / d**0.5
    part = ToySlice(lambda theta: theta @ slope.T + (theta @ v.T).square() * a / 2 @ u, d)
    return part, a, u, v


def start(part: Any, n: int, config: QuadraticDctConfig, *, seed: int = 0) -> State:
    return quadratic.start(part, n, RADIUS, config, torch.Generator().manual_seed(seed))


def run(part: Any, n: int, config: QuadraticDctConfig, **how: Any) -> tuple[State, list[State]]:
    """Return what is found, and the state at the start and after each step."""
    return through(quadratic, part, n, config, **{"radius": RADIUS} | how)


# -- the iteration -------------------------------------------------------------------------------


def test_an_iteration_is_the_written_update_with_the_dense_second_derivative() -> None:
    part, config = toy(), QuadraticDctConfig(iterations=4)
    dense = part.curvature()
    before = start(part, 6, config)
    for _ in range(4):
        after, progress = quadratic.step(part, RADIUS, config, before)
        # Gram and Schmidt by Cholesky: the rows of L⁻¹ V, with V Vᵀ = L Lᵀ.
        rows = before["directions"]
        v = torch.linalg.solve(torch.linalg.cholesky(rows @ rows.T), rows)
        for line, each in enumerate(v):
            second = torch.einsum("oij,i,j->o", dense, each, each)
            u = second / second.norm()
            expected = torch.einsum("oij,o,i->j", dense, u, each)
            torch.testing.assert_close(after["directions"][line], expected / expected.norm())
            assert float(after["curve"][-1, line]) == pytest.approx(float(second.norm()))
        assert progress.objective == pytest.approx(float(after["curve"][-1].mean()))
        before = after
    assert progress.done


def test_on_which_side_a_direction_starts_makes_no_difference() -> None:
    part, config = toy(), QuadraticDctConfig(iterations=3)
    state = start(part, 6, config)
    sides = torch.tensor([[1.0], [-1], [-1]], dtype=torch.float64)
    mirrored = state | {"directions": sides * state["directions"]}
    found, other = (run(part, 6, config, state=each)[0] for each in (state, mirrored))
    for name in ("directions", "outputs", "score.curvature", "score.effect"):
        torch.testing.assert_close(found[name], other[name])


# -- what it finds -------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(3))
def test_planted_factors_are_found_in_the_default_iterations(seed: int) -> None:
    m, d = 6, 64
    part, a, _, v = planted(m, d, seed=10 * seed)
    found, states = run(part, 2 * m, QuadraticDctConfig(), seed=seed)
    nearest = cosines(found["directions"], v)
    assert int((nearest.max(0).values > 0.99).sum()) >= m - 1
    for item in range(0, 2 * m, 2):
        if float(nearest[item].max()) > 0.999:
            size = float(a[int(nearest[item].argmax())])
            assert float(found["score.curvature"][item]) == pytest.approx(size, rel=0.1)
    # Neither what it started from nor the linear part knows them.
    assert float(cosines(states[0]["directions"], v).max()) < 0.7
    jacobian = part.jacobian(torch.zeros(d, dtype=torch.float64))
    assert float(cosines(torch.linalg.svd(jacobian).Vh[:m], v).max()) < 0.7


def test_one_direction_ends_where_the_dense_second_derivative_is_stationary() -> None:
    part = toy()
    dense = part.curvature()
    found, _ = run(part, 1, QuadraticDctConfig(iterations=60))
    (v,) = found["directions"]
    second = torch.einsum("oij,i,j->o", dense, v, v)
    curvature = second.norm()
    assert float(found["score.curvature"][0]) == pytest.approx(float(curvature))
    # The gradient of the curvature on the sphere is zero.
    slope = torch.einsum("oij,o,i->j", dense, second / curvature, v)
    torch.testing.assert_close(slope, curvature * v, rtol=0, atol=1e-6)
    # And it is far above that of directions at random.
    others = normalize(normal(1000, WIDTH, seed=8), dim=1)
    by_chance = torch.einsum("oij,ni,nj->no", dense, others, others).norm(dim=1)
    assert float(curvature) > float(by_chance.quantile(0.99))


# -- both signs ----------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [1, 2, 5, 8])
def test_both_signs_are_ranked_by_curvature_and_measured_at_the_radius(n: int) -> None:
    part = toy()
    dense = part.curvature()
    found, states = run(part, n, QuadraticDctConfig(iterations=5))
    v = found["directions"]
    assert {len(values) for name, values in found.items() if name != "curve"} == {n}
    for item in range(n):
        effect = part.delta(RADIUS * v[item])
        assert float(found["score.effect"][item]) == pytest.approx(float(effect.norm()))
        torch.testing.assert_close(found["outputs"][item], effect / effect.norm())
        second = torch.einsum("oij,i,j->o", dense, v[item], v[item]).norm()
        assert float(found["score.curvature"][item]) == pytest.approx(float(second))
        if item % 2:
            assert torch.equal(v[item], -v[item - 1])
        else:
            assert float(effect.norm()) > float(part.delta(-RADIUS * v[item]).norm())
    assert bool((found["score.curvature"].diff() <= 0).all())
    last = states[-1]
    for pair in range((n + 1) // 2):  # a column of the curve belongs to a pair
        line = int(cosines(v[2 * pair][None], last["directions"])[0].argmax())
        assert torch.equal(found["curve"][:, pair], last["curve"][:, line])


# -- the rest ------------------------------------------------------------------------------------


@pytest.mark.parametrize("iterations", [0, 1, 6])
def test_it_runs_as_many_iterations_as_asked(iterations: int) -> None:
    found, _ = run(toy(), 3, QuadraticDctConfig(iterations=iterations))
    assert found["curve"].shape == (iterations, 2)


def test_more_than_both_signs_of_every_direction_is_an_error() -> None:
    with pytest.raises(MethodError, match=r"has 7 directions here.*at most 14 perturbations"):
        start(toy(), 15, QuadraticDctConfig())
    start(toy(), 14, QuadraticDctConfig())


def test_an_effect_that_does_not_bend_is_an_error() -> None:
    with pytest.raises(MethodError, match="does not bend at all along 2 of 2 directions"):
        run(linear(normal(4, 4)), 4, QuadraticDctConfig())


@pytest.mark.parametrize("at", [0, 1, 4, 5])
def test_resumed_is_uninterrupted_bit_for_bit(tmp_path: Path, at: int) -> None:
    part, config = toy(), QuadraticDctConfig(iterations=5)
    whole, states = run(part, 5, config)
    save_file(states[at], tmp_path / "state")
    resumed, _ = run(part, 5, config, state=State(load_file(tmp_path / "state")))
    assert whole.keys() == resumed.keys()
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
