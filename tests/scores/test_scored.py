"""Scores of a run: against counts by another way over its texts."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
from filelock import FileLock

import synthetic_run
from educe.comparison.stats import more_often, rate
from educe.comparison.summary import summarise
from educe.errors import RunError
from educe.rows import FIRST, RETEST, RUNG, CompletionRow, PromptRow, Row
from educe.run import fill
from educe.run.fill import answers
from educe.run.scored import score_run
from educe.run.store import Run
from educe.scores import Answer
from educe.scores.cache import FILE, Cached
from educe.scores.language_model import Theme
from educe.scores.naming import judge_named

CODE = "orchid-7913"


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Run]:
    with synthetic_run.build(tmp_path / "run", n=6) as made:
        yield made


def cached(run: Run, spec: str = f"contains:{CODE}") -> Cached:
    return Cached(judge_named(spec), run.folder / FILE)


def test_scores_are_counted_by_perturbation(run: Run) -> None:
    scored = score_run(run, cached(run), threshold=0.5)
    arms = {p.id: p.arm for p in run.perturbation_rows()}
    shown: dict[tuple[str, bool], dict[int, list[bool]]] = defaultdict(lambda: defaultdict(list))
    for c in run.completion_rows():
        arm = arms.get(c.perturbation, "unperturbed")
        shown[arm, c.phase == RETEST][c.perturbation].append(CODE in c.text)
    for arm, late in (("found", False), ("control", False), ("found", True), ("control", True)):
        each = shown[arm, late]
        made = scored.arms[arm + "_retest" * late]
        assert made.shows == rate(sum(map(any, each.values())), len(each))
        assert made.mean[0] == pytest.approx(np.mean([np.mean(v) for v in each.values()]))
        assert made.mean[1] <= made.mean[0] <= made.mean[2]
    found, control = (scored.arms[arm].shows for arm in ("found", "control"))
    assert found.hits > control.hits
    assert scored.p_value == more_often(found, control)
    (plain,) = shown["unperturbed", False].values()
    assert scored.unperturbed == (np.mean(plain), rate(sum(plain), len(plain)))


def test_the_best_are_those_found_that_score_highest(run: Run) -> None:
    best = score_run(run, cached(run), threshold=0.5).best
    arms = {p.id: p.arm for p in run.perturbation_rows()}
    assert {arms[b.number] for b in best} == {"found"}
    means = {
        number: np.mean(
            [
                CODE in c.text
                for c in run.completion_rows()
                if c.perturbation == number and c.phase == FIRST
            ]
        )
        for number in arms
        if arms[number] == "found"
    }
    assert [b.mean for b in best] == pytest.approx(sorted(means.values(), reverse=True)[:5])
    assert CODE in best[0].text


def test_scores_are_kept_in_the_run_beside_its_own(run: Run) -> None:
    before, summary = run.score_rows(), summarise(run)
    score_run(run, cached(run), threshold=0.5)
    mine = run.score_rows(f"contains:{CODE}")
    assert {s.of for s in mine} == {c.row for c in run.completion_rows()}
    texts = {c.row: c.text for c in run.completion_rows()}
    for s in mine:
        assert s.value == (CODE in texts[s.of])
    assert [s for s in run.score_rows() if s.judge != f"contains:{CODE}"] == before
    # What the job chose by is as it was.
    assert [i.interestingness for i in summarise(run).found] == [
        i.interestingness for i in summary.found
    ]


def test_again_nothing_is_judged(run: Run) -> None:
    first, second = cached(run), cached(run)
    assert score_run(run, first, threshold=0.5) == score_run(run, second, threshold=0.5)
    assert first.judged > 0
    assert second.judged == 0


def test_answers_have_the_unperturbed_ones_of_their_prompt(run: Run) -> None:
    contents, texts = {p.id: p.content for p in run.prompt_rows()}, run.completion_rows()
    for c, answer in zip(texts, answers(run, texts), strict=True):
        plain = [
            b.text for b in run.completion_rows() if (b.perturbation, b.prompt) == (0, c.prompt)
        ]
        assert answer == Answer(contents[c.prompt], c.text, tuple(plain))
        assert plain


def test_of_messages_the_last_was_asked(tmp_path: Path) -> None:
    with Run.create(tmp_path / "run", {}) as run:
        said = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Where?"}]
        run.add_prompts([PromptRow(0, "asked", said, "", 3)])
        run.add_completions([CompletionRow(Row(0, 0), 0.0, "Here.", (1,), True)])
        assert answers(run, run.completion_rows()) == [Answer("Where?", "Here.", ("Here.",))]
        with pytest.raises(RunError, match="no completions yet"):
            score_run(run, cached(run), threshold=0.5)


class Naming:
    """Names as many texts of the second version as hold the code, and none of the first."""

    identity, cost = "a model", "one call"

    def __init__(self) -> None:
        self.asked: list[str] = []

    def write(self, questions: Sequence[str], **options: object) -> Iterator[list]:
        self.asked += questions
        for i, question in enumerate(questions):
            second = question.split("second version:")[1].split("Name the one")[0]
            yield [(i, f'{{"theme": "code", "in_second": {second.count(CODE)}, "in_first": 0}}')]


def test_a_judge_that_compares_scores_perturbations(run: Run) -> None:
    asker = Naming()
    scored = score_run(run, Cached(Theme(asker), run.folder / FILE), threshold=0.5)
    rows = run.score_rows(Theme(asker).identity)
    assert [s.of for s in rows] == [p.id for p in run.perturbation_rows()]
    for s in rows:
        texts = [
            c.text
            for c in run.completion_rows()
            if c.perturbation == s.perturbation and c.phase == FIRST
        ]
        assert s.value == pytest.approx(np.mean([CODE in text for text in texts]))
        assert s.why == "code"
    assert scored.unperturbed is None
    assert set(scored.arms) == {"found", "control"}
    assert scored.best[0].text == "code"
    summarise(run)  # scores of whole perturbations do not disturb it


def theme(run: Run) -> Cached:
    return Cached(Theme(Naming()), run.folder / FILE)


@pytest.mark.parametrize("by", [cached, theme])
def test_some_perturbations_at_a_time_it_is_the_same(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, by: Callable[[Run], Cached]
) -> None:
    whole, kept = score_run(run, by(run), threshold=0.5), run.score_rows()
    with synthetic_run.build(tmp_path / "again", n=6) as again, monkeypatch.context() as few:
        few.setattr(fill, "TOGETHER", 5)
        assert score_run(again, by(again), threshold=0.5) == whole
        assert again.score_rows() == kept


def test_what_the_job_scored_is_left_alone(run: Run) -> None:
    before = run.score_rows()
    score_run(run, cached(run, "novelty"), threshold=0.5)
    after = run.score_rows()
    assert [s for s in after if s.judge != "novelty:1"] == before
    # By the same formula, the job's score of a text is the judge's.
    job = {s.of: s.value for s in before if s.judge == "novelty"}
    judged = {s.of: s.value for s in after if s.judge == "novelty:1"}
    assert {row: judged[row] for row in job} == pytest.approx(job)


def test_what_belongs_to_no_arm_is_not_judged(run: Run) -> None:
    first = score_run(run, cached(run), threshold=0.5)
    parent, asked = run.perturbation_rows()[0], len(run.prompt_rows())
    run.add_perturbations([parent._replace(id=999, parent=parent.id, how="scaled")])
    run.add_prompts([PromptRow(asked, "selection", "Where?", "", 3)])
    rows = [
        Row(999, 0),
        Row(parent.id, asked),
        Row(parent.id, asked, 0, RETEST),
        Row(1, 0, 0, RUNG),
    ]
    run.add_completions([CompletionRow(row, 0.0, CODE, (1,), True) for row in rows])
    assert score_run(run, cached(run), threshold=0.5) == first
    assert not {s.of for s in run.score_rows(f"contains:{CODE}")} & set(rows)


def test_another_process_at_work_is_an_error(run: Run) -> None:
    with FileLock(run.folder / ".lock"), pytest.raises(RunError, match="another process"):
        score_run(run, cached(run), threshold=0.5)
