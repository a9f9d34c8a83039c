"""Roots, against functions whose radius has a closed form."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from educe.roots import crossing


def test_a_power_law_of_the_slope_told_takes_two_values() -> None:
    asked: list[list[int]] = []
    scale = torch.tensor([0.03, 0.5, 4.0]).double()

    def measure(items: Tensor, radii: Tensor) -> Tensor:
        asked.append(items.tolist())
        return scale[items] * radii**2

    found = crossing(measure, torch.ones(3), 2.0, slope=2.0, near=1e-9, rounds=9)
    torch.testing.assert_close(found.radius, (2 / scale).sqrt(), rtol=1e-8, atol=0)
    torch.testing.assert_close(found.value, torch.full((3,), 2.0).double())
    # The first is farther than a step goes.
    assert asked == [[0, 1, 2], [0, 1, 2], [0]]


@pytest.mark.parametrize("start", [0.02, 1.0, 50.0])
@pytest.mark.parametrize("power", [0.3, 1.0, 3.5, 12.0])
def test_other_slopes_are_found_out(start: float, power: float) -> None:
    def measure(items: Tensor, radii: Tensor) -> Tensor:
        return radii**power / (1 + radii ** (power / 2))  # bends at 1

    # x² = w (1 + x) with x = R^(power / 2)
    expected = (1 + math.sqrt(3)) ** (2 / power)
    bounds = (1e-3, 1e5)
    found = crossing(
        measure, torch.tensor([start]), 2.0, slope=2.0, near=1e-4, rounds=40, within=bounds
    )
    assert float(found.radius) == pytest.approx(expected, rel=2e-4 / power)


def test_beyond_a_breakdown_it_is_too_large() -> None:
    def measure(items: Tensor, radii: Tensor) -> Tensor:
        return torch.where(radii > 0.4, math.nan if int(items) else math.inf, radii.clamp(min=0.3))

    for wanted, near in ((0.35, 1e-3), (0.399, 1e-3)):
        found = crossing(
            lambda _, radii: measure(torch.tensor(1), radii),
            torch.ones(1),
            wanted,
            slope=1.0,
            near=near,
            rounds=30,
        )
        assert float(found.radius) == pytest.approx(wanted, rel=2e-3)


def test_what_is_not_reached_ends_at_the_bounds_with_the_nearest_value() -> None:
    asked: dict[int, list[float]] = {0: [], 1: []}

    def measure(items: Tensor, radii: Tensor) -> Tensor:
        for item, radius in zip(items.tolist(), radii.tolist(), strict=True):
            asked[item].append(radius)
        return torch.where(items == 0, 0.2 + 0 * radii, math.inf)

    found = crossing(measure, torch.ones(2), 1.0, slope=1.0, near=0.1, rounds=99, within=(0.1, 8.0))
    assert float(found.value[0]) == pytest.approx(0.2)
    assert math.isinf(float(found.value[1]))
    assert asked[0][-1] == max(asked[0]) == pytest.approx(8)
    assert len(asked[0]) < 6
    assert asked[1] == pytest.approx([1, 0.5, 0.25, 0.125, 0.1])  # no number to go by: half of it


def test_a_point_that_is_known_twice_is_one() -> None:
    known = [(torch.tensor([3.0]), torch.tensor([27.0]))] * 2
    found = crossing(
        lambda _, radii: radii**3, torch.ones(1), 8.0, slope=1.0, near=1e-6, rounds=9, known=known
    )
    assert float(found.radius) == pytest.approx(2)


def test_rounds_are_the_most_values_of_an_item() -> None:
    asked: list[int] = []

    def measure(items: Tensor, radii: Tensor) -> Tensor:
        asked.extend(items.tolist())
        return radii**7

    found = crossing(measure, torch.ones(2), 3.0, slope=2.0, near=1e-12, rounds=3)
    assert sorted(asked) == [0, 0, 0, 1, 1, 1]
    # The nearest of the three: 1, a step of √3 up, the secant with the slope told between them.
    assert float((found.value / 3).log().abs().max()) < math.log(3)


def test_points_that_are_known_are_used() -> None:
    asked: list[float] = []

    def measure(items: Tensor, radii: Tensor) -> Tensor:
        asked.extend(radii.tolist())
        return radii**2

    def found(known: list[tuple[float, float]]) -> float:
        pairs = [(torch.tensor([r]), torch.tensor([value])) for r, value in known]
        start = torch.ones(1)
        return float(
            crossing(measure, start, 3.0, slope=2.0, near=0.05, rounds=9, known=pairs).radius
        )

    assert found([(0.5, 0.25), (2.0, 4.0)]) == pytest.approx(3**0.5, rel=0.03)
    assert len(asked) == 1  # a straight line in log-log
    assert found([(5.0, 3.03)]) == pytest.approx(5.0)
    assert len(asked) == 1


def test_of_several_roots_the_one_at_the_smallest_known_is_taken() -> None:
    def measure(items: Tensor, radii: Tensor) -> Tensor:
        return 1.0 + (radii - 1) * (radii - 2) * (radii - 3)

    known = [
        (torch.tensor([r]), measure(torch.tensor([0]), torch.tensor([r])))
        for r in (0.7, 1.5, 2.5, 3.5)
    ]
    found = crossing(measure, torch.ones(1), 1.0, slope=2.0, near=0.05, rounds=12, known=known)
    assert float(found.radius) == pytest.approx(1, rel=0.1)
