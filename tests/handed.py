"""Runs to hand on: a few perturbations of a tiny model in a folder, with nothing written yet."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

import tiny
from educe import methods
from educe.exports.chosen import Chosen
from educe.forward.slice import Slice
from educe.model.loading import load
from educe.perturbation.kinds import Kind
from educe.rows import PromptRow
from educe.run.fill import add_set
from educe.run.settings import Settings
from educe.run.store import Run

PROMPTS = ("Where is it?", "Say something else, and more of it.")


def saved(folder: Path, architecture: str) -> Path:
    """Write a tiny model and its tokenizer, as a checkpoint of transformers."""
    tiny.hf_model(architecture).save_pretrained(folder)
    tiny.tokenizer().save_pretrained(folder)
    return folder


def chosen(
    folder: Path,
    architecture: str = "llama",
    kind: Kind | None = None,
    *,
    model: Path | None = None,
    adapter: Path | None = None,
    positions: str = "all",
    source: int = 1,
    dose: float = 0.7,
    **settings: Any,
) -> Chosen:
    """Return all of the two random perturbations of a run, about as large as the stream."""
    model = model or saved(folder / "model", architecture)
    lm = load(str(model), device="cpu", dtype=torch.float32, adapter=adapter)
    how = {"model": str(model), "adapter": None if adapter is None else str(adapter)}
    asked = Settings(PROMPTS, **how, dtype="float32", max_new_tokens=8, **settings)
    run = Run.create(folder / "run", asdict(asked))
    part = Slice(lm, lm.encode(PROMPTS), source=source, target=3, positions=positions)
    if kind is not None:
        part = part.on(kind)
    made = methods.search(part, "random", n=2, radius=dose * part.unit, seed=2)
    made.save(run.tensors / "found-0.safetensors")
    run.remember("facts", {"model": "tiny", "educe": "0", "dtype": "float32", "width": lm.width})
    texts = [lm.render(prompt) for prompt in PROMPTS]
    run.add_prompts(
        [PromptRow(i, "asked", *pair, 9) for i, pair in enumerate(zip(PROMPTS, texts, strict=True))]
    )
    add_set(run, "found", "found-0.safetensors", made, made.scores["effect"].tolist())
    return Chosen(run, [1, 2], lm=lm)
