"""Calibration of the radius, on maps whose linearisation error has a closed form."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import tiny
from educe.errors import EffectError, RadiusError
from educe.forward.slice import Slice
from educe.methods.radius import calibrate, parse, read, response
from educe.model.language import LanguageModel
from educe.perturbation.kinds import Vectors
from toy_slice import ToySlice, normal

WIDTH = 8
J = normal(WIDTH, WIDTH, seed=1)


def bent(b: float, *, median_norm: float = 4.0) -> Any:
    """``Δ(x) = J x (1 + b ‖x‖)``: its linearisation error at ``R`` is ``b R`` in any direction."""

    def move(theta: Tensor) -> Tensor:
        return theta @ J.T * (1 + b * theta.norm(dim=1, keepdim=True))

    return ToySlice(move, WIDTH, median_norm=median_norm)


# -- calibrate -----------------------------------------------------------------------------------


@pytest.mark.parametrize("b", [0.03, 0.4, 7.0, 20.0])
@pytest.mark.parametrize("error", [0.5, 0.1])
def test_the_radius_has_the_error_asked_for(b: float, error: float) -> None:
    found = calibrate(bent(b), error=error)
    # The search ends within 0.01 of the logarithm.
    assert found.radius == pytest.approx(error / b, rel=0.01)
    assert found.dose == pytest.approx(found.radius / 4.0)
    assert found.error == error


@pytest.mark.parametrize("dose", [0.0011, 0.9, 1.1, 7.9, 8.1, 9.9])
def test_every_dose_from_a_thousandth_to_ten_is_found(dose: float) -> None:
    assert calibrate(bent(0.5 / (4.0 * dose))).dose == pytest.approx(dose, rel=0.01)


@pytest.mark.parametrize("seed", [0, 3])
def test_the_error_is_the_root_of_the_mean_square_over_directions(seed: int) -> None:
    # Δ(x) = J x + b ‖x‖² C x is off by b R² ‖C v‖ / ‖J v‖ in the direction v.
    b, c = 0.05, torch.diag(torch.tensor([9.0, 0, 0, 0, 0, 0, 0, 0], dtype=torch.float64))

    def move(theta: Tensor) -> Tensor:
        return theta @ J.T + b * theta.square().sum(1, keepdim=True) * (theta @ c.T)

    found = calibrate(ToySlice(move, WIDTH), seed=seed, directions=20)  # type: ignore[arg-type]
    v = Vectors(0, WIDTH).draw(20, torch.Generator().manual_seed(seed)).double().numpy()
    shares = [
        np.linalg.norm(c.numpy() @ row) ** 2 / np.linalg.norm(J.numpy() @ row) ** 2 for row in v
    ]
    expected = math.sqrt(0.5 / (b * math.sqrt(sum(shares) / 20)))
    assert found.radius == pytest.approx(expected, rel=0.01)


def test_directions_come_from_the_seed() -> None:
    part = ToySlice(lambda theta: (theta @ J.T).tanh(), WIDTH)
    first, again, other = (calibrate(part, seed=seed) for seed in (1, 1, 2))  # type: ignore[arg-type]
    assert first == again
    assert first.radius != other.radius
    assert first.radius == pytest.approx(other.radius, rel=0.2)


def test_curve_is_what_the_search_looked_at() -> None:
    found = calibrate(bent(0.4))
    assert len(found.curve) > 1
    assert list(found.curve) == sorted(found.curve)
    for size, error in found.curve:
        assert error == pytest.approx(0.4 * size)
    assert min(abs(size - found.radius) for size, _ in found.curve) < 0.01 * found.radius


@pytest.mark.parametrize("b", [0.0, 0.5 / 41])
def test_a_map_that_stays_linear_has_no_radius(b: float) -> None:
    with pytest.raises(RadiusError, match="slice 1 to 5 stays linear up to 10 times") as error:
        calibrate(bent(b))
    assert "give --radius" in str(error.value)


@pytest.mark.parametrize("b", [0.5 / 0.0039, 1e6])
def test_a_map_that_is_nowhere_linear_has_no_radius(b: float) -> None:
    with pytest.raises(RadiusError, match=r"slice 1 to 5 is not linear even at 0\.001") as error:
        calibrate(bent(b))
    assert "give --radius" in str(error.value)


@pytest.mark.parametrize("broken", [1.5, 3.9])
def test_a_model_that_breaks_down_is_calibrated_below_that(broken: float) -> None:
    """The first radius that is looked at is 4; ``Δ`` is infinite from a radius on."""

    def move(theta: Tensor) -> Tensor:
        return torch.where(theta.norm(dim=1, keepdim=True) > broken, math.inf, theta @ J.T) * (
            1 + 0.4 * theta.norm(dim=1, keepdim=True)
        )

    part: Any = ToySlice(move, WIDTH)
    assert calibrate(part).radius == pytest.approx(0.5 / 0.4, rel=0.01)
    with pytest.raises(EffectError):
        calibrate(part, error=2.0)  # at a radius of 5


@torch.no_grad()
def test_a_model_has_the_error_at_its_radius(tiny64: LanguageModel) -> None:
    rows = tiny.ragged([6, 9])
    part = Slice(tiny64, tiny64.pad(rows), source=1, target=3)
    found = calibrate(part, directions=6)

    def effect(theta: Tensor) -> Tensor:
        total = torch.zeros_like(theta)
        for ids in rows:
            at = tiny.chosen("all", len(ids))
            rest = tiny.run(tiny64.hf, ids)[1][3]
            for line, vector in enumerate(theta):
                moved = tiny.run(tiny64.hf, ids, source=1, vector=vector, at=at)[1][3]
                total[line] += (moved - rest)[-3:].mean(0) / len(rows)
        return total

    v = Vectors(0, 32).draw(6, torch.Generator().manual_seed(0)).double()
    tiny_step = 1e-5 * part.median_norm
    moves = (effect(tiny_step * v) - effect(-tiny_step * v)) / (2 * tiny_step)
    off = (effect(found.radius * v) - found.radius * moves).norm(dim=1)
    error = (off / (found.radius * moves.norm(dim=1))).square().mean().sqrt()
    assert float(error) == pytest.approx(0.5, rel=0.03)
    assert found.dose == pytest.approx(found.radius / part.median_norm)


# -- the interval over directions ----------------------------------------------------------------

UNEVEN = torch.tensor([3.0, 2, 1, 1, 0.5, 0, 0, 0], dtype=torch.float64)


def uneven() -> Any:
    """``Δ(x) = x + ‖x‖² C x``: off by ``R² ‖C v‖`` in the direction ``v``, ``C`` diagonal."""
    return ToySlice(
        lambda theta: theta + theta.square().sum(1, keepdim=True) * (theta * UNEVEN), WIDTH
    )


@pytest.mark.parametrize(("directions", "quantile"), [(30, 2.045230), (4, 3.182446), (2, 12.7062)])
def test_the_interval_is_that_of_the_root_of_a_mean(directions: int, quantile: float) -> None:
    found = calibrate(uneven(), seed=5, directions=directions)
    v = Vectors(0, WIDTH).draw(directions, torch.Generator().manual_seed(5)).double().numpy()
    squares = ((v * UNEVEN.numpy()) ** 2).sum(1)  # e² is R⁴ times that, and de²/d log R four e²
    spread = squares.std(ddof=1) / math.sqrt(directions) / (4 * squares.mean())
    expected = [found.radius * math.exp(sign * quantile * spread) for sign in (-1, 1)]
    assert found.interval == pytest.approx(expected, rel=1e-5)


def test_the_interval_holds_the_radius_over_all_directions() -> None:
    # ‖C v‖² is tr C² / d in the mean over the sphere.
    true = (0.25 / float(UNEVEN.square().mean())) ** 0.25
    found = [calibrate(uneven(), seed=seed).interval for seed in range(100)]
    held = sum(low <= true <= high for low, high in filter(None, found))
    assert 88 <= held <= 99


def test_where_all_directions_agree_the_interval_is_the_radius() -> None:
    found = calibrate(bent(0.4))
    assert found.interval == pytest.approx((found.radius, found.radius))


def test_nothing_is_said_of_a_draw_that_was_none() -> None:
    along = Vectors(0, WIDTH).draw(3, torch.Generator().manual_seed(0)).double()
    assert calibrate(uneven(), along=along).interval is None
    assert calibrate(uneven(), directions=1).interval is None


# -- parse ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("8.5", [8.5]),
        (" 8.5 , .25,3.", [8.5, 0.25, 3.0]),
        ("1e2,1e-3", [100.0, 0.001]),
    ],
)
def test_absolute_radii_need_no_calibration(text: str, expected: list[float]) -> None:
    assert parse(text, None) == (expected, None)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("0.3x", [0.3 * 1.25]),
        ("1,0.5x", [1.0, 0.5 * 1.25]),
        ("2x, 2", [2.5, 2.0]),
        ("auto", [0.3 * 1.25, 0.5 * 1.25, 0.75 * 1.25]),
    ],
)
def test_shares_are_of_the_calibrated_radius(text: str, expected: list[float]) -> None:
    part = bent(0.4)
    radii, found = parse(text, part, seed=3)
    assert radii == pytest.approx(expected, rel=0.01)
    assert found == calibrate(part, seed=3)


def test_doses_are_of_the_activations_norm() -> None:
    assert parse("0.6d, 2", ToySlice(lambda theta: theta, WIDTH, median_norm=50.0)) == (
        [30, 2],
        None,
    )


@pytest.mark.parametrize(
    "text",
    [
        "",
        "x",
        "big",
        "-1",
        "8,5x,",
        "1 2",
        "0.3 x",
        "1xx",
        "auto,1",
        "nan",
        "inf",
        "1e",
        ".",
        "d",
        "1dx",
        "٣",
    ],
)
def test_what_is_no_radius_is_an_error_that_says_what_is(text: str) -> None:
    with pytest.raises(RadiusError, match=r"use auto, a number such as 8\.5, 0\.3x, or 0\.6d"):
        parse(text, None)  # type: ignore[arg-type]


@pytest.mark.parametrize("text", ["1e999", "1,1e999x"])
def test_a_radius_is_finite(text: str) -> None:
    with pytest.raises(RadiusError, match="it must be finite"):
        read(text)


@pytest.mark.parametrize("text", ["0", "0x", "1,0.0", "1e-999"])
def test_a_radius_of_zero_is_an_error(text: str) -> None:
    with pytest.raises(RadiusError, match="it must be above zero"):
        parse(text, None)  # type: ignore[arg-type]


# -- response ------------------------------------------------------------------------------------


def test_response_is_the_size_of_the_effect_at_each_radius() -> None:
    v = torch.nn.functional.normalize(normal(3, WIDTH, seed=4), dim=1)
    radii = [0.1, 1.0, 5.0]
    expected = [[float((J @ row).norm()) * r * (1 + 0.4 * r) for r in radii] for row in v]
    torch.testing.assert_close(response(bent(0.4), v, radii), torch.tensor(expected).double())


def test_response_is_nan_where_the_model_breaks_down_and_nowhere_else() -> None:
    # Along the first axis it breaks above 2, along the second nowhere.
    def move(theta: Tensor) -> Tensor:
        return torch.where(theta[:, :1] > 2, math.inf, theta)

    part = ToySlice(move, WIDTH)
    sizes = response(part, torch.eye(WIDTH).double()[:2], [1.0, 2.0, 3.0])  # type: ignore[arg-type]
    torch.testing.assert_close(
        sizes, torch.tensor([[1, 2, math.nan], [1, 2, 3]]).double(), equal_nan=True
    )
