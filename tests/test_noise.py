"""Noise, against models whose weights are changed by hand and loops that add it token by token.

What is drawn from a seed is part of the contract, a file holds nothing else: it is written down
here once more.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
import hashlib
import json
import random
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors import safe_open
from scipy import stats
from torch import Tensor, nn

import tiny
from educe import methods
from educe.comparison.summary import summarise
from educe.errors import (
    EffectError,
    LayerError,
    MethodError,
    ModelError,
    PositionsError,
    RadiusError,
    SteeringError,
)
from educe.forward.generation import generate, rows_of
from educe.forward.slice import Slice
from educe.methods import radius
from educe.methods.noise import NoiseConfig
from educe.model.language import LanguageModel
from educe.perturbation import kinds, noise
from educe.perturbation.kinds import Kind, TokenNoise, Vectors, WeightNoise
from educe.perturbation.set import PerturbationSet
from educe.report import page, terminal
from educe.rows import ELSEWHERE, Row
from educe.run.settings import Settings, begin
from educe.run.stages import discover_behaviours
from educe.run.store import Run
from read_document import text
from toy_slice import linear

PROMPTS = tiny.ragged([7, 15, 1])
SOURCE, TARGET, STEPS = 1, 3, 8
SEEDS = (11, 2**31 - 1, 5)
WEIGHTS = WeightNoise(SOURCE + 1, TARGET - SOURCE, SEEDS)
SIGMA = 0.3


def token_noise(lm: LanguageModel, positions: str = "all") -> TokenNoise:
    return TokenNoise(SOURCE, lm.width, SEEDS, positions)


def slice_of(lm: LanguageModel, kind: Kind | None = None, **options: Any) -> Slice:
    part = Slice(lm, lm.pad(PROMPTS), source=SOURCE, target=TARGET, **options)
    return part if kind is None else part.on(kind)


def some_radius(lm: LanguageModel) -> float:
    return 0.5 * float(tiny.run(lm.hf, PROMPTS[1])[1][SOURCE].norm(dim=1).mean())


# -- noise by hand ---------------------------------------------------------------------------------


def normal(key: str, *shape: int) -> Tensor:
    seed = int.from_bytes(hashlib.blake2b(key.encode(), digest_size=7).digest(), "big")
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def noised(hf: Any, seed: int, sigma: float = SIGMA, *, pattern: str = "") -> Any:
    """Return a copy of a model with noise on the matrices of blocks 2 and 3."""
    made = copy.deepcopy(hf)
    blocks = made.get_submodule(tiny.path(hf))
    for number in (2, 3):
        for name, weight in blocks[number].named_parameters():
            if weight.ndim >= 2 and pattern in name:
                rms = weight.double().pow(2).mean().sqrt()
                drawn = normal(f"{seed}:{number}.{name}", *weight.shape).double()
                weight.data = (weight.double() + sigma * rms * drawn).to(weight.dtype)
    return made


def noise_at(seed: int, first: int, last: int, width: int) -> Tensor:
    """Return the noise of the tokens ``first .. last - 1``, counted from the answer's first."""
    drawn = torch.stack([normal(f"{seed}:{place}", width) for place in range(first, last)])
    return drawn / drawn.norm(dim=1, keepdim=True)


def answer(lm: LanguageModel, prompt: Sequence[int], seed: int, size: float, positions: str) -> Any:
    """Write under token noise, every token from the whole sequence anew; stop at the end token."""
    written: list[int] = []
    for _ in range(STEPS):
        at = tiny.chosen(positions, len(prompt), len(written))
        noise = size * noise_at(seed, -len(prompt), len(written), lm.width)
        ids = [*prompt, *written]
        logits, _ = tiny.run(lm.hf, ids, source=SOURCE, vector=noise, at=at)
        token = int(logits[-1].argmax())
        if token == 257:
            break
        written.append(token)
    return written


def mean_shift(run: Callable[[Sequence[int]], Tensor], rest: Any) -> Tensor:
    """Return the effect: the mean over prompts and their last three tokens, prompt by prompt."""
    moved = [
        (run(ids) - tiny.run(rest, ids)[1][TARGET])[-3:].mean(0, dtype=torch.float64)
        for ids in PROMPTS
    ]
    return torch.stack(moved).mean(0)


def near(first: Tensor, second: Tensor, tolerance: float = 1e-4) -> None:
    assert first.shape == second.shape
    assert float((first.double() - second.double()).norm()) < tolerance * float(second.norm())


