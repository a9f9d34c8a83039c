"""Texts by a vLLM server: one on loopback that has transformers and PEFT do what vLLM does.

``make test-vllm`` has the real one, which needs an environment of its own.
"""

from __future__ import annotations

import sqlite3
import threading
from collections import Counter
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

import spread_run
from educe.errors import ServerError, SpreadError
from educe.options import SpreadOptions
from educe.run.settings import Settings, begin
from educe.run.stages import discover_behaviours
from loopback import Loopback, Reply, serving

PATHS = tuple(f"/v1/{what}" for what in ("completions", "load_lora_adapter", "unload_lora_adapter"))


class Vllm:
    """Greedy text with adapters that come and go.

    Args:
        folder: The model.
        gain: How much of each adapter is applied.
    """

    def __init__(self, folder: Path, gain: float = 1.0) -> None:
        self.folder, self.gain = folder, gain
        self.loaded: dict[str, Any] = {}
        self.calls = Counter[str]()
        self.most = 0
        self.lock = threading.Lock()

    def __call__(self, body: dict[str, Any]) -> Reply:
        with self.lock:
            self.calls[body["path"].rpartition("/")[2]] += 1
            if body["path"].endswith("unload_lora_adapter"):
                del self.loaded[body["lora_name"]]
            elif body["path"].endswith("load_lora_adapter"):
                hf = AutoModelForCausalLM.from_pretrained(self.folder)
                self.loaded[body["lora_name"]] = PeftModel.from_pretrained(hf, body["lora_path"])
                for module in self.loaded[body["lora_name"]].modules():
                    if isinstance(getattr(module, "scaling", None), dict):
                        module.scaling = {n: self.gain * s for n, s in module.scaling.items()}
                self.most = max(self.most, len(self.loaded))
            else:
                assert body["cache_salt"] == body["model"]
                return self.written(body)
        return 200, b'"done"', {"Content-Type": "text/plain"}

    @torch.no_grad()
    def written(self, body: dict[str, Any]) -> Reply:
        if body["model"] not in self.loaded:
            return 404, {"error": {"message": "no such model"}}, {}
        model, ids = self.loaded[body["model"]], list(body["prompt"])
        tokens, said, top = [], [], []
        for _ in range(body["max_tokens"]):
            logprobs = model(torch.tensor([ids + tokens])).logits[0, -1].log_softmax(-1)
            tokens.append(int(logprobs.argmax()))
            said.append(float(logprobs.max()))
            best = logprobs.topk(max(1, body["logprobs"]))
            pairs = zip(best.indices.tolist(), best.values.tolist(), strict=True)
            top.append({f"token_id:{t}": p for t, p in pairs})
            if tokens[-1] in body["stop_token_ids"]:
                break
        told = {
            "tokens": [f"token_id:{t}" for t in tokens],
            "token_logprobs": said,
            "top_logprobs": top,
            "text_offset": [0] * len(tokens),
        }
        choice = {"index": 0, "finish_reason": "stop", "text": "unread", "logprobs": told}
        head = {"id": "x", "object": "text_completion", "created": 0, "model": body["model"]}
        return 200, head | {"choices": [choice]}, {}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return spread_run.model(tmp_path_factory.mktemp("model") / "llama")


def asked(folder: Path) -> Settings:
    """Adapters at one radius, and a baseline that is drawn."""
    cpe = {"iterations": 2, "blocks": 1}
    return replace(spread_run.settings(folder), method="cpe", method_settings=cpe, radius="1x", n=5)


def carried_out(place: Path, folder: Path, who: SpreadOptions) -> list[str]:
    told = spread_run.Told(lambda: None)
    with begin(place, asked(folder), resume=True) as run:
        discover_behaviours(run, reporter=told, spread=who)
    return told.said


def by(seen: Loopback) -> SpreadOptions:
    return SpreadOptions(writer=seen.url)


def texts(place: Path) -> list[Any]:
    database = sqlite3.connect(place / "run.sqlite")
    rows = database.execute(
        "SELECT perturbation, prompt, sample, phase, text, tokens, finished FROM completions "
        "ORDER BY 1, 2, 3, 4"
    ).fetchall()
    database.close()
    return rows


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, folder: Path) -> list[Any]:
    place = tmp_path_factory.mktemp("whole") / "run"
    carried_out(place, folder, SpreadOptions())
    return texts(place)


def test_a_server_writes_what_this_process_does(
    tmp_path: Path, folder: Path, whole: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("educe.run.engine.LOADED", 4)
    vllm = Vllm(folder)
    with serving(vllm, PATHS) as seen:
        said = carried_out(tmp_path / "run", folder, by(seen))
    assert texts(tmp_path / "run") == whole
    assert len({row[4] for row in whole if row[0]}) > 3
    assert not [line for line in said if "written here" in line]
    assert vllm.loaded == {}
    assert vllm.most == 4
    written = sum(row[0] > 0 for row in whole)
    assert vllm.calls["completions"] == written + 2 * vllm.calls["load_lora_adapter"]
    assert not (tmp_path / "run" / ".served").exists()


@pytest.mark.parametrize("gain", [0.0, 0.5])
def test_a_server_that_leaves_adapters_out_is_refused_and_nothing_of_it_is_kept(
    tmp_path: Path, folder: Path, whole: list[Any], gain: float
) -> None:
    with (
        serving(Vllm(folder, gain), PATHS) as seen,
        pytest.raises(ServerError, match=r"does not write as perturbation 1 does.*left out\?"),
    ):
        carried_out(tmp_path / "run", folder, by(seen))
    assert [row for row in texts(tmp_path / "run") if row[0] and row[4] is not None] == []
    carried_out(tmp_path / "run", folder, SpreadOptions())
    assert texts(tmp_path / "run") == whole


def test_what_nobody_can_tell_is_written_here(
    tmp_path: Path, folder: Path, whole: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("educe.run.served.OFF", 100.0)
    vllm = Vllm(folder, 0.0)
    with serving(vllm, PATHS) as seen:
        said = carried_out(tmp_path / "run", folder, by(seen))
    assert sum("its texts are written here" in line for line in said) >= 10
    assert vllm.calls["completions"] == 2 * vllm.calls["load_lora_adapter"]
    assert texts(tmp_path / "run") == whole


def test_a_server_that_takes_no_adapters_is_one_sentence(tmp_path: Path, folder: Path) -> None:
    refuses = serving(lambda body: (403, {"error": {"message": "not allowed"}}, {}), PATHS)
    with refuses as seen, pytest.raises(ServerError, match=r"VLLM_ALLOW_RUNTIME_LORA_UPDATING"):
        carried_out(tmp_path / "run", folder, by(seen))


def test_vllm_in_this_process_needs_vllm(tmp_path: Path, folder: Path) -> None:
    if find_spec("vllm"):
        pytest.skip("it is here")
    with pytest.raises(SpreadError, match=r"needs vLLM in the environment of educe"):
        carried_out(tmp_path / "run", folder, SpreadOptions(writer="vllm"))
