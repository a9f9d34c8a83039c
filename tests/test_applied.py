"""Perturbed models under plain transformers: the texts of `educe.generate`, nothing left behind."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import peft
import pytest
import torch
from torch import Tensor, nn

import tiny
from educe.errors import LayerError, ModelError, PositionsError, SteeringError
from educe.forward.generation import generate, next_logits, rows_of
from educe.forward.slice import Slice
from educe.model.asked import NOWHERE
from educe.model.batch import PromptBatch
from educe.model.language import LanguageModel
from educe.orthogonal import orthonormal
from educe.perturbation.applied import message_of
from educe.perturbation.kinds import (
    Biases,
    Kind,
    TokenNoise,
    Vectors,
    WeightNoise,
    Within,
    adapters,
)
from educe.perturbation.origin import Origin
from educe.perturbation.set import PerturbationSet

TEXTS = ["Why?", "Name three countries in Asia.", "ok"]
STEPS = 6
SIZES = {"adapters": 3.0, "biases": 8.0, "weight-noise": 0.5}
SEEDS = (3, 1, 4)


def kind_named(lm: LanguageModel, name: str, positions: str = "all") -> Kind:
    rows = torch.randn(4, lm.width, generator=torch.Generator().manual_seed(5))
    makes: dict[str, Callable[[], Kind]] = {
        "vectors": lambda: Vectors(1, lm.width, positions),
        "within": lambda: Within(1, orthonormal(rows), positions),
        "token-noise": lambda: TokenNoise(1, lm.width, SEEDS, positions),
        "adapters": lambda: adapters(lm, first=2, blocks=2),
        "biases": lambda: Biases.like(adapters(lm, first=2, blocks=2)),
        "weight-noise": lambda: WeightNoise(2, 2, SEEDS),
    }
    return makes[name]()


def some(lm: LanguageModel, kind: Kind, n: int = 3) -> PerturbationSet:
    """Return random perturbations so large that texts change."""
    directions = kind.draw(n, torch.Generator().manual_seed(0))
    where = Origin(lm.name, "", "", lm.width, lm.depth, kind.before, 3, "last:3", 1.0, "")
    size = SIZES.get(kind.name, 8.0)
    return PerturbationSet(kind, directions, torch.full((n,), size), where, "random", 0)


def ours(lm: LanguageModel, batch: PromptBatch, found: PerturbationSet) -> list[list[list[int]]]:
    """Return what `educe.generate` writes, by perturbation and prompt, each with its end."""
    rows = rows_of(len(found), len(batch))
    came = generate(lm, batch, rows, found.theta, kind=found.kind, max_new_tokens=STEPS)
    texts = {c.row: [*c.tokens, *[257] * c.finished] for done in came for c in done}
    each = zip(*[iter(rows)] * len(batch), strict=True)  # the prompts of one perturbation
    return [[texts[row] for row in some] for some in each]


def theirs(lm: LanguageModel, batch: PromptBatch, **options: Any) -> list[list[int]]:
    """Return what transformers' own ``generate`` writes."""
    settings = {"attention_mask": batch.mask, "do_sample": False, "pad_token_id": 258}
    out = lm.hf.generate(batch.ids, max_new_tokens=STEPS, **settings | options)
    return [until_end(line) for line in out[:, batch.ids.shape[1] :].tolist()]


def until_end(tokens: list[int]) -> list[int]:
    return tokens[: tokens.index(257) + 1] if 257 in tokens else tokens


def single(found: PerturbationSet, item: int) -> PerturbationSet:
    return found.select([item])


# -- texts -----------------------------------------------------------------------------------------


# Those that are refused in float64, where their attention to padding is NaN.
NARROW = ("gemma2", "bloom")


@pytest.mark.parametrize("architecture", list(tiny.ARCHITECTURES))
def test_every_architecture_writes_the_texts_of_educe(lm_of: Any, architecture: str) -> None:
    lm = lm_of(architecture, torch.float32 if architecture in NARROW else torch.float64)
    batch = lm.encode(TEXTS)
    found = some(lm, kind_named(lm, "vectors"), 1)
    (expected,) = ours(lm, batch, found)
    for cached in (True, False):
        with found.applied(lm):
            assert theirs(lm, batch, use_cache=cached) == expected
    assert theirs(lm, batch) != expected


