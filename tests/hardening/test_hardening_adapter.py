"""The new adapter beside a model's own: one file that equals both, and a model left as it was."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor

import tiny
from educe.errors import ModelError
from educe.hardening import adapter
from educe.model.language import LanguageModel
from educe.model.loading import load


def own_adapter(folder: Path, **options: object) -> Path:
    """Write a random adapter on two of the blocks, of several ranks, as PEFT writes one."""
    config = LoraConfig(
        r=3,
        lora_alpha=5,
        target_modules=["q_proj", "down_proj"],
        layers_to_transform=[0, 2],
        rank_pattern={"q_proj": 2},
        init_lora_weights=False,
        task_type="CAUSAL_LM",
        **options,  # type: ignore[arg-type]
    )
    torch.manual_seed(3)
    get_peft_model(tiny.hf_model(), config).save_pretrained(str(folder))
    return folder


def made(folder: Path | None = None, architecture: str = "llama") -> LanguageModel:
    pair = (tiny.hf_model(architecture), tiny.tokenizer())
    return load(pair, adapter=folder)


def logits(lm: LanguageModel) -> Tensor:
    batch = lm.encode(["Why is the sky blue?"])
    return lm.forward(batch.ids, batch.mask, last=0)


def scramble(weights: list[Tensor]) -> None:
    draw = torch.Generator().manual_seed(7)
    for weight in weights:
        weight.data = torch.randn(weight.shape, generator=draw) / 5


@pytest.mark.parametrize("has_one", [True, False])
def test_what_is_written_equals_both_adapters_together(tmp_path: Path, has_one: bool) -> None:
    lm = made(own_adapter(tmp_path / "own") if has_one else None)
    before = logits(lm)
    with adapter.beside(lm, 0, rank=2, seed=0) as weights:
        torch.testing.assert_close(logits(lm), before)  # it begins as nothing
        scramble(weights)
        together = logits(lm)
        adapter.write(lm, tmp_path / "both")
    torch.testing.assert_close(logits(lm), before)
    assert not any(weight.requires_grad for weight in lm.hf.parameters())
    assert (together - before).abs().max() > 0.1
    again = made(tmp_path / "both")
    torch.testing.assert_close(logits(again), together, atol=1e-4, rtol=1e-4)
    config = json.loads((tmp_path / "both" / "adapter_config.json").read_text())
    assert config["r"] == (3 + 2 if has_one else 2)
    if has_one:  # what it had alone is another model
        assert (logits(again) - logits(made(tmp_path / "own"))).abs().max() > 0.1


def test_a_second_one_can_be_put_beside_the_written(tmp_path: Path) -> None:
    lm = made()
    for folder in ("one", "two"):
        with adapter.beside(lm, 1, rank=2, seed=0) as weights:
            scramble(weights)
            together = logits(lm)
            adapter.write(lm, tmp_path / folder)
        lm = made(tmp_path / folder)
        torch.testing.assert_close(logits(lm), together, atol=1e-4, rtol=1e-4)


def test_one_that_was_there_before_leaves_nothing_in_what_is_written(tmp_path: Path) -> None:
    """PEFT leaves its layers where an adapter was, also in blocks that have none any more."""
    lm = made(own_adapter(tmp_path / "own"))
    with adapter.beside(lm, 0, rank=2, seed=0) as weights:
        scramble(weights)
    with adapter.beside(lm, 2, rank=2, seed=1) as weights:
        scramble(weights)
        together = logits(lm)
        adapter.write(lm, tmp_path / "both")
    again = made(tmp_path / "both")
    torch.testing.assert_close(logits(again), together, atol=1e-4, rtol=1e-4)
    config = json.loads((tmp_path / "both" / "adapter_config.json").read_text())
    assert not any("layers.1." in name for name in config["target_modules"])


def test_only_weights_of_the_new_one_above_the_block_are_trained(tmp_path: Path) -> None:
    lm = made(own_adapter(tmp_path))
    assert isinstance(lm.hf, PeftModel)
    with adapter.beside(lm, 1, rank=2, seed=0) as weights:
        names = {id(weight): name for name, weight in lm.hf.named_parameters()}
        trained = [names[id(weight)] for weight in weights]
        assert not any(weight.requires_grad for weight in lm.hf.parameters())
    assert len(trained) == 2 * 2 * 7  # blocks 2 and 3, A and B, seven matrices
    assert all(".hardening." in name for name in trained)
    assert all(".layers.2." in name or ".layers.3." in name for name in trained)


def test_it_depends_on_its_seed_alone() -> None:
    lm, drawn = made(), []
    for seed in (1, 1, 2):
        torch.manual_seed(seed + len(drawn))
        with adapter.beside(lm, 1, rank=2, seed=seed) as weights:
            drawn.append(torch.cat([weight.flatten().clone() for weight in weights]))
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])


def test_matrices_that_transformers_keeps_transposed(tmp_path: Path) -> None:
    lm = made(architecture="gpt2")
    with adapter.beside(lm, 1, rank=2, seed=0) as weights:
        scramble(weights)
        together = logits(lm)
        adapter.write(lm, tmp_path / "new")
    torch.testing.assert_close(
        logits(made(tmp_path / "new", "gpt2")), together, atol=1e-4, rtol=1e-4
    )


@pytest.mark.parametrize("options", [{"use_dora": True}, {"bias": "all"}])
def test_an_adapter_that_is_no_product_is_refused(tmp_path: Path, options: dict) -> None:
    lm = made(own_adapter(tmp_path, **options))
    with pytest.raises(ModelError, match="is no plain LoRA adapter"):
        adapter.check(lm)
    adapter.check(made())
