"""Inversions of a run: the controls are there, what was cut off goes on, and what is said of it."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import small_run
from educe.activations.corpus import questions
from educe.errors import MethodError
from educe.forward.inserted import Opening
from educe.inversion import examples, in_run
from educe.inversion.control import MESSAGES, Known, controls, difference
from educe.inversion.direction import Ground
from educe.inversion.examples import requests
from educe.inversion.kept import reports
from educe.inversion.reach import Bench
from educe.inversion.report import (
    NATURAL,
    RANDOM,
    SHUFFLED,
    TEXT,
    Case,
    Reachability,
    Settings,
    Test,
    Verdict,
    between,
)  # fmt: skip
from educe.inversion.searches import SEARCHES, gcg
from educe.inversion.strings import Vocabulary
from educe.inversion.taught import changed, taught
from educe.model.language import LanguageModel
from educe.perturbation.kinds import Vectors
from educe.perturbation.set import PerturbationSet
from educe.report import reachable, screen
from educe.report.document import Mark, to_json
from educe.run.store import Run
from educe.run.work import at_work
from read_document import blocks, charts, table, text

QUICK = Settings(tokens=3, budget=300, answer=2, searched=2, fresh=3, controls=2)


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
    stream, output = report.tests
    assert [c.role for c in stream.controls] == [*[NATURAL] * 2, *[RANDOM] * 2, SHUFFLED]
    assert [c.role for c in output.controls] == [*[TEXT] * 2, NATURAL, *[RANDOM] * 2, SHUFFLED]
    # A step is begun while there is budget: none costs more than gradients and a width of reads.
    config = gcg.GcgConfig()
    most = QUICK.budget + (3 + config.width) * QUICK.searched
    for test in report.tests:
        assert all(QUICK.budget <= c.reads <= most for c in (test.found, *test.controls))
    with Run.open(folder) as run:
        (score,) = run.score_rows("reachable")
        assert (score.of, score.value) == (2, stream.found.share)
        assert reports(run) == [report]
        told = PerturbationSet.load(run.tensors / run.perturbation_rows()[1].file)
        assert report.norm == pytest.approx(float(told.theta[1].norm()))
    # At the source a vector changes the stream by itself.
    assert stream.found.effect == pytest.approx(report.norm, rel=1e-4)


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
        fresh_run.database.execute("DELETE FROM meta WHERE key LIKE 'reachability%'")
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
    (none,) = in_run.invert_run(fresh_run, [1], lm=tiny_lm, settings=replace(QUICK, controls=0))
    assert none.verdict is Verdict.UNCONTROLLED
    assert "Only 0 of 8 controls" in none.words


def test_prompts_that_count_are_enough_and_made_no_control(
    folder: Path, tiny_lm: LanguageModel
) -> None:
    with Run.open(folder) as run:
        with at_work(run, tiny_lm) as work:
            found = in_run.prompts(work, replace(QUICK, fresh=30)).texts
        with pytest.raises(MethodError, match="controls is 9"):  # a text would count as two
            in_run.invert_run(run, [1], lm=tiny_lm, settings=replace(QUICK, controls=9))
    assert len(set(found)) == 30 + QUICK.searched
    assert not set(found) & set(tiny_lm.encode(questions()[:MESSAGES]).texts)


@pytest.mark.parametrize("method", ["soft", "nearest"])
def test_the_other_searches_go_the_whole_way(
    fresh_run: Run, tiny_lm: LanguageModel, method: str
) -> None:
    settings = replace(QUICK, method=method, controls=0)
    (made,) = in_run.invert_run(fresh_run, [1], lm=tiny_lm, settings=settings)
    for test in made.tests:
        assert test.found.string
        assert test.found.searched <= 1
        assert test.found.alike is not None  # what is answered to fresh prompts
        assert 0 <= test.found.natural <= 1
        if method == "nearest":  # no natural string is nearer
            words = Vocabulary(tiny_lm)
            natural = torch.cat([requests(words, 3), examples.natural(words, 3, 64)])
            assert test.found.string in {words.text(own) for own in natural.tolist()}


def test_what_is_no_vector_is_compared_at_the_target(
    tmp_path: Path, tiny_lm: LanguageModel
) -> None:
    folder = small_run.small_run(tmp_path / "lora", tiny_lm, "lora", radius="0.3", steps=2)
    with Run.open(folder) as run:
        (made,) = in_run.invert_run(run, [1], lm=tiny_lm, settings=QUICK)
    assert [(test.aim, test.layer) for test in made.tests] == [("target", 3), ("output", None)]
    for test in made.tests:
        roles = [case.role for case in test.controls]
        assert roles == [*[TEXT] * 2, *[RANDOM] * 2, SHUFFLED]
        assert test.found.effect > 0


@pytest.mark.parametrize(
    ("positions", "aims"),
    [
        ("all", ["source", "output"]),
        ("last:2", ["source", "output"]),
        ("asked", ["target", "output"]),  # the last tokens are changed only above the source
        ("generated", ["output"]),
    ],
)
def test_a_stream_is_compared_where_its_last_tokens_change(
    tiny64: LanguageModel, positions: str, aims: list[str]
) -> None:
    kind = Vectors(1, tiny64.width, positions=positions)
    assert in_run._aims(Settings(), kind) == aims
    batch = tiny64.encode(["Why is it so?"])
    there = [Opening(tiny64, batch, 0)]
    theta = torch.ones(1, tiny64.width).double()
    known = taught(tiny64, batch, kind, theta, [(70,)], [1, 2])
    moved = []
    for layer in (1, 2):
        ground = Ground.of(there, torch.tensor([[70, 71]]), layer)
        moved.append(float(changed(there, known, [0], ground).norm()) > ground.least)
    assert moved == [aims[0] == "source", aims[0] != "output"]


def test_the_vector_of_a_text_is_what_it_changes(tiny64: LanguageModel) -> None:
    messages = questions()[:MESSAGES]
    means = []
    for texts in ([f"{m} ab" for m in messages], [f"{m} c" for m in messages], messages):
        read = [tiny64.encode([text]) for text in texts]
        rows = []
        for one in read:  # two tokens stand behind a message here
            with tiny64.watching([1]) as streams:
                tiny64.forward(one.ids, one.mask)
            rows.append(streams[1][0, -2:].mean(0))
        means.append(torch.stack(rows).mean(0))
    for other, without in (("c", means[1]), (None, means[2])):
        told = difference(tiny64, "ab", other, layer=1)
        torch.testing.assert_close(told[0], (means[0] - without).float(), rtol=1e-4, atol=1e-5)


@pytest.mark.model
def test_a_vector_of_a_text_is_told_from_a_random_one(embedded_lm: LanguageModel) -> None:
    """By natural strings alone; studies/causes has the searches, on both models."""
    lm, layer = embedded_lm, 9
    settings = Settings(method="nearest", searched=1, fresh=2, controls=3)
    bench = Bench(lm, lm.encode(["Name a fruit.", "Where is Rome?", "Tell me a joke."]), settings)
    bench.first = bench.first[::3]
    kind, draw = Vectors(layer, lm.width), torch.Generator().manual_seed(7)
    made = difference(lm, "Speak Finnish.", layer=layer)
    random = torch.randn(1, lm.width, generator=draw) * made.norm() / lm.width**0.5

    known = controls(lm, kind, made, output=False, n=3, seed=0)
    cases = tuple(bench.case(one, kind, layer) for one in known)
    for theta, verdict in ((8 * made, Verdict.REACHABLE), (random, Verdict.NOT)):
        found = bench.case(Known("found", "", theta=theta), kind, layer)
        assert Test("source", layer, 1.0, found, cases).verdict is verdict


# -- what is said ----------------------------------------------------------------------------------


def made(role: str, share: float, error: float = 0) -> Case:
    """A case that reaches a share, with half its interval."""
    return Case(
        role, "x", "s", share, share - error, share + error, share, 1.0, 9.0, 0.5, "n", 0.1,
        None, None, (), 9, ((9.0, 1.0),),
    )  # fmt: skip


def one(
    share: float, texts: tuple[float, ...], random: tuple[float, ...], aim: str = "output"
) -> Test:
    controls = [*(made(TEXT, s) for s in texts), *(made(RANDOM, s) for s in random)]
    return Test(aim, None, 1.0, made("found", share), tuple(controls))


@pytest.mark.parametrize(
    ("share", "texts", "random", "verdict"),
    [
        (0.9, (0.9, 0.8, 0.85), (0.2, 0.3, 0.25), Verdict.REACHABLE),
        (0.5, (0.9, 0.8, 0.85), (0.2, 0.3, 0.25), Verdict.NOT),
        (0.6, (0.9, 0.8, 0.85), (0.2, 0.3, 0.25), Verdict.REACHABLE),
        (0.3, (0.35, 0.4, 0.38), (0.1, 0.12, 0.11), Verdict.REACHABLE),  # little, as texts are
        (0.9, (0.9, 0.1, 0.85), (0.2, 0.95, 0.3), Verdict.POWERLESS),
        (0.9, (0.1, 0.2, 0.15), (0.8, 0.9, 0.85), Verdict.POWERLESS),
        # What random ones change is too little for any string: they bound nothing.
        (0.13, (0.71, 0.78, 0.42, 0.19), (-3.78, -3.04, -4.63, -5.7), Verdict.POWERLESS),
        (0.9, (), (0.1, 0.2), Verdict.UNCONTROLLED),
        (0.9, (0.9,), (0.1, 0.2), Verdict.UNCONTROLLED),
    ],
)
def test_the_verdict(
    share: float, texts: tuple[float, ...], random: tuple[float, ...], verdict: Verdict
) -> None:
    found = Reachability(1, "found", 1.0, Settings(), (one(share, texts, random),))
    assert found.verdict is verdict
    assert found.words.startswith(verdict.value[:1].upper() + verdict.value[1:])
    assert Reachability.read(found.data()) == found


def test_one_test_that_reaches_it_is_enough() -> None:
    far, near = (0.9, 0.8, 0.85), (0.2, 0.3, 0.25)
    yes, no, none = one(0.9, far, near), one(0.2, far, near), one(0.2, near, far)
    for tests, verdict in (
        ((no, yes), Verdict.REACHABLE),
        ((none, no), Verdict.NOT),
        ((none, none), Verdict.POWERLESS),
        ((one(0.9, (), ()), no), Verdict.NOT),
    ):
        assert Reachability(1, "found", 1.0, Settings(), tests).verdict is verdict


@pytest.mark.parametrize("sizes", [(0.1, 0.1), (0.15, 0.03), (0.03, 0.15)])
def test_the_bar_and_who_is_on_its_wrong_side(sizes: tuple[float, float]) -> None:
    """Against draws of two normal distributions: no more than is said, and not far below."""
    draw = np.random.default_rng(0)
    wrong, told = [], []
    for _ in range(4000):
        texts, random = draw.normal(0.6, sizes[0], 4), draw.normal(0.1, sizes[1], 4)
        bar, mistaken = between(*([made("", x) for x in some] for some in (texts, random)))
        s, r = texts.std(), random.std()
        if max(s, r) < 3.929 * min(s, r):  # the root of the F-test's bound for four and four
            s = r = 1
        assert bar == pytest.approx((texts.mean() * r + random.mean() * s) / (s + r))
        told.append(mistaken)
        wrong += [draw.normal(0.6, sizes[0]) < bar, draw.normal(0.1, sizes[1]) > bar]
    assert np.mean(told) / 4 < np.mean(wrong) < np.mean(told)


def test_few_that_agree_by_chance_set_no_low_bar() -> None:
    """What each share could be told to from its prompts is the least that they lie apart."""
    texts, random = [made(TEXT, s) for s in (0.7, 0.8, 0.9)], (0.1, 0.11, 0.12)
    close, told = (between(texts, [made(RANDOM, s, e) for s in random]) for e in (0, 0.196))
    assert close[0] == pytest.approx(0.11 + 0.01 * 0.69 / 0.11)
    assert told[0] == pytest.approx(0.11 + 0.1 * 0.69 / 0.2)
    assert told[1] > close[1]


def test_page_and_screen_show_it(
    report: Reachability, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with Run.open(folder) as run:
        shown = to_json(reachable.part(run, None))
    assert shown["title"] == "Which text does it"
    for test in report.tests:
        rows = table(shown, test.aim)
        assert [text(row[test.aim]) for row in rows].count("random") == 2
        for row, case in zip(rows, (test.found, *test.controls), strict=True):
            assert text(row["share"]) == f"{case.share:.0%} ({case.low:.0%} to {case.high:.0%})"
            assert row["string"] == [to_json(Mark(case.string, "model"))]
            assert (row["which"] is None) == (case.role in ("found", SHUFFLED))
    assert set(charts(shown)) == {"reach-2-source", "reach-2-output"}
    screen.tell([reachable.card(report)])
    told = capsys.readouterr().out
    assert "shuffled" in told
    assert report.verdict.value.split()[-1] in told


def test_the_front_is_kept_and_shown(
    fresh_run: Run, tiny_lm: LanguageModel, capsys: pytest.CaptureFixture[str]
) -> None:
    (one,) = in_run.invert_run(
        fresh_run, [3], lm=tiny_lm, settings=replace(QUICK, method="epo", budget=400)
    )
    assert reports(fresh_run)[-1] == one
    found = one.tests[1].found
    shares, perplexities = zip(*(point[1:] for point in found.front), strict=True)
    assert list(shares) == sorted(shares, reverse=True)
    assert list(perplexities) == sorted(perplexities, reverse=True)  # each is better in one
    assert found.searched == pytest.approx(max(shares))
    fronts = [
        [row["share searched"] for row in block["rows"]]
        for block in blocks(to_json(reachable.card(one)), "table")
        if block["columns"][0]["title"] == "match against perplexity"
    ]
    assert fronts == [[point[1] for point in test.found.front] for test in one.tests]
    screen.tell([reachable.card(one)])
    assert "at perplexity" in capsys.readouterr().out
