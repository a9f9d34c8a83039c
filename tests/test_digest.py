"""By what a model is known again: the same wherever it is read, another when a bit of it is."""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from torch.testing._internal.two_tensor import TwoTensor

import tiny
from educe.model import digest
from educe.model.language import LanguageModel
from educe.model.loading import load


@pytest.fixture
def folder(tmp_path: Path, tokenizer: Any) -> Path:
    """A tiny model in bfloat16."""
    tiny.hf_model("llama").to(torch.bfloat16).save_pretrained(tmp_path / "tiny")
    tokenizer.save_pretrained(tmp_path / "tiny")
    return tmp_path / "tiny"


def by_hand(tensor: torch.Tensor) -> bytes:
    """The checksum in Python's own integers."""

    def signed(number: int) -> int:
        return (number + 2**63) % 2**64 - 2**63

    sums, flat = b"", tensor.flatten().tolist()
    for start in range(0, len(flat), 1 << 16):
        total = 0
        for i, value in enumerate(flat[start : start + (1 << 16)]):
            (bits,) = struct.unpack("<i", struct.pack("<f", value))
            mixed = signed((i + 1) * -0x61C8864680B583EB)
            total += (signed((mixed ^ (mixed >> 29)) * -0x40A7B892E31B1A47) | 1) * bits
        sums += struct.pack("<q", signed(total))
    return hashlib.sha256(sums).digest()


@pytest.mark.parametrize("many", [1, 7, 65_536, 65_537, 200_000])
def test_checksum_is_the_sum_of_its_definition(many: int) -> None:
    draw = torch.Generator().manual_seed(many)
    numbers = torch.randn(many, generator=draw)
    assert digest.checksum(numbers) == by_hand(numbers)
    assert digest.checksum(numbers.bfloat16()) == by_hand(numbers.bfloat16().float())


@pytest.mark.parametrize(
    "dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn]
)
def test_one_ulp_anywhere_is_noticed(dtype: torch.dtype) -> None:
    of_size = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    numbers = torch.linspace(0.5, 1.5, 300).to(dtype)
    before = digest.checksum(numbers)
    for at in range(len(numbers)):
        numbers.view(of_size[numbers.itemsize])[at] += 1
        assert digest.checksum(numbers) != before
        numbers.view(of_size[numbers.itemsize])[at] -= 1
    assert digest.checksum(numbers) == before


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.uint8, torch.bool])
def test_whole_numbers_have_a_checksum(dtype: torch.dtype) -> None:
    numbers = torch.tensor([0, 1, 1, 0, 1]).to(dtype)
    before = digest.checksum(numbers)
    assert digest.checksum(numbers.flip(0)) != before
    assert digest.checksum(numbers.clone()) == before


def test_order_of_numbers_matters_and_how_they_lie_in_memory_does_not() -> None:
    numbers = torch.randn(40, 30, generator=torch.Generator().manual_seed(0))
    assert digest.checksum(numbers.t()) == digest.checksum(numbers.t().contiguous())
    assert digest.checksum(numbers.t()) != digest.checksum(numbers)
    assert digest.checksum(numbers[torch.randperm(40)]) != digest.checksum(numbers)


def test_a_folder_loaded_twice_is_the_same_and_as_the_pair_it_was_saved_from(
    folder: Path, tokenizer: Any
) -> None:
    one, other = load(folder, dtype=torch.bfloat16), load(folder, dtype=torch.bfloat16)
    assert one.digest == other.digest
    pair = load((tiny.hf_model("llama").to(torch.bfloat16), tokenizer))
    assert pair.parts["weights"] == one.parts["weights"]
    assert pair.parts["configuration"] == one.parts["configuration"]


@torch.no_grad()
def test_a_dtype_that_holds_them_leaves_the_weights_what_they_are(folder: Path) -> None:
    half, single = load(folder, dtype=torch.bfloat16), load(folder, dtype=torch.float32)
    differing = [part for part in half.parts if half.parts[part] != single.parts[part]]
    assert differing == ["dtype"]
    assert (half.parts["dtype"], single.parts["dtype"]) == ("bfloat16", "float32")
    assert half.digest != single.digest
    single.hf.model.norm.weight += 2**-20
    again = digest.parts(single.hf.bfloat16(), single.tokenizer)
    assert (again["dtype"], again["weights"]) == ("bfloat16", half.parts["weights"])


def changed(of: Any, what: str) -> tuple[Any, Any]:
    """Return a model and a tokenizer of which one thing is another."""
    hf, tokenizer = of, tiny.tokenizer()
    if what == "a weight":
        hf.model.layers[2].mlp.up_proj.weight.view(torch.int32)[3, 5] += 1
    elif what == "two rows":
        embedding = hf.model.embed_tokens.weight
        embedding[[4, 9]] = embedding[[9, 4]]
    elif what == "a norm":
        hf.model.norm.weight.view(torch.int32)[-1] ^= 1
    elif what == "a buffer":
        hf.model.layers[1].register_buffer("shift", torch.zeros(3))
    elif what == "rope":
        hf.config.rope_parameters["rope_theta"] *= 2
    elif what == "ends":
        hf.generation_config.eos_token_id = 3
    elif what == "template":
        tokenizer.chat_template += " "
    elif what == "a token":
        tokenizer.add_tokens(["_dtype"])
    return hf, tokenizer


