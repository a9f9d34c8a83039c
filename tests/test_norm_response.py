"""Response curves and the choice of a radius, where the effect is a known function of it."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pandas as pd
import pytest
import torch
from torch import Tensor

from educe.comparison.norm import LEAVING, SATURATED, marks, steepest
from educe.derive.norms import linear, signs
from educe.errors import EffectError
from educe.methods.radius import calibrate, growth
from educe.perturbation.kinds import TokenNoise, Vectors
from toy_slice import ToySlice, normal

RADII = torch.tensor([0.01, 0.1, 0.7, 1.0, 1.9, 5.0], dtype=torch.float64)


def radial(size: Callable[[Tensor], Tensor], width: int = 4) -> Any:
    """A toy whose effect has norm ``size(‖θ‖)``, along ``θ``."""

    def move(theta: Tensor) -> Tensor:
        r = theta.norm(dim=1, keepdim=True)
        return size(r) * theta / r

    return ToySlice(move, width)


def unit(n: int = 2, width: int = 4) -> Tensor:
    return torch.nn.functional.normalize(normal(n, width), dim=1)


# A power law; a plateau, left with exponent 2 and more; and what saturates. With their exponents.
KNOWN: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]] = {
    "power": (lambda r: 3 * r**2.5, lambda r: 2.5 + 0 * r),
    "plateau": (lambda r: 0.1 * r + r**4, lambda r: (0.1 * r + 4 * r**4) / (0.1 * r + r**4)),
    "saturating": (lambda r: r / (1 + r), lambda r: 1 / (1 + r)),
    "sigmoid": (lambda r: r**3 / (1 + r**3), lambda r: 3 / (1 + r**3)),
}


@pytest.mark.parametrize("name", KNOWN)
@pytest.mark.parametrize("sign", [1, -1])
def test_exponents_are_those_of_the_function(name: str, sign: int) -> None:
    size, exponent = KNOWN[name]
    found = growth(radial(size), unit(), sign * RADII.expand(2, -1))
    torch.testing.assert_close(found.effect, size(RADII).expand(2, -1), rtol=1e-12, atol=0)
    torch.testing.assert_close(found.exponent, exponent(RADII).expand(2, -1), rtol=1e-10, atol=0)


def test_the_other_sign_is_another_curve() -> None:
    """A toy that is quadratic on one side and linear on the other."""
    part = ToySlice(lambda theta: torch.where(theta > 0, theta**2, theta), 1)
    v = torch.ones(1, 1, dtype=torch.float64)
    found = growth(part, v, torch.tensor([[0.5, -0.5]]))
    assert found.exponent.tolist() == [[2.0, 1.0]]
    assert found.effect.tolist() == [[0.25, 0.5]]


class Breaking(ToySlice):
    """Breaks down for a perturbation that is long and points to one side."""

    def jvp(self, theta: Tensor, tangent: Tensor) -> tuple[Tensor, Tensor]:
        if (theta[:, 0] > 2).any():
            raise EffectError("infinite")
        return super().jvp(theta, tangent)


def test_only_what_breaks_down_is_left_out() -> None:
    v = torch.eye(4, dtype=torch.float64)[:2]
    found = growth(Breaking(lambda theta: theta, 4), v, torch.tensor([[1.0, 3.0], [1.0, 3.0]]))
    assert found.effect[1].tolist() == [1.0, 3.0]
    assert float(found.effect[0, 0]) == 1.0
    assert math.isnan(float(found.effect[0, 1]))
    assert math.isnan(float(found.exponent[0, 1]))


def fine(shares: list[float], exponents: list[float]) -> pd.DataFrame:
    return pd.DataFrame({"share": shares, "exponent": exponents})


def texts(novelty: list[float], coherence: list[float]) -> pd.DataFrame:
    shares = [-0.25, -0.5, -1.0, -2.0][: len(novelty)]  # the other sign, the smallest first
    return pd.DataFrame({"share": shares, "novelty": novelty, "coherence": coherence})


def test_marks_are_where_the_definitions_put_them() -> None:
    grid = [2 ** (k / 4) for k in range(-20, 21)]
    exponent = KNOWN["plateau"][1]
    es = exponent(torch.tensor(grid, dtype=torch.float64)).tolist()
    found = marks(fine(grid, es), texts([0.0, 0.34, 0.36, 0.9], [0.9, 0.8, 0.16, 0.1]))
    edge = ((3 / (4 - LEAVING) - 1) / 10) ** (1 / 3)  # of 4 - 3 / (1 + 10 R³) = 1.25
    assert found.plateau == min(r for r in grid if r >= edge)
    assert found.saturation is None
    assert (found.onset, found.nonsense) == (1.0, 2.0)
    es = KNOWN["sigmoid"][1](torch.tensor(grid, dtype=torch.float64)).tolist()
    found = marks(fine(grid, es), texts([0.0] * 4, [1.0] * 4))
    assert found.plateau == grid[0]
    assert found.saturation == min(r for r in grid if r**3 >= 3 / SATURATED - 1)
    assert (found.onset, found.nonsense) == (None, None)


def test_saturation_is_past_the_maximum() -> None:
    """An exponent that is small before it is large has not saturated there."""
    found = marks(fine([1, 2, 3, 4], [0.1, 2.0, math.nan, 0.4]), texts([0.0], [1.0]))
    assert (found.plateau, found.saturation) == (2, 4)


def test_the_steepest_is_where_the_exponent_is_largest() -> None:
    """Of ``R + 30 R³ / (1 + R⁴)`` on a grid, by the definition."""
    grid = [2 ** (k / 6) for k in range(-18, 12)]
    part = radial(lambda r: r + 30 * r**3 / (1 + r**4))
    found = growth(part, unit(1), grid)
    r = torch.tensor(grid, dtype=torch.float64)
    slope = 1 + 30 * (3 * r**2 * (1 + r**4) - r**3 * 4 * r**3) / (1 + r**4) ** 2
    expected = r * slope / (r + 30 * r**3 / (1 + r**4))
    assert steepest(fine(grid, found.exponent[0].tolist())) == grid[int(expected.argmax())]
    assert 0 < int(expected.argmax()) < len(grid) - 1
    assert steepest(fine([1.0], [math.nan])) is None


def test_noise_has_one_sign() -> None:
    assert signs(Vectors(1, 4)) == (1, -1)
    assert signs(TokenNoise(1, 4, (1,))) == (1,)


# -- the choice ------------------------------------------------------------------------------------


@pytest.mark.parametrize("sign", [1, -1])
def test_linearisation_is_the_calibration_of_a_set_of_one(sign: int) -> None:
    """And there is a closed form: of ``θ (1 + c ‖θ‖²)`` the relative error is ``c R²``."""
    part = ToySlice(lambda theta: theta * (1 + 0.08 * theta.square().sum(1, keepdim=True)), 4)
    v = unit(1)
    found = linear(part, v[0], 7.0 * sign)
    assert found == calibrate(part, along=sign * v).radius
    assert found == pytest.approx((0.5 / 0.08) ** 0.5, rel=0.02)  # as near as the root is found


def test_a_set_of_one_is_calibrated_for_itself_and_not_for_random_ones() -> None:
    """Along the first axis the toy bends, along the others it does not."""
    part = ToySlice(lambda theta: theta + torch.eye(4)[0].double() * theta[:, :1] ** 3, 4)
    v = torch.eye(4, dtype=torch.float64)
    assert linear(part, v[0], 1.0) == pytest.approx(0.5**0.5, rel=0.02)
    assert math.isinf(linear(part, v[1], 1.0))


def test_one_that_breaks_down_before_it_bends_has_no_linear_radius() -> None:
    def move(theta: Tensor) -> Tensor:
        return torch.where(theta > 0.1, math.inf, theta)

    v = torch.ones(2, dtype=torch.float64) / 2**0.5
    assert math.isinf(linear(ToySlice(move, 2), v, 1.0))
    assert math.isinf(linear(ToySlice(move, 1), torch.ones(1).double(), -1.0))  # one number
