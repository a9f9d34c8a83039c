"""A run of a tiny model, made by whoever is asked, and read without educe to compare it."""

from __future__ import annotations

import os
import random
import signal
import sqlite3
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Timer
from typing import Any

import psutil
import torch
from safetensors.torch import load_file

import tiny
from educe.forward import generation
from educe.options import ALONE, SpreadOptions
from educe.progress import Advance, Silent
from educe.run.settings import Settings, begin
from educe.run.stages import discover_behaviours

#: Rows of a batch: many batches of a short run.
ROWS = {"cpu": 8}


def model(folder: Path) -> Path:
    """Save a tiny random chat model as transformers does."""
    tiny.hf_model("llama").save_pretrained(folder)
    tiny.tokenizer().save_pretrained(folder)
    return folder


def settings(folder: Path) -> Settings:
    return Settings(
        prompts=("Tell me.", "What is the code?"),
        fresh=("Say it.",),
        model=str(folder),
        device="cpu",
        n=3,
        radius="0.5x,1x",
        baseline=4,
        max_new_tokens=5,
        method_settings={"iterations": 3},
    )


class Told(Silent):
    """Keeps what is said, and tells of each step that workers did.

    Args:
        on_step: Is called when a worker has done some work: those steps have a note of its rate.
    """

    def __init__(self, on_step: Callable[[], None]) -> None:
        self.said: list[str] = []
        self.on_step = on_step

    @contextmanager
    def stage(self, title: str, total: int, unit: str = "") -> Iterator[Advance]:
        yield lambda steps=1, note="": self.on_step() if note else None

    def say(self, sentence: str) -> None:
        self.said.append(sentence)


class Killer:
    """Kills a worker of this process now and then, some time after work was done.

    Args:
        seed: Of what it draws.
        every: Steps of work from one kill to the next, on average.
        within: Seconds after the step, at most.
        most: Kills.
    """

    def __init__(self, seed: int, every: float, within: float, most: int) -> None:
        self.draw, self.every, self.within, self.most = random.Random(seed), every, within, most
        self.dead: set[int] = set()
        self.timers: list[Timer] = []

    def step(self) -> None:
        if self.draw.random() * self.every < 1 and len(self.dead) < self.most:
            self.timers.append(Timer(self.draw.uniform(0, self.within), self.kill))
            self.timers[-1].start()

    def kill(self) -> None:
        if alive := sorted(set(workers_of(os.getpid())) - self.dead):
            pid = self.draw.choice(alive)
            self.dead.add(pid)
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def end(self) -> None:
        for timer in self.timers:
            timer.join()


def workers_of(driver: int) -> list[int]:
    """Return the processes that work for another one: what its server of forks has made."""
    with suppress(psutil.NoSuchProcess):
        return [own.pid for one in psutil.Process(driver).children() for own in one.children()]
    return []


def carried_out(
    place: Path,
    folder: Path,
    who: SpreadOptions = ALONE,
    on_step: Callable[[], None] = lambda: None,
) -> list[str]:
    """Make the run, or go on with it; return what was said."""
    generation.ROWS_PER_BATCH, before = ROWS, generation.ROWS_PER_BATCH
    told = Told(on_step)
    try:
        with begin(place, settings(folder), resume=True) as run:
            discover_behaviours(run, reporter=told, spread=who)
    finally:
        generation.ROWS_PER_BATCH = before
    return told.said


def asked(place: Path, query: str) -> Any:
    """Return the first number of a query of a run."""
    database = sqlite3.connect(place / "run.sqlite")
    try:
        return database.execute(query).fetchone()[0]
    finally:
        database.close()


def kept(place: Path) -> int:
    """How much a run keeps, in rows."""
    if not (place / "run.sqlite").exists():
        return 0
    tables = ("prompts", "perturbations", "scores", "completions WHERE text IS NOT NULL", "meta")
    each = " + ".join(f"(SELECT count(*) FROM {table})" for table in tables)
    return int(asked(place, f"SELECT {each}"))


def content(place: Path) -> dict[str, Any]:
    """Everything that a run keeps, but for times and the order in which rows were kept."""
    database = sqlite3.connect(place / "run.sqlite")
    try:
        tables = {
            table: sorted(map(repr, database.execute(f"SELECT * FROM {table}")))
            for table in ("prompts", "perturbations", "completions", "scores")
        }
        keys = {key for (key,) in database.execute("SELECT key FROM meta")}
    finally:
        database.close()
    tensors = {
        file.name: {name: t.numpy().tobytes() for name, t in sorted(load_file(file).items())}
        for file in sorted((place / "tensors").iterdir())
    }
    return tables | {"meta": keys, "tensors": tensors}


if __name__ == "__main__":
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    place, folder, on, workers = sys.argv[1:]
    carried_out(Path(place), Path(folder), SpreadOptions(on=on, workers=int(workers)))
