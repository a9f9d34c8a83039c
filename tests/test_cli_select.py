"""The commands that choose: what they print, what they hand on, and what they refuse."""

from __future__ import annotations

import json
import shlex
import shutil
from pathlib import Path
from typing import Any

import pytest

import tiny
from educe.comparison.chance import best_by_chance
from educe.comparison.stats import rate
from educe.run.store import Run
from test_cli import Ended, educe, refused, screen

QUICK = ("--device", "cpu", "--max-new-tokens", 5)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model, prompts, and a finished run."""
    place = tmp_path_factory.mktemp("select")
    tiny.hf_model("llama").save_pretrained(place / "model")
    tiny.tokenizer().save_pretrained(place / "model")
    (place / "prompts.txt").write_text("".join(f"Tell me of {c}.\n" for c in "abcdef"))
    (place / "fresh.txt").write_text("".join(f"What is {c}?\n" for c in "ghij"))
    quick = ["--baseline", 4]
    quick += ["--radius", 8, "-n", 4, "--set", "iterations=2", "--out", place / "run"]
    ended = educe("discover", "Say it.", "--model", place / "model", *QUICK, *quick)
    assert ended.status == 0, ended.err
    return place


def asked(place: Path, *more: object) -> list[object]:
    files = ["--prompts", place / "prompts.txt", "--fresh", place / "fresh.txt"]
    rungs = [] if "--rungs" in more else ["--rungs", "2:0.5,6:1"]
    return ["select", place / "run", *files, *rungs, *more]


@pytest.fixture(scope="module")
def selected(place: Path) -> Ended:
    ended = educe(*asked(place, "--look-for", "[a-m]", "--json"))
    assert ended.status == 0, ended.err
    return ended


def test_select_counts_what_is_kept(place: Path, selected: Ended) -> None:
    data = selected.data
    assert data["prompts"] == [2, 6]
    assert data["found"]["spent"] == data["control"]["spent"] == [4 * 2, 2 * 4]
    with Run.open(place / "run") as run:
        texts = run.completion_rows()
        fresh = {p.id: p.content for p in run.prompt_rows("tested on")}
        seen = {p.id for p in run.prompt_rows("chosen on")}
    assert list(fresh.values()) == [f"What is {c}?" for c in "ghij"]
    assert data["texts"] == sum(c.prompt in fresh.keys() | seen for c in texts)
    best = data["found"]["chosen"][0]
    again = [c.text for c in texts if c.perturbation == best["number"] and c.prompt in fresh]
    hits = sum(any("a" <= letter <= "m" for letter in text) for text in again)
    assert (best["again"]["hits"], best["again"]["trials"]) == (hits, 4)
    assert best["again"]["low"] == rate(hits, 4).low
    assert data["chance"]["mean"] == best_by_chance(4, 6, data["control"]["first"]["mean"]).mean


def test_select_shows_the_re_test_first_on_one_screen(
    place: Path, selected: Ended, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("educe.run.fill.generate", lambda *_, **__: pytest.fail("paid twice"))
    ended = educe(*asked(place, "--look-for", "[a-m]"))
    shown = screen(Ended(ended.status, ended.out, ""))
    lines = shown.splitlines()
    assert lines[0].startswith("re-test")
    for line, arm in zip(lines[1:3], ("found", "control"), strict=True):
        best = selected.data[arm]["chosen"][0]
        assert f"{best['again']['hits']} of 4 (" in line
        assert line.endswith(f"number {best['number']}")
    assert f"by chance{'':31}{selected.data['chance']['mean']:.0%}" in shown


def test_a_named_judge_chooses_as_the_same_rule_does(place: Path, selected: Ended) -> None:
    judged = educe(*asked(place, "--judge", "regex:[a-m]", "--json"))
    assert judged.status == 0, judged.err
    for arm in ("found", "control"):
        assert judged.data[arm] == selected.data[arm]


def test_a_judge_of_its_own_keeps_its_scores_in_the_run(place: Path, tmp_path: Path) -> None:
    shutil.copytree(place / "run", tmp_path / "run")
    command = [w if w != place / "run" else tmp_path / "run" for w in asked(place)]
    judged = educe(*command, "--judge", "contains:e", "--json")
    assert judged.status == 0, judged.err
    with Run.open(tmp_path / "run") as run:
        best = judged.data["found"]["chosen"][0]
        scores = {s.of: s.value for s in run.score_rows(judged.data["judge"])}
        rows = [c for c in run.completion_rows("retest") if c.perturbation == best["number"]]
        fresh = {p.id for p in run.prompt_rows("tested on")}
    told = [scores[c.row] for c in rows if c.prompt in fresh]
    assert told == [float("e" in c.text.lower()) for c in rows if c.prompt in fresh]
    assert sum(told) == best["again"]["hits"]


@pytest.mark.parametrize(
    ("more", "told"),
    [
        ([], "--look-for or --judge"),
        (["--look-for", "a", "--judge", "contains:a"], "--look-for or --judge"),
        (["--look-for", "["], "regular expression"),
        (["--judge", "taste"], "taste"),
        (["--look-for", "a", "--rungs", "10"], "prompts:share"),
        (["--look-for", "a", "--rungs", "10:2"], "rungs"),
        (["--look-for", "a", "--top", 0], "whole number from 1 to"),
    ],
)
def test_select_says_what_is_wrong(place: Path, more: list[object], told: str) -> None:
    assert told in refused(*asked(place, *more))


def test_fresh_prompts_must_be_fresh(place: Path) -> None:
    files = ["--prompts", place / "prompts.txt", "--fresh", place / "prompts.txt"]
    assert "no fresh prompt" in refused("select", place / "run", *files, "--look-for", "a")


@pytest.fixture(scope="module")
def tuned(place: Path) -> Ended:
    grid = ["--methods", "dct-linear,noise", "--sources", "1", "--radii", "4,8", "--target", -1]
    ended = educe(
        *("tune", "Tell me.", "--look-for", "[a-m]", "--model", place / "model", *QUICK, *grid),
        *("-n", 2, "--pulls", 16, "--retest", 4, "--out", place / "tuned", "--json"),
    )
    assert ended.status == 0, ended.err
    return ended


def test_tune_hands_on_flags_that_discover_takes(place: Path, tuned: Ended, tmp_path: Path) -> None:
    data = tuned.data
    for arm in ("found", "control"):
        assert sum(one["pulls"] for one in data[arm]) == 16
        assert all(one["low"] < one["mean"] < one["high"] for one in data[arm])
    assert [again["trials"] for again in data["again"]] == [4, 4]
    best = data["found"][0]["setting"]
    flags = shlex.split(data["flags"])
    assert flags[flags.index("--method") + 1] == best["method"]
    ended = educe(
        *("discover", "Tell me.", "--model", place / "model", *QUICK, *flags),
        *("-n", 2, "--baseline", 4, "--out", tmp_path / "run", "--json"),
    )
    assert ended.status == 0, ended.err
    assert ended.data["facts"]["radii"] == [float(best["radius"])]
    assert ended.data["facts"]["source"] == 1


@pytest.mark.usefixtures("tuned")
def test_the_other_sign_is_handed_on_as_files(place: Path, tmp_path: Path) -> None:
    from educe.cli.select import _flags
    from educe.comparison.bandit import Setting
    from educe.selection.tuning import Tuned, stored_tuning

    files = tuple(
        place / "tuned" / "tensors" / f"{arm}-0.safetensors" for arm in ("found", "control")
    )
    with Run.open(place / "tuned") as run:
        was = stored_tuning(run)
    nothing = Tuned((), (), (rate(0, 1), rate(0, 1)), 1.0, (files[0], files[1]), 0)
    flags = shlex.split(_flags(Setting("dct", 1.0, "4", -1), nothing, was))
    ended = educe(
        *("discover", "Tell me.", "--model", place / "model", *QUICK, *flags),
        *("--baseline", 4, "--out", tmp_path / "run", "--json"),
    )
    assert ended.status == 0, ended.err
    assert len(ended.data["perturbations"]) == 4


def test_tune_resumes_and_shows_one_screen(
    place: Path, tuned: Ended, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("educe.run.fill.generate", lambda *_, **__: pytest.fail("paid twice"))
    ended = educe("tune", "--resume", "--out", place / "tuned")
    assert tuned.data["flags"] in ended.out
    told = ended.out.replace(tuned.data["flags"], "FLAGS").replace(str(place), "PLACE")
    shown = screen(Ended(ended.status, told, ""))
    assert shown.startswith("re-test")
    assert "on the same prompts: no --fresh" in shown.splitlines()[0]
    assert tuned.data["fresh"] is False
    assert f"{tuned.data['texts']} texts kept" in shown
    again = educe("tune", "--resume", "--out", place / "tuned", "--json")
    assert json.loads(again.out) == tuned.data


def test_tune_says_that_its_retest_was_on_fresh_prompts(place: Path, tmp_path: Path) -> None:
    grid = ["--methods", "dct-linear", "--sources", "1", "--radii", "4,8"]
    ended = educe(
        *("tune", "Tell me.", "--look-for", "[a-m]", "--model", place / "model", *QUICK, *grid),
        *("-n", 1, "--pulls", 16, "--retest", 2, "--target", -1, "--fresh", place / "fresh.txt"),
        *("--out", tmp_path / "tuned"),
    )
    assert ended.status == 0, ended.err
    assert ended.out.splitlines()[0].endswith("on fresh prompts")


@pytest.mark.parametrize(
    ("more", "told"),
    [
        (["Tell me."], "reward"),
        (["--look-for", "a"], "no prompt"),
        (["Tell me.", "--proxy", "plain"], "its own prompts"),
        (["Tell me.", "--look-for", "a", "--methods", "random"], "control"),
        (["Tell me.", "--look-for", "a", "--sources", "one"], "sources"),
        (["Tell me.", "--look-for", "a", "--radii", "auto"], "radius"),
        (["--resume"], "--out"),
    ],
)
def test_tune_says_what_is_wrong(more: list[object], told: str) -> None:
    assert told in refused("tune", *more)


def test_a_selection_that_is_refused_leaves_nothing(place: Path, tmp_path: Path) -> None:
    shutil.copytree(place / "run", tmp_path / "run", ignore=shutil.ignore_patterns("selections"))
    with Run.open(tmp_path / "run") as run:
        run.remember("model-parts", run.note("model-parts") | {"weights": "others"})
    before = sorted(path.name for path in (tmp_path / "run").iterdir())
    files = ["--prompts", place / "prompts.txt", "--fresh", place / "fresh.txt"]
    command = ["select", tmp_path / "run", *files, "--look-for", "a", "--rungs", "2:1"]
    assert "another model" in refused(*command, begun=True)
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == before


def test_an_interrupt_before_anything_is_computed_leaves_nothing(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: Any, **__: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr("educe.model.loading.load", interrupted)
    for command in (["discover", "a"], ["tune", "a", "--look-for", "a"]):
        ended = educe(*command, "--model", place / "model", "--out", tmp_path / "a" / "run")
        assert ended.status == 130
        assert ended.err.endswith("educe: interrupted, nothing is lost\n")
        assert list(tmp_path.iterdir()) == []
