"""The command that examines what the norm tells: its screen, JSON, and part of the report."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from educe.comparison.norm import SHARES, norm_of
from educe.report import norms
from educe.run.store import Run
from loopback import Reply, completion, likely, serving
from read_document import charts, count, of_page, part, table, text
from test_cli import educe, model, refused  # noqa: F401 - a fixture

HOW = ("--compared", 3, "--budget", 0.05)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, model: Path) -> Path:  # noqa: F811
    folder = tmp_path_factory.mktemp("runs") / "run"
    short = ["--model", model, "--device", "cpu", "--max-new-tokens", 3, "--radius", "3.0"]
    short += ["--baseline", 4]
    ended = educe(
        "discover", "Tell me.", *short, "-n", 3, "--method", "random", "--out", folder,
        "--look-for", "[aeiou]",
    )  # fmt: skip
    assert ended.status == 0, ended.err
    return folder


@pytest.fixture(scope="module")
def ordinary(run: Path) -> Path:
    file = run.parent / "ordinary.txt"
    file.write_text("Name a tree.\n")
    return file


@pytest.fixture(scope="module")
def told(run: Path, ordinary: Path) -> dict:
    ended = educe("examine", run, 1, 4, "--norm", *HOW, "--ordinary", ordinary, "--json")
    assert ended.status == 0, ended.err
    return ended.data["norm"]


def test_the_report_shows_what_is_kept(run: Path, told: dict) -> None:
    with Run.open(run) as opened:
        kept = norm_of(opened)
    assert kept is not None
    assert [c["number"] for c in told["curves"]] == [c.number for c in kept.curves]
    assert [e["p_new"] for e in told["equal"]] == [e.p_new for e in kept.equal]
    shown = part(of_page(run / "report.html"), "norm")
    marks = {text(row["perturbation"]): row for row in table(shown, "perturbation")}
    for curve in kept.curves:
        row = marks[norms.called(curve)]
        assert [row[name] for name in ("leaves", "flat", "new", "nons.")] == list(curve.marks)
    assert [row["p set"] for row in table(shown, "score")] == [s.top.grubbs for s in kept.spreads]
    equal = table(shown, "at")
    assert [row["it"] for row in equal] == [
        count(arm.shows) for e in kept.equal for arm in (e.found, e.control)
    ]
    specs = charts(shown)
    names = ("effect", "exponent", "kl_p95", "coherence", "novelty", "score", "rules", "spread")
    for name in (*names, "equal"):
        assert f"norm-{name}" in specs
    lines = specs["norm-coherence"]["layer"][-1]["data"]
    values = lines.get("values") or specs["norm-coherence"]["datasets"][lines["name"]]
    found = [v for v in values if v["number"] == 1]
    assert sorted(v["share"] for v in found) == pytest.approx(
        sorted([*SHARES, *(-s for s in SHARES)])
    )
    kept = [p["coherence"] for c in told["curves"][:2] for p in c["points"]]
    assert sorted(v["value"] for v in found) == pytest.approx(sorted(kept), rel=1e-3)
    band = specs["norm-coherence"]["layer"][0]["data"]["values"]
    assert len(band) == 2 * len(SHARES)


def test_the_screen_has_the_choices_and_the_rates(run: Path, ordinary: Path, told: dict) -> None:
    ended = educe("examine", run, 1, 4, "--norm", *HOW, "--ordinary", ordinary)
    assert ended.status == 0, ended.err
    line = next(line for line in ended.out.splitlines() if re.match(r"\s*\+1 ", line))
    shown = list(told["curves"][0]["choices"].values())
    assert line.split()[-3:] == ["–" if v is None else f"{v:.2f}" for v in shown]
    of = told["equal"][1]["found"]["shows"]
    assert f"{of['hits']}/{of['trials']}" in ended.out
    assert max(map(len, ended.out.splitlines()[:-1])) <= 80
    assert "report:" in ended.out


def test_a_judge_that_asks_asks_the_model_that_is_named_and_pays_once(
    run: Path, ordinary: Path
) -> None:
    """By a server that says yes with the same share, whatever the audited model would say."""

    def share(body: dict[str, Any]) -> Reply:
        return completion("Yes", logprobs=likely({"Yes": 0.6, "No": 0.2}))

    with serving(share) as loopback:
        command = ["examine", run, 1, "--norm", *HOW, "--judge", "yes:Is it odd?", "--json"]
        command += ["--judge-model", loopback.url, "--judge-name", "m", "--ordinary"]
        norm = educe(*command, ordinary).data["norm"]
        points = [point for curve in norm["curves"] for point in curve["points"]]
        assert [p["score"] for p in points] == pytest.approx([0.75] * len(points))
        # With other ordinary prompts all points are measured anew, and no answer is judged anew.
        other = run.parent / "other.txt"
        other.write_text("Name a bird.\n")
        assert educe(*command, other).status == 0
        questions = [body["messages"][0]["content"] for body in loopback.asked]
    assert len(set(questions)) == len(questions) > 0
    assert (run / "judging.sqlite").exists()


def test_what_cannot_be_examined_is_said_in_a_line(run: Path, tmp_path: Path) -> None:
    assert "no perturbation 99" in refused("examine", run, 99, "--norm")
    line = refused("examine", run, "--norm", "--ordinary", tmp_path / "none.txt", *HOW, begun=True)
    assert "cannot read prompts" in line
    assert "no judge" in refused("examine", run, "--norm", "--judge", "tarot", begun=True)
