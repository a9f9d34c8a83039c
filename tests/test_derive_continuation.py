"""Continuation: against the secular equation of a quadratic, with and without a fold."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from scipy.optimize import brentq
from torch import Tensor

from educe.derive.continuation import (
    PathConfig,
    advance,
    branches,
    drift,
    follow,
    tangent,
    turning,
)
from educe.derive.objective import Effect, Melbo, Toward
from educe.derive.stationary import converge
from educe.forward.slice import Slice
from educe.methods.state import State
from toy_slice import ToySlice, normal

WIDTH = 6
FINE = PathConfig(iterates=80, converging=200, tolerance=1e-9)


def quadratic(curvature: Tensor, slope: Tensor) -> tuple[Any, Toward]:
    """Return a slice and an objective with ``g(θ) = ⟨b, θ⟩ + ½ θᵀAθ``."""

    def move(theta: Tensor) -> Tensor:
        value = theta @ slope + 0.5 * ((theta @ curvature) * theta).sum(1)
        return torch.cat([value[:, None], torch.zeros_like(theta[:, 1:])], 1)

    first = torch.zeros(1, len(slope), dtype=torch.float64)
    first[0, 0] = 1
    return ToySlice(move, len(slope)), Toward(first)


def problem(seed: int = 0) -> tuple[Tensor, Tensor]:
    turn = torch.linalg.qr(normal(WIDTH, WIDTH, seed=seed)).Q
    values = torch.tensor([1.0, 0.6, 0.3, -0.2, -0.5, -0.8], dtype=torch.float64)
    return turn @ torch.diag(values) @ turn.T, normal(WIDTH, seed=seed + 1)


def secular(curvature: Tensor, slope: Tensor, radius: float) -> tuple[Tensor, Tensor]:
    """Return the maximum on the sphere and ``dv / d log R``, from the secular equation.

    ``(λ - A) θ = b`` with ``‖θ‖ = R`` and ``λ`` above the largest eigenvalue of ``A`` (Forsythe &
    Golub 1965); ``dθ/dλ = -(λ - A)⁻¹ θ`` gives the derivative.
    """
    value, vector = torch.linalg.eigh(curvature)
    part = vector.T @ slope

    def length(level: float) -> float:
        return float((part / (level - value)).norm())

    top = float(value[-1])
    level = brentq(lambda x: length(x) - radius, top + 1e-9, top + 1e4, xtol=1e-14)
    theta = vector @ (part / (level - value))
    along = -vector @ (part / (level - value).square())
    per_radius = along * radius / (theta @ along)
    v = theta / radius
    across = per_radius - (per_radius @ v) * v
    return v, across  # R dv/dR = (R dθ/dR - R v) / R, which is across the vector


def test_a_path_is_that_of_the_secular_equation() -> None:
    curvature, slope = problem()
    part, objective = quadratic(curvature, slope)
    radius = torch.tensor([1.5], dtype=torch.float64)
    path = follow(part, objective, _unit(normal(1, WIDTH, seed=5)), radius, FINE)
    for k, share in enumerate(FINE.shares):
        v, _ = secular(curvature, slope, 1.5 * share)
        torch.testing.assert_close(path["directions"][k, 0], v, rtol=0, atol=1e-8)
    assert not path["left"].any()
    assert (path["sine"] < 1e-8).all()


def test_the_implicit_derivative_is_that_of_the_secular_equation() -> None:
    curvature, slope = problem()
    part, objective = quadratic(curvature, slope)
    radii = torch.tensor([0.5, 1.5, 3.0], dtype=torch.float64)
    pairs = [secular(curvature, slope, float(r)) for r in radii]
    v, turn = (torch.stack(some) for some in zip(*pairs, strict=True))
    found = tangent(part, Toward(objective.outputs.expand(3, -1)), v, radii, tolerance=1e-10)
    torch.testing.assert_close(found.turn, turn, rtol=0, atol=1e-8)
    assert (found.residual < 1e-9).all()
    assert turn.norm(dim=1).min() > 0.01


def test_where_a_vector_is_no_maximum_there_is_no_derivative() -> None:
    curvature, _ = problem()
    vectors = torch.linalg.eigh(curvature).eigenvectors.T
    part, objective = quadratic(curvature, vectors[-1] + vectors[1])
    v = vectors[1:2]  # along the second lowest eigenvector, which is no maximum
    radius = torch.ones(1, dtype=torch.float64)
    assert tangent(part, objective, v, radius).turn.isnan().all()


def test_differences_along_a_path_are_of_second_order() -> None:
    curvature, slope = problem()
    off = []
    for steps in (4, 8, 16):
        shares = PathConfig(steps=steps).shares
        exact = [secular(curvature, slope, 1.5 * share) for share in shares]
        v, turn = (torch.stack(some)[:, None] for some in zip(*exact, strict=True))
        whole = torch.zeros(len(shares), 1)
        found = turning(v, shares, whole)
        off.append(float((found - turn)[1:-1].norm(dim=2).max()))
        assert (found * v).sum(2).abs().max() < 1e-12
    assert off[0] < 0.05
    assert off[1] / off[0] == pytest.approx(1 / 4, rel=0.25)
    assert off[2] / off[1] == pytest.approx(1 / 4, rel=0.25)


def test_differences_on_uneven_steps_are_exact_for_parabolas() -> None:
    shares = [1.0, 1.3, 2.5]
    at = torch.tensor(shares, dtype=torch.float64).log()
    across = torch.stack([at.square(), 3 * at - 1, torch.zeros_like(at)], 1)[:, None]
    axis = torch.zeros(3, 1, 3, dtype=torch.float64)
    axis[..., 2] = 1  # what is taken off along the vector is not what is looked at
    whole = torch.zeros(3, 1)
    found = turning(across, shares, whole)
    expected = torch.stack([2 * at[1], torch.tensor(3.0, dtype=torch.float64)])
    own = found[1, 0] + ((expected @ across[1, 0, :2]) * across[1, 0])
    torch.testing.assert_close(own[:2], expected)


def test_there_and_back_returns_where_there_is_no_fold() -> None:
    curvature, slope = problem()
    part, objective = quadratic(curvature, slope)
    radius = torch.tensor([1.5], dtype=torch.float64)
    up = follow(part, objective, _unit(normal(1, WIDTH)), radius, FINE)["directions"]
    home = FINE.shares.index(1.0)
    for end in (0, -1):
        v, at = up[end], FINE.shares[end] * radius
        for share in [*FINE.shares[:home][1:], 1.0] if end == 0 else FINE.shares[home:-1][::-1]:
            reached, left = advance(part, objective, v, (at, share * radius), FINE)
            v, at = reached.v, share * radius
            assert not left.any()
        torch.testing.assert_close(v, up[home], rtol=0, atol=1e-7)


# -- a fold ----------------------------------------------------------------------------------------


TILT = 0.02


def double_well(theta: Tensor) -> Tensor:
    """Return ``g = R² cos(2φ) / 2 + (1 - R) cos φ + TILT R sin φ`` on the plane.

    For large ``R`` there are maxima near ``φ = 0`` and near ``φ = π``, for small ones only the
    former: the latter ends in a fold.
    """
    x, y = theta.T
    size = theta.norm(dim=1)
    value = (x.square() - y.square()) / 2 + (1 - size) * x / size + TILT * y
    return torch.stack([value, torch.zeros_like(value)], 1)


def far_maximum(radius: float) -> float | None:
    """Return the angle of the maximum on the far side, by looking everywhere on the circle."""
    angle = torch.linspace(1.6, 4.6, 200_001, dtype=torch.float64)
    value = double_well(radius * torch.stack([angle.cos(), angle.sin()], 1))[:, 0]
    tops = (value[1:-1] > value[:-2]) & (value[1:-1] > value[2:])
    return float(angle[1:-1][tops][0]) if tops.any() else None


def test_a_vector_that_loses_its_basin_becomes_another_one() -> None:
    part: Any = ToySlice(double_well, 2)
    objective = Toward(torch.tensor([[1.0, 0.0]], dtype=torch.float64))
    start = _unit(torch.tensor([[-1.0, 0.05]], dtype=torch.float64))
    config = PathConfig(low=0.25, high=2.0, iterates=80, converging=300, tolerance=1e-7)
    radius = torch.tensor([0.8], dtype=torch.float64)
    path = follow(part, objective, start, radius, config)
    branch = branches(path["left"], config.shares.index(1.0))[:, 0]
    far = [far_maximum(0.8 * share) for share in config.shares]
    assert 2 < sum(angle is None for angle in far) < 10
    for k, angle in enumerate(far):
        v = path["directions"][k, 0]
        if angle is None:
            assert branch[k] == -1
            assert v[0] > 0.99
        else:
            assert branch[k] == 0
            expected = torch.tensor([math.cos(angle), math.sin(angle)], dtype=torch.float64)
            torch.testing.assert_close(v, expected, rtol=0, atol=1e-4)
    assert path["left"].sum() == 1
    # Its way back is another: from where it is now it does not return.
    again, _ = advance(part, objective, path["directions"][0], (0.25 * radius, radius), config)
    assert float(again.v[0, 0]) > 0.99
    # No difference is taken across the change.
    rate = turning(path["directions"], config.shares, branch[:, None])
    assert rate.norm(dim=2).max() < 1


def test_no_difference_is_taken_across_a_change_of_branch() -> None:
    axes = torch.eye(3, dtype=torch.float64)
    v = torch.stack([axes[0], axes[0], axes[1], axes[1], axes[2]])[:, None]
    branch = torch.tensor([0, 0, 1, 1, 2])[:, None]
    rate = turning(v, [1.0, 1.1, 1.2, 1.3, 1.4], branch)
    assert rate[:4].abs().max() == 0
    assert rate[4].isnan().all()  # a branch of a single radius
    torch.testing.assert_close(
        branches(torch.tensor([[1], [0], [0], [0], [1], [1]], dtype=torch.bool), 2)[:, 0],
        torch.tensor([-1, 0, 0, 0, 1, 2]),
    )


@pytest.mark.parametrize(("where", "changes"), [(1.2, True), (1.8, True), (2.5, False)])
def test_a_change_in_either_half_of_a_step_is_a_change(where: float, changes: bool) -> None:
    """The direction is along one axis below a radius, along another above; halves meet at √2."""

    def jumping(theta: Tensor) -> Tensor:
        size = theta.norm(dim=1)
        value = torch.where(size < where, theta[:, 0], theta[:, 1])
        return torch.stack([value, torch.zeros_like(value)], 1)

    part: Any = ToySlice(jumping, 2)
    objective = Toward(torch.tensor([[1.0, 0.0]], dtype=torch.float64))
    config = PathConfig(iterates=30, converging=30, tolerance=1e-6, halvings=1, widest=0.3)
    start = _unit(torch.tensor([[1.0, 0.01]], dtype=torch.float64))
    ends = torch.ones(1, dtype=torch.float64), 2 * torch.ones(1, dtype=torch.float64)
    reached, left = advance(part, objective, start, ends, config)
    assert bool(left) is changes
    assert float(reached.v[0, int(changes)]) > 0.99


def test_steps_that_are_too_wide_are_halved_and_are_no_fold() -> None:
    """One direction turns by ``log R``: 2.08 radians over the path, at most 0.3 a step."""

    def spiral(theta: Tensor) -> Tensor:
        size = theta.norm(dim=1)
        value = theta[:, 0] * torch.cos(size.log()) + theta[:, 1] * torch.sin(size.log())
        return torch.stack([value, torch.zeros_like(value)], 1)

    part: Any = ToySlice(spiral, 2)
    objective = Toward(torch.tensor([[1.0, 0.0]], dtype=torch.float64))
    config = PathConfig(steps=1, iterates=50, converging=50, tolerance=1e-9, widest=0.3)
    radius = torch.ones(1, dtype=torch.float64)
    start = torch.tensor([[1.0, 0.0]], dtype=torch.float64)
    path = follow(part, objective, start, radius, config)
    assert not path["left"].any()
    for k, share in enumerate(config.shares):
        angle = math.log(share)
        expected = torch.tensor([math.cos(angle), math.sin(angle)], dtype=torch.float64)
        torch.testing.assert_close(path["directions"][k, 0], expected, rtol=0, atol=1e-6)
    blunt = PathConfig(**vars(config) | {"halvings": 0})
    assert follow(part, objective, start, radius, blunt)["left"].any()


# -- the iterates ----------------------------------------------------------------------------------


def test_the_first_iterate_is_that_of_dct() -> None:
    matrix = torch.eye(WIDTH, dtype=torch.float64) + 0.3 * normal(WIDTH, WIDTH)
    part: Any = ToySlice(lambda theta: torch.tanh(theta @ matrix.T), WIDTH)
    v = _unit(normal(3, WIDTH, seed=4))
    radius = torch.full((3,), 0.5, dtype=torch.float64)
    effect = part.effect(0.5 * v)
    _, ahead = part.vjp(0.5 * v, effect / effect.norm(dim=1, keepdim=True))
    moved = converge(part, Effect(), v, radius, iterates=1, tolerance=0.0)
    torch.testing.assert_close(moved.v, _unit(ahead))
    assert (moved.value > effect.norm(dim=1)).all()


def test_no_iterate_turns_a_direction_by_more_than_45_degrees() -> None:
    slope = normal(WIDTH)
    part, objective = quadratic(torch.zeros(WIDTH, WIDTH, dtype=torch.float64), slope)
    other = normal(WIDTH, seed=1)
    across = other - (other @ slope) / slope.square().sum() * slope
    v = _unit(0.1 * _unit(slope[None]) + _unit(across[None]))  # 84° from the maximum
    one = torch.ones(1, dtype=torch.float64)
    moved = converge(part, objective, v, one, iterates=1, tolerance=0.0).v
    assert float((moved * v).sum()) == pytest.approx(math.cos(math.pi / 4))


def test_curvature_is_learned_where_the_fixed_point_map_creeps() -> None:
    # At the maximum of θᵀAθ the map contracts by the ratio of the two largest eigenvalues.
    values = torch.tensor([1.0, 0.97, 0.9, 0.5, 0.3, 0.1], dtype=torch.float64)
    turn = torch.linalg.qr(normal(WIDTH, WIDTH, seed=2)).Q
    part, objective = quadratic(turn @ torch.diag(values) @ turn.T, torch.zeros_like(values))
    v = _unit(turn.sum(1)[None])
    one = torch.ones(1, dtype=torch.float64)
    reached = converge(part, objective, v, one, iterates=20, tolerance=0.0)
    crept = v
    for _ in range(20):
        crept = _unit(crept @ (turn @ torch.diag(values) @ turn.T))
    top = turn[:, 0]
    assert float((crept @ top).abs()) < 0.95
    assert float((reached.v @ top).abs()) == pytest.approx(1, abs=1e-9)


def test_what_a_vector_drifts_is_what_its_iterates_turn_it_with_the_radius_held() -> None:
    curvature, slope = problem()
    part, objective = quadratic(curvature, slope)
    config = PathConfig(steps=5, iterates=2, tolerance=1e-9)
    radius = torch.tensor([1.5], dtype=torch.float64)
    v, _ = secular(curvature, slope, 1.5)
    near = _unit(v[None] + 0.3 * _unit(normal(1, WIDTH, seed=7)))
    moved = converge(part, objective, near, radius, iterates=2, tolerance=1e-9).v
    found = drift(part, objective, near, radius, config)
    angle = torch.acos((moved * near).sum(1))
    torch.testing.assert_close(found, angle / (math.log(2) / 5))
    assert drift(part, objective, v[None], radius, config) < 1e-6


def test_no_objective_falls_even_where_the_map_overshoots() -> None:
    curvature, slope = problem()
    part, objective = quadratic(curvature - 3 * torch.eye(WIDTH), slope)  # λ is below -2
    v = _unit(normal(4, WIDTH))
    radius = torch.full((4,), 3.0, dtype=torch.float64)
    some = Toward(objective.outputs.expand(4, -1))
    before, values = v, []
    for _ in range(6):
        reached = converge(part, some, before, radius, iterates=3, tolerance=1e-9)
        values.append(reached.value)
        before = reached.v
    assert (torch.stack(values).diff(dim=0) >= -1e-12).all()


def test_rows_do_not_know_of_each_other() -> None:
    curvature, slope = problem()
    part, objective = quadratic(curvature, slope)
    v = _unit(normal(3, WIDTH))
    radius = torch.tensor([0.5, 1.0, 2.0], dtype=torch.float64)
    config = PathConfig(steps=2, iterates=3, converging=5)
    both = follow(part, Toward(objective.outputs.expand(3, -1)), v, radius, config)
    for i in range(3):
        alone = follow(part, objective, v[i : i + 1], radius[i : i + 1], config)
        torch.testing.assert_close(both["directions"][:, i], alone["directions"][:, 0])
        assert torch.equal(both["left"][:, i], alone["left"][:, 0])


def test_a_path_goes_on_from_where_it_was_cut_off() -> None:
    curvature, slope = problem()
    part, objective = quadratic(curvature, slope)
    v, radius = _unit(normal(1, WIDTH)), torch.ones(1, dtype=torch.float64)
    config = PathConfig(steps=2, iterates=3, converging=5)
    states: list[State] = []
    whole = follow(part, objective, v, radius, config, on_step=states.append)
    assert len(states) == len(config.shares)
    part.move = None  # whatever is done is not done again
    assert all(torch.equal(states[-1][k], whole[k]) for k in whole)
    resumed, objective = quadratic(curvature, slope)
    again = follow(resumed, objective, v, radius, config, state=states[4])
    assert all(torch.equal(again[k], whole[k]) for k in whole)
    assert follow(part, objective, v, radius, config, state=states[-1]) is states[-1]


def test_radii_are_even_in_their_logarithm_and_have_the_ends() -> None:
    shares = PathConfig(low=0.25, high=2.0, steps=5).shares
    assert (shares[0], shares[10], shares[-1], len(shares)) == (0.25, 1.0, 2.0, 16)
    assert all(b / a == pytest.approx(2**0.2) for a, b in itertools.pairwise(shares))
    uneven = PathConfig(low=0.3, high=1.0, steps=2).shares
    assert (uneven[0], uneven[-1], len(uneven)) == (0.3, 1.0, 5)


# -- second derivatives ----------------------------------------------------------------------------


@pytest.mark.parametrize("objective", [Effect(), Melbo(2.0, 1.0), Melbo(3.0, 3.0)])
def test_hessian_products_are_those_of_autograd(objective: Any) -> None:
    matrix = normal(WIDTH, WIDTH)
    part: Any = ToySlice(
        lambda theta: (
            torch.sin(theta @ matrix.T)[:, None, None]
            * torch.tensor([[[1.0], [2.0]], [[0.5], [3.0]]], dtype=torch.float64)
        ),
        WIDTH,
        read=[[1, 1], [0, 1]],
        prompts_at_once=1,
    )
    theta, tangents = normal(3, WIDTH, seed=2), normal(3, WIDTH, seed=3)
    found = objective.hvp(part, theta, tangents)
    for i in range(3):
        dense = torch.autograd.functional.jacobian(
            lambda x: _slope(part, objective, x), theta[i], vectorize=False
        )
        torch.testing.assert_close(found[i], dense @ tangents[i], rtol=1e-6, atol=1e-8)


def _slope(part: Any, objective: Any, theta: Tensor) -> Tensor:
    """Return the gradient of an objective from its values alone, differentiable."""
    whole = part.values(theta[None]) * part.read[None, :, :, None]
    if isinstance(objective, Effect):
        value = part.delta(theta[None]).norm()
    else:
        prompts = (whole[0, j, part.read[j] > 0] for j in range(len(part.read)))
        powers = [some.norm(dim=-1).pow(objective.power).sum() for some in prompts]
        value = torch.stack(powers).pow(1 / objective.root).sum()
    return torch.autograd.grad(value, theta, create_graph=True)[0]


def test_in_a_model_the_hessian_is_the_derivative_of_the_gradient(tiny64: Any) -> None:
    batch = tiny64.encode(["one two", "three"])
    part = Slice(tiny64, batch, source=0, target=2)
    theta = 0.5 * part.unit * part.kind.draw(2, torch.Generator().manual_seed(0)).double()
    step = normal(2, part.width, seed=1)
    for objective in (Effect(), Melbo()):
        exact = objective.hvp(part, theta, step)
        h = 1e-3  # the model's norms compute in single precision
        ahead, behind = (objective.climb(part, theta + s * h * step)[1] for s in (1, -1))
        assert (exact - (ahead - behind) / (2 * h)).norm() < 1e-3 * exact.norm()


def _unit(rows: Tensor) -> Tensor:
    return rows / rows.norm(dim=1, keepdim=True)