def write(
    lm: LanguageModel, kind: Kind, theta: Tensor, rows: Sequence[Row] | None = None, **options: Any
) -> dict[Row, list[int]]:
    rows = rows_of(len(theta), len(PROMPTS)) if rows is None else rows
    settings = {"max_new_tokens": STEPS} | options
    batches = generate(lm, lm.pad(PROMPTS), rows, theta, kind=kind, **settings)
    return {done.row: list(done.tokens) for batch in batches for done in batch}


# -- weights ---------------------------------------------------------------------------------------


@torch.no_grad()
def test_weight_noise_is_a_model_with_changed_weights(any_lm: LanguageModel) -> None:
    theta = torch.tensor([[SIGMA], [SIGMA / 3]])
    changed = [
        noised(any_lm.hf, seed, float(s)) for seed, s in zip(SEEDS, theta[:, 0], strict=False)
    ]
    effect = slice_of(any_lm, WEIGHTS).effect(theta)
    for line, hf in zip(effect, changed, strict=True):
        near(line, mean_shift(lambda ids, hf=hf: tiny.run(hf, ids)[1][TARGET], any_lm.hf), 1e-3)
    loop = {
        Row(i, j): tiny.greedy(hf, ids, STEPS, ends={257})
        for i, hf in enumerate(changed, 1)
        for j, ids in enumerate(PROMPTS)
    }
    assert write(any_lm, WEIGHTS, theta) == loop


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("pattern", ["", "self_attn", "down_proj"])
def test_noise_is_relative_to_each_matrix_and_on_those_asked_for(
    lm_of: Any, dtype: torch.dtype, pattern: str
) -> None:
    lm = lm_of("llama", dtype)
    kind = replace(WEIGHTS, modules=pattern)
    before = {name: weight.clone() for name, weight in lm.hf.named_parameters()}
    expected = dict(noised(lm.hf, SEEDS[2], pattern=pattern).named_parameters())
    with kind.changing(lm, torch.tensor([[SIGMA]], dtype=torch.float64), [2]):
        now = {name: weight.clone() for name, weight in lm.hf.named_parameters()}
    moved = {name for name in now if not torch.equal(now[name], before[name])}
    assert moved == {
        name
        for name, weight in before.items()
        if weight.ndim == 2 and re.match(r"model\.layers\.[23]\.", name) and pattern in name
    }
    assert len(moved) == {"": 14, "self_attn": 8, "down_proj": 2}[pattern]
    for name in moved:
        # Neighbours in half precision are up to 2**-7 apart; kernels that differ by a last bit in
        # single precision may round to either.
        rounding = {torch.bfloat16: 2**-7, torch.float32: 1e-6, torch.float64: 1e-14}[dtype]
        typical = float(before[name].abs().mean())
        torch.testing.assert_close(
            now[name], expected[name], rtol=rounding, atol=typical * min(rounding, 1e-6)
        )
        share = (now[name] - before[name]).double().norm() / before[name].double().norm()
        assert float(share) == pytest.approx(SIGMA, rel=5 / (2 * before[name].numel()) ** 0.5)


def test_half_precision_rounds_once(lm_of: Any) -> None:
    """The noise is not rounded before it is added: each weight is the nearest to the sum."""
    lm = lm_of("llama", torch.bfloat16)
    expected = noised(lm.hf, SEEDS[0], 0.01)
    with WEIGHTS.changing(lm, torch.tensor([[0.01]]), [0]):
        for name, weight in lm.hf.named_parameters():
            differ = (weight != expected.get_parameter(name)).float().mean()
            assert float(differ) < 0.001, name


def test_noise_of_weights_is_normal_and_unlike_from_matrix_to_matrix(tiny_lm: Any) -> None:
    before = dict(tiny_lm.hf.named_parameters())
    drawn = {}
    with WEIGHTS.changing(tiny_lm, torch.tensor([[SIGMA]]), [0]):
        for name, weight in tiny_lm.hf.named_parameters():
            if weight is not before[name]:
                noise = weight.detach() - before[name]
                drawn[name] = (noise / before[name].pow(2).mean().sqrt() / SIGMA).flatten()
    assert stats.kstest(torch.cat(list(drawn.values())).numpy(), "norm").pvalue > 0.01
    assert len({float(noise[0]) for noise in drawn.values()}) == len(drawn) == 14


def test_zero_sigma_and_no_perturbation_change_nothing(tiny_lm: LanguageModel) -> None:
    rows = [*rows_of(1, 3), *[Row(0, prompt) for prompt in range(3)]]
    done = write(tiny_lm, WEIGHTS, torch.zeros(1, 1), rows)
    plain = write(tiny_lm, Vectors(0, 32), torch.zeros(0, 32), rows[3:])
    assert all(done[row] == done[Row(0, row.prompt)] == plain[row] for row in plain)
    assert len(plain) == 3


class BrokenError(Exception):
    pass


