"""Options that a model needs: the same in every command, and what reaches `educe.load`."""

from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

import tiny
from educe.errors import EduceError, JudgeError, MethodError, ModelError
from educe.model import loading
from educe.options import EMBEDDED, ModelOptions
from educe.run.settings import Settings
from educe.scores.naming import as_asker
from test_cli import options, refused

#: Every command that loads a model that is named, with what it cannot do without.
LOADING = {
    ("discover",): ["Hi."],
    ("demo",): [],
    ("layers",): ["Hi."],
    ("contrast",): ["Hi.", "--say", "a"],
    ("tune",): ["Hi.", "--look-for", "a"],
    ("organism", "answers"): ["vault"],
}
#: Every command that asks a judge's model.
JUDGING = [
    ("judge", "check"),
    ("judge", "score"),
    ("select",),
    ("examine",),
    ("derive", "shrink"),
    ("audit",),
]
OTHER: dict[str, Any] = {
    "model": "a/b",
    "adapter": "c",
    "revision": "r",
    "dtype": "float16",
    "device": "mps",
    "device_map": "auto",
    "trust_remote_code": True,
    "load_in_4bit": True,
    "load_in_8bit": True,
    "attn_implementation": "eager",
}


def words(asked: dict[str, Any], prefix: str = "") -> list[str]:
    """What says the same on the command line."""
    told: list[str] = []
    for name, value in asked.items():
        option = f"--{prefix}{name.replace('_', '-')}"
        told += [option] if value is True else [option, value]
    return told


class LoadedError(EduceError):
    """Raised in the place of a loaded model."""


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What `educe.load` was asked for; nothing is loaded."""
    calls: list[dict[str, Any]] = []

    def stopped(**asked: Any) -> None:
        calls.append({name: value for name, value in asked.items() if name != "progress"})
        raise LoadedError("stopped")

    for module in ("educe.model.loading", "educe.scores.naming"):
        monkeypatch.setattr(f"{module}.load", stopped)
    return calls


def test_every_option_has_another_value_here() -> None:
    assert list(OTHER) == [f.name for f in fields(ModelOptions)]
    assert all(getattr(EMBEDDED, name) != value for name, value in OTHER.items())
    assert ModelOptions(**OTHER).how == OTHER
    assert Settings(("Hi.",), **OTHER).how == OTHER


@pytest.mark.parametrize("command", LOADING, ids=" ".join)
def test_every_command_hands_every_option_on(
    command: tuple[str, ...],
    load: list[dict[str, Any]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    organism = command in {("demo",), ("organism", "answers")}
    asked = OTHER | ({"adapter": None} if organism else {})
    given = {name: value for name, value in asked.items() if value is not None}
    assert "stopped" in refused(*command, *LOADING[command], *words(given), begun=True)
    (told,) = load
    if organism:
        asked["adapter"] = "trigger" if command == ("demo",) else "vault"
        load.clear()
        line = refused(*command, *LOADING[command], *words(OTHER), begun=True)
        assert "leave --adapter out" in line
        assert load == []
    assert told == asked


def test_an_audit_takes_the_name_as_an_argument_and_hands_the_others_on(
    load: list[dict[str, Any]], tmp_path: Path
) -> None:
    rest = {name: value for name, value in OTHER.items() if name != "model"}
    out = ["--out", str(tmp_path / "run")]
    assert "stopped" in refused("audit", OTHER["model"], *words(rest), *out, begun=True)
    assert load == [OTHER]
    assert "--model" in refused("audit", "--model", "a/b", *out)


@pytest.mark.parametrize("command", JUDGING, ids=" ".join)
def test_the_model_of_a_judge_has_the_same_options(command: tuple[str, ...]) -> None:
    names = {f"--judge-{f.name.replace('_', '-')}" for f in fields(ModelOptions)}
    assert names <= options(*command)


def test_the_options_of_a_judges_model_reach_it(load: list[dict[str, Any]], tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(
        "\n".join(json.dumps({"prompt": "a", "text": "b", "label": x}) for x in (True, False))
    )
    command = ["judge", "check", tmp_path / "a.jsonl", "--judge", "yes:a", *words(OTHER, "judge-")]
    assert "stopped" in refused(*command)
    assert load == [OTHER]


def test_a_server_loads_its_model_itself() -> None:
    with pytest.raises(JudgeError, match="loads its model itself"):
        as_asker(ModelOptions(model="http://127.0.0.1:1/v1", dtype="float32"), name="m")


@pytest.mark.parametrize(
    ("name", "value", "told"),
    [
        ("ball", "round", "plain or whitened"),
        ("retain_by", "kl2", "effect or kl"),
        ("chat", 1, "True or False"),
        ("load_in_4bit", "yes", "True or False"),
        ("model", None, "text"),
        ("adapter", Path("a"), "text"),
        ("radius", 8.5, "text"),
        ("source", 1.5, "fraction between 0 and 1"),
        ("target", "middle", "auto or an index"),
        ("temperature", -1, "0 or a number above it"),
        ("temperature", True, "0 or a number above it"),
        ("temperature", 10**400, "0 or a number above it"),
        ("retain", float("inf"), "0 or a number above it"),
        ("seed", 2**32, "from 0 to 4294967295"),
    ],
)
def test_a_notebook_is_held_to_what_the_command_line_is_held_to(
    name: str, value: Any, told: str
) -> None:
    with pytest.raises(MethodError, match=f"^{name.replace('_', '-')} is .*{told}"):
        Settings(("Hi.",), **{name: value}).check()


def test_settings_at_their_bounds_are_taken() -> None:
    for asked in ({"source": -1}, {"source": "auto"}, {"temperature": 0}, {"chat": None}):
        Settings(("Hi.",), **asked).check()  # type: ignore[arg-type]


# -- what is loaded in another way -----------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    tiny.hf_model("llama").save_pretrained(tmp_path / "tiny")
    tiny.tokenizer().save_pretrained(tmp_path / "tiny")
    return tmp_path / "tiny"


CODE = """
from transformers import LlamaForCausalLM

