"""Tuning of settings: planted ones, the sign, the control's budget, and being killed."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from educe.comparison.bandit import Setting, Thompson
from educe.comparison.stats import rate
from educe.errors import EduceError, LayerError, MethodError, PromptError, RadiusError, RunError
from educe.forward import generation
from educe.forward.slice import Slice
from educe.methods import prepared
from educe.methods.noise import NoiseConfig
from educe.methods.radius import DIRECTIONS, calibrate
from educe.model.language import LanguageModel
from educe.perturbation.kinds import adapters
from educe.perturbation.set import PerturbationSet
from educe.rows import RETEST, RUNG, CompletionRow, Row
from educe.run.asking import RETEST_TEMPERATURE
from educe.run.settings import Settings
from educe.run.store import Run
from educe.run.work import Work
from educe.selection import tuning
from educe.selection.proxy import secrets
from educe.selection.tuning import Tuned, Tuning, begin_tuning, stored_tuning, tune

JOB = Settings(
    ("Tell me.", "Say it."),
    fresh=("What is it?",),
    look_for="yes",
    target=3,
    baseline=4,
    max_new_tokens=5,
)
SMALL = Tuning(
    JOB,
    methods=("melbo", "noise"),
    sources=(1.0,),
    radii=("4", "8"),
    n=2,
    pulls=24,
    retest=8,
)


def tuned(place: Path, asked: Tuning, lm: LanguageModel) -> Tuned:
    with begin_tuning(place, asked, resume=True) as run:
        return tune(run, lm=lm)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """A method of few steps."""
    how = tuning.methods.METHODS["melbo"]
    config = type("Quick", (), {"__call__": lambda self: how.config(steps=2)})()
    monkeypatch.setitem(tuning.methods.METHODS, "melbo", how._replace(config=config))


class Written:
    """Stands for the model: says yes at the rate of the file a perturbation is from."""

    def __init__(self, rates: dict[str, float]) -> None:
        self.rates, self.rng = rates, np.random.default_rng(0)
        self.paid = Counter[tuple[str, Row]]()
        self.heats: set[float] = set()

    def __call__(self, work: Work) -> None:
        files = files_of(work.run)
        for heat, rows in work.run.missing().items():
            self.heats.add(heat)
            self.paid.update((files[row.perturbation], row) for row in rows)
            rates = [self.rates.get(files[row.perturbation], 0.1) for row in rows]
            work.run.add_completions(
                CompletionRow(row, heat, "yes" if self.rng.random() < rate else "no", (1,), True)
                for row, rate in zip(rows, rates, strict=True)
            )


def files_of(run: Run) -> dict[int, str]:
    """Return the file of each perturbation, without its ending."""
    rows = run.perturbation_rows(derived=None)
    return {p.id: p.file.removesuffix(".safetensors") for p in rows}


def test_the_grid_has_the_other_sign_where_that_is_another_perturbation() -> None:
    grid = Tuning(JOB, methods=("dct", "power"), sources=(0.2, 0.5), radii=("1", "2")).settings
    assert len(grid) == len(set(grid)) == 2 * 2 * 2 + 2 * 2
    assert Setting("dct", 0.5, "2", -1) in grid
    assert not any(s.sign < 0 for s in grid if s.method == "power")
    assert all(s.sign > 0 for s in Tuning(JOB, signs="one").settings)


def test_the_planted_setting_is_best_and_each_arm_has_its_budget(
    tmp_path: Path, tiny_lm: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    says = Written({"found-3": 0.9, "found-3-again": 0.6})
    monkeypatch.setattr(tuning, "write", says)
    asked = replace(SMALL, pulls=160, retest=64)
    found = tuned(tmp_path / "run", asked, tiny_lm)
    assert found.found[0].setting == asked.settings[3] == Setting("melbo", 1.0, "8", -1)
    by_arm = Counter(file.split("-")[0] for file, r in says.paid.elements() if r.phase == RUNG)
    assert by_arm == {"found": 160, "control": 160}
    assert sum(t.pulls for t in found.found) == sum(t.pulls for t in found.control) == 160
    assert found.found[0].pulls > 2 * 160 / 6
    # What a bandit knows is what was written.
    with Run.open(tmp_path / "run") as run:
        files = files_of(run)
        texts = run.completion_rows()
    for k, setting in enumerate(asked.settings):
        own = [c for c in texts if files[c.perturbation] == f"found-{k}"]
        one = next(t for t in found.found if t.setting == setting)
        assert (one.hits, one.pulls) == (sum(c.text == "yes" for c in own), len(own))
        assert one.mean == (1 + one.hits) / (2 + one.pulls)
        # Each perturbation on each prompt once before any twice.
        numbers = {p for p, file in files.items() if file == f"found-{k}"}
        pairs = Counter((c.perturbation, c.prompt) for c in own)
        counts = [pairs[p, q] for p in numbers for q in range(2)]
        assert not own or max(counts) - min(counts) <= 1
    # The re-test is of other perturbations, on the fresh prompt, with its own samples.
    again = [c for c in texts if files[c.perturbation] == "found-3-again"]
    assert {(c.prompt, c.phase) for c in again} == {(2, RETEST)}
    assert found.again[0] == rate(sum(c.text == "yes" for c in again), 64)
    assert 0.4 < found.again[0].share < 0.8  # not the 0.9 it was chosen by
    assert found.p_again < 1e-4
    assert says.heats == {RETEST_TEMPERATURE}
    assert found.texts == 2 * 160 + 2 * 64


def test_the_other_sign_is_the_same_perturbation_turned(
    tmp_path: Path, tiny_lm: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tuning, "write", Written({}))
    found = tuned(tmp_path / "run", replace(SMALL, methods=("melbo",), radii=("8",)), tiny_lm)
    assert {t.setting.sign for t in found.found} == {1, -1}
    part = Slice(tiny_lm, tiny_lm.encode(JOB.prompts), source=1, target=3)
    for arm in ("found", "control"):
        plus, minus = (
            PerturbationSet.load(tmp_path / "run" / "tensors" / f"{arm}-{k}.safetensors")
            for k in (0, 1)
        )
        assert torch.equal(plus.theta, -minus.theta)
        torch.testing.assert_close(minus.theta.norm(dim=1), torch.full((2,), 8.0))
        effect = part.effect(minus.theta).norm(dim=1)
        torch.testing.assert_close(effect, minus.scores["effect"], rtol=1e-4, atol=1e-4)


def test_an_adapter_turned_adds_the_opposite(tiny_lm: LanguageModel) -> None:
    """Turning both factors would change nothing."""
    kind = adapters(tiny_lm, first=2, blocks=1)
    one = kind.draw(1, torch.Generator().manual_seed(0))
    turned = kind.scaled(one, -1.0)
    (a, b), (c, d) = kind.split(one)[0], kind.split(turned)[0]
    torch.testing.assert_close(a.mT @ b, -(c.mT @ d))
    torch.testing.assert_close(kind.normalised(turned), turned)


def test_the_control_matches_each_setting(
    tmp_path: Path, tiny_lm: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tuning, "write", Written({}))
    tuned(tmp_path / "run", SMALL, tiny_lm)
    tensors = tmp_path / "run" / "tensors"
    pairs = 0
    for file in tensors.glob("control-*.safetensors"):
        control = PerturbationSet.load(file)
        found = PerturbationSet.load(tensors / file.name.replace("control", "found"))
        assert control.method == "random"
        assert torch.equal(control.radius, found.radius)
        assert len(control) == len(found)
        pairs += 1
    assert pairs >= 4


def test_shares_are_of_the_calibrated_radius(
    tmp_path: Path, tiny_lm: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tuning, "write", Written({}))
    asked = replace(SMALL, methods=("melbo",), radii=("0.5x",), signs="one")
    tuned(tmp_path / "run", asked, tiny_lm)
    part = Slice(tiny_lm, tiny_lm.encode(JOB.prompts), source=1, target=3)
    made = PerturbationSet.load(tmp_path / "run" / "tensors" / "found-0.safetensors")
    assert float(made.radius[0]) == pytest.approx(0.5 * calibrate(part).radius, rel=1e-3)


def test_noise_is_calibrated_for_however_few_are_asked_for(
    tmp_path: Path, tiny_lm: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tuning, "write", Written({}))
    asked = replace(SMALL, methods=("noise",), radii=("2x",))
    tuned(tmp_path / "run", asked, tiny_lm)
    part = Slice(tiny_lm, tiny_lm.encode(JOB.prompts), source=1, target=3)
    own = prepared(part, "noise", n=DIRECTIONS, config=NoiseConfig())
    made = PerturbationSet.load(tmp_path / "run" / "tensors" / "found-0.safetensors")
    assert float(made.radius[0]) == pytest.approx(2 * calibrate(own).radius, rel=1e-3)


class Killed(BaseException):
    """Stands for the end of the process."""


def test_a_tuning_killed_at_every_write_ends_the_same_and_pays_once(
    tmp_path: Path, tiny_lm: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = replace(SMALL, job=replace(JOB, look_for="[a-m]"))
    monkeypatch.setattr(generation, "ROWS_PER_BATCH", {"cpu": 4})
    whole = tuned(tmp_path / "whole", asked, tiny_lm)
    assert 0 < sum(t.hits for t in whole.found) < 24

    paid, lives = Counter[Row](), 0
    written = Run.add_completions

    def once_written(run: Run, rows: list[CompletionRow]) -> None:
        paid.update(c.row for c in rows)
        written(run, rows)
        raise Killed

    monkeypatch.setattr(Run, "add_completions", once_written)
    while True:
        lives += 1
        try:
            again = tuned(tmp_path / "run", asked, tiny_lm)
            break
        except Killed:
            assert lives < 100
    assert lives > 5
    assert again._replace(files=whole.files) == whole
    assert set(paid.values()) == {1}
    assert sum(paid.values()) == whole.texts
    with Run.open(tmp_path / "whole") as one, Run.open(tmp_path / "run") as other:
        assert one.completion_rows() == other.completion_rows()
        assert one.perturbation_rows(derived=None) == other.perturbation_rows(derived=None)


def test_the_bandits_are_thompsons(
    tmp_path: Path, tiny_lm: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pulls, replayed from what was written by a bandit of its own."""
    monkeypatch.setattr(tuning, "write", Written({"found-0": 0.5}))
    found = tuned(tmp_path / "run", replace(SMALL, pulls=80), tiny_lm)
    with Run.open(tmp_path / "run") as run:
        files = files_of(run)
        hits: dict[str, list[bool]] = {}
        for c in run.completion_rows():
            hits.setdefault(files[c.perturbation], []).append(c.text == "yes")
    bandit = Thompson(SMALL.settings, 0)
    arms = bandit.choose(8)  # the first round owes nothing to what was seen
    assert all(f"found-{k}" in hits for k in arms)
    counts = {t.setting: (sum(h), len(h)) for t in found.found for h in [own(hits, t.setting)]}
    assert counts == {t.setting: (t.hits, t.pulls) for t in found.found}


