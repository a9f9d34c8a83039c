"""The same run by Ray actors, though one is killed, or a whole node: `make test-ray`."""

from __future__ import annotations

import os
import random
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

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
    """Actors know the modules that tests know."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


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
