"""Samplings and what is derived: the same by workers as by this process."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

import spread_run
from educe import cli
from educe.inversion.kept import reports
from educe.options import ALONE, SpreadOptions
from educe.run import preparing, searching
from educe.run.settings import begin
from educe.run.store import Run
from educe.run.work import at_work

TWO = SpreadOptions(on="devices", workers=2)
#: Inversions that end at once.
SHORT = ("--tokens", "2", "--reads", "30", "--answer", "1")
SMALL = ("--searched", "1", "--fresh", "2", "--controls", "2")
#: A few draws.
FEW = ("--basis", "random:2", "--sampler", "draws", "--walkers", "4", "--budget", "4")


def test_controls_are_made_by_workers(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("educe.methods.equal_effect.LOUDER", 1e-9)  # one at equal effect as well
    came = []
    for name, who in (("here", ALONE), ("there", TWO)):
        place = tmp_path / name
        with begin(place, spread_run.settings(folder)) as run, at_work(run, spread=who) as work:
            search = preparing.Search(work)
            search.remember_facts()
            if who is TWO:  # which fails wherever this process searches
                search.part = None  # type: ignore[assignment]
            searching.search(search)
        came.append(spread_run.content(place))
    assert came[0] == came[1]
    arms = ("found", "control", "equal")
    assert set(came[0]["tensors"]) == {f"{arm}-{k}.safetensors" for arm in arms for k in (0, 1)}


@pytest.mark.parametrize(
    "command",
    [
        ["sample", "RUN", *FEW],
        ["derive", "combine", "RUN", "1", "2"],
        ["derive", "front", "RUN"],
        ["invert", "RUN", "1", *SHORT, *SMALL],
    ],
    ids=lambda command: " ".join(command[:2]),
)
def test_a_command(
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
            came.append(spread_run.content(place) | {"reachable": reports(run)})
    assert came[0] == came[1]
    grows = "scores" if command[0] == "invert" or "front" in command else "completions"
    assert len(came[0][grows]) > len(spread_run.content(finished)[grows])
    assert bool(came[0]["reachable"]) is (command[0] == "invert")
