"""The generalised eigenproblem, against numpy's on dense Jacobians."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import tiny
from educe.errors import MethodError
from educe.forward.slice import Slice
from educe.methods import generalised, search
from educe.methods.generalised import GeneralisedConfig
from educe.methods.retain import RetainPrompts, with_retain_prompts
from educe.methods.state import State
from educe.model.language import LanguageModel
from toy_slice import ToySlice, cosines, normal

WIDTH, RADIUS = 12, 0.7
EXACT = {"iterations": 30, "tolerance": 1e-12}


def toy(seed: int = 1, read: Any = ((0, 1), (1, 1), (1, 1))) -> Any:
    """Three prompts of up to two positions, each with a curved map of its own."""
    first, second = (normal(3, 2, WIDTH, WIDTH, seed=seed + i) for i in range(2))

    def move(theta: Tensor) -> Tensor:
        inner = torch.einsum("pkde,ne->npkd", first, theta).tanh()
        return inner + 0.2 * torch.einsum("pkde,ne->npkd", second, theta).square()

    return ToySlice(move, WIDTH, read=[list(row) for row in read])


def pair(others: Any = None) -> Any:
    """A toy with another beside it, which reads another number of positions."""
    part = toy()
    part.retain = RetainPrompts(
        others or toy(seed=5, read=((0, 1), (0, 1), (0, 1))), 0.0, "effect", None
    )
    return part


def stacked(part: Any) -> Tensor:
    """Return the dense Jacobian at zero of all read-out positions, one under the other."""
    at = torch.zeros(WIDTH, dtype=torch.float64)
    jacobian = torch.autograd.functional.jacobian(lambda theta: part.values(theta[None])[0], at)
    return jacobian[part.read.bool()].flatten(0, 1)


def expected(
    target: Tensor, other: Tensor, counts: tuple[int, int], k: int, ridge: float
) -> tuple[np.ndarray, np.ndarray]:
    """Solve the problem of the docstring from dense Jacobians: values, and vectors as rows."""
    span = np.linalg.svd(target.numpy())[2][:k]
    a = span @ (target.T @ target).numpy() @ span.T / counts[0]
    b = span @ (other.T @ other).numpy() @ span.T / counts[1]
    value, vectors = np.linalg.eig(np.linalg.solve(b + ridge * np.trace(b) / k * np.eye(k), a))
    order = value.real.argsort()[::-1]
    rows = vectors.real.T[order] @ span
    return value.real[order], rows / np.linalg.norm(rows, axis=1, keepdims=True)


@pytest.mark.parametrize(("k", "ridge"), [(12, 0.1), (5, 0.1), (5, 1e-3)])
def test_it_is_that_of_dense_jacobians(k: int, ridge: float) -> None:
    part = pair()
    config = GeneralisedConfig(subspace=k, ridge=ridge, **EXACT)
    found = search(part, "generalised", n=2 * k, radius=RADIUS, config=config)
    other = part.retain.part
    value, rows = expected(stacked(part), stacked(other), (5, 3), k, ridge)
    np.testing.assert_allclose(found.scores["ratio"][::2], value, rtol=1e-5)
    same = cosines(found.directions[::2], torch.tensor(rows.copy())).diagonal()
    assert float(same.min()) > 1 - 1e-6
    torch.testing.assert_close(found.directions[1::2], -found.directions[::2])
    for name, jacobian, count in (
        ("gain", stacked(part), 5),
        ("gain_retain", stacked(other), 3),
    ):
        by_hand = (jacobian @ torch.tensor(rows.T.copy())).norm(dim=0) / count**0.5
        torch.testing.assert_close(found.scores[name][::2], by_hand.float())
    effect = part.effect(RADIUS * found.directions.double()).norm(dim=1)
    torch.testing.assert_close(found.scores["effect"], effect.float())


def test_on_a_model_it_is_that_of_jacobians_by_hooks(tiny64: LanguageModel) -> None:
    asked, others = tiny.ragged([6, 9]), tiny.ragged([7, 4, 8], seed=1)
    part = with_retain_prompts(
        Slice(tiny64, tiny64.pad(asked), source=1, target=3, readout="last:2"), tiny64.pad(others)
    )
    config = GeneralisedConfig(subspace=32, **EXACT)
    found = search(part, "generalised", n=6, radius=1.0, config=config)

    def jacobian(rows: list[list[int]]) -> Tensor:
        def moved(vector: Tensor) -> Tensor:
            streams = [
                tiny.run(tiny64.hf, ids, source=1, vector=vector, at=tiny.chosen("all", len(ids)))[
                    1
                ][3][-2:]
                for ids in rows
            ]
            return torch.cat(streams).flatten()

        return torch.autograd.functional.jacobian(moved, torch.zeros(32, dtype=torch.float64))

    value, rows = expected(jacobian(asked), jacobian(others), (4, 6), 32, 0.1)
    np.testing.assert_allclose(found.scores["ratio"][::2], value[:3], rtol=1e-4)
    assert float(cosines(found.directions[::2], torch.tensor(rows[:3].copy())).diagonal().min()) > (
        1 - 1e-5
    )


def test_other_prompts_that_move_alike_in_all_directions_leave_the_singular_vectors() -> None:
    part = pair(ToySlice(lambda theta: theta, WIDTH))
    found = search(part, "generalised", n=8, radius=RADIUS, config=GeneralisedConfig(12, **EXACT))
    right = torch.linalg.svd(stacked(part)).Vh[:4]
    assert float(cosines(found.directions[::2], right).diagonal().min()) > 1 - 1e-6


def test_going_on_from_any_step_changes_nothing() -> None:
    config = GeneralisedConfig(subspace=12, **EXACT)
    states: list[State] = []
    options: dict[str, Any] = {"n": 5, "radius": RADIUS, "config": config}
    whole = search(pair(), "generalised", on_step=lambda s, _: states.append(s), **options)
    assert len(states) == 2  # a block fills the width; then the other prompts
    for state in states:
        again = search(pair(), "generalised", state=state, **options)
        assert torch.equal(again.directions, whole.directions)


def test_what_it_cannot_do_is_an_error() -> None:
    with pytest.raises(MethodError, match="give the slice some beside it"):
        search(toy(), "generalised", n=2, radius=1.0)
    with pytest.raises(MethodError, match="has 5 directions here, with two signs each"):
        search(pair(), "generalised", n=11, radius=1.0, config=GeneralisedConfig(subspace=5))
    assert generalised.AT_ONCE >= 12  # else the steps above are more
