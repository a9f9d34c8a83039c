"""The same run by this process and by others, whoever is killed meanwhile."""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from multiprocessing import connection
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
import torch

import spread_run
import tiny
from educe.errors import ModelError, SpreadError
from educe.model.language import LanguageModel
from educe.model.loading import load
from educe.options import SpreadOptions
from educe.run import fill
from educe.run.store import Run
from educe.scores import Answer, Score, in_order
from educe.scores.asking import Local as Asked
from educe.scores.batches import in_batches
from educe.scores.cache import Cached
from educe.scores.coherence import Coherence
from educe.spread import Job, Local, Shared, Spread, devices, opened, packing
from test_cli import refused


@pytest.fixture(scope="module")
def lm(folder: Path) -> LanguageModel:
    return load(folder, device="cpu")


@pytest.fixture(scope="module")
def workers() -> Iterator[Spread]:
    with opened(SpreadOptions(on="devices", workers=2)) as spread:
        yield spread


# -- the same run ----------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [1, 3])
def test_a_run_by_any_number_of_workers_is_that_of_this_process(
    tmp_path: Path, folder: Path, whole: dict[str, Any], n: int
) -> None:
    spread_run.carried_out(tmp_path / "run", folder, SpreadOptions(on="devices", workers=n))
    assert spread_run.content(tmp_path / "run") == whole


