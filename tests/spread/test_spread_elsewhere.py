"""Audits, samplings and what is derived: the same by workers as by this process."""

from __future__ import annotations

import copy
import shutil
from pathlib import Path

import pytest
import torch

import spread_run
from benchmarks import quick
from educe import cli
from educe.audit import settings, stages
from educe.audit.settings import AuditOptions, begin
from educe.options import ALONE, ModelOptions, SpreadOptions
from educe.run.store import Run

TWO = SpreadOptions(on="devices", workers=2)
#: A few draws.
FEW = ("--basis", "random:2", "--sampler", "draws", "--walkers", "4", "--budget", "4")
#: Enough of everything, and no more.
SMALL = settings.Size(2, 3, 3, 2, 3, 20, 2, 2)


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


def test_an_audit(tmp_path: Path, pair: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(settings.SIZES, "quick", SMALL)
    monkeypatch.setattr("educe.audit.contrast.AT_ONCE", 8)
    suspect, clean = map(str, pair)
    options = AuditOptions(
        reference=clean, budget="quick", sources=("weights", "prefill"), max_new_tokens=3
    )
    came, cost = [], []
    for name, who in (("here", ALONE), ("there", TWO)):
        with begin(tmp_path / name, options, ModelOptions(model=suspect, device="cpu")) as run:
            stages.carry_out(run, spread=who)
            came.append({"findings": run.note("findings")})
            cost.append(run.note("spent"))
        came[-1] |= spread_run.content(tmp_path / name)
    assert came[0] == came[1]
    assert len(came[0]["completions"]) > 20
    for part, here in cost[0].items():  # each worker looks once at how its model is built
        there = cost[1][part]
        assert here["passes"] <= there["passes"] <= here["passes"] + 16
        assert here["tokens"] <= there["tokens"] + 1e-6 <= here["tokens"] * 1.1


@pytest.mark.parametrize(
    "command",
    [
        ["sample", "RUN", *FEW],
        ["derive", "combine", "RUN", "1", "2"],
    ],
    ids=" ".join,
)
def test_a_command_that_writes(
    tmp_path: Path, finished: Path, command: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    came = []
    for name, who in (("here", []), ("there", ["--on", "devices", "--workers", "2"])):
        place = tmp_path / name
        shutil.copytree(finished, place)
        with pytest.raises(SystemExit) as end:
            cli.main([*(str(place) if word == "RUN" else word for word in command), *who])
        assert end.value.code == 0, capsys.readouterr().err
        with Run.open(place) as run:
            assert run.missing() == {}
        came.append(spread_run.content(place))
    assert came[0] == came[1]
    assert len(came[0]["completions"]) > len(spread_run.content(finished)["completions"])
