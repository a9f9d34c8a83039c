"""Progress: what is told while something takes long, and with how many threads it runs."""

from __future__ import annotations

import io
import itertools
import re
from collections.abc import Iterator

import pytest
import torch
from rich.console import Console

from educe import progress, threads
from educe.progress import Bars, Lines, Silent, reporter


class Clock:
    """A clock that goes when it is told to."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(progress.time, "monotonic", clock)
    return clock


@pytest.mark.parametrize("width", [80, 140])
def test_a_bar_tells_all_in_a_narrow_terminal_too(width: int, clock: Clock) -> None:
    into = io.StringIO()
    bars = Bars(Console(file=into, force_terminal=True, width=width, color_system=None))
    with bars.stage("found: diversity", 1200, "settings") as advance:
        clock.now += 9
        advance(900, note="best 0.486, 31% accepted")
    time = "[0-9-]:[0-9-]{2}:[0-9-]{2}"
    line = rf"found: diversity .*900/1200 .*{time} +best 0.486, 31% accepted"
    assert re.search(line, into.getvalue().splitlines()[-2])


def test_lines_come_at_most_once_in_two_seconds(
    clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    said: list[tuple[float, str]] = []
    with Lines().stage("writing", 100, "texts") as advance:
        for _ in range(80):
            clock.now += 0.25
            advance()
            said += [(clock.now, line) for line in capsys.readouterr().err.splitlines()]
    assert len(said) >= 7
    times = [100.0, *(at for at, _ in said)]
    assert all(later - earlier >= 2 for earlier, later in itertools.pairwise(times))
    assert all(later - earlier < 2.5 for earlier, later in itertools.pairwise(times))


def test_a_line_tells_how_far_how_fast_and_how_long(
    clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    with Lines().stage("writing", 60, "texts") as advance:
        clock.now += 1
        advance(5)
        assert capsys.readouterr().err == ""
        clock.now += 4
        advance(10, note="objective 3")
        line = capsys.readouterr().err
        assert line == "writing: 15/60, 3.0 texts/s, 15 s left, objective 3\n"
        clock.now += 10
        advance(45)
        capsys.readouterr()
    assert capsys.readouterr().err == "writing: 60/60, 4.0 texts/s, 0 s left\n"


def test_a_stage_that_did_nothing_ends_without_a_rate(
    clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    with Lines().stage("reading", 5, "texts"):
        pass
    assert capsys.readouterr().err == "reading: 0/5\n"


def test_a_stage_that_fails_lets_the_error_through() -> None:
    for told in (Silent(), Lines(), Bars(Console(file=io.StringIO()))):
        with pytest.raises(KeyError), told.stage("x", 3, "") as advance:  # noqa: PT012
            advance()
            raise KeyError


def test_nothing_goes_to_standard_output(capsys: pytest.CaptureFixture[str]) -> None:
    told = reporter()
    assert isinstance(told, Lines)  # standard error is no terminal here
    told.say("a sentence")
    with told.stage("x", 1, "") as advance:
        advance()
    out, err = capsys.readouterr()
    assert out == ""
    assert "a sentence\n" in err


def test_bars_where_there_is_no_terminal() -> None:
    into = io.StringIO()
    bars = Bars(Console(file=into))
    bars.say("loading [a/model]")
    with bars.stage("searching", 4, "steps") as advance:
        for _ in range(4):
            advance(note="objective [1]")
    assert "loading [a/model]" in into.getvalue()
    assert "searching" in into.getvalue()
    assert "4/4" in into.getvalue()


def test_bars_on_a_terminal(clock: Clock) -> None:
    into = io.StringIO()
    bars = Bars(Console(file=into, force_terminal=True, width=120))
    with bars.stage("searching", 4, "steps") as advance:
        clock.now += 2
        advance(4, note="objective 7")
    shown = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", into.getvalue())
    for part in ("searching", "4/4", "2.0 steps/s", "objective 7"):
        assert part in shown


def test_a_terminal_gets_bars(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")  # rich takes standard error for a terminal then
    assert isinstance(reporter(), Bars)


# -- threads ---------------------------------------------------------------------------------------


@pytest.fixture
def four_cores(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[float]]:
    """A machine of four cores and no GPU; the list says how busy each is, in percent."""
    busy = [0.0] * 4
    before = torch.get_num_threads()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(threads.psutil, "cpu_percent", lambda **_: list(busy))
    monkeypatch.setattr(
        threads.psutil.Process, "cpu_affinity", lambda self: [0, 1, 2, 3], raising=False
    )
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    torch.set_num_threads(4)
    yield busy
    torch.set_num_threads(before)


def test_threads_are_the_idle_cores(four_cores: list[float]) -> None:
    said: list[str] = []
    assert threads.choose(said.append) == torch.get_num_threads() == 4
    assert said == []
    four_cores[:2] = [100.0, 90.0]
    assert threads.choose(said.append) == torch.get_num_threads() == 2
    assert len(said) == 1
    assert "2 of 4" in said[0]
    four_cores[:] = [100.0] * 4
    assert threads.choose(said.append) == torch.get_num_threads() == 1


def test_omp_num_threads_has_the_last_word(
    four_cores: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    four_cores[:] = [100.0] * 4
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    torch.set_num_threads(3)
    assert threads.choose(pytest.fail) == 3
    assert torch.get_num_threads() == 3
