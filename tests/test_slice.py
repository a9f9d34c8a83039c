"""Slice: effects and their derivatives, against the whole model run on one prompt at a time."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

import tiny
from educe.errors import EffectError, LayerError, ModelError, PositionsError
from educe.forward.chunks import Chunk
from educe.forward.slice import Slice
from educe.forward.slice.norms import after_first, median_norm
from educe.forward.slice.replay import CALLS_KEPT
from educe.forward.slice.shift import Shift
from educe.model.language import LanguageModel
from educe.perturbation.kinds import TokenNoise, Vectors, adapters

ROWS = tiny.ragged([7, 15, 1])  # the longest is wider than every sliding window
TOKENS = 15

# In double precision throughout; the others compute norms, experts or states in float32 inside.
DOUBLE = ["gpt2", "gpt_neox", "opt", "falcon", "falcon_alibi"]


def slice_of(lm: LanguageModel, *, source: float = 1, target: float = 3, **options: Any) -> Slice:
    return Slice(lm, lm.pad(ROWS), source=source, target=target, **options)


def vectors(part: Slice, n: int = 3, *, seed: int = 1, dose: float = 0.5) -> Tensor:
    """Return random vectors whose norm is a share of the activations'."""
    draw = torch.Generator().manual_seed(seed)
    unit = torch.nn.functional.normalize(torch.randn(n, part.width, generator=draw), dim=1)
    return (unit * dose * part.median_norm).to(part.work_dtype)


def effect(
    hf: Any,
    theta: Tensor,
    *,
    source: int = 1,
    target: int = 3,
    positions: str = "all",
    readout: str = "last:3",
) -> Tensor:
    """Return the effect of one vector by definition; differentiable."""
    total = torch.zeros_like(theta)
    for ids in ROWS:
        at, read = tiny.chosen(positions, len(ids)), tiny.chosen(readout, len(ids))
        moved = tiny.run(hf, ids, source=source, vector=theta, at=at)[1][target]
        with torch.no_grad():
            rest = tiny.run(hf, ids)[1][target]
        total = total + (moved - rest)[read].mean(0) / len(ROWS)
    return total


def dense(function: Callable[[Tensor], Tensor], at: Tensor) -> Tensor:
    """Return the Jacobian of a function, all of its rows in one backward pass."""
    return torch.autograd.functional.jacobian(function, at, vectorize=True)


def assert_near(came: Tensor, expected: Tensor, tolerance: float = 1e-5) -> None:
    """Compare row by row, relative to the norm of what is expected."""
    assert came.shape == expected.shape
    off = (came - expected).norm(dim=-1) / expected.norm(dim=-1)
    assert float(off.max()) < tolerance


# -- the effect ----------------------------------------------------------------------------------


@torch.no_grad()
def test_effect_is_that_of_the_whole_model_on_each_prompt_alone(any_lm: LanguageModel) -> None:
    part = slice_of(any_lm)
    theta = vectors(part)
    expected = torch.stack([effect(any_lm.hf, row) for row in theta])
    assert float((expected - theta).norm() / theta.norm()) > 0.1  # blocks do not just pass it on
    came = part.effect(theta)
    assert_near(came, expected)
    assert torch.equal(part.effect(theta), came)


@pytest.mark.parametrize("architecture", ["llama", "mistral", "bamba"])
@pytest.mark.parametrize(
    ("positions", "readout"),
    [
        ("last:2", "last:3"),
        ("last:1", "last:1"),
        ("at:1", "last:1"),
        ("prompt", "all"),
        ("last:9", "all"),
        ("all", "prompt"),
        ("all", "last:9"),
    ],
)
@torch.no_grad()
def test_effect_at_other_positions_and_read_outs(
    lm_of: Any, architecture: str, positions: str, readout: str
) -> None:
    lm = lm_of(architecture)
    part = slice_of(lm, positions=positions, readout=readout)
    theta = vectors(part)
    expected = [effect(lm.hf, row, positions=positions, readout=readout) for row in theta]
    assert_near(part.effect(theta), torch.stack(expected))


@pytest.mark.parametrize("source", [0, 1, 2])
@pytest.mark.parametrize("target", [1, 2, 3])
@torch.no_grad()
def test_effect_between_any_two_layers(tiny_lm: LanguageModel, source: int, target: int) -> None:
    if source >= target:
        with pytest.raises(LayerError, match=f"source {source} is not below target {target}"):
            slice_of(tiny_lm, source=source, target=target)
        return
    part = slice_of(tiny_lm, source=source, target=target)
    theta = vectors(part)
    expected = [effect(tiny_lm.hf, row, source=source, target=target) for row in theta]
    assert_near(part.effect(theta), torch.stack(expected))


