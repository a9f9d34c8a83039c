"""The run: what goes in comes out, whole batches or nothing, and one sentence when it cannot be."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from educe.comparison.texts import texts_of
from educe.errors import BlockedError, EduceError, FileFormatError, RunError
from educe.explore import frames
from educe.explore.map import places
from educe.rows import (
    FIRST,
    KEPT,
    RETEST,
    CompletionRow,
    PerturbationRow,
    PromptRow,
    Row,
    ScoreRow,
)
from educe.run import database, store
from educe.run.lock import locked
from educe.run.migrations import SCHEMA_VERSION
from educe.run.settings import Settings, stored
from educe.run.store import Run

CONFIG = {"prompts": ["Größe?", [{"role": "user", "content": "a\nb"}]], "n": 3, "adapter": None}
PROMPTS = [
    PromptRow(0, "asked", "Größe?", "<|user|>Größe?", 9),
    PromptRow(1, "asked", [{"role": "user", "content": "a\nb"}], "<|user|>a\nb", 4),
    PromptRow(2, "fresh", "新しい", "<|user|>新しい", 10),
]
PERTURBATIONS = [
    PerturbationRow(1, None, "", "found", "dct", "found-0.safetensors", 0, 0.1, 1 / 3, 7e-12),
    PerturbationRow(2, None, "", "control", "random", "control-0.safetensors", 0, 0.1, 1 / 3, 1e30),
    PerturbationRow(3, 1, "scaled", "found", "dct", "found-0.safetensors", 0, -0.2, 2 / 3, 0.0),
]
COMPLETIONS = [
    CompletionRow(Row(0, 0), 0.0, "", (), True),
    CompletionRow(Row(1, 0), 0.7, 'line\n"quoted" \x00 \x1b[1m 🙂 �', (1, 262, 0), False),
    CompletionRow(Row(1, 0, 0, RETEST), 0.7, "again", (5,), True),
    CompletionRow(Row(2, 2, 1000), 0.7, "x" * 10_000, tuple(range(3000)), True),
]
SCORES = [
    ScoreRow(1, "side_effect", 0.25, "nats", "20 prompts"),
    ScoreRow(Row(1, 0), "coherence", 1 / 3, "coherent", "why not"),
    ScoreRow(Row(1, 0), "novelty", 1.0, "novel", "nearest: 'α'"),
    ScoreRow(Row(1, 0, 0, RETEST), "novelty", 0.5, "novel", ""),
    ScoreRow(3, "kl", float("inf"), "nats", "it breaks down"),
]


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Run]:
    with Run.create(tmp_path / "run", CONFIG) as made:
        yield made


def completions(count: int, perturbation: int = 1) -> list[CompletionRow]:
    return [
        CompletionRow(Row(perturbation, 0, k), 0.0, "text " * 20, (k,), True) for k in range(count)
    ]


def fails(kind: type[EduceError], call: Callable[[], Any]) -> str:
    """Expect an error of one line, and return it."""
    with pytest.raises(kind) as caught:
        call()
    message = str(caught.value)
    assert message
    assert "\n" not in message
    assert len(message) < 400
    return message


# -- what goes in comes out ------------------------------------------------------------------------


def test_every_table_comes_back_after_closing(run: Run) -> None:
    run.add_prompts(PROMPTS)
    run.add_perturbations(PERTURBATIONS)
    run.add_completions(COMPLETIONS)
    run.add_scores(SCORES)
    run.remember("facts", {"radii": [0.1, 1e-300], "model": "模型"})
    run.close()

    with Run.open(run.folder) as again:
        assert again.config == CONFIG
        assert again.note("facts") == {"radii": [0.1, 1e-300], "model": "模型"}
        assert again.prompt_rows() == PROMPTS
        assert again.prompt_rows("fresh") == PROMPTS[2:]
        assert again.perturbation_rows() == PERTURBATIONS[:2]
        assert again.perturbation_rows(derived=True) == PERTURBATIONS[2:]
        assert again.perturbation_rows(derived=None) == PERTURBATIONS
        assert again.perturbation_rows("control") == PERTURBATIONS[1:2]
        assert again.perturbation_rows("found", derived=None) == PERTURBATIONS[::2]
        assert again.completion_rows() == COMPLETIONS
        assert again.completion_rows(FIRST) == [*COMPLETIONS[:2], COMPLETIONS[3]]
        assert again.completion_rows(RETEST) == COMPLETIONS[2:3]
        assert again.score_rows() == SCORES
        assert again.score_rows("novelty") == SCORES[2:4]


def test_rows_of_some_perturbations_are_read_alone(run: Run) -> None:
    run.add_prompts(PROMPTS)
    run.add_perturbations(PERTURBATIONS)
    run.add_completions(COMPLETIONS)
    run.add_scores(SCORES)
    for of in ([], [0], [1], [1, 3], range(1000)):
        listed = [p for p in PERTURBATIONS if p.id in of]
        assert run.perturbation_rows(derived=None, of=of) == listed
        assert run.completion_rows(of=of) == [c for c in COMPLETIONS if c.perturbation in of]
        assert run.score_rows(of=of) == [s for s in SCORES if s.perturbation in of]
        for judge in ("novelty", "kl"):
            own = [s for s in SCORES if s.judge == judge and s.perturbation in of]
            assert run.score_rows(judge, of=of) == own
    assert run.completion_rows(unscored="novelty") == [COMPLETIONS[0], COMPLETIONS[3]]
    assert run.perturbations_kept == 3


def test_texts_are_counted_as_they_are_read(run: Run) -> None:
    run.add_completions([*COMPLETIONS, CompletionRow(Row(1, 0, 0, KEPT), 0.0, "kept", (), True)])
    run.ask([Row(7, 0)], 0.0)  # and never written
    assert run.texts_kept() == len(COMPLETIONS)
    for prompts in ([], [0], [2], [0, 1, 2]):
        assert run.texts_kept(prompts) == sum(c.prompt in prompts for c in COMPLETIONS)


def test_frames_say_the_same_as_rows(run: Run) -> None:
    run.add_prompts(PROMPTS)
    run.add_perturbations(PERTURBATIONS)
    run.add_completions(COMPLETIONS)
    run.ask([Row(2, 0)], 0.0)  # it has no text yet
    run.add_scores(SCORES)

    assert [PromptRow(*row) for row in run.prompts.itertuples()] == PROMPTS
    frame = run.perturbations.astype({"parent": object})
    frame["parent"] = frame["parent"].where(frame["parent"].notna(), None)
    assert [PerturbationRow(*row) for row in frame.itertuples()] == PERTURBATIONS
    written = run.completions
    assert written["arm"].tolist() == ["unperturbed", "found", "found", "control"]
    keys = list(Row._fields)
    assert [Row(*row) for row in written[keys].itertuples(index=False)] == [
        c.row for c in COMPLETIONS
    ]
    assert written.drop(columns=["arm", *keys]).to_numpy().tolist() == [
        list(c[1:]) for c in COMPLETIONS
    ]
    said = run.scores
    whole = said["phase"].isna()
    assert said["perturbation"].tolist() == [s.perturbation for s in SCORES]
    assert whole.tolist() == [isinstance(s.of, int) for s in SCORES]
    assert [Row(*row) for row in said.loc[~whole, keys].itertuples(index=False)] == [
        s.of for s in SCORES if not isinstance(s.of, int)
    ]
    assert said[list(ScoreRow._fields[1:])].to_numpy().tolist() == [list(s[1:]) for s in SCORES]
    # The mean of a judge by arm is one line.
    joined = said.merge(written, on=keys).query("judge == 'novelty'")
    assert joined.groupby("arm")["value"].mean().to_dict() == {"found": 0.75}


def test_what_is_asked_is_missing_until_it_is_written(run: Run) -> None:
    run.add_prompts(PROMPTS)
    first = [Row(0, 0), Row(2, 0, 1), Row(1, 0)]
    run.ask(first, 0.0)
    run.ask([Row(1, 0, 0, RETEST), Row(1, 0)], 0.7)  # the second was asked at another temperature
    assert run.missing() == {0.0: first, 0.7: [Row(1, 0, 0, RETEST)]}
    assert run.completion_rows() == []
    run.add_completions([CompletionRow(Row(1, 0), 0.0, "", (), True)])
    assert run.missing() == {0.0: first[:2], 0.7: [Row(1, 0, 0, RETEST)]}
    run.ask(first, 0.0)
    assert run.missing() == {0.0: first[:2], 0.7: [Row(1, 0, 0, RETEST)]}
    with Run.open(run.folder) as other:
        assert other.missing() == run.missing()
        assert [c.row for c in other.completion_rows()] == [Row(1, 0)]


def test_a_score_of_a_text_that_nobody_asked_for_is_refused(run: Run) -> None:
    with pytest.raises(sqlite3.IntegrityError):
        run.add_scores([SCORES[0], SCORES[1]])
    assert run.score_rows() == []


def test_another_reader_finds_plain_tables(run: Run) -> None:
    run.add_prompts(PROMPTS)
    run.add_completions(COMPLETIONS)
    run.close()
    database = sqlite3.connect(run.folder / "run.sqlite")
    found = database.execute("SELECT content, tokens FROM prompts ORDER BY id").fetchall()
    assert [(json.loads(c), n) for c, n in found] == [(p.content, p.tokens) for p in PROMPTS]
    (tokens,) = database.execute("SELECT tokens FROM completions WHERE perturbation = 1").fetchone()
    assert json.loads(tokens) == [1, 262, 0]
    (config,) = database.execute("SELECT value FROM meta WHERE key = 'config'").fetchone()
    assert json.loads(config) == CONFIG
    assert database.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    database.close()


def test_what_is_added_again_replaces(run: Run) -> None:
    run.add_prompts(PROMPTS)
    run.add_prompts([PROMPTS[0]._replace(content="another")])
    assert run.prompt_rows() == PROMPTS  # prompts are kept once
    run.add_completions(COMPLETIONS)
    run.add_scores(SCORES)
    run.add_completions([COMPLETIONS[1]._replace(text="new")])
    assert [c.text for c in run.completion_rows()][1] == "new"
    assert run.score_rows() == SCORES  # what is written anew is the same row
    run.add_scores([SCORES[0]._replace(value=3.0), SCORES[1]._replace(value=0.0)])
    assert [s.value for s in run.score_rows("side_effect")] == [3.0]
    assert [s.value for s in run.score_rows("coherence")] == [0.0]
    assert len(run.score_rows()) == len(SCORES)


def test_notes(run: Run) -> None:
    assert not run.has("chosen")
    with pytest.raises(KeyError):
        run.note("chosen")
    run.remember("chosen", [3, 1])
    run.remember("chosen", [1, 3])
    assert run.has("chosen")
    assert run.note("chosen") == [1, 3]


# -- whole batches or nothing ----------------------------------------------------------------------


def test_an_error_inside_leaves_nothing_of_the_batch(run: Run) -> None:
    run.add_completions(completions(2, perturbation=1))

    def interrupted() -> Iterator[ScoreRow]:
        yield SCORES[0]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run.add_scores(interrupted())
    with pytest.raises(KeyboardInterrupt), run.writing():  # noqa: PT012
        run.database.execute("INSERT INTO meta VALUES ('never', '0')")
        raise KeyboardInterrupt
    twice = [PERTURBATIONS[0], PERTURBATIONS[1], PERTURBATIONS[0]]
    with pytest.raises(sqlite3.IntegrityError):
        run.add_perturbations(twice)
    with Run.open(run.folder) as other:
        assert other.score_rows() == []
        assert other.perturbation_rows() == []
        assert len(other.completion_rows()) == 2
        assert not other.has("never")
    run.add_perturbations(PERTURBATIONS)  # and it goes on
    assert run.perturbation_rows(derived=None) == PERTURBATIONS


def test_a_reader_sees_whole_batches_while_one_is_being_written(run: Run) -> None:
    run.add_completions(completions(2, perturbation=1))
    with Run.open(run.folder) as other:
        with run.writing():
            run.database.execute("DELETE FROM completions")
            assert run.completion_rows() == []
            assert len(other.completion_rows()) == 2
        assert other.completion_rows() == []


DIE = """
import os, signal, sys
from educe.rows import CompletionRow, Row
from educe.run.store import Run
run = Run.create(sys.argv[1], {})
for batch in range(1, 4):
    run.add_completions(CompletionRow(Row(batch, 0, k), 0.0, "text", (), True) for k in range(300))
