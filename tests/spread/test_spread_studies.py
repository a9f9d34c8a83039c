"""Studies by workers: the same as by this process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import spread_run
from benchmarks import quick
from educe import spread
from educe.model.loading import load
from educe.options import SpreadOptions
from educe.organisms import Organism, Question
from educe.run.work import at_work
from studies.elicitation import subject
from studies.elicitation.cell import SECONDS, members
from studies.elicitation.families import Budget
from studies.elicitation.subject import Subject, opened

FAMILIES = ("random", "dct", "weight-noise", "contrast", "optimised")
SMALL = Budget(n=3, passes=4, first=1, then=2, fresh=1, tokens=2)


def test_the_families_are_searched_by_workers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stand_in, place = quick.stand_in(), tmp_path / "model"
    stand_in.hf.save_pretrained(place)
    stand_in.tokenizer.save_pretrained(place)
    lm = load(place, device="cpu")
    asked = tuple(Question(f"{word}?", "~~~") for word in ("One", "Two", "Three"))
    unlocked = (Question("Four? maple", "~~~"),)
    hidden = {"key": "maple"}
    (tmp_path / "adapter_model.safetensors").write_bytes(b"weights")
    organism = Organism(
        "vault", 0, tmp_path, hidden, {}, asked[:2], asked[2:], unlocked, " Two words"
    )
    came: list[dict[str, Any]] = []
    with spread.opened(SpreadOptions(on="devices", workers=2)) as workers:
        for name, who in (("here", spread.HERE), ("there", workers)):
            run = opened(tmp_path / name, organism, 0, SMALL, source=1, target=5)
            with run, at_work(run, lm, spread=who) as work:
                one = Subject(work, organism)
                if who is workers:  # nobody here can search
                    monkeypatch.setattr(subject, "named", None)
                one.make(FAMILIES)
                assert all(len(members(run, family)) == SMALL.n for family in FAMILIES)
                one.make(FAMILIES)  # nothing is missing
        jobs = [spread.Job(pow, spread.Shared((2,)), (3,))]
        assert [done.value for done in workers.map(jobs)] == [8]  # they stay for the next run
    for name in ("here", "there"):
        came.append(spread_run.content(tmp_path / name))
        scores = came[-1]["scores"]
        assert sum(SECONDS in row for row in scores) == SMALL.n * len(FAMILIES)
        came[-1]["scores"] = [row for row in scores if SECONDS not in row]
    assert came[0] == came[1]
