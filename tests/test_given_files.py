"""Files of other tools: each does to plain transformers, by hooks, what educe makes of it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor

import tiny
from educe.errors import FileFormatError
from educe.forward.generation import next_logits
from educe.model.language import LanguageModel
from educe.perturbation import foreign
from educe.perturbation.kinds import KINDS
from educe.perturbation.set import PerturbationSet
from educe.report import page
from educe.report.words import WORDS
from educe.rows import CONTROL, FOUND, Row
from educe.run.settings import Settings, begin
from educe.run.stages import discover_behaviours

IDS = [72, 256, 101, 108, 33, 90, 111]


def some(n: int, seed: int = 0) -> Tensor:
    return torch.randn(n, 32, generator=torch.Generator().manual_seed(seed))


def control_vector(file: Path, layers: dict[int, Tensor], **keys: Any) -> Path:
    """Write what repeng writes."""
    out = gguf.GGUFWriter(str(file), keys.pop("architecture", "controlvector"))
    out.add_string("controlvector.model_hint", keys.pop("hint", "llama"))
    out.add_uint32("controlvector.layer_count", len(layers))
    for name, value in keys.items():
        out.add_string(f"educe.{name}", value)
    for layer, vector in layers.items():
        out.add_tensor(f"direction.{layer}", vector.numpy())
    out.write_header_to_file()
    out.write_kv_data_to_file()
    out.write_tensors_to_file()
    out.close()
    return file


@torch.no_grad()
def hooked(lm: LanguageModel, layers: dict[int, Tensor]) -> Tensor:
    """The logits of plain transformers with vectors added after some blocks."""
    handles = [
        lm.hf.model.layers[layer].register_forward_hook(lambda m, a, out, v=vector: out + v)
        for layer, vector in layers.items()
    ]
    try:
        return lm.hf(input_ids=torch.tensor([IDS]), use_cache=False).logits[0, -1]
    finally:
        for handle in handles:
            handle.remove()


def under(lm: LanguageModel, found: PerturbationSet, item: int = 0) -> Tensor:
    """The logits that educe has."""
    rows, one = [Row(1, 0)], found[item]
    ((_, logits),) = next_logits(lm, lm.pad([IDS]), rows, one.theta, kind=one.kind)
    return logits[0]


def read(file: object, lm: LanguageModel, source: Any = 1, positions: str = "all") -> Any:
    foreign.check(str(file))
    return foreign.read(str(file), lm, source=source, positions=positions)


def as_pt(file: Path, held: Any) -> Path:
    torch.save(held, file)
    return file


def as_safetensors(file: Path, held: dict[str, Tensor]) -> Path:
    from safetensors.torch import save_file

    save_file(held, file)
    return file


V = some(3)
FILES: dict[str, tuple[Callable[[Path], Path], dict[int, Tensor]]] = {
    "gguf": (lambda at: control_vector(at / "a.gguf", {2: V[0]}), {2: V[0]}),
    "gguf of several layers": (
        lambda at: control_vector(at / "a.gguf", {1: V[0], 2: V[1]}),
        {1: V[0], 2: V[1]},
    ),
    "steering-vectors": (lambda at: as_pt(at / "a.pt", {1: V[0], 3: V[2]}), {1: V[0], 3: V[2]}),
    "a vector": (lambda at: as_pt(at / "a.pt", V[1]), {1: V[1]}),
    "vectors": (lambda at: as_pt(at / "a.pt", {"steering": V}), {1: V[0]}),
    "a row of them": (lambda at: Path(f"{as_pt(at / 'a.pt', V)}:2"), {1: V[2]}),
    "one a layer": (
        lambda at: as_pt(at / "a.pt", torch.stack([0 * V[0], V[0], V[1], 0 * V[0]])),
        {1: V[0], 2: V[1]},
    ),
    "named layers": (
        lambda at: as_safetensors(at / "a.safetensors", {"model.layers.2.direction": V[0]}),
        {2: V[0]},
    ),
}


@pytest.mark.parametrize("name", FILES)
def test_vectors_are_added_as_hooks_would(
    tmp_path: Path, tiny_lm: LanguageModel, name: str
) -> None:
    write, layers = FILES[name]
    found = read(write(tmp_path), tiny_lm)
    torch.testing.assert_close(under(tiny_lm, found), hooked(tiny_lm, layers), rtol=1e-4, atol=1e-4)
    assert (hooked(tiny_lm, layers) - hooked(tiny_lm, {})).norm() > 1


def test_the_control_of_several_layers_is_random_and_as_large(
    tmp_path: Path, tiny_lm: LanguageModel
) -> None:
    layers = {1: 3 * V[0], 2: V[1]}
    found = read(control_vector(tmp_path / "a.gguf", layers), tiny_lm)
    drawn = found.kind.draw(50, torch.Generator().manual_seed(1)) * found.radius
    vectors = torch.einsum("nk,kld->nld", drawn, found.kind.rows)
    for at, own in enumerate(layers.values()):
        sizes, likeness = vectors[:, at].norm(dim=1), vectors[:, at] @ own / own.norm()
        assert float(sizes.mean()) == pytest.approx(float(own.norm()), rel=0.1)
        assert float((likeness / sizes).abs().mean()) < 0.35


@pytest.mark.parametrize("columns", [False, True])
def test_a_decoder_of_a_sparse_autoencoder(
    tmp_path: Path, tiny_lm: LanguageModel, columns: bool
) -> None:
    decoder = some(40, seed=3)
    if columns:
        as_pt(tmp_path / "ae.pt", {"decoder.weight": decoder.T.contiguous(), "bias": V[0]})
    else:
        as_safetensors(tmp_path / "sae_weights.safetensors", {"W_dec": decoder, "b_dec": V[0]})
        hook = {"metadata": {"hook_name": "blocks.2.hook_resid_post"}}
        (tmp_path / "cfg.json").write_text(json.dumps(hook))
    found = read(f"{tmp_path}:7,30-31", tiny_lm)
    assert found.kind.layer == (1 if columns else 2)
    expected = torch.nn.functional.normalize(decoder[[7, 30, 31]], dim=1)
    torch.testing.assert_close(found.directions, expected)


@pytest.mark.parametrize("module", ["o_proj", "down_proj"])
def test_a_folder_of_peft(tmp_path: Path, tiny_lm: LanguageModel, module: str) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(5)
        config = LoraConfig(
            r=3,
            lora_alpha=7,
            target_modules=[module],
            layers_to_transform=[2, 3],
            init_lora_weights=False,
        )
        model = get_peft_model(tiny.hf_model(), config).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_" in name:
                weight *= 4
        model.save_pretrained(tmp_path)
        theirs = model(input_ids=torch.tensor([IDS]), use_cache=False).logits[0, -1]
    assert isinstance(model, PeftModel)
    found = read(tmp_path, tiny_lm)
    torch.testing.assert_close(under(tiny_lm, found), theirs, rtol=1e-4, atol=1e-4)
    assert (theirs - hooked(tiny_lm, {})).norm() > 1


def test_a_report_has_words_for_every_kind() -> None:
    assert set(WORDS["kinds"]) == set(KINDS)


def discovered(folder: Path, lm: LanguageModel, **how: Any) -> Any:
    asked = Settings(
        ("Where is it?",), target=3, baseline=2, max_new_tokens=3, temperature=0.0, **how
    )
    with begin(folder, asked) as run:
        discover_behaviours(run, lm=lm)
        assert page.document(run)["parts"], "what came of it can be shown"
        rows = {arm: run.perturbation_rows(arm) for arm in (FOUND, CONTROL)}
        return rows, run.note("facts")


def test_a_control_vector_goes_through_the_job_with_its_control(
    tmp_path: Path, tiny_lm: LanguageModel
) -> None:
    file = control_vector(tmp_path / "a.gguf", {1: V[0], 2: V[1]})
    rows, facts = discovered(tmp_path / "run", tiny_lm, given=str(file))
    size = float(torch.stack([V[0], V[1]]).norm())
    for arm in (FOUND, CONTROL):
        (row,) = rows[arm]
        assert row.radius == pytest.approx(size, rel=1e-5)
        assert row.dose == pytest.approx(size / facts["median_norm"], rel=1e-3)
        assert row.effect > 0
    assert (facts["kind"], facts["source"]) == ("joint", 1)


def test_directions_without_a_length_are_put_at_the_radii_asked_for(
    tmp_path: Path, tiny_lm: LanguageModel
) -> None:
    as_safetensors(tmp_path / "sae_weights.safetensors", {"W_dec": some(9, seed=3)})
    rows, facts = discovered(
        tmp_path / "run", tiny_lm, given=f"{tmp_path}:1,4", source=1, radius="0.3d,0.6d"
    )
    for arm in (FOUND, CONTROL):
        doses = sorted(row.dose for row in rows[arm])
        assert doses == pytest.approx([0.3, 0.3, 0.6, 0.6], rel=1e-3)
    assert facts["source"] == 1


class Thing:
    """An object of Python."""


def test_what_cannot_be_read_is_one_sentence(tmp_path: Path, tiny_lm: LanguageModel) -> None:
    def wrong(said: str, file: object, **how: Any) -> None:
        with pytest.raises(FileFormatError, match=said) as error:
            read(file, tiny_lm, **how)
        assert "\n" not in str(error.value)

    wrong("width 31, and those of llama are 32 wide", as_pt(tmp_path / "w.pt", torch.ones(31)))
    wrong("objects of Python, which are never loaded", as_pt(tmp_path / "p.pt", Thing()))
    wrong("a vector of length 0", as_pt(tmp_path / "z.pt", torch.zeros(2, 32)))
    wrong("there are rows 0 to 2", f"{as_pt(tmp_path / 'n.pt', V)}:3")
    wrong("there is no file", tmp_path / "none.pt")
    wrong("neither an adapter nor a sparse", tmp_path)
    wrong("does not say its layer", as_pt(tmp_path / "s.pt", V[0]), source="auto")
    wrong("name some, as in", as_safetensors(tmp_path / "d.safetensors", {"W_dec": some(300)}))
    gguf_file = control_vector(tmp_path / "q.gguf", {1: V[0]}, hint="qwen2")
    wrong("is for models of type qwen2, and llama is a llama", gguf_file)
    wrong(
        "is no control vector, but a llama",
        control_vector(tmp_path / "m.gguf", {1: V[0]}, architecture="llama"),
    )
    for i, odd in enumerate((torch.tensor(1.0), V)):  # a number, and a matrix
        wrong("'direction.2', which is no vector", control_vector(tmp_path / f"{i}.gguf", {2: odd}))
    whole = control_vector(tmp_path / "t.gguf", {1: V[0]}).read_bytes()
    for name, content in (
        ("t.gguf", whole[:50]),
        ("r.pt", b"PK\x03\x04 no zip"),
        ("r.safetensors", b"x"),
    ):
        (tmp_path / name).write_bytes(content)
        wrong("damaged|cannot read", tmp_path / name)


def test_a_layer_that_the_model_does_not_have(tmp_path: Path, tiny_lm: LanguageModel) -> None:
    from educe.errors import LayerError

    with pytest.raises(LayerError, match="layer 9 does not exist"):
        read(control_vector(tmp_path / "a.gguf", {9: V[0]}), tiny_lm)


def test_another_revision_is_said(tmp_path: Path, tiny_lm: LanguageModel) -> None:
    file = control_vector(tmp_path / "a.gguf", {1: V[0]}, model="me/it", model_revision="v2")
    (said,) = read(file, tiny_lm).check(tiny_lm)
    assert "of me/it were kept without a digest" in said
    assert said.endswith("(its revision was v2, this is unknown)")


def test_an_adapter_on_other_matrices_is_refused(tmp_path: Path, tiny_lm: LanguageModel) -> None:
    model = get_peft_model(tiny.hf_model(), LoraConfig(target_modules=["q_proj", "o_proj"]))
    model.save_pretrained(tmp_path)
    with pytest.raises(FileFormatError, match="load it beside the model with --adapter"):
        read(tmp_path, tiny_lm)


def test_what_was_exported_comes_back(tmp_path: Path) -> None:
    from educe.exports import export
    from handed import chosen

    of = chosen(tmp_path)
    export(of, "gguf", tmp_path / "out")
    found = read(tmp_path / "out" / "1.gguf", of.lm, source=3)
    assert found.kind == of.one(1).kind
    np.testing.assert_allclose(found.theta, of.one(1).theta, rtol=1e-6, atol=1e-7)
