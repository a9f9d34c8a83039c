"""The same run by Ray actors, though one is killed, or a whole node: `make test-ray`."""

from __future__ import annotations

import ast
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

import spread_audit
import spread_run
from educe.errors import SpreadError
from educe.model.loading import load
from educe.options import SpreadOptions
from educe.spread import Job, Shared, opened

ray = pytest.importorskip("ray")
from ray.cluster_utils import Cluster  # noqa: E402

pytestmark = pytest.mark.ray


@pytest.fixture(autouse=True)
def _known(monkeypatch: pytest.MonkeyPatch) -> None:
    """Actors know the modules that tests know, and get as much of a busy machine as the test."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("RAY_worker_niceness", "0")


@pytest.fixture
def nodes(_known: None) -> Iterator[Cluster]:
    """Two nodes of one core each, and a head that has none, on this machine."""
    small = {"object_store_memory": 80 * 2**20, "include_dashboard": False}
    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, **small})
    for _ in range(2):
        made.add_node(num_cpus=1, object_store_memory=small["object_store_memory"])
    made.wait_for_nodes()
    yield made
    made.shutdown()


def actors() -> list[int]:
    """The processes of this machine that are actors of educe."""
    named = [(p.pid, p.info["cmdline"]) for p in psutil.process_iter(["cmdline"])]
    return [pid for pid, line in named if line and line[0].startswith("ray::_Actor")]


def test_a_run_on_two_nodes_is_that_of_this_process_though_an_actor_and_then_a_node_die(
    tmp_path: Path, folder: Path, whole: dict[str, Any], nodes: Cluster
) -> None:
    steps, doomed, dead = 0, nodes.list_all_nodes()[-1], []

    def step() -> None:
        nonlocal steps
        steps += 1
        if steps in (4, 9) and (alive := actors()):
            dead.append(random.Random(steps).choice(alive))
            os.kill(dead[-1], signal.SIGKILL)
        if steps == 14:
            nodes.remove_node(doomed, allow_graceful=False)

    two = SpreadOptions(on=f"ray://{nodes.address}", workers=2)
    said = spread_run.carried_out(tmp_path / "run", folder, two, step)
    assert dead
    assert steps > 14
    assert len([line for line in said if " died: " in line]) >= 1, said
    assert spread_run.content(tmp_path / "run") == whole
    assert not ray.is_initialized()


#: Of the audits: texts by both models, words of a weight difference, strings that move answers.
SOURCES = ("weights", "prefill", "kl")


@pytest.fixture
def audit(
    tmp_path: Path, pair: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> dict[str, Any]:
    """What an audit keeps that this process makes, and nobody disturbs."""
    spread_audit.small(monkeypatch)
    kept, _ = spread_audit.audited(tmp_path / "here", pair, SOURCES, clean=True)
    assert kept["suspects:weights"]
    assert len(kept["completions"]) > 20
    return kept


def test_an_audit_on_two_nodes_is_that_of_this_process_though_a_node_dies(
    tmp_path: Path, pair: tuple[Path, Path], audit: dict[str, Any], nodes: Cluster
) -> None:
    steps, doomed = 0, nodes.list_all_nodes()[-1]

    def step() -> None:
        nonlocal steps
        steps += 1
        if steps == 12:
            nodes.remove_node(doomed, allow_graceful=False)

    told, two = spread_run.Told(step), SpreadOptions(on=f"ray://{nodes.address}", workers=2)
    there, _ = spread_audit.audited(
        tmp_path / "there", pair, SOURCES, clean=True, reporter=told, spread=two
    )
    assert steps > 20
    assert any(" died: " in line for line in told.said), told.said
    assert there == audit


def test_an_audit_whose_driver_is_killed_goes_on_where_it_was(
    tmp_path: Path, pair: tuple[Path, Path], audit: dict[str, Any], nodes: Cluster
) -> None:
    place, all_ = tmp_path / "there", spread_run.kept(tmp_path / "here")
    command = [sys.executable, spread_audit.__file__, place, *pair, ",".join(SOURCES)]
    command += [f"ray://{nodes.address}", "2"]
    for share in (3, 2):
        driver = subprocess.Popen(command)
        while driver.poll() is None and spread_run.kept(place) < all_ // share:
            time.sleep(0.02)
        driver.kill()
        assert driver.wait() == -signal.SIGKILL
    before = spread_run.kept(place)
    assert all_ // 2 <= before < all_
    subprocess.run(command, check=True)
    there = spread_audit.content(place)
    measured = ("scores", "findings")
    exact, known = ({k: v for k, v in own.items() if k not in measured} for own in (there, audit))
    assert exact == known
    for name in measured:
        assert_alike(there[name], audit[name])


def assert_alike(one: Any, other: Any) -> None:
    """Compare what was measured, up to rounding: it is cut into other batches after a kill."""
    assert type(one) is type(other)
    if isinstance(one, dict):
        assert one.keys() == other.keys()
        for name in one:
            assert_alike(one[name], other[name])
    elif isinstance(one, list | tuple):
        assert len(one) == len(other)
        for mine, its in zip(one, other, strict=True):
            assert_alike(mine, its)
    elif isinstance(one, str) and one.startswith("("):  # a row
        assert_alike(ast.literal_eval(one), ast.literal_eval(other))
    elif isinstance(one, float):
        assert one == pytest.approx(other, rel=1e-4, abs=1e-5)
    else:
        assert one == other


def length(lm: Any, text: str) -> tuple[int, int]:
    return len(text), lm.depth


def test_a_cluster_of_this_machine_begins_and_ends_with_the_work(folder: Path) -> None:
    lm = load(folder, device="cpu")
    shared = Shared((lm,))
    with opened(SpreadOptions(on="ray", workers=1)) as spread:
        jobs = [Job(length, shared, ("word" * i,)) for i in range(5)]
        assert sorted(done.value for done in spread.map(jobs)) == [(4 * i, 4) for i in range(5)]
    assert not ray.is_initialized()
    assert actors() == []


def test_more_workers_than_there_is_room_for_are_refused() -> None:
    with (
        pytest.raises(SpreadError, match=r"has .* cores, and each worker needs one"),
        opened(SpreadOptions(on="ray", workers=10**6)),
    ):
        pass
    assert not ray.is_initialized()


def test_no_cluster_is_one_sentence() -> None:
    with (
        pytest.raises(SpreadError, match=r"there is no Ray cluster at 127\.0\.0\.1:1"),
        opened(SpreadOptions(on="ray://127.0.0.1:1")),
    ):
        pass
