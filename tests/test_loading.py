"""Loading: a model is the one it was asked for, whole, or it is an error that names what is not."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import platformdirs
import pytest
import torch
import transformers
from peft import (
    LoraConfig,
    PeftModel,
    PrefixTuningConfig,
    PromptTuningConfig,
    get_peft_model,
)
from safetensors.torch import load_file, save_file
from tqdm.auto import tqdm

import tiny
from educe.errors import ModelError
from educe.model import converted, loading
from educe.model.language import LanguageModel
from educe.model.loading import load
from educe.model.quiet import quiet

Tensors = dict[str, torch.Tensor]
Change = Callable[[Tensors], Tensors]


def renamed(old: str, new: str) -> Change:
    return lambda tensors: {re.sub(old, new, key): value for key, value in tensors.items()}


def without(pattern: str) -> Change:
    return lambda tensors: {k: v for k, v in tensors.items() if not re.search(pattern, k)}


def put(key: str, value: float) -> Change:
    def change(tensors: Tensors) -> Tensors:
        tensors[key][0, 0] = value
        return tensors

    return change


def same(tensors: Tensors) -> Tensors:
    return tensors


def rewrite(file: Path, change: Change) -> None:
    save_file(change(load_file(file)), file, metadata={"format": "pt"})


def configure(file: Path, **settings: Any) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | settings))


@pytest.fixture
def folder(tmp_path: Path, tokenizer: Any) -> Path:
    """A tiny model on disk."""
    tiny.hf_model("llama").save_pretrained(tmp_path / "tiny")
    tokenizer.save_pretrained(tmp_path / "tiny")
    return tmp_path / "tiny"


@torch.no_grad()
def assert_is(lm: LanguageModel, hf: Any) -> None:
    (ids,) = tiny.ragged([9])
    logits = lm.forward(torch.tensor([ids]), torch.ones(1, 9, dtype=torch.long), last=0)
    torch.testing.assert_close(logits[0], hf(input_ids=torch.tensor([ids])).logits[0])


# -- checkpoints ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (renamed("^", "_orig_mod."), "_orig_mod.lm_head.weight"),
        (renamed("^", "wrapped."), "wrapped.lm_head.weight"),
        (
            renamed(r"layers\.(\d)", r"layers.\1._fsdp_wrapped_module"),
            "takes '_fsdp_wrapped_module.",
        ),
        (
            renamed("layers.1", "layers.1._orig_mod"),
            "model.layers.1._orig_mod.input_layernorm.weight",
        ),
        (without("lm_head"), "lm_head.weight is not in the file"),
        (without(r"layers\.2"), "model.layers.2.input_layernorm.weight"),
        (without("layers.3.mlp.up_proj"), "model.layers.3.mlp.up_proj.weight is not"),
        (lambda t: t | {"adapter.weight": torch.ones(2)}, "adapter.weight is in the file and not"),
        (put("model.layers.1.mlp.up_proj.weight", float("nan")), "layers.1.mlp.up_proj.weight"),
        (put("model.embed_tokens.weight", float("inf")), "model.embed_tokens.weight holds NaN"),
    ],
)
def test_weights_that_are_not_those_of_the_model_are_named(
    folder: Path, change: Change, named: str
) -> None:
    rewrite(folder / "model.safetensors", change)
    with pytest.raises(ModelError, match=re.escape(named)) as error:
        load(folder, device="cpu")
    assert str(folder) in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"num_hidden_layers": 3}, "model.layers.3.input_layernorm.weight"),
        ({"num_hidden_layers": 5}, "model.layers.4.input_layernorm.weight"),
        ({"intermediate_size": 96}, "layers.0.mlp.down_proj.weight has the shape (32, 48) instead"),
        ({"attention_bias": True}, "self_attn.k_proj.bias"),
    ],
)
def test_a_configuration_of_another_model_is_an_error(
    folder: Path, settings: dict[str, Any], named: str
) -> None:
    configure(folder / "config.json", **settings)
    with pytest.raises(ModelError, match=re.escape(named)):
        load(folder, device="cpu")


@pytest.mark.parametrize("extra", ["_orig_mod.", "wrapped."])
def test_the_remedy_for_other_names_mends_the_checkpoint(folder: Path, extra: str) -> None:
    file = folder / "model.safetensors"
    rewrite(file, renamed("^", extra))
    with pytest.raises(ModelError) as error:
        load(folder, device="cpu")
    (program,) = re.findall(r'python -c "(.*)"', str(error.value))
    exec(program.replace("'F'", repr(str(file))), {})
    assert_is(load(folder, device="cpu"), tiny.hf_model("llama"))


def test_names_that_are_not_all_that_is_wrong_get_no_such_remedy(folder: Path) -> None:
    rewrite(
        folder / "model.safetensors",
        lambda t: renamed("^", "_orig_mod.")(without("layers.2")(t)),
    )
    with pytest.raises(ModelError) as error:
        load(folder, device="cpu")
    assert "python -c" not in str(error.value)


def test_what_old_checkpoints_hold_besides_is_no_fault(folder: Path) -> None:
    rotary = {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.zeros(4)}
    rewrite(folder / "model.safetensors", lambda tensors: tensors | rotary)
    assert_is(load(folder, device="cpu"), tiny.hf_model("llama"))


@pytest.mark.parametrize("architecture", ["qwen2", "gemma2", "gpt2", "gpt_neox", "mixtral"])
def test_checkpoints_of_other_architectures_are_whole(
    tmp_path: Path, tokenizer: Any, architecture: str
) -> None:
    hf = tiny.hf_model(architecture)
    hf.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    said: list[str] = []
    assert_is(load(tmp_path, device="cpu", dtype=torch.float32, progress=said.append), hf)
    assert said == []


def test_tied_weights_are_in_the_file_once(tmp_path: Path, tokenizer: Any) -> None:
    hf = tiny.hf_model("llama")
    hf.config.tie_word_embeddings = True
    hf.tie_weights()
    hf.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    assert "lm_head.weight" not in load_file(tmp_path / "model.safetensors")
    assert_is(load(tmp_path, device="cpu"), hf)


def test_files_of_torch_and_several_files_are_read_alike(folder: Path) -> None:
    hf = tiny.hf_model("llama")
    (folder / "model.safetensors").unlink()
    torch.save(hf.state_dict(), folder / "pytorch_model.bin")
    assert_is(load(folder, device="cpu"), hf)
    (folder / "pytorch_model.bin").unlink()
    hf.save_pretrained(folder, max_shard_size="50KB")
    assert_is(load(folder, device="cpu"), hf)
    first, *others = sorted(folder.glob("model-*.safetensors"))
    assert others
    first.unlink()
    with pytest.raises(ModelError, match=first.name):
        load(folder, device="cpu")


def test_a_folder_with_two_checkpoints_is_an_error(folder: Path) -> None:
    """transformers takes one file before several, and says nothing of the others."""
    weights = load_file(folder / "model.safetensors")
    save_file(weights, folder / "model-00001-of-00001.safetensors", {"format": "pt"})
    names = dict.fromkeys(weights, "model-00001-of-00001.safetensors")
    (folder / "model.safetensors.index.json").write_text(
        json.dumps({"metadata": {}, "weight_map": names})
    )
    with pytest.raises(ModelError, match=r"two checkpoints, model\.safetensors and"):
        load(folder)
    (folder / "model.safetensors").unlink()
    load(folder)


@pytest.mark.parametrize("kind", [torch.int8, torch.float8_e4m3fn])
def test_packed_weights_without_a_way_to_unpack_them_are_an_error(
    folder: Path, kind: torch.dtype
) -> None:
    weights = load_file(folder / "model.safetensors")
    name = next(key for key in weights if key.endswith("q_proj.weight"))
    weights[name] = (weights[name] * 100).to(kind)
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(ModelError, match=rf"{name} is packed in (I8|F8_E4M3), and config.json has"):
        load(folder)


def test_a_broken_generation_config_is_an_error(folder: Path) -> None:
    """It says where texts end; transformers takes the model's own configuration instead."""
    file = folder / "generation_config.json"
    file.write_text(file.read_text()[:-3])
    with pytest.raises(ModelError, match=r"generation_config\.json' is not a valid JSON file"):
        load(folder, device="cpu")
    file.unlink()
    assert_is(load(folder, device="cpu"), tiny.hf_model("llama"))


