"""Linear DCT, against the dense Jacobian and its decomposition."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from educe.errors import MethodError
from educe.methods import linear
from educe.methods.linear import LinearDctConfig
from educe.methods.state import State
from toy_slice import curved, normal, through, with_singular_values
from toy_slice import linear as linear_slice

WIDTH, RADIUS = 7, 1.3
ROWS = LinearDctConfig(mode="projected", projections=4)


def toy() -> Any:
    return curved(WIDTH)


def dense(part: Any) -> Tensor:
    return part.jacobian(torch.zeros(part.width, dtype=torch.float64))


def run(part: Any, n: int, config: LinearDctConfig, **how: Any) -> tuple[State, list[State]]:
    """Return what is found, and the state at the start and after each step."""
    return through(linear, part, n, config, **{"radius": RADIUS} | how)


# -- what it finds -------------------------------------------------------------------------------


@pytest.mark.parametrize("steps", [1, 3, WIDTH, 50])
@pytest.mark.parametrize("n", [2, 6, 2 * WIDTH])
def test_full_is_the_svd_of_the_dense_jacobian(n: int, steps: int) -> None:
    part = toy()
    found, states = run(part, n, LinearDctConfig(steps=steps))
    assert len(states) - 1 == min(steps, WIDTH)
    _, value, right = torch.linalg.svd(dense(part))
    for pair in range(n // 2):
        for item in (2 * pair, 2 * pair + 1):
            assert float((found["directions"][item] @ right[pair]).abs()) == pytest.approx(1)
            assert float(found["score.singular_value"][item]) == pytest.approx(float(value[pair]))


@pytest.mark.parametrize(("n", "projections"), [(2, 1), (8, 4), (3, 5), (14, WIDTH + 20)])
def test_projected_is_the_svd_of_as_many_rows(n: int, projections: int) -> None:
    part = toy()
    config = LinearDctConfig(mode="projected", projections=projections)
    found, states = run(part, n, config, seed=3)
    w = states[0]["probes"]
    size = min(projections, WIDTH)
    torch.testing.assert_close(w @ w.T, torch.eye(size, dtype=torch.float64))
    _, value, right = torch.linalg.svd(w @ dense(part))
    pairs = (n + 1) // 2
    alike = (found["directions"][::2] * right[:pairs]).sum(1).abs()
    torch.testing.assert_close(alike, torch.ones_like(alike))
    torch.testing.assert_close(found["score.singular_value"][::2], value[:pairs])


def test_as_many_projections_as_the_width_lose_nothing() -> None:
    part = toy()
    full, _ = run(part, 6, LinearDctConfig())
    projected, _ = run(part, 6, LinearDctConfig(mode="projected", projections=WIDTH))
    for name, values in full.items():
        torch.testing.assert_close(projected[name], values)


def test_a_projection_finds_the_span_of_a_jacobian_of_low_rank_at_a_smaller_cost() -> None:
    low = with_singular_values([3, 2, 1] + [0] * 21)
    found, states = run(linear_slice(low), 6, ROWS)
    assert len(states[-1]["rows"]) == 4
    right = torch.linalg.svd(low).Vh[:3]
    angles = torch.linalg.svdvals(found["directions"][::2] @ right.T)
    torch.testing.assert_close(angles, torch.ones_like(angles))
    # The values are of W J, and W only takes away.
    assert bool((found["score.singular_value"][::2] < torch.tensor([3.0, 2, 1])).all())


# -- both signs ----------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [1, 2, 5, 8])
@pytest.mark.parametrize("config", [LinearDctConfig(), ROWS])
def test_a_direction_and_its_mirror_image_are_two_items(config: LinearDctConfig, n: int) -> None:
    part = toy()
    found, _ = run(part, n, config)
    v, size = found["directions"], found["score.effect"]
    assert {len(values) for values in found.values()} == {n}
    for item in range(n):
        effect = part.delta(RADIUS * v[item])
        assert float(size[item]) == pytest.approx(float(effect.norm()))
        torch.testing.assert_close(found["outputs"][item], effect / effect.norm())
        mirrored = part.delta(-RADIUS * v[item]).norm()
        if item % 2:
            assert torch.equal(v[item], -v[item - 1])
            assert float(size[item]) < float(size[item - 1])
        else:  # also where an odd n leaves the second out
            assert float(size[item]) > float(mirrored)
    assert bool((found["score.singular_value"].diff() <= 1e-12).all())


def test_the_stronger_sign_does_not_hang_on_how_the_svd_turns_a_vector() -> None:
    part, v = toy(), torch.linalg.qr(normal(WIDTH, WIDTH)).Q
    one, other = linear.both_signs(part, RADIUS, v), linear.both_signs(part, RADIUS, -v)
    assert torch.equal(one[0], other[0])
    torch.testing.assert_close(one[1], other[1])
    turned = (one[0][::2] * v).sum(1)
    assert 0 < int((turned > 0).sum()) < WIDTH  # some were turned, some were not


# -- the rest ------------------------------------------------------------------------------------


def test_more_than_both_signs_of_every_direction_is_an_error() -> None:
    with pytest.raises(MethodError, match=r"has 7 directions here.*at most 14 perturbations$"):
        run(toy(), 15, LinearDctConfig())
    with pytest.raises(MethodError, match=r"4 directions.*at most 8.*projections=5 or mode='full'"):
        run(toy(), 9, ROWS)
    run(toy(), 8, ROWS)


@pytest.mark.parametrize("config", [LinearDctConfig(steps=3), ROWS])
def test_resumed_is_uninterrupted_bit_for_bit(tmp_path: Path, config: LinearDctConfig) -> None:
    part = toy()
    whole, states = run(part, 5, config)
    assert len(states) > 3
    for at, state in enumerate(states):
        save_file(state, tmp_path / "state")
        resumed, more = run(part, 5, config, state=State(load_file(tmp_path / "state")))
        assert len(more) - 1 == max(1, len(states) - 1 - at)
        assert whole.keys() == resumed.keys()
        assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_projections_follow_the_seed_and_the_full_jacobian_needs_none() -> None:
    part = toy()
    for config, alike in ((LinearDctConfig(), True), (ROWS, False)):
        first, again, other = (run(part, 4, config, seed=seed)[0] for seed in (1, 1, 2))
        assert torch.equal(first["directions"], again["directions"])
        assert torch.equal(first["directions"], other["directions"]) == alike
