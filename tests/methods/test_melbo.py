"""MELBO, against its formula written with loops, PyTorch's own optimiser, and dense SVDs."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from educe.errors import MethodError
from educe.methods import melbo
from educe.methods.melbo import MelboConfig
from educe.methods.state import State
from toy_slice import ToySlice, cosines, curved, linear, normal, through, with_singular_values

WIDTH = 6
READ = [[0, 0, 1], [1, 1, 1]]  # of the first prompt, the last token; of the second, all
PQ = [(2.0, 1.0), (4.0, 4.0), (2.0, 2.0), (4.0, 1.0), (3.0, 2.0)]


def toy(**options: Any) -> Any:
    return curved(WIDTH, read=READ, bend=0.5, **options)


def by_loops(part: Any, theta: Tensor, p: float, q: float) -> Tensor:
    """The objective of one perturbation, token by token and feature by feature; differentiable."""
    values = part.values(theta[None])[0]
    total = torch.zeros((), dtype=torch.float64)
    for prompt, reads in enumerate(READ):
        inner = torch.zeros((), dtype=torch.float64)
        for token, read in enumerate(reads):
            if read:
                squares = sum(values[prompt, token, i] ** 2 for i in range(part.width))
                inner = inner + squares ** (p / 2)
        total = total + inner ** (1 / q)
    return total


def start(part: Any, n: int, config: MelboConfig, *, radius: float = 1.0) -> State:
    return melbo.start(part, n, radius, config, torch.Generator().manual_seed(0))


def run(part: Any, n: int, config: MelboConfig, **how: Any) -> tuple[State, list[State]]:
    """Return what is found, and the state after each step."""
    found, states = through(melbo, part, n, config, **{"radius": 1.0} | how)
    return found, states[1:]


# -- the objective -------------------------------------------------------------------------------


@pytest.mark.parametrize("at_once", [1, 2])
@pytest.mark.parametrize(("p", "q"), PQ)
def test_objective_is_the_published_formula(p: float, q: float, at_once: int) -> None:
    part = toy(prompts_at_once=at_once)
    theta = normal(3, WIDTH, seed=5)
    value, gradient = part.value_and_grad(theta, lambda shift: melbo.objective(shift, p, q))
    for row in range(3):
        mine = theta[row].clone().requires_grad_(True)
        expected = by_loops(part, mine, p, q)
        (slope,) = torch.autograd.grad(expected, mine)
        assert float(value[row]) == pytest.approx(float(expected.detach()), rel=1e-12)
        torch.testing.assert_close(gradient[row], slope)


# -- a step --------------------------------------------------------------------------------------


@pytest.mark.parametrize("orthogonal", [False, True])
@pytest.mark.parametrize(("p", "q"), [(2.0, 1.0), (4.0, 4.0)])
def test_steps_are_those_of_adamw_on_the_projected_gradient(
    p: float, q: float, orthogonal: bool
) -> None:
    part, radius, n, steps = toy(), 1.7, 3, 25
    config = MelboConfig(
        power=p, root=q, step=0.1, steps=steps, orthogonal=orthogonal, tolerance=-math.inf
    )
    _, states = run(part, n, config, radius=radius)
    theta = torch.nn.Parameter(radius * start(part, n, config)["directions"])
    optimiser = torch.optim.AdamW(
        [theta],
        lr=config.step * radius / part.width**0.5,
        betas=(0.9, 0.98),
        weight_decay=0,
        amsgrad=True,
    )
    assert len(states) == steps
    for state in states:
        rows = []
        for line in range(n):
            mine = theta.detach()[line].clone().requires_grad_(True)
            (slope,) = torch.autograd.grad(by_loops(part, mine, p, q), mine)
            for other in range(n) if orthogonal else [line]:
                along = theta.detach()[other] / radius
                slope = slope - (slope @ along) * along
            rows.append(slope)
        theta.grad = -torch.stack(rows)
        optimiser.step()
        with torch.no_grad():
            if orthogonal:
                # The polar factor the other way: (V Vᵀ)^(-1/2) V.
                values, vectors = torch.linalg.eigh(theta @ theta.T)
                theta.copy_(radius * vectors @ (vectors.T @ theta / values.sqrt()[:, None]))
            theta.copy_(radius * theta / theta.norm(dim=1, keepdim=True))
        torch.testing.assert_close(state["directions"], theta.detach() / radius, rtol=0, atol=1e-7)


@pytest.mark.parametrize("orthogonal", [False, True])
def test_steps_stay_on_the_sphere(orthogonal: bool) -> None:
    _, states = run(toy(), 4, MelboConfig(step=0.5, steps=20, orthogonal=orthogonal), radius=3.0)
    for state in states:
        norms = state["directions"].norm(dim=1)
        torch.testing.assert_close(norms, torch.ones_like(norms))


def test_orthogonal_vectors_are_orthogonal_after_every_step() -> None:
    config = MelboConfig(step=0.5, steps=20, orthogonal=True)
    states = [start(toy(), 4, config), *run(toy(), 4, config)[1]]
    for state in states:
        v = state["directions"]
        torch.testing.assert_close(v @ v.T, torch.eye(4, dtype=torch.float64))


def test_a_batch_is_one_vector_at_a_time() -> None:
    part, config = toy(), MelboConfig(step=0.2, steps=15, tolerance=-math.inf)
    together = run(part, 4, config)[1][-1]
    for line, first in enumerate(start(part, 4, config)["directions"]):
        zero = torch.zeros(1, WIDTH, dtype=torch.float64)
        state = State(
            directions=first[None],
            first=zero,
            second=zero,
            largest=zero,
            curve=torch.zeros(0, 1, dtype=torch.float64),
        )
        for _ in range(15):
            state, _ = melbo.step(part, 1.0, config, state)
        torch.testing.assert_close(state["directions"][0], together["directions"][line])
        torch.testing.assert_close(state["curve"][:, 0], together["curve"][:, line])


def test_steps_are_relative_to_the_radius() -> None:
    c, part = 40.0, toy()
    wide = ToySlice(lambda theta: part.move(theta / c), WIDTH, read=READ)
    config = MelboConfig(step=0.2, steps=30)
    found, states = run(part, 3, config, radius=0.8)
    again, more = run(wide, 3, config, radius=c * 0.8)
    assert len(states) == len(more)
    torch.testing.assert_close(again["directions"], found["directions"], rtol=0, atol=1e-5)


def test_a_step_turns_a_vector_by_about_its_share() -> None:
    part = linear(normal(400, 400, seed=1))
    config = MelboConfig(step=0.1)
    before = start(part, 8, config)
    after, _ = melbo.step(part, 1.0, config, before)
    moved = (after["directions"] - before["directions"]).norm(dim=1)
    # Each of d coordinates moves by step / √d; what is radial in that is lost.
    torch.testing.assert_close(moved, torch.full_like(moved, 0.1), rtol=0.05, atol=0)


# -- what it finds -------------------------------------------------------------------------------


def test_the_optimum_on_linear_maps_is_their_top_right_singular_vector() -> None:
    maps = normal(2, 3, WIDTH, WIDTH, seed=3)
    part = ToySlice(lambda theta: torch.einsum("pkde,ne->npkd", maps, theta), WIDTH, read=READ)
    config = MelboConfig(step=0.05, steps=600, tolerance=-math.inf)
    found, _ = run(part, 4, config, radius=2.0)
    stacked = torch.cat([maps[0, 2], *maps[1]])  # what is read, below one another
    _, values, right = torch.linalg.svd(stacked)
    assert float(cosines(found["directions"], right[:1]).min()) > 1 - 1e-6
    top = torch.full_like(found["score.objective"], float((2.0 * values[0]) ** 2))
    torch.testing.assert_close(found["score.objective"], top, rtol=1e-5, atol=0)


def test_at_a_small_radius_the_optimum_is_the_top_right_singular_vector() -> None:
    part, radius = toy(), 1e-4
    config = MelboConfig(step=0.05, steps=300, tolerance=-math.inf)
    found, _ = run(part, 2, config, radius=radius)
    read = torch.tensor(READ, dtype=torch.bool)
    zero = torch.zeros(WIDTH, dtype=torch.float64)
    stacked = torch.autograd.functional.jacobian(lambda row: part.values(row[None])[0][read], zero)
    _, values, right = torch.linalg.svd(stacked.flatten(0, 1))
    assert float(cosines(found["directions"], right[:1]).min()) > 1 - 1e-6
    top = torch.full_like(found["score.objective"], float((radius * values[0]) ** 2))
    torch.testing.assert_close(found["score.objective"], top, rtol=1e-3, atol=0)
    # At a large one it is not: the map is curved.
    far, _ = run(part, 2, config, radius=2.0)
    assert float(cosines(far["directions"], right[:1]).max()) < 0.99


def test_orthogonal_vectors_span_the_top_singular_subspace_of_a_linear_map() -> None:
    matrix = with_singular_values([5, 4.5, 4, 2, 1.5, 1, 0.8, 0.6])
    config = MelboConfig(step=0.05, steps=600, tolerance=-math.inf, orthogonal=True)
    found, _ = run(linear(matrix), 3, config)
    right = torch.linalg.svd(matrix).Vh[:3]
    # Cosines of the principal angles between the two subspaces.
    angles = torch.linalg.svdvals(found["directions"] @ right.T)
    assert float(angles.min()) > 1 - 1e-4


def test_scores_are_of_the_vectors_as_they_ended() -> None:
    part, config = toy(), MelboConfig(power=4.0, root=4.0, steps=5)
    found, states = run(part, 3, config, radius=0.7)
    assert torch.equal(found["directions"], states[-1]["directions"])
    for line, v in enumerate(found["directions"]):
        objective = by_loops(part, 0.7 * v, 4.0, 4.0)
        assert float(found["score.objective"][line]) == pytest.approx(float(objective))
        effect = part.delta(0.7 * v)
        assert float(found["score.effect"][line]) == pytest.approx(float(effect.norm()))
        torch.testing.assert_close(found["outputs"][line], effect / effect.norm())


# -- when it ends --------------------------------------------------------------------------------


def test_it_stops_when_the_objective_has_stopped_growing() -> None:
    part = linear(with_singular_values([3.0, 2, 1, 0.5, 0.4, 0.3]))
    config = MelboConfig(step=0.1, steps=500, tolerance=0.02, patience=8)
    found, states = run(part, 5, config)
    mean = found["curve"].mean(1)
    assert len(states) < 200
    assert float(mean[-1]) > 0.95 * 9.0  # and it stopped near the top, not before
    # The rule, replayed: the best of the last 8 within 2% of the best before, for the first time.
    stops = [
        t > 8 and float(mean[t - 8 : t].max()) < 1.02 * float(mean[: t - 8].max())
        for t in range(1, len(states) + 1)
    ]
    assert stops == [False] * (len(states) - 1) + [True]


@pytest.mark.parametrize(
    ("curve", "stops"),
    [
        ([9.0, 1, 5, 5, 5], True),  # the best before counts, not the last
        ([5.0, 5, 5, 1, 9], False),  # and so does the best since
        ([9.0, 9, 9], False),  # too early to tell
        ([9.0, 9, 9, 9], True),
        ([9.0, 9.2, 9.15, 9.17, 9.1], True),  # less than 2%
        ([9.0, 9.0, 9.15, 9.2, 9.1], False),
        ([1.0, 2, 4, 8, 16, 32, 64], True),  # the limit
    ],
)
def test_it_stops_by_the_best_of_the_last_steps(curve: list[float], stops: bool) -> None:
    part, config = toy(), MelboConfig(steps=7, patience=3, tolerance=0.02)
    state = start(part, 2, config)
    # The mean of the two is the curve.
    state["curve"] = torch.tensor(curve).double()[:, None] + torch.tensor([[-0.5, 0.5]]).double()
    after, progress = melbo.step(part, 1.0, config, state)
    assert (after is state) == stops
    assert not stops or progress.done


def test_it_stops_at_the_limit() -> None:
    config = MelboConfig(step=0.01, steps=7, tolerance=-math.inf)
    found, states = run(toy(), 2, config)
    assert len(states) == 7
    assert found["curve"].shape == (8, 2)


def test_curve_is_the_objective_before_each_step_and_at_the_end() -> None:
    part, config = toy(), MelboConfig(step=0.02, steps=40, tolerance=-math.inf)
    found, states = run(part, 3, config)
    at = [start(part, 3, config), *states]
    for state, values in zip(at, found["curve"], strict=True):
        for v, value in zip(state["directions"], values, strict=True):
            assert float(value) == pytest.approx(float(by_loops(part, v, 2.0, 1.0)))
    falls = found["curve"].diff(dim=0) / found["curve"][:-1]
    assert float(falls.min()) > -0.01  # nearly monotone at a small step
    assert bool((found["curve"][-1] > 1.5 * found["curve"][0]).all())


def test_reported_objective_is_the_mean_over_the_vectors() -> None:
    part, config = toy(), MelboConfig()
    state = start(part, 3, config)
    _, progress = melbo.step(part, 1.0, config, state)
    expected = sum(float(by_loops(part, v, 2.0, 1.0)) for v in state["directions"]) / 3
    assert progress.objective == pytest.approx(expected)


def test_more_orthogonal_vectors_than_the_width_are_an_error() -> None:
    config = MelboConfig(orthogonal=True)
    with pytest.raises(MethodError, match="7 vectors of width 6 cannot be orthogonal"):
        start(toy(), 7, config)
    start(toy(), 6, config)
    start(toy(), 7, dataclasses.replace(config, orthogonal=False))


@pytest.mark.parametrize("orthogonal", [False, True])
@pytest.mark.parametrize("at", [1, 2, 6, 7])
def test_resumed_is_uninterrupted_bit_for_bit(tmp_path: Path, orthogonal: bool, at: int) -> None:
    part = toy()
    config = MelboConfig(step=0.2, steps=7, orthogonal=orthogonal, tolerance=-math.inf)
    whole, states = run(part, 4, config)
    save_file(states[at - 1], tmp_path / "state")
    resumed, _ = run(part, 4, config, state=State(load_file(tmp_path / "state")))
    assert whole.keys() == resumed.keys()
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_resuming_what_had_converged_changes_nothing() -> None:
    part, config = linear(with_singular_values([3.0, 2, 1])), MelboConfig(step=0.1, steps=500)
    whole, states = run(part, 2, config)
    assert len(states) < 500
    resumed, _ = run(part, 2, config, state=states[-1])
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
