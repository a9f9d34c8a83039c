"""What is made large over several prompts: against searches and gradients on each prompt alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from educe import methods
from educe.errors import MethodError
from educe.forward.slice import Slice
from educe.methods import melbo, search
from educe.methods.cpe import CpeConfig
from educe.methods.dct import DctConfig
from educe.methods.melbo import MelboConfig
from educe.methods.over import Least
from educe.methods.state import State
from educe.model.language import LanguageModel

PROMPTS = ["the red fox", "a quiet little house by the sea", "why"]
CONFIGS: dict[str, Any] = {
    "dct": DctConfig(iterations=3),
    "melbo": MelboConfig(steps=3),
    "cpe": CpeConfig(iterations=2, blocks=2),
}
each_method = pytest.mark.parametrize("method", CONFIGS)


def cut(lm: LanguageModel, prompts: list[str] = PROMPTS) -> Slice:
    return Slice(lm, prompts, source=0, target=3)


@pytest.fixture(scope="module")
def part(tiny64: LanguageModel) -> Slice:
    return cut(tiny64)


@pytest.fixture(scope="module")
def theta(part: Slice) -> Tensor:
    return 3.0 * part.kind.draw(9, torch.Generator().manual_seed(5)).double()


@pytest.fixture(scope="module")
def apart(part: Slice, theta: Tensor) -> Tensor:
    """What each perturbation does to each prompt, ``[n, prompts, positions, width]``."""
    return part.shift(theta).values


@each_method
def test_one_search_a_prompt_finds_what_it_finds_there_alone(
    method: str, tiny64: LanguageModel, part: Slice
) -> None:
    # Three at least of each: two factors of CPE push each other to v and -v, which rounding orders.
    found = search(part, method, n=10, radius=2.0, seed=3, over="each", config=CONFIGS[method])
    draw, begun = torch.Generator().manual_seed(3), 0
    for prompt, n in zip(PROMPTS, (4, 3, 3), strict=True):
        one = methods.prepared(cut(tiny64, [prompt]), method, n=n, config=CONFIGS[method])
        how = methods.METHODS[method]
        state, done = how.start(one, n, 2.0, CONFIGS[method], draw), False
        while not done:
            state, progress = how.step(one, 2.0, CONFIGS[method], state)
            done = progress.done
        alone = how.finish(one, 2.0, CONFIGS[method], state)["directions"]
        torch.testing.assert_close(
            found.directions[begun : begun + n], alone.float(), rtol=0, atol=1e-6
        )
        begun += n
    whole = part.on(found.kind).effect(found.theta.double()).norm(dim=1)
    torch.testing.assert_close(found.scores["effect"], whole.float(), rtol=1e-4, atol=0)
    assert found.config["over"] == "each"


def test_the_least_effect_is_that_on_the_prompt_moved_least(
    part: Slice, theta: Tensor, apart: Tensor
) -> None:
    """From the shift of all prompts in one pass, and its gradient by autograd."""
    u = torch.randn(len(theta), part.width, dtype=torch.float64)
    effect, gradient = Least(part).vjp(theta, u)
    share = part.shift(theta).weights * len(PROMPTS)
    means = torch.einsum("npkd,pk->npd", apart, share)
    least = means.norm(dim=2).argmin(1)
    assert len(set(least.tolist())) > 1, "the draw tells the prompts apart"
    expected = means[torch.arange(len(theta)), least]
    torch.testing.assert_close(effect, expected, rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(Least(part).effect(theta), expected, rtol=1e-6, atol=1e-9)

    at = theta.clone().requires_grad_()
    again = torch.einsum("npkd,pk->npd", part.shift(at).values, share)
    value = (again[torch.arange(len(theta)), least] * u).sum()
    torch.testing.assert_close(gradient, torch.autograd.grad(value, at)[0], rtol=1e-6, atol=1e-9)


def test_an_objective_counts_where_it_is_least(part: Slice, theta: Tensor, apart: Tensor) -> None:
    def squared(shift: Any) -> Tensor:
        return melbo.objective(shift, 2.0, 1.0)

    value, gradient = Least(part).value_and_grad(theta, squared)
    expected, least = apart.square().sum((2, 3)).min(1)
    torch.testing.assert_close(value, expected, rtol=1e-6, atol=1e-9)
    at = theta.clone().requires_grad_()
    one = part.shift(at).values.square().sum((2, 3))[torch.arange(len(theta)), least].sum()
    torch.testing.assert_close(gradient, torch.autograd.grad(one, at)[0], rtol=1e-6, atol=1e-9)


def test_the_least_prompt_moves_more_than_where_the_sum_is_made_large(part: Slice) -> None:
    def least(over: Any) -> float:
        found = search(
            part, "melbo", n=6, radius=2.0, over=over, config=MelboConfig(steps=30, tolerance=0)
        )
        return float(part.shift(found.theta.double()).values.square().sum((2, 3)).min(1)[0].mean())

    assert least("least") > 1.05 * least("mean")


@each_method
@pytest.mark.parametrize("over", ["each", "least"])
def test_it_goes_on_where_it_was_stopped(method: str, over: Any, part: Slice) -> None:
    kept: list[State] = []
    how: dict[str, Any] = {"n": 4, "radius": 2.0, "over": over, "config": CONFIGS[method]}
    whole = search(part, method, **how, on_step=lambda state, _: kept.append(state))
    for state in kept[:-1]:
        again = search(part, method, **how, state=State(state))
        assert torch.equal(again.directions, whole.directions)


def test_one_prompt_is_the_same_over_all(tiny64: LanguageModel) -> None:
    part = cut(tiny64, PROMPTS[:1])
    found = [
        search(part, "dct", n=4, radius=2.0, over=over, config=CONFIGS["dct"])
        for over in ("mean", "each", "least")
    ]
    assert found[0].config == found[1].config == found[2].config
    assert torch.equal(found[0].theta, found[1].theta)
    assert torch.equal(found[0].theta, found[2].theta)


def test_what_is_drawn_is_the_same_over_all(part: Slice) -> None:
    drawn = [search(part, "random", n=4, radius=2.0, over=o) for o in ("mean", "each", "least")]
    assert torch.equal(drawn[0].theta, drawn[1].theta)
    assert torch.equal(drawn[0].theta, drawn[2].theta)
    assert torch.equal(drawn[0].scores["effect"], drawn[1].scores["effect"])


@pytest.mark.parametrize(
    ("method", "config"),
    [
        ("power", None),
        ("dct-linear", None),
        ("dct-quadratic", None),
        ("dct", DctConfig(init="jacobian")),
        ("dct", DctConfig(turning=1.0)),
    ],
)
def test_what_needs_more_than_gradients_is_refused(method: str, config: Any, part: Slice) -> None:
    with pytest.raises(MethodError, match="search over the mean"):
        search(part, method, n=2, radius=2.0, over="least", config=config)


def test_too_few_to_share_are_refused(part: Slice) -> None:
    with pytest.raises(MethodError, match="2 perturbations cannot be shared among 3 prompts"):
        search(part, "dct", n=2, radius=2.0, over="each")