@pytest.mark.parametrize(
    ("what", "part"),
    [
        ("a weight", "weights"),
        ("two rows", "weights"),
        ("a norm", "weights"),
        ("a buffer", "weights"),
        ("rope", "configuration"),
        ("ends", "configuration"),
        ("template", "tokenizer"),
        ("a token", "tokenizer"),
    ],
)
@torch.no_grad()
def test_what_is_another_is_the_part_that_differs(what: str, part: str) -> None:
    plain = digest.parts(tiny.hf_model("llama"), tiny.tokenizer())
    other = digest.parts(*changed(tiny.hf_model("llama"), what))
    assert [name for name in plain if plain[name] != other[name]] == [part]
    assert digest.whole(plain) != digest.whole(other)


def adapted(*, alpha: int = 4, seed: int = 0) -> Any:
    config = LoraConfig(
        r=2, lora_alpha=alpha, target_modules=["q_proj", "v_proj"], init_lora_weights=False
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return get_peft_model(tiny.hf_model("llama"), config)


def test_an_adapter_its_weights_and_its_scale_are_part_of_it() -> None:
    plain, base = digest.parts(adapted(), None), digest.parts(tiny.hf_model("llama"), None)
    assert plain == digest.parts(adapted(), None)
    assert plain["weights"] != base["weights"]
    assert plain["configuration"] != base["configuration"]
    retrained, scaled = digest.parts(adapted(seed=1), None), digest.parts(adapted(alpha=8), None)
    assert [part for part in plain if plain[part] != retrained[part]] == ["weights"]
    assert [part for part in plain if plain[part] != scaled[part]] == ["configuration"]


def test_which_adapters_act_and_how_strongly_is_part_of_it(tmp_path: Path) -> None:
    adapted(seed=1).save_pretrained(tmp_path)

    def changed(change: Callable[[Any], Any]) -> dict[str, str]:
        hf = adapted()
        hf.load_adapter(tmp_path, "second")
        change(hf)
        return digest.parts(hf, None)

    first = changed(lambda hf: None)
    assert changed(lambda hf: hf.set_adapter("default")) == first
    for change in (
        lambda hf: hf.set_adapter("second"),
        lambda hf: hf.base_model.set_adapter(["default", "second"]),
        lambda hf: hf.base_model.disable_adapter_layers(),
        lambda hf: hf.base_model.model.model.layers[0].self_attn.q_proj.scale_layer(3.0),
    ):
        other = changed(change)
        assert [part for part in first if first[part] != other[part]] == ["configuration"]


def test_calls_of_the_tokenizer_leave_it_what_it_is(tokenizer: Any) -> None:
    hf, used = tiny.hf_model("llama"), tiny.tokenizer()
    before = digest.parts(hf, used)
    used(["a", "long one"], padding=True, truncation=True, max_length=5)
    assert "padding" in json.loads(used.backend_tokenizer.to_str())
    assert digest.parts(hf, used) == before


def test_a_compiled_module_is_the_module() -> None:
    plain = digest.parts(tiny.hf_model("llama"), None)
    hf = tiny.hf_model("llama")
    hf.model.layers[1] = torch.compile(hf.model.layers[1])
    assert digest.parts(hf, None) == plain
    assert digest.parts(torch.compile(tiny.hf_model("llama")), None) == plain


def test_weights_that_lie_on_the_processor_are_read_too() -> None:
    from accelerate import cpu_offload

    hf = tiny.hf_model("llama")
    plain = digest.parts(hf, None)
    offloaded = cpu_offload(tiny.hf_model("llama"), execution_device="cpu")
    assert offloaded.lm_head.weight.is_meta
    assert digest.parts(offloaded, None) == plain


def test_a_quantised_tensor_is_read_as_those_it_consists_of() -> None:
    def of(first: float, second: float) -> str:
        hf = tiny.hf_model("llama")
        pair = TwoTensor(torch.full((3,), first), torch.full((3,), second))
        hf.extra = nn.Parameter(pair, requires_grad=False)
        return digest.parts(hf, None)["weights"]

    assert of(1, 2) == of(1, 2)
    assert len({of(1, 2), of(1, 3), of(2, 2)}) == 3


def test_it_is_read_once(tiny_lm: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    first = tiny_lm.digest
    monkeypatch.setattr(digest, "checksum", lambda tensor: pytest.fail("read twice"))
    assert tiny_lm.digest == first
