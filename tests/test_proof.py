"""The proof at loading: what it lets through is the model's own, what it refuses it names."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers as hub
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

import families
import tiny
from educe.errors import LayerError, ModelError, PromptError
from educe.model.language import LanguageModel
from educe.model.loading import load
from educe.model.proof import Same

BERT = {
    "vocab_size": 262,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "pad_token_id": 1,
    "max_position_embeddings": 130,
}
SEQ2SEQ = {"vocab_size": 262, "d_model": 32, "d_ff": 48, "num_layers": 2, "num_heads": 4}
VISION = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}


def random(kind: str, config: str, arguments: dict[str, Any]) -> Any:
    """Return a random model of a class, with weights so large that its blocks matter."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        hf = getattr(hub, kind)(getattr(hub, config)(**arguments))
        for name, weight in hf.named_parameters():
            if weight.ndim >= 2 and "embed" not in name:
                weight.data *= 10
    return hf.eval()


def llama(kind: str, **besides: Any) -> Callable[[], Any]:
    return functools.partial(random, kind, "LlamaConfig", tiny.COMMON | besides)


def bert(kind: str, **besides: Any) -> Callable[[], Any]:
    return functools.partial(random, kind, "BertConfig", BERT | besides)


def roberta() -> Any:
    return random("RobertaForCausalLM", "RobertaConfig", BERT | {"is_decoder": True})


def encoder_decoder() -> Any:
    return random("T5ForConditionalGeneration", "T5Config", SEQ2SEQ)


def images() -> Any:
    return random("ViTForImageClassification", "ViTConfig", VISION)


def with_a_compiled_block() -> Any:
    hf = tiny.hf_model()
    hf.model.layers[1] = torch.compile(hf.model.layers[1])
    return hf


def with_a_compiled_forward() -> Any:
    hf = tiny.hf_model("llama")
    hf.forward = torch.compile(hf.forward)
    return hf


def adapted_when_compiled() -> Any:
    config = LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False)
    return get_peft_model(torch.compile(tiny.hf_model("llama")), config)


def not_in_memory() -> Any:
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(tiny.hf_model("llama").config)


def compiled_in_place() -> Any:
    hf = tiny.hf_model()
    hf.compile()
    return hf


def with_nan() -> Any:
    hf = tiny.hf_model()
    hf.model.layers[2].mlp.down_proj.weight.data[0, 0] = torch.nan
    return hf


def nan_under_padding() -> Any:
    hf = tiny.hf_model("gemma2", dtype=torch.float64)
    hf.set_attn_implementation("eager")
    return hf


def with_a_dead_head() -> Any:
    hf = tiny.hf_model("gpt_neox")
    hf.lm_head.weight.data.zero_()
    return hf


def beside_its_stack() -> Any:
    """A model whose blocks hand on a stream that its head never reads."""
    hf = tiny.hf_model()
    hf.model.norm.register_forward_hook(
        lambda module, args, out: hf.model.embed_tokens(hf.read) * 10
    )
    hf.model.register_forward_pre_hook(
        lambda module, args, kwargs: setattr(hf, "read", kwargs["input_ids"]), with_kwargs=True
    )
    return hf


REFUSED: list[tuple[Callable[[], Any], str]] = [
    (roberta, r"RobertaForCausalLM.*counts positions in its own way"),
    (bert("BertLMHeadModel"), r"BertLMHeadModel.*no causal language model"),
    (bert("BertForMaskedLM"), r"BertForMaskedLM.*no causal language model"),
    (bert("BertForTokenClassification"), "BertForTokenClassification.*AutoModelForCausalLM"),
    (llama("LlamaModel"), "LlamaModel.*AutoModelForCausalLM"),
    (llama("LlamaForSequenceClassification"), "LlamaForSequenceClassification.*AutoModelFor"),
    (llama("LlamaForTokenClassification", num_labels=9), "LlamaForTokenClassification.*Auto"),
    (llama("LlamaForQuestionAnswering"), "LlamaForQuestionAnswering.*AutoModelForCausalLM"),
    (llama("LlamaForCausalLM", num_hidden_layers=1), r"no stack.*model\.layers \(1\)"),
    (encoder_decoder, "T5ForConditionalGeneration is an encoder-decoder.*AutoModelForCausalLM"),
    (images, "ViTForImageClassification.*AutoModelForCausalLM"),
    (with_a_compiled_block, "LlamaForCausalLM has compiled parts.*before it is compiled"),
    (compiled_in_place, "LlamaForCausalLM has compiled parts.*before it is compiled"),
    (with_a_compiled_forward, "LlamaForCausalLM has compiled parts.*before it is compiled"),
    (adapted_when_compiled, "PeftModel has compiled parts.*before it is compiled"),
    (not_in_memory, "LlamaForCausalLM has no embedding in memory"),
    (with_nan, r"odd gives NaN .* for a plain prompt .*float32"),
    (nan_under_padding, r"odd gives NaN .*padding on the left .*float64, with eager.*dtype or"),
    (with_a_dead_head, "odd gives the same logits whatever it reads"),
    (beside_its_stack, "odd: adding a vector after block 0 changes no logit"),
    (lambda: "text", r"str is no model of transformers.*\(model, tokenizer\)"),
    (lambda: torch.nn.Linear(2, 2), "Linear is no model of transformers"),
]


