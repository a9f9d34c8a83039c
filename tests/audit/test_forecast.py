"""How long a part will take, from what others took: by hand."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from educe.audit import forecast
from educe.progress import Advance, Silent, Within

THERE = {"quick": {"with": {"plain": 4.0, "weights": 60.0, "signs": 40.0}}}


@pytest.fixture(autouse=True)
def _measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forecast, "bundled", lambda name: {"costs": THERE}[name])


def takes(part: str, reference: bool = True, **over: float) -> float | None:
    spent = {name: {"seconds": value} for name, value in over.items()}
    return forecast.seconds(part, "quick", reference=reference, spent=spent)


def test_a_part_takes_as_long_as_there_by_the_ratio_of_what_is_over() -> None:
    assert takes("weights", plain=8.0) == pytest.approx(120.0)
    assert takes("signs", plain=8.0, weights=56.0) == pytest.approx(40.0)  # 64 s where 64 were
    # Neither the part itself nor one that was not measured says how fast this machine is.
    assert takes("weights", plain=8.0, weights=1.0, topics=500.0) == pytest.approx(120.0)


def test_the_time_left_of_a_part_stands_behind_each_step() -> None:
    told: list[tuple[str, str]] = []

    class Whole(Silent):
        @contextmanager
        def stage(self, title: str, total: int, unit: str = "") -> Iterator[Advance]:
            yield lambda steps=1, note="": told.append((title, note))

    left = iter(["weights: about 2 minutes left", ""])
    with Within(Whole(), "weights (1 of 2)", lambda: next(left)).stage("words", 2) as step:
        step(note="granite")
        step(1)
    assert told == [
        ("weights (1 of 2): words", "granite; weights: about 2 minutes left"),
        ("weights (1 of 2): words", ""),
    ]


def test_nothing_is_told_of_what_was_not_measured() -> None:
    assert takes("weights") is None  # nothing is over yet
    assert takes("topics", plain=8.0) is None
    assert takes("weights", reference=False, plain=8.0) is None
