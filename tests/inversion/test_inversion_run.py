"""Inversions of a run: the controls are there, what was cut off goes on, and what is said of it."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import small_run
from educe.forward.inserted import Opening
from educe.inversion import in_run
from educe.inversion.control import difference, string
from educe.inversion.kept import reports
from educe.inversion.reach import Settings
from educe.inversion.report import CONTROLS, Case, Facts, Reachability, Verdict
from educe.inversion.searches import SEARCHES, gcg
from educe.model.language import LanguageModel
from educe.perturbation.set import PerturbationSet
from educe.report import reachable, screen
from educe.report.document import Mark, to_json
from educe.run.store import Run
from read_document import charts, table, text

QUICK = Settings(tokens=3, budget=60, answer=2, searched=2, fresh=3, controls=2)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, tiny_lm: LanguageModel) -> Path:
    return small_run.small_run(tmp_path_factory.mktemp("runs") / "one", tiny_lm, "random")


@pytest.fixture(scope="module")
def report(folder: Path, tiny_lm: LanguageModel) -> Reachability:
    with Run.open(folder) as run:
        (made,) = in_run.invert_run(run, [2], lm=tiny_lm, settings=QUICK)
    return made


@pytest.fixture
def fresh_run(folder: Path, tmp_path: Path) -> Iterator[Run]:
    shutil.copytree(folder, tmp_path / "run")
    with Run.open(tmp_path / "run") as run:
        yield run


def test_every_control_is_there_at_the_same_budget(report: Reachability, folder: Path) -> None:
    assert [c.role for c in report.controls] == [
        CONTROLS[0], CONTROLS[0], CONTROLS[1], CONTROLS[2], CONTROLS[2], CONTROLS[3]
    ]  # fmt: skip
    assert len(report.controls) == report.facts.wanted
    assert "controls were run" not in report.words
    # A step is begun while there is budget: none costs more than gradients and a width of reads.
    config = gcg.GcgConfig()
    most = QUICK.budget + (3 + config.width) * QUICK.searched
    assert all(QUICK.budget <= c.reads <= most for c in (report.found, *report.controls))
    with Run.open(folder) as run:
        (score,) = run.score_rows("reachable")
        assert (score.of, score.value) == (2, report.found.share)
        assert reports(run) == [report]
        told = PerturbationSet.load(run.tensors / run.perturbation_rows()[1].file)
        assert report.facts.norm == pytest.approx(float(told.theta[1].norm()))


def test_a_known_text_is_reached_in_full_by_itself(report: Reachability) -> None:
    assert [c.own for c in report.of("text")] == pytest.approx([1.0, 1.0], abs=1e-4)


def test_a_second_call_reads_what_is_kept(
    report: Reachability, folder: Path, tiny_lm: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*args: object, **options: object) -> None:
        raise AssertionError("nothing is left to search")

    monkeypatch.setattr(in_run.Bench, "case", never)
    with Run.open(folder) as run:
        assert in_run.invert_run(run, [2], lm=tiny_lm, settings=QUICK) == [report]


def test_what_was_cut_off_goes_on_to_the_same(
    report: Reachability,
    fresh_run: Run,
    tiny_lm: LanguageModel,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with fresh_run.writing():
        fresh_run.database.execute("DELETE FROM meta WHERE key LIKE 'inversion%'")
    left = 3
    step = gcg.step

    def failing(*args):  # type: ignore[no-untyped-def]
        nonlocal left
        left -= 1
        if left < 0:
            raise KeyboardInterrupt
        return step(*args)

    monkeypatch.setitem(SEARCHES, "gcg", SEARCHES["gcg"]._replace(step=failing))
    with pytest.raises(KeyboardInterrupt):
        in_run.invert_run(fresh_run, [2], lm=tiny_lm, settings=QUICK)
    assert list(fresh_run.tensors.glob("inversion-*.state"))
    monkeypatch.undo()
    assert in_run.invert_run(fresh_run, [2], lm=tiny_lm, settings=QUICK) == [report]
    assert not list(fresh_run.tensors.glob("inversion-*.state"))


def test_fewer_controls_are_said(fresh_run: Run, tiny_lm: LanguageModel) -> None:
    (one,) = in_run.invert_run(fresh_run, [1], lm=tiny_lm, settings=replace(QUICK, controls=1))
    assert "only 4 of 6 controls were run" in one.words.lower()
    (none,) = in_run.invert_run(fresh_run, [1], lm=tiny_lm, settings=replace(QUICK, controls=0))
    assert none.verdict is Verdict.UNCONTROLLED
    assert "0 of 6 controls" in none.words


def test_the_vector_of_a_text_is_what_it_changes(tiny64: LanguageModel) -> None:
    batch = tiny64.encode(["Why?", "Tell me more."])
    openings = [Opening(tiny64, batch, p) for p in range(2)]
    text = string(tiny64, "ab")
    total = torch.zeros(1, tiny64.width).double()
    for opening in openings:  # two tokens stand behind a message here
        means = []
        for inserted in (text, ()):
            ids = torch.tensor([[*opening.before.ids, *inserted, *opening.after]])
            with tiny64.watching([1]) as streams:
                tiny64.forward(ids, torch.ones_like(ids))
            means.append(streams[1][0, -2:].mean(0))
        total += (means[0] - means[1])[None] / 2
    torch.testing.assert_close(
        difference(tiny64, openings, text, 1), total.float(), rtol=1e-4, atol=1e-5
    )


# -- what is said ----------------------------------------------------------------------------------


def made(role: str, share: float) -> Case:
    """A case that reaches a share."""
    return Case(
        role, "x", "s", share, 0, 1, share, 1.0, None, 9.0, 0.5, "n", 0.1, None, None, (), 9,
        ((9.0, 1.0),),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("share", "texts", "random", "verdict"),
    [
        (0.9, (0.9, 0.9), (0.2, 0.3), Verdict.REACHABLE),
        (0.9, (0.1, 0.1), (0.2, 0.3), Verdict.REACHABLE),  # what is reached needs no power
        (0.9, (0.9, 0.9), (0.2, 0.95), Verdict.NOT),  # tokens reach anything
        (0.3, (0.9, 0.9), (0.2, 0.1), Verdict.NOT),
        (0.3, (0.9, 0.5), (0.2, 0.1), Verdict.POWERLESS),
        (0.9, (), (0.1,), Verdict.UNCONTROLLED),
        (0.9, (0.9,), (), Verdict.UNCONTROLLED),
    ],
)
def test_the_verdict(
    share: float, texts: tuple[float, ...], random: tuple[float, ...], verdict: Verdict
) -> None:
    facts = Facts("output", "gcg", 6, 4, 100, 3, 8, 6, None, 1.0)
    controls = [*(made("text", s) for s in texts), *(made("random", s) for s in random)]
    found = Reachability(1, "found", facts, made("found", share), tuple(controls))
    assert found.verdict is verdict
    assert found.words.startswith(verdict.value[:1].upper() + verdict.value[1:])
    assert Reachability.read(found.data()) == found


def test_page_and_screen_show_it(
    report: Reachability, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with Run.open(folder) as run:
        shown = to_json(reachable.part(run, None))
    assert shown["title"] == "Which text does it"
    rows = table(shown, "of")
    assert [text(row["of"]) for row in rows].count("random") == 2
    for row, case in zip(rows, (report.found, *report.controls), strict=True):
        assert text(row["share"]) == f"{case.share:.0%} ({case.low:.0%} to {case.high:.0%})"
        assert row["string"] == [to_json(Mark(case.string, "model"))]
    assert set(charts(shown)) == {"reach-2"}
    screen.tell([reachable.card(report)])
    told = capsys.readouterr().out
    assert "shuffled" in told
    assert report.verdict.value.split()[-1] in told


def test_the_front_is_kept_and_shown(
    fresh_run: Run, tiny_lm: LanguageModel, capsys: pytest.CaptureFixture[str]
) -> None:
    (one,) = in_run.invert_run(
        fresh_run, [3], lm=tiny_lm, settings=replace(QUICK, method="epo", budget=150)
    )
    assert reports(fresh_run)[-1] == one
    shares, perplexities = zip(*(point[1:] for point in one.found.front), strict=True)
    assert list(shares) == sorted(shares, reverse=True)
    assert list(perplexities) == sorted(perplexities, reverse=True)  # each is better in one
    assert one.found.searched == pytest.approx(max(shares))
    rows = table(to_json(reachable.card(one)), "match against perplexity")
    assert [row["share searched"] for row in rows] == list(shares)
    screen.tell([reachable.card(one)])
    assert "at perplexity" in capsys.readouterr().out
