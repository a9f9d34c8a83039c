"""Runs of an older educe: each version's tables, written down as that version made them."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Any

import pytest

from educe.errors import BlockedError, FileFormatError
from educe.rows import FIRST, RETEST, CompletionRow, PerturbationRow, PromptRow, Row
from educe.run import migrations, schema
from educe.run.store import Run

PROMPTS = """
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE prompts (
  id INTEGER PRIMARY KEY, role TEXT NOT NULL, content TEXT NOT NULL, rendered TEXT NOT NULL,
  tokens INTEGER NOT NULL);
INSERT INTO meta VALUES ('config', '{"prompts": ["Größe?"], "quiet": 0.5}');
INSERT INTO meta VALUES ('model-parts', '{"configuration": "c", "tokenizer": "t", "weights": "w"}');
INSERT INTO prompts VALUES (0, 'asked', '"Größe?"', '<|user|>Größe?', 9);
INSERT INTO prompts VALUES (1, 'fresh', '[{"role": "user"}]', 'a', 4);
"""

#: The first tables of all, and those before prompts had parents.
OLD = {
    1: f"""{PROMPTS}
CREATE TABLE perturbations (
  id INTEGER PRIMARY KEY, arm TEXT NOT NULL, file TEXT NOT NULL, item INTEGER NOT NULL,
  method TEXT NOT NULL, radius REAL NOT NULL, dose REAL NOT NULL, effect REAL NOT NULL);
CREATE TABLE completions (
  perturbation INTEGER NOT NULL, prompt INTEGER NOT NULL REFERENCES prompts (id),
  sample INTEGER NOT NULL, temperature REAL NOT NULL, text TEXT NOT NULL, tokens TEXT NOT NULL,
  finished INTEGER NOT NULL, PRIMARY KEY (perturbation, prompt, sample)) WITHOUT ROWID;
CREATE TABLE readings (
  perturbation INTEGER NOT NULL, prompt INTEGER NOT NULL, sample INTEGER NOT NULL,
  logprob REAL NOT NULL, embedding BLOB NOT NULL,
  PRIMARY KEY (perturbation, prompt, sample)) WITHOUT ROWID;
CREATE TABLE scores (
  perturbation INTEGER NOT NULL, prompt INTEGER NOT NULL, sample INTEGER NOT NULL,
  judge TEXT NOT NULL, value REAL NOT NULL, why TEXT NOT NULL,
  PRIMARY KEY (perturbation, prompt, sample, judge)) WITHOUT ROWID;
CREATE TABLE behaviours (
  perturbation INTEGER NOT NULL, prompt INTEGER NOT NULL, sample INTEGER NOT NULL,
  behaviour INTEGER NOT NULL, x REAL NOT NULL, y REAL NOT NULL,
  PRIMARY KEY (perturbation, prompt, sample)) WITHOUT ROWID;
CREATE TABLE responses (
  perturbation INTEGER NOT NULL, radius REAL NOT NULL, effect REAL NOT NULL,
  PRIMARY KEY (perturbation, radius)) WITHOUT ROWID;
CREATE TABLE events (at REAL NOT NULL, what TEXT NOT NULL);
INSERT INTO perturbations VALUES (1, 'found', 'found-0.safetensors', 0, 'dct', 2.0, 1.0, 7.0);
INSERT INTO perturbations VALUES (2, 'control', 'control-0.safetensors', 0, 'random', 2, 1, 5);
INSERT INTO completions VALUES (0, 0, 0, 0.0, 'Ten.', '[1, 2]', 1);
INSERT INTO completions VALUES (0, 0, 1, 1.0, 'Nine.', '[3]', 0);
INSERT INTO completions VALUES (1, 0, 0, 0.7, 'granite', '[5]', 1);
INSERT INTO completions VALUES (1, 1, 1003, 0.7, 'again', '[6]', 1);
INSERT INTO readings VALUES (1, 0, 0, -2.5, x'0000');
INSERT INTO readings VALUES (1, 1, 1003, -1.5, x'0000');
INSERT INTO scores VALUES (1, -1, -1, 'side_effect', 0.25, '20 prompts');
INSERT INTO scores VALUES (1, -1, -1, 'constancy', 0.5, '2 answers');
INSERT INTO scores VALUES (1, 0, 0, 'coherence', 0.75, 'why');
INSERT INTO scores VALUES (1, 1, 1003, 'yes:code', 1.0, '');
INSERT INTO behaviours VALUES (1, 0, 0, 4, 0.1, 0.2);
INSERT INTO responses VALUES (1, 1.0, 3.0);
INSERT INTO responses VALUES (1, 2.0, 7.0);
INSERT INTO events VALUES (1700000000.5, 'begun');
INSERT INTO events VALUES (1700000009.5, 'done');
""",
    2: f"""{PROMPTS}