def test_a_file_that_is_cut_off_is_an_error(folder: Path) -> None:
    raw = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(raw[:-100])
    with pytest.raises(ModelError, match=re.escape(str(folder))):
        load(folder, device="cpu")


def test_what_transformers_warns_of_is_passed_on(folder: Path) -> None:
    configure(folder / "config.json", tie_word_embeddings=True)
    said: list[str] = []
    lm = load(folder, device="cpu", progress=said.append)
    assert_is(lm, tiny.hf_model("llama"))  # not tied: the file has both, and they differ
    (sentence,) = said
    assert "specifies to tie model.embed_tokens.weight to lm_head.weight" in sentence
    assert str(folder) in sentence
    with pytest.warns(UserWarning, match="specifies to tie"):
        load(folder, device="cpu")


# -- adapters ------------------------------------------------------------------------------------


def adapter(folder: Path, change: Change = same, **settings: Any) -> Path:
    """Write an adapter, its file changed."""
    settings = {"r": 2, "target_modules": ["q_proj", "down_proj"]} | settings
    settings = {"init_lora_weights": False} | settings
    with torch.random.fork_rng():
        torch.manual_seed(0)
        made = get_peft_model(tiny.hf_model("llama"), LoraConfig(task_type="CAUSAL_LM", **settings))
        for name, weight in made.named_parameters():
            if "modules_to_save" in name or "trainable_tokens" in name:
                weight.data += torch.randn_like(weight)
    made.save_pretrained(folder)
    rewrite(folder / "adapter_model.safetensors", change)
    return folder


