"""Selection among the perturbations of a run: planted ones, paired prompts, and being killed."""

from __future__ import annotations

import shutil
import sqlite3
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from educe.comparison.chance import best_by_chance
from educe.comparison.stats import estimate
from educe.errors import EduceError, MethodError, PromptError, RunError
from educe.forward import generation
from educe.forward.generation import generate
from educe.model.language import LanguageModel
from educe.perturbation.set import PerturbationSet
from educe.progress import Silent
from educe.rows import FIRST, RETEST, RUNG, CompletionRow, Row, ScoreRow
from educe.run.fill import interestingness
from educe.run.settings import Settings, begin
from educe.run.stages import discover_behaviours
from educe.run.store import Run
from educe.run.work import Work
from educe.scores import Answer, Judge, Score
from educe.scores.coherence import coherence
from educe.scores.novelty import novelty
from educe.scores.rules import Regex
from educe.selection import selecting
from educe.selection.selecting import Selected, SelectionPlan, select_best

PROMPTS = tuple(f"Tell me of {name}." for name in "abcdefghijkl")
FRESH = tuple(f"What is {name}?" for name in "mnopqrst")
PLAN = SelectionPlan(PROMPTS, FRESH, rungs=((4, 0.5), (12, 1.0)), top=2)
# For what a model writes; the bigger plan is for counts that are drawn.
FEW = replace(PLAN, prompts=PROMPTS[:4], fresh=FRESH[:2], rungs=((2, 0.5), (4, 1.0)))
RULE, YES = Regex("[a-m]"), Regex("yes")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, tiny_lm: LanguageModel) -> Path:
    """A run with eight perturbations in each arm."""
    place = tmp_path_factory.mktemp("finished") / "run"
    settings = Settings(
        ("Say it.",),
        n=8,
        radius="8",
        baseline=8,
        max_new_tokens=5,
        method_settings={"iterations": 2},
    )
    with begin(place, settings) as run:
        discover_behaviours(run, lm=tiny_lm)
    return place


@pytest.fixture
def place(finished: Path, tmp_path: Path) -> Path:
    """A copy of that run."""
    return Path(shutil.copytree(finished, tmp_path / "run"))


def selected(
    place: Path, plan: SelectionPlan, lm: LanguageModel, by: Judge | None = RULE
) -> Selected:
    with Run.open(place) as run:
        return select_best(run, plan, judge=by, lm=lm)


def kept(place: Path) -> list[CompletionRow]:
    """Everything that selections wrote; their prompts are numbered from 0."""
    with Run.open(place) as run:
        ids = [p.id for role in ("chosen on", "tested on") for p in run.prompt_rows(role)]
        texts = [c for c in run.completion_rows() if c.prompt in ids]
    return [c._replace(row=c.row._replace(prompt=ids.index(c.prompt))) for c in texts]


def forgotten(place: Path) -> None:
    """Leave the run as it was before any selection."""
    with Run.open(place) as run, run.writing():
        mine = "SELECT id FROM prompts WHERE role IN ('chosen on', 'tested on')"
        own = f"SELECT id FROM completions WHERE prompt IN ({mine})"
        run.database.execute(f"DELETE FROM scores WHERE completion IN ({own})")
        run.database.execute(f"DELETE FROM completions WHERE prompt IN ({mine})")
        run.database.execute("DELETE FROM prompts WHERE role IN ('chosen on', 'tested on')")


class Written:
    """Stands for the model: perturbation ``i`` says yes as often as ``rates[i]`` has it."""

    def __init__(self, rates: dict[int, float], seed: int = 0) -> None:
        self.rates, self.rng, self.paid = rates, np.random.default_rng(seed), Counter[Row]()

    def __call__(self, work: Work, what: str) -> None:
        first = work.prompts("chosen on")[0]
        for heat, rows in work.run.missing().items():
            self.paid.update(row._replace(prompt=row.prompt - first) for row in rows)
            yes = [self.rng.random() < self.rates.get(row.perturbation, 0.0) for row in rows]
            work.run.add_completions(
                CompletionRow(row, heat, "yes" if says else "no", (1,), True)
                for row, says in zip(rows, yes, strict=True)
            )


