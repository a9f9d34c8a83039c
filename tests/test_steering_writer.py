"""Texts under vectors by interp-engine's own server, on loopback, with its backend for the CPU."""

from __future__ import annotations

import importlib.util
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch

import spread_run
from educe.errors import ServerError
from educe.forward.generation import generate, rows_of
from educe.model.loading import load
from educe.options import SpreadOptions
from educe.perturbation.kinds import Joint, Vectors, Within
from educe.run import served_vectors
from educe.run.served import served
from educe.run.served_vectors import Steering
from educe.run.settings import Settings, begin
from educe.run.stages import discover_behaviours
from test_vllm_writer import texts

pytestmark = pytest.mark.skipif(
    not importlib.util.find_spec("interp_engine"), reason="needs interp-engine"
)
#: The longest that the server takes to come up, in seconds.
PATIENCE = 300


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return spread_run.model(tmp_path_factory.mktemp("model") / "llama")


@pytest.fixture(scope="module")
def url(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The server of interp-engine, with the model of the folder."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = ["--model", folder, "--backend", "eager", "--device", "cpu", "--dtype", "float32"]
    command = [sys.executable, "-m", "interp_engine.server", *words, "--port", port]
    with (tmp_path_factory.mktemp("log") / "log").open("w+") as log:
        server = subprocess.Popen([*map(str, command)], stdout=log, stderr=subprocess.STDOUT)
        try:
            until = time.monotonic() + PATIENCE
            while not _up(port):
                log.seek(0)
                waits = server.poll() is None and time.monotonic() < until
                assert waits, f"it does not come up: {log.read()[-3000:]}"
                time.sleep(0.2)
            yield f"http://127.0.0.1:{port}/v1"
        finally:
            server.terminate()
            server.wait(60)


def _up(port: int) -> bool:
    try:
        return httpx.get(f"http://127.0.0.1:{port}/health").status_code == 200
    except httpx.TransportError:
        return False


@contextmanager
def asked_of(monkeypatch: pytest.MonkeyPatch, scale: float = 1.0) -> Iterator[list[int]]:
    """Count the texts that the server is asked for; it gets vectors of another size."""
    seen: list[int] = []
    plain, whole = Steering.ask, served_vectors.steering.specification

    def ask(self: Steering, asked: Any, tokens: int, *more: Any) -> Any:
        seen.extend([tokens] * len(asked))
        return plain(self, asked, tokens, *more)

    with monkeypatch.context() as patch:
        patch.setattr(Steering, "ask", ask)
        patch.setattr(
            served_vectors.steering,
            "specification",
            lambda added: whole({layer: scale * vector for layer, vector in added.items()}),
        )
        yield seen


def carried_out(place: Path, asked: Settings, writer: str | None) -> list[str]:
    told = spread_run.Told(lambda: None)
    with begin(place, asked) as run:
        discover_behaviours(run, reporter=told, spread=SpreadOptions(writer=writer))
    return told.said


def test_the_server_writes_what_this_process_does(
    tmp_path: Path, folder: Path, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = replace(spread_run.settings(folder), radius="1x")
    carried_out(tmp_path / "here", asked, None)
    with asked_of(monkeypatch) as seen:
        said = carried_out(tmp_path / "there", asked, url)
    rows = texts(tmp_path / "here")
    assert texts(tmp_path / "there") == rows
    assert len({row[4] for row in rows if row[0]}) > 3
    assert not [line for line in said if "written here" in line]
    assert sum(tokens > 1 for tokens in seen) == sum(row[0] > 0 for row in rows)


@pytest.mark.parametrize("what", ["prompt", "within", "joint"])
def test_all_kinds_that_add_vectors_are_written(folder: Path, url: str, what: str) -> None:
    lm = load(str(folder), device="cpu", dtype=torch.float32)
    draw = torch.Generator().manual_seed(0)
    rows = torch.randn(3, 2, lm.width, generator=draw)
    kind: Any = {
        "prompt": Vectors(1, lm.width, "prompt"),
        "within": Within(1, rows[:, 0]),
        "joint": Joint((0, 2), rows),
    }[what]
    theta = kind.draw(4, draw) * (20.0 if what == "prompt" else 4.0)
    batch = lm.encode(["Tell me.", "What is the code?"])
    wanted = rows_of(4, 2)
    ours = [c for some in generate(lm, batch, wanted, theta, kind=kind) for c in some]
    said: list[str] = []
    how = (lm, batch, wanted, kind, [1, 2, 3, 4], theta, 32)
    with served(url, folder, said.append) as engine:
        theirs = {c.row: c for some in engine.write(*how) for c in some}
    assert not said
    assert len({c.tokens for c in ours}) > 4
    for c in ours:
        other = theirs[c.row]
        assert (other.tokens, other.finished, other.text) == (c.tokens, c.finished, c.text)
        assert other.logprobs == pytest.approx(c.logprobs, abs=1e-3)


@pytest.mark.parametrize("scale", [0.0, 0.5])
def test_a_server_that_leaves_vectors_out_is_refused(
    tmp_path: Path, folder: Path, url: str, scale: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = replace(spread_run.settings(folder), radius="1x")
    refused = pytest.raises(ServerError, match=r"does not write as perturbation 1 does")
    with asked_of(monkeypatch, scale), refused:
        carried_out(tmp_path / "run", asked, url)
    assert [row for row in texts(tmp_path / "run") if row[0] and row[4] is not None] == []


def test_what_it_cannot_add_is_written_here(
    tmp_path: Path, folder: Path, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = replace(spread_run.settings(folder), radius="20", positions="last:2")
    with asked_of(monkeypatch) as seen:
        carried_out(tmp_path / "run", asked, url)
    assert not seen
    assert all(row[4] is not None for row in texts(tmp_path / "run"))


class Loading(BaseHTTPRequestHandler):
    """A server of interp-engine that has no model yet."""

    def do_GET(self) -> None:
        self.send_error(503, "the model is still loading")

    def log_message(self, *arguments: Any) -> None:
        pass


def test_a_server_that_is_not_ready_is_one_sentence() -> None:
    with HTTPServer(("127.0.0.1", 0), Loading) as server:
        threading.Thread(target=server.handle_request, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_address[1]}/v1"
        with pytest.raises(ServerError, match=r"does not say what it is .*503"):
            Steering.at(url)