FRONT = "base_model.model."


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (renamed(f"^{FRONT}", f"{FRONT}_orig_mod."), f"{FRONT}_orig_mod.model.layers.0.mlp"),
        (renamed("^", "_orig_mod."), f"_orig_mod.{FRONT}model.layers.0.mlp"),
        (without("layers.3.mlp"), "layers.3.mlp.down_proj.lora_A.weight"),
        (without(r"layers.0.*lora_B"), "model.layers.0.mlp.down_proj.lora_B.weight"),
        (lambda t: t | {f"{FRONT}model.layers.0.mlp.nix.lora_A.weight": torch.ones(1)}, "mlp.nix."),
        (put(f"{FRONT}model.layers.1.mlp.down_proj.lora_A.weight", float("nan")), "layers.1.mlp"),
    ],
)
def test_weights_of_an_adapter_that_do_not_fit_are_named(
    tmp_path: Path, tokenizer: Any, change: Change, named: str
) -> None:
    path = adapter(tmp_path / "made", change)
    with pytest.raises(ModelError, match=re.escape(named)) as error:
        load((tiny.hf_model("llama"), tokenizer), adapter=path)
    assert str(path) in str(error.value)
    assert ("python -c" in str(error.value)) == ("_orig_mod" in named)


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"r": 3}, "q_proj.lora_A"),
        ({"layers_to_transform": [1]}, "model.layers.0.mlp.down_proj.lora_A.weight"),
        ({"target_modules": ["q_proj"]}, "mlp.down_proj.lora_A.weight"),
        ({"target_modules": ["q_proj", "down_proj", "o_proj"]}, "self_attn.o_proj.lora_A.weight"),
        ({"target_modules": ["nix"]}, "nix"),
        ({"modules_to_save": ["lm_head"]}, "lm_head"),
        ({"trainable_token_indices": [1, 2]}, "embed_tokens"),
    ],
)
def test_an_adapter_whose_settings_ask_for_other_weights_is_an_error(
    tmp_path: Path, tokenizer: Any, settings: dict[str, Any], named: str
) -> None:
    path = adapter(tmp_path / "made")
    configure(path / "adapter_config.json", **settings)
    with pytest.raises(ModelError, match=re.escape(named)):
        load((tiny.hf_model("llama"), tokenizer), adapter=path)


