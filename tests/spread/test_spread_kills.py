"""Two hundred kills at random instants: `make test-kills`, an hour on two cores.

Workers and drivers in turn; each run ends as one that nobody disturbed.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

import spread_run
from educe.errors import SpreadError
from educe.options import SpreadOptions

pytestmark = pytest.mark.slow

#: Kills of workers, and of drivers.
KILLS = int(os.environ.get("KILLS", 200))
WORKERS, DRIVERS = KILLS - KILLS // 4, KILLS // 4


def test_workers_killed_at_random(tmp_path: Path, folder: Path, whole: dict[str, Any]) -> None:
    killed = runs = stopped = 0
    while killed < WORKERS:
        place, n = tmp_path / str(runs), 2 + runs % 2
        ended = False
        while not ended:
            killer = spread_run.Killer(killed, every=4, within=0.3, most=WORKERS - killed)
            try:
                who = SpreadOptions(on="devices", workers=n)
                spread_run.carried_out(place, folder, who, killer.step)
                ended = True
            except SpreadError as error:  # the worker of one job was met again and again
                stopped += 1
                print(error, flush=True)
            killer.end()
            killed += len(killer.dead)
        runs += 1
        assert spread_run.content(place) == whole
        print(f"run {runs}: {killed} workers killed, stopped {stopped} times", flush=True)


def test_drivers_killed_at_random(tmp_path: Path, folder: Path, whole: dict[str, Any]) -> None:
    draw, killed, runs = random.Random(0), 0, 0
    while killed < DRIVERS:
        place, status = tmp_path / f"run {runs}", -1
        while status < 0:
            driver = subprocess.Popen(
                [sys.executable, spread_run.__file__, place, folder, "devices", "2"],
                env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
            )
            until = spread_run.kept(place) + draw.randint(
                1, 60
            )  # so each gets further, however slow it is
            while driver.poll() is None and spread_run.kept(place) < until:
                time.sleep(0.01)
            time.sleep(draw.uniform(0, 0.3))
            driver.send_signal(draw.choice([signal.SIGKILL, signal.SIGTERM]))
            status = driver.wait()
            killed += status < 0
        assert status == 0
        runs += 1
        assert spread_run.content(place) == whole
        print(f"run {runs}: {killed} drivers killed", flush=True)