def test_texts_are_scored_alike_however_many_are_held_together(
    tmp_path: Path, folder: Path, finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []
    read = fill.in_readings
    monkeypatch.setattr(fill, "TOGETHER", 5)
    monkeypatch.setattr(fill, "in_readings", lambda some: sizes.append(len(some)) or read(some))
    spread_run.carried_out(tmp_path / "run", folder)
    assert len(sizes) > 5
    with Run.open(tmp_path / "run") as few, Run.open(finished) as whole:
        got, known = ({(s.of, s.judge): s.value for s in r.score_rows()} for r in (few, whole))
    assert got == pytest.approx(known, rel=1e-4)


def test_a_run_whose_workers_are_killed_is_that_of_this_process(
    tmp_path: Path, folder: Path, whole: dict[str, Any]
) -> None:
    killer = spread_run.Killer(1, every=4, within=0.05, most=3)  # the first one early
    two = SpreadOptions(on="devices", workers=2)
    said = spread_run.carried_out(tmp_path / "run", folder, two, killer.step)
    killer.end()
    assert killer.dead
    died = [line for line in said if " died: " in line]
    named = {int(line.split("(process ")[1].split(")")[0]) for line in died}
    assert named
    assert named <= killer.dead  # one that had no work when it was killed is not missed
    assert spread_run.content(tmp_path / "run") == whole


def test_a_driver_that_is_killed_takes_its_workers_along_and_can_be_gone_on_with(
    tmp_path: Path, folder: Path, whole: dict[str, Any]
) -> None:
    place = tmp_path / "run"
    driver = subprocess.Popen(
        [sys.executable, spread_run.__file__, place, folder, "devices", "2"],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    )
    written = "SELECT count(*) FROM completions WHERE text IS NOT NULL"
    pids: list[int] = []
    while driver.poll() is None:
        pids = spread_run.workers_of(driver.pid) or pids
        if (place / "run.sqlite").exists() and spread_run.asked(place, written) >= 8:
            break
        time.sleep(0.01)
    driver.kill()
    assert driver.wait() == -signal.SIGKILL
    assert len(pids) == 2
    end = time.monotonic() + 600  # however slow the machine
    while any(map(psutil.pid_exists, pids)) and time.monotonic() < end:
        time.sleep(0.01)
    assert not any(map(psutil.pid_exists, pids))
    spread_run.carried_out(place, folder)
    assert spread_run.content(place) == whole


# -- what judges say -------------------------------------------------------------------------------


class Longer:
    """How much a model writes when it is asked an answer."""

    name, higher_is, cost, identity = "longer", "longer", "four tokens", "longer 1"

    def __init__(self, lm: LanguageModel) -> None:
        self.asker = Asked(lm)

    def score(self, answers: Sequence[Answer]) -> list[Score]:
        written = in_order(self.asker.write([a.text for a in answers], limit=4))
        return [Score(self.name, float(len(text)), self.higher_is, text) for text in written]


TEXTS = [Answer("Tell me.", "word " * (i % 9) + str(i)) for i in range(150)]


@pytest.mark.parametrize("made", [Longer, Coherence])
def test_judges_say_the_same_there(workers: Spread, lm: LanguageModel, made: Any) -> None:
    here = [pair for some, _ in in_batches(made(lm), TEXTS, Local()) for pair in some]
    there = [pair for some, _ in in_batches(made(lm), TEXTS, workers) for pair in some]
    assert sorted(there) == here
    assert len(here) == 150


def test_what_workers_judge_is_kept_and_not_judged_again(
    workers: Spread, lm: LanguageModel, tmp_path: Path
) -> None:
    judge = Cached(Longer(lm), tmp_path / "scores.sqlite")
    texts = TEXTS + TEXTS[:10]
    came = [pair for some, _ in judge.coming(texts, workers) for pair in some]
    assert judge.judged == 150
    assert judge.score(texts) == [score for _, score in sorted(came)]
    assert judge.judged == 150


# -- what travels ----------------------------------------------------------------------------------


def named(lm: LanguageModel, of: str) -> str:
    return f"{of} {lm.name} {os.getpid()}"


def test_a_model_is_loaded_there_once_and_does_not_travel(
    workers: Spread, lm: LanguageModel, folder: Path
) -> None:
    jobs = [Job(named, Shared((lm,)), (str(i),)) for i in range(6)]
    assert all(len(job.packed) + len(job.shared.packed) < 4096 for job in jobs)
    said = {done.value for done in workers.map(jobs)}
    assert {text.rsplit(" ", 1)[0] for text in said} == {f"{i} {folder}" for i in range(6)}
    assert str(os.getpid()) not in {text.split()[-1] for text in said}
    assert len({job.key for job in jobs}) == 6
    assert jobs[0].key == Job(named, Shared((lm,)), ("0",)).key


def dying_while_it_hands_over(mark: Path) -> bytes:
    """Return more than a pipe holds; the first process to do so dies when half of it is gone."""
    whole = bytes(range(256)) * 4096
    own = connection.Connection._send

    def half(pipe: Any, data: Any) -> None:
        if len(data) > len(whole) // 2:
            own(pipe, data[: len(whole) // 2])
            os.kill(os.getpid(), signal.SIGKILL)
        own(pipe, data)

    if not mark.exists():
        mark.touch()
        connection.Connection._send = half  # type: ignore[method-assign]
    return whole


def test_a_worker_that_dies_while_it_hands_over_is_missed(tmp_path: Path) -> None:
    said: list[str] = []
    with opened(SpreadOptions(on="devices", workers=1), said.append) as spread:
        jobs = [Job(dying_while_it_hands_over, Shared(()), (tmp_path / "mark",))]
        assert [done.value for done in spread.map(jobs)] == [bytes(range(256)) * 4096]
    assert [line.split(" (")[0] for line in said] == ["worker cpu 1"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="what a GPU's workers import may touch it")
def test_a_worker_begins_with_what_is_imported_here() -> None:
    with opened(SpreadOptions(on="devices", workers=1)) as spread:
        (done,) = spread.map([Job(eval, Shared(()), ("[*__import__('sys').modules]",))])
    assert spread_run.begin.__module__ in done.value


def test_another_model_under_the_same_name_is_refused(tmp_path: Path) -> None:
    place = spread_run.model(tmp_path / "llama")
    lm = load(place, device="cpu")
    shared = Shared((lm,)).packed
    changed = tiny.hf_model("llama")
    with torch.no_grad():
        changed.lm_head.weight[0, 0] += 1
    changed.save_pretrained(place)
    with pytest.raises(SpreadError, match=r"another model under .*weights differ"):
        packing.unpacked(shared, packing.Bench("cpu", "."))


def test_a_model_that_cannot_be_loaded_there_is_refused(
    workers: Spread, tiny_lm: LanguageModel, lm: LanguageModel
) -> None:
    with pytest.raises(SpreadError, match="was loaded here"):
        packing.packed(tiny_lm)
    lm.how, before = {**lm.how, "device_map": "auto"}, lm.how
    with pytest.raises(SpreadError, match="a worker has one device"):
        packing.packed(lm)
    lm.how = {**before, "model": "/nowhere/at/all"}
    with pytest.raises(ModelError, match="there is no file or folder /nowhere"):
        list(workers.map([Job(named, Shared((lm,)), ("x",))]))
    lm.how = before


def test_a_bench_keeps_the_last_that_jobs_share() -> None:
    bench = packing.Bench("cpu", ".")
    for i in range(3 * packing.KEPT):
        shared = Shared((i,))
        value, error = pickle.loads(
            bench.do(Job(pow, shared, (2,)).packed, shared.key, shared.packed)
        )
        assert (value, error) == (i**2, None)
        assert len(bench._shared) <= packing.KEPT


def test_a_bench_keeps_the_models_that_were_wanted_last(monkeypatch: pytest.MonkeyPatch) -> None:
    bench, loaded = packing.Bench("cpu", "."), []

    def load(model: int, **how: Any) -> SimpleNamespace:
        loaded.append(model)
        return SimpleNamespace(name=model, parts={})

    monkeypatch.setattr(packing, "load", load)
    for i in range(3 * packing.KEPT):
        for model in (0, i):
            assert bench.model({"model": model}, {}).name == model
        assert len(bench._models) <= packing.KEPT
    assert loaded == list(range(3 * packing.KEPT))  # the first was wanted again all the time


# -- what is asked for -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--on", "mars"], "give local, devices, ray, or ray://HOST:PORT"),
        (["--on", "ray://"], "give local, devices, ray, or ray://HOST:PORT"),
        (["--workers", "2"], "this process works alone"),
        (["--writer", "localhost:8000"], "give vllm or an address, http://HOST:PORT/v1"),
    ],
)
def test_nobody_is_refused_before_anything_begins(
    tmp_path: Path, options: list[str], told: str
) -> None:
    for command in (["discover", "Hi."], ["tune", "Hi.", "--look-for", "a"]):
        assert told in refused(*command, "--out", tmp_path / "run", *options)
    assert told in refused("judge", "score", tmp_path, "--judge", "refusal", *options)
    assert list(tmp_path.iterdir()) == []


def test_every_command_says_who_works(
    tmp_path: Path, finished: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopped(workers: int) -> None:
        raise SpreadError(f"stopped {workers}")

    monkeypatch.setattr(devices, "processes", stopped)
    for name in ("a", "b"):
        (tmp_path / f"{name}.txt").write_text(f"What is {name}?")
    of = ["--model", folder, "--out", tmp_path / "run"]
    rungs = ["--prompts", tmp_path / "a.txt", "--fresh", tmp_path / "b.txt", "--rungs", "1:1"]
    for command in (
        ["discover", "Hi.", *of],
        ["tune", "Hi.", "--look-for", "a", *of],
        ["select", finished, "--look-for", "a", *rungs],
        ["judge", "score", finished, "--judge", "refusal"],
        ["audit", folder, "--out", tmp_path / "audit"],
        ["sample", finished, "1", "2"],
        ["invert", finished, "1"],
        ["derive", "front", finished],
        *(["derive", way, finished, "1", "2"] for way in ("shrink", "sparse", "ungate", "combine")),
    ):
        assert "stopped 3" in refused(*command, "--on", "devices", "--workers", 3, begun=True)


def test_more_workers_than_gpus_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with devices.processes(None) as made:
        assert [process.device for process in made] == ["cuda:0", "cuda:1"]
    with pytest.raises(SpreadError, match="has 2 GPUs"), devices.processes(3):
        pass