def test_layers_may_be_fractions_or_negative(tiny_lm: LanguageModel) -> None:
    part = slice_of(tiny_lm, source=0.3, target=-1)
    assert (part.source, part.target) == (1, 3)
    with pytest.raises(LayerError, match="layer 4 does not exist"):
        slice_of(tiny_lm, target=4)


def test_no_perturbation_has_no_effect(any_lm: LanguageModel) -> None:
    part = slice_of(any_lm)
    zero = part.effect(torch.zeros(2, part.width))
    assert float(zero.norm()) < 1e-5 * float(part.rest.norm())


@torch.no_grad()
def test_effect_of_a_model_with_an_adapter(tokenizer: Any, tmp_path: Path) -> None:
    config = LoraConfig(
        r=2, target_modules=["q_proj"], init_lora_weights=False, task_type="CAUSAL_LM"
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        lm = LanguageModel(get_peft_model(tiny.hf_model(), config), tokenizer, name="tuned")
    part = slice_of(lm)
    theta = vectors(part)
    assert_near(part.effect(theta), torch.stack([effect(lm.unwrapped, row) for row in theta]))


@torch.no_grad()
def test_effect_in_half_precision_is_summed_in_single(lm_of: Any) -> None:
    half, single = slice_of(lm_of("llama", torch.bfloat16)), slice_of(lm_of("llama"))
    theta = vectors(single)
    assert half.work_dtype == half.effect(theta).dtype == torch.float32
    assert_near(half.effect(theta), single.effect(theta), 0.1)


@torch.no_grad()
def test_slice_keeps_the_streams_at_source_and_target(tiny_lm: LanguageModel) -> None:
    part = slice_of(tiny_lm, readout="last:3")
    for row, ids in enumerate(ROWS):
        _, streams = tiny.run(tiny_lm.hf, ids)
        torch.testing.assert_close(part.start[row, -len(ids) :], streams[1])
        read = min(3, len(ids))
        torch.testing.assert_close(part.rest[row, -read:], streams[3][-read:])
    assert part.rest.shape == (3, 3, 32)


@torch.no_grad()
def test_median_norm_leaves_out_the_first_token_of_each_prompt(tiny_lm: LanguageModel) -> None:
    norms = [tiny.run(tiny_lm.hf, ids)[1][1][1:].norm(dim=1) for ids in ROWS]
    assert slice_of(tiny_lm).median_norm == pytest.approx(
        np.median(torch.cat(norms).numpy()), rel=1e-5
    )


@pytest.mark.parametrize("massive", [0, 7])
def test_the_median_norm_is_that_of_ordinary_tokens(massive: int) -> None:
    draw = np.random.default_rng(0)
    streams = draw.normal(size=(2, 30, 16))
    streams[:, 0] *= 1e3  # first tokens
    streams[0, 5 : 5 + massive] *= 15
    mask = torch.ones(2, 30, dtype=torch.long)
    mask[1, :4] = 0  # padding: the first token of the second prompt is its fifth
    streams[1, 4] *= 1e3
    norms = np.linalg.norm(streams, axis=2)
    found = median_norm(torch.from_numpy(streams), after_first(mask))
    assert found == pytest.approx(np.median([*norms[0, 1:], *norms[1, 5:]]), rel=1e-6)
    ordinary = [*norms[0, 1:5], *norms[0, 5 + massive :], *norms[1, 5:]]
    assert found == pytest.approx(np.median(ordinary), rel=0.1)


@torch.no_grad()
def test_median_norm_of_single_tokens_is_theirs(tiny_lm: LanguageModel) -> None:
    part = Slice(tiny_lm, tiny_lm.pad([[7], [9]]), source=1, target=3)
    norms = [float(tiny.run(tiny_lm.hf, [token])[1][1].norm()) for token in (7, 9)]
    assert part.median_norm == pytest.approx(sum(norms) / 2, rel=1e-5)


ASKED = ["Why?", "Name three countries.", [{"role": "user", "content": "so\n"}]]


@pytest.mark.parametrize(
    ("positions", "readout", "perturbed", "read"),
    [
        ("asked", "last:2", slice(0, None), None),
        ("asked:1", "last:2", slice(-1, None), None),
        ("asked:2", "asked:1", slice(-2, -1), slice(-1, None)),
        ("asked:1", "asked", slice(-1, None), slice(0, None)),
    ],
)
def test_the_message_of_ragged_prompts_is_perturbed_and_read(
    tiny64: LanguageModel, positions: str, readout: str, perturbed: slice, read: slice | None
) -> None:
    batch = tiny64.encode(ASKED)
    part = Slice(tiny64, batch, source=1, target=3, positions=positions, readout=readout)
    theta, expected = vectors(part), []
    for row in theta:
        shift = []
        for ids, text in zip(batch.ids, ("Why?", "Name three countries.", "so"), strict=True):
            own = ids[ids != 258].tolist()  # padding
            first = len(own) - 2 - len(text)  # bytes, <eos> and <|assistant|>
            first -= int("\n" in tiny64.tokenizer.decode(own))  # white space is the template's
            at, there = torch.zeros(len(own)).bool(), torch.zeros(len(own)).bool()
            at[range(first, first + len(text))[perturbed]] = True
            there[range(first, first + len(text))[read] if read else [-2, -1]] = True
            moved = tiny.run(tiny64.hf, own, source=1, vector=row, at=at)[1][3]
            shift.append((moved - tiny.run(tiny64.hf, own)[1][3])[there].mean(0))
        expected.append(torch.stack(shift).mean(0))
    assert_near(part.effect(theta), torch.stack(expected).detach())


# -- tokens before the first perturbed one -------------------------------------------------------

# Blocks that know the past by a state: in the others only the perturbed window is replayed.
STATEFUL = ["bamba", "granitemoehybrid", "lfm2", "qwen3_next"]


class Tokens:
    """Note how many tokens a block runs."""

    def __init__(self, lm: LanguageModel, block: int, request: pytest.FixtureRequest) -> None:
        self.seen: set[int] = set()
        handle = lm.blocks[block].register_forward_pre_hook(self, with_kwargs=True)
        request.addfinalizer(handle.remove)

    def __call__(self, module: Any, args: Any, kwargs: Any) -> None:
        self.seen.add((args[0] if args else kwargs["hidden_states"]).shape[1])


@pytest.mark.parametrize(("positions", "window"), [("last:1", 1), ("last:2", 2), ("last:10", 10)])
@torch.no_grad()
def test_tokens_before_the_first_perturbed_one_are_not_replayed(
    any_lm: LanguageModel, request: pytest.FixtureRequest, positions: str, window: int
) -> None:
    part = slice_of(any_lm, positions=positions)
    theta = vectors(part)
    expected = torch.stack([effect(any_lm.hf, row, positions=positions) for row in theta])
    tokens = Tokens(any_lm, 2, request)
    came = part.effect(theta)
    assert_near(came, expected)
    assert torch.equal(part.effect(theta), came)
    assert tokens.seen == {TOKENS if any_lm.name in STATEFUL else window}


@pytest.mark.parametrize("architecture", STATEFUL)
@torch.no_grad()
def test_attention_above_blocks_with_a_state_replays_the_window_alone(
    lm_of: Any, request: pytest.FixtureRequest, architecture: str
) -> None:
    lm = lm_of(architecture)
    part = slice_of(lm, source=2, target=3, positions="last:2")  # attention only
    theta = vectors(part)
    expected = [effect(lm.hf, row, source=2, positions="last:2") for row in theta]
    tokens = Tokens(lm, 3, request)
    assert_near(part.effect(theta), torch.stack(expected))
    assert tokens.seen == {2}


@torch.no_grad()
def test_tokens_before_the_first_perturbed_one_are_read_as_unmoved(tiny64: LanguageModel) -> None:
    part = slice_of(tiny64, positions="last:2", readout="all")
    shift = part.shift(vectors(part))
    assert shift.values.shape == (3, 3, TOKENS, 32)
    assert not shift.values[:, :, :-2].any()
    assert shift.values[:, :2, -2:].all()


@pytest.mark.parametrize("positions", ["last:2", "last:9"])
def test_a_replay_leaves_the_past_as_it_found_it(tiny64: LanguageModel, positions: str) -> None:
    part = slice_of(tiny64, positions=positions)
    theta = vectors(part)
    first = part.effect(theta)
    for method in METHODS.values():
        method(part, theta)
    with pytest.raises(RuntimeError, match="in the middle"):
        part.value_and_grad(theta, middle)
    assert torch.equal(part.effect(theta), first)


def middle(shift: Shift) -> Tensor:
    raise RuntimeError("in the middle")


@torch.no_grad()
def test_the_same_slice_at_other_positions(tiny64: LanguageModel) -> None:
    part = slice_of(tiny64, positions="last:2")
    theta = vectors(part)
    for positions in ("last:4", "all", "last:2"):
        part = part.on(Vectors(1, 32, positions))
        expected = [effect(tiny64.hf, row, positions=positions) for row in theta]
        assert_near(part.effect(theta), torch.stack(expected), 1e-6)


@torch.no_grad()
def test_noise_on_the_last_tokens_is_theirs(tiny64: LanguageModel) -> None:
    noise = TokenNoise(1, 32, seeds=(3, 4), positions="last:4")
    part = slice_of(tiny64).on(noise)
    size = torch.full((2, 1), part.median_norm, dtype=torch.float64)
    expected = torch.zeros(2, 32, dtype=torch.float64)
    for ids in ROWS:
        rest = tiny.run(tiny64.hf, ids)[1][3]
        at = tiny.chosen("last:4", len(ids))
        for i, drawn in enumerate(noise.added(size, range(2), range(-len(ids), 0))):
            moved = tiny.run(tiny64.hf, ids, source=1, vector=drawn[0], at=at)[1][3]
            expected[i] += (moved - rest)[-3:].mean(0) / len(ROWS)
    assert_near(part.effect(size), expected, 1e-6)


@pytest.mark.parametrize(
    ("positions", "readout", "tokens"),
    [("all", "last:3", 3), ("last:9", "last:2", 2), ("last:2", "all", 2), ("all", "all", TOKENS)],
)
@torch.no_grad()
def test_the_target_block_ends_with_the_tokens_that_are_read(
    tiny64: LanguageModel,
    request: pytest.FixtureRequest,
    positions: str,
    readout: str,
    tokens: int,
) -> None:
    part = slice_of(tiny64, positions=positions, readout=readout)
    theta = vectors(part)
    expected = [effect(tiny64.hf, row, positions=positions, readout=readout) for row in theta]
    inside = tiny64.blocks[3].mlp.up_proj  # type: ignore[union-attr]
    seen: set[int] = set()
    handle = inside.register_forward_pre_hook(lambda module, args: seen.add(args[0].shape[1]))
    request.addfinalizer(handle.remove)
    assert_near(part.effect(theta), torch.stack(expected), 1e-6)
    assert seen == {tokens}


@torch.no_grad()
def test_adapters_in_the_target_block_are_those_of_changed_weights(tokenizer: Any) -> None:
    hf = tiny.hf_model(dtype=torch.float64)
    lm = LanguageModel(hf, tokenizer, name="adapted")
    part = slice_of(lm).on(adapters(lm, first=2, blocks=2))
    unit = part.kind.draw(2, torch.Generator().manual_seed(0)).double()
    came = part.effect(part.kind.scaled(unit, part.unit))
    weights = [hf.get_submodule(path).weight for path in part.kind.paths]
    for row, moved in zip(unit, came, strict=True):
        expected = torch.zeros(32, dtype=torch.float64)
        rest = [tiny.run(hf, ids)[1][3] for ids in ROWS]
        factors = part.kind.split(row[None])
        change = [part.unit * b[0].T @ a[0] for a, b in factors]
        for weight, more in zip(weights, change, strict=True):
            weight += more
        for ids, before in zip(ROWS, rest, strict=True):
            expected += (tiny.run(hf, ids)[1][3] - before)[-3:].mean(0) / len(ROWS)
        for weight, more in zip(weights, change, strict=True):
            weight -= more
        assert_near(moved[None], expected[None], 1e-6)


# -- derivatives ---------------------------------------------------------------------------------


@pytest.mark.parametrize("architecture", [name for name in tiny.ARCHITECTURES if name != "bloom"])
@pytest.mark.parametrize("positions", ["all", "last:2"])
def test_jvp_and_vjp_are_products_with_the_dense_jacobian(
    lm_of: Any, architecture: str, positions: str
) -> None:
    # Attention of Gemma 2 on padding is NaN in double precision: its mask overflows to -inf.
    lm = lm_of(architecture, torch.float32 if architecture == "gemma2" else torch.float64)
    tolerance = 1e-9 if architecture in DOUBLE else 1e-4
    part = slice_of(lm, positions=positions)
    n = 2 if architecture in DOUBLE else 1
    theta = vectors(part, n)
    tangent, cotangent = vectors(part, n, seed=2), vectors(part, n, seed=3)

    def whole(row: Tensor) -> Tensor:
        return effect(lm.hf, row, positions=positions)

    jacobian = torch.stack([dense(whole, row) for row in theta])
    with torch.no_grad():
        expected = torch.stack([whole(row) for row in theta])
    value, forward = part.jvp(theta, tangent)
    assert value.dtype == forward.dtype == lm.dtype
    assert_near(value, expected, tolerance)
    assert_near(forward, torch.einsum("nij,nj->ni", jacobian, tangent), tolerance)
    value, backward = part.vjp(theta, cotangent)
    assert_near(value, expected, tolerance)
    assert_near(backward, torch.einsum("nij,ni->nj", jacobian, cotangent), tolerance)


def test_jvp_and_vjp_are_adjoint_in_single_precision(any_lm: LanguageModel) -> None:
    part = slice_of(any_lm)
    theta = vectors(part)
    tangent, cotangent = vectors(part, seed=2), vectors(part, seed=3)
    if any_lm.name == "bloom":
        with pytest.raises(ModelError, match="bloom has an operation without forward-mode"):
            part.jvp(theta, tangent)
        return
    plain = any_lm.forward(part.batch.ids, part.batch.mask)
    experts = getattr(any_lm.config, "_experts_implementation", None)
    _, forward = part.jvp(theta, tangent)
    _, backward = part.vjp(theta, cotangent)
    scale = forward.norm(dim=1) * cotangent.norm(dim=1)
    off = ((forward * cotangent).sum(1) - (backward * tangent).sum(1)) / scale
    assert float(off.abs().max()) < 1e-4
    # What a jvp switches off is on again: the model computes as before.
    assert getattr(any_lm.config, "_experts_implementation", None) == experts
    assert torch.equal(any_lm.forward(part.batch.ids, part.batch.mask), plain)


@pytest.mark.parametrize("architecture", [*DOUBLE, "llama", "gemma2", "qwen2", "mixtral"])
def test_second_derivatives_are_those_of_the_dense_hessian(lm_of: Any, architecture: str) -> None:
    lm = lm_of(architecture, torch.float32 if architecture == "gemma2" else torch.float64)
    part = slice_of(lm)
    theta, tangent, cotangent = (vectors(part, 1, seed=seed) for seed in (1, 2, 3))
    with sdpa_kernel(SDPBackend.MATH):  # the fused one has no second derivative
        hessian = torch.autograd.functional.hessian(
            lambda row: effect(lm.hf, row) @ cotangent[0], theta[0]
        )
    tolerance = 1e-9 if architecture in DOUBLE else 1e-4
    assert_near(part.hvp(theta, cotangent, tangent), tangent @ hessian, tolerance)
    second = part.second_derivative(theta, tangent)
    along = (tangent @ hessian * tangent).sum(1)
    torch.testing.assert_close((second * cotangent).sum(1), along, rtol=tolerance, atol=0)
    # And by an oracle that knows no derivative; a difference sees the kinks of OPT's ReLU as well.
    if architecture in DOUBLE and architecture != "opt":
        h = 1e-3
        with torch.no_grad():
            up, at, down = (effect(lm.hf, (theta + s * h * tangent)[0]) for s in (1, 0, -1))
        assert_near(second, ((up - 2 * at + down) / h**2)[None], 1e-4)


def test_both_second_derivatives_agree_in_single_precision(any_lm: LanguageModel) -> None:
    part = slice_of(any_lm)
    theta, tangent, cotangent = (vectors(part, 2, seed=seed) for seed in (1, 2, 3))
    second = part.second_derivative(theta, tangent)
    product = part.hvp(theta, cotangent, tangent)
    scale = second.norm(dim=1) * cotangent.norm(dim=1)
    off = ((second * cotangent).sum(1) - (product * tangent).sum(1)) / scale
    assert float(off.abs().max()) < 1e-4


def test_an_operation_without_second_derivative_is_an_error(
    lm_of: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Such as fused attention, were it not switched off.
    part = slice_of(lm_of("gpt2"))
    theta = vectors(part, 1)
    monkeypatch.setattr("educe.forward.slice.derivatives._plain_kernels", lambda lm: nullcontext())
    for product in (
        lambda: part.hvp(theta, theta, theta),
        lambda: part.second_derivative(theta, theta),
    ):
        with pytest.raises(ModelError, match="gpt2 has an operation without second derivative"):
            product()


@pytest.mark.parametrize("architecture", ["gpt2", "opt", "llama"])
def test_gram_is_the_product_with_every_read_out_position_counted_alone(
    lm_of: Any, architecture: str
) -> None:
    lm = lm_of(architecture, torch.float64)
    part = slice_of(lm)
    theta, tangent = vectors(part, 2), vectors(part, 2, seed=2)

    def read(row: Tensor) -> Tensor:
        moved = [
            tiny.run(lm.hf, ids, source=1, vector=row, at=tiny.chosen("all", len(ids)))[1][3]
            for ids in ROWS
        ]
        return torch.cat([stream[-3:].flatten() for stream in moved])

    came = part.gram(theta, tangent)
    for row, along, product in zip(theta, tangent, came, strict=True):
        jacobian = dense(read, row)
        assert jacobian.shape == ((3 + 3 + 1) * 32, 32)
        tolerance = 1e-9 if architecture in DOUBLE else 1e-4
        assert_near(product, jacobian.T @ (jacobian @ along), tolerance)


@pytest.mark.parametrize("positions", ["all", "last:2"])  # with the second, tokens are left out
@pytest.mark.parametrize("architecture", ["gpt2", "llama"])
def test_push_and_pull_are_products_with_the_dense_jacobians_of_several_layers(
    lm_of: Any, architecture: str, positions: str
) -> None:
    lm = lm_of(architecture, torch.float64)
    part = slice_of(lm, source=0, positions=positions)
    tangent = vectors(part, 2)

    def read(row: Tensor, layer: int, ids: list[int]) -> Tensor:
        at = tiny.chosen(positions, len(ids))
        return tiny.run(lm.hf, ids, source=0, vector=row, at=at)[1][layer][-3:]

    layers, zero = [1, 3], torch.zeros_like(tangent[0])
    jacobian = torch.zeros(2, 3, 3, 32, 32, dtype=torch.float64)
    for i, layer in enumerate(layers):
        for prompt, ids in enumerate(ROWS):
            own = dense(lambda row: read(row, layer, ids), zero)  # noqa: B023
            jacobian[i, prompt, -len(own) :] = own
    tolerance = 1e-9 if architecture in DOUBLE else 1e-4
    pushed = part.push(tangent, layers)
    expected = torch.einsum("lpkds,ns->lnpkd", jacobian, tangent)
    torch.testing.assert_close(pushed, expected, rtol=tolerance, atol=tolerance)
    cotangent = torch.randn(pushed.shape, generator=torch.Generator().manual_seed(0)).to(pushed)
    pulled = torch.einsum("lpkds,lnpkd->ns", jacobian, cotangent)
    torch.testing.assert_close(
        part.pull(cotangent, layers), pulled, rtol=tolerance, atol=10 * tolerance
    )


def test_gram_of_a_model_without_forward_mode_is_an_error(lm_of: Any) -> None:
    part = slice_of(lm_of("bloom"))
    with pytest.raises(ModelError, match="bloom has an operation without forward-mode"):
        part.gram(vectors(part), vectors(part))


def squared(shift: Shift) -> Tensor:
    """Mean over prompts and positions of the squared norm of the shift: additive over prompts."""
    return torch.einsum("npkd,pk->n", shift.values.square(), shift.weights)


def test_value_and_grad_of_an_objective(lm_of: Any) -> None:
    lm = lm_of("gpt2", torch.float64)
    part = slice_of(lm)
    theta = vectors(part)
    value, gradient = part.value_and_grad(theta, squared)

    def expected(row: Tensor) -> Tensor:
        total = torch.zeros((), dtype=torch.float64)
        for ids in ROWS:
            at = tiny.chosen("all", len(ids))
            moved = tiny.run(lm.hf, ids, source=1, vector=row, at=at)[1][3]
            change = (moved - tiny.run(lm.hf, ids)[1][3])[-3:]
            total = total + change.square().sum(1).mean() / len(ROWS)
        return total

    torch.testing.assert_close(value, torch.stack([expected(row) for row in theta]).detach())
    for row, came in zip(theta, gradient, strict=True):
        torch.testing.assert_close(came, dense(expected, row))


def test_measure_is_the_effect_and_the_objective(tiny64: LanguageModel) -> None:
    part = slice_of(tiny64)
    theta = vectors(part)
    effects, values = part.measure(theta, squared)
    torch.testing.assert_close(effects, part.effect(theta))
    torch.testing.assert_close(values, part.value_and_grad(theta, squared)[0])


@pytest.mark.parametrize("architecture", ["llama", "gemma2"])  # in the second, padding attends
def test_shift_is_the_effect_position_by_position(lm_of: Any, architecture: str) -> None:
    part = slice_of(lm_of(architecture))
    theta = vectors(part).requires_grad_(True)
    shift = part.shift(theta)
    assert shift.chunk == Chunk(0, 3, 0, 3)
    assert shift.values.shape == (3, 3, 3, 32)
    torch.testing.assert_close(
        shift.weights, torch.tensor([[1 / 9] * 3, [1 / 9] * 3, [0, 0, 1 / 3]])
    )
    assert not shift.values[:, 2, :2].any()  # before the only token of the third prompt
    torch.testing.assert_close(shift.mean.detach(), part.effect(theta.detach()))
    assert shift.mean.requires_grad
    some = part.shift(theta, Chunk(1, 3, 1, 2))
    torch.testing.assert_close(some.values, shift.values[1:3, 1:2])


# -- chunks --------------------------------------------------------------------------------------

METHODS: dict[str, Callable[[Slice, Tensor], Any]] = {
    "effect": lambda part, theta: (part.effect(theta),),
    "measure": lambda part, theta: part.measure(theta, squared),
    "jvp": lambda part, theta: part.jvp(theta, theta.flip(0)),
    "gram": lambda part, theta: (part.gram(theta, theta.flip(0)),),
    "push": lambda part, theta: (part.push(theta, [2, 3])[0], part.push(theta, [3])[0]),
    "pull": lambda part, theta: (
        part.pull(theta[None, :, None, None].expand(2, -1, *part.rest.shape), [2, 3]),
    ),
    "vjp": lambda part, theta: part.vjp(theta, theta.flip(0)),
    "hvp": lambda part, theta: (part.hvp(theta, theta.flip(0), theta),),
    "second_derivative": lambda part, theta: (part.second_derivative(theta, theta.flip(0)),),
    "value_and_grad": lambda part, theta: part.value_and_grad(theta, squared),
}
every_method = pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)


class Rows:
    """Note with how many rows a block runs; fail above ``most``."""

    def __init__(self, most: int = 10**6, *, reason: str | None = None) -> None:
        self.most, self.seen, self.failed = most, [], 0  # type: ignore[var-annotated]
        self.reason = reason or "DefaultCPUAllocator: can't allocate memory: you tried to allocate"

    def __call__(self, module: Any, args: Any, kwargs: Any) -> None:
        rows = len(args[0] if args else kwargs["hidden_states"])
        if rows > self.most:
            self.failed += 1
            raise RuntimeError(self.reason)
        self.seen.append(rows)

    def watch(self, block: Any, request: pytest.FixtureRequest) -> Rows:
        handle = block.register_forward_pre_hook(self, with_kwargs=True)
        request.addfinalizer(handle.remove)
        return self


@every_method
@pytest.mark.parametrize("positions", ["all", "last:2"])
@pytest.mark.parametrize("rows", [1, 2, 3, 4, 7])
def test_chunks_change_nothing(
    tiny64: LanguageModel, request: pytest.FixtureRequest, method: Any, positions: str, rows: int
) -> None:
    whole = slice_of(tiny64, positions=positions)
    theta = vectors(whole, 5)
    expected = method(whole, theta)
    chunked = slice_of(tiny64, positions=positions, tokens_per_chunk=rows * TOKENS + 1)
    watch = Rows().watch(tiny64.blocks[2], request)
    for came, wanted in zip(method(chunked, theta), expected, strict=True):
        torch.testing.assert_close(came, wanted, rtol=1e-5, atol=1e-6)
    assert max(watch.seen) <= rows


@every_method
def test_running_out_of_memory_halves_the_chunk_and_goes_on(
    tiny64: LanguageModel, request: pytest.FixtureRequest, method: Any
) -> None:
    part = slice_of(tiny64, tokens_per_chunk=24 * TOKENS)
    theta = vectors(part, 16)
    expected = method(part, theta)
    watch = Rows(5).watch(tiny64.blocks[2], request)
    for came, wanted in zip(method(part, theta), expected, strict=True):
        torch.testing.assert_close(came, wanted, rtol=1e-5, atol=1e-6)
    assert watch.failed == 3  # with 24, 12 and 6 rows, and never again
    assert part.tokens_per_chunk == 3 * TOKENS
    method(part, theta)
    assert watch.failed == 3


@pytest.mark.parametrize("positions", ["all", "last:2"])
def test_running_out_of_memory_without_perturbation_halves_the_prompts(
    tiny64: LanguageModel, request: pytest.FixtureRequest, positions: str
) -> None:
    whole = slice_of(tiny64, positions=positions)
    theta = vectors(whole)
    expected = whole.effect(theta)
    watch = Rows(1).watch(tiny64.blocks[0], request)
    part = slice_of(tiny64, positions=positions)
    assert watch.failed == 1  # three prompts, then each alone
    assert part.tokens_per_chunk < 2 * TOKENS  # one at a time from now on
    torch.testing.assert_close(part.effect(theta), expected, rtol=1e-5, atol=1e-6)
    Rows(0).watch(tiny64.blocks[0], request)
    with pytest.raises(RuntimeError, match="can't allocate memory"):
        slice_of(tiny64, positions=positions)


@every_method
def test_other_failures_are_not_hidden(
    tiny_lm: LanguageModel, request: pytest.FixtureRequest, method: Any
) -> None:
    part = slice_of(tiny_lm)
    theta = vectors(part)
    watch = Rows(0, reason="mat1 and mat2 shapes cannot be multiplied")
    watch.watch(tiny_lm.blocks[2], request)
    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        method(part, theta)
    assert watch.failed == 1


def test_a_single_row_that_does_not_fit_is_an_error(
    tiny_lm: LanguageModel, request: pytest.FixtureRequest
) -> None:
    part = slice_of(tiny_lm)
    Rows(0).watch(tiny_lm.blocks[2], request)
    with pytest.raises(RuntimeError, match="can't allocate memory"):
        part.effect(vectors(part))


def test_of_batches_of_many_shapes_few_are_remembered(tiny64: LanguageModel) -> None:
    part = slice_of(tiny64)
    theta = vectors(part, 12)
    whole = part.effect(theta)
    for n in [*range(1, 13), *range(1, 13)]:
        torch.testing.assert_close(part.effect(theta[:n]), whole[:n])
        assert len(part._calls) <= CALLS_KEPT
    assert len(part._calls) == CALLS_KEPT


def test_no_perturbations_have_no_effects(tiny64: LanguageModel) -> None:
    part = slice_of(tiny64)
    came = part.effect(torch.zeros(0, 32, dtype=torch.float64))
    assert came.shape == (0, 32)
    assert came.dtype == torch.float64


# -- what must not happen ------------------------------------------------------------------------


@every_method
def test_weights_get_no_gradient(tiny_lm: LanguageModel, method: Any) -> None:
    part = slice_of(tiny_lm)
    theta = vectors(part).requires_grad_(True)
    came = method(part, theta)
    assert not any(values.requires_grad for values in came)
    assert theta.grad is None
    for weight in tiny_lm.hf.parameters():
        assert not weight.requires_grad
        assert weight.grad is None


@every_method
def test_the_model_is_left_as_it_was(tiny_lm: LanguageModel, method: Any) -> None:
    ids = torch.tensor([ROWS[0]])
    before = tiny_lm.forward(ids, torch.ones_like(ids))
    hooks = [len(block._forward_hooks) for block in tiny_lm.blocks]
    part = slice_of(tiny_lm)
    method(part, vectors(part))
    assert torch.equal(tiny_lm.forward(ids, torch.ones_like(ids)), before)
    assert [len(block._forward_hooks) for block in tiny_lm.blocks] == hooks
    assert not any("forward" in vars(block) for block in tiny_lm.blocks)


@every_method
@pytest.mark.parametrize("broken", [float("nan"), float("inf")])
def test_an_effect_that_is_no_number_is_an_error(
    tiny_lm: LanguageModel, method: Any, broken: float
) -> None:
    part = slice_of(tiny_lm)
    theta = vectors(part)
    theta[1] *= broken
    with pytest.raises(EffectError, match="1 of 3 perturbations make the stream at layer 3 NaN"):
        method(part, theta)


def test_positions_that_select_nothing_are_an_error(tiny_lm: LanguageModel) -> None:
    with pytest.raises(PositionsError, match="nothing to search"):
        slice_of(tiny_lm, positions="generated")
    with pytest.raises(PositionsError, match="reads nothing"):
        slice_of(tiny_lm, readout="generated")
    with pytest.raises(PositionsError, match="use all, prompt, generated, asked"):
        slice_of(tiny_lm, readout="first")


def test_a_readout_before_all_that_is_perturbed_is_an_error(tiny_lm: LanguageModel) -> None:
    """No token sees a later one; at the first that is perturbed there is an effect."""
    batch = tiny_lm.pad(tiny.ragged([7, 15]))

    def reading(readout: str, positions: str) -> Slice:
        return Slice(tiny_lm, batch, source=1, target=3, positions=positions, readout=readout)

    same = reading("at:2", "last:2")
    assert same.effect(vectors(same)).any(1).all()
    with pytest.raises(PositionsError, match="'at:3' comes before the tokens that positions 'last"):
        reading("at:3", "last:2")
    with pytest.raises(PositionsError, match="every effect is zero"):
        reading("at:3", "all").on(Vectors(1, tiny_lm.width, "at:2"))
