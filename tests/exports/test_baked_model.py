"""Baked models, loaded by transformers alone: the logits of the perturbed one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

import tiny
from educe.errors import ExportError
from educe.exports import export
from educe.forward.generation import generate
from educe.perturbation.kinds import Biases, adapters
from educe.rows import Row
from handed import chosen, saved


def check(of: Any, folder: Path) -> None:
    """The text that transformers writes with a baked model is that of the perturbed one."""
    batch = of.lm.encode(of.settings.prompts)
    texts = set()
    for number in of.numbers:
        one, hf = of.one(number), AutoModelForCausalLM.from_pretrained(folder / str(number))
        rows = [Row(1, place) for place in range(len(batch))]
        done = generate(of.lm, batch, rows, one.theta, kind=one.kind, max_new_tokens=8)
        own = {c.row.prompt: list(c.tokens) for some in done for c in some}
        for place, read in enumerate(batch.read):
            ids = torch.tensor([read])
            how = {"do_sample": False, "max_new_tokens": 8, "pad_token_id": 258}
            written = hf.generate(ids, attention_mask=torch.ones_like(ids), **how)[0]
            theirs = written[len(read) :].tolist()
            assert own[place] == (theirs[: theirs.index(257)] if 257 in theirs else theirs)
            texts.add(tuple(theirs))
    assert len(texts) > 2


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "gpt_neox", "bamba"])
def test_transformers_alone_writes_what_the_perturbation_does(
    tmp_path: Path, architecture: str
) -> None:
    of = chosen(tmp_path, architecture)
    assert export(of, "baked", tmp_path / "out") == []
    check(of, tmp_path / "out")


def test_an_adapter_beside_the_model_is_merged_too(tmp_path: Path) -> None:
    model = saved(tmp_path / "model", "llama")
    beside = get_peft_model(
        tiny.hf_model(),
        LoraConfig(r=2, target_modules=["down_proj"], init_lora_weights=False),
    )
    beside.save_pretrained(tmp_path / "beside")
    of = chosen(tmp_path, model=model, adapter=tmp_path / "beside")
    export(of, "baked", tmp_path / "out")
    check(of, tmp_path / "out")
    with pytest.raises(ExportError, match="has no place for two: merge it into the model"):
        export(of, "vllm", tmp_path / "vllm")


@pytest.mark.parametrize("architecture", ["qwen2", "gpt2", "gemma2"])
@pytest.mark.filterwarnings("ignore:fan_in_fan_out")
def test_adapters_are_merged(tmp_path: Path, architecture: str) -> None:
    lm = chosen(tmp_path / "for-kind", architecture).lm
    of = chosen(tmp_path, architecture, adapters(lm, first=2, blocks=2))
    export(of, "baked", tmp_path / "out")
    check(of, tmp_path / "out")


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "gpt_neox", "qwen2"])
@pytest.mark.parametrize("projection", ["attention", "mlp"])
def test_adapters_without_their_gate_are_biases(
    tmp_path: Path, architecture: str, projection: Any
) -> None:
    lm = chosen(tmp_path / "for-kind", architecture).lm
    gated = adapters(lm, first=2, blocks=2, projection=projection)
    of = chosen(tmp_path, architecture, Biases.like(gated))
    if architecture == "qwen2":
        with pytest.raises(ExportError, match="takes no bias, and nothing in its configuration"):
            export(of, "baked", tmp_path / "out")
        return
    export(of, "baked", tmp_path / "out")
    check(of, tmp_path / "out")


@pytest.mark.parametrize(
    ("architecture", "said"),
    [
        ("qwen2", "Qwen2ForCausalLM has no place for a vector: .* takes no bias"),
        ("gemma2", "has no place for a vector"),
        ("mixtral", "has no place for a vector"),
    ],
)
def test_an_architecture_without_such_a_bias_is_refused(
    tmp_path: Path, architecture: str, said: str
) -> None:
    of = chosen(tmp_path, architecture)
    with pytest.raises(ExportError, match=said):
        export(of, "baked", tmp_path / "out")
    assert not (tmp_path / "out").exists()
