"""DCT, against the published update written down anew, planted factors, and dense SVDs."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn.functional import normalize

from educe.errors import MethodError
from educe.methods import dct
from educe.methods.dct import DctConfig
from educe.methods.state import State
from toy_slice import ToySlice, cosines, curved, linear, normal, through, with_singular_values

WIDTH, RADIUS = 7, 1.3


def toy() -> Any:
    return curved(WIDTH)


def planted(m: int, d: int, *, seed: int = 0) -> tuple[Any, Tensor, Tensor, Tensor]:
    """Return the slice ``Σ_l a_l (exp⟨v_l, θ⟩ - 1) u_l``, and its ``a``, ``u`` and ``v``."""
    u, v = normalize(normal(m, d, seed=seed + 1), dim=1), normalize(normal(m, d, seed=seed), dim=1)
    a = torch.linspace(2, 1, m, dtype=torch.float64)
    return ToySlice(lambda theta: (torch.expm1(theta @ v.T) * a) @ u, d), a, u, v


def start(part: Any, n: int, config: DctConfig, *, radius: float = RADIUS, seed: int = 0) -> State:
    return dct.start(part, n, radius, config, torch.Generator().manual_seed(seed))


def run(part: Any, n: int, config: DctConfig, **how: Any) -> tuple[State, list[State]]:
    """Return what is found, and the state after each step."""
    found, states = through(dct, part, n, config, **{"radius": RADIUS} | how)
    return found, states[1:]


def gram_schmidt(rows: Tensor) -> Tensor:
    """Orthonormalise rows one after the other, each on its own side."""
    made: list[Tensor] = []
    for row in rows:
        left = row.clone()
        for _ in range(2):
            for other in made:
                left = left - (left @ other) * other
        made.append(left / left.norm())
    return torch.stack(made)


# -- the iteration -------------------------------------------------------------------------------


def test_an_iteration_is_the_published_update() -> None:
    part, config = toy(), DctConfig(iterations=5)
    before = start(part, 4, config)
    for _ in range(5):
        after, progress = dct.step(part, RADIUS, config, before)
        reached = []
        for line, q in enumerate(gram_schmidt(before["directions"])):
            u = before["outputs"][line]
            effect = part.delta(RADIUS * q)
            gradient = RADIUS * part.jacobian(RADIUS * q).T @ u
            reached.append(float(effect @ u))
            # U is normalised and not made orthogonal; V is made orthogonal only when it is used.
            torch.testing.assert_close(after["outputs"][line], effect / effect.norm())
            torch.testing.assert_close(after["directions"][line], gradient / gradient.norm())
        assert after["curve"][-1].tolist() == pytest.approx(reached)
        assert progress.objective == pytest.approx(sum(reached) / 4)
        before = after
    assert progress.done


def test_an_iteration_leaves_orthonormal_planted_factors_as_they_are() -> None:
    u, v = gram_schmidt(normal(5, 16, seed=1)), gram_schmidt(normal(5, 16, seed=2))
    part = ToySlice(lambda theta: torch.expm1(theta @ v.T) @ u, 16)
    none = torch.zeros(0, 5, dtype=torch.float64)
    after, _ = dct.step(part, 2.0, DctConfig(), State(directions=v, outputs=u, curve=none))
    torch.testing.assert_close(after["directions"], v)
    torch.testing.assert_close(after["outputs"], u)
    torch.testing.assert_close(after["curve"][0], torch.full((5,), math.expm1(2.0)).double())


def test_the_first_outputs_are_what_the_first_directions_do() -> None:
    part = toy()
    state = start(part, 4, DctConfig())
    v = state["directions"]
    torch.testing.assert_close(v.norm(dim=1), torch.ones(4, dtype=torch.float64))
    for q, u in zip(gram_schmidt(v), state["outputs"], strict=True):
        effect = part.delta(RADIUS * q)
        torch.testing.assert_close(u, effect / effect.norm())


@pytest.mark.parametrize("iterations", [0, 1, 6])
def test_it_runs_as_many_iterations_as_asked(iterations: int) -> None:
    found, _ = run(toy(), 3, DctConfig(iterations=iterations))
    assert found["curve"].shape == (iterations, 3)


# -- what it finds -------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(3))
def test_planted_factors_are_found(seed: int) -> None:
    m, d = 8, 64
    part, _, _, v = planted(m, d, seed=10 * seed)
    config = DctConfig(iterations=40)
    found, _ = run(part, 16, config, radius=4.0, seed=seed)
    # With its sign: an exponential is not its mirror image.
    nearest = (found["directions"] @ v.T).max(0).values
    assert int((nearest > 0.99).sum()) >= 6
    # Neither chance nor the linear part alone finds more than one of them.
    by_chance = start(part, 16, config, seed=seed)["directions"]
    assert float(cosines(by_chance, v).max()) < 0.7
    linear_part = torch.linalg.svd(part.jacobian(torch.zeros(d, dtype=torch.float64))).Vh[:m]
    assert int((cosines(linear_part, v).max(0).values > 0.99).sum()) <= 1


def test_factors_of_a_linear_map_span_its_top_singular_subspace() -> None:
    matrix = with_singular_values([5, 4.5, 4, 2, 1.5, 1, 0.8, 0.6])
    found, _ = run(linear(matrix), 3, DctConfig(iterations=40))
    right = torch.linalg.svd(matrix).Vh[:3]
    angles = torch.linalg.svdvals(torch.linalg.qr(found["directions"].T).Q.T @ right.T)
    assert float(angles.min()) > 1 - 1e-6


# -- weights and ranking -------------------------------------------------------------------------


def test_alpha_solves_the_linear_system() -> None:
    u, v = normalize(normal(6, 9, seed=1), dim=1), normalize(normal(6, 9, seed=2), dim=1)
    effect = normal(6, 9, seed=3)
    kernel = np.zeros((6, 6))
    for i in range(6):
        for j in range(6):
            kernel[i, j] = float(u[i] @ u[j]) * math.expm1(float(v[i] @ v[j]))
    expected = np.linalg.solve(kernel, [float(u[i] @ effect[i]) for i in range(6)])
    np.testing.assert_allclose(dct.solve_alpha(u, v, effect).numpy(), expected, rtol=1e-9)


def test_alpha_is_the_weight_of_exact_factors() -> None:
    part, a, u, v = planted(6, 16)
    torch.testing.assert_close(dct.solve_alpha(u, v, part.delta(v)), a)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_factors_that_coincide_share_their_weight(dtype: torch.dtype) -> None:
    # A map of rank one has one factor, however many are asked for.
    u, v = normalize(normal(2, 8, seed=1), dim=1).to(dtype).expand(3, 2, 8).unbind(1)
    alpha = dct.solve_alpha(u, v, 6 * u)
    shared = torch.full((3,), 6 / math.expm1(1) / 3, dtype=dtype)
    torch.testing.assert_close(alpha, shared, rtol=1e-4, atol=0)


def test_factors_are_ranked_by_the_square_of_their_weight() -> None:
    part, config = planted(8, 24, seed=3)[0], DctConfig(iterations=12)
    found, states = run(part, 20, config, radius=4.0)
    alpha, v, u = found["score.alpha"], found["directions"], found["outputs"]
    assert bool((alpha.square().diff() <= 0).all())
    assert float(alpha.min()) < 0  # so that the order is not that of alpha itself
    last, order = states[-1], []
    for line in range(20):
        effect = part.delta(4.0 * v[line])
        assert float(found["score.effect"][line]) == pytest.approx(float(effect.norm()))
        torch.testing.assert_close(u[line], effect / effect.norm())
        order.append(int((last["directions"] - v[line]).norm(dim=1).argmin()))
        assert torch.equal(last["directions"][order[-1]], v[line])
    assert sorted(order) == list(range(20))
    assert torch.equal(found["curve"], last["curve"][:, order])
    torch.testing.assert_close(dct.solve_alpha(u, v, part.delta(4.0 * v)), alpha)


# -- starting from the Jacobian ------------------------------------------------------------------


class Spied:
    """Notes with which cotangents Jacobian products at zero are taken."""

    def __init__(self, part: Any) -> None:
        self.part, self.rows = part, []  # type: ignore[var-annotated]

    def __getattr__(self, name: str) -> Any:
        return getattr(self.part, name)

    def vjp(self, theta: Tensor, cotangent: Tensor) -> Any:
        if not theta.any():
            self.rows.append(cotangent.clone())
        return self.part.vjp(theta, cotangent)


@pytest.mark.parametrize(("n", "projections"), [(2, 4), (4, 4), (6, 4)])
def test_jacobian_start_is_the_svd_of_the_projected_jacobian(n: int, projections: int) -> None:
    part = Spied(toy())
    v = start(part, n, DctConfig(init="jacobian", projections=projections))["directions"]
    (w,) = part.rows
    assert w.shape == (projections, WIDTH)
    torch.testing.assert_close(w.norm(dim=1), torch.ones(projections, dtype=torch.float64))
    rows = w @ part.jacobian(torch.zeros(WIDTH, dtype=torch.float64))
    right = torch.linalg.svd(rows).Vh[: min(n, projections)]
    assert v.shape == (n, WIDTH)
    torch.testing.assert_close(v.norm(dim=1), torch.ones(n, dtype=torch.float64))
    alike = (v[: len(right)] * right).sum(1).abs()
    torch.testing.assert_close(alike, torch.ones_like(alike))
    assert not v[len(right) :].numel() or float(cosines(v[len(right) :], right).max()) < 0.99


@pytest.mark.parametrize("n", [1, 3, WIDTH])
def test_jacobian_start_with_enough_projections_is_the_svd_of_the_jacobian(n: int) -> None:
    part = toy()
    config = DctConfig(init="jacobian", projections=WIDTH + 25)
    v = start(part, n, config)["directions"]
    right = torch.linalg.svd(part.jacobian(torch.zeros(WIDTH, dtype=torch.float64))).Vh[:n]
    alike = (v * right).sum(1).abs()
    torch.testing.assert_close(alike, torch.ones_like(alike))


# -- the rest ------------------------------------------------------------------------------------


def test_more_factors_than_the_width_are_an_error() -> None:
    with pytest.raises(MethodError, match="dct finds at most 7 factors here"):
        start(toy(), 8, DctConfig())
    start(toy(), 7, DctConfig())


@pytest.mark.parametrize("init", ["random", "jacobian"])
@pytest.mark.parametrize("at", [0, 1, 4, 5])
def test_resumed_is_uninterrupted_bit_for_bit(tmp_path: Path, init: Any, at: int) -> None:
    part, config = toy(), DctConfig(iterations=5, init=init)
    whole, states = run(part, 4, config)
    save_file([start(part, 4, config), *states][at], tmp_path / "state")
    resumed, _ = run(part, 4, config, state=State(load_file(tmp_path / "state")))
    assert whole.keys() == resumed.keys()
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