with run.writing():
    for k in range(30_000):  # more than the cache holds: some of it reaches the log
        run.database.execute(
            "INSERT INTO completions VALUES (NULL, 4, 0, 'first', ?, 0, ?, '[]', 0)",
            (k, "text" * 100),
        )
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_process_killed_inside_a_batch_loses_that_batch(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    assert subprocess.run([sys.executable, "-c", DIE, folder]).returncode == -signal.SIGKILL
    with Run.open(folder) as run:
        kept = [c.row for c in run.completion_rows()]
        assert kept == [Row(batch, 0, k) for batch in (1, 2, 3) for k in range(300)]
        run.add_completions(completions(5, perturbation=4))
        assert len(run.completion_rows()) == 905


# -- opening what is no run ------------------------------------------------------------------------


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The file of a run of many pages."""
    with Run.create(tmp_path_factory.mktemp("raw") / "run", CONFIG) as run:
        run.add_prompts(PROMPTS)
        run.add_perturbations(PERTURBATIONS)
        run.add_completions([*completions(500), *COMPLETIONS])
        run.add_scores(SCORES)
    return (run.folder / "run.sqlite").read_bytes()


def read_all(folder: Path) -> None:
    with Run.open(folder) as run:
        (
            run.prompt_rows(),
            run.perturbation_rows(),
            run.completion_rows(),
            run.missing(),
            run.score_rows(),
            run.config,
        )


@pytest.fixture(params=["small", "large"])
def _of_a_size(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files are small, and checked whole, or large."""
    if request.param == "large":
        monkeypatch.setattr(database, "WHOLE", 0)


def placed(folder: Path, raw: bytes) -> Path:
    folder.mkdir()
    (folder / "run.sqlite").write_bytes(raw)
    return folder


@pytest.mark.usefixtures("_of_a_size")
@pytest.mark.parametrize("kept", [0, 1, 16, 99, 4095, 4096, 5000, 0.5, -4096, -100])
def test_a_truncated_file_is_reported(tmp_path: Path, raw: bytes, kept: float) -> None:
    size = (
        int(kept * len(raw)) if isinstance(kept, float) else kept if kept >= 0 else len(raw) + kept
    )
    folder = placed(tmp_path / "run", raw[:size])
    message = fails(FileFormatError, lambda: read_all(folder))
    assert str(folder) in message


@pytest.mark.usefixtures("_of_a_size")
def test_a_damaged_file_is_read_or_reported(tmp_path: Path, raw: bytes) -> None:
    rng = np.random.default_rng(0)
    outcomes, told = set(), []
    for k in range(120):
        damaged = bytearray(raw)
        at = int(rng.integers(100, 4096 if k % 2 else len(raw)))
        length = (1, 16, 600)[k % 3]
        damaged[at : at + length] = rng.bytes(len(damaged[at : at + length]))
        folder = placed(tmp_path / str(k), bytes(damaged))
        try:
            read_all(folder)
            outcomes.add("read")
        except EduceError as error:
            outcomes.add("reported")
            told.append(str(error))
        shutil.rmtree(folder)
    assert outcomes == {"read", "reported"}
    assert not [message for message in told if "\n" in message or len(message) > 400]


def last_leaf(raw: bytes, table: str) -> int:
    """Return where the last rows of a table lie, as SQLite's file format has it."""
    database = sqlite3.connect(":memory:")
    database.deserialize(raw[:18] + b"\1\1" + raw[20:])  # without a log, which memory has not
    ((page,),) = database.execute("SELECT rootpage FROM sqlite_master WHERE name = ?", (table,))
    size = int.from_bytes(raw[16:18], "big")
    while raw[at := (page - 1) * size] == 5:  # an inner page of a table
        page = int.from_bytes(raw[at + 8 : at + 12], "big")
    return at


READERS: dict[str, Callable[[Run], Any]] = {
    "rows": lambda run: run.completion_rows(),
    "what is missing": lambda run: run.missing(),
    "columns": lambda run: run.completions,
    "texts": texts_of,
    "a page of texts": lambda run: frames.texts(run, frames.Wanted()),
    "the last text": lambda run: frames.text(run, 503),
    "how many": frames.texts_of_each,
    "a map": places,
    "a text written again": lambda run: run.add_completions(COMPLETIONS[-1:]),
    "an iterator": lambda run: list(run.database.execute("SELECT text FROM completions")),
    "many at once": lambda run: run.database.execute("SELECT text FROM completions").fetchall(),
}


@pytest.mark.parametrize("reader", READERS)
def test_damage_that_opening_a_large_file_leaves_is_met_in_one_sentence(
    tmp_path: Path, raw: bytes, monkeypatch: pytest.MonkeyPatch, reader: str
) -> None:
    at = last_leaf(raw, "completions")
    folder = placed(tmp_path / "run", raw[:at] + bytes(4096) + raw[at + 4096 :])
    assert "corrupt" in fails(FileFormatError, lambda: Run.open(folder))
    monkeypatch.setattr(database, "WHOLE", 0)
    with Run.open(folder) as run:
        assert run.prompt_rows() == PROMPTS
        assert run.database.execute("SELECT text FROM completions").fetchone()
        message = fails(FileFormatError, lambda: READERS[reader](run))
    assert message.startswith(f"{folder / 'run.sqlite'} is corrupt or truncated: ")
    assert "\n" not in message


@pytest.mark.parametrize("table", ["meta", "prompts", "perturbations"])
def test_what_a_run_is_is_checked_however_large_its_file_is(
    tmp_path: Path, raw: bytes, monkeypatch: pytest.MonkeyPatch, table: str
) -> None:
    at = last_leaf(raw, table)
    folder = placed(tmp_path / "run", raw[:at] + bytes(4096) + raw[at + 4096 :])
    monkeypatch.setattr(database, "WHOLE", 0)
    assert "corrupt" in fails(FileFormatError, lambda: Run.open(folder))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("config", {"prompts": ["Hi."], "fresh": [], "dmvice": "cpu"}),
        ("config", {"prompts": 5, "fresh": []}),
        ("config", {"fresh": []}),
        ("distinct", {"asked": [9], "fresh": []}),
        ("distinct", [0]),
    ],
)
def test_settings_that_are_none_are_said_to_be_damaged(
    tmp_path: Path, key: str, value: object
) -> None:
    with Run.create(tmp_path / "run", asdict(Settings(prompts=("Hi.",)))) as run:
        assert stored(run) == Settings(prompts=("Hi.",))
        run.remember(key, value)
        assert "corrupt" in fails(FileFormatError, lambda: stored(run))


