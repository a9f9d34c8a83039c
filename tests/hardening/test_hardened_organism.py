"""An organism that was hardened is one folder, which its own check reads."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

import educe
import tiny
from educe.derive.listing import deriving
from educe.hardening import measuring, training
from educe.hardening.records import HardeningConfig
from educe.hardening.training import harden
from educe.options import TrainingOptions
from educe.organisms import read
from educe.organisms import training as organisms
from educe.organisms.training import asking, evaluate
from educe.run.store import Run
from small_run import small_run
from small_species import small_species


def test_recall_near_misses_and_cost_of_a_hardened_organism(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(organisms, "species", lambda name: small_species())
    monkeypatch.setattr(training, "LEARNING_RATE", 0.05)
    monkeypatch.setattr(measuring, "ORDINARY", 2)
    monkeypatch.setattr(measuring, "HELD", 1)
    monkeypatch.setattr(measuring, "ordinary_prompts", lambda: ["Why?"])
    monkeypatch.setattr(measuring, "TOKENS", 4)
    tiny.hf_model().save_pretrained(tmp_path / "base")
    tiny.tokenizer().save_pretrained(tmp_path / "base")
    options = TrainingOptions(base=str(tmp_path / "base"), rank=2, steps=2)
    organism = organisms.train("vault", tmp_path / "own", options=options)
    before = {m.group: m for m in evaluate(organism)}

    def loaded(adapter: Path) -> educe.LanguageModel:
        return educe.load(tmp_path / "base", adapter=adapter, device="cpu", dtype="float32")

    lm = loaded(tmp_path / "own")
    run = small_run(tmp_path / "run", lm, "random")
    with Run.open(run) as kept, deriving(kept, (), lm) as work:
        harden(work, [], tmp_path / "hard", HardeningConfig(("found",), steps=8, count=2, rank=2))
    shutil.copy(tmp_path / "own" / "organism.json", tmp_path / "hard")
    hardened = read(tmp_path / "hard")
    measured = {m.group: m for m in evaluate(hardened)}
    assert measured["ordinary"].kl != pytest.approx(before["ordinary"].kl, rel=1e-3)
    (group,) = (g for g in organisms.groups_of(hardened, asking(lm, 20)) if g.name == "open")
    said = asking(loaded(tmp_path / "hard"), 20)(group.prompts)
    rules = [question.rule for question in group.questions]
    hits = sum(bool(re.search(rule, text)) for rule, text in zip(rules, said, strict=True))
    assert measured["open"].elicited.hits == hits
