"""The penalty on other prompts: its formula by hand, and where a search with it ends."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import scipy.optimize
import torch
from torch import Tensor

import tiny
from educe import methods
from educe.errors import MethodError
from educe.forward.slice import Slice
from educe.methods import melbo, search
from educe.methods.dct import DctConfig
from educe.methods.lora import LoraConfig
from educe.methods.melbo import MelboConfig
from educe.methods.retain import RetainPrompts, drawn, retain_prompts, with_retain_prompts
from educe.methods.state import State
from educe.model.language import LanguageModel
from toy_slice import ToySlice, linear, normal, with_singular_values

WIDTH, RADIUS = 6, 0.8
CONFIGS: dict[str, Any] = {"dct": DctConfig(iterations=4), "melbo": MelboConfig(steps=4)}
each = pytest.mark.parametrize("method", CONFIGS)


def toy(seed: int = 1, **options: Any) -> Any:
    """Two prompts of up to two positions, each with a curved map of its own."""
    first, second = (normal(2, 2, WIDTH, WIDTH, seed=seed + i) for i in range(2))

    def move(theta: Tensor) -> Tensor:
        inner = torch.einsum("pkde,ne->npkd", first, theta).tanh()
        return inner + 0.3 * torch.einsum("pkde,ne->npkd", second, theta).square()

    return ToySlice(move, WIDTH, read=[[0, 1], [1, 1]], **options)


def beside(part: Any, other: Any, weight: float) -> Any:
    part.retain = RetainPrompts(other, weight, "effect", None)
    return part


def by_hand(other: Any, theta: Tensor) -> Tensor:
    """Return the mean over prompts of the mean over their positions of the squared change."""
    total = torch.zeros((), dtype=torch.float64)
    values = other.values(theta[None])[0]
    for prompt, reads in enumerate(other.read.tolist()):
        each = [values[prompt, k].square().sum() for k, read in enumerate(reads) if read]
        total = total + sum(each) / len(each) / len(other.read)
    return total


def along_sphere(v: Tensor, gradient: Tensor) -> Tensor:
    return gradient - (gradient * v).sum(1, keepdim=True) * v


# -- what is taken away --------------------------------------------------------------------------


@pytest.mark.parametrize("at_once", [1, 2])
def test_the_benign_effect_is_a_mean_over_prompts_of_a_mean_over_positions(at_once: int) -> None:
    other = toy(prompts_at_once=at_once)
    theta = normal(3, WIDTH, seed=5).requires_grad_()
    value, gradient = RetainPrompts(other, 1.0, "effect", None).value_and_grad(theta)
    expected = torch.stack([by_hand(other, row) for row in theta])
    torch.testing.assert_close(value, expected)
    torch.testing.assert_close(gradient, torch.autograd.grad(expected.sum(), theta)[0])


@each
@pytest.mark.parametrize("orthogonal", [False, True])
def test_at_weight_zero_a_search_is_as_it_was(method: str, orthogonal: bool) -> None:
    config = CONFIGS[method]
    if method == "melbo":
        config = replace(config, orthogonal=orthogonal)
    options: dict[str, Any] = {"n": 3, "radius": RADIUS, "seed": 3, "config": config}
    plain, kept = [], []
    first = search(toy(), method, on_step=lambda s, _: plain.append(s), **options)
    part = beside(toy(), toy(7), 0.0)
    second = search(part, method, on_step=lambda s, _: kept.append(s), **options)
    assert torch.equal(first.directions, second.directions)
    assert first.scores.keys() == second.scores.keys()
    assert all(torch.equal(first.scores[name], second.scores[name]) for name in first.scores)
    for before, after in zip(plain, kept, strict=True):
        assert before.keys() == after.keys()
        assert all(torch.equal(before[name], after[name]) for name in before)


def test_melbo_climbs_the_difference_of_the_gradients() -> None:
    part, other, weight = toy(), toy(7), 0.7
    config = MelboConfig()
    state = melbo.start(part, 3, RADIUS, config, torch.Generator().manual_seed(0))
    v = state["directions"]
    _, own = part.value_and_grad(RADIUS * v, lambda s: melbo.objective(s, 2.0, 1.0))
    value, _ = part.value_and_grad(RADIUS * v, lambda s: melbo.objective(s, 2.0, 1.0))
    theirs, slope = RetainPrompts(other, 1.0, "effect", None).value_and_grad(RADIUS * v)
    scale = along_sphere(v, own).norm(dim=1).mean() / along_sphere(v, slope).norm(dim=1).mean()
    climbed = along_sphere(v, own - weight * scale * slope)
    new, _ = melbo.step(beside(part, other, weight), RADIUS, config, state)
    torch.testing.assert_close(new["first"], (1 - melbo.BETAS[0]) * climbed)
    torch.testing.assert_close(new["curve"][0], value - weight * scale * theirs)
    torch.testing.assert_close(new["retain_scale"], scale)


@pytest.mark.parametrize("scale", [1e-3, 1.0, 50.0])
def test_the_weight_has_no_scale(scale: float) -> None:
    """Other prompts that move ten times as much are weighed a hundredth, at the same ``μ``."""

    def found(times: float) -> Any:
        other = toy(7)
        loud = ToySlice(lambda theta: times * other.move(theta), WIDTH, read=[[0, 1], [1, 1]])
        return search(beside(toy(), loud, 0.5), "melbo", n=3, radius=RADIUS)

    torch.testing.assert_close(found(scale).directions, found(1.0).directions)
    torch.testing.assert_close(
        found(scale).scores["objective"], found(1.0).scores["objective"], rtol=1e-4, atol=1e-5
    )


# -- where it ends -------------------------------------------------------------------------------


def best(part: Any, other: Any, factor: float, power: int) -> tuple[float, np.ndarray]:
    """Maximise ``‖Δ(R v)‖^power - factor g(R v)`` over unit ``v`` with scipy, from many starts."""

    def lost(x: np.ndarray) -> float:
        theta = RADIUS * torch.tensor(x / np.linalg.norm(x))
        own = part.delta(theta).norm() ** power
        return float(factor * by_hand(other, theta) - own)

    starts = np.random.default_rng(0).normal(size=(20, WIDTH))
    ends = [scipy.optimize.minimize(lost, x, method="BFGS", tol=1e-10) for x in starts]
    top = min(ends, key=lambda end: end.fun)
    return -top.fun, top.x / np.linalg.norm(top.x)


@pytest.mark.parametrize("weight", [0.3, 3.0])
def test_dct_with_one_factor_ends_in_the_maximum_of_the_difference(weight: float) -> None:
    """However much the weight: without the shift, a large one ends where others move most."""
    part = linear(with_singular_values([3.0, 2.5, 2.0, 1.5, 1.0, 0.5]))
    other = linear(with_singular_values([2.0, 1.8, 0.6, 0.5, 0.4, 0.3], seed=9))
    found = search(
        beside(part, other, weight), "dct", n=1, radius=RADIUS, config=DctConfig(iterations=600)
    )
    factor = weight * float(found.scores["retain_scale"])
    value, v = best(part, other, factor, 1)
    reached = float(found.scores["effect"]) - factor * float(found.scores["retain"])
    assert abs(reached - value) < 1e-4 * abs(value)
    assert abs(float(found.directions[0].double() @ torch.tensor(v))) > 1 - 1e-5


def test_melbo_ends_in_the_maximum_of_the_difference_also_where_that_is_below_zero() -> None:
    part = linear(with_singular_values([3.0, 2.5, 2.0, 1.5, 1.0, 0.5]))
    other = linear(with_singular_values([2.0, 1.8, 1.6, 1.5, 1.4, 1.3], seed=9))
    config = MelboConfig(steps=600, step=0.02, tolerance=1e-7, patience=40)
    found = search(beside(part, other, 3.0), "melbo", n=2, radius=RADIUS, config=config)
    factor = 3.0 * float(found.scores["retain_scale"][0])
    value, _ = best(part, other, factor, 2)
    assert value < 0
    torch.testing.assert_close(
        found.scores["objective"].double(), torch.full((2,), value).double(), rtol=1e-3, atol=0
    )


@each
@pytest.mark.parametrize("by", ["effect", "kl"])
def test_on_a_model_more_weight_leaves_other_prompts_more_alone(
    tiny_lm: LanguageModel, method: str, by: Any
) -> None:
    asked, others = tiny_lm.pad(tiny.ragged([6, 9])), tiny_lm.pad(tiny.ragged([7, 5], seed=1))
    part = Slice(tiny_lm, asked, source=1, target=3)
    done = []
    for weight in (1e-9, 1.0, 10.0):
        kept = with_retain_prompts(part, others, weight=weight, by=by)
        found = search(kept, method, n=4, radius=0.3 * part.median_norm, config=CONFIGS[method])
        value, _ = kept.retain.value_and_grad(found.theta)  # type: ignore[union-attr]
        torch.testing.assert_close(found.scores["retain"], value)
        assert found.config == CONFIGS[method].__dict__ | {"retain": weight, "retain_by": by}
        done.append(float(value.mean()))
    assert done[0] > done[1] > done[2]


def test_adapters_can_be_quiet_too(tiny_lm: LanguageModel) -> None:
    part = Slice(tiny_lm, tiny_lm.pad(tiny.ragged([6])), source=1, target=3)
    kept = with_retain_prompts(part, tiny_lm.pad(tiny.ragged([7], seed=1)), weight=2.0, by="kl")
    loud, still = (
        search(some, "lora", n=2, radius=0.5, config=LoraConfig(steps=6, rank=1))
        for some in (part, kept)
    )
    own = kept.on(still.kind).retain
    assert own is not None
    assert float(own.value_and_grad(still.theta)[0].mean()) < float(
        own.value_and_grad(loud.theta)[0].mean()
    )


# -- going on, and what cannot be ----------------------------------------------------------------


@each
def test_going_on_from_any_step_changes_nothing(method: str) -> None:
    options: dict[str, Any] = {"n": 3, "radius": RADIUS, "config": CONFIGS[method]}
    states: list[State] = []
    part = beside(toy(), toy(7), 1.0)
    whole = search(part, method, on_step=lambda s, _: states.append(s), **options)
    for state in states:
        assert torch.equal(
            search(part, method, state=state, **options).directions, whole.directions
        )


def test_what_cannot_be_is_an_error() -> None:
    still = ToySlice(lambda theta: 0 * theta, WIDTH)
    with pytest.raises(MethodError, match="do not move at all"):
        search(beside(toy(), still, 1.0), "dct", n=2, radius=RADIUS)
    with pytest.raises(MethodError, match="power has no weight for other prompts"):
        methods.retains("power", 1.0)
    for weight in (-1.0, float("nan"), float("inf")):
        with pytest.raises(MethodError, match="give 0 or a number above it"):
            methods.retains("dct", weight)
    assert [methods.retains(*pair) for pair in (("dct", 0.0), ("dct", 1.0), ("generalised", 0.0))]
    assert not methods.retains("power", 0.0)


def test_other_prompts_come_bundled_or_from_a_file(tmp_path: Any) -> None:
    assert len(retain_prompts()) == 8
    file = tmp_path / "some.txt"
    file.write_text("One?\nTwo?")
    assert retain_prompts(str(file)) == ["One?", "Two?"]


def test_as_many_other_prompts_are_drawn_as_differ(tiny64: LanguageModel) -> None:
    """Whatever is read as another one takes no place: of a hundred, sixteen or all are new."""
    asked = tiny64.encode(["Question 3?"])
    many = [f"Question {i % 20}?" for i in range(100)]

    def some(prompts: list[str], seed: int) -> tuple[Any, list[str]]:
        return drawn(prompts, tiny64.encode, asked, seed=seed)

    first, said = some(many, 1)
    assert len(set(first)) == len(first) == 16
    assert "Question 3?" not in first
    assert all("other prompts read as one" in sentence for sentence in said)
    assert (first, said) == some(many, 1)
    assert first != some(many, 2)[0]
    few = [f"Question {i % 5}?" for i in range(100)]
    assert sorted(some(few, 1)[0]) == [f"Question {i}?" for i in (0, 1, 2, 4)]
    assert some(["Two?", "One?"], 1) == (["Two?", "One?"], [])
