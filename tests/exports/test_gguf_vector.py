"""Control vectors, read by llama.cpp, repeng and gguf: what they do to the logits is ours."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch

import tiny
from educe.errors import ExportError
from educe.exports import export
from educe.forward.generation import next_logits
from educe.model.language import LanguageModel
from educe.perturbation.joint import Joint
from educe.perturbation.kinds import Ablations, adapters
from educe.rows import Row
from handed import chosen
from llama_cpp import Model

IDS = [72, 256, 101, 108, 33, 90, 111]


def ours(of: object, number: int) -> torch.Tensor:
    """The logits behind some tokens under a perturbation, 0 for none."""
    lm, one = of.lm, of.one(number or 1)  # type: ignore[attr-defined]
    rows = [Row(int(number > 0), 0)]
    ((_, logits),) = next_logits(lm, lm.pad([IDS]), rows, one.theta, kind=one.kind)
    return logits[0].numpy()


def joint() -> Joint:
    rows = torch.randn(3, 2, 32, generator=torch.Generator().manual_seed(1)) / 8
    return Joint((1, 2), rows)


@pytest.mark.parametrize("kind", [None, joint()], ids=["vector", "several-layers"])
def test_llama_cpp_does_what_the_perturbation_does(tmp_path: Path, kind: Joint | None) -> None:
    of = chosen(tmp_path, kind=kind, dose=0.3)
    tiny.write_gguf(tmp_path / "model.gguf", of.lm.hf)
    model = Model(tmp_path / "model.gguf", of.lm.depth, of.lm.vocabulary)
    export(of, "gguf", tmp_path / "out")
    plain, own = model.logits(IDS), ours(of, 0)
    assert np.abs(plain - own).max() < 1e-3 * np.abs(own).max()
    for number in of.numbers:
        theirs = model.logits(IDS, tmp_path / "out" / f"{number}.gguf") - plain
        mine = ours(of, number) - own
        assert np.linalg.norm(mine) > 0.1 * np.linalg.norm(own)
        assert np.linalg.norm(theirs - mine) < 2e-3 * np.linalg.norm(mine)


def test_it_says_what_the_format_does_not(tmp_path: Path) -> None:
    of = chosen(tmp_path)
    export(of, "gguf", tmp_path / "out")
    read = gguf.GGUFReader(tmp_path / "out" / "2.gguf")
    fields = {name: field.contents() for name, field in read.fields.items()}
    assert fields["general.architecture"] == "controlvector"
    assert fields["controlvector.model_hint"] == "llama"
    assert fields["educe.op"] == "add"
    assert fields["educe.point"] == "resid_post.1"
    assert fields["educe.dose"] == pytest.approx(0.7, rel=1e-3)
    (tensor,) = read.tensors
    assert tensor.name == "direction.1"
    assert np.linalg.norm(tensor.data) == pytest.approx(float(of.rows[2].radius), rel=1e-5)


def test_what_is_no_control_vector_is_refused(tmp_path: Path, tiny_lm: LanguageModel) -> None:
    cases = {
        "is none: ablations": {"kind": Ablations(1, 32)},
        "is none: adapters": {"kind": adapters(tiny_lm, first=2, blocks=1)},
        "after block 0, where llama.cpp takes no": {"source": 0},
        "added at prompt alone": {"positions": "prompt"},
    }
    for i, (said, how) in enumerate(cases.items()):
        of = chosen(tmp_path / str(i), **how)
        with pytest.raises(ExportError, match=said):
            export(of, "gguf", tmp_path / "out")
        assert not (tmp_path / "out").exists()


def test_llama_cpp_refuses_block_0(tmp_path: Path, tiny_lm: LanguageModel) -> None:
    """So we do."""
    tiny.write_gguf(tmp_path / "model.gguf", tiny_lm.hf)
    out = gguf.GGUFWriter(tmp_path / "0.gguf", "controlvector")
    out.add_tensor("direction.0", np.ones(32, dtype=np.float32))
    out.write_header_to_file()
    out.write_kv_data_to_file()
    out.write_tensors_to_file()
    out.close()
    model = Model(tmp_path / "model.gguf", tiny_lm.depth, tiny_lm.vocabulary)
    assert model.read(tmp_path / "0.gguf").n_embd < 0


@pytest.mark.skipif("REPENG_PYTHON" not in os.environ, reason="needs make test-formats")
@pytest.mark.parametrize(("architecture", "several"), [("qwen3", False), ("llama", True)])
def test_repeng_does_what_the_perturbation_does(
    tmp_path: Path, architecture: str, several: bool
) -> None:
    """It needs an older numpy, so it has an environment of its own."""
    of = chosen(tmp_path, architecture, joint() if several else None, dose=0.3)
    export(of, "gguf", tmp_path / "out")
    files = {str(number): str(tmp_path / "out" / f"{number}.gguf") for number in of.numbers}
    asked = {"model": of.settings.model, "ids": IDS, "files": files}
    (tmp_path / "asked.json").write_text(json.dumps(asked))
    reader = Path(__file__).parents[1] / "repeng_reader.py"
    subprocess.run([os.environ["REPENG_PYTHON"], str(reader), str(tmp_path)], check=True)
    for number, theirs in json.loads((tmp_path / "logits.json").read_text()).items():
        mine = ours(of, int(number))
        assert np.linalg.norm(np.array(theirs) - mine) < 1e-4 * np.linalg.norm(mine)
        assert np.linalg.norm(mine - ours(of, 0)) > 0.1 * np.linalg.norm(mine)
