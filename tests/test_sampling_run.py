"""Sampling in a run: everything is kept, resumed, re-tested, and taken by what comes after."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from educe.derive.listing import deriving
from educe.errors import JudgeError, MethodError, ServerError
from educe.model.language import LanguageModel
from educe.perturbation.set import PerturbationSet
from educe.rows import COMMON, SAMPLE, SAMPLED, TRIED
from educe.run.store import Run
from educe.run.work import Work
from educe.sampling import searching
from educe.sampling.evaluating import Judged, Terms
from educe.sampling.measures import Measure
from educe.sampling.results import Sampled
from educe.sampling.searching import sample
from educe.sampling.settings import Sampling
from educe.sampling.space import space
from educe.scores import Answer, Score
from small_run import small_run

FEW = Sampling(
    basis=("random:2",),
    walkers=6,
    ensembles=1,
    budget=80,
    samples=2,
    again=4,
    hot=1.0,
    keep=2,
    radius=6.0,
)


class Letters:
    """How many of the first letters of the alphabet a text has: nothing is constant in it."""

    name, higher_is, cost, identity = "letters", "early letters", "nothing", "letters:1"

    def score(self, answers: Any) -> list[Score]:
        return [
            Score("letters", sum(c in "abcdefghijklm" for c in a.text) / 8, "early letters", "")
            for a in answers
        ]


TERMS = Terms(((1.0, Letters()),))


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, tiny_lm: LanguageModel) -> Path:
    return small_run(tmp_path_factory.mktemp("sampling") / "run", tiny_lm, "random")


@pytest.fixture
def place(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "run"))


def sampled(place: Path, lm: LanguageModel, asked: Sampling, terms: Terms = TERMS) -> Sampled:
    with Run.open(place) as run, deriving(run, lm=lm) as work:
        measure = Measure(["texts"], {}, work) if asked.sampler == "diversity" else None
        return sample(work, asked, terms, measure)


ASKED = {
    name: replace(FEW, sampler=name)  # type: ignore[arg-type]
    for name in ("de", "stretch", "kde", "cma", "tpe", "diversity", "draws")
} | {
    "slice": replace(FEW, sampler="slice", common=True),
    "around": replace(FEW, sampler="around", numbers=(1, 2)),
    "anneal": replace(FEW, sampler="anneal", numbers=(1, 2), shares=(1.0, 0.5)),
}


@pytest.mark.parametrize("name", ASKED)
def test_every_sampler_leaves_finds_with_parents(
    name: str, place: Path, tiny_lm: LanguageModel
) -> None:
    told = sampled(place, tiny_lm, ASKED[name])
    with Run.open(place) as run:
        rows = {p.id: p for p in run.perturbation_rows(derived=True)}
        found = {p.id for p in run.perturbation_rows("found")}
        for find in told.finds:
            assert rows[find.number].how == SAMPLED
            assert rows[find.number].arm == find.arm
            assert find.parent in found
        tried = [p for p in rows.values() if p.how == TRIED and p.arm == "found"]
        phase = COMMON if ASKED[name].common else SAMPLE
        texts = [c for c in run.completion_rows(phase) if c.perturbation in {p.id for p in tried}]
        assert 0 < len(tried) <= told.evaluations["found"] <= 80
        if not ASKED[name].common:  # an evaluation is two texts for the one prompt
            assert len(texts) == 2 * told.evaluations["found"]
        kept = PerturbationSet.load(run.tensors / told.file)
        radius = [rows[f.number].radius for f in told.finds if f.arm == "found"]
        assert torch.allclose(kept.radius, torch.tensor(radius))
    assert {find.arm for find in told.finds} == {"found", "control"}


@pytest.mark.parametrize("name", ["de", "tpe", "diversity"])
@pytest.mark.parametrize("after", [2, 9])
def test_one_that_was_cut_off_goes_on_to_the_same(
    name: str,
    after: int,
    place: Path,
    tmp_path: Path,
    tiny_lm: LanguageModel,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    other = Path(shutil.copytree(place, tmp_path / "other"))
    whole = sampled(place, tiny_lm, ASKED[name])
    calls: list[int] = []
    evaluate = Judged._evaluate

    def cut(self: Judged, own: Any) -> Any:
        calls.append(1)
        if len(calls) > after:
            raise KeyboardInterrupt
        return evaluate(self, own)

    with monkeypatch.context() as patch:
        patch.setattr(Judged, "_evaluate", cut)
        with pytest.raises(KeyboardInterrupt):
            sampled(other, tiny_lm, ASKED[name])
    again = sampled(other, tiny_lm, ASKED[name])
    assert repr(again) == repr(whole)
    with Run.open(place) as one, Run.open(other) as two:
        assert one.completion_rows() == two.completion_rows()
        assert one.perturbation_rows(derived=True) == two.perturbation_rows(derived=True)


@pytest.mark.parametrize("broken", ["NaN", "time-out"])
def test_a_judge_that_breaks_and_is_mended_goes_on_to_the_same(
    broken: str, place: Path, tmp_path: Path, tiny_lm: LanguageModel
) -> None:
    other = Path(shutil.copytree(place, tmp_path / "other"))
    whole = sampled(place, tiny_lm, FEW)

    class Broken(Letters):
        calls = 0

        def score(self, answers: Any) -> list[Score]:
            self.calls += 1
            scores = super().score(answers)
            if self.calls == 5 and broken == "time-out":
                raise ServerError("the server gave no answer within 60 s")
            if self.calls == 5:
                scores[1] = scores[1]._replace(value=float("nan"))
            return scores

    match = {"NaN": r"letters gives 1 of \d+ texts a score that is NaN", "time-out": "no answer"}
    with pytest.raises((JudgeError, ServerError), match=match[broken]):
        sampled(other, tiny_lm, FEW, Terms(((1.0, Broken()),)))
    with Run.open(other) as run:
        assert run.completion_rows(SAMPLE)
        assert all(np.isfinite(s.value) for s in run.score_rows("letters:1"))
    assert repr(sampled(other, tiny_lm, FEW)) == repr(whole)


def test_what_is_known_is_not_paid_again(
    place: Path, tiny_lm: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = sampled(place, tiny_lm, FEW)

    def nothing(*_: Any) -> Any:
        raise AssertionError("paid twice")

    monkeypatch.setattr(Judged, "_evaluate", nothing)
    assert repr(sampled(place, tiny_lm, FEW)) == repr(whole)


def test_a_round_reads_the_rows_of_its_own_settings(
    place: Path, tiny_lm: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a round reads does not grow with the rounds before it."""
    counts: list[int] = []
    evaluate = Judged._evaluate

    def counted(self: Judged, own: Any) -> Any:
        counts.append(0)
        try:
            return evaluate(self, own)
        finally:
            counts.append(-1)

    for name in ("completion_rows", "score_rows"):
        read = getattr(Run, name)

        def reading(self: Run, *some: Any, read: Any = read, **how: Any) -> Any:
            rows = read(self, *some, **how)
            if counts and counts[-1] >= 0:
                counts[-1] += len(rows)
            return rows

        monkeypatch.setattr(Run, name, reading)
    monkeypatch.setattr(Judged, "_evaluate", counted)
    sampled(place, tiny_lm, replace(FEW, sampler="draws", control=False))
    rounds = [count for count in counts if count >= 0]
    assert len(rounds) == 13
    assert len(set(rounds[1:])) == 1