PLACES = ["all", "prompt", "generated", "last:2", "at:2", "asked", "asked:1"]
CASES = [
    *((name, where) for name in ("vectors", "within", "token-noise") for where in PLACES),
    *((name, "all") for name in ("adapters", "biases", "weight-noise")),
]
HYBRID = [("token-noise", "last:2"), *CASES[-3:]]


@pytest.mark.parametrize(
    ("architecture", "name", "where"),
    [*(("llama", *case) for case in CASES), *(("bamba", *case) for case in HYBRID)],
)
def test_every_kind_and_position_writes_the_texts_of_educe(
    lm_of: Any, architecture: str, name: str, where: str
) -> None:
    lm = lm_of(architecture, torch.float64)
    batch = lm.encode(TEXTS)
    found = some(lm, kind_named(lm, name, where))
    expected = ours(lm, batch, found)
    for item, cached in ((0, True), (2, True), (2, False)):
        with single(found, item).applied(lm):
            assert theirs(lm, batch, use_cache=cached) == expected[item]
    assert expected[0] != expected[2]
    assert theirs(lm, batch) not in expected


@pytest.mark.parametrize("where", ["all", "last:2", "generated"])
@pytest.mark.parametrize(
    "options",
    [
        {"cache_implementation": "static"},
        {"prefill_chunk_size": 5},
        {"prefill_chunk_size": 5, "attention_mask": None},
        {"prompt_lookup_num_tokens": 2},
    ],
    ids=lambda options: "-".join(options),
)
def test_however_transformers_decodes_the_texts_are_the_same(
    tiny64: LanguageModel, where: str, options: dict[str, Any]
) -> None:
    found = some(tiny64, kind_named(tiny64, "token-noise", where), 1)
    for text in TEXTS:  # one by one: looking up takes no batch
        batch = tiny64.encode([text])
        with found.applied(tiny64):
            texts = theirs(tiny64, batch, **options)
        assert [texts] == ours(tiny64, batch, found)


@contextmanager
def by_hand(lm: LanguageModel, vector: Tensor, prompt: Tensor, behind: bool) -> Iterator[None]:
    """Add a vector at some tokens of a prompt and at generated ones, by a plain hook."""
    calls = [0]

    def hook(module: nn.Module, args: Any, output: Any) -> Any:
        stream = output[0] if isinstance(output, tuple) else output
        at = prompt if calls[0] == 0 else torch.tensor([behind])
        calls[0] += 1
        stream = stream + at.to(stream)[:, None] * vector
        return (stream, *output[1:]) if isinstance(output, tuple) else stream

    handle = lm.hf.get_submodule(tiny.path(lm.hf))[1].register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


@pytest.mark.parametrize("where", ["all", "prompt", "generated", "last:2"])
@pytest.mark.parametrize(
    "options",
    [
        {"num_beams": 3},
        {"num_beams": 4, "num_return_sequences": 2},
        {"do_sample": True, "num_return_sequences": 3},
        {"do_sample": True, "num_beams": 2},
    ],
    ids=str,
)
def test_beams_and_samples_are_those_of_a_hooked_model(
    tiny64: LanguageModel, where: str, options: dict[str, Any]
) -> None:
    found = some(tiny64, kind_named(tiny64, "vectors", where), 1)
    batch = tiny64.encode(TEXTS[1:2])
    at = tiny.chosen(where, batch.ids.shape[1])
    torch.manual_seed(7)
    with by_hand(tiny64, found.theta[0].double(), at, where in ("all", "generated")):
        expected = theirs(tiny64, batch, **options)
    torch.manual_seed(7)
    with found.applied(tiny64):
        assert theirs(tiny64, batch, **options) == expected


@pytest.mark.parametrize("name", ["vectors", "token-noise", "adapters"])
def test_as_many_perturbations_as_prompts_act_one_on_each(tiny64: LanguageModel, name: str) -> None:
    batch = tiny64.encode(TEXTS)
    found = some(tiny64, kind_named(tiny64, name))
    expected = ours(tiny64, batch, found)
    beams = {"num_beams": 2, "num_return_sequences": 2}
    alone = []
    for item in range(3):
        with single(found, item).applied(tiny64):
            alone += theirs(tiny64, batch.select([item]), **beams)
    with found.applied(tiny64):
        assert theirs(tiny64, batch) == [expected[item][item] for item in range(3)]
        assert theirs(tiny64, batch, **beams) == alone


