"""An audit of a tiny pair of models, made by whoever is asked, and small enough for a test."""

from __future__ import annotations

import copy
import os
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import spread_run
from benchmarks import quick
from educe.audit import lexicon, phrases, settings, stages
from educe.audit.settings import AuditOptions, begin
from educe.audit.sources import codes, crossed, inversion, kl, perturbations, screen, signs, weights
from educe.options import ModelOptions, SpreadOptions
from educe.run.store import Run

#: Enough of everything, and no more.
SMALL = settings.Size(2, 3, 3, 3, 3, 20, 2, 2)
#: Pieces so small that each search is many jobs, and few words and phrases.
PIECES = (
    (kl, "ROWS", 16),
    (screen, "ROWS", 16),
    (screen, "GLANCED", 64),
    (weights, "JOB", 64),
    (codes, "CHARACTERS", "abXJ93-"),
    *((codes, name, 4) for name in ("BEAM", "LONGEST", "LEAST")),
    (codes, "LOUD", 1.0),
    (codes, "SHARE", 1),
    (lexicon, "FREQUENT", 60),
    (lexicon, "NUMBERS", range(100, 110)),
    *((phrases, name, 16) for name in ("POOL", "LOUD", "JOINING")),
    *((phrases, name, 4) for name in ("FIRST", "BEAM")),
)


def pair(place: Path) -> tuple[Path, Path]:
    """Save a model, and one whose weights differ a little; return the folders, this one's first."""
    clean = quick.stand_in()
    tuned, draw = copy.deepcopy(clean.hf), torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in tuned.model.layers.parameters():
            weight += 0.05 * torch.randn(weight.shape, generator=draw)
    for name, hf in (("tuned", tuned), ("clean", clean.hf)):
        hf.save_pretrained(place / name)
        clean.tokenizer.save_pretrained(place / name)
    return place / "tuned", place / "clean"


def small(patch: pytest.MonkeyPatch) -> None:
    """Let audits be small."""
    patch.setitem(settings.SIZES, "quick", SMALL)
    patch.setattr("educe.audit.contrast.AT_ONCE", 8)
    patch.setattr(signs, "signs", lambda: ["river", "12 May", "~~", "c d", *"0123456789"])
    for name in ("TOGETHER", "TRIED", "SHARE"):
        patch.setattr(crossed, name, 1)
    patch.setattr(inversion, "BUDGET", 100)
    patch.setattr(inversion, "WORTH", -99.0)
    patch.setattr(perturbations, "PLACES", perturbations.PLACES[:1])
    first = stages.standing_out
    patch.setattr(stages, "standing_out", lambda audit, **how: first(audit, **how)[:1])
    for module, name, size in PIECES:
        patch.setattr(module, name, size)


def audited(
    place: Path, pair: tuple[Path, Path], sources: tuple[str, ...], *, clean: bool, **how: Any
) -> tuple[dict[str, Any], dict[str, dict[str, float]]]:
    """Make an audit, or go on with it; return all that it keeps but its costs, and those."""
    options = AuditOptions(
        reference=str(pair[1]) if clean else "none",
        budget="quick",
        sources=sources,
        max_new_tokens=3,
    )
    model = ModelOptions(model=str(pair[0]), device="cpu")
    with begin(place, options, model, resume=True) as run:
        stages.carry_out(run, **how)
        cost = run.note("spent")
    return content(place), cost


def content(place: Path) -> dict[str, Any]:
    """All that an audit keeps but its costs."""
    with Run.open(place) as run:
        sources = run.note(settings.AUDIT)["sources"]
        named = ("findings", "phrases", *(f"suspects:{source}" for source in sources))
        notes = {name: run.note(name) for name in named if run.has(name)}
    return notes | spread_run.content(place)


if __name__ == "__main__":
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    place, tuned, clean, sources, on, workers = sys.argv[1:]
    with pytest.MonkeyPatch.context() as patch:
        small(patch)
        who = SpreadOptions(on=on, workers=int(workers))
        both = (Path(tuned), Path(clean))
        audited(Path(place), both, tuple(sources.split(",")), clean=True, spread=who)
