"""The command that inverts: JSON, a part of the page, and what is wrong."""

from __future__ import annotations

from pathlib import Path

import pytest

from educe.run.store import Run
from read_document import blocks, of_page, part, text
from test_cli import educe, model, refused  # noqa: F401 - a fixture

QUICK = ["--tokens", 2, "--reads", 30, "--answer", 1, "--searched", 1, "--fresh", 2]
QUICK += ["--controls", 2]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, model: Path) -> Path:  # noqa: F811
    folder = tmp_path_factory.mktemp("runs") / "one"
    short = ["--model", model, "--device", "cpu", "--max-new-tokens", 4, "--radius", "3.0"]
    short += ["--baseline", 4, "--method", "random"]
    ended = educe("discover", "Tell me.", *short, "-n", 2, "--out", folder)
    assert ended.status == 0, ended.err
    return folder


def test_it_says_the_same_as_json_on_the_page_and_in_the_run(run: Path) -> None:
    ended = educe("invert", run, 1, *QUICK, "--json")
    assert ended.status == 0, ended.err
    (told,) = ended.data["reachable"]
    assert [test["aim"] for test in told["tests"]] == ["source", "output"]
    made = (["natural vector"] * 2, ["text", "text", "natural vector"])
    for test, made_of in zip(told["tests"], made, strict=True):
        assert [c["role"] for c in test["controls"]] == [*made_of, "random", "random", "shuffled"]
    assert told["words"].split(".")[0].lower() == told["verdict"]
    (card,) = blocks(part(of_page(run / "report.html"), "reachable"), "card")
    assert text(next(blocks(card, "text"))["spans"]) == " ".join(told["words"].split())
    with Run.open(run) as kept:
        (score,) = kept.score_rows("reachable")
    assert score.value == told["tests"][0]["found"]["share"]
    assert told["verdict"] in score.why


def test_fewer_controls_are_said(run: Path) -> None:
    ended = educe("invert", run, 2, *QUICK[:-1], 0)
    assert ended.status == 0, ended.err
    assert "no statement" in ended.out.lower()
    assert "0 of 8 controls" in " ".join(ended.out.split())


def test_what_is_wrong(run: Path) -> None:
    assert "name at least one" in refused("invert", run)
    assert "no perturbation 99" in refused("invert", run, 99)