def own(hits: dict[str, list[bool]], setting: Setting) -> list[bool]:
    return hits.get(f"found-{SMALL.settings.index(setting)}", [])


# -- the proxy task --------------------------------------------------------------------------------


def test_with_a_proxy_each_prompt_has_its_own_rule(
    tmp_path: Path, tiny_lm: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A model that tells the secret of the first prompt to all is right on that prompt alone."""
    first = secrets(tuning.SECRETS)[0].secret
    monkeypatch.setattr(type(tiny_lm), "context", 10_000, raising=False)

    def says(work: Work) -> None:
        for heat, rows in work.run.missing().items():
            text = f"It is {first}."
            work.run.add_completions(CompletionRow(row, heat, text, (1,), True) for row in rows)

    monkeypatch.setattr(tuning, "write", says)
    job = Settings((), target=3)
    asked = replace(SMALL, job=job, proxy="plain", methods=("noise",), pulls=160)
    found = tuned(tmp_path / "run", asked, tiny_lm)
    with Run.open(tmp_path / "run") as run:
        texts = [c for c in run.completion_rows() if c.phase == RUNG]
        asked_prompts, fresh = run.prompt_rows("asked"), run.prompt_rows("fresh")
    told = sum(c.prompt == 0 for c in texts)
    assert sum(t.hits for t in (*found.found, *found.control)) == told > 0
    assert len(asked_prompts) == len(fresh) == tuning.SECRETS
    assert re.search(re.escape(first), asked_prompts[0].rendered)
    assert found.again[0].hits == found.again[1].hits == 0  # of the fresh secrets, none


# -- what cannot be --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "error", "told"),
    [
        ({"job": replace(JOB, look_for=None)}, MethodError, "reward"),
        ({"job": replace(JOB, prompts=())}, PromptError, "no prompt"),
        ({"proxy": "plain"}, MethodError, "its own prompts"),
        ({"proxy": "rot13", "job": Settings(())}, MethodError, "rot13"),
        ({"methods": ("dct", "random")}, MethodError, "control of every tuning"),
        ({"methods": ("magic",)}, MethodError, "magic"),
        ({"radii": ("auto",)}, RadiusError, "auto"),
        ({"radii": ("0x",)}, RadiusError, "0x"),
        ({"radii": ("9" * 400,)}, RadiusError, "999"),
        ({"sources": ()}, MethodError, "one source"),
        ({"pulls": 20}, MethodError, "multiple of 8"),
        ({"n": 0}, MethodError, "whole number from 1 to"),
    ],
)
def test_what_cannot_work_is_said_at_once(
    tmp_path: Path, changes: dict[str, Any], error: type[EduceError], told: str
) -> None:
    with pytest.raises(error, match=told):
        begin_tuning(tmp_path / "run", replace(SMALL, **changes))
    assert not (tmp_path / "run").exists()


def test_a_source_that_does_not_fit_costs_nothing(tmp_path: Path, tiny_lm: LanguageModel) -> None:
    with pytest.raises(LayerError, match="not below target"):
        tuned(tmp_path / "run", replace(SMALL, sources=(1.0, 3.0)), tiny_lm)
    assert not (tmp_path / "run").exists()


def test_settings_are_kept_and_others_refused(tmp_path: Path) -> None:
    begin_tuning(tmp_path / "run", SMALL).close()
    with Run.open(tmp_path / "run") as run:
        assert stored_tuning(run) == SMALL
    with pytest.raises(RunError, match="other settings"):
        begin_tuning(tmp_path / "run", replace(SMALL, n=3), resume=True)
    with pytest.raises(RunError, match="--resume"):
        begin_tuning(tmp_path / "run", SMALL)
