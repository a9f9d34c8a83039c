"""The completions of a run, scored by a judge, and the two arms beside each other.

Completions of one perturbation are not independent, so what is counted and averaged is
perturbations: the mean of a perturbation is that over its completions, and it shows a behaviour
when one of its completions reaches the threshold. The control is scored in the same way. Derived
perturbations and the texts of a selection belong to no arm, and are not judged here.

Texts are judged some perturbations at a time, and SQLite averages the scores: what is held of a
perturbation in the end is a mean, the highest score and its text.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Sequence
from typing import Any, NamedTuple

from educe.comparison.stats import Rate, bootstrap_mean, more_often, rate
from educe.errors import RunError
from educe.options import ALONE, SpreadOptions
from educe.progress import Reporter, Silent
from educe.rows import ARMS, CONTROL, FIRST, FOUND, RETEST, Row, ScoreRow
from educe.run.fill import answers, judged, together
from educe.run.lock import locked
from educe.run.schema import reading
from educe.run.store import Run
from educe.scores import Answer, Judge, compares
from educe.spread import opened

#: Perturbations named as the best.
BEST = 5

#: The texts that are judged.
_MINE = (
    f"c.text IS NOT NULL AND c.phase IN ('{FIRST}', '{RETEST}') "
    "AND c.prompt IN (SELECT id FROM prompts WHERE role IN ('asked', 'fresh')) AND "
    "(c.perturbation = 0 OR c.perturbation IN (SELECT id FROM perturbations WHERE how = ''))"
)
_COUNTED = f"SELECT perturbation, count(*) FROM completions c WHERE {_MINE} GROUP BY perturbation"
_ROWS = (
    f"SELECT perturbation, prompt, sample, phase FROM completions c WHERE {_MINE} "
    "AND perturbation BETWEEN ? AND ? ORDER BY perturbation, prompt, phase, sample"
)
_SCORES = f"completions c JOIN scores s ON s.completion = c.id WHERE {_MINE} AND s.judge = ?"
_PLAIN = f"SELECT avg(value), count(*), sum(value >= ?) FROM {_SCORES} AND c.perturbation = 0"
#: Of each perturbation and phase. SQLite gives the text of the row that has the highest value.
_OF_TEXTS = (
    "SELECT c.perturbation, (SELECT arm FROM perturbations WHERE id = c.perturbation), "
    f"c.phase = '{RETEST}', avg(value), max(value), text, why FROM {_SCORES} "
    "AND c.perturbation > 0 GROUP BY c.perturbation, c.phase ORDER BY c.perturbation, c.phase"
)
_OF_PERTURBATIONS = (
    "SELECT p.id, p.arm, 0, value, value, why, why FROM perturbations p JOIN scores s "
    "ON s.perturbation = p.id WHERE p.how = '' AND s.judge = ? ORDER BY p.id"
)


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
    each = dict(_read(run, _COUNTED))
    if not any(each):
        raise RunError(f"the run in {run.folder} has no completions yet: let its job go on")
    tells = reporter or Silent()
    with locked(run.folder), opened(spread, tells.say) as workers:
        for some in together(each):
            rows = [Row(*row) for row in _read(run, _ROWS, some[0], some[-1])]
            if compares(judge):
                _compare(run, judge, some, {row for row in rows if row.phase == FIRST})
            else:
                part = "texts" if len(some) == len(each) else f"texts of {some[0]} to {some[-1]}"
                judged(run, judge, rows, part, reporter=tells, spread=workers)
    return _summary(run, judge, threshold)


def _compare(run: Run, judge: Judge, of: Sequence[int], rows: Collection[Row]) -> None:
    texts = [c for c in run.completion_rows(FIRST, of=of) if c.perturbation and c.row in rows]
    groups: dict[int, list[Answer]] = defaultdict(list)
    for c, answer in zip(texts, answers(run, texts), strict=True):
        groups[c.perturbation].append(answer)
    whole: Any = [*groups.values()]
    run.add_scores(
        ScoreRow(number, judge.identity, s.value, s.higher_is, s.why)
        for number, s in zip(groups, judge.score(whole), strict=True)
    )


@reading
def _read(run: Run, query: str, *given: Any) -> list[Any]:
    return run.database.execute(query, given).fetchall()


class _Each(NamedTuple):
    """The scores of one perturbation, of its first answers or of its re-test."""

    number: int
    arm: str
    late: int
    mean: float
    highest: float
    text: str
    why: str


def _summary(run: Run, judge: Judge, threshold: float) -> Scored:
    query = _OF_PERTURBATIONS if compares(judge) else _OF_TEXTS
    each = list(map(_Each._make, _read(run, query, judge.identity)))
    ((mean, texts, reaching),) = _read(run, _PLAIN, threshold, judge.identity)
    arms = {
        name + "_retest" * late: _arm(own, threshold)
        for late in (False, True)
        for name in ARMS
        if (own := [e for e in each if e.arm == name and e.late == late]) or not late
    }
    found = [e for e in each if e.arm == FOUND and not e.late]
    best = sorted(found, key=lambda e: -e.mean)[:BEST]
    return Scored(
        judge.name,
        judge.higher_is,
        threshold,
        Unperturbed(mean, rate(reaching, texts)) if texts else None,
        more_often(arms[FOUND].shows, arms[CONTROL].shows),
        [Best(e.number, e.mean, e.text, e.why) for e in best],
        arms,
    )


def _arm(each: Sequence[_Each], threshold: float) -> Arm:
    mean = bootstrap_mean([e.mean for e in each]) if each else (float("nan"), 0.0, 1.0)
    return Arm(Mean(*mean), rate(sum(e.highest >= threshold for e in each), len(each)))
