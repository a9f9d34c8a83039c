"""A control at equal effect: exact on a linear map; what levels off below it is left out."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from educe import methods
from educe.methods.equal_effect import NEAR, at_equal_effect, louder
from educe.perturbation.set import PerturbationSet
from toy_slice import ToySlice, linear, with_singular_values

WIDTH = 6
J = with_singular_values([9.0, 5.0, 3.0, 1.0, 0.5, 0.1])


def sets(part: Any, effects: list[float]) -> tuple[PerturbationSet, PerturbationSet]:
    """Return perturbations said to have some effects, and random ones with their own."""
    found = methods.search(part, "random", n=len(effects), radius=2.0, seed=0)
    control = methods.search(part, "random", n=5, radius=2.0, seed=1)
    return replace(found, scores={"effect": torch.tensor(effects)}), control


def test_each_random_one_is_scaled_to_the_median_effect_of_those_found() -> None:
    part = linear(J)
    found, control = sets(part, [30.0, 90.0, 700.0])
    made = at_equal_effect(part, control, found)
    assert torch.equal(made.directions, control.directions)
    sizes = (control.directions.double() @ J.T).norm(dim=1)  # per radius, as the map is linear
    assert made.radius.double() == pytest.approx(90 / sizes, rel=1e-5)
    assert made.scores["effect"].tolist() == pytest.approx([90.0] * 5, rel=1e-5)
    assert made.radius.unique().numel() == 5


def test_what_it_takes_is_found_where_the_map_bends() -> None:
    """Of a norm ``‖J x‖ (1 + ‖x‖)``, the radius solves a quadratic equation."""

    def move(theta: Tensor) -> Tensor:
        return theta @ J.T * (1 + theta.norm(dim=1, keepdim=True))

    part: Any = ToySlice(move, WIDTH)
    found, control = sets(part, [200.0])
    made = at_equal_effect(part, control, found)
    sizes = (control.directions.double() @ J.T).norm(dim=1)
    exact = (-1 + (1 + 4 * 200 / sizes).sqrt()) / 2
    assert len(made) == 5
    # The effect comes within a tenth, and it grows at least as the radius does.
    assert (made.radius.double() / exact).log().abs().max() <= NEAR
    assert made.scores["effect"].double() == pytest.approx(
        (sizes * made.radius * (1 + made.radius)), rel=1e-5
    )


def test_what_cannot_reach_the_effect_is_left_out() -> None:
    """An effect levels off at twice the direction's first coordinate."""

    def move(theta: Tensor) -> Tensor:
        size = theta.norm(dim=1, keepdim=True)
        return 20 * size.tanh() * theta / size * torch.eye(WIDTH, dtype=torch.float64)[0]

    part: Any = ToySlice(move, WIDTH)
    found, control = sets(part, [6.0])
    highest = 20 * control.directions[:, 0].abs()
    reach = (highest > 6 * 1.01).nonzero()[:, 0]
    assert 0 < len(reach) < 5
    assert ((highest - 6).abs() > 0.7).all()  # none is in doubt
    made = at_equal_effect(part, control, found)
    assert torch.equal(made.directions, control.directions[reach])
    assert (made.scores["effect"] / 6).log().abs().max() <= NEAR


@pytest.mark.parametrize(
    ("effects", "loud"),
    [([9.0, 11.0, 12.0], True), ([9.0, 9.9, 12.0], False), ([9.0, float("nan"), 12.0], False)],
)
def test_a_search_is_louder_when_its_median_effect_is_twice_that_of_the_control(
    effects: list[float], loud: bool
) -> None:
    found, control = sets(linear(J), effects)
    control = replace(control, scores={"effect": torch.tensor([1.0, 1.0, 5.0, 50.0, 60.0])})
    assert louder(found, control) is loud
    assert not louder(control, control)
