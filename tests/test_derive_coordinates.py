"""The variance identity on analytic paths, and the response against closed forms."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import tiny
from educe.derive import bases
from educe.derive.continuation import tangent
from educe.derive.coordinates import CONSTANT, rates
from educe.derive.objective import Effect, Toward
from educe.derive.response import response, with_neurons
from educe.forward.slice import Slice
from educe.model.language import LanguageModel
from studies.predict.pull import pull
from toy_slice import ToySlice, normal

WIDTH = 7


def path(radius: Tensor) -> Tensor:
    """Return ``θ(R)`` of a path that turns in every coordinate; its length is ``R``."""
    powers = torch.tensor([0.0, 0.5, 1.0, -1.0, 2.0, 0.3, 1.5], dtype=torch.float64)
    raw = torch.stack([radius**p * (i + 1) for i, p in enumerate(powers)]) / 3
    return radius * raw / raw.norm()


@pytest.mark.parametrize("radius", [0.3, 1.0, 2.7])
@pytest.mark.parametrize("turned", [False, True])
def test_weighted_mean_and_variance_are_one_and_the_squared_turning_rate(
    radius: float, turned: bool
) -> None:
    at = torch.tensor(radius, dtype=torch.float64)
    theta = path(at)
    slope = torch.func.jacfwd(path)(at)  # dθ/dR, known to autograd alone
    v = theta / at
    turn = at * (slope / at - theta / at**2)  # R dv/dR
    basis = bases.rotation(WIDTH) if turned else bases.residual(WIDTH)
    found = rates(basis, v[None], turn[None])
    in_basis, moved = basis.along(theta[None]), basis.along(slope[None])
    torch.testing.assert_close(found.rate, at * moved / in_basis)  # d log|θ_j| / d log R
    torch.testing.assert_close(found.weight, in_basis.square() / at**2)
    told = found.numbers()
    torch.testing.assert_close(told["mean"], torch.ones(1, dtype=torch.float64))
    squared = at**2 * torch.func.jacfwd(lambda r: path(r) / r)(at).square().sum()
    torch.testing.assert_close(told["variance"], squared[None])
    assert squared > 0.05
    torch.testing.assert_close(told["plain"], found.rate.var(1, correction=0))


def test_rescaling_alone_leaves_every_rate_at_one() -> None:
    v = normal(2, WIDTH)
    v = v / v.norm(dim=1, keepdim=True)
    found = rates(bases.rotation(WIDTH), v, torch.zeros_like(v))
    torch.testing.assert_close(found.rate, torch.ones_like(v))
    assert found.numbers()["variance"].abs().max() < 1e-20
    assert found.numbers()["constant"].abs().max() == 0


def test_concentration_is_known_at_its_ends() -> None:
    """One pair of coordinates turns, or all do alike."""
    v = torch.full((1, 8), 8**-0.5, dtype=torch.float64)
    one = torch.zeros_like(v)
    one[0, :2] = torch.tensor([0.1, -0.1])
    found = rates(bases.residual(8), v, one).numbers()
    assert float(found["participation"]) == pytest.approx(2 / 8)
    assert float(found["top"]) == pytest.approx(1)
    signs = torch.tensor([1.0, -1.0] * 4, dtype=torch.float64)[None]
    even = rates(bases.residual(8), v, 0.1 * signs).numbers()
    assert float(even["participation"]) == pytest.approx(1)
    lower = rates(bases.residual(8), v, -signs * 8**-0.5).numbers()  # rates of 0 and 2
    assert float(lower["constant"]) == pytest.approx(0.5)
    assert CONSTANT == 0.5


def test_groups_have_the_rate_of_their_norm(tiny_lm: LanguageModel) -> None:
    basis = bases.heads(tiny_lm, 1)
    v, turn = normal(2, tiny_lm.width), normal(2, tiny_lm.width, seed=1)
    v = v / v.norm(dim=1, keepdim=True)
    turn = turn - (turn * v).sum(1, keepdim=True) * v

    def logs(step: Tensor) -> Tensor:
        return (basis.sizes(torch.exp(step) * (v + step * turn))).log()

    zero = torch.zeros((), dtype=torch.float64)
    found = rates(basis, v, turn)
    torch.testing.assert_close(found.rate, torch.func.jacfwd(logs)(zero))
    torch.testing.assert_close(found.weight.sum(1), torch.ones(2, dtype=torch.float64))


# -- the target ------------------------------------------------------------------------------------


def test_the_exponent_of_a_power_is_its_power() -> None:
    matrix = normal(WIDTH, WIDTH)
    part: Any = ToySlice(lambda t: t.norm(dim=1, keepdim=True).pow(1.7) * (t @ matrix.T), WIDTH)
    found = response(part, normal(3, WIDTH, seed=2))
    torch.testing.assert_close(found.exponent, torch.full((3,), 2.7, dtype=torch.float64))
    assert found.turning.max() < 1e-7


def test_the_variance_of_the_response_is_the_turning_of_the_effect() -> None:
    first, second = normal(WIDTH, WIDTH), normal(WIDTH, WIDTH, seed=1)
    part: Any = ToySlice(lambda t: t @ first.T + (t @ second.T) ** 3, WIDTH)
    theta = normal(2, WIDTH, seed=2)

    def direction(log: Tensor) -> Tensor:
        effect = part.delta(torch.exp(log) * theta)
        return effect / effect.norm(dim=1, keepdim=True)

    zero = torch.zeros((), dtype=torch.float64)
    found = response(part, theta)
    turned = torch.func.jacfwd(direction)(zero)
    torch.testing.assert_close(found.turning, turned.norm(dim=1))
    torch.testing.assert_close(found.rates.numbers()["variance"], found.turning.square())
    torch.testing.assert_close(found.rates.numbers()["mean"], found.exponent)
    assert found.turning.min() > 0.1


def test_the_pull_is_the_first_term_of_the_exact_derivative() -> None:
    """For a stationary point, ``(1 - P H P / λ) w = pull``."""
    curvature = torch.diag(torch.linspace(-0.2, 0.2, WIDTH, dtype=torch.float64))
    slope = normal(WIDTH)
    level = 3.0  # above all curvature: a maximum on its sphere
    theta = torch.linalg.solve(level * torch.eye(WIDTH, dtype=torch.float64) - curvature, slope)

    def move(t: Tensor) -> Tensor:
        value = t @ slope + 0.5 * ((t @ curvature) * t).sum(1)
        return torch.cat([value[:, None], torch.zeros_like(t[:, 1:])], 1)

    part: Any = ToySlice(move, WIDTH)
    first = torch.zeros(1, WIDTH, dtype=torch.float64)
    first[0, 0] = 1
    objective = Toward(first)
    found = pull(part, objective, theta[None])
    radius = theta.norm()
    v = theta / radius
    exact = tangent(part, objective, v[None], radius[None], tolerance=1e-12).turn[0]
    across = torch.eye(WIDTH, dtype=torch.float64) - torch.outer(v, v)
    torch.testing.assert_close(found.turn[0], exact - across @ curvature @ exact / level)
    assert found.sine.max() < 1e-12


def test_the_pull_is_the_derivative_of_the_normalised_gradient() -> None:
    matrix = normal(WIDTH, WIDTH)
    part: Any = ToySlice(lambda t: torch.sin(t @ matrix.T), WIDTH)
    theta = normal(1, WIDTH, seed=3)

    def ahead(log: Tensor) -> Tensor:
        gradient = torch.func.grad(lambda t: part.delta(t[None]).norm())(log.exp() * theta[0])
        return gradient / gradient.norm()

    found = pull(part, Effect(), theta)
    zero = torch.zeros((), dtype=torch.float64)
    torch.testing.assert_close(found.ahead[0], ahead(zero))
    torch.testing.assert_close(found.turn[0], torch.func.jacfwd(ahead)(zero))


@pytest.mark.parametrize("positions", ["all", "last:1"])
@pytest.mark.parametrize("together", [4096, 25])
@pytest.mark.parametrize(
    ("architecture", "down", "tolerance"),
    [("gpt2", "mlp.c_proj", 1e-9), ("llama", "mlp.down_proj", 1e-4)],  # Llama's norms are single
)
def test_neurons_are_what_the_projection_takes(
    lm_of: Any, architecture: str, down: str, tolerance: float, together: int, positions: str
) -> None:
    """Against sequences run one at a time, hooks of the test's own and reverse mode."""
    prompts = ["one two three", "four"]
    lm = lm_of(architecture, torch.float64)
    part = Slice(
        lm,
        lm.encode(prompts),
        source=0,
        target=2,
        positions=positions,
        tokens_per_chunk=together,
    )
    theta = 0.5 * part.unit * part.kind.draw(3, torch.Generator().manual_seed(0)).double()
    radius = theta.norm(dim=1)
    projection = lm.hf.get_submodule(tiny.path(lm.hf))[2].get_submodule(down)

    def by_hand(vector: Tensor) -> Tensor:
        means = []
        for prompt in prompts:
            ids = lm.encode([prompt]).ids[0].tolist()
            seen: list[Tensor] = []
            handle = projection.register_forward_pre_hook(
                lambda m, a, into=seen: into.append(a[0][0])
            )
            tiny.run(lm.hf, ids, source=0, vector=vector, at=tiny.chosen(positions, len(ids)))
            handle.remove()
            means.append(seen[0][-3:].mean(0))
        return torch.stack(means).mean(0)

    here, inside = with_neurons(part, theta)
    plain = response(part, theta)
    torch.testing.assert_close(here.effect, plain.effect)
    torch.testing.assert_close(here.moved, plain.moved)
    still = by_hand(torch.zeros(part.width))
    for i in range(3):
        effect = by_hand(theta[i]) - still
        # How the neurons change with the radius, the direction held.
        slope = torch.autograd.functional.jacobian(
            lambda r, i=i: by_hand(r * theta[i] / radius[i]), radius[i]
        )
        own = [(inside.effect, effect), (inside.moved, radius[i] * slope)]
        own += [(inside.slope_variance, (slope - slope.mean()).square().mean())]
        for found, expected in own:
            torch.testing.assert_close(
                found[i], expected, rtol=tolerance, atol=tolerance * float(expected.abs().max())
            )


def test_the_variance_of_the_slope_is_zero_only_where_all_grow_alike() -> None:
    """Coordinates ``R^p``: their slopes are ``p R^(p - 1)``."""
    powers = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)
    radius = torch.tensor([0.7, 2.0], dtype=torch.float64)
    theta = torch.nn.functional.pad(radius[:, None], (0, 2))
    part: Any = ToySlice(lambda t: t.norm(dim=1, keepdim=True) ** powers, 3)
    slopes = powers * radius[:, None] ** (powers - 1)
    expected = (slopes - slopes.mean(1, keepdim=True)).square().mean(1)
    torch.testing.assert_close(response(part, theta).slope_variance, expected)
    alike: Any = ToySlice(lambda t: t.norm(dim=1, keepdim=True) ** 2 + powers, 3)
    assert response(alike, theta).slope_variance.max() < 1e-25
