"""Fronts, against every pair of points, and budgets of side effect, against a closed form."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

import tiny
from educe.comparison.stats import pareto
from educe.errors import EffectError
from educe.forward.benign import Damage, Ordinary
from educe.model.language import LanguageModel
from educe.perturbation.kinds import Vectors
from studies.fronts.budget import at_kl, side_effect


def test_the_front_is_what_no_other_point_beats() -> None:
    draw = np.random.default_rng(0)
    effect, cost = draw.integers(0, 6, size=(2, 40))
    expected = [
        not any(
            (effect[j] >= effect[i] and cost[j] < cost[i])
            or (effect[j] > effect[i] and cost[j] <= cost[i])
            for j in range(40)
        )
        for i in range(40)
    ]
    assert pareto(effect, cost).tolist() == expected
    assert 0 < sum(expected) < 40
    assert pareto([1.0, 1.0], [2.0, 2.0]).tolist() == [True, True]


class Known:
    """Ordinary prompts that lose ``c R^p`` of each direction, and break beyond a radius."""

    def __init__(self, power: list[float], broken: float = math.inf) -> None:
        self.power, self.broken, self.calls = torch.tensor(power).double(), broken, 0

    def damage(self, theta: torch.Tensor, kind: Any) -> Damage:
        self.calls += 1
        size = theta.norm(dim=1).double()
        if bool((size > self.broken).any()):
            raise EffectError("it broke")
        power = self.power[theta.abs().argmax(1)]
        return Damage(size * 0, 0.1 * size**power)


@pytest.mark.parametrize("budget", [0.3, 2.0])
def test_each_direction_comes_to_the_budget_at_its_own_radius(budget: float) -> None:
    known = Known([2.0, 3.0, 4.0])
    start = torch.tensor([1.0, 0.5, 2.0])
    radius, kl = at_kl(
        known, Vectors(1, 3), torch.eye(3), budget, start=start, tolerance=1e-6, passes=8
    )  # type: ignore[arg-type]
    expected = (budget / 0.1) ** (1 / known.power)
    torch.testing.assert_close(radius, expected, rtol=1e-4, atol=0)
    torch.testing.assert_close(kl, torch.full((3,), budget).double(), rtol=1e-4, atol=0)


def test_where_the_model_breaks_down_it_comes_back() -> None:
    known = Known([2.0], broken=3.0)
    radius, kl = at_kl(known, Vectors(1, 1), torch.eye(1), 0.5, start=torch.tensor([8.0]), passes=6)  # type: ignore[arg-type]
    assert abs(float(kl) - 0.5) < 0.05
    assert float(radius) < 3
    many = side_effect(known, Vectors(1, 1), torch.ones(2, 1), torch.tensor([1.0, 9.0]))  # type: ignore[arg-type]
    assert many.tolist() == [pytest.approx(0.1), math.inf]


def test_on_a_model_the_side_effect_is_the_budget(tiny64: LanguageModel) -> None:
    ordinary = Ordinary(tiny64, tiny64.pad(tiny.ragged([6, 9])), before=1, tokens=5)
    kind = Vectors(1, 32)
    v = kind.draw(3, torch.Generator().manual_seed(0)).double()
    radius, kl = at_kl(ordinary, kind, v, 0.05, start=torch.ones(3), passes=12, tolerance=0.02)
    again = ordinary.damage(v * radius[:, None], kind).high
    torch.testing.assert_close(again, kl)
    assert float((kl / 0.05).log().abs().max()) < 0.02
