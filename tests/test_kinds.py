"""Adapters in slice and generation, against PEFT running each one alone on each prompt alone."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, Qwen3Config

import tiny
from educe import methods
from educe.errors import (
    FileFormatError,
    LayerError,
    MethodError,
    ModelError,
    SteeringError,
)
from educe.forward.generation import generate, rows_of
from educe.forward.slice import Slice
from educe.forward.slice.shift import Shift
from educe.model.language import LanguageModel
from educe.perturbation import kinds
from educe.perturbation.kinds import Adapters, Vectors, adapters
from educe.perturbation.set import PerturbationSet
from educe.rows import Row
from peft_oracle import NAMES, adapted, paths

ROWS = tiny.ragged([7, 15, 1])  # the longest is wider than every sliding window
BAND = range(2, 4)
STEPS = 8


def precision(architecture: str) -> torch.dtype:
    # Attention of these on padding is NaN in double precision: their masks overflow to -inf.
    return torch.float32 if architecture in ("gemma2", "bloom") else torch.float64


def slice_of(lm: LanguageModel, kind: Adapters, **options: Any) -> Slice:
    return Slice(lm, lm.pad(ROWS), source=1, target=3, **options).on(kind)


def random_sizes(part: Slice, n: int = 3, *, seed: int = 1) -> tuple[Tensor, list[float]]:
    """Return adapters at radii about as large as the stream, and the radii."""
    directions = part.kind.draw(n, torch.Generator().manual_seed(seed))
    radii = [part.unit * (0.5 + 0.3 * i) for i in range(n)]
    return directions.to(part.work_dtype), radii


def by_peft(lm: LanguageModel, kind: Adapters, row: Tensor, radius: float) -> Any:
    """Return the model with one adapter, its numbers cut out by hand."""
    a, b, at = [], [], 0
    for inputs in kind.inputs:
        for many, width in ((a, inputs), (b, kind.width)):
            many.append(row[at : at + kind.rank * width].reshape(kind.rank, width))
            at += kind.rank * width
    assert at == len(row)
    return adapted(lm.unwrapped, list(kind.paths), a, b, radius).get_base_model()


def effect(lm: LanguageModel, other: Any) -> Tensor:
    """Return what another model does to the last three tokens at block 3: prompt by prompt."""
    total = torch.zeros(lm.width, dtype=torch.float64)
    for ids in ROWS:
        change = tiny.run(other, ids)[1][3] - tiny.run(lm.unwrapped, ids)[1][3]
        total += change[-3:].double().mean(0) / len(ROWS)
    return total


# -- the effect ------------------------------------------------------------------------------------


@pytest.mark.parametrize("architecture", NAMES)
@pytest.mark.parametrize(("projection", "rank"), [("attention", 1), ("mlp", 2)])
@torch.no_grad()
def test_effect_is_that_of_peft_on_each_prompt_alone(
    lm_of: Callable[..., LanguageModel], architecture: str, projection: Any, rank: int
) -> None:
    lm = lm_of(architecture, precision(architecture))
    if projection == "mlp" and not NAMES[architecture][1]:
        with pytest.raises(ModelError, match="no single matrix that ends its mlp part"):
            adapters(lm, first=2, blocks=2, projection=projection)
        return
    kind = adapters(lm, first=2, blocks=2, projection=projection, rank=rank)
    assert list(kind.paths) == paths(architecture, lm.hf, BAND, projection)
    part = slice_of(lm, kind)
    directions, radii = random_sizes(part)
    came = part.effect(kind.scaled(directions, torch.tensor(radii)[:, None]))
    for line, radius in enumerate(radii):
        expected = effect(lm, by_peft(lm, kind, directions[line], radius))
        assert float(expected.norm()) > 0.1
        off = (came[line] - expected).norm() / expected.norm()
        assert float(off) < (1e-4 if lm.dtype == torch.float32 else 1e-6)


@torch.no_grad()
def test_inputs_may_have_another_width_than_the_stream(tokenizer: Any) -> None:
    config = Qwen3Config(**(tiny.COMMON | {"head_dim": 16}))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        hf = AutoModelForCausalLM.from_config(config).double()
    lm = LanguageModel(hf, tokenizer, name="wide")
    kind = adapters(lm, first=2, blocks=1)
    assert kind.inputs == (64,)
    assert kind.size == 64 + 32
    part = slice_of(lm, kind)
    directions, radii = random_sizes(part, 1)
    expected = effect(lm, by_peft(lm, kind, directions[0], radii[0]))
    came = part.effect(kind.scaled(directions, radii[0]))[0]
    torch.testing.assert_close(came, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("tokens", [15, 30, 45, 10**6])
@torch.no_grad()
def test_chunks_change_nothing(tiny64: LanguageModel, tokens: int) -> None:
    kind = adapters(tiny64, first=2, blocks=2)
    whole, part = slice_of(tiny64, kind), slice_of(tiny64, kind, tokens_per_chunk=tokens)
    directions, radii = random_sizes(whole, 4)
    theta = kind.scaled(directions, torch.tensor(radii)[:, None])
    torch.testing.assert_close(part.effect(theta), whole.effect(theta), rtol=1e-5, atol=1e-6)


@torch.no_grad()
def test_beside_an_adapter_the_modules_are_those_of_the_base_model(tokenizer: Any) -> None:
    organism = LoraConfig(
        r=2,
        target_modules=["q_proj", "o_proj", "down_proj"],
        init_lora_weights=False,
        task_type="CAUSAL_LM",
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        tuned = get_peft_model(tiny.hf_model(dtype=torch.float64), organism)
        lm = LanguageModel(tuned, tokenizer, name="tuned")
    for projection, name in (("attention", "self_attn.o_proj"), ("mlp", "mlp.down_proj")):
        kind = adapters(lm, first=2, blocks=2, projection=projection)  # type: ignore[arg-type]
        assert kind.paths == tuple(f"model.layers.{i}.{name}" for i in BAND)
        part = slice_of(lm, kind)
        directions, radii = random_sizes(part, 1)
        merged = tiny.hf_model(dtype=torch.float64)
        for module, matrix in merged.named_modules():
            if isinstance(matrix, nn.Linear) and module.split(".")[-1] in organism.target_modules:
                layer = tuned.get_base_model().get_submodule(module)
                matrix.weight += layer.get_delta_weight("default")
        for (a, b), block in zip(kind.split(directions), BAND, strict=True):
            weight = merged.get_submodule(f"model.layers.{block}.{name}").weight
            weight += radii[0] * b[0].T @ a[0]
        expected = effect(lm, merged)
        came = part.effect(kind.scaled(directions, radii[0]))[0]
        torch.testing.assert_close(came, expected, rtol=1e-5, atol=1e-6)


# -- derivatives -----------------------------------------------------------------------------------


@pytest.mark.parametrize("architecture", ["gpt2", "gpt_neox", "falcon", "llama"])
@pytest.mark.parametrize(("projection", "rank"), [("attention", 1), ("mlp", 2)])
def test_jvp_and_vjp_are_products_with_the_dense_jacobian(
    lm_of: Callable[..., LanguageModel], architecture: str, projection: Any, rank: int
) -> None:
    lm = lm_of(architecture, torch.float64)
    kind = adapters(lm, first=2, blocks=2, projection=projection, rank=rank)
    part = slice_of(lm, kind)
    directions, radii = random_sizes(part, 2)
    theta = kind.scaled(directions, torch.tensor(radii)[:, None])

    def change(row: Tensor) -> Tensor:
        """The effect of one adapter, added by hooks of its own; differentiable."""
        total = torch.zeros(lm.width, dtype=torch.float64)
        cut = [
            row[start:stop]
            for start, stop in pairwise([0, *torch.tensor(widths).cumsum(0).tolist()])
        ]
        for ids in ROWS:
            rest = tiny.run(lm.hf, ids)[1][3]
            handles = []
            for block, name in enumerate(kind.paths):
                a = cut[2 * block].reshape(rank, -1)
                b = cut[2 * block + 1].reshape(rank, -1)

                def add(module: Any, args: Any, out: Tensor, a: Any = a, b: Any = b) -> Tensor:
                    return out + sum(
                        (args[0] @ x)[..., None] * y for x, y in zip(a, b, strict=True)
                    )

                handles.append(lm.hf.get_submodule(name).register_forward_hook(add))
            try:
                moved = tiny.run(lm.hf, ids)[1][3]
            finally:
                for handle in handles:
                    handle.remove()
            total = total + (moved - rest)[-3:].mean(0) / len(ROWS)
        return total

    widths = [rank * w for inputs in kind.inputs for w in (inputs, kind.width)]
    tolerance = 1e-9 if architecture != "llama" else 1e-4  # it has norms in single precision
    draw = torch.Generator().manual_seed(7)
    tangent = torch.randn(theta.shape, generator=draw, dtype=torch.float64)
    cotangent = torch.randn(2, lm.width, generator=draw, dtype=torch.float64)
    jacobian = torch.stack([torch.autograd.functional.jacobian(change, row) for row in theta])
    value = torch.stack([change(row) for row in theta])

    def near(came: Tensor, expected: Tensor) -> None:
        off = (came - expected).norm(dim=1) / expected.norm(dim=1)
        assert float(off.max()) < tolerance

    effects, forward = part.jvp(theta, tangent)
    near(effects, value)
    near(forward, torch.einsum("nij,nj->ni", jacobian, tangent))
    effects, backward = part.vjp(theta, cotangent)
    near(effects, value)
    near(backward, torch.einsum("nij,ni->nj", jacobian, cotangent))

    def along(shift: Shift) -> Tensor:
        return (shift.mean * cotangent[shift.chunk.first : shift.chunk.last]).sum(1)

    _, gradient = part.value_and_grad(theta, along)
    near(gradient, torch.einsum("nij,ni->nj", jacobian, cotangent))


def test_a_gradient_is_taken_to_the_unit_adapters_as_they_are_scaled(
    tiny64: LanguageModel,
) -> None:
    kind = adapters(tiny64, first=2, blocks=2, rank=2)
    unit = kind.draw(1, torch.Generator().manual_seed(0)).double().requires_grad_(True)
    weights = torch.randn(kind.size, generator=torch.Generator().manual_seed(1)).double()

    def smooth(theta: Tensor) -> Tensor:
        return (theta @ weights).sin().sum() + theta.pow(3).sum()

    (expected,) = torch.autograd.grad(smooth(kind.scaled(unit, 2.5)), unit)
    theta = kind.scaled(unit.detach(), 2.5).requires_grad_(True)
    (gradient,) = torch.autograd.grad(smooth(theta), theta)
    torch.testing.assert_close(kind.scaled(gradient, 2.5), expected)


# -- generation ------------------------------------------------------------------------------------


def written(lm: LanguageModel, kind: Adapters, theta: Tensor, rows: Any, **options: Any) -> Any:
    settings = {"kind": kind, "max_new_tokens": STEPS} | options
    done = [c for batch in generate(lm, lm.pad(ROWS), rows, theta, **settings) for c in batch]
    assert len(done) == len(rows)
    return {c.row: list(c.tokens) for c in done}


@pytest.mark.parametrize(
    ("architecture", "projection"),
    [
        ("llama", "attention"),
        ("gpt2", "mlp"),
        ("gemma2", "mlp"),
        ("falcon", "attention"),
        ("mixtral", "attention"),
    ],
)
def test_batched_generation_is_peft_one_by_one(
    lm_of: Callable[..., LanguageModel], architecture: str, projection: Any
) -> None:
    lm = lm_of(architecture)
    kind = adapters(lm, first=1, blocks=2, projection=projection)
    part = Slice(lm, lm.pad(ROWS), source=0, target=3).on(kind)
    directions, radii = random_sizes(part, 2)
    theta = kind.scaled(directions, torch.tensor(radii)[:, None])
    rows = [*rows_of(2, 3), *(Row(0, prompt) for prompt in range(3))]
    came = written(lm, kind, theta, rows, rows_per_batch=5)
    models = [by_peft(lm, kind, directions[i], radii[i]) for i in range(2)]
    expected = {
        row: tiny.greedy((lm.hf, *models)[row.perturbation], ROWS[row.prompt], STEPS, ends={257})
        for row in rows
    }
    assert came == expected
    assert len({tuple(tokens) for tokens in expected.values()}) > 5  # adapters and prompts matter


def test_rows_that_end_do_not_disturb_the_others(
    tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    lm = LanguageModel(tiny.hf_model(), tokenizer, name="llama")
    ends = set(range(0, 262, 6))
    monkeypatch.setattr(lm.hf.generation_config, "eos_token_id", sorted(ends))
    kind = adapters(lm, first=1, blocks=2)
    part = Slice(lm, lm.pad(ROWS), source=0, target=3).on(kind)
    directions, radii = random_sizes(part, 4)
    theta = kind.scaled(directions, torch.tensor(radii)[:, None])
    came = written(lm, kind, theta, rows_of(4, 3))
    models = [by_peft(lm, kind, directions[i], radii[i]) for i in range(4)]
    for row, tokens in came.items():
        model = models[row.perturbation - 1]
        loop = tiny.greedy(model, ROWS[row.prompt], STEPS, ends=ends | {257})
        assert tokens == loop
    assert len({len(tokens) for tokens in came.values()}) > 3  # they end at different times


# -- what its numbers are --------------------------------------------------------------------------

KIND = Adapters(2, ("x", "y"), (5, 3), 4, 2)


def test_numbers_are_the_columns_of_a_and_b_block_after_block() -> None:
    assert KIND.size == 2 * (5 + 4) + 2 * (3 + 4)
    theta = torch.arange(2.0 * KIND.size).reshape(2, -1)
    (a, b), (c, d) = KIND.split(theta)
    assert a.shape == (2, 2, 5)
    assert d.shape == (2, 2, 4)
    assert a[0].tolist() == [[0, 1, 2, 3, 4], [5, 6, 7, 8, 9]]
    assert b[0].tolist() == [[10, 11, 12, 13], [14, 15, 16, 17]]
    assert c[0].tolist() == [[18, 19, 20], [21, 22, 23]]
    assert d[0].tolist() == [[24, 25, 26, 27], [28, 29, 30, 31]]
    assert torch.equal(KIND.joined(KIND.split(theta)), theta)
    assert [column.tolist() for column in KIND.columns(theta)] == [
        part.tolist() for part in (a, b, c, d)
    ]


def test_a_drawn_adapter_has_columns_of_norm_one_and_the_spectral_norm_of_its_radius() -> None:
    kind = dataclasses.replace(KIND, rank=1)
    theta = kind.scaled(kind.draw(6, torch.Generator().manual_seed(0)), 2.5)
    for a, b in kind.split(theta):
        torch.testing.assert_close(a.norm(dim=2), torch.ones(6, 1))
        change = b.mT @ a
        values = torch.linalg.svdvals(change)
        torch.testing.assert_close(values[:, 0], torch.full((6,), 2.5))
        assert float(values[:, 1:].max()) < 1e-6


def test_draws_are_uniform_on_each_sphere_and_independent() -> None:
    drawn = KIND.draw(20000, torch.Generator().manual_seed(0)).double()
    assert drawn.dtype == torch.float64
    assert float(drawn.mean(0).abs().max()) < 4 * (1 / 3 / 20000) ** 0.5
    # E[x xᵀ] is diagonal, 1 / width on each column's own coordinates.
    widths = torch.tensor([5.0] * 10 + [4] * 8 + [3] * 6 + [4] * 8).double()
    assert float((drawn.T @ drawn / 20000 - torch.diag(1 / widths)).abs().max()) < 0.015
    again = KIND.draw(20000, torch.Generator().manual_seed(0))
    assert torch.equal(again.double(), drawn)


def test_each_adapter_may_have_its_own_radius() -> None:
    directions = KIND.draw(3, torch.Generator().manual_seed(0))
    theta = KIND.scaled(directions, torch.tensor([[1.0], [2.0], [0.0]]))
    for (a, b), (c, d) in zip(KIND.split(directions), KIND.split(theta), strict=True):
        assert torch.equal(a, c)
        assert torch.equal(d, b * torch.tensor([1.0, 2.0, 0.0])[:, None, None])
    assert torch.equal(KIND.scaled(directions, 2.0)[1], theta[1])


def test_normalised_scales_every_column() -> None:
    theta = torch.randn(3, KIND.size, generator=torch.Generator().manual_seed(0)).double()
    came = KIND.normalised(theta)
    at = 0
    for width in [5] * 2 + [4] * 2 + [3] * 2 + [4] * 2:
        for line in range(3):
            column = theta[line, at : at + width]
            length = math.sqrt(sum(float(x) ** 2 for x in column))
            torch.testing.assert_close(came[line, at : at + width], column / length)
        at += width
    vectors = Vectors(1, 4)
    plain = vectors.normalised(torch.tensor([[3.0, 0, 4, 0]]))
    assert plain.tolist() == [[pytest.approx(0.6), 0, pytest.approx(0.8), 0]]


@pytest.mark.parametrize(("projection", "rank"), [("attention", 1), ("mlp", 3)])
@torch.no_grad()
def test_at_dose_one_a_random_adapter_adds_as_much_as_the_stream(
    tiny64: LanguageModel, projection: Any, rank: int
) -> None:
    kind = adapters(tiny64, first=2, blocks=2, projection=projection, rank=rank)
    part = slice_of(tiny64, kind)
    taken: dict[str, list[float]] = {name: [] for name in kind.paths}
    streams = []
    for ids in ROWS:
        handles = [
            tiny64.hf.get_submodule(name).register_forward_pre_hook(
                lambda module, args, name=name: taken[name].extend(args[0][0, 1:].norm(dim=1))
            )
            for name in kind.paths
        ]
        streams += tiny.run(tiny64.hf, ids)[1][1][1:].norm(dim=1)
        for handle in handles:
            handle.remove()
    median_norm = float(np.median(torch.stack(streams).numpy()))
    norms = [float(np.median(taken[name])) for name in kind.paths]
    # What random columns add to an input of that norm, in the root mean square.
    draw = torch.Generator().manual_seed(0)
    added = []
    for norm, inputs in zip(norms, kind.inputs, strict=True):
        x = torch.zeros(inputs)
        x[0] = norm
        a = torch.nn.functional.normalize(torch.randn(20000, rank, inputs, generator=draw), dim=2)
        b = torch.nn.functional.normalize(torch.randn(20000, rank, 32, generator=draw), dim=2)
        added.append(((a @ x)[..., None] * b).sum(1).square().sum(1).mean().sqrt())
    expected = median_norm / float(torch.stack(added).mean())
    assert part.unit == pytest.approx(expected, rel=0.02)
    exact = (
        median_norm
        * 2
        / sum(n * (rank / i) ** 0.5 for n, i in zip(norms, kind.inputs, strict=True))
    )
    assert part.unit == pytest.approx(exact, rel=1e-5)


# -- files -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("rank", [1, 2])
def test_a_set_of_adapters_comes_back_bit_for_bit(
    tiny_lm: LanguageModel, tmp_path: Path, rank: int
) -> None:
    kind = adapters(tiny_lm, first=2, blocks=2, projection="mlp", rank=rank)
    part = slice_of(tiny_lm, kind)
    found = methods.search(part, "random", n=3, radius=1.5, seed=4)
    found.save(tmp_path / "set.safetensors")
    read = PerturbationSet.load(tmp_path / "set.safetensors")
    assert read.kind == kind
    assert torch.equal(read.directions, found.directions)
    assert torch.equal(read.radius, found.radius)
    assert torch.equal(read.theta, kind.scaled(found.directions, 1.5))
    assert read.origin == found.origin
    assert read.origin.unit == part.unit
    torch.testing.assert_close(read.dose, torch.full((3,), 1.5 / part.unit))
    some = read.select([2, 0])
    assert some.kind == kind
    assert torch.equal(some.theta, read.theta[[2, 0]])


def test_a_kind_is_read_from_what_describes_it() -> None:
    assert kinds.read("adapters", *kinds.described(KIND)) == KIND
    with pytest.raises(FileFormatError, match="kind 'horses' are unknown"):
        kinds.read("horses", {}, {})


def test_a_control_is_random_adapters_of_the_same_kind_and_radius(tiny_lm: LanguageModel) -> None:
    kind = adapters(tiny_lm, first=2, blocks=2)
    part = slice_of(tiny_lm, kind)
    found = methods.search(part, "random", n=3, radius=1.5, seed=4)
    vectors = Slice(tiny_lm, tiny_lm.pad(ROWS), source=1, target=3)
    control = methods.control(vectors, found, seed=5)
    assert control.kind == kind
    assert torch.equal(control.radius, found.radius)
    assert torch.equal(control.directions, kind.draw(3, torch.Generator().manual_seed(5)))


# -- what must not happen --------------------------------------------------------------------------


@pytest.mark.parametrize(("first", "blocks"), [(0, 2), (-1, 1), (3, 2), (4, 1), (2, 0)])
def test_a_band_outside_the_model_is_an_error(
    tiny_lm: LanguageModel, first: int, blocks: int
) -> None:
    with pytest.raises(LayerError, match="cannot hold adapters: llama has blocks 0 to 3"):
        adapters(tiny_lm, first=first, blocks=blocks)


@pytest.mark.parametrize(("first", "blocks"), [(1, 1), (3, 1)])
def test_a_band_that_does_not_begin_where_the_slice_does_is_an_error(
    tiny_lm: LanguageModel, first: int, blocks: int
) -> None:
    kind = adapters(tiny_lm, first=first, blocks=blocks)
    with pytest.raises(LayerError, match=f"adapters in blocks {first} to {first} do not fit"):
        slice_of(tiny_lm, kind)


def test_a_band_that_ends_beyond_the_target_is_an_error(tiny_lm: LanguageModel) -> None:
    part = Slice(tiny_lm, tiny_lm.pad(ROWS), source=1, target=2)
    with pytest.raises(LayerError, match="blocks 2 to 3 do not fit a slice of blocks 2 to 2"):
        part.on(adapters(tiny_lm, first=2, blocks=2))


def test_positions_other_than_all_are_an_error(tiny_lm: LanguageModel) -> None:
    part = Slice(tiny_lm, tiny_lm.pad(ROWS), source=1, target=3, positions="last:2")
    with pytest.raises(MethodError, match="act on all tokens: leave positions at 'all'"):
        methods.search(part, "lora", n=1, radius=1.0)


def test_numbers_of_another_kind_are_an_error(tiny_lm: LanguageModel) -> None:
    kind = adapters(tiny_lm, first=2, blocks=1)
    with pytest.raises(SteeringError, match=r"adapters have shape \(2, 32\), expected \[n, 64\]"):
        written(tiny_lm, kind, torch.zeros(2, 32), rows_of(2, 1))


def test_a_module_that_is_never_called_is_an_error(tiny_lm: LanguageModel) -> None:
    other = dataclasses.replace(
        adapters(tiny_lm, first=2, blocks=1), paths=("model.layers.0.self_attn.o_proj",)
    )
    with pytest.raises(SteeringError, match=r"layers.0.self_attn.o_proj was never called"):
        slice_of(tiny_lm, other).effect(torch.ones(1, other.size))


@pytest.mark.parametrize("fails", [False, True])
def test_the_model_is_left_as_it_was(tiny_lm: LanguageModel, fails: bool) -> None:
    kind = adapters(tiny_lm, first=2, blocks=2)
    part = slice_of(tiny_lm, kind)
    plain = tiny_lm.forward(part.batch.ids, part.batch.mask)
    hooks = [len(module._forward_hooks) for module in tiny_lm.hf.modules()]

    def unhappy(shift: Shift) -> Tensor:
        raise ZeroDivisionError

    theta = kind.draw(2, torch.Generator().manual_seed(0)) * 100
    if fails:
        with pytest.raises(ZeroDivisionError):
            part.value_and_grad(theta, unhappy)
        gone = dataclasses.replace(kind, paths=(kind.paths[0], "model.layers.0.self_attn.o_proj"))
        with pytest.raises(SteeringError):
            slice_of(tiny_lm, gone).effect(theta)
    else:
        part.vjp(theta, torch.ones(2, 32))
        written(tiny_lm, kind, theta, rows_of(2, 3))
    assert torch.equal(tiny_lm.forward(part.batch.ids, part.batch.mask), plain)
    assert [len(module._forward_hooks) for module in tiny_lm.hf.modules()] == hooks
    assert all(weight.grad is None for weight in tiny_lm.hf.parameters())