def test_the_planted_best_is_chosen_and_the_control_has_the_same_budget(
    place: Path, tiny_lm: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    says = Written({3: 0.95})
    monkeypatch.setattr(selecting, "fill", says)
    found = selected(place, PLAN, tiny_lm, YES)
    assert found.found.chosen[0].number == 3
    assert found.found.spent == found.control.spent == (8 * 4, 4 * 8)
    assert found.found.candidates == found.control.candidates == 8
    assert found.prompts == (4, 12)
    with Run.open(place) as run:
        arms = {p.id: p.arm for p in run.perturbation_rows()}
    assert all(arms[c.number] == "found" for c in found.found.chosen)
    assert all(arms[c.number] == "control" for c in found.control.chosen)
    # Each arm meets the same prompts: all in the first rung, four perturbations of it in the next.
    for arm in ("found", "control"):
        met = {
            number: {r.prompt for r in says.paid if r.perturbation == number and r.phase == RUNG}
            for number in arms
            if arms[number] == arm
        }
        assert sorted(map(sorted, met.values())) == [list(range(4))] * 4 + [list(range(12))] * 4
    # Two of each arm and the unperturbed model, on fresh prompts and samples.
    again = Counter(r.perturbation for r in says.paid if r.phase == RETEST)
    assert again == {
        0: 8,
        **{c.number: 8 for c in (*found.found.chosen, *found.control.chosen)},
    }
    assert {r.prompt for r in says.paid if r.phase == RETEST} == set(range(12, 20))
    # And what texts are novel against: the likeliest answer to each prompt, and eight samples.
    assert sum(says.paid.values()) == found.texts == 2 * (32 + 32) + 5 * 8 + 20 * 9


@pytest.mark.parametrize("judge", [YES, None])
def test_texts_that_are_scored_apart_are_scored_alike(
    place: Path, tiny_lm: LanguageModel, monkeypatch: pytest.MonkeyPatch, judge: Judge | None
) -> None:
    first = selected(place, FEW, tiny_lm, judge)
    forgotten(place)
    monkeypatch.setattr(selecting, "PART", 3)
    assert selected(place, FEW, tiny_lm, judge) == first


def test_the_numbers_are_those_of_the_texts(
    place: Path, tiny_lm: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Counted from the completions by themselves."""
    monkeypatch.setattr(selecting, "fill", Written(dict.fromkeys(range(1, 17), 0.3) | {3: 0.95}))
    found = selected(place, PLAN, tiny_lm, YES)
    texts = kept(place)
    for chosen in (*found.found.chosen, *found.control.chosen):
        own = [c for c in texts if c.perturbation == chosen.number]
        for part, told in (
            ([c for c in own if c.phase == RUNG], chosen.seen),
            ([c for c in own if c.phase == RETEST], chosen.again),
        ):
            hits = sum(c.text == "yes" for c in part)
            assert (told.hits, told.trials, told.mean) == (hits, len(part), hits / len(part))
    first = [c for c in texts if c.perturbation > 8 and c.prompt < 4 and c.phase == RUNG]
    pooled = sum(c.text == "yes" for c in first)
    assert (found.control.first.hits, found.control.first.trials) == (pooled, 32)
    assert found.chance == best_by_chance(8, 12, pooled / 32)
    assert found.p_again is not None
    assert 0 < found.p_again <= 1


def test_pure_noise_looks_good_in_the_selection_and_not_in_the_re_test(
    place: Path, tiny_lm: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Everything hits at 20%: the best by selection is above it, the re-test is not."""
    seen, again, p = [], [], []
    for seed in range(15):
        monkeypatch.setattr(selecting, "fill", Written(dict.fromkeys(range(17), 0.2), seed))
        forgotten(place)
        got = selected(place, PLAN, tiny_lm, YES)
        for arm in (got.found, got.control):
            seen.append(arm.chosen[0].seen.mean)
            again.append(arm.chosen[0].again.mean)
            p.append(arm.p_value)
    assert np.mean(again) == pytest.approx(0.2, abs=4 * 0.4 / np.sqrt(30 * 8))
    assert np.mean(seen) > 0.2 + 4 * 0.4 / np.sqrt(30 * 12)
    # No better than the best of all eight on all prompts, but for the error of the mean.
    assert np.mean(seen) < best_by_chance(8, 12, 0.2).mean + 3 * np.std(seen) / np.sqrt(30)
    assert np.mean(np.array(p) < 0.05) < 0.05 + 3 * np.sqrt(0.05 * 0.95 / 30)


def test_the_arm_with_more_candidates_gives_some_up(
    place: Path, tiny_lm: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Run.open(place) as run, run.writing():
        run.database.execute("DELETE FROM perturbations WHERE arm = 'control' AND id > 13")
    monkeypatch.setattr(selecting, "fill", Written({}))
    found = selected(place, PLAN, tiny_lm, YES)
    assert found.found.candidates == found.control.candidates == 5
    assert found.found.spent == found.control.spent


# -- with a model ----------------------------------------------------------------------------------


def test_texts_are_those_of_the_perturbed_model(place: Path, tiny_lm: LanguageModel) -> None:
    """Each text of the halving, written again by itself from the perturbation's file."""
    found = selected(place, FEW, tiny_lm)
    batch = tiny_lm.encode(FEW.prompts)
    with Run.open(place) as run:
        rows = {p.id: p for p in run.perturbation_rows()}
    for number in (found.found.chosen[0].number, found.control.chosen[0].number):
        p = rows[number]
        made = PerturbationSet.load(place / "tensors" / p.file).select([p.item])
        alone = {
            c.row.prompt: c.text
            for some in generate(
                tiny_lm,
                batch,
                [Row(1, j) for j in range(4)],
                made.theta,
                kind=made.kind,
                max_new_tokens=5,
            )
            for c in some
        }
        mine = [c for c in kept(place) if c.perturbation == number and c.phase == RUNG]
        assert {c.prompt: c.text for c in mine} == alone


class Killed(BaseException):
    """Stands for the end of the process."""


@pytest.mark.parametrize("judge", ["rule", "interestingness"])
def test_a_selection_killed_at_every_write_ends_the_same_and_pays_once(
    place: Path, tiny_lm: LanguageModel, monkeypatch: pytest.MonkeyPatch, judge: str
) -> None:
    by = RULE if judge == "rule" else None
    monkeypatch.setattr(generation, "ROWS_PER_BATCH", {"cpu": 16})
    whole = selected(place, FEW, tiny_lm, by)
    texts = kept(place)
    forgotten(place)

    paid, lives = Counter[Row](), 0
    written, scored = Run.add_completions, Run.add_scores

    def once_written(run: Run, rows: list[CompletionRow]) -> None:
        paid.update(c.row for c in rows)
        written(run, rows)
        raise Killed

    def once_scored(run: Run, rows: Iterable[ScoreRow]) -> None:
        scored(run, rows)
        raise Killed

    monkeypatch.setattr(Run, "add_completions", once_written)
    monkeypatch.setattr(Run, "add_scores", once_scored)
    while True:
        lives += 1
        try:
            again = selected(place, FEW, tiny_lm, by)
            break
        except Killed:
            assert lives < 200
    assert lives > 8
    assert again == whole
    assert kept(place) == texts
    assert set(paid.values()) == {1}
    assert len(paid) == len(texts)


def test_another_judge_on_the_same_prompts_pays_only_for_what_it_adds(
    place: Path, tiny_lm: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    says = Written(dict.fromkeys(range(1, 17), 0.5))
    monkeypatch.setattr(selecting, "fill", says)
    selected(place, PLAN, tiny_lm, YES)
    selected(place, PLAN, tiny_lm, Regex("no"))
    first = sum(r.phase == RUNG and r.prompt < 4 for r in says.paid)
    assert first == 16 * 4
    assert set(says.paid.values()) == {1}


def test_interestingness_is_coherence_times_novelty_of_each_text_alone(
    place: Path, tiny_lm: LanguageModel
) -> None:
    """Likelihoods by one forward pass of the whole text."""
    found = selected(place, FEW, tiny_lm, None)
    with Run.open(place) as run:
        ordinary = run.note("ordinary_logprob")
        texts = [c for c in run.completion_rows() if c.phase != FIRST]
        scores = dict(
            zip([c.row for c in texts], interestingness(run, [c.row for c in texts]), strict=True)
        )
        baseline = [c for c in run.completion_rows(FIRST) if c.perturbation == 0]
        rendered = {p.id: p.rendered for p in run.prompt_rows()}
    checked = 0
    for c in [c for c in texts if c.phase == RUNG and c.tokens][:20]:
        ids = tiny_lm.tokenizer(rendered[c.prompt], add_special_tokens=False)["input_ids"]
        whole = torch.tensor([[*ids, *c.tokens]])
        with torch.no_grad():
            logits = tiny_lm.unwrapped(whole).logits[0, len(ids) - 1 : -1].log_softmax(-1)
        logprob = float(logits[range(len(c.tokens)), list(c.tokens)].mean())
        plain = [t.text for t in baseline if t.prompt == c.prompt]
        value = coherence(c.text, logprob, ordinary).value * novelty(c.text, plain).value
        assert scores[c.row] == pytest.approx(value, abs=1e-4)
        checked += 1
    assert checked == 20
    assert found.p_again is None
    assert found.found.chosen[0].again.hits is None


class Counts:
    """A judge that counts letters, and those of what it is told besides."""

    name, higher_is, identity, cost = "counts", "longer", "counts, version 1", "nothing"

    def __init__(self) -> None:
        self.told: list[Answer] = []

    def score(self, answers: Sequence[Answer]) -> list[Score]:
        self.told += answers
        return [Score(self.name, float(len(a.text)), self.higher_is, "") for a in answers]


def test_any_judge_can_be_gone_by(place: Path, tiny_lm: LanguageModel) -> None:
    judge = Counts()
    found = selected(place, FEW, tiny_lm, judge)
    assert found.judge == "counts"
    texts = kept(place)
    asked = dict(enumerate((*FEW.prompts, *FEW.fresh)))
    judged = [c for c in texts if c.phase != FIRST]

    def plain(prompt: int) -> tuple[str, ...]:
        return tuple(c.text for c in texts if c.phase == FIRST and c.prompt == prompt)

    assert Counter(judge.told) == Counter(
        Answer(asked[c.prompt], c.text, plain(c.prompt)) for c in judged
    )
    best = found.found.chosen[0]
    lengths = [len(c.text) for c in judged if c.perturbation == best.number and c.phase == RUNG]
    assert best.seen.mean == np.mean(lengths)
    assert selected(place, FEW, tiny_lm, judge) == found
    assert len(judge.told) == len(judged)  # none of them twice


# -- what cannot be -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "error", "told"),
    [
        ({"fresh": ()}, PromptError, "fresh ones"),
        ({"prompts": ()}, PromptError, "prompts"),
        ({"fresh": (PROMPTS[3],)}, PromptError, "no fresh prompts are left"),
        ({"fresh": ("Say it.",)}, PromptError, "no fresh"),  # which the search had
        ({"fresh": (5,)}, PromptError, "fresh prompt 1 is a number"),
        ({"top": 0}, MethodError, "whole number from 1 to"),
        ({"rungs": ((4, 2.0),)}, MethodError, "rungs"),
    ],
)
def test_what_cannot_work_is_said_before_anything_is_paid(
    place: Path,
    tiny_lm: LanguageModel,
    changes: dict[str, Any],
    error: type[EduceError],
    told: str,
) -> None:
    with pytest.raises(error, match=told):
        selected(place, replace(PLAN, **changes), tiny_lm)
    with Run.open(place) as run:
        assert not run.prompt_rows("chosen on")


def test_prompts_that_read_alike_count_once_and_fresh_ones_are_fresh(
    place: Path, tiny_lm: LanguageModel
) -> None:
    def spoken(text: str) -> list[dict[str, str]]:
        return [{"role": "user", "content": text}]

    told: list[str] = []
    more = replace(
        FEW,
        prompts=(PROMPTS[0], *FEW.prompts, spoken(PROMPTS[2])),
        fresh=(*FEW.fresh, FRESH[1], spoken(FRESH[0]), spoken(PROMPTS[3]), "Say it."),
    )
    reporter = Silent()
    reporter.say = told.append  # type: ignore[method-assign]
    with Run.open(place) as run:
        found = select_best(run, more, judge=RULE, lm=tiny_lm, reporter=reporter)
    assert found == selected(place, FEW, tiny_lm)
    assert told == [
        "2 of the 6 prompts read as one before: counted once",
        "2 of the 6 fresh prompts read as one that is searched on: left out",
        "2 of the 6 fresh prompts read as one before: counted once",
    ]


def test_a_run_that_is_not_finished_is_refused(place: Path, tiny_lm: LanguageModel) -> None:
    with sqlite3.connect(place / "run.sqlite") as database:
        database.execute("DELETE FROM meta WHERE key = 'chosen'")
    with pytest.raises(RunError, match="not finished"):
        selected(place, PLAN, tiny_lm)


def test_intervals_are_over_prompts_where_scores_are_graded() -> None:
    """Four samples of a prompt that are all the same tell no more than one."""
    rng = np.random.default_rng(0)
    one = rng.random((12, 1))
    assert estimate(np.tile(one, 4), False)[:3] == pytest.approx(estimate(one, False)[:3])
    assert estimate(np.array([[1.0], [0.0]]), True).hits == 1