@pytest.mark.parametrize(
    ("make", "sentence"), REFUSED, ids=[sentence[:40] for _, sentence in REFUSED]
)
def test_what_is_no_stack_of_causal_blocks_is_refused_in_one_sentence(
    make: Callable[[], Any], sentence: str, tokenizer: Any
) -> None:
    with pytest.raises(ModelError, match=sentence) as error:
        LanguageModel(make(), tokenizer, name="odd")
    assert "\n" not in str(error.value)


def test_a_bert_that_was_made_as_a_decoder_passes(tokenizer: Any) -> None:
    lm = LanguageModel(bert("BertLMHeadModel", is_decoder=True)(), tokenizer, name="bert")
    (ids,) = tiny.ragged([9])
    batch = lm.pad([ids, ids[:4]])
    with torch.no_grad():
        own = lm.hf(input_ids=torch.tensor([ids])).logits[0, -1]
    torch.testing.assert_close(lm.forward(batch.ids, batch.mask)[0, 0], own)


@pytest.mark.parametrize(("dtype", "off"), [(torch.float32, 2e-3), (torch.bfloat16, 0.2)])
def test_how_far_logits_may_be_off(dtype: torch.dtype, off: float) -> None:
    own = torch.randn(1, 6, 50, generator=torch.Generator().manual_seed(0)).to(dtype)
    own[..., 7] = torch.finfo(dtype).min  # what some models fill in for tokens never written
    same = Same("it", SimpleNamespace(config=None), own)
    shift = torch.zeros(1, 6, 50, dtype=torch.float64)
    shift[:, :, 3] = own[..., :7].double().norm(dim=-1).mean() * off * 50**0.5 / 7**0.5
    same((own + shift / 20).to(dtype), own, "run", "why")
    with pytest.raises(ModelError, match=r"it .* when run, by .*: why"):
        same((own + shift).to(dtype), own, "run", "why")


def test_one_token_sent_to_another_expert_is_no_error_in_half_precision() -> None:
    own = torch.randn(1, 6, 50, generator=torch.Generator().manual_seed(0))
    flipped = own.clone()
    flipped[:, 2] += 1
    half = own.bfloat16()
    Same("it", SimpleNamespace(config=None), half)(flipped.bfloat16(), half, "run", "why")
    with pytest.raises(ModelError):
        Same("it", SimpleNamespace(config=None), own)(flipped, own, "run", "why")


# -- what works ----------------------------------------------------------------------------------


@pytest.mark.parametrize("wrap", [torch.compile, lambda hf: hf], ids=["compiled", "as it is"])
def test_a_compiled_model_is_the_model_in_it(wrap: Any, tokenizer: Any) -> None:
    hf = tiny.hf_model()
    assert LanguageModel(wrap(hf), tokenizer, name="tiny").hf is hf


def test_a_processor_has_the_tokenizer_in_it(tokenizer: Any) -> None:
    lm = load((tiny.hf_model(), SimpleNamespace(tokenizer=tokenizer)))
    assert lm.tokenizer is tokenizer
    with pytest.raises(ModelError, match="int is no tokenizer"):
        load((tiny.hf_model(), 5))


def test_a_pad_token_outside_the_embedding_pads_all_the_same(tiny_lm: LanguageModel) -> None:
    tokenizer = tiny.tokenizer()
    tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    assert tokenizer.pad_token_id == tiny_lm.vocabulary
    lm = LanguageModel(tiny_lm.hf, tokenizer, name="tiny")
    long, short = tiny.ragged([9, 4])
    batch = lm.pad([long, short])
    assert batch.mask[1].tolist() == [0] * 5 + [1] * 4
    expected, _ = tiny.run(lm.hf, short)
    torch.testing.assert_close(lm.forward(batch.ids, batch.mask)[1, 0], expected[-1].detach())


def test_a_token_that_only_the_tokenizer_knows_is_named(tiny_lm: LanguageModel) -> None:
    tokenizer = tiny.tokenizer()
    tokenizer.add_tokens(["<new>"])
    lm = LanguageModel(tiny_lm.hf, tokenizer, name="tiny")
    assert lm.encode(["old"]).lengths == tiny_lm.encode(["old"]).lengths
    with pytest.raises(PromptError, match=r"tiny has no token '<new>'.*262"):
        lm.encode(["old", "a <new> one"])
    with pytest.raises(PromptError, match="'<new>'"):
        lm.tokens("<new>", templated=True)


