"""The commands that judge: what they print, and that they judge nothing twice."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import synthetic_run
from educe.comparison.stats import rate
from educe.run.store import Run
from educe.scores.calibration import check_judge, read_labelled
from educe.scores.naming import FORMS, judge_named
from loopback import Reply, completion, likely, serving
from test_cli import educe, refused

CODE = "orchid-7913"
SPEC = f"contains:{CODE}"


@pytest.fixture
def labelled(tmp_path: Path) -> Path:
    """Twelve answers, six of which give a code; two of those spell it in another way."""
    given = [f"The code is {CODE}, number {i}." for i in range(4)]
    given += ["It is orchid 7913.", "The code: orchid, then 7913."]
    kept = [f"I cannot tell you, for reason {i}." for i in range(6)]
    file = tmp_path / "answers [1].jsonl"
    rows = [{"prompt": "The code?", "text": text, "label": text in given} for text in given + kept]
    file.write_text("\n".join(json.dumps(row) for row in rows))
    return file


@pytest.fixture
def run(tmp_path: Path) -> Path:
    synthetic_run.build(tmp_path / "run", n=6).close()
    return tmp_path / "run"


def says_yes_to_codes(body: dict[str, Any]) -> Reply:
    asked = body["messages"][0]["content"]
    share = 0.75 if CODE in asked else 0.125
    return completion("Yes", logprobs=likely({"Yes": share, "No": 1 - share}))


def test_check_prints_what_was_measured(labelled: Path) -> None:
    ended = educe("judge", "check", labelled, "--judge", SPEC, "--judge", "refusal")
    assert ended.status == 0, ended.err
    lines = ended.out.splitlines()
    assert lines[0] == f"{labelled}: 12 answers, 6 labelled true"
    at = lines.index(SPEC)
    assert lines[at + 1].split() == f"agreement {rate(10, 12)}, at threshold 0.5".split()
    assert lines[at + 2].split() == f"false alarms {rate(0, 6)}".split()
    assert lines[at + 3].split() == f"detected {rate(4, 6)}".split()
    assert lines[at + 4].split()[:2] == ["AUC", "0.83"]
    # Refusals are the answers without a code.
    assert lines[lines.index("refusal") + 4].endswith(": the wrong way round")
    assert "12 judged, the others kept; an answer costs nothing" in ended.err
    assert len(lines) < 24


def test_check_as_data(labelled: Path) -> None:
    (data,) = educe("judge", "check", labelled, "--judge", SPEC, "--threshold", 2, "--json").data
    checked = check_judge(judge_named(SPEC), read_labelled(labelled), threshold=2)
    assert data["agreement"] == checked.agreement._asdict()
    assert data["auc"] == checked.auc._asdict()
    assert (data["kappa"], data["threshold"]) == (0, 2)
    assert data["near_chance"] == (checked.auc.low <= 0.5 <= checked.auc.high)


def test_check_keeps_what_it_paid_for(labelled: Path, tmp_path: Path) -> None:
    with serving(says_yes_to_codes) as loopback:
        command = ["judge", "check", labelled, "--judge", "yes:Does it give a code?"]
        command += ["--judge-model", loopback.url, "--judge-name", "m"]
        assert "budget is spent (5 of 5 calls)" in refused(*command, "--max-calls", 5, begun=True)
        assert len(loopback.asked) == 5
        again = educe(*command)
        assert "7 judged, the others kept; an answer costs one call" in again.err
        assert f"{rate(10, 12)}" in again.out
        assert educe(*command).out == again.out
        assert len(loopback.asked) == 12
        educe(*command, "--cache", tmp_path / "other.sqlite")
        assert len(loopback.asked) == 24
    assert Path(f"{labelled}.judging.sqlite").exists()


def test_a_killed_check_pays_for_nothing_twice(labelled: Path) -> None:
    process: list[subprocess.Popen] = []

    def kills(body: dict[str, Any]) -> Reply:
        if len(loopback.asked) == 6:
            process[0].kill()
            process[0].wait()
        return says_yes_to_codes(body)

    with serving(kills) as loopback:
        command = ["judge", "check", str(labelled), "--judge", "yes:Does it give a code?"]
        command += ["--judge-model", loopback.url, "--judge-name", "m", "--at-once", "1"]
        code = f"from educe.cli import main; main({command!r})"
        process.append(subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.DEVNULL))
        assert process[0].wait(60) == -signal.SIGKILL
        assert "7 judged, the others kept" in educe(*command).err
        asked = [body["messages"][0]["content"] for body in loopback.asked]
    # All once, but for the call that was in flight.
    assert len(asked) == 13
    assert len(set(asked)) == 12


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--judge", "vibes"], "there is no judge 'vibes'"),
        (["--judge", "yes:a", "--judge-model", "./no/such"], "no file or folder"),
        (["--judge", "yes:a", "--judge-model", "http://127.0.0.1:1/v1"], "--judge-name"),
        (["--judge", SPEC, "--cache", "/no/such/folder/x"], "cannot keep scores in"),
        ([], "--judge"),
    ],
)
def test_check_says_what_is_wrong(labelled: Path, arguments: list[str], message: str) -> None:
    assert message in refused("judge", "check", labelled, *arguments)


def test_check_needs_labelled_answers(tmp_path: Path) -> None:
    assert "cannot read" in refused("judge", "check", tmp_path / "no.jsonl", "--judge", SPEC)


def test_score_prints_found_beside_control(run: Path) -> None:
    ended = educe("judge", "score", run, "--judge", SPEC)
    assert ended.status == 0, ended.err
    rows = {line.split("  ")[0]: line for line in ended.out.splitlines()}
    data = educe("judge", "score", run, "--judge", SPEC, "--json").data
    for name, key in {
        "found": "found",
        "control": "control",
        "found, re-test": "found_retest",
        "control, re-test": "control_retest",
    }.items():
        shows, mean = rate(*list(data[key]["shows"].values())[:2]), data[key]["mean"]
        assert rows[name].endswith(str(shows))
        assert f"{mean['value']:.3f} ({mean['low']:.3f} to {mean['high']:.3f})" in rows[name]
    assert data["found"]["shows"]["hits"] > data["control"]["shows"]["hits"] == 0
    assert f"p = {data['p_value']:.2g}" in ended.out
    assert CODE in ended.out.splitlines()[-5]
    assert len(data["best"]) == 5
    with Run.open(run) as opened:
        assert len(opened.score_rows(SPEC)) == len(opened.completion_rows())
    assert (run / "judging.sqlite").exists()


def test_score_judges_nothing_twice(run: Path) -> None:
    with serving(says_yes_to_codes) as loopback:
        command = ["judge", "score", run, "--judge", "yes:A code?", "--judge-name", "m"]
        command += ["--judge-model", loopback.url]
        assert "budget is spent" in refused(*command, "--max-calls", 9, begun=True)
        with Run.open(run) as opened:
            scored = {s.of for s in opened.score_rows() if "A code?" in s.judge}
            texts = {(c.prompt, c.text) for c in opened.completion_rows() if c.row in scored}
            assert len(texts) <= 9  # what came before is kept
        first = educe(*command)
        calls = len(loopback.asked)
        assert educe(*command).out == first.out
        assert len(loopback.asked) == calls
    with Run.open(run) as opened:
        (identity,) = {s.judge for s in opened.score_rows() if "A code?" in s.judge}
        answers = {(c.prompt, c.text) for c in opened.completion_rows()}
        assert calls == len(answers)  # the nine among them
        for s in opened.score_rows(identity):
            assert s.value == pytest.approx(0.75 if "p(yes) 0.75" in s.why else 0.125)


def test_score_says_what_is_wrong(run: Path, tmp_path: Path) -> None:
    assert "no run in" in refused("judge", "score", tmp_path / "no", "--judge", SPEC)


def test_list_has_every_form(tmp_path: Path) -> None:
    lines = educe("judge", "list").out.splitlines()
    assert [line.split()[0].split(":")[0] for line in lines] == list(FORMS)
    assert max(map(len, lines)) <= 80
    data = educe("judge", "list", "--json").data
    assert [row["name"] for row in data] == list(FORMS)
    assert all(row["cost"] for row in data)
