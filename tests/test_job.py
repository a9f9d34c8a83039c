"""The main job: what it keeps, its control, and that a killed run ends as if nothing had happened.

Runs are compared table by table and tensor by tensor, bit for bit, read without educe.
"""

from __future__ import annotations

import hashlib
import io
import itertools
import json
import os
import random
import re
import shlex
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console
from safetensors import safe_open

import read_document
import tiny
from educe import files, methods
from educe.comparison.summary import Summary, summarise
from educe.errors import (
    BlockedError,
    EduceError,
    FileFormatError,
    MethodError,
    ModelError,
    PromptError,
    RunError,
)
from educe.forward import generation
from educe.forward.benign import ordinary_prompts
from educe.forward.slice import Slice
from educe.layer_map import LayerMap, LayerMapConfig
from educe.layer_map.choice import choose, promising, thinned
from educe.layer_map.survey import survey
from educe.model.language import LanguageModel
from educe.model.loading import load
from educe.perturbation.set import PerturbationSet
from educe.report import page, terminal
from educe.rows import Row
from educe.run import fill
from educe.run.fill import groups
from educe.run.settings import Settings, begin, encoded, stored
from educe.run.stages import discover_behaviours, searching
from educe.run.store import Run
from educe.run.work import at_work
from read_document import charts, part

PROMPTS = ("Tell me.", "What is the code?")
FRESH = ("Say it.", "The code, please.")
TABLES = ("prompts", "perturbations", "completions", "scores")


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
        fresh=FRESH,
        model=str(folder),
        device="cpu",
        n=3,
        radius="0.5x,1x",
        baseline=2,
        max_new_tokens=5,
        method_settings={"iterations": 3},
    )


def carry_out(
    place: Path, settings: Settings, lm: LanguageModel | None, *, resume: bool = False
) -> Summary:
    with begin(place, settings, resume=resume) as run:
        return discover_behaviours(run, lm=lm)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, settings: Settings, lm: LanguageModel) -> Path:
    """The run of ``settings``, uninterrupted."""
    place = tmp_path_factory.mktemp("whole") / "run"
    carry_out(place, settings, lm)
    return place


# -- reading a run without educe -------------------------------------------------------------------


def rows(place: Path, query: str) -> list[tuple]:
    database = sqlite3.connect(place / "run.sqlite")
    try:
        return database.execute(query).fetchall()
    finally:
        database.close()


def note(place: Path, key: str) -> Any:
    return json.loads(rows(place, f"SELECT value FROM meta WHERE key = '{key}'")[0][0])


