"""LanguageModel: layers, prompts, running, and loading from wherever a model may be."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers.utils import logging as hf_logging

import tiny
from educe.errors import LayerError, ModelError, PromptError
from educe.model import language as module
from educe.model.blocks import Stack
from educe.model.language import LanguageModel
from educe.model.loading import load

LENGTHS = [7, 13, 1]


@pytest.fixture
def batch(any_lm: LanguageModel) -> Any:
    """Sequences of different lengths for each architecture in turn."""
    return any_lm.pad(tiny.ragged(LENGTHS))


def wander(lm: LanguageModel, *, seed: int = 5) -> torch.Tensor:
    """Return a random vector of the length of the stream's."""
    return torch.randn(lm.width, generator=torch.Generator().manual_seed(seed))


# -- running and perturbing ----------------------------------------------------------------------


@torch.no_grad()
def test_left_padding_changes_no_logit(any_lm: LanguageModel, batch: Any) -> None:
    logits = any_lm.forward(batch.ids, batch.mask, last=0)
    one = any_lm.forward(batch.ids, batch.mask)
    assert one.shape[1] == 1
    for row, ids in enumerate(tiny.ragged(LENGTHS)):
        expected, _ = tiny.run(any_lm.hf, ids)
        torch.testing.assert_close(logits[row, -len(ids) :], expected, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(one[row, 0], expected[-1], rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_watching_keeps_the_streams_leaving_blocks(any_lm: LanguageModel, batch: Any) -> None:
    with any_lm.watching([0, 2, 3]) as streams:
        any_lm.forward(batch.ids, batch.mask)
    assert sorted(streams) == [0, 2, 3]
    for row, ids in enumerate(tiny.ragged(LENGTHS)):
        _, expected = tiny.run(any_lm.hf, ids)
        for layer, stream in streams.items():
            torch.testing.assert_close(
                stream[row, -len(ids) :], expected[layer], rtol=1e-4, atol=1e-4
            )


def test_adding_zero_changes_no_logit(any_lm: LanguageModel, batch: Any) -> None:
    plain = any_lm.forward(batch.ids, batch.mask, last=0)
    for layer in range(any_lm.depth):
        with any_lm.adding(layer, torch.zeros_like) as calls:
            zero = any_lm.forward(batch.ids, batch.mask, last=0)
        assert calls == [1]
        assert torch.equal(zero, plain)


@torch.no_grad()
def test_adding_moves_exactly_that_residual(any_lm: LanguageModel) -> None:
    (ids,) = tiny.ragged([9])
    vector = wander(any_lm)
    given = {"input_ids": torch.tensor([ids]), "use_cache": False}
    expected = any_lm.hf(**given, output_hidden_states=True).hidden_states
    inputs: list[torch.Tensor] = []
    handles = [
        block.register_forward_pre_hook(
            lambda block, args, kwargs: inputs.append(args[0] if args else kwargs["hidden_states"]),
            with_kwargs=True,
        )
        for block in any_lm.blocks
    ]
    try:
        for layer in range(any_lm.depth - 1):
            inputs.clear()
            with any_lm.adding(layer, lambda stream: vector.expand_as(stream)):
                any_lm.hf(**given)
            for index in range(layer + 1):
                assert torch.equal(inputs[index], expected[index])
            torch.testing.assert_close(inputs[layer + 1], expected[layer + 1] + vector)
    finally:
        for handle in handles:
            handle.remove()


@torch.no_grad()
def test_adding_after_the_last_block_comes_before_the_final_norm(any_lm: LanguageModel) -> None:
    (ids,) = tiny.ragged([9])
    vector, mask = wander(any_lm), torch.ones(1, 9, dtype=torch.long)
    with any_lm.adding(3, lambda stream: vector.expand_as(stream)):
        logits = any_lm.forward(torch.tensor([ids]), mask, last=0)[0]
    expected, _ = tiny.run(any_lm.hf, ids, source=3, vector=vector, at=tiny.chosen("all", 9))
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)


def test_hooks_go_when_the_with_statement_ends(tiny_lm: LanguageModel) -> None:
    ids = torch.tensor(tiny.ragged([5]))
    plain = tiny_lm.forward(ids, torch.ones_like(ids))
    before = [len(block._forward_hooks) for block in tiny_lm.blocks]
    with pytest.raises(ZeroDivisionError), tiny_lm.adding(1, torch.ones_like):
        1 / 0  # noqa: B018
    with tiny_lm.watching([0, 1]):
        pass
    assert torch.equal(tiny_lm.forward(ids, torch.ones_like(ids)), plain)
    assert [len(block._forward_hooks) for block in tiny_lm.blocks] == before


def test_a_model_is_frozen_and_evaluated(tokenizer: Any) -> None:
    hf = tiny.hf_model("gpt2")  # its configuration has dropout
    hf.train()
    lm = LanguageModel(hf, tokenizer, name="tiny")
    assert not lm.hf.training
    assert not any(weight.requires_grad for weight in hf.parameters())
    ids = torch.tensor(tiny.ragged([5]))
    once = lm.forward(ids, torch.ones_like(ids))
    assert torch.equal(lm.forward(ids, torch.ones_like(ids)), once)
    assert not once.requires_grad


# -- the proof at the end of loading -------------------------------------------------------------


def test_a_stack_that_is_not_the_residual_stream_is_refused(
    tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    hf = tiny.hf_model("llama")
    inner = [block.mlp for block in hf.model.layers]

    def find_wrong(hf: Any, run: Callable[[], object]) -> Stack:
        run()
        return Stack("mlp", inner, [0] * 4, 32)

    monkeypatch.setattr(module, "find_stack", find_wrong)
    with pytest.raises(ModelError, match="does not move the residual stream by that vector"):
        LanguageModel(hf, tokenizer, name="tiny")


def test_a_model_that_is_not_deterministic_is_refused(tokenizer: Any) -> None:
    hf = tiny.hf_model("llama")
    draw = torch.Generator().manual_seed(0)
    hf.model.norm.register_forward_hook(
        lambda module, args, out: out + torch.randn(out.shape, generator=draw)
    )
    with pytest.raises(ModelError, match="answers anew at each call"):
        LanguageModel(hf, tokenizer, name="tiny")


def test_a_model_whose_blocks_cannot_be_found_is_refused(tokenizer: Any) -> None:
    hf = tiny.hf_model("llama")
    hf.model.layers[1].register_forward_pre_hook(lambda module, args: (args[0] * 2, *args[1:]))
    hf.model.layers[2].register_forward_hook(
        lambda module, args, out: out[:, :, :16].repeat(1, 1, 2)
    )
    with pytest.raises(ModelError, match=r"model\.layers \(4\)"):
        LanguageModel(hf, tokenizer, name="tiny")


@pytest.mark.parametrize("architecture", tiny.OWN_CACHE)
def test_a_model_that_cannot_decode_with_a_cache_is_refused(
    architecture: str, tokenizer: Any
) -> None:
    with pytest.raises(ModelError, match=rf"{architecture}.*decoding with a cache"):
        LanguageModel(tiny.hf_model(architecture), tokenizer, name=architecture)


def test_a_model_that_reads_its_padding_is_refused(tokenizer: Any) -> None:
    hf = tiny.hf_model("llama")
    forward = hf.forward

    def blind(input_ids: Any, attention_mask: Any = None, **options: Any) -> Any:
        return forward(input_ids, attention_mask=torch.ones_like(input_ids), **options)

    hf.forward = blind
    with pytest.raises(ModelError, match="padding on the left"):
        LanguageModel(hf, tokenizer, name="tiny")


# -- layers --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("which", "index"),
    [(0, 0), (3, 3), (-1, 3), (-4, 0), (2.0, 2), (0.01, 0), (0.25, 1), (0.5, 2), (0.999, 3)],
)
def test_layer_reads_an_index_or_a_fraction(
    tiny_lm: LanguageModel, which: float, index: int
) -> None:
    found = tiny_lm.layer(which)
    assert found == index
    assert type(found) is int


@pytest.mark.parametrize("which", [4, -5, 40, 4.0, 1.5, -0.5, math.nan, math.inf])
def test_a_layer_that_does_not_exist_is_an_error(tiny_lm: LanguageModel, which: float) -> None:
    with pytest.raises(LayerError, match=str(which).removesuffix(".0")) as error:
        tiny_lm.layer(which)
    if math.isfinite(which) and float(which).is_integer():
        assert "llama has 4 blocks (0 to 3)" in str(error.value)


# -- rendering -----------------------------------------------------------------------------------

USER = {"role": "user", "content": "Hi"}


@pytest.fixture
def plain_lm(tiny_lm: LanguageModel) -> LanguageModel:
    """A model whose tokenizer has no chat template."""
    return LanguageModel(tiny_lm.hf, tiny.tokenizer(chat=False, bos=True), name="plain")


@pytest.mark.parametrize(
    ("prompt", "options", "text"),
    [
        ("Hi", {}, "<|user|>Hi<eos><|assistant|>"),
        ("Hi", {"chat": True}, "<|user|>Hi<eos><|assistant|>"),
        ("Hi", {"chat": False}, "Hi"),
        ("Hi", {"prefill": "Sure"}, "<|user|>Hi<eos><|assistant|>Sure"),
        ("Hi", {"prefill": " there", "chat": False}, "Hi there"),
        ([USER], {}, "<|user|>Hi<eos><|assistant|>"),
        ([USER], {"chat": False}, "<|user|>Hi<eos><|assistant|>"),
        (
            [{"role": "system", "content": "Be kind"}, USER],
            {},
            "<|system|>Be kind<eos><|user|>Hi<eos><|assistant|>",
        ),
        (
            [USER, {"role": "assistant", "content": "Well, "}],
            {},
            "<|user|>Hi<eos><|assistant|>Well, ",
        ),
        (
            [USER, {"role": "assistant", "content": "Well,"}],
            {"prefill": " yes"},
            "<|user|>Hi<eos><|assistant|>Well, yes",
        ),
        (
            [USER, {"role": "assistant", "content": "Yo"}, USER],
            {},
            "<|user|>Hi<eos><|assistant|>Yo<eos><|user|>Hi<eos><|assistant|>",
        ),
    ],
)
def test_render_writes_what_the_template_says(
    tiny_lm: LanguageModel, prompt: Any, options: dict[str, Any], text: str
) -> None:
    assert tiny_lm.render(prompt, **options) == text


def test_render_without_a_template_is_the_text(plain_lm: LanguageModel) -> None:
    assert plain_lm.render("Hi") == "Hi"
    assert plain_lm.render("Hi", prefill=" you") == "Hi you"
    for prompt, chat in (("Hi", True), ([USER], None)):
        with pytest.raises(PromptError, match="plain has no chat template"):
            plain_lm.render(prompt, chat=chat)


@pytest.mark.parametrize(
    ("thinking", "text"), [(None, "Hi:unsaid"), (True, "Hi:True"), (False, "Hi:False")]
)
def test_enable_thinking_reaches_the_template(
    tiny_lm: LanguageModel, thinking: bool | None, text: str
) -> None:
    tokenizer = tiny.tokenizer()
    tokenizer.chat_template = (
        "{{ messages[0].content }}:"
        "{{ enable_thinking if enable_thinking is defined else 'unsaid' }}"
    )
    lm = LanguageModel(tiny_lm.hf, tokenizer, name="thinker")
    assert lm.render("Hi", enable_thinking=thinking) == text
    assert lm.encode(["Hi"], enable_thinking=thinking).texts == (text,)


@pytest.mark.parametrize("prompt", ["", " \n", []])
def test_an_empty_prompt_is_an_error(tiny_lm: LanguageModel, prompt: Any) -> None:
    with pytest.raises(PromptError, match="give it"):
        tiny_lm.render(prompt)
    with pytest.raises(PromptError, match="give it"):
        tiny_lm.encode(["fine", prompt])


# -- encoding ------------------------------------------------------------------------------------


def test_encode_pads_on_the_left(tiny_lm: LanguageModel) -> None:
    batch = tiny_lm.encode(["abcd", "ef"], chat=False, prefill="!")
    tokens = {letter: tiny_lm.tokenizer.convert_tokens_to_ids(letter) for letter in "abcdef!"}
    pad = tiny_lm.tokenizer.pad_token_id
    assert batch.ids.tolist() == [
        [tokens[c] for c in "abcd!"],
        [pad, pad, *(tokens[c] for c in "ef!")],
    ]
    assert batch.mask.tolist() == [[1, 1, 1, 1, 1], [0, 0, 1, 1, 1]]
    assert batch.lengths == [5, 3]
    assert batch.texts == ("abcd!", "ef!")
    assert len(batch) == 2


def test_template_and_tokenizer_do_not_both_write_the_first_token(tiny_lm: LanguageModel) -> None:
    tokenizer = tiny.tokenizer(bos=True)
    tokenizer.chat_template = "<bos>" + tiny.TEMPLATE
    lm = LanguageModel(tiny_lm.hf, tokenizer, name="tiny")
    for prompt in ("Hi", [USER]):
        (row,) = lm.encode([prompt]).ids.tolist()
        assert row.count(tokenizer.bos_token_id) == 1
    (plain,) = lm.encode(["Hi"], chat=False).ids.tolist()
    assert plain == [tokenizer.bos_token_id, *tokenizer.convert_tokens_to_ids(["H", "i"])]


def test_plain_text_gets_the_first_token_of_the_tokenizer(plain_lm: LanguageModel) -> None:
    assert plain_lm.encode(["Hi"]).ids[0, 0] == plain_lm.tokenizer.bos_token_id


def test_a_tokenizer_without_padding_will_do(tiny_lm: LanguageModel) -> None:
    tokenizer = tiny.tokenizer()
    tokenizer.pad_token = None
    lm = LanguageModel(tiny_lm.hf, tokenizer, name="tiny")
    assert lm.encode(["abc", "a"], chat=False).mask.tolist() == [[1, 1, 1], [0, 0, 1]]


def test_no_prompts_are_an_error(tiny_lm: LanguageModel) -> None:
    with pytest.raises(PromptError, match="no prompt"):
        tiny_lm.encode([])
    with pytest.raises(PromptError, match="no token"):
        tiny_lm.pad([[1, 2], []])


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_a_prompt_longer_than_the_context_is_an_error(architecture: str, lm_of: Any) -> None:
    lm = lm_of(architecture)
    assert lm.context == 128
    assert lm.encode(["x" * 128], chat=False).lengths == [128]
    assert lm.encode(["x" * 120], chat=False, room=8).lengths == [120]
    for length, room in ((129, 0), (120, 9)):
        with pytest.raises(
            PromptError, match=f"{length} tokens and {room} new.*128 tokens of {lm.name}"
        ):
            lm.encode(["short", "x" * length], chat=False, room=room)


# -- loading -------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path, tokenizer: Any) -> Path:
    """A tiny model and its tokenizer on disk, in bfloat16."""
    tiny.hf_model("llama").to(torch.bfloat16).save_pretrained(tmp_path / "tiny")
    tokenizer.save_pretrained(tmp_path / "tiny")
    return tmp_path / "tiny"


def last_logits(lm: LanguageModel, rows: list[list[int]]) -> torch.Tensor:
    batch = lm.pad(rows)
    return lm.forward(batch.ids, batch.mask)[:, 0]


def test_load_from_a_folder(folder: Path) -> None:
    lm = load(folder, device="cpu", dtype=torch.float32)
    hf = tiny.hf_model("llama")
    for weight in hf.parameters():
        weight.data = weight.bfloat16().float()
    (ids,) = tiny.ragged([9])
    torch.testing.assert_close(last_logits(lm, [ids])[0], tiny.run(hf, ids)[0][-1].detach())
    assert lm.name == str(folder)
    assert lm.render("Hi") == "<|user|>Hi<eos><|assistant|>"


@pytest.mark.parametrize(
    ("supported", "asked", "came"),
    [
        (False, "auto", torch.float32),
        (True, "auto", torch.bfloat16),
        (False, torch.bfloat16, torch.bfloat16),
        (False, torch.float64, torch.float64),
    ],
)
def test_dtype_auto_avoids_bfloat16_where_the_processor_has_none(
    folder: Path, monkeypatch: pytest.MonkeyPatch, supported: bool, asked: Any, came: torch.dtype
) -> None:
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: supported)
    lm = load(folder, device="cpu", dtype=asked)
    assert lm.dtype == came
    assert {weight.dtype for weight in lm.hf.parameters()} == {came}


