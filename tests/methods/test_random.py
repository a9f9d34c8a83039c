"""Random directions, against the law of a uniform point on the sphere."""

from __future__ import annotations

import pytest
import torch
from scipy.stats import beta, kstest

from educe.methods import random
from educe.methods.random import RandomConfig
from educe.perturbation.kinds import Vectors
from toy_slice import ToySlice, normal

N = 20000


def draw(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("width", [3, 48])
def test_directions_are_uniform_on_the_sphere(width: int) -> None:
    v = Vectors(0, width).draw(N, draw()).double()
    torch.testing.assert_close(v.norm(dim=1), torch.ones(N, dtype=torch.float64))
    # The product with any fixed unit vector w: (<v, w> + 1) / 2 is Beta((d-1)/2, (d-1)/2).
    known = beta((width - 1) / 2, (width - 1) / 2)
    axis = torch.eye(width, dtype=torch.float64)
    diagonal = torch.full((width,), width**-0.5, dtype=torch.float64)
    for w in (axis[0], axis[-1], diagonal):
        assert kstest(((v @ w + 1) / 2).numpy(), known.cdf).pvalue > 0.01
    # E v = 0 and E v vᵀ = I / d, each entry to 5 standard errors.
    assert float(v.mean(0).abs().max()) < 5 * (width * N) ** -0.5
    off = v.T @ v / N - axis / width
    assert float(off.abs().max()) < 5 * 2**0.5 / width * N**-0.5


def test_the_same_seed_gives_the_same_directions() -> None:
    assert torch.equal(Vectors(0, 7).draw(5, draw(3)), Vectors(0, 7).draw(5, draw(3)))
    assert not torch.equal(Vectors(0, 7).draw(5, draw(3)), Vectors(0, 7).draw(5, draw(4)))


def test_directions_do_not_depend_on_the_device() -> None:
    started = []
    for device in ("cpu", "meta"):
        part = ToySlice(lambda theta: theta, 6, device=device)
        state = random.start(part, 4, 2.0, RandomConfig(), draw(1))
        started.append(state["directions"])
    assert started[0].device == started[1].device == torch.device("cpu")
    assert torch.equal(*started)


def test_directions_are_left_alone_and_measured_at_the_radius() -> None:
    matrix = normal(6, 6)
    part = ToySlice(lambda theta: (theta @ matrix.T).tanh(), 6)
    config = RandomConfig()
    state = random.start(part, 4, 2.0, config, draw())
    after, progress = random.step(part, 2.0, config, state)
    found = random.finish(part, 2.0, config, after)
    assert progress.done
    assert torch.equal(found["directions"], Vectors(0, 6).draw(4, draw()))
    for v, effect in zip(found["directions"].double(), found["score.effect"], strict=True):
        assert float(effect) == pytest.approx(float((matrix @ (2.0 * v)).tanh().norm()))