def test_values_are_those_of_the_texts(place: Path, tiny_lm: LanguageModel) -> None:
    told = sampled(place, tiny_lm, replace(FEW, sampler="draws", control=False))
    with Run.open(place) as run:
        texts = run.completion_rows(SAMPLE)
        by = {n: [] for n in {c.perturbation for c in texts}}
        for c in texts:
            by[c.perturbation].append(Letters().score([Answer("", c.text)])[0].value)
    assert told.best["found"] == pytest.approx(max(np.mean(own) for own in by.values()))
    assert len(by) == told.evaluations["found"] == 78


def test_the_side_effect_and_incoherence_are_taken_off(place: Path, tiny_lm: LanguageModel) -> None:
    asked = replace(FEW, sampler="draws", control=False, budget=6, keep=1)
    dear = Terms(((2.0, Letters()),), side_effect=0.5, incoherence=0.25)
    sampled(place, tiny_lm, asked, dear)
    with Run.open(place) as run:
        (note,) = [
            run.note(k) for (k,) in run.database.execute("SELECT key FROM meta") if " round 0" in k
        ]
        coherent = {s.of: s.value for s in run.score_rows("coherence")}
        cost = {s.of: s.value for s in run.score_rows("side_effect")}
        letters = {s.of: s.value for s in run.score_rows("letters:1")}
        number = note["numbers"][3]
        own = [r for r in letters if r.perturbation == number and r.phase == SAMPLE]
        texts = [2 * letters[r] - 0.25 * (1 - coherent[r]) for r in own]
    assert len(own) == 2
    assert note["value"][3] == pytest.approx(np.mean(texts) - 0.5 * cost[number])


