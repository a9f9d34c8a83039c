"""Prompts that the model reads alike count once, and fresh ones are fresh, wherever they are given.

The oracle is the same work on the prompts that differ.
"""

from __future__ import annotations

import io
import shutil
import sqlite3
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from educe.comparison.summary import Summary
from educe.derive.front import measure
from educe.derive.listing import deriving
from educe.derive.norms import examine_norm
from educe.errors import PromptError
from educe.model.language import LanguageModel
from educe.model.once import distinct
from educe.progress import Silent
from educe.report import page, terminal
from educe.run.settings import Settings, begin, stored, told_apart
from educe.run.stages import discover_behaviours
from educe.run.store import Run
from read_document import text

SETTINGS = Settings(
    prompts=("Where is it?", "Say it."),
    fresh=("Tell me.", "Who?"),
    method="random",
    n=2,
    source=1,
    target=3,
    radius="3",
    baseline=4,
    max_new_tokens=3,
    look_for="[a-m]",
)


def spoken(text: str) -> list[dict[str, str]]:
    """Write a text as the messages that a template makes of it."""
    return [{"role": "user", "content": text}]


REPEATED = replace(
    SETTINGS,
    prompts=("Where is it?", spoken("Where is it?"), "Say it.", "Say it."),
    fresh=("Say it.", "Tell me.", spoken("Tell me."), "Who?", spoken("Where is it?")),
)
TOLD = [
    "2 of the 4 prompts read as one before: counted once",
    "2 of the 5 fresh prompts read as one that is searched on: left out",
    "1 of the 5 fresh prompts read as one before: counted once",
]