class Own(LlamaForCausalLM):
    mine = True
"""


@pytest.fixture
def with_code(folder: Path) -> Path:
    """A model whose class is in a file beside it."""
    (folder / "own.py").write_text(CODE)
    config = json.loads((folder / "config.json").read_text())
    config |= {"architectures": ["Own"], "auto_map": {"AutoModelForCausalLM": "own.Own"}}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def test_code_of_others_runs_when_it_is_trusted(
    with_code: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "m"))
    lm = loading.load(with_code, device="cpu", trust_remote_code=True)
    assert lm.unwrapped.mine
    assert not hasattr(loading.load(with_code, device="cpu").unwrapped, "mine")


def test_attention_is_computed_as_asked(folder: Path) -> None:
    for how in ("eager", "sdpa"):
        lm = loading.load(folder, device="cpu", attn_implementation=how)
        assert lm.config._attn_implementation == how
    with pytest.raises(ModelError, match="attn_implementation"):
        loading.load(folder, device="cpu", attn_implementation="magic")


def test_without_bitsandbytes_it_is_one_line(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("educe.model.quantized.find_spec", lambda name: None)
    asked = ["discover", "Hi.", "--model", folder, "--out", tmp_path / "run"]
    for option in ("--load-in-4bit", "--load-in-8bit"):
        line = refused(*asked, option)
        assert "needs bitsandbytes: pip install 'educe[quantized]'" in line
        assert option[2:].replace("-", "_") in line
        assert not (tmp_path / "run").exists()


def test_weights_are_quantized_in_one_way(folder: Path) -> None:
    for more in ({"load_in_8bit": True}, {"quantization_config": object()}):
        with pytest.raises(ModelError, match="in one way"):
            loading.load(folder, load_in_4bit=True, **more)  # type: ignore[arg-type]