def installing(lm: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """Break down after some weights are changed and before the others are."""
    left, draw = [4], noise._normal

    def draw_four(*arguments: Any) -> Tensor:
        left[0] -= 1
        if left[0] < 0:
            raise BrokenError
        return draw(*arguments)

    monkeypatch.setattr(noise, "_normal", draw_four)
    slice_of(lm, WEIGHTS).effect(torch.ones(1, 1))


def running(lm: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*arguments: Any) -> None:
        raise BrokenError

    part = slice_of(lm, WEIGHTS)
    handle = lm.blocks[3].register_forward_hook(broken)
    try:
        part.effect(torch.ones(1, 1))
    finally:
        handle.remove()


def writing(lm: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = [0]

    def broken_in_the_third_step(*arguments: Any) -> None:
        calls[0] += 1
        if calls[0] == 4:  # the prefix, which is not noised, is the first
            raise BrokenError

    handle = lm.blocks[0].register_forward_hook(broken_in_the_third_step)
    try:
        write(lm, WEIGHTS, torch.full((3, 1), SIGMA))
    finally:
        handle.remove()
    raise AssertionError("it never broke down")


def nothing_wrong(lm: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    part = slice_of(lm, WEIGHTS)
    theta = torch.full((3, 1), SIGMA)
    part.effect(theta)
    part.jvp(theta, theta)
    part.vjp(theta, part.effect(theta))
    write(lm, WEIGHTS, theta)
    raise BrokenError


def too_much(lm: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(EffectError):
        slice_of(lm, WEIGHTS).effect(torch.full((2, 1), float("inf")))
    raise BrokenError


@pytest.mark.parametrize("what", [installing, running, writing, nothing_wrong, too_much])
def test_weights_are_left_as_they_were(
    tokenizer: Any, what: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    lm = LanguageModel(tiny.hf_model(), tokenizer, name="llama")
    wanting = lm.hf.model.layers[2].self_attn.q_proj.weight.requires_grad_(True)
    before = list(lm.hf.named_parameters())
    bits = [weight.detach().clone() for _, weight in before]
    for layer in range(lm.depth - 1):
        lm.source(layer)  # where the model can begin is known before anything breaks
    with pytest.raises(BrokenError):
        what(lm, monkeypatch)
    after = list(lm.hf.named_parameters())
    assert [name for name, _ in after] == [name for name, _ in before]  # in the same order
    assert all(now is then for (_, now), (_, then) in zip(after, before, strict=True))
    assert all(torch.equal(now, then) for (_, now), then in zip(after, bits, strict=True))
    assert [w for _, w in after if w.requires_grad or w.grad is not None] == [wanting]
    assert wanting.grad is None


@pytest.fixture(scope="module")
def tuned(tokenizer: Any) -> LanguageModel:
    """A model with an adapter beside its weights."""
    config = LoraConfig(
        r=2,
        target_modules=["q_proj", "down_proj"],
        init_lora_weights=False,
        task_type="CAUSAL_LM",
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        hf = get_peft_model(tiny.hf_model(), config)
    return LanguageModel(hf, tokenizer, name="tuned")


@torch.no_grad()
def test_noise_beside_an_adapter(tuned: LanguageModel, tiny_lm: LanguageModel) -> None:
    plain, beside = WEIGHTS.parameters(tiny_lm), WEIGHTS.parameters(tuned)
    added = set(beside) - set(plain)
    assert set(plain) < set(beside)  # under the same names
    assert added == {
        f"{block}.{module}.lora_{letter}.default.weight"
        for block in (2, 3)
        for module in ("self_attn.q_proj", "mlp.down_proj")
        for letter in "AB"
    }
    hf = copy.deepcopy(tuned.unwrapped)
    for name in beside:
        block, _, path = name.partition(".")
        stem, _, leaf = path.rpartition(".")
        module = hf.model.layers[int(block)].get_submodule(stem)
        weight = getattr(module, "base_layer", module).get_parameter(leaf)
        drawn = normal(f"{SEEDS[1]}:{name}", *weight.shape)
        weight.data += SIGMA * weight.pow(2).mean().sqrt() * drawn
    theta = torch.full((3, 1), SIGMA)
    effect = slice_of(tuned, WEIGHTS).effect(theta)
    near(effect[1], mean_shift(lambda ids: tiny.run(hf, ids)[1][TARGET], tuned.unwrapped), 1e-3)
    done = write(tuned, WEIGHTS, theta, [Row(2, j) for j in range(3)])
    assert done == {Row(2, j): tiny.greedy(hf, ids, STEPS) for j, ids in enumerate(PROMPTS)}


# -- tokens ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "bamba"])
@pytest.mark.parametrize("positions", ["all", "prompt", "generated", "last:2", "last:9"])
@torch.no_grad()
def test_token_noise_is_that_of_a_loop(lm_of: Any, architecture: str, positions: str) -> None:
    lm = lm_of(architecture)
    kind, size = token_noise(lm, positions), some_radius(lm)
    theta = size * torch.tensor([[1.0], [0.7], [0.4]])
    rows = [*rows_of(3, 3), Row(0, 1)]
    loop = {
        row: answer(lm, PROMPTS[row.prompt], SEEDS[row.perturbation - 1], float(s), positions)
        for row in rows
        for s in [theta[row.perturbation - 1, 0] if row.perturbation else 0.0]
    }
    done = write(lm, kind, theta, rows)
    assert done == loop
    assert len({tuple(ids) for ids in done.values()}) > 5
    if positions == "generated":
        with pytest.raises(PositionsError):
            slice_of(lm, kind)
        return
    for at_once in (16, 2048):  # a row at a time, and all together
        effect = slice_of(lm, kind, tokens_per_chunk=at_once).effect(theta)
        for line, seed, s in zip(effect, SEEDS, theta[:, 0], strict=True):

            def run(ids: Sequence[int], seed: int = seed, s: float = float(s)) -> Tensor:
                noise = s * noise_at(seed, -len(ids), 0, lm.width)
                at = tiny.chosen(positions, len(ids))
                return tiny.run(lm.hf, ids, source=SOURCE, vector=noise, at=at)[1][TARGET]

            near(line, mean_shift(run, lm.hf), 1e-3)


def test_positions_of_token_noise_lead_to_different_texts(tiny_lm: LanguageModel) -> None:
    theta = torch.full((3, 1), some_radius(tiny_lm))
    texts = [
        str(write(tiny_lm, token_noise(tiny_lm, positions), theta))
        for positions in ("all", "prompt", "generated", "last:2")
    ]
    assert len(set(texts)) == 4


def test_every_token_gets_noise_of_the_radius_uniform_on_the_sphere() -> None:
    width, seeds = 16, tuple(range(40))
    kind = TokenNoise(1, width, seeds)
    added = kind.added(torch.full((40, 1), 7.5), range(40), range(-60, 40))
    assert added.shape == (40, 1, 100, width)
    torch.testing.assert_close(added.norm(dim=-1), torch.full((40, 1, 100), 7.5))
    rows = (added / 7.5).reshape(-1, width).double()
    assert len(rows.unique(dim=0)) == 4000
    # One coordinate of a uniform point is 2 B - 1 with B of the beta distribution.
    share = stats.beta((width - 1) / 2, (width - 1) / 2)
    assert stats.kstest((rows.flatten().numpy() + 1) / 2, share.cdf).pvalue > 0.01
    # Neighbouring tokens, and the same token under other seeds, are independent.
    cosines = (rows[1:] * rows[:-1]).sum(1), (rows[100:] * rows[:-100]).sum(1)
    for cosine in cosines:
        assert stats.kstest((cosine.numpy() + 1) / 2, share.cdf).pvalue > 0.01
    second = rows.T @ rows / len(rows)
    assert float((second * width - torch.eye(width)).abs().max()) < 5 * (2 / 4000) ** 0.5
    assert float(rows.mean(0).abs().max()) < 5 / (4000 * width) ** 0.5


def test_noise_of_a_token_does_not_depend_on_what_it_is_drawn_with() -> None:
    kind = TokenNoise(1, 16, (3, 4, 5))
    whole = kind.added(torch.ones(3, 1), [0, 1, 2], range(-5, 9))
    for item in range(3):
        for place in range(-5, 9):
            alone = kind.added(torch.ones(1, 1), [item], [place])
            assert torch.equal(alone[0, 0, 0], whole[item, 0, place + 5])
    assert torch.equal(kind.added(torch.ones(2, 1), [2, 0], range(-5, 9)), whole[[2, 0]])


def test_prompts_and_samples_share_the_noise_of_a_perturbation(tiny_lm: LanguageModel) -> None:
    """Which prompt it is, and how long another one of the batch, changes nothing."""
    kind, theta = token_noise(tiny_lm), torch.full((3, 1), some_radius(tiny_lm))
    done = write(tiny_lm, kind, theta, rows_of(3, 3, samples=2))
    for j, ids in enumerate(PROMPTS):
        alone = list(generate(tiny_lm, tiny_lm.pad([ids]), [Row(2, 0)], theta, kind=kind))
        assert list(alone[0][0].tokens)[:STEPS] == done[Row(2, j, 0)] == done[Row(2, j, 1)]


# -- derivatives in the size -----------------------------------------------------------------------


@pytest.mark.parametrize("name", ["token", "weights"])
def test_derivatives_in_the_size(lm_of: Any, name: str) -> None:
    lm = lm_of("gpt2", torch.float64)  # one that computes nothing in single precision
    kind = token_noise(lm) if name == "token" else WEIGHTS
    size = some_radius(lm) if name == "token" else SIGMA
    part = slice_of(lm, kind)
    theta = size * torch.tensor([[1.0], [0.5], [0.0]], dtype=torch.float64)
    tangent = torch.tensor([[1.0], [-2.0], [0.5]], dtype=torch.float64)

    def by_hand(sizes: Tensor) -> Tensor:
        lines = []
        for seed, size in zip(SEEDS, sizes[:, 0].tolist(), strict=True):

            def run(ids: Sequence[int], seed: int = seed, size: float = size) -> Tensor:
                if name == "weights":
                    return tiny.run(noised(lm.hf, seed, size), ids)[1][TARGET]
                noise = size * noise_at(seed, -len(ids), 0, lm.width).double()
                at = tiny.chosen("all", len(ids))
                return tiny.run(lm.hf, ids, source=SOURCE, vector=noise, at=at)[1][TARGET]

            lines.append(mean_shift(run, lm.hf))
        return torch.stack(lines)

    step = 1e-4 * size
    with torch.no_grad():
        near(part.effect(theta)[:2], by_hand(theta)[:2], 1e-6)
        slope = (by_hand(theta + step) - by_hand(theta - step)) / (2 * step)
    effect, moved = part.jvp(theta, tangent)
    near(moved, slope * tangent, 1e-6)
    near(effect, part.effect(theta), 1e-12)
    cotangent = torch.randn(3, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    _, pulled = part.vjp(theta, cotangent)
    near(pulled, (slope * cotangent).sum(1, keepdim=True), 1e-6)


# -- replays ---------------------------------------------------------------------------------------

PER = ["token", "weights"]


def searched(lm: LanguageModel, per: str, **options: Any) -> PerturbationSet:
    size = {"token": some_radius(lm), "weights": SIGMA, "rollout": some_radius(lm)}[per]
    settings = {"n": 4, "seed": 3, "radius": size, "config": NoiseConfig(per=per)}  # type: ignore[arg-type]
    return methods.search(slice_of(lm), "noise", **settings | options)


@functools.cache
def whole(lm: LanguageModel, per: str) -> dict[Row, list[int]]:
    found = searched(lm, per)
    done = write(lm, found.kind, found.theta)
    assert len({tuple(ids) for ids in done.values()}) > 6
    return done


@pytest.mark.parametrize("per", [*PER, "rollout"])
def test_the_same_seed_is_the_same_noise(tiny_lm: LanguageModel, per: str) -> None:
    first, again, other = (searched(tiny_lm, per, seed=seed) for seed in (3, 3, 4))
    assert first.kind == again.kind
    assert torch.equal(first.theta, again.theta)
    assert torch.equal(first.scores["effect"], again.scores["effect"])
    assert not torch.equal(first.scores["effect"], other.scores["effect"])
    assert len(first.scores["effect"].unique()) == 4


@pytest.mark.parametrize("per", PER)
def test_noise_does_not_depend_on_the_batch_or_its_order(tiny_lm: LanguageModel, per: str) -> None:
    found = searched(tiny_lm, per)
    rows = random.Random(0).sample(rows_of(4, 3), 12)
    for size in (1, 2, 5):
        done = write(tiny_lm, found.kind, found.theta, rows, rows_per_batch=size)
        assert done == whole(tiny_lm, per)
    some = [Row(4, 1), Row(1, 2)]
    alone = write(tiny_lm, found.kind, found.theta, some)
    assert alone == {row: whole(tiny_lm, per)[row] for row in some}
    picked = found.select([3, 1])
    assert write(tiny_lm, picked.kind, picked.theta) == {
        Row(i, j): whole(tiny_lm, per)[Row(item, j)]
        for i, item in ((1, 4), (2, 2))
        for j in (0, 1, 2)
    }
    chunked = slice_of(tiny_lm, found.kind, tokens_per_chunk=16).effect(found.theta)
    near(chunked.norm(dim=1), found.scores["effect"], 1e-5)


@pytest.mark.parametrize("per", PER)
def test_a_file_is_enough_to_replay_noise(tmp_path: Path, tiny_lm: Any, per: str) -> None:
    """Loaded again, on the same model loaded again, which is how a new process finds them."""
    found = searched(tiny_lm, per)
    found.save(tmp_path / "noise.safetensors")
    loaded = PerturbationSet.load(tmp_path / "noise.safetensors")
    assert loaded.kind == found.kind
    lm = LanguageModel(tiny.hf_model(), tiny.tokenizer(), name="llama")
    assert write(lm, loaded.kind, loaded.theta) == whole(tiny_lm, per)
    again = slice_of(lm, loaded.kind).effect(loaded.theta)
    assert torch.equal(again.norm(dim=1), found.scores["effect"])


@pytest.mark.parametrize("per", PER)
def test_a_seed_is_enough_to_replay_a_hit(tmp_path: Path, tiny_lm: Any, per: str) -> None:
    found = searched(tiny_lm, per)
    found.save(tmp_path / "noise.safetensors")
    with safe_open(str(tmp_path / "noise.safetensors"), framework="np") as file:
        fields = json.loads(file.metadata()["kind_json"])
        assert sum(file.get_tensor(name).size for name in file.keys()) == 12  # noqa: SIM118
    assert len(set(fields["seeds"])) == 4
    seed, size = fields["seeds"][2], float(found.radius[2])
    kind = replace(token_noise(tiny_lm) if per == "token" else WEIGHTS, seeds=(seed,))
    done = write(tiny_lm, kind, torch.tensor([[size]]))
    assert done == {Row(1, j): whole(tiny_lm, per)[Row(3, j)] for j in range(3)}
    if per == "token":
        by_hand = [answer(tiny_lm, ids, seed, size, "all") for ids in PROMPTS]
    else:
        hf = noised(tiny_lm.hf, seed, size)
        by_hand = [tiny.greedy(hf, ids, STEPS, ends={257}) for ids in PROMPTS]
    assert list(done.values()) == by_hand


def test_rollout_noise_is_random_directions(tiny_lm: LanguageModel) -> None:
    found = searched(tiny_lm, "rollout")
    size = float(found.radius[0])
    drawn = methods.search(slice_of(tiny_lm), "random", n=4, radius=size, seed=3)
    assert found.kind == drawn.kind == Vectors(SOURCE, 32)
    assert torch.equal(found.theta, drawn.theta)


# -- settings and errors ---------------------------------------------------------------------------


def test_the_kind_of_each_setting(tiny_lm: LanguageModel) -> None:
    part = slice_of(tiny_lm, positions="last:2")
    token = methods.prepared(part, "noise", n=5, config=NoiseConfig(), seed=1).kind
    assert isinstance(token, TokenNoise)
    assert (token.layer, token.width, token.positions) == (SOURCE, 32, "last:2")
    weights = methods.prepared(
        slice_of(tiny_lm), "noise", n=5, config=NoiseConfig("weights", "mlp"), seed=1
    ).kind
    assert isinstance(weights, WeightNoise)
    assert (weights.first, weights.last, weights.modules) == (SOURCE + 1, TARGET, "mlp")
    for kind in (token, weights):
        assert len(set(kind.seeds)) == 5
        assert all(0 <= seed < 2**31 for seed in kind.seeds)  # short enough to be copied by hand
    with pytest.raises(MethodError, match="leave positions at 'all'"):
        methods.prepared(part, "noise", n=5, config=NoiseConfig("weights"))


def test_noise_is_listed_with_its_settings() -> None:
    about = methods.described()["noise"]
    assert about["summary"].startswith("Noise: fuzzing proper")
    assert about["settings"] == {"per": "token", "modules": ""}


def test_doses(tiny_lm: LanguageModel) -> None:
    part = slice_of(tiny_lm)
    assert part.on(token_noise(tiny_lm)).unit == part.median_norm
    assert part.on(WEIGHTS).unit == 1.0


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"per": "layer"}, "per is 'layer': give token or rollout or weights"),
        ({"modules": "mlp"}, "modules are for weights, and per is 'token'"),
        ({"per": "weights", "modules": "("}, r"modules '\(' is no regular expression"),
    ],
)
def test_settings_that_make_no_sense_are_errors(settings: dict[str, Any], match: str) -> None:
    with pytest.raises(MethodError, match=match):
        Settings(prompts=("a",), method="noise", method_settings=settings).check()


def test_modules_that_nothing_is_named_like_are_an_error(tiny_lm: LanguageModel) -> None:
    found = NoiseConfig("weights", "q_prj")
    with pytest.raises(ModelError, match=r"no matrix in blocks 2 to 3 of llama .* 'q_prj'"):
        methods.search(slice_of(tiny_lm), "noise", n=2, radius=0.1, config=found)


def test_quantised_weights_are_an_error(tokenizer: Any) -> None:
    lm = LanguageModel(tiny.hf_model(), tokenizer, name="llama")
    part = slice_of(lm)
    for block in lm.blocks:
        for module in block.modules():
            if isinstance(module, nn.Linear):
                module.weight = nn.Parameter(module.weight.to(torch.int8), requires_grad=False)
    with pytest.raises(ModelError, match="held in floating point: weight noise needs one"):
        part.on(WEIGHTS).effect(torch.ones(1, 1))


@pytest.mark.parametrize(("first", "blocks"), [(0, 2), (3, 2), (2, 0)])
def test_a_band_that_is_not_there_is_an_error(tiny_lm: Any, first: int, blocks: int) -> None:
    kind = WeightNoise(first, blocks, SEEDS)
    with pytest.raises(LayerError, match=f"blocks {first} to {first + blocks - 1} cannot get"):
        write(tiny_lm, kind, torch.ones(3, 1))


@pytest.mark.parametrize("per", PER)
def test_a_perturbation_without_a_seed_is_an_error(tiny_lm: LanguageModel, per: str) -> None:
    kind = token_noise(tiny_lm) if per == "token" else WEIGHTS
    for ask in (
        lambda: write(tiny_lm, kind, torch.ones(5, 1)),
        lambda: slice_of(tiny_lm, kind).effect(torch.ones(5, 1)),
    ):
        with pytest.raises(SteeringError, match="number 3 has no seed: the kind has 3"):
            ask()


# -- the radius and the control --------------------------------------------------------------------


@pytest.mark.parametrize("per", PER)
def test_the_calibrated_size_has_the_error(tiny64: LanguageModel, per: str) -> None:
    config = NoiseConfig(per=per)  # type: ignore[arg-type]
    part = methods.prepared(slice_of(tiny64), "noise", n=30, config=config, seed=0)
    found = radius.calibrate(part)
    many = {"token": 30, "weights": 4}[per]
    one = torch.ones(many, 1, dtype=torch.float64)
    step = 1e-6 * part.unit
    linear = (part.effect(step * one) - part.effect(-step * one)) / (2 * step)
    off = (part.effect(found.radius * one) - found.radius * linear).norm(dim=1)
    error = (off / (found.radius * linear.norm(dim=1))).square().mean().sqrt()
    assert float(error) == pytest.approx(0.5, rel=0.03)
    assert found.dose == pytest.approx(found.radius / part.unit)


def test_the_radius_of_an_effect() -> None:
    part: Any = linear(torch.diag(torch.tensor([3.0, 1.0, 0.1, 0.0], dtype=torch.float64)))
    v = part.kind.draw(9, torch.Generator().manual_seed(2)).double()
    mean = float(part.effect(v).norm(dim=1).mean())
    for wanted in (1e-4, 0.7, 1.0, 3e3):
        found = radius.of_effect(part, wanted, directions=9, seed=2)
        assert found == pytest.approx(wanted / mean, rel=2e-3)
    with pytest.raises(RadiusError, match="the effect is zero"):
        radius.of_effect(part, 0.0, directions=9)


def test_the_control_of_token_noise_is_a_direction_of_the_same_norm(tiny_lm: Any) -> None:
    found = searched(tiny_lm, "token")
    control = methods.control(slice_of(tiny_lm), found, seed=8)
    assert control.kind == Vectors(SOURCE, 32)
    assert torch.equal(control.radius, found.radius)
    assert torch.equal(control.directions, control.kind.draw(4, torch.Generator().manual_seed(8)))
    assert control.method == "random"
    part = slice_of(tiny_lm, positions="last:2")
    some = methods.search(part, "noise", n=2, radius=1.0)
    assert methods.control(part, some, seed=8).kind == Vectors(SOURCE, 32, "last:2")


def test_the_control_of_weight_noise_has_the_same_mean_effect(tiny_lm: LanguageModel) -> None:
    found = searched(tiny_lm, "weights")
    control = methods.control(slice_of(tiny_lm), found, seed=8)
    assert control.kind == Vectors(SOURCE, 32)
    assert control.origin.unit == slice_of(tiny_lm).median_norm
    assert torch.equal(control.directions, control.kind.draw(4, torch.Generator().manual_seed(8)))
    mean = float(found.scores["effect"].mean())
    assert float(control.scores["effect"].mean()) == pytest.approx(mean, rel=5e-3)


def test_the_control_of_a_direction_a_rollout_is_another(tiny_lm: LanguageModel) -> None:
    found = searched(tiny_lm, "rollout")
    control = methods.control(slice_of(tiny_lm), found, seed=8)
    assert control.kind == found.kind
    assert torch.equal(control.radius, found.radius)
    assert not torch.equal(control.directions, found.directions)


# -- the main job ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run_of(tmp_path_factory: Any, tiny_lm: LanguageModel) -> Iterator[Callable[[str], Run]]:
    """Carry out a run for a setting of ``per``, once."""
    opened = []

    @functools.cache
    def carry_out(per: str) -> Run:
        settings = Settings(
            prompts=("Tell me.", "What is the code?"),
            fresh=("Say it.",),
            method="noise",
            method_settings={"per": per},
            n=2,
            source=SOURCE,
            target=TARGET,
            radius="1x,0.5x",
            baseline=4,
            max_new_tokens=5,
            look_for="e",
        )
        opened.append(begin(tmp_path_factory.mktemp(per) / "run", settings))
        discover_behaviours(opened[-1], lm=tiny_lm)
        return opened[-1]

    yield carry_out
    for run in opened:
        run.close()


@pytest.mark.parametrize("per", [*PER, "rollout"])
def test_what_a_run_wrote_is_what_its_seeds_write(
    run_of: Callable[[str], Run], tiny_lm: LanguageModel, per: str
) -> None:
    run = run_of(per)
    ids = {p.id: tiny_lm.tokenizer(p.rendered)["input_ids"] for p in run.prompt_rows()}
    replayed = 0
    for p in run.perturbation_rows("found"):
        with safe_open(str(run.tensors / p.file), framework="pt") as file:
            fields = json.loads(file.metadata()["kind_json"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        size = float(tensors["radius"][p.item])
        assert p.radius == size
        hf = noised(tiny_lm.hf, fields["seeds"][p.item], size) if per == "weights" else tiny_lm.hf
        for done in run.completion_rows():
            if done.perturbation != p.id:
                continue
            if per == "rollout":
                vector = size * tensors["vectors"][p.item]
                tokens = tiny.greedy(hf, ids[done.prompt], 5, source=1, vector=vector, ends={257})
            elif per == "token":
                seed = fields["seeds"][p.item]
                tokens = answer(tiny_lm, ids[done.prompt], seed, size, "all")[:5]
            else:
                tokens = tiny.greedy(hf, ids[done.prompt], 5, ends={257})
            assert list(done.tokens) == tokens
            replayed += 1
    others = [p for p in run.prompt_rows() if p.role == ELSEWHERE]
    assert replayed == 2 * 2 * (3 + len(others))  # the re-test on the fresh prompt and others too


@pytest.mark.parametrize("per", [*PER, "rollout"])
def test_both_arms_of_a_run_are_shown(run_of: Callable[[str], Run], per: str) -> None:
    run = run_of(per)
    summary = summarise(run)
    found, control = (run.perturbation_rows(arm) for arm in ("found", "control"))
    assert [p.radius for p in found] == sorted((p.radius for p in found), reverse=True)
    matched = dict(zip([p.radius for p in found], [p.radius for p in control], strict=True))
    assert set(summary.by_radius) == set(matched)
    for size, pair in summary.by_radius.items():
        for rate, items, own in zip(
            pair, (summary.found, summary.control), (size, matched[size]), strict=True
        ):
            there = [item for item in items if item.row.radius == own]
            assert (rate.hits, rate.trials) == (sum(item.hits > 0 for item in there), 2)
    if per == "weights":
        assert min(p.dose for p in found) != min(p.dose for p in control)
        for first, second in zip(found[::2], control[::2], strict=True):
            assert first.radius != second.radius
    # Response curves of each arm cover its own radii.
    arm = {p.id: p.arm for p in (*found, *control)}
    largest = {"found": found[0].radius, "control": control[0].radius}
    assert set(summary.responses) == set(arm)
    for number, points in summary.responses.items():
        assert points[-1][0] == pytest.approx(2 * largest[arm[number]])
        at_one = [size for r, size in points if r == pytest.approx(largest[arm[number]])]
        row = next(p for p in (*found, *control) if p.id == number)
        if row.radius == largest[arm[number]]:
            assert at_one == [pytest.approx(row.effect, rel=1e-3)]
    shown = text(page.document(run))
    held = {
        "token": "random directions, held over the whole text, at the same radii",
        "weights": "with the same mean effect at the target",
        "rollout": "4 random directions at the same radii",
    }
    assert [name for name, words in held.items() if words in shown] == [per]
    terminal.table(summary, run.folder)
    terminal.perturbation(summary, found[0].id)


def test_kinds_are_dataclasses_that_json_can_hold(tiny_lm: LanguageModel) -> None:
    for kind in (token_noise(tiny_lm, "last:2"), replace(WEIGHTS, modules="mlp")):
        plain, tensors = kinds.described(kind)
        said = json.loads(json.dumps(plain))
        assert said == json.loads(json.dumps(dataclasses.asdict(kind)))
        assert kinds.read(kind.name, said, tensors) == kind
