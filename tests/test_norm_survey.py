"""What the norm tells of a run: measured once, resumed, and as each perturbation by itself."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tiny
from educe.comparison.summary import summarise
from educe.errors import PromptError
from educe.forward.generation import generate, rows_of
from educe.forward.slice import Slice
from educe.judge.rules import Regex
from educe.model import LanguageModel
from educe.norm import points as pointing
from educe.norm import survey
from educe.norm.choice import NEAR
from educe.norm.response import FINE, SHARES
from educe.norm.survey import examine_norm
from educe.ordinary import Ordinary
from educe.run.fill import groups
from educe.run.settings import Settings, begin, encoded, stored
from educe.run.stages import discover_behaviours
from educe.run.store import Run

ORDINARY = ["Name a tree.", "Say hello to Anna."]
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
    settings = Settings(
        prompts=("Tell me.",),
        method="random",
        n=4,
        radius="3.0,6.0",
        max_new_tokens=5,
        look_for="[aeiou]",
    )
    with begin(place, settings) as run:
        discover_behaviours(run, lm=lm)
    return place


def examined(
    place: Path, lm: LanguageModel, ordinary: str, numbers: list[int] | None = None, **options: Any
) -> dict[str, Any]:
    with Run.open(place) as run:
        settings = stored(run)
        prompts = encoded(lm, settings, settings.prompts)
        return examine_norm(run, numbers, lm, prompts, ordinary=ordinary, **OPTIONS | options)


@pytest.fixture(scope="module")
def done(searched: Path, lm: LanguageModel, ordinary: str) -> dict[str, Any]:
    return examined(searched, lm, ordinary, [2, 9])


def test_curves_are_of_both_signs_and_of_what_was_asked(done: dict[str, Any]) -> None:
    assert [(c["number"], c["sign"]) for c in done["curves"]] == [(2, 1), (2, -1), (9, 1), (9, -1)]
    for c in done["curves"]:
        assert [p["share"] for p in c["points"]] == pytest.approx([c["sign"] * s for s in SHARES])
        assert [p["radius"] for p in c["points"]] == pytest.approx(
            [c["sign"] * s * c["radius"] for s in SHARES]
        )
        assert [p["share"] for p in c["fine"]] == list(FINE)
        assert c["points"][4]["dose"] == pytest.approx(c["sign"] * c["dose"])


def test_a_point_is_what_the_perturbation_does_by_itself(
    searched: Path, lm: LanguageModel, done: dict[str, Any]
) -> None:
    with Run.open(searched) as run:
        settings, facts = stored(run), run.note("facts")
        (group,) = groups(run, [2])
        plain = {c.text for c in run.completion_rows() if c.perturbation == 0}
    batch = encoded(lm, settings, settings.prompts)
    part = Slice(lm, batch, source=facts["source"], target=facts["target"])
    text = Ordinary(lm, lm.encode(ORDINARY), before=part.source)
    point = done["curves"][1]["points"][5]
    assert point["share"] == -1.5
    theta = -1.5 * group.theta
    assert point["effect"] == pytest.approx(float(part.effect(theta).norm()), rel=1e-4)
    damage = text.damage(theta, group.kind)
    assert point["kl"] == pytest.approx(float(damage.mean), rel=1e-3)
    assert point["high"] == pytest.approx(float(damage.high), rel=1e-3)
    ((written,),) = generate(
        lm, batch, rows_of(1, 1), theta, kind=group.kind, max_new_tokens=settings.max_new_tokens
    )
    assert point["text"] == written.text
    assert point["score"] == point["best"] == float(any(v in written.text for v in "aeiou"))
    assert (point["novelty"] == 0) == (written.text in plain)
    # The exponent, by the curve itself.
    fine = done["curves"][1]["fine"]
    logs = [np.log([p[k] for p in fine]) for k in ("share", "effect")]
    slopes = np.gradient(logs[1], logs[0])[1:-1]
    np.testing.assert_allclose([p["exponent"] for p in fine[1:-1]], slopes, atol=0.02)


def test_rules_meet_what_they_promise(
    searched: Path, lm: LanguageModel, ordinary: str, done: dict[str, Any]
) -> None:
    curve = done["curves"][0]
    top = max(curve["fine"], key=lambda p: p["exponent"])
    assert curve["choices"]["steepest"] == pytest.approx(top["share"])
    with Run.open(searched) as run:
        (group,) = groups(run, [2])
        facts = run.note("facts")
    text = Ordinary(lm, lm.encode(ORDINARY), before=facts["source"])
    theta = curve["choices"]["budget"] * group.theta
    high = float(text.damage(theta, group.kind).high)
    assert high == pytest.approx(OPTIONS["budget"], rel=NEAR + 0.001)


def test_what_is_made_equal_is_equal(done: dict[str, Any]) -> None:
    by = {at: [e for e in done["equal"] if e["at"] == at] for at in ("radius", "effect", "kl")}
    size = np.median([p["effect"] for p in done["points"][0]])
    for arm, many in (("found", 2), ("control", 4)):
        assert [e[arm]["reached"] for e in by["radius"]] == [2, 2]
        for e in by["effect"]:
            assert e["value"] == pytest.approx(size)
            assert e[arm]["effect"] == pytest.approx(size, rel=NEAR)
            assert e[arm]["reached"] == many
        for e in by["kl"]:
            assert e[arm]["high"] == pytest.approx(OPTIONS["budget"], rel=NEAR)
            assert e[arm]["reached"] == many


def test_as_used_random_ones_are_of_the_same_radius(done: dict[str, Any]) -> None:
    used = [e for e in done["equal"] if e["at"] == "radius"]
    assert [e["found"]["radius"] for e in used] == pytest.approx([3, 6])
    assert [e["control"]["radius"] for e in used] == pytest.approx([3, 6])
    assert used[1]["dose"] == pytest.approx(2 * used[0]["dose"])


def test_perturbations_compared_come_from_all_radii(done: dict[str, Any]) -> None:
    for arm in done["points"]:
        assert {round(p["radius"], 3) for p in arm} == {3.0, 6.0}
    assert {round(s["radius"], 3) for s in done["spreads"]} <= {3.0, 6.0}


def test_it_is_kept_and_what_is_done_is_not_done_again(
    searched: Path,
    lm: LanguageModel,
    ordinary: str,
    done: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with Run.open(searched) as run:
        assert run.note(survey.NOTE) == json.loads(json.dumps(done))
    monkeypatch.setattr(pointing.Points, "_measured", lambda *_: pytest.fail("measured again"))
    monkeypatch.setattr(pointing.Points, "_damaged", lambda *_: pytest.fail("measured again"))
    assert examined(searched, lm, ordinary, [2, 9]) == done


def test_a_stop_in_the_middle_loses_one_batch_at_most(
    tmp_path: Path,
    searched: Path,
    lm: LanguageModel,
    ordinary: str,
    done: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    place = shutil.copytree(searched, tmp_path / "run")
    with Run.open(place) as run, run.writing():
        run.database.execute("DELETE FROM meta WHERE key LIKE 'norm%'")
    measured: list[int] = []
    whole = pointing.Points._measured

    def counted(self: Any, group: Any, pairs: Any) -> Any:
        if len(measured) == 3:
            raise KeyboardInterrupt
        measured.append(len(pairs))
        return whole(self, group, pairs)

    monkeypatch.setattr(pointing.Points, "_measured", counted)
    with pytest.raises(KeyboardInterrupt):
        examined(place, lm, ordinary, [2, 9])
    monkeypatch.setattr(
        pointing.Points,
        "_measured",
        lambda self, group, pairs: measured.append(len(pairs)) or whole(self, group, pairs),
    )
    again = examined(place, lm, ordinary, [2, 9])
    first = [(c["number"], c["sign"], c["points"]) for c in again["curves"]]
    assert first == [(c["number"], c["sign"], c["points"]) for c in done["curves"]]
    assert measured[:3] == [8, 8, 8]
    total = sum(measured)
    with Run.open(place) as run:
        (key,) = run.database.execute(
            "SELECT key FROM meta WHERE key LIKE 'norm-points-%'"
        ).fetchone()
        assert len(run.note(key)) == total  # none twice


def test_another_judge_or_other_ordinary_text_is_another_measurement(
    tmp_path: Path, searched: Path, lm: LanguageModel, ordinary: str, done: dict[str, Any]
) -> None:
    place = shutil.copytree(searched, tmp_path / "run")
    other = examined(place, lm, ordinary, [], judge=Regex(r"\S"))
    assert other["judge"] == r"regex:\S"
    assert not other["curves"]
    shown = [p["best"] for arm in other["points"] for p in arm]
    assert shown == [float(bool(p["text"].strip())) for arm in other["points"] for p in arm]
    with pytest.raises(PromptError):
        examined(place, lm, str(tmp_path / "none.txt"), [])


def test_without_numbers_the_most_striking_of_each_arm_get_curves(
    tmp_path: Path, searched: Path, lm: LanguageModel, ordinary: str, monkeypatch: Any
) -> None:
    asked: list[int] = []
    monkeypatch.setattr(survey, "CURVES", 1)
    monkeypatch.setattr(survey, "_curves", lambda points, row, **_: asked.append(row.id) or [])
    examined(shutil.copytree(searched, tmp_path / "run"), lm, ordinary)
    with Run.open(searched) as run:
        seen = summarise(run)
    assert asked == [seen.found[0].row.id, seen.control[0].row.id]


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
        max_new_tokens=3,
    )
    with begin(tmp_path / "run", settings) as run:
        discover_behaviours(run, lm=lm)
    told = examined(tmp_path / "run", lm, ordinary, [1], compared=1, budget=1e-4)
    assert [c["sign"] for c in told["curves"]] == ([1, -1] if method == "lora" else [1])
    for c in told["curves"]:
        assert c["fine"][0]["exponent"] == pytest.approx(1, abs=0.1)
    assert told["judge"] is None
    if method == "lora":  # a sign that were turned on both factors would change nothing
        first, second = (c["fine"][-1]["effect"] for c in told["curves"])
        assert first != pytest.approx(second, rel=1e-4)
