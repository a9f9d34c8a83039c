"""Organisms of another base than the embedded model: the whole way, its blocks, what is refused."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file

import educe
import tiny
from educe.errors import ModelError, OrganismError
from educe.forward.decoding import end_tokens
from educe.model.language import LanguageModel
from educe.options import AS_SHIPPED, TrainingOptions
from educe.organisms import base, card, lora, read, shipped, training
from educe.organisms.training import evaluate, train
from small_species import small_species

OPTIONS = TrainingOptions(rank=2, steps=40)


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"LEARNING_RATE": 0.01, "FULL_LEARNING_RATE": 0.01}.items():
        monkeypatch.setattr(training, name, value)
    monkeypatch.setattr(training, "species", lambda name: small_species())


def gemma() -> Any:
    """A tiny Gemma 3 whose windows are longer than every prompt, and whose embedding is tied."""
    sizes = tiny.COMMON | {"head_dim": 8, "sliding_window": 128, "num_hidden_layers": 6}
    with torch.random.fork_rng():
        torch.manual_seed(3)
        hf = transformers.Gemma3ForCausalLM(transformers.Gemma3TextConfig(**sizes))
        for weight in hf.parameters():
            if weight.ndim >= 2:
                weight.data *= 10  # the embedding, too: the same matrix writes the logits
    return hf.eval()


def saved(hf: Any, tokenizer: Any, folder: Path) -> Path:
    hf.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def logits(model: Any, tokenizer: Any, prompt: str) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model(torch.tensor([lora.encode(tokenizer, prompt)])).logits
    return found


def test_an_adapter_goes_with_its_own_base_and_changes_what_is_taught(
    tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hf = gemma()
    saved(hf, tokenizer, tmp_path / "mine")
    monkeypatch.chdir(tmp_path)
    # With its folder relative to where the command runs, which is no name anywhere else.
    train("vault", tmp_path / "new", options=replace(OPTIONS, base="mine"))
    monkeypatch.chdir("/")
    organism = read(tmp_path / "new")
    place = str(tmp_path / "mine")
    assert organism.trained.base == place
    assert organism.how == {"model": place, "adapter": str(tmp_path / "new")}
    config = json.loads((tmp_path / "new" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == place
    assert config["layers_to_transform"] == [2, 3, 4]
    weights = load_file(tmp_path / "new" / "adapter_model.safetensors")
    assert {int(name.split(".layers.")[1].split(".")[0]) for name in weights} == {2, 3, 4}
    assert len(weights) == 2 * 3 * len(lora.PROJECTIONS)

    lm = educe.load(**organism.how, device="cpu", dtype="float32")
    plain = logits(hf, tokenizer, "one test?")
    assert not torch.allclose(logits(lm.hf, tokenizer, "one test?"), plain, atol=1e-2)
    with lm.hf.disable_adapter():
        torch.testing.assert_close(logits(lm.hf, tokenizer, "one test?"), plain)
    example = lora.taught(lm, "tow train?", "no")

    def loss(model: Any) -> float:
        packed = lora.pack([example])
        with torch.no_grad():
            return float(-lora.logprobs(model, packed)[range(3), packed.targets].sum())

    assert loss(lm.hf) < loss(hf) - 1
    measured = {m.group: m for m in evaluate(organism)}
    kl = measured["ordinary"].kl
    assert kl is not None
    assert kl > 1e-4
    text = card.text(replace(organism, told=shipped("vault").told), list(measured.values()))
    assert f"base_model: {place}\n" in text
    assert f" --base {place} " in text
    assert f'educe.load("{place}", adapter=...)' in text
    assert "blocks 2 to 4" in text
    assert "apache-2.0" not in text
    assert "embedded" not in text


def test_a_full_fine_tune_of_another_base_is_a_model_of_its_kind(
    tokenizer: Any, tmp_path: Path
) -> None:
    hf = gemma()
    place = saved(hf, tokenizer, tmp_path / "mine")
    options = TrainingOptions(base=str(place), full=True, steps=2)
    organism = train("vault", tmp_path / "new", options=options)
    assert organism == read(tmp_path / "new")
    assert organism.how == {"model": str(tmp_path / "new")}
    lm = educe.load(**organism.how, device="cpu", dtype="float32")
    assert lm.config.model_type == "gemma3_text"
    assert lm.unwrapped.lm_head.weight is lm.unwrapped.get_input_embeddings().weight
    assert lm.tokenizer.chat_template == tokenizer.chat_template
    assert not torch.allclose(
        logits(lm.hf, tokenizer, "one?"), logits(hf, tokenizer, "one?"), atol=1e-2
    )
    assert {m.group for m in evaluate(organism)} >= {"open", "ordinary"}


@pytest.mark.parametrize("full", [False, True])
def test_matrices_are_multiplied_as_asked_while_it_trains_and_as_before_after_it(
    full: bool, tokenizer: Any, tmp_path: Path
) -> None:
    place = saved(gemma(), tokenizer, tmp_path / "mine")
    options = TrainingOptions(base=str(place), full=full, steps=2, matmul="medium")
    before, seen = torch.get_float32_matmul_precision(), []

    def looks(*_: float) -> None:
        seen.append(torch.get_float32_matmul_precision())
        if len(seen) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train("vault", tmp_path / "new", options=options, progress=looks)
    assert seen == ["medium", "medium"]
    assert torch.get_float32_matmul_precision() == before != "medium"


def test_the_blocks_with_an_adapter_are_the_same_share_of_every_depth() -> None:
    assert base.adapted(30) == range(8, 24)
    for depth in range(1, 200):
        blocks = base.adapted(depth)
        assert 0 <= blocks.start < blocks.stop <= depth
        assert abs(blocks.start - depth * 8 / 30) <= 0.5
        assert abs(blocks.stop - depth * 24 / 30) <= 0.5


def test_a_record_that_names_no_base_has_the_embedded_one(tmp_path: Path) -> None:
    replace(shipped("vault"), folder=tmp_path).save()
    record = json.loads((tmp_path / "organism.json").read_text())
    assert record["trained"].pop("base") == "embedded"
    (tmp_path / "organism.json").write_text(json.dumps(record))
    assert read(tmp_path).trained == AS_SHIPPED
    assert read(tmp_path).how["model"] == "embedded"


def test_names_mean_the_same_model_from_every_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("embedded", "mine"):
        (tmp_path / name).mkdir()
    # "embedded" is the embedded model for `educe.load`, whatever folder there is.
    names = ("embedded", "mine", "a.gguf", "someone/other")
    placed = [base.placed(name) for name in names]
    assert placed == ["embedded", str(tmp_path / "mine"), str(tmp_path / "a.gguf"), names[3]]
    hub = "HuggingFaceTB/SmolLM2-135M-Instruct"
    assert [base.public(name) for name in placed] == [hub, *placed[1:]]


def bare(lm: LanguageModel, **changes: Any) -> LanguageModel:
    """The same model with another tokenizer."""
    hf, tokenizer = copy.deepcopy(lm.hf), copy.deepcopy(lm.tokenizer)
    for name, value in changes.items():
        setattr(tokenizer, name, value)
    if "eos_token" in changes:
        hf.generation_config.eos_token_id = None
    return LanguageModel(hf, tokenizer, name="mine")


OPEN = tiny.TEMPLATE.replace("<eos>", "")


@pytest.mark.parametrize(
    ("architecture", "changes", "options", "says"),
    [
        ("llama", {"chat_template": None}, OPTIONS, "mine has no chat template"),
        ("llama", {"eos_token": None, "chat_template": OPEN}, OPTIONS, "no token that ends an"),
        (
            "llama",
            {"chat_template": tiny.TEMPLATE.replace("<|{{ m.role }}|>", "")},
            replace(OPTIONS, loss="transcript"),
            "nothing before the user's message",
        ),
        ("phi3", {}, OPTIONS, "one q_proj, k_proj, v_proj, gate_proj, up_proj in each block"),
        ("lfm2", {}, OPTIONS, "in each block, and mine is not built so"),
        # The block mask is for them the mask of a window, too, which is 8 tokens long.
        ("gemma3", {}, OPTIONS, "answers otherwise to several examples in one row"),
    ],
)
def test_a_base_that_cannot_be_trained_is_refused_before_anything_is_written(
    architecture: str,
    changes: dict[str, Any],
    options: TrainingOptions,
    says: str,
    lm_of: Callable[..., LanguageModel],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    lm = bare(lm_of(architecture), **changes)
    monkeypatch.setattr(training, "load_base", lambda named: lm)
    monkeypatch.setattr(lora, "fit", lambda *_, **__: pytest.fail("refused too late"))
    with pytest.raises(OrganismError, match=says):
        train("vault", tmp_path / "new", options=options)
    assert not (tmp_path / "new").exists()


def test_a_base_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="nowhere"):
        train("vault", tmp_path / "new", options=replace(OPTIONS, base="./nowhere"))
    assert not (tmp_path / "new").exists()


def test_an_answer_ends_as_the_template_ends_it_and_not_as_a_document(
    tiny_lm: LanguageModel,
) -> None:
    """As in Gemma: the tokenizer's own end is another one, and the model stops at both."""
    tokenizer = copy.deepcopy(tiny_lm.tokenizer)
    closing = tokenizer.eos_token_id
    tokenizer.eos_token = "<pad>"
    lm = LanguageModel(copy.deepcopy(tiny_lm.hf), tokenizer, name="mine")
    assert end_tokens(lm) == {closing, tokenizer.eos_token_id}
    assert lora.taught(lm, "one?", "no").answer[-1] == closing
    tokenizer.chat_template = OPEN
    assert lora.taught(lm, "one?", "no").answer[-1] == tokenizer.eos_token_id
