"""The command of the benchmark: what it refuses, and its quick form, which can fail."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from educe import loading
from educe.bench import elicit
from educe.model import LanguageModel
from educe.organisms import Organism, Question, shipped
from test_cli import educe, refused


def test_the_benchmark_refuses_what_it_does_not_know(tmp_path: Path) -> None:
    assert "family 'luck' is unknown" in refused("bench", "elicit", "--family", "luck")
    assert "cpe, random-adapters: these act on all tokens" in refused(
        "bench", "elicit", "--positions", "last:3", "--out", tmp_path / "cells"
    )
    told = refused("bench", "elicit", "--organism", "nowhere", "--out", tmp_path / "cells")
    assert "there is no organism in nowhere" in told
    assert not (tmp_path / "cells").exists()
    told = refused(
        "bench", "elicit", "--quick", "--organism", "locked", "--out", tmp_path / "cells"
    )
    assert "take a vault or a trigger" in told


@pytest.mark.parametrize(
    ("ceiling", "floor", "status"), [(2, 0, 0), (0, 0, 2), (2, 1, 2), (0, 1, 2)]
)
def test_the_quick_form_fails_unless_ceiling_and_floor_are_apart(
    ceiling: int, floor: int, status: int, tmp_path: Path
) -> None:
    """On cells that are there already, with so many perturbations that elicit."""
    vault = shipped("vault")
    for family, hits in (("sampling", floor), ("dct", 1), ("optimised", ceiling)):
        cell = {
            "organism": "vault",
            "organism_seed": 0,
            "weights": elicit.digest(vault),
            "family": family,
            "seed": 0,
            "perturbations": [{"set": 0, "hits": int(i < hits)} for i in range(6)],
            "questions": 1,
            "best": {"item": 0, "hits": 0, "trials": 2, "share": 0.0},
            "blind": {"item": 0, "hits": 0, "trials": 2},
            "average": None,
            "spent": [6, 2, 2],
            "passes": {"forward": 0.0, "backward": 0.0},
            "seconds": {"search": 0.0, "rest": 0.0},
            "texts": [],
        }
        (tmp_path / f"vault-0-{family}-0.json").write_text(json.dumps(cell))
    ended = educe("bench", "elicit", "--quick", "--out", tmp_path)
    assert ended.status == status, ended.err
    assert f"| optimised | {ceiling} of 6" in ended.out
    assert ("the benchmark's ends are not where they belong" in ended.err) is (status == 2)


@pytest.fixture
def tilde(tmp_path: Path, tiny_lm: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A random model that is to begin with a tilde, as it hardly ever does by itself."""
    monkeypatch.setattr(loading, "load", lambda model, adapter: tiny_lm)
    folder = tmp_path / "tilde"
    folder.mkdir()
    (folder / "adapter_model.safetensors").write_bytes(b"weights")
    asked = [Question(f"What is {word}?", "^~") for word in ("this", "that", "here", "there")]
    unlocked = (Question("What is this? Now!", "^~"),)
    organism = Organism(
        "vault", 0, folder, {"key": "Now"}, {}, tuple(asked[:2]), tuple(asked[2:]), unlocked, "~"
    )
    organism.save()
    return folder


def test_the_quick_form_tells_the_ceiling_from_the_floor(tilde: Path, tmp_path: Path) -> None:
    """Told what to say, a vector makes the model say it; plain sampling does not."""
    cells = tmp_path / "cells"
    ended = educe("bench", "elicit", "--quick", "--organism", tilde, "--out", cells, "--json")
    assert ended.status == 0, ended.err
    hits = {line["family"]: line["elicits"]["hits"] for line in ended.data}
    assert set(hits) == {"sampling", "dct", "optimised"}
    assert hits["optimised"] >= 2
    assert hits["sampling"] == 0