@pytest.mark.parametrize(
    "settings",
    [
        {"layers_to_transform": [1]},
        {"modules_to_save": ["lm_head"]},
        {"target_modules": ["embed_tokens", "q_proj"]},
        {"trainable_token_indices": [1, 2]},
        {"use_dora": True},
        {"use_rslora": True},
    ],
)
def test_adapters_of_other_settings_are_whole(
    tmp_path: Path, tokenizer: Any, settings: dict[str, Any]
) -> None:
    path = adapter(tmp_path / "made", **settings)
    said: list[str] = []
    lm = load((tiny.hf_model("llama"), tokenizer), adapter=path, progress=said.append)
    assert_is(lm, PeftModel.from_pretrained(tiny.hf_model("llama"), path).eval())
    assert not [sentence for sentence in said if "changes no logit" in sentence]


def test_an_adapter_that_comes_with_the_package_is_known_by_its_name(
    tmp_path: Path, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = adapter(tmp_path / "made")
    monkeypatch.setattr(loading, "ORGANISMS", tmp_path)
    lm = load((tiny.hf_model("llama"), tokenizer), adapter="made")
    assert lm.adapter == "made"
    assert lm.digest == load((tiny.hf_model("llama"), tokenizer), adapter=path).digest
    with pytest.raises(ModelError, match=r"the adapter \./made"):
        load((tiny.hf_model("llama"), tokenizer), adapter="./made")
    other = tmp_path / "here"
    adapter(other / "made")
    monkeypatch.chdir(other)
    with pytest.raises(ModelError, match=r"made is an organism .* write \./made"):
        load((tiny.hf_model("llama"), tokenizer), adapter="made")
    assert load((tiny.hf_model("llama"), tokenizer), adapter="./made").adapter == "./made"
    monkeypatch.chdir(tmp_path)  # where the name and the folder are one
    assert load((tiny.hf_model("llama"), tokenizer), adapter="made").digest == lm.digest


def test_an_adapter_that_does_nothing_is_said(tmp_path: Path, tokenizer: Any) -> None:
    path = adapter(tmp_path / "made", init_lora_weights=True)
    said: list[str] = []
    load((tiny.hf_model("llama"), tokenizer), adapter=path, progress=said.append)
    assert [sentence for sentence in said if str(path) in sentence and "no logit" in sentence]


def test_an_adapter_for_another_base_is_said(folder: Path) -> None:
    path = adapter(folder.parent / "made")
    for base, told in (("somebody/else", True), ("there/tiny", False), (str(folder), False)):
        configure(path / "adapter_config.json", base_model_name_or_path=base)
        said: list[str] = []
        load(folder, adapter=path, progress=said.append)
        assert bool([s for s in said if f"was made for {base}" in s]) == told


def test_an_adapter_given_as_a_model_is_an_error(folder: Path) -> None:
    for file in adapter(folder.parent / "made").iterdir():
        shutil.copy(file, folder / file.name)
    with pytest.raises(ModelError, match="is an adapter"):
        load(folder, device="cpu")


def test_an_adapter_that_puts_tokens_before_a_prompt_is_refused(
    tmp_path: Path, tokenizer: Any
) -> None:
    for config in (PromptTuningConfig, PrefixTuningConfig):
        made = get_peft_model(
            tiny.hf_model("llama"), config(task_type="CAUSAL_LM", num_virtual_tokens=2)
        )
        made.save_pretrained(tmp_path / "made")
        with pytest.raises(ModelError, match=r"made puts tokens of its own before each prompt"):
            load((tiny.hf_model("llama"), tokenizer), adapter=tmp_path / "made")


def test_an_adapter_that_does_nothing_in_a_loaded_pair_is_said(
    tmp_path: Path, tokenizer: Any
) -> None:
    hf = PeftModel.from_pretrained(tiny.hf_model("llama"), adapter(tmp_path / "made"))
    said: list[str] = []
    load((hf, tokenizer), progress=said.append)
    assert not [sentence for sentence in said if "no logit" in sentence]
    hf.base_model.disable_adapter_layers()
    load((hf, tokenizer), progress=said.append)
    assert [sentence for sentence in said if "changes no logit" in sentence]


# -- what is asked for and would not be done -------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"device": "tpu9"}, "there is no device tpu9"),
        ({"dtype": "float17"}, "dtype float17"),
        ({"dtype": "int8"}, "dtype int8"),
        ({"dtype": "nn"}, "dtype nn"),
        ({"revision": "v2"}, "has no revision v2"),
    ],
)
def test_options_that_cannot_be_had_are_one_sentence(
    folder: Path, options: dict[str, Any], told: str
) -> None:
    with pytest.raises(ModelError, match=told) as error:
        load(folder, **options)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("revision", "v2"),
        ("dtype", "bfloat16"),
        ("device_map", "auto"),
        ("attn_implementation", "eager"),
        ("quantization_config", object()),
    ],
)
def test_what_a_loaded_model_has_already_cannot_be_asked_for(
    tokenizer: Any, option: str, value: Any
) -> None:
    with pytest.raises(ModelError, match=f"leave {option} out"):
        load((tiny.hf_model("llama"), tokenizer), **{option: value})