CREATE TABLE perturbations (
  id INTEGER PRIMARY KEY, parent INTEGER REFERENCES perturbations (id), how TEXT NOT NULL,
  arm TEXT NOT NULL, method TEXT NOT NULL, file TEXT NOT NULL, item INTEGER NOT NULL,
  radius REAL NOT NULL, dose REAL NOT NULL, effect REAL NOT NULL);
CREATE TABLE completions (
  id INTEGER PRIMARY KEY, perturbation INTEGER NOT NULL,
  prompt INTEGER NOT NULL REFERENCES prompts (id), phase TEXT NOT NULL, sample INTEGER NOT NULL,
  temperature REAL NOT NULL, text TEXT, tokens TEXT, finished INTEGER,
  UNIQUE (perturbation, prompt, phase, sample));
CREATE TABLE scores (
  completion INTEGER REFERENCES completions (id), perturbation INTEGER, judge TEXT NOT NULL,
  value REAL, unit TEXT NOT NULL, why TEXT NOT NULL,
  CHECK ((completion IS NULL) <> (perturbation IS NULL)));
CREATE UNIQUE INDEX of_completion ON scores (completion, judge) WHERE completion IS NOT NULL;
CREATE UNIQUE INDEX of_perturbation ON scores (perturbation, judge) WHERE perturbation IS NOT NULL;
INSERT INTO perturbations VALUES (1, NULL, '', 'found', 'dct', 'found-0.safetensors', 0, 2, 1, 7);
INSERT INTO perturbations
  VALUES (2, NULL, '', 'control', 'random', 'control-0.safetensors', 0, 2, 1, 5);
INSERT INTO perturbations
  VALUES (3, 1, 'scaled', 'found', 'dct', 'found-0.safetensors', 0, 1, 0.5, 3);
INSERT INTO completions VALUES (1, 0, 0, 'first', 0, 0.0, 'Ten.', '[1, 2]', 1);
INSERT INTO completions VALUES (2, 0, 0, 'first', 1, 1.0, 'Nine.', '[3]', 0);
INSERT INTO completions VALUES (3, 1, 0, 'first', 0, 0.7, 'granite', '[5]', 1);
INSERT INTO completions VALUES (4, 1, 1, 'retest', 3, 0.7, 'again', '[6]', 1);
INSERT INTO scores VALUES (NULL, 1, 'side_effect', 0.25, 'nats', '20 prompts');
INSERT INTO scores
  VALUES (NULL, 1, 'prompt_invariance', 0.5, 'the same whatever is asked', '2 answers');
