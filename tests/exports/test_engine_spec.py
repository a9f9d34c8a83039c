"""Steering specifications, read and run by interp-engine on the CPU: the same text."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from educe.exports import export
from educe.forward.generation import generate
from educe.rows import Row
from handed import chosen

engine = pytest.importorskip("interp_engine", reason="interp-engine is needed")
STEPS = 8


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_interp_engine_writes_the_same(tmp_path: Path, architecture: str) -> None:
    from interp_engine.server.schemas import SteeringWire

    of = chosen(tmp_path, architecture)
    export(of, "interp-engine", tmp_path / "out")
    model = engine.load_model(of.settings.model, backend="eager", device="cpu", dtype="float32")
    batch = of.lm.encode(of.settings.prompts[:1])
    (read,) = batch.read
    texts = []
    for number in (0, *of.numbers):
        one, steering = of.one(number or 1), None
        if number:
            wire = json.loads((tmp_path / "out" / f"{number}.json").read_text())
            steering = SteeringWire(**wire).to_spec(of.lm.width)
        rows = [Row(int(number > 0), 0)]
        ((done,),) = generate(of.lm, batch, rows, one.theta, kind=one.kind, max_new_tokens=STEPS)
        theirs = asyncio.run(written(model, list(read), steering))
        assert theirs[: len(done.tokens)] == list(done.tokens)
        texts.append(tuple(theirs))
    assert len(set(texts)) == 3


async def written(model: Any, ids: list[int], steering: Any) -> list[int]:
    """Let the engine write."""
    how = {"max_tokens": STEPS, "temperature": 0.0, "steering_spec": steering}
    return [step.token_id async for step in model.generate_steps(ids, **how)]
