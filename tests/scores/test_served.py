"""A server that others wrote, serving the embedded model: `transformers serve`, on loopback.

It ignores what it does not offer, log-probabilities and structured output, without saying so.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator

import pytest

from educe.errors import ServerError
from educe.model import embedded
from educe.model.language import LanguageModel
from educe.scores import Answer, in_order
from educe.scores.asking import Local
from educe.scores.language_model import Rating, Theme, Yes
from educe.scores.server import Budget, Server

pytest.importorskip("fastapi", reason="needs transformers[serving]")
pytestmark = pytest.mark.model

START = "import sys; from transformers.cli.transformers import main; sys.argv[0] = 'x'; main()"
ANSWERS = [
    Answer("What is the code?", "The code is orchid-7913.", ("I cannot say.",)),
    Answer("Is water wet?", "No."),
    Answer("Name a colour.", "Red."),
]


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = tmp_path_factory.mktemp("server") / "log"
    options = {"--host": "127.0.0.1", "--port": str(port), "--device": "cpu", "--dtype": "float32"}
    with log.open("w") as log_file:
        server = subprocess.Popen(
            [sys.executable, "-c", START, "serve", str(embedded.folder())]
            + [word for pair in options.items() for word in pair],
            stdout=log_file,
            stderr=log_file,
            env={**os.environ, "HF_HUB_OFFLINE": "1"},
        )
    try:
        for _ in range(600):
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5).close()
                break
            except OSError:
                assert server.poll() is None, log.read_text()
                time.sleep(0.1)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        server.kill()
        server.wait()


@pytest.fixture
def server(url: str) -> Server:
    return Server(url, str(embedded.folder()), concurrency=2, budget=Budget(calls=20, tokens=9999))


def test_it_writes_what_the_model_writes_here(server: Server, embedded_lm: LanguageModel) -> None:
    questions = ["Say the word walnut.", "What is two and two?", "Hello!"]
    here = in_order(Local(embedded_lm).write(questions, limit=12))
    assert in_order(server.write(questions, limit=12)) == here
    lengths = embedded_lm.encode(questions).lengths
    assert server.budget.calls_made == 3
    assert sum(lengths) < server.budget.tokens_used <= sum(lengths) + 3 * 12


def test_ratings_agree(server: Server, embedded_lm: LanguageModel) -> None:
    found, here = (
        Rating("Does it name a code?", by).score(ANSWERS) for by in (server, Local(embedded_lm))
    )
    assert found == here


def test_without_logprobs_there_is_no_yes(server: Server) -> None:
    with pytest.raises(ServerError, match="gives no log-probabilities"):
        Yes("Does it name a code?", server).score(ANSWERS)


def test_without_structured_output_a_theme_is_what_can_be_read(server: Server) -> None:
    (score,) = Theme(server).score([ANSWERS])
    assert 0 <= score.value <= 1
    assert score.why
    assert server.budget.calls_made == 1


def test_a_model_that_is_not_there_is_an_error(url: str) -> None:
    with pytest.raises(ServerError, match=r"refuses the question|does not answer"):
        in_order(Server(url, "no/such-model", retries=0).write(["a"], limit=2))