def test_what_is_no_pair_is_one_sentence(tokenizer: Any) -> None:
    hf = tiny.hf_model("llama")
    for model in (hf, [hf, tokenizer], (hf, tokenizer, 1), (tokenizer, hf), None):
        with pytest.raises(ModelError, match="is no model") as error:
            load(model)  # type: ignore[arg-type]
        assert "\n" not in str(error.value)


def test_a_dtype_that_cannot_hold_the_weights_is_named(folder: Path) -> None:
    rewrite(folder / "model.safetensors", put("model.embed_tokens.weight", 1e6))
    with pytest.raises(ModelError, match=r"in torch\.float16: .* or this dtype cannot hold it"):
        load(folder, device="cpu", dtype="float16")


# -- GGUF ----------------------------------------------------------------------------------------


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache folder."""
    monkeypatch.setattr(platformdirs, "user_cache_path", lambda name: tmp_path / "cache" / name)
    return tmp_path / "cache" / "educe"


@pytest.fixture
def file(tmp_path: Path, cache: Path) -> Path:
    tiny.write_gguf(tmp_path / "tiny.gguf", tiny.hf_model("llama"))
    return tmp_path / "tiny.gguf"


def kept(cache: Path) -> list[str]:
    return sorted(path.name for path in cache.iterdir() if path.is_dir())


def test_a_gguf_file_is_converted_once_and_without_a_bar_of_others(
    file: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    said: list[str] = []
    first = load(file, device="cpu", progress=said.append)
    assert [word for word in said if "converting tiny.gguf" in word] == said != []
    monkeypatch.setattr(converted, "convert", lambda *args: pytest.fail("converted again"))
    second = load(file, device="cpu", progress=said.append)
    assert len(said) == 1
    assert first.digest == second.digest
    for lm in (first, second):
        assert_is(lm, tiny.hf_model("llama"))
        assert lm.name == str(file)
    assert capfd.readouterr() == ("", "")
    first.hf.save_pretrained(file.parent / "again")  # fails when it believes to be quantised
    assert len(kept(cache)) == 1


def test_a_gguf_file_of_an_unknown_architecture_is_one_sentence(
    tmp_path: Path, cache: Path
) -> None:
    writer = gguf.GGUFWriter(str(tmp_path / "odd.gguf"), "nonsense")
    writer.add_block_count(1)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    with pytest.raises(ModelError, match=r"cannot load .*odd\.gguf.*nonsense") as error:
        load(tmp_path / "odd.gguf")
    assert "\n" not in str(error.value)
    assert kept(cache) == []


def test_another_file_of_the_same_name_size_and_date_is_another_model(
    file: Path, cache: Path
) -> None:
    load(file, device="cpu")
    before = file.stat()
    tiny.write_gguf(file, tiny.hf_model("llama", seed=1))
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert file.stat().st_size == before.st_size
    assert_is(load(file, device="cpu"), tiny.hf_model("llama", seed=1))
    assert len(kept(cache)) == 2


def test_a_killed_conversion_leaves_nothing_that_is_taken_for_the_model(
    file: Path, cache: Path
) -> None:
    program = (
        "import os, sys, platformdirs; from pathlib import Path\n"
        "from educe.model import converted\n"
        "platformdirs.user_cache_path = lambda name: Path(sys.argv[2])\n"
        "def die(file, into, card):\n"
        "    into.mkdir(); (into / 'model.safetensors').write_text('half'); os._exit(9)\n"
        "converted.convert = die\n"
        "converted.from_gguf(Path(sys.argv[1]), print)\n"
    )
    ended = subprocess.run([sys.executable, "-c", program, file, cache], check=False)
    assert ended.returncode == 9
    assert [name for name in kept(cache) if not name.startswith(".")] == []
    assert_is(load(file, device="cpu"), tiny.hf_model("llama"))
    assert len(kept(cache)) == 1


def test_two_at_once_convert_once(file: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Path] = []

    def convert(gguf: Path, into: Path, card: str) -> Path:
        made.append(into)
        time.sleep(0.2)  # so that the others come meanwhile
        into.mkdir()
        return into

    monkeypatch.setattr(converted, "convert", convert)
    start, came = threading.Barrier(4), []

    def ask() -> None:
        start.wait()
        came.append(converted.from_gguf(file, lambda sentence: None))

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(came), len(set(came)), len(made)) == (4, 1, 1)


def test_a_full_disk_is_one_sentence_and_leaves_nothing(
    file: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*args: Any, **kwargs: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(transformers.PreTrainedModel, "save_pretrained", full)
    with pytest.raises(ModelError, match=r"tiny\.gguf.*No space left.*free some") as error:
        load(file, device="cpu")
    assert "\n" not in str(error.value)
    assert kept(cache) == []


class Odd(gguf.GGUFWriter):
    """Writes another tensor before its end, or leaves one out."""

    extra: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()

    def add_tensor(self, name: str, *args: Any, **kwargs: Any) -> None:
        if name not in self.left_out:
            super().add_tensor(name, *args, **kwargs)

    def write_header_to_file(self, *args: Any, **kwargs: Any) -> None:
        for name in self.extra:
            super().add_tensor(name, torch.ones(8).numpy())
        super().write_header_to_file(*args, **kwargs)


@pytest.mark.parametrize(
    ("what", "name", "named"),
    [
        ("extra", "rope_freqs.weight", "rope_freqs.weight"),
        ("extra", "blk.4.attn_norm.weight", "blk.4.attn_norm.weight"),
        ("left_out", "blk.2.ffn_up.weight", "model.layers.2.mlp.up_proj.weight"),
    ],
)
def test_tensors_of_a_gguf_file_that_are_not_those_of_the_model_are_named(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, what: str, name: str, named: str
) -> None:
    monkeypatch.setattr(Odd, what, (name,))
    monkeypatch.setattr(gguf, "GGUFWriter", Odd)
    tiny.write_gguf(tmp_path / "odd.gguf", tiny.hf_model("llama"))
    with pytest.raises(ModelError, match=re.escape(named)) as error:
        load(tmp_path / "odd.gguf", device="cpu")
    assert "odd.gguf" in str(error.value)
    assert kept(cache) == []


# -- silence -------------------------------------------------------------------------------------


def test_bars_of_others_are_held_back_and_come_back(capfd: pytest.CaptureFixture[str]) -> None:
    with quiet():
        assert list(tqdm(range(3))) == [0, 1, 2]
    assert capfd.readouterr().err == ""
    list(tqdm(range(3)))
    assert "3/3" in capfd.readouterr().err


def test_warnings_are_kept_once_each_and_those_of_later_versions_are_not() -> None:
    import logging
    import warnings

    with quiet() as kept:
        for _ in range(2):
            logging.getLogger("peft.tuners").warning("one\n of %s", "these")
            warnings.warn("another", stacklevel=1)
        warnings.warn("later", FutureWarning, stacklevel=1)
        logging.getLogger("transformers").info("nothing")
    assert kept == ["peft: one of these", "another"]
