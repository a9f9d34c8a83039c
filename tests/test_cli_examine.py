"""The command that examines: one screen, JSON, a part of the report, and what is wrong."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from educe.activations import corpus, natural
from educe.activations.ground import Ground
from educe.perturb import PerturbationSet
from educe.run.store import Run
from test_cli import educe, model, refused  # noqa: F401 - a fixture
from test_report import Page


@pytest.fixture(scope="module")
def notes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A corpus in short paragraphs: the tiny model has a short context."""
    file = tmp_path_factory.mktemp("corpus") / "notes.txt"
    texts = (" ".join(text.split())[at : at + 100] for text in corpus.passages() for at in (0, 100))
    file.write_text("\n\n".join(text for text in texts if len(text) > 40))
    return file


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, model: Path) -> Path:  # noqa: F811
    """A quick run, inside a subspace."""
    folder = tmp_path_factory.mktemp("runs") / "run [1]"
    short = ["--model", model, "--device", "cpu", "--max-new-tokens", 4, "--radius", "3.0"]
    ended = educe("discover", "Tell me.", *short, "-n", 2, "--within", "prompts:4", "--out", folder)
    assert ended.status == 0, ended.err
    return folder


@pytest.fixture(scope="module")
def data(run: Path, notes: Path) -> dict:
    """What the command says of two perturbations, as JSON."""
    ended = educe("examine", run, 2, 3, "--corpus", notes, "--tokens", 12000, "--json")
    assert ended.status == 0, ended.err
    return ended.data


def test_discover_searched_inside_and_the_report_repeats_it(run: Path) -> None:
    found = PerturbationSet.load(run / "tensors" / "found-0.safetensors")
    assert found.kind.name == "within"
    page = (run / "report.html").read_text()
    assert "--within prompts:4" in page
    assert "--ball plain" in page


def test_passports_are_kept_in_the_run_and_shown_in_the_report(run: Path, data: dict) -> None:
    assert [p["number"] for p in data["passports"]] == [2, 3]
    assert [p["arm"] for p in data["passports"]] == ["found", "control"]
    with Run.open(run) as opened:
        kept = opened.passports()
    assert kept == json.loads(json.dumps(data["passports"]))
    page = Page((run / "report.html").read_text())
    sentences = page.texts["words"]
    assert [" ".join(s.split()) for s in sentences] == [p["words"] for p in data["passports"]]
    shown = [d for _, d in page.elements if d.get("data-testid") == "passport"]
    assert [d["data-number"] for d in shown] == ["2", "3"]
    specs = json.loads(
        next(text for attrs, text in page.scripts if attrs.get("id") == "charts-specs")
    )
    assert {"spectrum-2", "depth-2", "growth-2", "spectrum-3"} <= set(specs)
    values = [v for layer in specs["depth-2"]["layer"] for v in layer["data"]["values"]]
    own = [v["at"] for v in values if v.get("of") == "perturbation"]
    assert own[: len(data["passports"][0]["depth"])] == [
        at["distance"]["found"] for at in data["passports"][0]["depth"]
    ]


def test_the_screen_has_the_words_and_the_numbers(run: Path, notes: Path, data: dict) -> None:
    ended = educe("examine", run, 2, "--corpus", notes, "--tokens", 12000)
    assert ended.status == 0, ended.err
    told = " ".join(re.sub(r"[│╭╮╰╯─]", " ", ended.out).split())
    first = data["passports"][0]
    assert first["words"] in told
    assert f"{first['share']['found']:.2f}" in told
    assert f"{100 * first['length']['percentile']:.1f}" in told
    assert len(ended.out.splitlines()) < 36
    assert max(map(len, ended.out.splitlines()[:-1])) <= 80
    assert "report:" in told


def test_what_cannot_be_examined_is_said_in_a_line(run: Path, notes: Path, tmp_path: Path) -> None:
    assert "name at least one" in refused("examine", run)
    assert "no perturbation 99" in refused("examine", run, 99)
    assert "there is no run" in refused("examine", tmp_path, 1)
    line = refused("examine", run, 1, "--corpus", tmp_path / "none.txt", begun=True)
    assert "cannot read the corpus" in line
    short = tmp_path / "short.txt"
    short.write_text("One line.\n")
    assert "can be held out" in refused("examine", run, 1, "--corpus", short, begun=True)


def test_discover_refuses_a_subspace_that_it_cannot_read() -> None:
    assert "give a rank" in refused("discover", "a", "--within", "some")
    assert "needs a subspace" in refused("discover", "a", "--ball", "whitened")


def test_a_second_command_reads_no_corpus_runs_no_controls_and_says_the_same(
    run: Path, notes: Path, data: dict, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(natural, "gather", None)  # to read it is an error
    monkeypatch.setattr(Ground, "_run", None)  # and so it is to run controls
    ended = educe("examine", run, 2, 3, "--corpus", notes, "--tokens", 12000, "--json")
    assert ended.status == 0, ended.err
    assert ended.data == data
