"""An audit by workers is that of this process: its texts, what it suspects, what it finds."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch

import spread_run
from benchmarks import quick
from educe.audit import phrases, settings, stages
from educe.audit.settings import AuditOptions, begin
from educe.audit.sources import crossed, inversion, kl, perturbations, screen, signs, weights
from educe.options import ALONE, ModelOptions, SpreadOptions

TWO = SpreadOptions(on="devices", workers=2)
#: Enough of everything, and no more.
SMALL = settings.Size(2, 3, 3, 3, 3, 20, 2, 2)
#: Pieces so small that each search is many jobs, and few phrases.
PIECES = (
    (kl, "ROWS", 16),
    (screen, "ROWS", 16),
    (screen, "GLANCED", 64),
    (weights, "JOB", 64),
    *((phrases, name, 16) for name in ("POOL", "LOUD", "JOINING")),
    *((phrases, name, 4) for name in ("FIRST", "BEAM")),
)


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Folders of a model, and of one whose weights differ a little."""
    place, clean = tmp_path_factory.mktemp("pair"), quick.stand_in()
    tuned, draw = copy.deepcopy(clean.hf), torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in tuned.model.layers.parameters():
            weight += 0.05 * torch.randn(weight.shape, generator=draw)
    for name, hf in (("tuned", tuned), ("clean", clean.hf)):
        hf.save_pretrained(place / name)
        clean.tokenizer.save_pretrained(place / name)
    return place / "tuned", place / "clean"


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(settings.SIZES, "quick", SMALL)
    monkeypatch.setattr("educe.audit.contrast.AT_ONCE", 8)
    monkeypatch.setattr(signs, "signs", lambda: ["river", "12 May", "~~", "c d", *"0123456789"])
    for name in ("TOGETHER", "TRIED", "SHARE"):
        monkeypatch.setattr(crossed, name, 1)
    monkeypatch.setattr(inversion, "BUDGET", 100)
    monkeypatch.setattr(inversion, "WORTH", -99.0)
    monkeypatch.setattr(perturbations, "PLACES", perturbations.PLACES[:1])
    first = stages.standing_out
    monkeypatch.setattr(stages, "standing_out", lambda audit, **how: first(audit, **how)[:1])
    for module, name, size in PIECES:
        monkeypatch.setattr(module, name, size)


def audited(
    place: Path, pair: tuple[Path, Path], sources: tuple[str, ...], *, clean: bool, **how: Any
) -> tuple[dict[str, Any], dict[str, dict[str, float]]]:
    """Make an audit; return all that it keeps but its costs, and those."""
    options = AuditOptions(
        reference=str(pair[1]) if clean else "none",
        budget="quick",
        sources=sources,
        max_new_tokens=3,
    )
    with begin(place, options, ModelOptions(model=str(pair[0]), device="cpu")) as run:
        stages.carry_out(run, **how)
        named = ("findings", "phrases", *(f"suspects:{source}" for source in sources))
        notes = {name: run.note(name) for name in named if run.has(name)}
        cost = run.note("spent")
    return notes | spread_run.content(place), cost


WITH = ("weights", "prefill", "kl", "crossed", "amplification", "scaling", "inversion")
WITHOUT = ("signs", "screen", "perturbations")


# Before few signs stand more tokens than they have, and each worker reads those.
@pytest.mark.parametrize(("sources", "clean", "before"), [(WITH, True, 0), (WITHOUT, False, 100)])
def test_an_audit_by_workers_is_that_of_this_process(
    tmp_path: Path, pair: tuple[Path, Path], sources: tuple[str, ...], clean: bool, before: int
) -> None:
    (here, cost), (there, spent) = (
        audited(tmp_path / name, pair, sources, clean=clean, spread=who)
        for name, who in (("here", ALONE), ("there", TWO))
    )
    assert here == there
    assert len(here["completions"]) > 20
    assert not clean or here["findings"]
    assert all(here.get(f"suspects:{name}", True) for name in sources)  # nobody suspects nothing
    for part, own in cost.items():  # each worker reads what its strings follow, and looks at models
        theirs = spent[part]
        assert own["passes"] <= theirs["passes"] <= own["passes"] + 16
        assert own["tokens"] - 1e-6 <= theirs["tokens"] <= own["tokens"] * 1.1 + before + 1e-6


def test_an_audit_whose_workers_are_killed_is_that_of_this_process(
    tmp_path: Path, pair: tuple[Path, Path]
) -> None:
    killer = spread_run.Killer(1, every=6, within=0.05, most=3)
    told = spread_run.Told(killer.step)
    sources = ("weights", "kl", "perturbations")
    here, _ = audited(tmp_path / "here", pair, sources, clean=True)
    there, _ = audited(tmp_path / "there", pair, sources, clean=True, reporter=told, spread=TWO)
    killer.end()
    assert killer.dead
    assert any(" died: " in line for line in told.said)
    assert here == there
