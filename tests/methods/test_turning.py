"""The turning of the effect as a term: its gradient, what it adds, and no weight is no term."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from educe.forward.slice import Slice
from educe.methods import dct, melbo, search
from educe.methods.turning import turned
from educe.model.language import LanguageModel
from toy_slice import ToySlice, normal

WIDTH = 6


def bent() -> Any:
    first, second = normal(WIDTH, WIDTH), normal(WIDTH, WIDTH, seed=1)
    return ToySlice(lambda t: t @ first.T + 0.3 * (t @ second.T) ** 2, WIDTH)


def by_hand(part: Any, theta: Tensor) -> Tensor:
    """Return ``‖du / d log R‖²`` from the effect alone, differentiable."""

    def direction(log: Tensor) -> Tensor:
        effect = part.delta(log.exp() * theta)
        return effect / effect.norm()

    return torch.func.jacfwd(direction)(torch.zeros((), dtype=theta.dtype)).square().sum()


def test_value_and_gradient_are_those_of_the_turning() -> None:
    part, theta = bent(), normal(3, WIDTH, seed=2)
    value, gradient = turned(part, theta)
    for i in range(3):
        slope, own = torch.func.grad_and_value(lambda t: by_hand(part, t))(theta[i])
        torch.testing.assert_close(value[i], own)
        torch.testing.assert_close(gradient[i], slope)
    assert value.min() > 1e-3


def test_an_effect_that_only_grows_does_not_turn() -> None:
    matrix = normal(WIDTH, WIDTH)
    part: Any = ToySlice(lambda t: t.norm(dim=1, keepdim=True) * (t @ matrix.T), WIDTH)
    value, gradient = turned(part, normal(2, WIDTH, seed=3))
    assert value.abs().max() < 1e-20
    assert gradient.abs().max() < 1e-9


def test_in_a_model_the_gradient_is_the_slope_of_the_value(tiny64: LanguageModel) -> None:
    part = Slice(tiny64, tiny64.encode(["one two", "three"]), source=0, target=2)
    theta = 0.5 * part.unit * part.kind.draw(2, torch.Generator().manual_seed(0)).double()
    step, h = normal(2, part.width, seed=1), 1e-3  # the model's norms are in single precision
    value, gradient = turned(part, theta)
    ahead, behind = (turned(part, theta + s * h * step)[0] for s in (1, -1))
    torch.testing.assert_close(
        (gradient * step).sum(1), (ahead - behind) / (2 * h), rtol=1e-2, atol=1e-4
    )
    assert (value > 1e-3).all()


@pytest.mark.parametrize("method", ["melbo", "dct"])
def test_no_weight_is_the_method_bit_for_bit(method: str, monkeypatch: Any) -> None:
    plain = search(bent(), method, n=3, radius=0.7, seed=1)
    monkeypatch.setattr(melbo, "turned", None)  # not even asked for
    monkeypatch.setattr(dct, "turned", None)
    config = {"melbo": melbo.MelboConfig, "dct": dct.DctConfig}[method](turning=0.0)
    again = search(bent(), method, n=3, radius=0.7, seed=1, config=config)
    assert torch.equal(plain.directions, again.directions)


@pytest.mark.parametrize("method", ["melbo", "dct"])
@pytest.mark.parametrize("weight", [0.3, -0.3])
def test_the_weight_adds_what_it_says(method: str, weight: float) -> None:
    """The gradient that a step takes, against ``g ∇(log g + hold V)`` by autograd."""
    part, radius = bent(), 0.7
    draw = torch.Generator().manual_seed(0)
    taken: list[Tensor] = []
    if method == "dct":
        config = dct.DctConfig(turning=weight)
        state = dct.start(part, 3, radius, config, draw)
        v = dct.orthonormal(state["directions"])
        new, _ = dct.step(part, radius, config, state)
        for i in range(3):
            u = state["outputs"][i]
            theta = radius * v[i]
            level = float(u @ part.delta(theta))
            slope = torch.func.grad(
                lambda t, u=u, level=level: u @ part.delta(t) + weight * level * by_hand(part, t)
            )(theta)
            taken.append(slope / slope.norm())
        torch.testing.assert_close(new["directions"], torch.stack(taken))
        return
    settings = melbo.MelboConfig(turning=weight)
    rest = melbo.start(part, 3, radius, settings, draw)
    v = rest["directions"]
    new, _ = melbo.step(part, radius, settings, rest)
    for i in range(3):
        slope = torch.func.grad(
            lambda t: part.delta(t).square().sum().log() + weight * by_hand(part, t)
        )(radius * v[i])
        slope = slope * part.delta(radius * v[i]).square().sum()
        taken.append((1 - melbo.BETAS[0]) * (slope - (slope @ v[i]) * v[i]))
    torch.testing.assert_close(new["first"], torch.stack(taken))
    turning, _ = turned(part, radius * v)
    plain = part.effect(radius * v).square().sum(1)
    torch.testing.assert_close(new["curve"][0], plain * (weight * turning).exp())


def test_a_weight_moves_the_turning_its_way() -> None:
    found = {}
    for weight in (-1.0, 0.0, 1.0):
        config = melbo.MelboConfig(turning=weight, steps=40, patience=40, step=0.1)
        made = search(bent(), "melbo", n=6, radius=0.7, seed=0, config=config)
        found[weight] = float(turned(bent(), made.theta.double())[0].mean())
    assert found[-1.0] < found[0.0] < found[1.0]