# -- plain calls -----------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "where"), CASES)
@pytest.mark.parametrize("side", ["left", "right"])
@torch.no_grad()
def test_a_plain_call_reads_prompts_padded_on_either_side(
    tiny64: LanguageModel, name: str, where: str, side: str
) -> None:
    batch = tiny64.encode(TEXTS)
    found = single(some(tiny64, kind_named(tiny64, name, where)), 1)
    expected = torch.zeros(3, 262, dtype=torch.float64)
    came = next_logits(tiny64, batch, rows_of(1, 3), found.theta, kind=found.kind)
    for rows, logits in came:
        expected[[row.prompt for row in rows]] = logits
    ids, mask = batch.ids, batch.mask
    if side == "right":
        ids, mask = torch.full_like(ids, 258), torch.zeros_like(mask)
        for row, read in enumerate(batch.read):
            ids[row, : len(read)], mask[row, : len(read)] = torch.tensor(read), 1
    with found.applied(tiny64):
        given = {"attention_mask": mask, "position_ids": (mask.cumsum(1) - 1).clamp(min=0)}
        logits = tiny64.hf(ids, **given).logits
    last = (mask * torch.arange(1, ids.shape[1] + 1)).argmax(1)
    torch.testing.assert_close(logits[range(3), last], expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("where", ["all", "prompt", "generated", "last:2"])
@pytest.mark.parametrize("begun", [True, False])
@torch.no_grad()
def test_tokens_behind_a_filled_cache_are_generated_ones(
    tiny64: LanguageModel, where: str, begun: bool
) -> None:
    found = some(tiny64, kind_named(tiny64, "token-noise", where), 1)
    batch = tiny64.encode(TEXTS[:1])
    inside = found.applied(tiny64)
    if (
        begun
    ):  # else the cache is filled with an unperturbed prompt, as for `generated` it should be
        inside.__enter__()
    out = tiny64.hf(batch.ids, use_cache=True)
    if not begun:
        inside.__enter__()
    tokens = []
    try:
        for _ in range(STEPS):
            tokens.append(int(out.logits[0, -1].argmax()))
            given = {"past_key_values": out.past_key_values, "use_cache": True}
            out = tiny64.hf(torch.tensor([tokens[-1:]]), **given)
    finally:
        inside.__exit__(None, None, None)
    same = until_end(tokens) == ours(tiny64, batch, found)[0][0]
    assert same == (begun or where == "generated")


@torch.no_grad()
def test_a_chat_goes_on_from_its_cache(tiny64: LanguageModel) -> None:
    found = some(tiny64, kind_named(tiny64, "token-noise", "last:2"), 1)
    batch = tiny64.encode(TEXTS[1:2])
    cache = tiny64.hf(batch.ids[:, :9], use_cache=True).past_key_values
    with found.applied(tiny64):
        texts = theirs(tiny64, batch, past_key_values=cache)
    assert [texts] == ours(tiny64, batch, found)


@torch.no_grad()
def test_what_is_given_as_embeddings_is_perturbed_too(tiny64: LanguageModel) -> None:
    found = some(tiny64, kind_named(tiny64, "vectors", "last:2"), 1)
    batch = tiny64.encode(TEXTS)
    rows = tiny64.hf.get_input_embeddings()(batch.ids)
    with found.applied(tiny64):
        out = tiny64.hf.generate(
            inputs_embeds=rows, attention_mask=batch.mask, do_sample=False, max_new_tokens=STEPS
        )
    assert [until_end(line) for line in out.tolist()] == ours(tiny64, batch, found)[0]


def test_hidden_states_are_the_perturbed_ones(tiny64: LanguageModel) -> None:
    found = some(tiny64, kind_named(tiny64, "vectors"), 1)
    ids = tiny64.encode(TEXTS[:1]).ids
    plain = tiny64.hf(ids, output_hidden_states=True).hidden_states
    with found.applied(tiny64):
        moved = tiny64.hf(ids, output_hidden_states=True).hidden_states
    torch.testing.assert_close(moved[2] - plain[2], found.theta[0].double().expand_as(plain[2]))
    assert torch.equal(moved[1], plain[1])


# -- together, and afterwards ----------------------------------------------------------------------


def test_sets_that_are_nested_add_up(tiny64: LanguageModel) -> None:
    found = some(tiny64, kind_named(tiny64, "vectors", "prompt"))
    both = PerturbationSet(
        found.kind,
        found.theta[:1].double() + found.theta[1:2].double(),
        torch.ones(1),
        found.origin,
        "random",
        0,
    )
    batch = tiny64.encode(TEXTS)
    with single(found, 0).applied(tiny64), single(found, 1).applied(tiny64):
        texts = theirs(tiny64, batch)
    assert texts == ours(tiny64, batch, both)[0]


def kept(model: nn.Module) -> list[Any]:
    """Return all that can be changed in a model without a change of its weights' numbers."""
    return [
        (name, sorted(vars(module)), *(len(hooks) for hooks in hooked(module)))
        for name, module in model.named_modules()
    ]


def hooked(module: nn.Module) -> list[Any]:
    return [module._forward_hooks, module._forward_pre_hooks, module._backward_hooks]


@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize("name", sorted({name for name, _ in CASES}))
@torch.no_grad()
def test_the_model_is_afterwards_as_before(tiny64: LanguageModel, name: str, fails: bool) -> None:
    batch = tiny64.encode(TEXTS)
    found = single(some(tiny64, kind_named(tiny64, name)), 0)
    before, weights = kept(tiny64.hf), dict(tiny64.hf.named_parameters())
    plain, texts = tiny64.hf(batch.ids).logits, theirs(tiny64, batch)

    def stop(*args: Any) -> None:
        raise ZeroDivisionError

    for _ in range(2):
        with found.applied(tiny64), found.applied(tiny64):
            assert not torch.equal(tiny64.hf(batch.ids).logits, plain)
        if fails:
            handle = tiny64.blocks[3].register_forward_hook(stop)
            try:
                with pytest.raises(ZeroDivisionError), found.applied(tiny64):
                    theirs(tiny64, batch)
            finally:
                handle.remove()
    assert kept(tiny64.hf) == before
    assert all(weights[key] is weight for key, weight in tiny64.hf.named_parameters())
    assert torch.equal(tiny64.hf(batch.ids).logits, plain)
    assert theirs(tiny64, batch) == texts


@pytest.mark.parametrize("name", sorted({name for name, _ in CASES}))
def test_a_statement_in_which_nothing_runs_does_nothing(tiny64: LanguageModel, name: str) -> None:
    with single(some(tiny64, kind_named(tiny64, name)), 0).applied(tiny64):
        pass


def test_beside_an_adapter_of_peft(tokenizer: Any) -> None:
    config = peft.LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False)
    hf = peft.get_peft_model(tiny.hf_model(dtype=torch.float64), config)
    lm = LanguageModel(hf, tokenizer, name="beside")
    batch = lm.encode(TEXTS)
    for name in ("vectors", "biases", "weight-noise"):
        found = single(some(lm, kind_named(lm, name)), 0)
        with torch.no_grad(), found.applied(lm):
            texts = theirs(lm, batch)
            first = lm.hf(input_ids=batch.ids, attention_mask=batch.mask).logits[:, -1].argmax(1)
        assert [texts] == ours(lm, batch, found)
        assert first.tolist()[1] == texts[1][0]