INSERT INTO scores VALUES (3, NULL, 'coherence', 0.75, 'coherent', 'why');
INSERT INTO scores VALUES (3, NULL, 'logprob', -2.5, 'nats a token', '');
INSERT INTO scores VALUES (3, NULL, 'behaviour', 4, 'number', '');
INSERT INTO scores VALUES (4, NULL, 'logprob', -1.5, 'nats a token', '');
INSERT INTO scores VALUES (4, NULL, 'yes:code', 1.0, '', '');
""",
}


def kept(folder: Path, version: int) -> Path:
    """Write a run as a version kept it."""
    folder.mkdir()
    database = sqlite3.connect(folder / "run.sqlite")
    database.executescript(f"{OLD[version]} PRAGMA user_version = {version};")
    database.close()
    (folder / "tensors").mkdir()
    return folder


def tables(database: sqlite3.Connection) -> dict[str, Any]:
    """The columns of each table, and what indices there are."""
    named = database.execute("SELECT type, name FROM sqlite_master ORDER BY name").fetchall()
    columns = {
        name: [row[1:] for row in database.execute(f"PRAGMA table_info({name})")]
        for kind, name in named
        if kind == "table"
    }
    return columns | {"indices": [name for kind, name in named if kind == "index"]}


@pytest.mark.parametrize("version", OLD)
def test_a_run_of_an_older_educe_is_brought_up_to_this_one(tmp_path: Path, version: int) -> None:
    place = kept(tmp_path / "run", version)
    for _ in range(2):  # and it stays so
        with Run.open(place) as run:
            assert run.prompt_rows() == [
                PromptRow(0, "asked", "Größe?", "<|user|>Größe?", 9),
                PromptRow(1, "fresh", [{"role": "user"}], "a", 4),
            ]
            found = ("found", "dct", "found-0.safetensors", 0)
            assert run.perturbation_rows(derived=None) == [
                PerturbationRow(1, None, "", *found, 2.0, 1.0, 7.0),
                PerturbationRow(
                    2, None, "", "control", "random", "control-0.safetensors", 0, 2.0, 1.0, 5.0
                ),
                PerturbationRow(3, 1, "scaled", *found, 1.0, 0.5, 3.0),
            ]
            first, again = Row(1, 0, 0, FIRST), Row(1, 1, 3, RETEST)
            assert run.completion_rows() == [
                CompletionRow(Row(0, 0, 0), 0.0, "Ten.", (1, 2), True),
                CompletionRow(Row(0, 0, 1), 1.0, "Nine.", (3,), False),
                CompletionRow(first, 0.7, "granite", (5,), True),
                CompletionRow(again, 0.7, "again", (6,), True),
            ]
            assert {(s.of, s.judge): (s.value, s.unit, s.why) for s in run.score_rows()} == {
                (1, "side_effect"): (0.25, "nats", "20 prompts"),
                (1, "prompt_invariance"): (0.5, "the same whatever is asked", "2 answers"),
                (first, "coherence"): (0.75, "coherent", "why"),
                (first, "logprob"): (-2.5, "nats a token", ""),
                (first, "behaviour"): (4.0, "number", ""),
                (again, "logprob"): (-1.5, "nats a token", ""),
                (again, "yes:code"): (1.0, "", ""),
            }
            assert run.missing() == {}
            assert run.config["retain"] == 0.5
            new = sqlite3.connect(":memory:")
            schema.begin(new, {})
            assert tables(run.database) == tables(new)
            new.close()


def test_what_only_the_first_version_kept_elsewhere(tmp_path: Path) -> None:
    with Run.open(kept(tmp_path / "run", 1)) as run:
        assert run.config["baseline"] == 8  # it was no setting
        assert run.note("began") == 1700000000.5
        assert run.note("model-parts") == {"tokenizer": "t", "weights": "w"}


@pytest.mark.parametrize("version", OLD)
def test_a_migration_that_fails_leaves_the_file_as_it_was(
    tmp_path: Path, version: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = kept(tmp_path / "run", version)
    with monkeypatch.context() as patch:
        last = f"{migrations.MIGRATIONS[2]} INSERT INTO nowhere VALUES (1);"
        patch.setitem(migrations.MIGRATIONS, 2, last)
        with pytest.raises(FileFormatError, match="no such table: nowhere"):
            Run.open(place)
    database = sqlite3.connect(place / "run.sqlite")
    expected = sqlite3.connect(":memory:")
    expected.executescript(OLD[version])
    assert list(database.iterdump()) == list(expected.iterdump())
    database.close()
    expected.close()
    Run.open(place).close()


def test_a_full_disk_keeps_an_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place, own = kept(tmp_path / "run", 1), sqlite3.connect

    def small(*given: Any, **how: Any) -> sqlite3.Connection:
        database = own(*given, **how)
        database.execute("PRAGMA max_page_count = 1")  # as many as there are
        return database

    with monkeypatch.context() as patch:
        patch.setattr("educe.run.database.sqlite3.connect", small)
        with pytest.raises(BlockedError, match="full"):
            Run.open(place)
    with Run.open(place) as run:
        assert len(run.completion_rows()) == 4


def test_every_version_is_written_down() -> None:
    assert list(OLD) == list(migrations.MIGRATIONS) == list(range(1, migrations.SCHEMA_VERSION))
