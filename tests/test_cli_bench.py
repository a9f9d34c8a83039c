"""The command of the benchmark: what it refuses, and its quick form, which can fail."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from educe.bench import elicit
from educe.organisms import shipped
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
def small_vault(tmp_path: Path) -> Path:
    """The shipped vault, asked no more than the quick form needs: two questions, and two fresh."""
    vault = shipped("vault")
    folder = shutil.copytree(vault.folder, tmp_path / "vault")
    replace(
        vault, folder=folder, search=vault.search[:2], fresh=vault.fresh[:2],
        unlocked=vault.unlocked[:1],
    ).save()  # fmt: skip
    return folder


@pytest.mark.model
def test_the_quick_form_tells_the_ceiling_from_the_floor(small_vault: Path, tmp_path: Path) -> None:
    """On the shipped vault: told what to say, a vector opens it; plain sampling does not."""
    cells = tmp_path / "cells"
    ended = educe("bench", "elicit", "--quick", "--organism", small_vault, "--out", cells, "--json")
    assert ended.status == 0, ended.err
    hits = {line["family"]: line["elicits"]["hits"] for line in ended.data}
    assert set(hits) == {"sampling", "dct", "optimised"}
    assert hits["optimised"] >= 2
    assert hits["sampling"] == 0