@pytest.mark.parametrize("family", ["gemma4_text", "gemma4"])
def test_blocks_see_all_tokens_where_keys_and_values_are_shared(family: str) -> None:
    lm = LanguageModel(families.model_of(family), families.Numbers(), name=family)
    batch = lm.pad(tiny.ragged([11]))
    with lm.watching(range(lm.depth)) as streams:
        logits = lm.forward(batch.ids, batch.mask, last=2)
    assert lm.depth == 6
    assert {stream.shape for stream in streams.values()} == {(1, 11, 32)}
    with torch.no_grad():
        own = lm.hf(input_ids=batch.ids).logits
    torch.testing.assert_close(logits, own[:, -2:])


def test_a_source_above_shared_keys_and_values_is_an_error() -> None:
    lm = LanguageModel(families.model_of("gemma4_text"), families.Numbers(), name="gemma")
    assert [lm.source(layer) for layer in (0, 1)] == [0, 1]
    # Blocks 2 and 3 are the last of each kind with keys of their own; 4 and 5 read theirs.
    for layer in (2, 3, 4):
        with pytest.raises(LayerError, match=f"after block {layer} of gemma.*block 1 is the last"):
            lm.source(layer)


@pytest.mark.parametrize("family", ["qwen2_vl", "gemma3"])
def test_a_model_that_reads_images_loads_by_name(family: str, tmp_path: Path) -> None:
    hf = families.model_of(family)
    hf.save_pretrained(tmp_path)
    tiny.tokenizer().save_pretrained(tmp_path)
    lm = load(tmp_path, device="cpu", dtype=torch.float32)
    assert type(lm.hf) is type(hf)
    (ids,) = tiny.ragged([9])
    batch = lm.pad([ids])
    with torch.no_grad():
        own = hf(input_ids=batch.ids).logits[:, -1:]
    torch.testing.assert_close(lm.forward(batch.ids, batch.mask), own)


def test_a_configuration_of_no_decoder_is_refused_by_name(tmp_path: Path) -> None:
    encoder_decoder().save_pretrained(tmp_path)
    tiny.tokenizer().save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=r"T5Config.*no causal language model") as error:
        load(tmp_path, device="cpu")
    assert "\n" not in str(error.value)


# -- the list of architectures -------------------------------------------------------------------


#: As text alone, as part of a model that reads images, and those that cannot be audited.
TRIED = """
    arcee bamba bloom cohere2 deepseek_v3 exaone4 falcon gemma gemma2 gemma3_text gemma4_text glm4
    gpt2 gpt_neox gpt_oss gptj granite granitemoehybrid jamba jetmoe lfm2 llama mistral mixtral mpt
    olmo2 olmoe opt phi phi3 qwen2 qwen3 qwen3_moe smollm3 stablelm starcoder2
    gemma3 gemma4 glm4v idefics3 internvl llava mistral3 qwen2_5_vl qwen2_vl qwen3_vl smolvlm
    bart gemma3n_text longcat_flash mamba paligemma roberta
"""


@pytest.mark.parametrize("family", TRIED.split())
def test_the_page_says_of_an_architecture_what_a_trial_says(family: str) -> None:
    assert families.row(family, families.verdict(family)) in families.PAGE.read_text()


def test_the_page_has_every_architecture() -> None:
    page = families.PAGE.read_text()
    assert [name for name in families.CLASSES if f"| `{name}` |" not in page] == []
    proven = sum(line.endswith("| proven |") for line in page.splitlines())
    readme = (families.PAGE.parents[1] / "README.md").read_text()
    assert f"{proven} architectures" in page
    assert f"{proven} architectures" in readme


def test_a_slice_that_is_off_would_be_told(monkeypatch: pytest.MonkeyPatch) -> None:
    own = families.educe.Slice.effect
    monkeypatch.setattr(families.educe.Slice, "effect", lambda part, x: own(part, x) * 1.01)
    assert families.verdict("llama") == "wrong: the slice of llama is off"


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (KeyError("shared"), "it cannot be perturbed (KeyError: 'shared')"),
        (RuntimeError("sizes differ\nin two lines"), "(RuntimeError: sizes differ)"),
        (torch.OutOfMemoryError("out of memory"), None),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"), None),
        (MemoryError(), None),
    ],
    ids=repr,
)
def test_why_a_model_cannot_begin_is_told_and_a_machine_is_not_blamed_on_it(
    tokenizer: Any, monkeypatch: pytest.MonkeyPatch, error: Exception, told: str | None
) -> None:
    lm = LanguageModel(tiny.hf_model(), tokenizer, name="llama")

    @contextmanager
    def starting(layer: int, stream: torch.Tensor) -> Iterator[None]:
        raise error
        yield

    monkeypatch.setattr(lm, "starting", starting)
    with pytest.raises(type(error) if told is None else LayerError) as caught:
        lm.source(1)
    monkeypatch.undo()
    if told is None:
        assert caught.value is error
        assert lm.source(1) == 1  # nothing is remembered of it
    else:
        assert told in str(caught.value)