def test_common_random_numbers_make_equal_settings_write_the_same(
    place: Path, tiny_lm: LanguageModel
) -> None:
    """A tiny perturbation leaves the text as it is where the draws are the same."""
    asked = replace(FEW, sampler="draws", control=False, budget=18, radius=1e-6, samples=4)
    for common in (True, False):
        with Run.open(place) as run:
            with deriving(run, lm=tiny_lm) as work:
                sample(work, replace(asked, common=common), TERMS)
            texts = run.completion_rows(COMMON if common else SAMPLE)
            first = {c.perturbation: c.text for c in texts if c.sample == 0}
            assert (len(set(first.values())) == 1) is common


def test_likelihood_explores_and_texts_decide(place: Path, tiny_lm: LanguageModel) -> None:
    asked = replace(FEW, sampler="cma", wanted="yes", unwanted="no", keep=1)
    told = sampled(place, tiny_lm, asked)
    with Run.open(place) as run:
        likely = [s for s in run.score_rows() if s.judge.startswith("likelihood of 'yes'")]
        judged = {c.perturbation for c in run.completion_rows(SAMPLE)}
        assert len(likely) == sum(told.evaluations.values())
        assert 0 < len(judged) <= 2 * searching.JUDGED
        best = max(likely, key=lambda s: s.value)
        (row,) = [p for p in run.perturbation_rows(derived=True) if p.id == best.of]
        found = PerturbationSet.load(run.tensors / row.file)[row.item]
        with found.applied(tiny_lm):
            value = 0.0
            for sign, text in ((1, "yes"), (-1, "no")):
                tokens = tiny_lm.tokens(text, templated=True)
                prompt = tiny_lm.encode(["Where is it?"]).ids
                ids = torch.cat([prompt, torch.tensor([tokens])], 1)
                logs = tiny_lm.hf(ids, use_cache=False).logits.log_softmax(-1)[
                    0, -1 - len(tokens) : -1
                ]
                value += sign * float(logs.gather(1, torch.tensor(tokens)[:, None]).mean())
    assert best.value == pytest.approx(value, abs=1e-3)


def test_a_constant_judge_ends_in_a_sentence_and_all_is_kept(
    place: Path, tiny_lm: LanguageModel
) -> None:
    class Nothing(Letters):
        identity = "nothing"

        def score(self, answers: Any) -> list[Score]:
            return [Score("nothing", 0.0, "", "") for _ in answers]

    with pytest.raises(JudgeError, match=r"nothing to go by.*is kept"):
        sampled(place, tiny_lm, FEW, Terms(((1.0, Nothing()),)))
    with Run.open(place) as run:
        assert len(run.completion_rows(SAMPLE)) >= 2 * 24


def test_what_cannot_work_is_said_before_anything_is_paid(
    place: Path, tiny_lm: LanguageModel
) -> None:
    for asked, message in (
        (replace(FEW, walkers=6, basis=("random:4",)), "6 walkers in 4 dimensions"),
        (replace(FEW, sampler="slice"), "without noise"),
        (replace(FEW, sampler="around"), "name two or more"),
        (replace(FEW, basis=("nowhere:3",)), "use found:8"),
        (replace(FEW, numbers=(1, 1)), "lies in the span"),
    ):
        with pytest.raises(MethodError, match=message):
            sampled(place, tiny_lm, asked)
    with Run.open(place) as run:
        assert not run.perturbation_rows(derived=True) or not run.completion_rows(SAMPLE)


