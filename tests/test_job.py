"""The main job: what it keeps, its control, and that a killed run ends as if nothing had happened."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import random
import re
import signal
import sqlite3
import subprocess
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open

import tiny
from educe import files, job
from educe.errors import MethodError, PromptError, RunError
from educe.job import Settings, begin, discover_behaviours
from educe.model import LanguageModel, load
from educe.runs import Run
from educe.summary import Summary

PROMPTS = ("Tell me.", "What is the code?")
TABLES = ("prompts", "perturbations", "completions", "readings", "scores", "behaviours", "responses")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random chat model as transformers saves one."""
    place = tmp_path_factory.mktemp("model") / "llama"
    tiny.hf_model("llama").save_pretrained(place)
    tiny.tokenizer().save_pretrained(place)
    return place


@pytest.fixture(scope="module")
def lm(folder: Path) -> LanguageModel:
    return load(folder, device="cpu")


@pytest.fixture(scope="module")
def settings(folder: Path) -> Settings:
    return Settings(
        prompts=PROMPTS,
        fresh=("Say it.", "The code, please."),
        model=str(folder),
        device="cpu",
        n=3,
        radius="0.5x,1x",
        max_new_tokens=5,
        method_settings={"iterations": 3},
    )


def carry_out(place: Path, settings: Settings, lm: LanguageModel, *, resume: bool = False) -> Summary:
    with begin(place, settings, resume=resume) as run:
        return discover_behaviours(run, lm=lm)


def rows(place: Path, query: str) -> list[tuple]:
    """Read the run's file without educe."""
    database = sqlite3.connect(place / "run.sqlite")
    try:
        return database.execute(query).fetchall()
    finally:
        database.close()


def content(place: Path) -> dict[str, Any]:
    """Everything a run holds but times, read without educe."""
    tables = {name: rows(place, f"SELECT * FROM {name} ORDER BY 1, 2, 3") for name in TABLES}
    meta = {key: json.loads(value) for key, value in rows(place, "SELECT * FROM meta")}
    meta.pop("seconds", None)
    meta.get("facts", {}).pop("seconds", None)
    return tables | {"meta": meta} | {p.name: tensors(p) for p in (place / "tensors").iterdir()}


def tensors(file: Path) -> list[tuple[str, Any]]:
    """A safetensors file's header and tensors, bit for bit; the order of its header is chance."""
    with safe_open(file, framework="np") as opened:
        header = sorted((opened.metadata() or {}).items())
        return header + [(name, opened.get_tensor(name).tobytes()) for name in sorted(opened.keys())]


def same(a: dict[str, Any], b: dict[str, Any]) -> None:
    """Fail with what differs, rather than with two runs."""
    assert a.keys() == b.keys()
    for name in a:
        if a[name] != b[name]:
            both = a[name], b[name]
            pytest.fail(f"{name}: {[p for p in zip(*both) if p[0] != p[1]][:3]!r:.1500}, {[*map(len, both)]}")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, settings: Settings, lm: LanguageModel) -> Path:
    """The run of ``settings``, uninterrupted."""
    place = tmp_path_factory.mktemp("whole") / "run"
    carry_out(place, settings, lm)
    return place


# -- being killed ----------------------------------------------------------------------------------


class Killed(BaseException):
    """Stands for the end of the process; nothing in educe may catch it and go on."""


class Killer:
    """Ends an attempt once it has left something new in the run: after it, or inside the next."""

    def __init__(self, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.place, self.inside, self.before = place, False, None
        monkeypatch.setattr(job, "SAVE_EVERY", -1.0)
        writing, write_bytes = Run.writing, files.write_bytes

        @contextmanager
        def killed_writing(run: Run) -> Iterator[None]:
            with writing(run):
                yield
                self.check(inside=True)
            self.check()

        def killed_write_bytes(path: Path, written: bytes) -> None:
            self.check(inside=True)
            write_bytes(path, written)
            self.check()

        monkeypatch.setattr(Run, "writing", killed_writing)
        monkeypatch.setattr(files, "write_bytes", killed_write_bytes)

    def state(self) -> Any:
        counts = [rows(self.place, f"SELECT count(*) FROM {name}") for name in (*TABLES, "meta")]
        return counts, {p.name: hashlib.md5(p.read_bytes()).hexdigest() for p in self.place.glob("tensors/*")}

    def arm(self, *, inside: bool) -> None:
        self.inside, self.before = inside, self.state()

    def check(self, *, inside: bool = False) -> None:
        if self.before is not None and inside == self.inside and self.state() != self.before:
            raise Killed


def test_a_run_killed_after_every_step_equals_an_uninterrupted_one(
    tmp_path: Path,
    settings: Settings,
    lm: LanguageModel,
    whole: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    place, asked_for, lives = tmp_path / "run", [], 0
    monkeypatch.setattr("educe.generate.ROWS_PER_BATCH", {"cpu": 8})
    begin(place, settings).close()
    killer = Killer(place, monkeypatch)
    for lives in range(200):
        killer.arm(inside=lives % 2 == 1)
        try:
            carry_out(place, settings, lm, resume=True)
            break
        except Killed:
            continue
    print(lives)
    same(content(place), content(whole))
