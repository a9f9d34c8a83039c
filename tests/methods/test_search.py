"""Search: what every method returns, on toys and against the whole model run by itself."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import pytest
import torch
from torch import Tensor

import tiny
from educe import methods
from educe.errors import EffectError, MethodError, RadiusError
from educe.forward.slice import Slice
from educe.methods import METHODS, search
from educe.methods.cpe import CpeConfig
from educe.methods.dct import DctConfig
from educe.methods.linear import LinearDctConfig
from educe.methods.lora import LoraConfig
from educe.methods.melbo import MelboConfig
from educe.methods.noise import NoiseConfig
from educe.methods.power import PowerConfig
from educe.methods.quadratic import QuadraticDctConfig
from educe.methods.state import Progress, State
from educe.model.language import LanguageModel
from educe.perturbation.set import PerturbationSet
from toy_slice import ToySlice, cosines, normal

ROWS = tiny.ragged([6, 11, 2])
READ = [[1, 1, 1], [1, 1, 1], [0, 1, 1]]  # the last three tokens of each
FEW: dict[str, Any] = {
    "random": None,
    "dct": DctConfig(iterations=3),
    "dct-linear": LinearDctConfig(mode="projected", projections=5, steps=3),
    "dct-quadratic": QuadraticDctConfig(iterations=3),
    "melbo": MelboConfig(steps=3),
    "cpe": CpeConfig(iterations=3, blocks=2),
    "lora": LoraConfig(steps=3, rank=2),
    "power": PowerConfig(iterations=3, padding=1, tolerance=0.0),
    "noise": NoiseConfig(per="rollout"),  # toys know vectors only; the rest is in test_noise.py
}
DRAWN = ("noise", "random")  # in one step, and without output directions
# Tokens need a vocabulary, generalised other prompts: they have tests of their own.
HERE = [m for m in METHODS if m not in ("tokens", "generalised")]
every_method = pytest.mark.parametrize("method", HERE)
of_vectors = pytest.mark.parametrize("method", [m for m in HERE if m not in ("cpe", "lora")])


def slice_of(lm: LanguageModel, **options: Any) -> Slice:
    return Slice(lm, lm.pad(ROWS), source=1, target=3, **options)


def shifts(hf: Any, theta: Tensor) -> Tensor:
    """Return what each vector does to the last three tokens: one prompt at a time, no padding."""
    moved = torch.zeros(len(theta), len(ROWS), 3, theta.shape[1], dtype=theta.dtype)
    for prompt, ids in enumerate(ROWS):
        at = tiny.chosen("all", len(ids))
        rest = tiny.run(hf, ids)[1][3]
        for line, vector in enumerate(theta):
            came = tiny.run(hf, ids, source=1, vector=vector, at=at)[1][3]
            read = min(3, len(ids))
            moved[line, prompt, -read:] = (came - rest)[-read:]
    return moved


def toy() -> Any:
    first, second = normal(6, 6), normal(6, 6, seed=1)
    return ToySlice(lambda theta: (theta @ first.T).tanh() + 0.1 * (theta @ second.T).square(), 6)


# -- on a model ----------------------------------------------------------------------------------


@of_vectors
@torch.no_grad()
def test_reported_effect_is_that_of_the_whole_model(tiny_lm: LanguageModel, method: str) -> None:
    part = slice_of(tiny_lm)
    radius = 0.3 * part.median_norm
    found = search(part, method, n=4, radius=radius, seed=2, config=FEW[method])
    assert len(found) == 4
    whole = ToySlice(lambda theta: shifts(tiny_lm.hf, theta.float()).double(), 32, read=READ)
    effect = whole.delta(found.theta.double())
    expected = effect.norm(dim=1)
    assert float(expected.min()) > 0.1
    torch.testing.assert_close(found.scores["effect"].double(), expected, rtol=1e-3, atol=0)
    if method not in DRAWN:
        assert found.outputs is not None
        cosine = (found.outputs * effect).sum(1) / expected
        torch.testing.assert_close(cosine, torch.ones_like(cosine), rtol=1e-4, atol=0)


@pytest.mark.parametrize("method", ["dct", "dct-linear", "melbo"])
def test_a_method_finds_in_a_slice_what_it_finds_in_the_whole_model(
    lm_of: Callable[..., LanguageModel], method: str
) -> None:
    lm = lm_of("gpt2", torch.float64)
    part = slice_of(lm)
    by_hooks = ToySlice(lambda theta: shifts(lm.hf, theta), 32, read=READ)
    radius = 0.3 * part.median_norm
    first, second = (
        search(it, method, n=2, radius=radius, seed=1, config=FEW[method])  # type: ignore[arg-type]
        for it in (part, by_hooks)
    )
    torch.testing.assert_close(first.directions, second.directions, rtol=0, atol=1e-5)
    for name, values in second.scores.items():
        torch.testing.assert_close(first.scores[name], values, rtol=1e-4, atol=0)


@of_vectors
def test_a_set_says_where_it_belongs_and_how_it_was_made(
    tiny_lm: LanguageModel, method: str
) -> None:
    part = slice_of(tiny_lm, positions="last:2", readout="last:1")
    found = search(part, method, n=3, radius=2.5, seed=7, config=FEW[method])
    torch.testing.assert_close(found.directions.norm(dim=1), torch.ones(3))
    assert found.directions.dtype == found.radius.dtype == torch.float32
    assert found.radius.tolist() == [2.5] * 3
    assert (found.method, found.seed) == (method, 7)
    config = FEW[method] if FEW[method] is not None else METHODS[method].config()
    assert found.config == asdict(config)
    texts = "\0".join(part.batch.texts).encode()
    assert vars(found.origin) == {
        "model_id": "llama",
        "model_revision": "",
        "adapter": "",
        "d_model": 32,
        "n_layers": 4,
        "source": 1,
        "target": 3,
        "readout": "last:1",
        "unit": part.median_norm,
        "prompts_sha256": hashlib.sha256(texts).hexdigest(),
        "model_parts": dict(part.lm.parts),
    }
    named = {
        "random": {"effect"},
        "dct": {"effect", "alpha"},
        "dct-linear": {"effect", "singular_value"},
        "dct-quadratic": {"effect", "curvature"},
        "melbo": {"effect", "objective"},
        "noise": {"effect"},
        "power": {"effect", "singular_value", "gap", "band", "residual"},
    }
    assert set(found.scores) == named[method]
    for values in found.scores.values():
        assert values.shape == (3,)


# -- on a toy ------------------------------------------------------------------------------------


@every_method
def test_the_same_seed_gives_the_same_perturbations(method: str) -> None:
    first, again, other = (
        search(toy(), method, n=4, radius=0.5, seed=seed, config=FEW[method]) for seed in (1, 1, 2)
    )
    assert torch.equal(first.directions, again.directions)
    if method == "power":  # singular vectors are what they are, whatever the search began with
        assert float(cosines(first.directions, other.directions).diagonal().min()) > 1 - 1e-6
    else:
        assert not torch.equal(first.directions, other.directions)
    for name, values in first.scores.items():
        assert torch.equal(values, again.scores[name])


@every_method
def test_the_callers_random_numbers_are_left_alone(method: str) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(5)
        expected = torch.rand(3)
        torch.manual_seed(5)
        first = search(toy(), method, n=2, radius=0.5, config=FEW[method])
        assert torch.equal(torch.rand(3), expected)
        second = search(toy(), method, n=2, radius=0.5, config=FEW[method])
    assert torch.equal(first.directions, second.directions)


@every_method
def test_resuming_at_any_step_changes_nothing(method: str) -> None:
    states: list[State] = []

    def keep(state: State, progress: Progress) -> None:
        states.append(state)

    def run(**more: Any) -> PerturbationSet:
        return search(toy(), method, n=3, radius=0.5, config=FEW[method], **more)

    whole = run(on_step=keep)
    assert len(states) == {"noise": 1, "random": 1, "power": 2}.get(
        method, 3
    )  # two blocks fill the width
    for taken, state in enumerate(list(states), start=1):
        states.clear()
        resumed = run(state=state, on_step=keep)
        assert torch.equal(resumed.directions, whole.directions)
        assert torch.equal(resumed.scores["effect"], whole.scores["effect"])
        if "curve" in state:  # it goes on, rather than doing it all again
            assert len(state["curve"]) == taken
            assert all(len(now["curve"]) >= taken for now in states)


def test_on_step_hears_of_every_step_and_of_the_end() -> None:
    heard: list[tuple[int, Progress]] = []
    search(
        toy(),
        "dct",
        n=3,
        radius=0.5,
        config=FEW["dct"],
        on_step=lambda state, progress: heard.append((len(state["curve"]), progress)),
    )
    assert [(steps, progress.done) for steps, progress in heard] == [
        (1, False),
        (2, False),
        (3, True),
    ]


@pytest.mark.parametrize("method", [m for m in HERE if m != "noise"])
def test_settings_are_the_methods_own_unless_given(method: str) -> None:
    found = search(toy(), method, n=2, radius=1.0)
    assert found.config == asdict(METHODS[method].config())


def test_dct_is_the_default() -> None:
    assert search(toy(), n=2, radius=0.5).method == "dct"


# -- what must not happen ------------------------------------------------------------------------


def test_an_unknown_method_is_an_error_that_names_the_known_ones() -> None:
    for ask in (lambda: methods.named("sae"), lambda: search(toy(), "sae", radius=1.0)):
        with pytest.raises(MethodError, match=f"'sae' is unknown: use {', '.join(METHODS)}"):
            ask()


@every_method
@pytest.mark.parametrize("n", [0, -3])
def test_none_at_all_is_an_error(method: str, n: int) -> None:
    with pytest.raises(MethodError, match=f"n is {n}: give a whole number from 1"):
        search(toy(), method, n=n, radius=1.0)


@every_method
@pytest.mark.parametrize("radius", [0.0, -1.0, float("nan"), float("inf")])
def test_a_radius_that_is_none_is_an_error(method: str, radius: float) -> None:
    with pytest.raises(RadiusError, match=f"radius {radius:g}: it must be above zero"):
        search(toy(), method, n=2, radius=radius)


@every_method
def test_an_effect_that_is_no_number_is_an_error(method: str) -> None:
    part = ToySlice(lambda theta: theta.square().exp(), 6)
    with pytest.raises(EffectError):
        search(part, method, n=2, radius=1e3, config=FEW[method])  # type: ignore[arg-type]