def test_the_finds_of_an_archive_are_elites_of_its_cells(
    place: Path, tiny_lm: LanguageModel
) -> None:
    told = sampled(place, tiny_lm, replace(FEW, sampler="diversity", budget=48, keep=3))
    seen = [f.seen for f in told.finds if f.arm == "found"]
    assert seen == sorted(seen, reverse=True)
    assert seen[0] == pytest.approx(max(best for _, best in told.curves["found"]))
    assert set(told.archives) == {"found", "control"}
    assert len(seen) == min(3, len(told.archives["found"].elites))


def test_without_the_extra_one_is_told_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("educe.sampling.settings.find_spec", lambda name: None)
    with pytest.raises(MethodError, match=r"needs emcee, .*: pip install 'educe\[sample\]'"):
        FEW.check()


# -- spaces ----------------------------------------------------------------------------------------


@pytest.fixture
def work(place: Path, tiny_lm: LanguageModel) -> Any:
    with Run.open(place) as run, deriving(run, lm=tiny_lm) as made:
        yield made


def test_a_space_is_spanned_by_orthonormal_rows(work: Work) -> None:
    made = space(work, ["found:2", "jacobian:1-2", "random:2"], radius=3.0)
    rows = made.kind.rows
    assert torch.allclose(rows @ rows.T, torch.eye(6), atol=1e-5)
    assert np.linalg.norm(made.scale) == pytest.approx(3)
    theta = made.coefficients(np.random.default_rng(0).standard_normal((4000, 6)))
    assert np.sqrt(np.square(theta).sum(1).mean()) == pytest.approx(3, rel=0.05)


def test_the_jacobian_spans_what_a_dense_one_does(work: Work) -> None:
    part = work.part

    def read(v: torch.Tensor) -> torch.Tensor:  # all read-out positions, one under the other
        shift = part.shift(v[None])
        return (shift.values[0] * shift.weights.sqrt()[..., None]).flatten()

    dense = torch.autograd.functional.jacobian(read, torch.zeros(work.lm.width))
    right = torch.linalg.svd(dense.double()).Vh[:2]
    rows = space(work, ["jacobian:1-2"], radius=1.0).kind.rows.double()
    assert float((right @ rows.T).square().sum()) == pytest.approx(2, abs=1e-2)


def test_a_fixed_norm_is_that_of_all(work: Work) -> None:
    made = space(work, ["random:3"], radius=2.0, fixed=True)
    theta = made.coefficients(np.random.default_rng(0).standard_normal((10, 3)))
    assert np.allclose(np.linalg.norm(theta, axis=1), 2)


def test_several_layers_at_once(work: Work, tiny_lm: LanguageModel) -> None:
    """What is added is the sum of what each layer's vector alone adds by a hook."""
    made = space(work, ["random:2", "random:1@2"], radius=2.0)
    assert made.kind.layers == (1, 2)
    theta = torch.tensor([[1.0, -2.0, 3.0]])
    first, second = (made.kind.rows[:, i] for i in (0, 1))
    assert torch.count_nonzero(first[2]) == torch.count_nonzero(second[:2]) == 0
    ids = tiny_lm.encode(["Where is it?"]).ids
    file = work.run.tensors / work.run.perturbation_rows()[0].file
    found = PerturbationSet(
        made.kind, theta, torch.ones(1), PerturbationSet.load(file).origin, "", 0
    )
    with found.applied(tiny_lm):
        ours = tiny_lm.hf(ids, use_cache=False).logits
    handles = [
        tiny_lm.hf.model.layers[layer].register_forward_hook(
            lambda m, a, out, own=own: (
                (out[0] + own, *out[1:]) if isinstance(out, tuple) else out + own
            )
        )
        for layer, own in ((1, theta[0] @ first), (2, theta[0] @ second))
    ]
    theirs = tiny_lm.hf(ids, use_cache=False).logits
    for handle in handles:
        handle.remove()
    assert torch.allclose(ours, theirs, atol=1e-4)
    assert not torch.allclose(ours, tiny_lm.hf(ids, use_cache=False).logits, atol=1e-2)
