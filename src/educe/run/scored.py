"""The completions of a run, scored by a judge, and the two arms beside each other.

Completions of one perturbation are not independent, so what is counted and averaged is
perturbations: the mean of a perturbation is that over its completions, and it shows a behaviour
when one of its completions reaches the threshold. The control is scored in the same way. Derived
perturbations and the texts of a selection belong to no arm, and are not judged here.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any, NamedTuple

import pandas as pd

from educe.comparison.stats import Rate, bootstrap_mean, more_often, rate
from educe.errors import RunError
from educe.options import ALONE, SpreadOptions
from educe.progress import Reporter, Silent
from educe.rows import CONTROL, FIRST, FOUND, RETEST, CompletionRow, Row, ScoreRow
from educe.run.fill import answers, judged
from educe.run.lock import locked
from educe.run.store import Run
from educe.scores import Answer, Judge, compares
from educe.spread import opened

#: Perturbations named as the best.
BEST = 5


class Mean(NamedTuple):
    """A mean over perturbations, with a 95% bootstrap interval."""

    value: float
    low: float
    high: float


class Arm(NamedTuple):
    """The scores of some perturbations."""

    mean: Mean
    shows: Rate  #: perturbations with a completion that reaches the threshold


class Unperturbed(NamedTuple):
    """The scores of the unperturbed model's texts."""

    mean: float
    shows: Rate  #: texts that reach the threshold


class Best(NamedTuple):
    """A perturbation that scores high."""

    number: int
    mean: float
    text: str  #: its completion that scores highest, or the theme
    why: str


class Scored(NamedTuple):
    """What a judge says of a run."""

    judge: str
    higher_is: str
    threshold: float
    unperturbed: Unperturbed | None
    p_value: float  #: Fisher's exact test, one-sided, that more of those found show it
    best: list[Best]  #: of those found, by their mean; chosen here, so too good to be true
    arms: dict[str, Arm]  #: found and control; found_retest and control_retest if there are any


def score_run(
    run: Run,
    judge: Judge,
    *,
    threshold: float,
    reporter: Reporter | None = None,
    spread: SpreadOptions = ALONE,
) -> Scored:
    """Score both arms of a run and the unperturbed model, and keep the scores in the run.

    A judge that compares scores perturbations, by all their first answers.

    Args:
        run: The run.
        judge: The judge; what the run has by its identity is not scored again.
        threshold: A score from here on says that a completion shows the behaviour.
        reporter: Is told of the progress (see `educe.progress`).
        spread: Who judges, where a model of this process does.

    Raises:
        RunError: It has no completions yet, or another process is at work on it.
    """
    arms = {p.id: p.arm for p in run.perturbation_rows()} | {0: ""}
    prompts = {p.id for p in run.prompt_rows() if p.role in ("asked", "fresh")}
    texts = [
        c
        for c in run.completion_rows()
        if c.perturbation in arms and c.prompt in prompts and c.phase in (FIRST, RETEST)
    ]
    if not any(c.perturbation for c in texts):
        raise RunError(f"the run in {run.folder} has no completions yet: let its job go on")
    tells = reporter or Silent()
    with locked(run.folder), opened(spread, tells.say) as workers:
        if compares(judge):
            _compare(run, judge, [c for c in texts if c.perturbation and c.phase == FIRST])
        else:
            judged(run, judge, [c.row for c in texts], reporter=tells, spread=workers)
    said: dict[Row | int, str] = {c.row: c.text for c in texts}
    wanted = arms if compares(judge) else said
    scores = pd.DataFrame(
        [
            (
                s.perturbation,
                arms[s.perturbation],
                _late(s.of),
                s.value,
                said.get(s.of, s.why),
                s.why,
            )
            for s in run.score_rows(judge.identity)
            if s.of in wanted
        ],
        columns=["perturbation", "arm", "late", "value", "text", "why"],
    )
    return _summary(judge, scores, threshold)


def _compare(run: Run, judge: Judge, texts: Sequence[CompletionRow]) -> None:
    groups: dict[int, list[Answer]] = defaultdict(list)
    for c, answer in zip(texts, answers(run, texts), strict=True):
        groups[c.perturbation].append(answer)
    whole: Any = [*groups.values()]
    run.add_scores(
        ScoreRow(number, judge.identity, s.value, s.higher_is, s.why)
        for number, s in zip(groups, judge.score(whole), strict=True)
    )


def _late(of: Row | int) -> bool:
    return isinstance(of, Row) and of.phase == RETEST


def _summary(judge: Judge, scores: pd.DataFrame, threshold: float) -> Scored:
    plain = scores[scores.perturbation == 0].value
    arms = {
        name + "_retest" * late: _arm(own, threshold)
        for late in (False, True)
        for name in (FOUND, CONTROL)
        if len(own := scores[(scores.arm == name) & (scores.late == late)]) or not late
    }
    found = scores[(scores.arm == FOUND) & ~scores.late]
    means = found.groupby("perturbation").value.mean().nlargest(BEST)
    highest = found.loc[found.groupby("perturbation").value.idxmax()].set_index("perturbation")
    return Scored(
        judge.name,
        judge.higher_is,
        threshold,
        Unperturbed(float(plain.mean()), _reaching(plain, threshold)) if len(plain) else None,
        more_often(arms[FOUND].shows, arms[CONTROL].shows),
        [Best(n, m, *highest.loc[n, ["text", "why"]]) for n, m in means.items()],
        arms,
    )


def _arm(scores: pd.DataFrame, threshold: float) -> Arm:
    each = scores.groupby("perturbation").value
    mean = bootstrap_mean(each.mean()) if len(scores) else (float("nan"), 0.0, 1.0)
    return Arm(Mean(*mean), _reaching(each.max(), threshold))


def _reaching(values: pd.Series, threshold: float) -> Rate:
    return rate(int((values >= threshold).sum()), len(values))