def other_database(folder: Path, *statements: str) -> Path:
    folder.mkdir()
    database = sqlite3.connect(folder / "run.sqlite")
    for statement in statements:
        database.execute(statement)
    database.commit()
    database.close()
    return folder


def test_another_kind_or_version_of_file_is_reported(tmp_path: Path, run: Run) -> None:
    place = placed(tmp_path / "text", b"This is no database at all. " * 300)
    assert "corrupt" in fails(FileFormatError, lambda: Run.open(place))
    empty = other_database(tmp_path / "other", "CREATE TABLE logs (x)")
    fails(FileFormatError, lambda: Run.open(empty))
    tables = other_database(
        tmp_path / "tables",
        f"PRAGMA user_version = {SCHEMA_VERSION}",
        "CREATE TABLE meta (x)",
    )
    fails(FileFormatError, lambda: Run.open(tables))
    bare = tmp_path / "bare"
    shutil.copytree(run.folder, bare)
    other = sqlite3.connect(bare / "run.sqlite", isolation_level=None)
    other.execute("UPDATE meta SET value = '{'")
    fails(FileFormatError, lambda: Run.open(bare))
    other.execute("DELETE FROM meta")
    fails(FileFormatError, lambda: Run.open(bare))
    other.execute(f"PRAGMA user_version = {SCHEMA_VERSION + 1}")
    other.close()
    message = fails(FileFormatError, lambda: Run.open(bare))
    assert f"version {SCHEMA_VERSION + 1}" in message
    assert f"reads {SCHEMA_VERSION}" in message