# -- which tokens are the person's message ---------------------------------------------------------

CHAT = [
    {"role": "system", "content": "Be short."},
    {"role": "user", "content": "Why?"},
    {"role": "assistant", "content": "So."},
    {"role": "user", "content": "Name three."},
]


def test_one_message_is_found_in_token_numbers(tiny_lm: LanguageModel, tokenizer: Any) -> None:
    batch = tiny_lm.encode(["Why is it so?", " a\nb <b> ", "ü"])
    assert [message_of(tiny_lm, read) for read in batch.read] == batch.spans
    bare = LanguageModel(tiny_lm.hf, tiny.tokenizer(chat=False, bos=True), name="bare")
    batch = bare.encode(["Why is it so?", " a b"])
    assert [message_of(bare, read) for read in batch.read] == batch.spans


@pytest.mark.parametrize("chat", [CHAT, CHAT[1:], CHAT[:2], CHAT[1:3]], ids=len)
def test_several_messages_are_not_taken_for_one(
    tiny_lm: LanguageModel, chat: Sequence[dict[str, str]]
) -> None:
    assert message_of(tiny_lm, tiny_lm.encode([chat]).read[0]) == NOWHERE


def test_a_bare_text_is_no_message_where_there_is_a_template(tiny_lm: LanguageModel) -> None:
    assert message_of(tiny_lm, tiny_lm.encode(["Why?"], chat=False).read[0]) == NOWHERE


