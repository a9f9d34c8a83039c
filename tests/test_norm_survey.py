"""What the norm tells of a run: measured once, resumed, and as each perturbation by itself."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

import tiny
from educe.comparison.norm import FINE, SHARES, Norm, norm_of
from educe.comparison.points import NEAR
from educe.comparison.summary import summarise
from educe.derive import norms
from educe.derive.norms import examine_norm
from educe.errors import PromptError
from educe.forward.benign import Ordinary
from educe.forward.generation import generate, rows_of
from educe.forward.slice import Slice
from educe.methods.radius import calibrate
from educe.model.language import LanguageModel
from educe.rows import Row
from educe.run.fill import groups
from educe.run.settings import Settings, begin, encoded, stored
from educe.run.stages import discover_behaviours
from educe.run.store import Run
from educe.scores.rules import Regex

ORDINARY = ["Name a tree.", "Say hello to Anna."]
SETTINGS = Settings(
    prompts=("Tell me.",),
    method="random",
    n=4,
    radius="3.0,6.0",
    baseline=4,
    max_new_tokens=5,
    look_for="[aeiou]",
)
OPTIONS: dict[str, Any] = {"budget": 0.05, "compared": 4}


@pytest.fixture(scope="module")
def lm() -> LanguageModel:
    return LanguageModel(tiny.hf_model("llama"), tiny.tokenizer(), name="tiny")


@pytest.fixture(scope="module")
def ordinary(tmp_path_factory: pytest.TempPathFactory) -> str:
    file = tmp_path_factory.mktemp("ordinary") / "alpaca.json"
    file.write_text(json.dumps([{"instruction": text} for text in ORDINARY]))
    return str(file)


@pytest.fixture(scope="module")
def searched(tmp_path_factory: pytest.TempPathFactory, lm: LanguageModel) -> Path:
    place = tmp_path_factory.mktemp("searched") / "run"
    with begin(place, SETTINGS) as run:
        discover_behaviours(run, lm=lm)
    return place


def examined(
    place: Path, lm: LanguageModel, ordinary: str, numbers: list[int] | None = None, **options: Any
) -> Norm:
    with Run.open(place) as run:
        return examine_norm(run, numbers, lm=lm, ordinary=ordinary, **OPTIONS | options)


@pytest.fixture(scope="module")
def done(searched: Path, lm: LanguageModel, ordinary: str) -> Norm:
    return examined(searched, lm, ordinary, [2, 9])


def tables(place: Path) -> dict[str, list]:
    """Everything that a run holds, but for when and how fast."""
    with Run.open(place) as run:
        return {
            "perturbations": run.perturbation_rows(derived=None),
            "completions": run.completion_rows(),
            "scores": run.score_rows(),
        }


def same(one: Norm, other: Norm) -> None:
    """Make sure that two examinations say the same."""
    assert one.asked == other.asked
    assert (one.spreads, one.equal) == (other.spreads, other.equal)
    for a, b in zip(one.curves, other.curves, strict=True):
        pd.testing.assert_frame_equal(a.points, b.points)
        pd.testing.assert_frame_equal(a.fine, b.fine)
        assert (a.number, a.sign, a.marks, a.choices) == (b.number, b.sign, b.marks, b.choices)


def test_curves_are_of_both_signs_and_of_what_was_asked(done: Norm) -> None:
    assert [(c.number, c.sign) for c in done.curves] == [(2, 1), (2, -1), (9, 1), (9, -1)]
    for c in done.curves:
        used = 3.0 if c.number == 2 else 6.0
        assert c.points.share.tolist() == pytest.approx([c.sign * s for s in SHARES])
        assert c.points.radius.tolist() == pytest.approx([c.sign * s * used for s in SHARES])
        assert c.fine.share.tolist() == pytest.approx([c.sign * s for s in FINE])
        assert c.points.dose.iloc[4] == pytest.approx(c.sign * c.dose)


def test_a_point_is_what_the_perturbation_does_by_itself(
    searched: Path, lm: LanguageModel, done: Norm
) -> None:
    with Run.open(searched) as run:
        settings, facts = stored(run), run.note("facts")
        (group,) = groups(run, [2])
        plain = {c.text for c in run.completion_rows() if c.perturbation == 0}
    batch = encoded(lm, settings, settings.prompts)
    part = Slice(lm, batch, source=facts["source"], target=facts["target"])
    text = Ordinary(lm, lm.encode(ORDINARY), before=part.source)
    point = done.curves[1].points.iloc[5]
    assert point.share == -1.5
    theta = -1.5 * group.theta
    assert point.effect == pytest.approx(float(part.effect(theta).norm()), rel=1e-4)
    damage = text.damage(theta, group.kind)
    assert point.kl == pytest.approx(float(damage.mean), rel=1e-3)
    assert point.kl_p95 == pytest.approx(float(damage.high), rel=1e-3)
    ((written,),) = generate(
        lm, batch, rows_of(1, 1), theta, kind=group.kind, max_new_tokens=settings.max_new_tokens
    )
    assert point.text == written.text
    assert point.score == point.best == float(any(v in written.text for v in "aeiou"))
    assert (point.novelty == 0) == (written.text in plain)
    # The exponent, by the curve itself.
    fine = done.curves[1].fine
    slopes = np.gradient(np.log(fine.effect), np.log(fine.share.abs()))[1:-1]
    np.testing.assert_allclose(fine.exponent[1:-1], slopes, atol=0.02)


def test_a_point_is_a_perturbation_of_the_run_with_a_parent(searched: Path, done: Norm) -> None:
    point = done.curves[1].points.iloc[5]
    with Run.open(searched) as run:
        rows = run.perturbations
        (row,) = rows[(rows.parent == 2) & (rows.radius == point.radius)].itertuples()
        assert (row.how, row.file, row.item) == ("scaled", rows.file[2], rows.item[2])
        assert row.effect == point.effect
        (text,) = (c.text for c in run.completion_rows() if c.perturbation == row.Index)
        whole = {s.judge: s.value for s in run.score_rows() if s.of == row.Index}
    assert text == point.text
    assert whole[done.asked.kl_p95] == point.kl_p95
    assert rows.parent.isna().sum() == 16  # no more than were found or drawn


def test_a_perturbation_at_its_own_radius_is_itself(searched: Path, done: Norm) -> None:
    with Run.open(searched) as run:
        rows = run.perturbations
        own = {c.row: c.text for c in run.completion_rows()}[Row(2, 0)]
    derived = rows[rows.parent.notna()]
    assert not (derived.radius == rows.radius.loc[derived.parent].to_numpy()).any()
    assert not derived.duplicated(["parent", "radius"]).any()
    assert done.curves[0].points.text.iloc[4] == own


def test_rules_meet_what_they_promise(searched: Path, lm: LanguageModel, done: Norm) -> None:
    curve = done.curves[0]
    assert curve.choices.steepest == pytest.approx(curve.fine.share[curve.fine.exponent.idxmax()])
    with Run.open(searched) as run:
        (group,) = groups(run, [2])
        facts = run.note("facts")
    batch = encoded(lm, Settings(prompts=("Tell me.",)), ["Tell me."])
    part = Slice(lm, batch, source=facts["source"], target=facts["target"])
    for sign, c in zip((1, -1), done.curves[:2], strict=True):
        found = calibrate(part, along=sign * group.directions).radius
        assert c.choices.linearisation == pytest.approx(found / 3.0, rel=0.01)
    text = Ordinary(lm, lm.encode(ORDINARY), before=facts["source"])
    theta = curve.choices.budget * group.theta
    high = float(text.damage(theta, group.kind).high)
    assert high == pytest.approx(OPTIONS["budget"], rel=NEAR + 0.001)


def test_what_is_made_equal_is_equal(done: Norm) -> None:
    by = {at: [e for e in done.equal if e.at == at] for at in ("radius", "effect", "kl")}
    size = np.median(done.used.effect[done.used.arm == "found"])
    assert [(e.found.reached, e.control.reached) for e in by["radius"]] == [(2, 2), (2, 2)]
    for e in (*by["effect"], *by["kl"]):
        assert (e.found.reached, e.control.reached) == (2, 4)
        for arm in (e.found, e.control):
            if e.at == "effect":
                assert e.value == pytest.approx(size)
                assert arm.effect == pytest.approx(size, rel=NEAR)
            else:
                assert arm.kl_p95 == pytest.approx(OPTIONS["budget"], rel=NEAR)


def test_as_used_random_ones_are_of_the_same_radius(done: Norm) -> None:
    used = [e for e in done.equal if e.at == "radius"]
    assert [e.found.radius for e in used] == pytest.approx([3, 6])
    assert [e.control.radius for e in used] == pytest.approx([3, 6])
    assert used[1].dose == pytest.approx(2 * used[0].dose)


def test_perturbations_compared_come_from_all_radii(done: Norm) -> None:
    for arm in ("found", "control"):
        assert set(done.used.radius[done.used.arm == arm].round(3)) == {3.0, 6.0}


def test_it_is_kept_and_what_is_done_is_not_done_again(
    searched: Path,
    lm: LanguageModel,
    ordinary: str,
    done: Norm,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with Run.open(searched) as run:
        kept = norm_of(run)
    assert kept is not None
    same(kept, done)
    before = tables(searched)
    for name in ("effect", "jvp"):
        monkeypatch.setattr(Slice, name, lambda *_: pytest.fail("measured again"))
    monkeypatch.setattr(Ordinary, "damage", lambda *_: pytest.fail("measured again"))
    same(examined(searched, lm, ordinary, [2, 9]), done)
    assert tables(searched) == before


def test_a_value_that_no_radius_has_is_not_looked_for_again(
    tmp_path: Path, searched: Path, lm: LanguageModel, ordinary: str
) -> None:
    place = shutil.copytree(searched, tmp_path / "run")
    told = examined(place, lm, ordinary, [2], budget=1e3)
    assert told.curves[0].choices.budget is None
    assert [(e.found.reached, e.control.reached) for e in told.equal[-2:]] == [(0, 0), (0, 0)]
    before = tables(place)
    examined(place, lm, ordinary, [2], budget=1e3)
    assert tables(place) == before


def test_other_settings_measure_what_is_missing(
    tmp_path: Path, searched: Path, lm: LanguageModel, ordinary: str, done: Norm
) -> None:
    place = shutil.copytree(searched, tmp_path / "run")
    before = tables(place)
    more = examined(place, lm, ordinary, [9, 1], compared=4, budget=0.1)
    after = tables(place)
    for name, rows in before.items():
        assert set(rows) <= set(after[name])  # nothing is written over
    new = [p for p in after["perturbations"] if p not in before["perturbations"]]
    curves = [p for p in new if p.parent == 9]
    assert 0 < len(curves) <= 2 * 12  # the search for another budget; all else was there
    pd.testing.assert_frame_equal(more.curves[0].points, done.curves[2].points)
    assert [e for e in more.equal if e.at != "kl"] == [e for e in done.equal if e.at != "kl"]


def test_a_stop_in_the_middle_loses_one_batch_at_most(
    tmp_path: Path,
    searched: Path,
    lm: LanguageModel,
    ordinary: str,
    done: Norm,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    place = tmp_path / "run"
    with begin(place, SETTINGS) as run:
        discover_behaviours(run, lm=lm)
    measured: list[int] = []
    whole = Ordinary.damage

    def counted(self: Ordinary, theta: Any, kind: Any) -> Any:
        if len(measured) == 3:
            raise KeyboardInterrupt
        measured.append(len(theta))
        return whole(self, theta, kind)

    monkeypatch.setattr(Ordinary, "damage", counted)
    with pytest.raises(KeyboardInterrupt):
        examined(place, lm, ordinary, [2, 9])
    with Run.open(place) as run:
        assert norm_of(run) is None
        kept = [s for s in run.score_rows() if s.judge.startswith("kl_p95")]
        assert len(kept) == sum(measured)
    monkeypatch.setattr(Ordinary, "damage", whole)
    same(examined(place, lm, ordinary, [2, 9]), done)


def test_another_judge_or_other_ordinary_text_is_another_measurement(
    tmp_path: Path, searched: Path, lm: LanguageModel, ordinary: str, done: Norm
) -> None:
    place = shutil.copytree(searched, tmp_path / "run")
    other = examined(place, lm, ordinary, [], judge=Regex(r"\S"))
    assert other.asked.judge == r"regex:\S"
    assert not other.curves
    assert other.used.best.tolist() == [float(bool(text.strip())) for text in other.used.text]
    file = tmp_path / "other.txt"
    file.write_text("Name a bird.\n")
    shorter = examined(place, lm, str(file), [])
    text = Ordinary(lm, lm.encode(["Name a bird."]), before=0)
    with Run.open(place) as run:
        (group,) = groups(run, [1])
        assert sum(s.of == 1 and s.judge.startswith("kl_p95") for s in run.score_rows()) == 2
    expected = float(text.damage(group.theta, group.kind).high)
    assert shorter.used.kl_p95[1] == pytest.approx(expected, rel=1e-3)
    assert shorter.used.kl_p95[1] != pytest.approx(done.used.kl_p95[1], rel=1e-2)
    with pytest.raises(PromptError):
        examined(place, lm, str(tmp_path / "none.txt"), [])


def test_without_numbers_the_most_interesting_of_each_arm_get_curves(
    tmp_path: Path, searched: Path, lm: LanguageModel, ordinary: str, monkeypatch: Any
) -> None:
    monkeypatch.setattr(norms, "CURVES", 1)
    told = examined(shutil.copytree(searched, tmp_path / "run"), lm, ordinary)
    with Run.open(searched) as run:
        seen = summarise(run)
    expected = [seen.found[0].row.id, seen.control[0].row.id]
    assert [c.number for c in told.curves if c.sign == 1] == expected


@pytest.mark.parametrize(
    ("method", "radius", "given"),
    [
        ("lora", "0.05", {"steps": 2}),
        ("noise", "0.5", {"per": "token"}),
        ("noise", "0.01", {"per": "weights"}),
    ],
)
def test_other_kinds_have_curves_too(
    tmp_path: Path, lm: LanguageModel, ordinary: str, method: str, radius: str, given: dict
) -> None:
    settings = Settings(
        prompts=("Tell me.",),
        method=method,
        method_settings=given,
        n=2,
        radius=radius,
        target=-1,
        baseline=4,
        max_new_tokens=3,
    )
    with begin(tmp_path / "run", settings) as run:
        discover_behaviours(run, lm=lm)
    told = examined(tmp_path / "run", lm, ordinary, [1], compared=1, budget=1e-4)
    assert [c.sign for c in told.curves] == ([1, -1] if method == "lora" else [1])
    for c in told.curves:
        assert c.fine.exponent.iloc[0] == pytest.approx(1, abs=0.1)
    assert told.asked.judge is None
    if method == "lora":  # a sign that were turned on both factors would change nothing
        first, second = (c.fine.effect.iloc[-1] for c in told.curves)
        assert first != pytest.approx(second, rel=1e-4)
