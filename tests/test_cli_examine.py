"""The command that examines: one screen, JSON, a part of the report, and what is wrong."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from educe.activations import corpus, natural, stored
from educe.activations.project import ablating, plain
from educe.activations.reference import Reference
from educe.activations.report import ABLATED, FORMS, RANDOM, words
from educe.forward.generation import generate
from educe.perturbation.set import PerturbationSet
from educe.rows import Row
from educe.run.fill import groups
from educe.run.store import Run
from educe.run.work import at_work
from read_document import blocks, charts, of_page, part, table, text
from test_cli import educe, model, refused  # noqa: F401 - a fixture


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
    short += ["--baseline", 4]
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
    lines = of_page(run / "report.html")["command"]
    assert "--within prompts:4" in lines
    assert "--ball plain" in lines


def test_reports_are_kept_in_the_run_and_shown_on_the_page(run: Path, data: dict) -> None:
    assert [r["number"] for r in data["manifold"]] == [2, 3]
    assert [r["arm"] for r in data["manifold"]] == ["found", "control"]
    assert all(0 < r["standings"]["read"][-1]["found"] < 1 for r in data["manifold"])
    with Run.open(run) as opened:
        kept = stored.reports(opened)
    assert json.loads(json.dumps([r.data() for r in kept])) == data["manifold"]
    shown = part(of_page(run / "report.html"), "manifold")
    cards = list(blocks(shown, "card"))
    assert [text(card["title"]) for card in cards] == ["#2", "#3"]
    for card, report in zip(cards, kept, strict=True):
        assert text(next(blocks(card, "text"))["spans"]) == words(report)
        top = table(card, "at its layer")[0]
        assert (top["this"], top["%ile"]) == (
            *(report["energy_top"].found, report["energy_top"].percentile),
        )
    specs = charts(shown)
    assert {"spectrum-2", "depth-2", "growth-2", "spectrum-3"} <= set(specs)
    standings = data["manifold"][0]["standings"]
    two = [f"{standings[name][-1]['found']:.2f}" for name in ("energy_top", "read")]
    three = text(list(blocks(cards[0], "text"))[1]["spans"])
    assert three == "Present {}, read {}, reachable: not asked (educe invert).".format(*two)
    values = [v for layer in specs["depth-2"]["layer"] for v in layer["data"]["values"]]
    own = [v["at"] for v in values if v.get("of") == "perturbation"]
    layers = kept[0].facts.layers
    told = [kept[0].at("distance", layer).found for layer in layers]
    assert own[: len(layers)] == pytest.approx(told, rel=5e-4)  # charts have four digits


def test_every_number_is_a_score_of_the_run(run: Path, data: dict) -> None:
    with Run.open(run) as opened:
        frame, kept = opened.scores, stored.reports(opened)
    for report in kept:
        own = frame[(frame.perturbation == report.number) & frame["prompt"].isna()]
        scores = dict(zip(own.judge, own.value, strict=True))
        for judge in report.standings:
            assert scores[judge] == report[judge].found
        assert set(own[own.judge == "heldout_kl"].unit) == {"nats"}


def test_what_is_derived_is_written_by_the_one_pipeline(run: Path, data: dict) -> None:
    """A text under a derived row is that of the model which plain hooks change."""
    with Run.open(run) as opened, at_work(opened) as work:
        kept = stored.reports(opened)[0]
        rows = {p.how: p for p in reversed(opened.perturbation_rows(derived=True))}
        texts = {c.row: c.text for c in opened.completion_rows()}
        (group,) = groups(opened, [2])
        added = group.kind.added(group.theta, [0], [0])
        for form, about in (("about the origin", None), ("about the mean", "mean")):
            row = rows[ABLATED.format(form)]
            assert row.parent == kept.number
            (own,) = groups(opened, [row.id])
            point = own.theta[0, 2 * work.lm.width :]
            assert bool(point.any()) == bool(about)
            away = plain(added[0, 0], point.double())
            with ablating(work.lm, away, [kept.facts.layer]):
                (done,) = generate(work.lm, work.batch, [Row(0, 0)], max_new_tokens=4)
            assert texts[Row(row.id, 0)] == done[0].text
            assert kept.outcomes(row.how)[0].text == done[0].text
        randoms = [p for p in opened.perturbation_rows(derived=True) if p.how.startswith(RANDOM)]
        assert {p.arm for p in randoms} == {"control"}
        assert len(randoms) == 2 * 5 * len(FORMS)
        written = [p for p in randoms if Row(p.id, 0) in texts]
        assert len(written) == 2 * len(FORMS)  # one of five is enough to read
    assert kept.texts == (texts[Row(0, 0)], texts[Row(2, 0)])


def test_the_screen_has_the_words_and_the_numbers(run: Path, notes: Path, data: dict) -> None:
    ended = educe("examine", run, 2, "--corpus", notes, "--tokens", 12000)
    assert ended.status == 0, ended.err
    told = " ".join(ended.out.split())
    first = data["manifold"][0]
    assert first["words"] in told
    assert f"{first['standings']['energy_top'][-1]['found']:.3g}" in told
    assert f"{100 * first['standings']['mahalanobis'][-1]['percentile']:.1f}" in told
    assert len(ended.out.splitlines()) < 38
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
    monkeypatch.setattr(natural, "gathered", None)  # to read it is an error
    monkeypatch.setattr(Reference, "_run", None)  # and so it is to run controls
    with Run.open(run) as opened:
        stored.file(opened, 3).unlink()  # as if it had been killed before the second was kept
        rows = opened.perturbation_rows(derived=None)
    ended = educe("examine", run, 2, 3, "--corpus", notes, "--tokens", 12000, "--json")
    assert ended.status == 0, ended.err
    assert ended.data == data
    with Run.open(run) as opened:
        assert opened.perturbation_rows(derived=None) == rows
    monkeypatch.setattr(Reference, "__init__", None)  # where nothing is missing, nothing is done
    ended = educe("examine", run, 2, 3, "--corpus", notes, "--tokens", 12000, "--json")
    assert ended.data == data


def test_another_corpus_takes_the_place_of_the_report(
    run: Path, notes: Path, data: dict, tmp_path: Path
) -> None:
    other = tmp_path / "other.txt"
    other.write_text("\n\n".join(notes.read_text().split("\n\n")[::2]))
    copy = shutil.copytree(run, tmp_path / "copy")
    ended = educe("examine", copy, 2, "--corpus", other, "--tokens", 6000, "--json")
    assert ended.status == 0, ended.err
    (made,) = ended.data["manifold"]
    assert made["facts"]["fitted"] < data["manifold"][0]["facts"]["fitted"]
    with Run.open(copy) as opened:
        first, second = stored.reports(opened)
    assert json.loads(json.dumps(first.data())) == made
    assert json.loads(json.dumps(second.data())) == data["manifold"][1]


def test_what_was_derived_changes_nothing_of_the_run(run: Path, data: dict, tmp_path: Path) -> None:
    """To go on with an examined run puts the texts of its search into the same groups."""
    copy = shutil.copytree(run, tmp_path / "copy")
    with Run.open(copy) as opened:
        before = opened.score_rows("behaviour")
    ended = educe("discover", "--resume", "--out", copy)
    assert ended.status == 0, ended.err
    with Run.open(copy) as opened:
        assert opened.score_rows("behaviour") == before
    assert before