def test_prompts_that_are_given_say_where_the_message_is(tiny64: LanguageModel) -> None:
    batch = tiny64.encode([CHAT, CHAT[:2]])
    found = some(tiny64, kind_named(tiny64, "vectors", "asked:1"), 1)
    with found.applied(tiny64), pytest.raises(PositionsError, match=r"applied\(lm, batch\)"):
        theirs(tiny64, batch)
    with found.applied(tiny64, batch):
        texts = theirs(tiny64, batch)
    assert [texts] == ours(tiny64, batch, found)


# -- errors ----------------------------------------------------------------------------------------


def test_rows_that_do_not_fit_are_an_error(tiny64: LanguageModel) -> None:
    batch = tiny64.encode(TEXTS)
    for name in ("vectors", "adapters"):
        found = some(tiny64, kind_named(tiny64, name), 2)
        with found.applied(tiny64), pytest.raises(SteeringError, match="2 perturbations act on 2"):
            tiny64.hf(batch.ids)
        with found.applied(tiny64), pytest.raises(SteeringError, match="is given 1: take one"):
            theirs(tiny64, batch.select([0]), num_beams=2)
        with (
            pytest.raises(SteeringError, match="0 perturbations by"),
            found.select([]).applied(tiny64),
        ):
            pass
    noise = some(tiny64, kind_named(tiny64, "weight-noise"), 2)
    with pytest.raises(SteeringError, match="cannot act together"), noise.applied(tiny64):
        pass


def test_padding_behind_which_a_text_would_go_on_is_an_error(tiny64: LanguageModel) -> None:
    batch = tiny64.encode(TEXTS)
    right = PromptBatch(batch.texts, batch.ids.flip(1), batch.mask.flip(1), batch.asked)
    found = some(tiny64, kind_named(tiny64, "vectors"), 1)
    with found.applied(tiny64), pytest.raises(SteeringError, match="padding_side = 'left'"):
        theirs(tiny64, right)


def test_a_call_that_goes_round_the_model_is_an_error(tiny64: LanguageModel) -> None:
    batch = tiny64.encode(TEXTS)
    found = some(tiny64, kind_named(tiny64, "vectors"), 1)
    with found.applied(tiny64), pytest.raises(SteeringError, match=r"call lm\.hf or"):
        tiny64.hf.model(batch.ids)
    with found.applied(tiny64), pytest.raises(SteeringError, match=r"attention_mask, 1 for tokens"):
        tiny64.hf(batch.ids, attention_mask=batch.mask[:, None, None].bool())


def test_what_does_not_belong_to_the_model_is_an_error(tiny64: LanguageModel, lm_of: Any) -> None:
    found = some(tiny64, Vectors(4, 32), 1)
    with pytest.raises(LayerError, match="layer 4 does not exist"), found.applied(tiny64):
        pass
    wide = some(tiny64, Vectors(1, 32), 1)
    other = dataclasses.replace(wide, origin=dataclasses.replace(wide.origin, d_model=64))
    with pytest.raises(ModelError, match="width 64"), other.applied(tiny64):
        pass


def test_educe_itself_has_to_stay_outside(tokenizer: Any) -> None:
    lm = LanguageModel(tiny.hf_model(), tokenizer, name="tiny")
    batch = lm.encode(TEXTS)
    for name in ("vectors", "adapters"):
        found = some(lm, kind_named(lm, name), 1)
        with found.applied(lm):
            with pytest.raises(SteeringError, match="educe's functions outside"):
                ours(lm, batch, found)
            with pytest.raises(SteeringError, match="educe's functions outside"):
                Slice(lm, batch, source=1, target=3)
        assert ours(lm, batch, found)  # nothing wrong was remembered