def arrays(file: Path) -> dict[str, np.ndarray]:
    with safe_open(file, framework="np") as opened:
        return {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118


def header(file: Path) -> dict[str, str]:
    with safe_open(file, framework="np") as opened:
        return opened.metadata()


def vectors(place: Path) -> dict[int, torch.Tensor]:
    """What each perturbation adds, from the tensor files."""
    of_file = {p.name: arrays(p) for p in (place / "tensors").glob("*.safetensors")}
    return {
        number: torch.from_numpy(
            of_file[file]["vectors"][item] * of_file[file]["radius"][item]
        ).float()
        for number, file, item in rows(
            place, "SELECT id, file, item FROM perturbations WHERE parent IS NULL"
        )
    }


def content(place: Path) -> dict[str, Any]:
    """Everything a run holds but times; the order inside a header of safetensors is chance."""
    tables = {name: sorted(rows(place, f"SELECT * FROM {name}"), key=repr) for name in TABLES}
    meta = {key: json.loads(value) for key, value in rows(place, "SELECT * FROM meta")}
    for times in ("began", "seconds"):
        meta.pop(times, None)
    meta.get("facts", {}).pop("seconds", None)
    tensors = {
        p.name: [*sorted(header(p).items()), *((n, a.tobytes()) for n, a in arrays(p).items())]
        for p in (place / "tensors").iterdir()
    }
    return tables | {"meta": meta} | tensors


def same(a: dict[str, Any], b: dict[str, Any]) -> None:
    """Fail with what differs, rather than with two runs."""
    assert a.keys() == b.keys()
    for name in a:
        if a[name] != b[name]:
            both = list(zip(a[name], b[name], strict=False))
            differ = [pair for pair in both if pair[0] != pair[1]][:3]
            pytest.fail(f"{name}: {len(a[name])} and {len(b[name])} rows, {differ!r:.1500}")


# -- being killed, at every step -------------------------------------------------------------------

COUNTS = "SELECT count(text), " + ", ".join(
    f"(SELECT count(*) FROM {name})" for name in (*TABLES, "meta")
)
COUNTS += " FROM completions"


class Killed(BaseException):
    """Stands for the end of the process; nothing in educe may catch it and go on."""


class Killer:
    """Ends an attempt once it has left something new in the run: after it, or inside the next."""

    def __init__(self, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.place, self.inside, self.before = place, False, None
        writing, write_bytes = Run.writing, files.write_bytes

        @contextmanager
        def killed_writing(run: Run) -> Iterator[None]:
            with writing(run):
                yield
                self.check(inside=True)
            self.check(inside=False)

        def killed_write_bytes(path: Path, written: bytes) -> None:
            try:
                self.check(inside=True)
            except Killed:
                path.with_name(f".{path.name}.half").write_bytes(written[: len(written) // 2])
                raise
            write_bytes(path, written)
            self.check(inside=False)

        monkeypatch.setattr(Run, "writing", killed_writing)
        monkeypatch.setattr(files, "write_bytes", killed_write_bytes)
        monkeypatch.setattr(searching, "SAVE_EVERY", -1.0)

    def state(self) -> Any:
        counts = rows(self.place, COUNTS)
        digest = {
            p.name: hashlib.md5(p.read_bytes()).digest() for p in self.place.glob("tensors/*")
        }
        return counts, digest

    def arm(self, *, inside: bool) -> None:
        self.inside, self.before = inside, self.state()

    def disarm(self) -> None:
        self.before = None

    def check(self, *, inside: bool) -> None:
        if self.before is not None and inside == self.inside and self.state() != self.before:
            raise Killed


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({}, id="dct"),
        pytest.param(
            {
                "method": "melbo",
                "method_settings": {"steps": 3},
                "positions": "last:2",
                "over": "each",
                "radius": "8",
                "samples": 2,
                "temperature": 0.8,
                "fresh": (),
            },
            id="melbo-over-each-sampled-without-fresh-prompts",
        ),
        pytest.param({"source": "auto", "target": "auto", "radius": "8"}, id="auto"),
        pytest.param(
            {"method": "dct-linear", "method_settings": {"steps": 3}, "radius": "8"},
            id="dct-linear",
        ),
        pytest.param(
            {
                "method": "cpe",
                "method_settings": {"iterations": 2, "blocks": 1},
                "radius": "0.5x",
            },
            id="cpe",
        ),
        pytest.param(
            {"method": "noise", "method_settings": {"per": "token"}, "radius": "0.5x"},
            id="token-noise",
        ),
        pytest.param(
            {"method": "noise", "method_settings": {"per": "weights"}, "radius": "0.5x"},
            id="weight-noise",
        ),
    ],
)
def test_a_run_killed_at_every_step_equals_an_uninterrupted_one(
    tmp_path: Path,
    settings: Settings,
    lm: LanguageModel,
    monkeypatch: pytest.MonkeyPatch,
    changes: dict[str, Any],
) -> None:
    settings = replace(settings, n=2, **changes)
    monkeypatch.setattr(generation, "ROWS_PER_BATCH", {"cpu": 8})
    monkeypatch.setattr("educe.run.settings.ELSEWHERE_PROMPTS", 1)
    monkeypatch.setattr("educe.run.chosen.CHOSEN", 2)
    whole, place = tmp_path / "whole", tmp_path / "run"
    carry_out(whole, settings, lm)

    generate, written = fill.generate, 0

    def counted(model: LanguageModel, batch: Any, wanted: Sequence[Any], *a: Any, **k: Any) -> Any:
        nonlocal written
        assert set(rows(place, WRITTEN)).isdisjoint(wanted)
        for some in generate(model, batch, wanted, *a, **k):
            written += len(some)
            yield some

    monkeypatch.setattr(fill, "generate", counted)
    begin(place, settings).close()
    killer, lives, lost, shown = Killer(place, monkeypatch), 0, 0, set()
    while lives < 200:
        killer.arm(inside=lives % 2 == 1)
        lives += 1
        try:
            carry_out(place, settings, lm, resume=True)
            break
        except Killed:
            killer.disarm()
            lost += lives % 2 == 0
            if (kind := str([rows(place, query) for query in KIND])) not in shown:
                shown.add(kind)
                check_that_it_can_be_shown(place)
    assert 20 < lives < 200
    same(content(place), content(whole))
    kept = len(rows(place, WRITTEN))
    assert kept <= written <= kept + 8 * lost  # nothing twice but a batch that was in flight


def test_two_processes_do_not_work_on_one_run(
    tmp_path: Path, settings: Settings, lm: LanguageModel, whole: Path
) -> None:
    place = tmp_path / "run"
    begin(place, settings).close()
    with begin(place, settings, resume=True) as first, at_work(first, lm):
        with pytest.raises(BlockedError, match="another process is at work"):
            carry_out(place, settings, lm, resume=True)
        assert rows(place, WRITTEN) == []
    carry_out(place, settings, lm, resume=True)
    same(content(place), content(whole))


def test_a_clock_that_jumps_changes_nothing(
    tmp_path: Path,
    settings: Settings,
    lm: LanguageModel,
    whole: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    jumps = itertools.cycle([2e9, 0.0, 1e9])
    monkeypatch.setattr(time, "time", lambda: next(jumps))
    carry_out(tmp_path / "run", settings, lm)
    same(content(tmp_path / "run"), content(whole))
    with Run.open(tmp_path / "run") as run:
        assert all(seconds >= 0 for seconds in run.note("seconds").values())


# What there is of a run; states that differ only in how much of it are of one kind.
KIND = (
    "SELECT DISTINCT role FROM prompts",
    "SELECT DISTINCT arm, how FROM perturbations",
    "SELECT DISTINCT phase, perturbation > 0, text IS NULL FROM completions",
    "SELECT DISTINCT judge FROM scores",
    "SELECT key FROM meta",
)
ASKED = "SELECT rendered FROM prompts ORDER BY id"
WRITTEN = "SELECT perturbation, prompt, sample, phase FROM completions WHERE text IS NOT NULL"


def check_that_it_can_be_shown(place: Path) -> None:
    """Whatever is there of a run is a summary, and a table."""
    with Run.open(place) as run:
        summary = summarise(run)
        if run.has("facts"):
            console = Console(file=io.StringIO(), width=80)
            terminal.table(summary, place, console)
            terminal.perturbation(summary, 0, console)
            for item in summary.found[:1]:
                terminal.perturbation(summary, item.row.id, console)


def test_a_finished_run_has_nothing_left_to_do(
    tmp_path: Path,
    settings: Settings,
    lm: LanguageModel,
    whole: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    before = content(whole)
    names = ("fill.generate", "fill.ordinary_logprob", "fill.read", "chosen.side_effects")
    for name in (*names, "scaling.response"):
        monkeypatch.setattr(f"educe.run.{name}", lambda *_, **__: pytest.fail("it does it again"))
    monkeypatch.setattr(methods, "search", lambda *_, **__: pytest.fail("it searches again"))
    carry_out(whole, settings, lm, resume=True)
    same(content(whole), before)


def test_what_is_derived_later_takes_no_part(
    tmp_path: Path, settings: Settings, lm: LanguageModel, whole: Path
) -> None:
    place = tmp_path / "run"
    shutil.copytree(whole, place)
    with Run.open(place) as run, at_work(run, lm) as work:
        before, behaviours = summarise(run), run.score_rows("behaviour")
        derived = run.perturbation_rows(derived=True)
        known = {c.row for c in run.completion_rows()}
        later = [Row(p.id, prompt) for p in derived[:3] for prompt in work.prompts("asked")]
        later.append(Row(0, 0, 99))
        run.ask(later, 0.0)
        fill.fill(work)
        assert {c.row for c in run.completion_rows()} - known == set(later)
        assert {s.of for s in run.score_rows("novelty")} >= set(later[:-1])
    after = carry_out(place, settings, lm, resume=True)
    assert (after.found, after.control) == (before.found, before.control)
    with Run.open(place) as run:
        assert run.score_rows("behaviour") == behaviours


# -- being killed, for real ------------------------------------------------------------------------

# A process that has done its imports and becomes a command, again and again.
BROOD = """
import json, os, signal, sys, traceback
import torch
torch.set_num_threads(1)
from educe.forward import generation
from educe import cli, progress, threads
from educe.model import loading
from educe.run import searching
from educe.report import page, terminal
searching.SAVE_EVERY = 0
generation.ROWS_PER_BATCH = {"cpu": 8}
loading.load(sys.argv[1], device="cpu")
print("ready", flush=True)
for line in sys.stdin:
    arguments, out, err = json.loads(line)
    child = os.fork()
    if not child:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        for number, name in ((1, out), (2, err)):
            os.dup2(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
        status = 1
        try:
            cli.main(arguments)
        except SystemExit as end:
            status = end.code
        except BaseException:
            traceback.print_exc()
        sys.stdout.flush(), sys.stderr.flush()
        os._exit(status)
    print(child, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


class Command:
    """An ``educe`` command in a process of its own."""

    def __init__(self, brood: subprocess.Popen, place: Path, arguments: Sequence[str]) -> None:
        self.brood, self.place = brood, place
        self.files = [str(place.parent / f"{place.name}.{name}") for name in ("out", "err")]
        brood.stdin.write(json.dumps([list(map(str, arguments)), *self.files]) + "\n")
        brood.stdin.flush()
        self.pid = int(brood.stdout.readline())

    def status(self) -> int:
        """Wait for its end."""
        return int(self.brood.stdout.readline())

    def alive(self) -> bool:
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return False
        return True

    def send(self, number: int) -> int:
        """Send it a signal, unless it has ended, and return how it ended."""
        with suppress(ProcessLookupError):
            os.kill(self.pid, number)
        return self.status()

    @property
    def told(self) -> str:
        return Path(self.files[1]).read_text()


Commanded = Callable[[Path, Sequence[str]], Command]


@pytest.fixture(scope="module")
def command(folder: Path) -> Iterator[Commanded]:
    if not hasattr(os, "fork"):
        pytest.skip("processes do not fork here")
    brood = subprocess.Popen(
        [sys.executable, "-c", BROOD, folder],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
    )
    assert brood.stdout.readline() == "ready\n"
    yield lambda place, arguments: Command(brood, place, arguments)
    brood.stdin.close()
    brood.stdout.close()
    brood.kill()
    brood.wait()


@pytest.fixture(scope="module")
def asked(folder: Path) -> list[str]:
    """What the commands are asked."""
    fresh = folder.parent / "fresh.txt"
    fresh.write_text("\n".join(FRESH))
    options = f"--model {folder} --device cpu -n 3 --radius 0.5x,1x --max-new-tokens 5"
    options += " --baseline 2 --set iterations=3"
    return ["discover", *PROMPTS, *options.split(), "--fresh", str(fresh)]


@pytest.fixture(scope="module")
def commanded(
    tmp_path_factory: pytest.TempPathFactory, command: Commanded, asked: list[str]
) -> Path:
    """The run of the command, uninterrupted."""
    place = tmp_path_factory.mktemp("commanded") / "run"
    done = command(place, [*asked, "--out", place])
    assert done.status() == 0, done.told
    return place


def waited(place: Path, query: str, process: Callable[[], bool]) -> None:
    """Wait until a query of the run gives something, or the process has ended."""
    end = time.monotonic() + 600  # a test that hangs ends; however slow the machine, none other
    while time.monotonic() < end and process():
        if (place / "run.sqlite").exists() and rows(place, query):
            return
        time.sleep(0.001)


def test_the_command_and_the_api_make_the_same_run(
    tmp_path: Path, commanded: Path, settings: Settings, lm: LanguageModel
) -> None:
    """Another process, too, and other batches: nothing depends on either."""
    carry_out(tmp_path / "run", settings, lm)
    same(content(tmp_path / "run"), content(commanded))
    assert (commanded / "report.html").stat().st_size > 1000


STAGES = [
    "SELECT 1 FROM prompts",
    "SELECT 1 FROM perturbations",
    f"{WRITTEN} AND perturbation > 0",
    "SELECT 1 FROM scores WHERE judge = 'logprob'",
    "SELECT 1 FROM scores WHERE judge = 'behaviour'",
    f"{WRITTEN} AND phase = 'retest'",
    "SELECT 1 FROM scores WHERE judge = 'side_effect'",
]


def test_a_command_killed_in_every_stage_equals_an_uninterrupted_one(
    tmp_path: Path, command: Commanded, asked: list[str], commanded: Path
) -> None:
    place, ends = tmp_path / "run", []
    for query in STAGES:
        running = command(place, [*asked, "--out", place, "--resume"])
        waited(place, query, running.alive)
        ends.append(running.send(signal.SIGKILL))
    assert ends.count(-signal.SIGKILL) >= 5, ends
    done = command(place, ["discover", "--out", place, "--resume"])
    assert done.status() == 0, done.told
    same(content(place), content(commanded))


def test_a_command_killed_at_random_equals_an_uninterrupted_one(
    tmp_path: Path, command: Commanded, asked: list[str], commanded: Path
) -> None:
    written = "(SELECT count(text) FROM completions) + (SELECT count(*) FROM scores)"
    ((total,),) = rows(commanded, f"SELECT {written}")
    place, ends = tmp_path / "run", []
    for count in sorted(random.Random(0).sample(range(1, total), 6)):
        running = command(place, [*asked, "--out", place, "--resume"])
        waited(place, f"SELECT 1 WHERE {written} >= {count}", running.alive)
        ends.append(running.send(signal.SIGKILL))
        assert ends[-1] in (0, -signal.SIGKILL), running.told
    assert -signal.SIGKILL in ends
    done = command(place, [*asked, "--out", place, "--resume"])
    assert done.status() == 0, done.told
    same(content(place), content(commanded))


def test_the_real_command_killed_from_outside(
    tmp_path: Path, command: Commanded, asked: list[str], commanded: Path
) -> None:
    place = tmp_path / "run"
    running = subprocess.Popen(
        [sys.executable, "-c", "from educe.cli import main; main()", *asked, "--out", place],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        env=os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
    )
    waited(place, STAGES[2], lambda: running.poll() is None)
    running.kill()
    running.stderr.close()
    assert running.wait() == -signal.SIGKILL
    assert 0 < len(rows(place, WRITTEN)) < len(rows(commanded, WRITTEN))
    done = command(place, ["discover", "--out", place, "--resume"])
    assert done.status() == 0, done.told
    same(content(place), content(commanded))


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_is_one_line_that_says_how_to_go_on(
    tmp_path: Path, command: Commanded, asked: list[str], commanded: Path, how: signal.Signals
) -> None:
    place = tmp_path / "a run"
    running = command(place, [*asked, "--out", place])
    waited(place, STAGES[2], running.alive)
    assert running.send(how) == 130
    assert "Traceback" not in running.told
    (line,) = [line for line in running.told.splitlines() if line.startswith("educe:")]
    assert running.told.endswith(f"{line}\n")
    hint = shlex.split(line.partition("go on with: ")[2])
    assert hint == ["educe", "discover", "--resume", "--out", str(place)]
    done = command(place, hint[1:])
    assert done.status() == 0, done.told
    same(content(place), content(commanded))


# -- the same, and not the same --------------------------------------------------------------------


def test_the_same_seed_gives_the_same_run_and_another_seed_others(
    tmp_path: Path, settings: Settings, lm: LanguageModel, whole: Path
) -> None:
    carry_out(tmp_path / "same", settings, lm)
    same(content(tmp_path / "same"), content(whole))
    carry_out(tmp_path / "other", replace(settings, seed=1), lm)
    for file in sorted((whole / "tensors").iterdir()):
        mine, other = arrays(file), arrays(tmp_path / "other" / "tensors" / file.name)
        likeness = np.abs(mine["vectors"] @ other["vectors"].T)
        assert likeness.max() < 0.999, file.name
    baseline = "SELECT text FROM completions WHERE perturbation = 0 AND sample > 0"
    assert rows(whole, baseline) != rows(tmp_path / "other", baseline)


def test_resuming_with_other_settings_is_refused(
    whole: Path, settings: Settings, lm: LanguageModel
) -> None:
    before = content(whole)
    changes = {"n": 4, "seed": 1, "prompts": PROMPTS[:1], "look_for": "x", "positions": "last:1"}
    for name, value in changes.items():
        with pytest.raises(RunError, match="other settings") as caught:
            begin(whole, replace(settings, **{name: value}), resume=True)
        assert "\n" not in str(caught.value)
    with pytest.raises(RunError, match="--resume"):
        begin(whole, settings)
    same(content(whole), before)


def test_resuming_where_nothing_has_begun_begins(
    tmp_path: Path, settings: Settings, whole: Path
) -> None:
    """The model is loaded by the name that the settings give."""
    carry_out(tmp_path / "run", settings, None, resume=True)
    same(content(tmp_path / "run"), content(whole))


def test_messages_are_kept_and_compared(tmp_path: Path, settings: Settings) -> None:
    spoken = [{"role": "user", "content": "Hi."}, {"role": "assistant", "content": "The"}]
    settings = replace(settings, prompts=(spoken, "Hi."), fresh=(spoken[:1],))
    begin(tmp_path / "run", settings).close()
    with begin(tmp_path / "run", settings, resume=True) as run:
        assert stored(run) == settings
        assert run.config == json.loads(json.dumps(asdict(settings)))


def test_a_run_whose_method_had_another_name_is_read(tmp_path: Path, settings: Settings) -> None:
    now = replace(settings, method="tokens", method_settings={"words": 9})
    with begin(tmp_path / "run", now) as run:
        run.remember("config", asdict(now) | {"method": "words"})
    with begin(tmp_path / "run", now, resume=True) as run:
        assert stored(run) == now
    with pytest.raises(MethodError, match="method 'words' is unknown"):
        replace(now, method="words").check()


@pytest.mark.parametrize(
    ("changes", "kind"),
    [
        ({"prompts": ()}, PromptError),
        ({"method": "pca"}, MethodError),
        ({"method_settings": {"itrations": 3}}, MethodError),
        ({"n": 0}, MethodError),
        ({"samples": 0}, MethodError),
        ({"max_new_tokens": 0}, MethodError),
        ({"samples": 2}, MethodError),
        ({"temperature": -0.1}, MethodError),
        ({"temperature": float("nan")}, MethodError),
        ({"temperature": float("inf")}, MethodError),
        ({"look_for": "(code"}, MethodError),
        ({"given": "nowhere.safetensors"}, FileFormatError),
        ({"control": "nowhere.safetensors"}, MethodError),
    ],
)
def test_settings_that_cannot_work_leave_nothing_behind(
    tmp_path: Path, settings: Settings, changes: dict[str, Any], kind: type[EduceError]
) -> None:
    with pytest.raises(kind):
        begin(tmp_path / "run", replace(settings, **changes))
    assert not (tmp_path / "run").exists()


# -- what is in a run ------------------------------------------------------------------------------


def test_the_facts(whole: Path, lm: LanguageModel) -> None:
    facts = note(whole, "facts")
    assert (facts["source"], facts["target"]) == (1, 2)  # 0.33 and 0.6 of four blocks
    assert (facts["depth"], facts["width"]) == (4, 32)
    radius = facts["calibrated_radius"]
    assert facts["radii"] == [0.5 * radius, radius]
    assert facts["calibrated_dose"] == pytest.approx(radius / facts["median_norm"])
    low, high = facts["calibrated_interval"]
    assert low < radius < high
    assert low * high == pytest.approx(radius**2)
    for (kept,) in rows(whole, ASKED):
        assert kept.startswith("<|user|>")
        assert kept.endswith("<|assistant|>")
    lengths = [len(json.loads(r[0]).encode()) for r in rows(whole, "SELECT content FROM prompts")]
    tokens = [r[0] for r in rows(whole, "SELECT tokens FROM prompts ORDER BY id")]
    # Bytes are tokens, and three are special.
    assert sorted(tokens) == sorted(n + 3 for n in lengths)
    assert 0 < note(whole, "began") < time.time()


def brute_force(
    hf: Any, tokenizer: Any, place: Path, positions: str, steps: int
) -> Iterator[tuple[list[int], list[int]]]:
    """What perturbed models wrote in a run, and the same token by token with a hook."""
    source, added = note(place, "facts")["source"], vectors(place)
    rendered = [r[0] for r in rows(place, ASKED)]
    for number, prompt, tokens in rows(
        place,
        "SELECT perturbation, prompt, tokens FROM completions WHERE perturbation % 3 = 1 "
        "AND phase = 'first'",
    ):
        ids = tokenizer(rendered[prompt], add_special_tokens=False)["input_ids"]
        expected = tiny.greedy(
            hf,
            ids,
            steps,
            source=source,
            vector=added[number],
            positions=positions,
            ends={tiny.TOKENS["eos_token_id"]},
        )
        yield json.loads(tokens), expected


def test_what_is_kept_is_what_the_perturbed_model_writes(
    whole: Path, lm: LanguageModel, tokenizer: Any
) -> None:
    pairs = list(brute_force(lm.hf, tokenizer, whole, "all", 5))
    assert len(pairs) == 8
    assert len({tuple(tokens) for tokens, _ in pairs}) > 2
    for written, expected in pairs:
        assert written == expected


@torch.no_grad()
def test_effects_are_those_of_the_perturbed_model(
    whole: Path, lm: LanguageModel, tokenizer: Any
) -> None:
    facts, added = note(whole, "facts"), vectors(whole)
    rendered = [r[0] for r in rows(whole, f"{ASKED} LIMIT 2")]
    for number, effect in rows(whole, "SELECT id, effect FROM perturbations WHERE parent IS NULL"):
        moved = []
        for text in rendered:
            ids = tokenizer(text, add_special_tokens=False)["input_ids"]
            at = torch.ones(len(ids))
            _, plain = tiny.run(lm.hf, ids)
            _, other = tiny.run(lm.hf, ids, source=facts["source"], vector=added[number], at=at)
            moved.append((other[facts["target"]] - plain[facts["target"]])[-3:].mean(0))
        assert effect == pytest.approx(float(torch.stack(moved).mean(0).norm()), rel=1e-3)


@torch.no_grad()
def test_side_effects_are_those_of_the_perturbed_model(
    whole: Path, lm: LanguageModel, tokenizer: Any
) -> None:
    added, source = vectors(whole), note(whole, "facts")["source"]
    texts = [lm.render(prompt) for prompt in ordinary_prompts()]
    ids = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
    plain = [tiny.run(lm.hf, one)[0][-1].log_softmax(-1) for one in ids]
    kept = rows(whole, "SELECT perturbation, value FROM scores WHERE judge = 'side_effect'")
    for number, value in kept[:1] + kept[-1:]:
        kl = []
        for one, before in zip(ids, plain, strict=True):
            at = torch.ones(len(one))
            after, _ = tiny.run(lm.hf, one, source=source, vector=added[number], at=at)
            kl.append(float((before.exp() * (before - after[-1].log_softmax(-1))).sum()))
        assert value == pytest.approx(np.mean(kl), rel=1e-3, abs=1e-6)
    assert kept[0][1] != pytest.approx(kept[-1][1])


def test_response_curves_are_the_effects_at_their_radii(whole: Path, lm: LanguageModel) -> None:
    with Run.open(whole) as run:
        derived = run.perturbation_rows(derived=True)
        radii = {p.radius for p in derived}
        settings, facts = stored(run), run.note("facts")
        batch = encoded(lm, settings, settings.prompts)
        part = Slice(lm, batch, source=facts["source"], target=facts["target"])
        found = {
            number: float(size)
            for group in groups(run, [p.id for p in derived])
            for number, size in zip(
                group.numbers, part.on(group.kind).effect(group.theta).norm(dim=1), strict=True
            )
        }
    assert {p.id: p.effect for p in derived} == pytest.approx(found, rel=1e-4)
    ends = [share * max(facts["radii"]) for share in (0.05, 2.0)]
    assert [min(radii), max(radii)] == pytest.approx(ends)
    assert len({p.parent for p in derived}) > 2


def test_the_control_is_matched_and_goes_through_the_same_selection(
    tmp_path: Path, settings: Settings, lm: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("educe.run.chosen.CHOSEN", 4)
    monkeypatch.setattr("educe.run.chosen.CURVES", 1)
    place = tmp_path / "run"
    summary = carry_out(place, settings, lm)
    listed = defaultdict(list)
    for arm, method, radius, dose in rows(
        place, "SELECT arm, method, radius, dose FROM perturbations WHERE parent IS NULL"
    ):
        listed[arm].append((radius, dose))
        assert method == ("dct" if arm == "found" else "random")
    assert listed["found"] == listed["control"]
    assert [n for _, n in sorted(Counter(r for r, _ in listed["found"]).items())] == [3, 3]
    for radius, dose in listed["found"]:
        assert dose == pytest.approx(radius / note(place, "facts")["median_norm"])
    assert all(v.norm() > 0 for v in vectors(place).values())
    every = torch.stack(list(vectors(place).values()))
    alike = torch.nn.functional.cosine_similarity(every[:, None], every[None], dim=-1)
    assert (alike - torch.eye(len(every))).abs().max() < 0.9999  # none is another's copy

    # As many texts of each arm, in answer to the fresh prompts and to other requests alike.
    per_arm = (
        "SELECT p.arm, count(*) FROM completions c JOIN perturbations p ON p.id = c.perturbation "
        "JOIN prompts q ON q.id = c.prompt WHERE c.phase = '{}' AND q.role = '{}' "
        "AND p.arm != 'equal effect' GROUP BY 1 ORDER BY 1"
    )
    others = len(rows(place, "SELECT id FROM prompts WHERE role = 'elsewhere'"))
    for phase, role, each in (
        ("first", "asked", 12),
        ("retest", "fresh", 8),
        ("retest", "elsewhere", 4 * others),
    ):
        expected = [("control", each), ("found", each)]
        assert rows(place, per_arm.format(phase, role)) == expected
    # Which they are, is tested on texts with known behaviours (tests/test_chosen.py).
    expected = note(place, "chosen")
    arms = dict(rows(place, "SELECT id, arm FROM perturbations"))
    assert [arms[n] for n in expected[:8]] == ["found"] * 4 + ["control"] * 4
    assert {arms[n] for n in expected[8:]} <= {"equal effect"}
    chosen = rows(
        place,
        "SELECT c.perturbation, c.prompt FROM completions c JOIN prompts q ON q.id = c.prompt "
        "WHERE c.phase = 'retest' AND q.role = 'fresh'",
    )
    assert sorted(chosen) == sorted((number, prompt) for number in expected for prompt in (2, 3))
    measured = rows(place, "SELECT perturbation FROM scores WHERE judge = 'side_effect'")
    assert sorted(n for (n,) in measured) == sorted(expected)
    curves = {n for (n,) in rows(place, "SELECT parent FROM perturbations WHERE how = 'scaled'")}
    assert curves == {arm[0].row.id for arm in (summary.found, summary.control)}
    again = (*summary.found, *summary.control, *summary.equal)
    assert {i.row.id for i in again if i.retest} == set(expected)


def test_the_unperturbed_model_is_sampled(whole: Path, lm: LanguageModel, tokenizer: Any) -> None:
    base = rows(
        whole,
        "SELECT prompt, sample, temperature, tokens FROM completions WHERE perturbation = 0",
    )
    others = [p for (p,) in rows(whole, "SELECT id FROM prompts WHERE role = 'elsewhere'")]
    expected = [(p, s) for p in range(4) for s in range(3)] + [(p, 0) for p in others]
    assert sorted({(p, s) for p, s, _, _ in base}) == expected
    assert {(s == 0, t) for _, s, t, _ in base} == {(True, 0.0), (False, 1.0)}
    greedy = {p: json.loads(tokens) for p, s, _, tokens in base if s == 0}
    for prompt, (text,) in enumerate(rows(whole, ASKED)):
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        ends = {tiny.TOKENS["eos_token_id"]}
        assert greedy[prompt] == tiny.greedy(lm.hf, ids, 5, ends=ends)


def test_fresh_prompts_take_no_part_in_the_search(
    tmp_path: Path, settings: Settings, lm: LanguageModel, whole: Path
) -> None:
    place = tmp_path / "run"
    summary = carry_out(place, replace(settings, fresh=()), lm)
    for file in sorted((whole / "tensors").iterdir()):
        assert header(file) == header(place / "tensors" / file.name)
        for name, array in arrays(file).items():
            np.testing.assert_array_equal(array, arrays(place / "tensors" / file.name)[name])
    roles = "SELECT role, count(*) FROM prompts GROUP BY 1 ORDER BY 1"
    others = ordinary_prompts()
    others = others[:: len(others) // 6]
    assert rows(whole, roles) == [("asked", 2), ("elsewhere", len(others)), ("fresh", 2)]
    assert rows(place, roles) == [("asked", 2), ("elsewhere", len(others))]
    kept = rows(place, "SELECT content FROM prompts WHERE role = 'elsewhere' ORDER BY id")
    assert [json.loads(content) for (content,) in kept] == others
    # Without them the asked ones are asked again, with fresh samples.
    again = rows(
        place,
        "SELECT DISTINCT prompt, sample, temperature FROM completions c JOIN prompts q "
        "ON q.id = c.prompt WHERE phase = 'retest' AND q.role = 'asked'",
    )
    assert sorted(again) == [(p, k, 0.7) for p in (0, 1) for k in range(4)]
    assert all(len(i.retest) in (0, 8) for i in summary.found)
    written = rows(whole, f"{WRITTEN} ORDER BY 1, 2, 3, 4")
    grouped = (
        "SELECT c.perturbation, c.prompt, c.sample, c.phase FROM completions c "
        "JOIN scores s ON s.completion = c.id WHERE s.judge = 'behaviour' ORDER BY 1, 2, 3, 4"
    )
    assert rows(whole, grouped) == written


def test_melbo_on_the_last_tokens(
    tmp_path: Path, settings: Settings, lm: LanguageModel, tokenizer: Any
) -> None:
    place = tmp_path / "run"
    settings = replace(
        settings,
        method="melbo",
        method_settings={"steps": 4},
        positions="last:2",
        radius="20,40",
    )
    summary = carry_out(place, settings, lm)
    assert note(place, "facts")["radii"] == [20, 40]
    assert note(place, "facts")["calibrated_radius"] is None
    assert {i.row.method for i in summary.found} == {"melbo"}
    assert header(place / "tensors" / "found-0.safetensors")["method"] == "melbo"
    pairs = list(brute_force(lm.hf, tokenizer, place, "last:2", 5))
    assert len({tuple(tokens) for tokens, _ in pairs}) > 1
    for written, expected in pairs:
        assert written == expected
    found = [i.row.effect for i in summary.found]
    control = [i.row.effect for i in summary.control]
    assert np.mean(found) > np.mean(control)


def test_random_against_random(tmp_path: Path, settings: Settings, lm: LanguageModel) -> None:
    settings = replace(settings, method="random", method_settings={}, radius="10")
    summary = carry_out(tmp_path / "run", settings, lm)
    assert {i.row.method for i in (*summary.found, *summary.control)} == {"random"}
    every = torch.stack(list(vectors(tmp_path / "run").values()))
    alike = torch.nn.functional.cosine_similarity(every[:, None], every[None], dim=-1)
    assert (alike - torch.eye(len(every))).abs().max() < 0.9
    assert every.norm(dim=1).tolist() == pytest.approx([10.0] * 6)


def test_samples_are_drawn_row_by_row(
    tmp_path: Path, settings: Settings, lm: LanguageModel
) -> None:
    """What a row draws depends on the seed and the row, not on how many rows there are."""
    settings = replace(settings, samples=3, temperature=1.0, radius="10", fresh=())
    carry_out(tmp_path / "three", settings, lm)
    carry_out(tmp_path / "two", replace(settings, samples=2), lm)
    query = (
        "SELECT perturbation, prompt, sample, tokens FROM completions "
        "WHERE perturbation > 0 AND phase = 'first' ORDER BY 1, 2, 3"
    )
    three, two = rows(tmp_path / "three", query), rows(tmp_path / "two", query)
    assert [r[:3] for r in three] == [
        (p, q, s) for p in range(1, 7) for q in range(2) for s in range(3)
    ]
    assert two == [r for r in three if r[2] < 2]
    texts = defaultdict(set)
    for p, q, _, tokens in three:
        texts[p, q].add(tokens)
    assert np.mean([len(own) for own in texts.values()]) > 2


def test_what_is_looked_for_is_counted_and_never_used(
    tmp_path: Path, settings: Settings, lm: LanguageModel, whole: Path
) -> None:
    # The sign that stands in about half of the texts.
    texts = [t for (t,) in rows(whole, "SELECT text FROM completions WHERE perturbation > 0")]
    signs = Counter(sign for text in texts for sign in set(text))
    pattern = re.escape(min(signs, key=lambda sign: (abs(signs[sign] - len(texts) / 2), sign)))
    summary = carry_out(tmp_path / "run", replace(settings, look_for=pattern), lm)
    with_it, without = content(tmp_path / "run"), content(whole)
    assert with_it["meta"]["config"].pop("look_for") == pattern
    assert without["meta"]["config"].pop("look_for") is None
    same(with_it, without)

    hits: Counter[tuple[str, int]] = Counter()
    again, asked_again = Counter(), Counter()
    for arm, number, phase, text in rows(
        whole,
        "SELECT p.arm, p.id, c.phase, c.text FROM completions c "
        "JOIN perturbations p ON p.id = c.perturbation JOIN prompts q ON q.id = c.prompt "
        "WHERE q.role != 'elsewhere'",
    ):
        matched = bool(re.search(pattern, text))
        if phase == "retest":
            again[arm] += matched
            asked_again[arm] += 1
        else:
            hits[arm, number] += matched
    assert summary.hits is not None
    assert summary.retest_hits is not None
    for k, arm in enumerate(("found", "control")):
        many = sum(n > 0 for (own, _), n in hits.items() if own == arm)
        assert summary.hits[k][:2] == (many, 6)
        assert summary.retest_hits[k][:2] == (again[arm], asked_again[arm])
    assert 0 < sum(summary.hits[k].hits for k in (0, 1)) < 12


def test_a_full_disk_stops_the_job_in_one_sentence_and_it_goes_on_later(
    tmp_path: Path,
    settings: Settings,
    lm: LanguageModel,
    whole: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    place = tmp_path / "run"
    with begin(place, settings) as run:
        run.database.execute("PRAGMA max_page_count = 13")
        with pytest.raises(RunError, match="full") as caught:
            discover_behaviours(run, lm=lm)
        assert "\n" not in str(caught.value)
        assert len(run.perturbation_rows()) > 0
    with monkeypatch.context() as patched:

        def full(*_: Any) -> None:
            raise OSError(28, "No space left on device")

        patched.setattr(files.os, "fsync", full)
        (place / "tensors" / "found-1.safetensors").unlink(missing_ok=True)
        with Run.open(place) as run, run.writing():
            run.database.execute("DELETE FROM perturbations WHERE file LIKE '%-1.%'")
            run.database.execute("DELETE FROM completions")
            run.database.execute("DELETE FROM scores")
        with pytest.raises(RunError, match="No space left on device"):
            carry_out(place, settings, lm, resume=True)
    assert not [p for p in (place / "tensors").iterdir() if p.name.startswith(".")]
    carry_out(place, settings, lm, resume=True)
    same(content(place), content(whole))


@pytest.mark.parametrize(
    ("method", "own", "radii"),
    [
        ("cpe", {"iterations": 1, "blocks": 1}, [1.0, 2.0, 4.0]),
        ("noise", {"per": "token"}, None),
    ],
)
def test_auto_is_what_suits_the_method(
    tmp_path: Path,
    settings: Settings,
    lm: LanguageModel,
    method: str,
    own: dict[str, Any],
    radii: list[float] | None,
) -> None:
    asked = replace(settings, method=method, method_settings=own, radius="auto", n=2)
    carry_out(tmp_path / "run", asked, lm)
    facts = note(tmp_path / "run", "facts")
    shares = [1.5, 2.0, 2.5]
    assert facts["radii"] == (radii or [share * facts["calibrated_radius"] for share in shares])


# -- layers that are chosen ------------------------------------------------------------------------


@pytest.mark.parametrize("layers", [{"source": "auto", "target": "auto"}, {"target": "auto"}])
def test_layers_are_those_that_the_layer_map_has_reasons_for(
    tmp_path: Path, settings: Settings, lm: LanguageModel, layers: dict[str, Any]
) -> None:
    place = tmp_path / "run"
    carry_out(place, replace(settings, **layers, radius="8", n=2), lm)
    known = {} if "source" in layers else {"source": 1}  # 0.33 of four blocks
    config = LayerMapConfig(top=2, padding=2)
    pairs = thinned(promising(4, **known))
    (*_, layer_map) = survey(lm, lm.encode(PROMPTS, room=5), pairs, config)
    chosen = choose(layer_map, **known)
    facts = note(place, "facts")
    assert (facts["source"], facts["target"], facts["why"]) == chosen
    kept = LayerMap.load(place / "atlas.safetensors")
    assert kept.pairs == layer_map.pairs
    assert torch.equal(kept.sigma, layer_map.sigma)
    console = Console(file=(told := io.StringIO()), width=400)
    with Run.open(place) as run:
        terminal.table(summarise(run), place, console)
        drawn = page.document(run)
    assert chosen.why in told.getvalue()
    assert chosen.why in read_document.text(part(drawn, "asked"))
    assert {"layer-map-gain", "layer-map-gap"} <= set(charts(drawn))


# -- perturbations that are given ------------------------------------------------------------------


def together(whole: Path, arm: str, file: Path) -> str:
    """Write one arm of a run, with both of its radii, as one file."""
    sets = [PerturbationSet.load(whole / f"tensors/{arm}-{k}.safetensors") for k in (1, 0)]
    joined = replace(
        sets[0],
        directions=torch.cat([s.directions for s in sets]),
        radius=torch.cat([s.radius for s in sets]),
        outputs=None,
        scores={},
    )
    joined.save(file)
    return str(file)


def test_given_perturbations_come_out_as_those_that_were_found(
    tmp_path: Path, settings: Settings, lm: LanguageModel, whole: Path
) -> None:
    given = together(whole, "found", tmp_path / "given.safetensors")
    control = together(whole, "control", tmp_path / "control.safetensors")
    # Where they belong is in the file, whatever is asked for.
    asked = replace(settings, given=given, control=control, source=0, positions="prompt", n=99)
    carry_out(tmp_path / "run", asked, lm)
    came, searched = content(tmp_path / "run"), content(whole)
    scaled = [
        [p for p in side.pop("perturbations") if p[2] == "scaled"] for side in (came, searched)
    ]
    listed = "SELECT * FROM perturbations WHERE parent IS NULL"
    assert rows(tmp_path / "run", listed) == rows(whole, listed)
    for name in set(TABLES) - {"perturbations"}:
        assert came[name] == searched[name], name
    # The radii of a file are in single precision.
    assert [p[:7] for p in scaled[0]] == [p[:7] for p in scaled[1]]
    flat = [[x for p in some for x in p[7:]] for some in scaled]
    assert flat[0] == pytest.approx(flat[1], rel=1e-6)
    for name in ("found-0.safetensors", "control-1.safetensors"):
        for tensor in ("vectors", "radius"):
            assert dict(came[name])[tensor] == dict(searched[name])[tensor]
    facts = note(tmp_path / "run", "facts")
    assert (facts["source"], facts["positions"], facts["method"]) == (1, "all", "dct")
    assert facts["calibrated_radius"] is None


def test_without_a_control_those_given_are_matched_at_random(
    tmp_path: Path, settings: Settings, lm: LanguageModel, whole: Path
) -> None:
    given = together(whole, "found", tmp_path / "given.safetensors")
    carry_out(tmp_path / "run", replace(settings, given=given), lm)
    assert (
        content(tmp_path / "run")["control-0.safetensors"]
        == content(whole)["control-0.safetensors"]
    )


def test_given_perturbations_of_another_model_are_an_error(
    tmp_path: Path, settings: Settings, lm: LanguageModel, whole: Path
) -> None:
    file = whole / "tensors/found-0.safetensors"
    some = PerturbationSet.load(file)
    replace(some, origin=replace(some.origin, n_layers=5)).save(tmp_path / "other.safetensors")
    asked = replace(settings, given=str(tmp_path / "other.safetensors"))
    with pytest.raises(ModelError, match="belong to"):
        carry_out(tmp_path / "run", asked, lm)
    asked = replace(settings, given=str(file), control=str(whole / "tensors/control-1.safetensors"))
    with pytest.raises(MethodError, match="the control has no perturbation of radius"):
        carry_out(tmp_path / "again", asked, lm)
