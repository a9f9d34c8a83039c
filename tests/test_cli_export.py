"""The commands that hand a run on: where they write, what they say, and what they refuse."""

from __future__ import annotations

import json
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import openai
import pytest

from educe.exports import FORMATS
from educe.run import same_model
from handed import chosen, saved
from test_cli import educe, refused


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    of = chosen(tmp_path_factory.mktemp("cli"))
    of.run.close()
    return of.run.folder


def test_perturbations_are_written_where_it_says(run: Path, tmp_path: Path) -> None:
    ended = educe("export", run, 1, 2, "--to", "gguf", "--json")
    assert ended.status == 0, ended.err
    assert ended.data["folder"] == str(run / "exports" / "gguf-1-2")
    assert {file.name for file in (run / "exports" / "gguf-1-2").iterdir()} == {"1.gguf", "2.gguf"}
    said = educe("export", run, 2, "--to", "peft", "--out", tmp_path / "out").out
    assert "only in expectation: its factor is 1 ± " in said
    assert said.endswith(f"written: {tmp_path / 'out'}\n")
    assert "is not empty" in refused("export", run, 2, "--to", "peft", "--out", tmp_path / "out")


def test_frames_need_no_numbers(run: Path, tmp_path: Path) -> None:
    assert educe("export", run, "--to", "jsonl", "--out", tmp_path / "out").status == 0
    lines = (tmp_path / "out" / "perturbations.jsonl").read_text().splitlines()
    assert [json.loads(line)["id"] for line in lines] == [1, 2]


def test_every_format_is_listed() -> None:
    assert educe("exports", "--json").data == FORMATS
    assert all(f"{name}: " in educe("exports").out for name in FORMATS)


def test_what_cannot_be_exported_is_one_line(run: Path) -> None:
    assert "there is no format 'onnx'" in refused("export", run, 1, "--to", "onnx")
    assert "the run has no perturbation 7" in refused("export", run, 7, "--to", "gguf")
    assert "--push goes with" in refused("export", run, 1, "--to", "gguf", "--push", "me/it")
    assert not (run / "exports" / "gguf-7").exists()


def test_another_model_in_the_place_of_the_run_s_is_refused(tmp_path: Path) -> None:
    of = chosen(tmp_path)
    same_model.check(of.run, of.lm)
    of.run.close()
    saved(Path(of.settings.model), "qwen2")
    said = refused("export", of.run.folder, 1, "--to", "baked")
    assert "was made with another model" in said
    assert not (of.run.folder / "exports" / "baked-1").exists()


def test_a_run_is_served_until_it_is_interrupted(run: Path) -> None:
    words = [sys.executable, "-m", "educe", "serve", str(run), "--port", "0"]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            told = server.stdout.readline()
            url = re.match(r"(http://127\.0\.0\.1:\d+/v1)  base, or a number", told)
            assert url, told
            with openai.OpenAI(base_url=url[1], api_key="none", max_retries=30) as client:
                asked = [{"role": "user", "content": "Where is it?"}]
                for model in ("base", "2"):
                    reply = client.chat.completions.create(
                        model=model,
                        messages=asked,  # type: ignore[arg-type]
                        max_tokens=3,
                    )
                    assert reply.usage
                    assert reply.usage.completion_tokens > 0
        finally:
            server.send_signal(signal.SIGINT)
            assert server.wait(20) in (0, 130)


def test_a_port_in_use_is_one_line(run: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert f"cannot listen on 127.0.0.1, port {port}" in refused("serve", run, "--port", port)
