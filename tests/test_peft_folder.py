"""A saved adapter, loaded by PEFT alone: the logits and the text that educe gives."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import AutoPeftModelForCausalLM, LoraConfig, PeftModel, get_peft_model
from torch import Tensor

import tiny
from educe import methods
from educe.errors import FileFormatError, RunError
from educe.forward.generation import generate, next_logits, rows_of
from educe.forward.slice import Slice
from educe.model.language import LanguageModel
from educe.perturbation.kinds import adapters
from educe.perturbation.set import PerturbationSet
from peft_oracle import NAMES

ROWS = tiny.ragged([7, 15, 1])
STEPS = 8


def found(
    lm: LanguageModel, *, projection: Any = "attention", rank: int = 1, dose: float = 0.7
) -> PerturbationSet:
    """Return random adapters in blocks 1 and 2, about as large as the stream."""
    kind = adapters(lm, first=1, blocks=2, projection=projection, rank=rank)
    part = Slice(lm, lm.pad(ROWS), source=0, target=3).on(kind)
    return methods.search(part, "random", n=3, radius=dose * part.unit, seed=2)


def loaded(hf: Any, folder: Path) -> Any:
    """Return a copy of a transformers model with the folder's adapter, by PEFT."""
    with torch.random.fork_rng():
        return PeftModel.from_pretrained(copy.deepcopy(hf), str(folder)).eval()


@torch.no_grad()
def logits(model: Any, ids: list[int]) -> Tensor:
    return model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1]


CASES = [
    (name, which, rank)
    for name, names in NAMES.items()
    for which, rank, there in (("attention", 1, True), ("mlp", 2, names[1]))
    if there
]


@pytest.mark.filterwarnings("ignore:fan_in_fan_out")
@pytest.mark.parametrize(("architecture", "projection", "rank"), CASES)
def test_peft_loads_the_folder_and_gives_the_same_logits(
    lm_of: Any, tmp_path: Path, architecture: str, projection: str, rank: int
) -> None:
    # Attention of these on padding is NaN in double precision: their masks overflow to -inf.
    lm = lm_of(
        architecture, torch.float32 if architecture in ("gemma2", "bloom") else torch.float64
    )
    tolerance = 1e-4 if lm.dtype == torch.float32 else 1e-5
    some = found(lm, projection=projection, rank=rank)
    plain = [logits(lm.hf, ids) for ids in ROWS]
    batches = next_logits(lm, lm.pad(ROWS), rows_of(3, 3), some.theta, kind=some.kind)
    own = {row: line for rows, lines in batches for row, line in zip(rows, lines, strict=True)}
    for item in range(3):
        folder = tmp_path / str(item)
        some.save_peft(folder, item)
        model = loaded(lm.hf, folder)
        for row, line in own.items():
            if row.perturbation == item + 1:
                theirs = logits(model, ROWS[row.prompt])
                off = (line - theirs).norm() / theirs.norm()
                assert float(off) < tolerance
                moved = (theirs - plain[row.prompt]).norm() / theirs.norm()
                assert float(moved) > 100 * tolerance


@pytest.mark.filterwarnings("ignore:fan_in_fan_out")
@pytest.mark.parametrize("architecture", ["llama", "gpt2", "gemma2"])
@torch.no_grad()
def test_peft_writes_the_text_that_educe_writes(
    lm_of: Any, tmp_path: Path, architecture: str
) -> None:
    lm = lm_of(architecture)
    some = found(lm)
    done = generate(
        lm, lm.pad(ROWS), rows_of(3, 3), some.theta, kind=some.kind, max_new_tokens=STEPS
    )
    own = {c.row: list(c.tokens) for batch in done for c in batch}
    assert len({tuple(tokens) for tokens in own.values()}) > 5
    for item in range(3):
        some.save_peft(tmp_path / str(item), item)
        model = loaded(lm.hf, tmp_path / str(item))
        for row, tokens in own.items():
            if row.perturbation == item + 1:
                ids = torch.tensor([ROWS[row.prompt]])
                theirs = model.generate(
                    input_ids=ids,
                    attention_mask=torch.ones_like(ids),
                    do_sample=False,
                    max_new_tokens=STEPS,
                    pad_token_id=258,
                )[0, ids.shape[1] :].tolist()
                assert tokens == (theirs[: theirs.index(257)] if 257 in theirs else theirs)