def test_opening_where_there_is_no_run(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    for place in (tmp_path, tmp_path / "missing", tmp_path / "file"):
        assert str(place) in fails(RunError, lambda place=place: Run.open(place))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file"]


# -- creating where there is something -------------------------------------------------------------


def test_another_run_is_not_overwritten(run: Run) -> None:
    run.add_prompts(PROMPTS)
    assert "--resume" in fails(RunError, lambda: Run.create(run.folder, {}))
    assert run.prompt_rows() == PROMPTS
    assert run.config == CONFIG


def test_other_files_are_left_alone(tmp_path: Path) -> None:
    theirs = tmp_path / "thesis"
    theirs.mkdir()
    (theirs / "chapter.txt").write_text("mine")
    assert "not empty" in fails(RunError, lambda: Run.create(theirs, {}))
    assert [p.name for p in theirs.iterdir()] == ["chapter.txt"]
    below = theirs / "chapter.txt" / "run"
    assert str(below) in fails(RunError, lambda: Run.create(below, {}))
    fails(RunError, lambda: Run.create(theirs / "chapter.txt", {}))
    assert (theirs / "chapter.txt").read_text() == "mine"


def test_tensors_of_a_run_whose_file_is_gone_are_not_taken_for_those_of_a_new_one(
    run: Run,
) -> None:
    (run.tensors / "found-0.safetensors").write_bytes(b"old")
    run.close()
    (run.folder / "run.sqlite").unlink()
    assert "not empty" in fails(RunError, lambda: Run.create(run.folder, {}))


@pytest.mark.parametrize("where", ["connect", "fill", "rename"])
def test_a_run_killed_while_it_was_created_can_be_created(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    folder = tmp_path / "run"

    def killed(*_: Any, **__: Any) -> Any:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        if where == "connect":
            patched.setattr(store.sqlite3, "connect", killed)
        elif where == "fill":
            patched.setattr(store.json, "dumps", killed)
        else:
            patched.setattr(Path, "rename", killed)
        with pytest.raises(KeyboardInterrupt):
            Run.create(folder, {"n": 1})
    assert folder.is_dir()
    fails(RunError, lambda: Run.open(folder))
    with Run.create(folder, {"n": 2}) as run:
        assert run.config == {"n": 2}
    assert sorted(p.name for p in folder.iterdir()) == [".lock", "run.sqlite", "tensors"]


def test_a_run_that_appears_while_another_is_begun_is_not_overwritten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = store.locked

    def late(folder: Path) -> Any:
        """Another process was quicker."""
        with monkeypatch.context() as patch:
            patch.setattr(store, "locked", own)
            Run.create(folder, {"n": 1}).close()
        return own(folder)

    with monkeypatch.context() as patch:
        patch.setattr(store, "locked", late)
        assert "holds another run" in fails(
            RunError, lambda: Run.create(tmp_path / "run", {"n": 2})
        )
    with Run.open(tmp_path / "run") as run:
        assert run.config == {"n": 1}
    with locked(run.folder):
        assert "another process is at work" in fails(
            BlockedError, lambda: Run.create(run.folder, {})
        )


@pytest.fixture
def closed(small_disk: Path) -> Iterator[Path]:
    """A run in a folder that can be read and not written, whoever asks."""
    with Run.create(small_disk / "run", CONFIG) as run:
        run.add_prompts(PROMPTS)
        run.add_completions(COMPLETIONS)
    remount = ["mount", "-o", "remount,ro", str(small_disk)]
    subprocess.run(remount, check=True)
    return small_disk


def test_a_folder_that_cannot_be_written_is_one_sentence(closed: Path) -> None:
    for work in (
        lambda: Run.create(closed / "other", CONFIG),
        lambda: Run.open(closed / "run"),
        lambda: enter(locked(closed / "run")),
    ):
        message = fails(RunError, work)
        assert str(closed) in message
        assert "ead-only" in message


# -- a full disk -----------------------------------------------------------------------------------


def fill(run: Run) -> tuple[int, str]:
    """Add batches until there is no room; return how many got in, and the error."""
    for batch in range(10_000):
        try:
            run.add_completions(completions(20, perturbation=batch))
        except RunError as error:
            return batch, str(error)
    raise AssertionError("it never filled up")


def test_a_database_that_is_full_keeps_what_it_has(run: Run) -> None:
    run.database.execute("PRAGMA max_page_count = 40")  # SQLite's own "database or disk is full"
    batches, message = fill(run)
    assert batches > 3
    assert "full" in message
    assert "--resume" in message
    assert str(run.folder) in message
    assert len(run.completion_rows()) == 20 * batches
    with Run.open(run.folder) as other:
        assert len(other.completion_rows()) == 20 * batches
    run.database.execute("PRAGMA max_page_count = 100000")
    run.add_completions(completions(20, perturbation=batches))
    assert len(run.completion_rows()) == 20 * (batches + 1)


def test_other_failures_of_the_disk_are_one_sentence(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    for error in (sqlite3.OperationalError("disk I/O error"), OSError(28, "No space left")):
        with pytest.raises(RunError, match=r"disk I/O error|No space left"), run.writing():
            raise error


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A real file system of one megabyte."""
    place = tmp_path / "disk"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(place)]
    if os.name != "posix" or shutil.which("mount") is None:
        pytest.skip("there is no mount")
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("mounting is not permitted")
    try:
        yield place
    finally:
        subprocess.run(["umount", str(place)], check=True)


READ = """
import sys
from educe.run.store import Run
print(len(Run.open(sys.argv[1]).completion_rows()))
"""


def test_a_disk_that_is_full_keeps_the_run_readable(small_disk: Path) -> None:
    def seen_by_another_process() -> int:
        told = subprocess.run(
            [sys.executable, "-c", READ, small_disk / "run"], capture_output=True, check=True
        )
        return int(told.stdout)

    with Run.create(small_disk / "run", CONFIG) as run:
        batches, message = fill(run)
        assert batches > 3
        assert "full" in message
        assert "\n" not in message
        assert len(run.completion_rows()) == 20 * batches
        assert seen_by_another_process() == 20 * batches
        assert "full" in fails(RunError, lambda: Run.create(small_disk / "second", {}))
    assert seen_by_another_process() == 20 * batches


def test_a_run_that_a_full_disk_keeps_closed_is_not_called_corrupt(small_disk: Path) -> None:
    Run.create(small_disk / "run", CONFIG).close()
    with (small_disk / "rest").open("wb", buffering=0) as rest, suppress(OSError):
        while True:
            rest.write(b"x" * 512)
    message = fails(RunError, lambda: Run.open(small_disk / "run"))
    assert "disk" in message
    assert "corrupt" not in message
    (small_disk / "rest").unlink()
    with Run.open(small_disk / "run") as run:
        assert run.config == CONFIG


# -- a run that an error ends at once --------------------------------------------------------------


def ended(run: Run, work: Callable[[Run], Any], error: type[BaseException]) -> None:
    """End the ``with`` statement of a run by an error, after some work."""
    with run:
        work(run)
        raise error("no")


def _begun(run: Run) -> None:
    run.add_prompts(PROMPTS)
    run.remember("distinct", {})
    (run.folder / ".lock").touch()


@pytest.mark.parametrize("error", [FileFormatError, RunError, ValueError, KeyboardInterrupt])
def test_a_run_that_kept_nothing_goes_with_what_was_made_for_it(
    tmp_path: Path, error: type[BaseException]
) -> None:
    with pytest.raises(error):
        ended(Run.create(tmp_path / "a" / "b" / "run", CONFIG), _begun, error)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "mine").mkdir()
    with pytest.raises(FileFormatError):
        ended(Run.create(tmp_path / "mine", CONFIG), _begun, FileFormatError)
    assert list(tmp_path.iterdir()) == [tmp_path / "mine"]
    assert list((tmp_path / "mine").iterdir()) == []
    Run.create(tmp_path / "mine", CONFIG).close()


def _with_tensors(run: Run) -> None:
    (run.tensors / "found-0.safetensors").touch()


def _with_a_layer_map(run: Run) -> None:
    (run.folder / "atlas.safetensors").touch()


@pytest.mark.parametrize(
    ("kept", "error"),
    [
        (lambda run: run.add_perturbations(PERTURBATIONS), FileFormatError),
        (lambda run: run.add_completions(COMPLETIONS), FileFormatError),
        (_with_tensors, FileFormatError),
        (_with_a_layer_map, FileFormatError),
        (_with_tensors, KeyboardInterrupt),
        (_begun, BlockedError),  # such as a full disk: it says to resume
    ],
)
def test_a_run_that_can_go_on_stays(
    tmp_path: Path, kept: Callable[[Run], Any], error: type[BaseException]
) -> None:
    with pytest.raises(error):
        ended(Run.create(tmp_path / "run", CONFIG), kept, error)
    with Run.open(tmp_path / "run") as run:
        assert run.config == CONFIG


def test_a_run_of_another_process_stays(tmp_path: Path) -> None:
    Run.create(tmp_path / "run", CONFIG).close()
    with pytest.raises(FileFormatError):
        ended(Run.open(tmp_path / "run"), _begun, FileFormatError)
    with Run.open(tmp_path / "run") as run:
        assert run.config == CONFIG


@pytest.mark.parametrize("code", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_is_refused(
    run: Run, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    def flock(*_: Any) -> None:
        raise OSError(code, os.strerror(code))

    with monkeypatch.context() as patch:
        patch.setattr(fcntl, "flock", flock)
        message = fails(BlockedError, lambda: enter(locked(run.folder)))
    assert str(run.folder) in message
    assert "on a file system with locks" in message
    with locked(run.folder):
        assert "another process is at work" in fails(
            BlockedError, lambda: enter(locked(run.folder))
        )
    enter(locked(run.folder))


def enter(context: AbstractContextManager[None]) -> None:
    with context:
        pass
