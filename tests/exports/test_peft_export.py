"""Adapters and vectors as adapters, loaded by PEFT alone; what it says of the error is so."""

from __future__ import annotations

import copy
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel

from educe.errors import ExportError
from educe.exports import export
from educe.exports.expectation import approximated, gate
from educe.forward.generation import next_logits
from educe.model.language import LanguageModel
from educe.perturbation.kinds import adapters
from educe.rows import Row
from handed import chosen

IDS = [72, 256, 101, 108, 33, 90, 111]


def under(of: Any, number: int) -> torch.Tensor:
    one = of.one(number or 1)
    ((_, logits),) = next_logits(
        of.lm, of.lm.pad([IDS]), [Row(int(number > 0), 0)], one.theta, kind=one.kind
    )
    return logits[0]


@torch.no_grad()
def by_peft(of: Any, folder: Path, name: str = "default") -> Any:
    model = PeftModel.from_pretrained(copy.deepcopy(of.lm.hf), str(folder), adapter_name=name)
    return model.eval()


@torch.no_grad()
def logits(model: Any) -> torch.Tensor:
    return model(input_ids=torch.tensor([IDS]), use_cache=False).logits[0, -1]


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "qwen3"])
@pytest.mark.filterwarnings("ignore:fan_in_fan_out")
def test_several_adapters_are_loaded_by_name(tmp_path: Path, architecture: str) -> None:
    lm = chosen(tmp_path / "for-kind", architecture).lm
    of = chosen(tmp_path, architecture, adapters(lm, first=2, blocks=2))
    assert export(of, "peft", tmp_path / "out") == []
    model = by_peft(of, tmp_path / "out" / "1", "1")
    model.load_adapter(str(tmp_path / "out" / "2"), adapter_name="2")
    for number in of.numbers:
        model.set_adapter(str(number))
        torch.testing.assert_close(logits(model), under(of, number), rtol=1e-4, atol=1e-4)
        assert (under(of, number) - under(of, 0)).norm() > 0.05 * under(of, 0).norm()


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "qwen3"])
@pytest.mark.filterwarnings("ignore:fan_in_fan_out")
def test_a_vector_becomes_an_adapter_in_expectation(tmp_path: Path, architecture: str) -> None:
    of = chosen(tmp_path, architecture, dose=0.5)
    (said, _) = export(of, "peft", tmp_path / "out")
    told = (tmp_path / "out" / "1" / "README.md").read_text()
    assert told == f"{said}.\n"
    off = float(re.search(r"off by (\d+)%", said).group(1)) / 100  # type: ignore[union-attr]
    # What it says of the run's prompts, PEFT measures there.
    batch = of.lm.encode(of.settings.prompts)
    model, measured = by_peft(of, tmp_path / "out" / "1"), []
    one = of.one(1)
    rows = [Row(k, i) for k in (0, 1) for i in range(2)]
    found: dict[Row, torch.Tensor] = {}
    for some, lines in next_logits(of.lm, batch, rows, one.theta, kind=one.kind):
        found |= dict(zip(some, lines, strict=True))
    for place, read in enumerate(batch.read):
        with torch.no_grad():
            theirs = model(input_ids=torch.tensor([read]), use_cache=False).logits[0, -1]
        wanted, plain = found[Row(1, place)], found[Row(0, place)]
        measured.append((theirs - wanted).norm() / (wanted - plain).norm())
    assert float(sum(measured)) / 2 == pytest.approx(off, abs=0.011)


def test_where_the_gate_is_constant_the_adapter_is_the_vector(tiny_lm: LanguageModel) -> None:
    """With a matrix that takes the same at every token in one place, the fit must find it."""
    lm = LanguageModel(copy.deepcopy(tiny_lm.hf), tiny_lm.tokenizer, name="constant")
    down = lm.hf.model.layers[1].mlp.down_proj
    constant = torch.zeros(down.in_features)
    constant[7] = 3.0
    handle = down.register_forward_pre_hook(lambda m, args: (args[0] * (constant == 0) + constant,))
    try:
        from educe import methods
        from educe.forward.slice import Slice

        batch = lm.pad([IDS])
        part = Slice(lm, batch, source=1, target=3)
        one = methods.search(part, "random", n=1, radius=2.0)
        made = approximated(lm, one, gate(lm, 1), batch)
    finally:
        handle.remove()
    assert made.gate < 0.02
    assert made.off < 0.02


def test_what_is_no_adapter_is_refused(tmp_path: Path) -> None:
    for i, (said, how) in enumerate(
        {
            "before it adds it to the stream": {"architecture": "gemma2"},
            "no single matrix": {"architecture": "mixtral"},
            "block 0 is no adapter": {"source": 0},
            "added at prompt alone": {"positions": "prompt"},
        }.items()
    ):
        of = chosen(tmp_path / str(i), **how)  # type: ignore[arg-type]
        with pytest.raises(ExportError, match=said):
            export(of, "peft", tmp_path / "out")
        assert not (tmp_path / "out").exists()


def test_the_command_for_vllm_names_every_adapter(tmp_path: Path, tiny_lm: LanguageModel) -> None:
    of = chosen(tmp_path, kind=adapters(tiny_lm, first=2, blocks=1, rank=3))
    (said,) = export(of, "vllm", tmp_path / "out")
    script = (tmp_path / "out" / "serve.sh").read_text()
    assert "--lora-modules 1=adapters/1 2=adapters/2" in script
    assert "--max-loras 3 --max-lora-rank 8 --dtype float32" in script
    assert f"vllm serve {of.settings.model} " in said
    assert (tmp_path / "out" / "adapters" / "2" / "adapter_config.json").is_file()