@pytest.mark.filterwarnings("ignore:fan_in_fan_out")
@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_merged_into_the_weights_it_is_the_same(
    lm_of: Any, tmp_path: Path, architecture: str
) -> None:
    lm = lm_of(architecture, torch.float64)
    some = found(lm, projection="mlp")
    some.save_peft(tmp_path, 0)
    beside = loaded(lm.hf, tmp_path)
    expected = [logits(beside, ids) for ids in ROWS]
    merged = beside.merge_and_unload()
    for ids, line in zip(ROWS, expected, strict=True):
        torch.testing.assert_close(logits(merged, ids), line, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_found_beside_an_organism_it_is_loaded_beside_it(tokenizer: Any, tmp_path: Path) -> None:
    config = LoraConfig(
        r=2,
        target_modules=["q_proj", "o_proj"],
        init_lora_weights=False,
        task_type="CAUSAL_LM",
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        get_peft_model(tiny.hf_model(), config).save_pretrained(tmp_path / "organism")
    hf = PeftModel.from_pretrained(tiny.hf_model(), str(tmp_path / "organism"))
    lm = LanguageModel(hf, tokenizer, name="llama", adapter="organism")
    some = found(lm)
    some.save_peft(tmp_path / "found", 1)
    batches = next_logits(lm, lm.pad(ROWS), rows_of(3, 3), some.theta, kind=some.kind)
    own = {row: line for rows, lines in batches for row, line in zip(rows, lines, strict=True)}
    both = PeftModel.from_pretrained(tiny.hf_model(), str(tmp_path / "organism"))
    both.load_adapter(str(tmp_path / "found"), "found")
    both.base_model.set_adapter(["default", "found"])
    both.eval()
    for row, line in own.items():
        if row.perturbation == 2:
            theirs = logits(both, ROWS[row.prompt])
            torch.testing.assert_close(line, theirs, rtol=1e-4, atol=1e-3)
            alone = logits(hf, ROWS[row.prompt])
            assert float((line - alone).norm() / line.norm()) > 0.01


@torch.no_grad()
def test_the_folder_alone_names_its_base_model(tokenizer: Any, tmp_path: Path) -> None:
    tiny.hf_model().save_pretrained(tmp_path / "base")
    lm = LanguageModel(tiny.hf_model(), tokenizer, name=str(tmp_path / "base"))
    some = found(lm)
    some.save_peft(tmp_path / "found", 0)
    model = AutoPeftModelForCausalLM.from_pretrained(str(tmp_path / "found")).eval()
    expected = loaded(tiny.hf_model(), tmp_path / "found")
    assert torch.equal(logits(model, ROWS[0]), logits(expected, ROWS[0]))


def test_the_folder_changes_the_modules_of_the_band_and_no_other(
    lm_of: Any, tmp_path: Path
) -> None:
    some = found(lm_of("llama"), rank=2)
    some.save_peft(tmp_path / "new" / "folder", 2)
    assert {file.name for file in (tmp_path / "new" / "folder").iterdir()} == {
        "adapter_config.json",
        "adapter_model.safetensors",
    }
    config = json.loads((tmp_path / "new" / "folder" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "llama"
    assert config["revision"] is None
    assert config["lora_alpha"] / config["r"] == 1
    model = loaded(tiny.hf_model(), tmp_path / "new" / "folder")
    touched = [name for name, module in model.named_modules() if hasattr(module, "lora_A")]
    path = "base_model.model.model.layers.{}.self_attn.o_proj"
    assert touched == [path.format(1), path.format(2)]
    for name, (a, b) in zip(touched, some.kind.split(some.theta[2:]), strict=True):  # type: ignore[attr-defined]
        layer = model.get_submodule(name)
        torch.testing.assert_close(layer.get_delta_weight("default"), b[0].T @ a[0])


def test_other_kinds_have_no_such_folder(tiny_lm: LanguageModel, tmp_path: Path) -> None:
    part = Slice(tiny_lm, tiny_lm.pad(ROWS), source=0, target=3)
    vectors = methods.search(part, "random", n=2, radius=1.0)
    with pytest.raises(FileFormatError, match="PEFT knows no vectors, only adapters"):
        vectors.save_peft(tmp_path / "folder", 0)
    assert not (tmp_path / "folder").exists()


def test_a_place_where_nothing_can_be_written_is_an_error(
    tiny_lm: LanguageModel, tmp_path: Path
) -> None:
    some = found(tiny_lm)
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(RunError, match="cannot write"):
        some.save_peft(tmp_path / "file" / "folder", 0)
    with pytest.raises(IndexError):
        some.save_peft(tmp_path / "folder", 3)