def test_load_takes_a_pair_as_it_is(tokenizer: Any) -> None:
    hf = tiny.hf_model("opt")
    lm = load((hf, tokenizer))
    assert lm.hf is hf
    assert lm.tokenizer is tokenizer
    assert lm.name == "OPTForCausalLM"


@pytest.mark.parametrize("name", ["missing.gguf", "missing", "empty", "no-such/model"])
def test_a_model_that_is_not_there_is_one_sentence(tmp_path: Path, name: str) -> None:
    (tmp_path / "empty").mkdir()
    place = name if "/" in name else str(tmp_path / name)
    with pytest.raises(ModelError) as error:
        load(place)
    assert place in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_an_adapter_is_loaded_beside_the_weights(
    tmp_path: Path, tokenizer: Any, architecture: str
) -> None:
    target = {"llama": ["q_proj", "down_proj"], "gpt2": ["c_attn"]}[architecture]
    config = LoraConfig(
        r=2,
        target_modules=target,
        fan_in_fan_out=architecture == "gpt2",
        init_lora_weights=False,
        task_type="CAUSAL_LM",
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        get_peft_model(tiny.hf_model(architecture), config).save_pretrained(tmp_path)
    rows = tiny.ragged([6, 11])

    base = tiny.hf_model(architecture)
    before = {name: weight.clone() for name, weight in base.state_dict().items()}
    lm = load((base, tokenizer), adapter=tmp_path)
    logits = last_logits(lm, rows)

    theirs = PeftModel.from_pretrained(tiny.hf_model(architecture), tmp_path).eval()
    for row, ids in zip(logits, rows, strict=True):
        with torch.no_grad():
            expected = theirs(input_ids=torch.tensor([ids])).logits[0, -1]
            without = tiny.run(tiny.hf_model(architecture), ids)[0][-1]
        torch.testing.assert_close(row, expected, rtol=1e-4, atol=1e-4)
        assert (row - without).norm() > 0.1 * without.norm()

    assert lm.adapter == str(tmp_path)
    assert lm.depth == 4
    after = {
        name.replace(".base_layer", ""): weight
        for name, weight in lm.unwrapped.state_dict().items()
        if "lora_" not in name
    }
    assert after.keys() == before.keys()
    assert all(torch.equal(weight, before[name]) for name, weight in after.items())
    with lm.hf.disable_adapter():
        torch.testing.assert_close(
            last_logits(lm, rows), last_logits(load((tiny.hf_model(architecture), tokenizer)), rows)
        )


def test_an_adapter_that_is_not_there_is_one_sentence(tmp_path: Path, tokenizer: Any) -> None:
    with pytest.raises(ModelError, match="cannot load the adapter") as error:
        load((tiny.hf_model(), tokenizer), adapter=tmp_path)
    assert str(tmp_path) in str(error.value)
    assert "\n" not in str(error.value)


def test_loading_is_quiet_and_leaves_logging_as_it_was(
    folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    logger = logging.getLogger("transformers")
    level = logger.level
    hf_logging.enable_progress_bar()
    try:
        logger.setLevel(logging.INFO)
        load(folder, device="cpu")
        assert logger.level == logging.INFO
        assert hf_logging.is_progress_bar_enabled()
    finally:
        logger.setLevel(level)
    assert capfd.readouterr() == ("", "")
