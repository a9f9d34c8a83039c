"""Tuning of settings: planted ones, the sign, the control's budget, and being killed."""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from educe import writing
from educe.discover import prepared
from educe.discover.noise import NoiseConfig
from educe.errors import EduceError, LayerError, MethodError, PromptError, RadiusError, RunError
from educe.forward import generation
from educe.forward.slice import Slice
from educe.job.rows import RETEST_TEMPERATURE
from educe.job.settings import Settings
from educe.kinds import adapters
from educe.model import LanguageModel
from educe.perturb import PerturbationSet
from educe.radius import DIRECTIONS, calibrate
from educe.runs import CompletionRow, Run
from educe.selection import tuning
from educe.selection.bandit import Setting, Thompson
from educe.selection.proxy import secrets
from educe.selection.tuning import Tuned, Tuning, begin_tuning, stored_tuning, tune
from educe.stats import rate
from educe.summary import RETEST

JOB = Settings(
    ("Tell me.", "Say it."), fresh=("What is it?",), look_for="yes", target=3, max_new_tokens=5
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
    how = tuning.discover.METHODS["melbo"]
    config = type("Quick", (), {"__call__": lambda self: how.config(steps=2)})()
    monkeypatch.setitem(tuning.discover.METHODS, "melbo", how._replace(config=config))


class Written:
    """Stands for the model: says yes at the rate of the file a perturbation is from."""

    def __init__(self, rates: dict[str, float]) -> None:
        self.rates, self.rng, self.paid = rates, np.random.default_rng(0), Counter[Any]()
        self.heats: set[float] = set()

    def __call__(self, lm: Any, batch: Any, rows: dict, *, into: Run, **_: Any) -> None:
        files = {p.id: p.file.removesuffix(".safetensors") for p in into.perturbations()}
        done = {c.key for c in into.completions()}
        for heat, wanted in rows.items():
            self.heats.add(heat)
            keys = [(r.perturbation + 1, r.prompt, r.sample) for r in wanted]
            new = [key for key in keys if key not in done]
            self.paid.update((files[key[0]], *key) for key in new)
            into.add_completions(
                CompletionRow(
                    *key,
                    heat,
                    "yes" if self.rng.random() < self.rates.get(files[key[0]], 0.1) else "no",
                    (1,),
                    True,
                )
                for key in new
            )


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
    by_arm = Counter(file.split("-")[0] for file, _, _, s in says.paid.elements() if s < RETEST)
    assert by_arm == {"found": 160, "control": 160}
    assert sum(t.pulls for t in found.found) == sum(t.pulls for t in found.control) == 160
    assert found.found[0].pulls > 2 * 160 / 6
    # What a bandit knows is what was written.
    with Run.open(tmp_path / "run") as run:
        files = {p.id: p.file.removesuffix(".safetensors") for p in run.perturbations()}
        texts = run.completions()
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
    assert {(c.prompt, c.sample >= RETEST) for c in again} == {(2, True)}
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

    paid, real = Counter[Any](), writing._as_row
    monkeypatch.setattr(writing, "_as_row", lambda *a: paid.update([(row := real(*a)).key]) or row)
    real_writing, lives = Run.writing, 0

    @contextmanager
    def killed(run: Run) -> Iterator[None]:
        with real_writing(run):
            yield
        if next(left) == 0:
            raise Killed

    monkeypatch.setattr(Run, "writing", killed)
    while True:
        left = itertools.count(-3, 1)  # the prompts are kept in each life, and two writes more
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
        assert one.completions() == other.completions()
        assert one.perturbations() == other.perturbations()


def test_the_bandits_are_thompsons(
    tmp_path: Path, tiny_lm: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pulls, replayed from what was written by a bandit of its own."""
    monkeypatch.setattr(tuning, "write", Written({"found-0": 0.5}))
    found = tuned(tmp_path / "run", replace(SMALL, pulls=80), tiny_lm)
    with Run.open(tmp_path / "run") as run:
        files = {p.id: p.file.removesuffix(".safetensors") for p in run.perturbations()}
        hits: dict[str, list[bool]] = {}
        for c in run.completions():
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

    def says(lm: Any, batch: Any, rows: dict, *, into: Run, **_: Any) -> None:
        done = {c.key for c in into.completions()}
        for heat, wanted in rows.items():
            keys = [(r.perturbation + 1, r.prompt, r.sample) for r in wanted]
            into.add_completions(
                CompletionRow(*key, heat, f"It is {first}.", (1,), True)
                for key in keys
                if key not in done
            )

    monkeypatch.setattr(tuning, "write", says)
    job = Settings((), target=3)
    asked = replace(SMALL, job=job, proxy="plain", methods=("noise",), pulls=160)
    found = tuned(tmp_path / "run", asked, tiny_lm)
    with Run.open(tmp_path / "run") as run:
        texts = [c for c in run.completions() if c.sample < RETEST]
        asked_prompts, fresh = run.prompts("asked"), run.prompts("fresh")
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