class Listening(Silent):
    """Keeps what is said."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def say(self, sentence: str) -> None:
        self.said.append(sentence)


def carried_out(
    folder: Path, settings: Settings, lm: LanguageModel, *, resume: bool = False
) -> tuple[Summary, list[str]]:
    listening = Listening()
    with begin(folder, settings, resume=resume) as run:
        return discover_behaviours(run, lm=lm, reporter=listening), listening.said


def tables(folder: Path) -> dict[str, list[Any]]:
    database = sqlite3.connect(folder / "run.sqlite")
    names = ("prompts", "perturbations", "completions", "scores")
    try:
        return {name: database.execute(f"SELECT * FROM {name}").fetchall() for name in names}
    finally:
        database.close()


@pytest.fixture(scope="module")
def once(
    tmp_path_factory: pytest.TempPathFactory, tiny_lm: LanguageModel
) -> tuple[Path, Summary, list[str]]:
    """The run of the prompts that differ, and what was said in it."""
    folder = tmp_path_factory.mktemp("once") / "run"
    return folder, *carried_out(folder, SETTINGS, tiny_lm)


def test_a_run_counts_each_prompt_once_and_says_so(
    tiny_lm: LanguageModel, tmp_path: Path, once: tuple[Path, Summary, list[str]]
) -> None:
    summary, said = carried_out(tmp_path / "repeated", REPEATED, tiny_lm)
    folder, plain, nothing = once
    assert tables(tmp_path / "repeated") == tables(folder)
    assert summary.hits == plain.hits
    assert summary.retest_hits == plain.retest_hits
    assert said == summary.facts["remarks"] == TOLD
    assert nothing == plain.facts["remarks"] == []
    shown = io.StringIO()
    terminal.table(summary, tmp_path, Console(file=shown, width=100))
    with Run.open(tmp_path / "repeated") as run:
        drawn = text(page.document(run))
        assert stored(run) == SETTINGS
    for sentence in TOLD:
        assert sentence in shown.getvalue()
        assert sentence in drawn


def test_a_run_goes_on_by_the_settings_it_was_given(
    tiny_lm: LanguageModel, tmp_path: Path, once: tuple[Path, Summary, list[str]]
) -> None:
    begin(tmp_path / "run", REPEATED).close()
    carried_out(tmp_path / "run", REPEATED, tiny_lm, resume=True)
    _, said = carried_out(tmp_path / "run", REPEATED, tiny_lm, resume=True)
    assert said == []
    assert tables(tmp_path / "run") == tables(once[0])


def test_where_no_fresh_prompt_is_left_nothing_is(tiny_lm: LanguageModel, tmp_path: Path) -> None:
    settings = replace(SETTINGS, fresh=(spoken("Say it."), "Where is it?"))
    with pytest.raises(PromptError, match=r"no fresh prompts are left: .* each of the 2"):
        carried_out(tmp_path / "run", settings, tiny_lm)
    assert not (tmp_path / "run").exists()


def test_prompts_differ_as_the_model_reads_them(tiny_lm: LanguageModel) -> None:
    """A prefill makes none alike; nor does a template that is left out."""
    asked, fresh = ["a", spoken("a")], ["b", "a"]
    assert told_apart(tiny_lm, SETTINGS, asked, fresh)[:2] == ([0], [0])
    assert told_apart(tiny_lm, replace(SETTINGS, chat=False), asked, fresh)[:2] == ([0, 1], [0])
    assert told_apart(tiny_lm, SETTINGS, ["a"], fresh, seen=["c"])[1] == [0]
    with pytest.raises(PromptError, match="no fresh prompts are left"):
        told_apart(tiny_lm, SETTINGS, ["a"], fresh, seen=["b"])
    # Of unequal lengths, padding is no part of them.
    batches = [tiny_lm.encode(texts) for texts in (["b", "much longer", "b"], ["b", "c"])]
    assert distinct("prompts", batches[0])[0] == [0, 1]
    assert distinct("prompts", batches[0], batches[1])[0] == [1]


def test_ordinary_prompts_count_once_wherever_a_file_of_them_is_read(
    tiny_lm: LanguageModel, tmp_path: Path, once: tuple[Path, Summary, list[str]]
) -> None:
    said, fronts, norms = [], [], []
    for name, lines in (("plain", ["Hi.", "So?"]), ("more", ["Hi.", "So?", "Hi.", "So?", "Hi."])):
        (tmp_path / f"{name}.txt").write_text("\n".join(lines))
        shutil.copytree(once[0], tmp_path / name)
        listening, ordinary = Listening(), str(tmp_path / f"{name}.txt")
        with Run.open(tmp_path / name) as run:
            with deriving(run, lm=tiny_lm, reporter=listening) as work:
                name = measure(work, ordinary=ordinary)
            fronts.append([(s.of, s.value) for s in run.score_rows(name)])
            told = examine_norm(run, [1], lm=tiny_lm, ordinary=ordinary, reporter=listening)
        assert told.asked.ordinary == ordinary
        norms.append(told)
        said.append([s for s in listening.said if "ordinary" in s])
    assert fronts[0] == fronts[1] != []
    assert norms[0].equal == norms[1].equal
    assert norms[0].used.equals(norms[1].used)
    assert (norms[0].asked.prompts, norms[0].asked.kl) == (2, norms[1].asked.kl)
    assert said == [[], 2 * ["3 of the 5 ordinary prompts read as one before: counted once"]]


def test_other_prompts_are_none_of_those_searched_on(
    tiny_lm: LanguageModel, tmp_path: Path
) -> None:
    retaining = replace(SETTINGS, method="melbo", method_settings={"steps": 2}, retain=1.0)
    for name, lines in (("plain", ["Hi.", "So?"]), ("more", ["Hi.", "Say it.", "So?", "Hi."])):
        (tmp_path / f"{name}.txt").write_text("\n".join(lines))
        settings = replace(retaining, retain_prompts=str(tmp_path / f"{name}.txt"))
        _, said = carried_out(tmp_path / name, settings, tiny_lm)
        assert len(said) == (2 if name == "more" else 0)
    assert tables(tmp_path / "more") == tables(tmp_path / "plain")
    assert "other prompts read as one that is searched on: left out" in said[0]
