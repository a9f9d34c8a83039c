"""The completions of a run, scored by a judge, and the two arms beside each other.

Completions of one perturbation are not independent, so what is counted and averaged is
perturbations: the mean of a perturbation is that over its completions, and it shows a behaviour
when one of its completions reaches the threshold. The control is scored in the same way.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import NamedTuple

from filelock import FileLock, Timeout

from educe.comparison.stats import Rate, bootstrap_mean, more_often, rate
from educe.errors import BlockedError, JudgeError, RunError
from educe.rows import BEHAVIOUR, PROMPT_INVARIANCE, RETEST, CompletionRow, Row, ScoreRow
from educe.run.store import Run
from educe.scores import Answer, Score, asked_in
from educe.scores.cache import Cached, compares

#: Scores that a run has from its job, and that others are computed from.
OWN = ("logprob", "coherence", "novelty", PROMPT_INVARIANCE, BEHAVIOUR, "side_effect")
#: Perturbations named as the best.
BEST = 5


class Arm(NamedTuple):
    """The scores of some perturbations."""

    mean: tuple[float, float, float]  #: over perturbations, with a 95% bootstrap interval
    shows: Rate  #: perturbations with a completion that reaches the threshold


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
    unperturbed: tuple[float, Rate] | None  #: mean, and completions that reach the threshold
    found: Arm
    control: Arm
    p_value: float  #: Fisher's exact test, one-sided, that more of those found show it
    retest: tuple[Arm, Arm] | None
    best: tuple[Best, ...]  #: of those found, by their mean; chosen here, so too good to be true


def score_run(run: Run, judge: Cached, *, threshold: float) -> Scored:
    """Score every completion of a run and keep the scores in it.

    A judge that compares scores perturbations, by all completions for the prompts that were asked.

    Args:
        run: The run.
        judge: The judge; what it scored before it was cut off is not scored again.
        threshold: A score from here on says that a completion shows the behaviour.

    Raises:
        JudgeError: The run has such scores from its job.
        RunError: It has no completions yet, or another process is at work on it.
    """
    if judge.name in OWN:
        raise JudgeError(f"the run has scores of {judge.name} already: see educe show")
    arms = {p.id: p.arm for p in run.perturbation_rows()}
    completions = run.completion_rows()
    if not {c.perturbation for c in completions} & arms.keys():
        raise RunError(f"the run in {run.folder} has no completions yet: let its job go on")
    try:
        with FileLock(run.folder / ".lock", timeout=0):
            work = _compared if compares(judge) else _judged
            rows, texts = work(judge, completions, answers_of(run))
            run.add_scores(rows)
    except Timeout:
        raise BlockedError(f"another process is at work on {run.folder}: wait for it") from None
    return _summary(judge, rows, texts, arms, threshold)


def answers_of(run: Run) -> list[Answer]:
    """Return the completions of a run as answers, each with the unperturbed ones of its prompt."""
    asked = {p.id: asked_in(p.content) for p in run.prompt_rows()}
    completions = run.completion_rows()
    plain: dict[int, list[str]] = defaultdict(list)
    for c in completions:
        if c.perturbation == 0:
            plain[c.prompt].append(c.text)
    return [Answer(asked[c.prompt], c.text, tuple(plain[c.prompt])) for c in completions]


def _judged(
    judge: Cached, completions: Sequence[CompletionRow], answers: Sequence[Answer]
) -> tuple[list[ScoreRow], dict[Row | int, str]]:
    scores = judge.score(answers)
    rows = [_row(c.row, judge.name, s) for c, s in zip(completions, scores, strict=True)]
    return rows, {c.row: c.text for c in completions}


def _compared(
    judge: Cached, completions: Sequence[CompletionRow], answers: Sequence[Answer]
) -> tuple[list[ScoreRow], dict[Row | int, str]]:
    groups: dict[int, list[Answer]] = defaultdict(list)
    for c, answer in zip(completions, answers, strict=True):
        if c.perturbation > 0 and c.phase != RETEST:
            groups[c.perturbation].append(answer)
    scores = judge.compare(list(groups.values()))
    rows = [_row(number, judge.name, s) for number, s in zip(groups, scores, strict=True)]
    return rows, {number: s.why for number, s in zip(groups, scores, strict=True)}


def _row(of: Row | int, name: str, score: Score) -> ScoreRow:
    return ScoreRow(of, name, score.value, score.higher_is, score.why)


def _summary(
    judge: Cached,
    rows: Sequence[ScoreRow],
    texts: dict[Row | int, str],
    arms: dict[int, str],
    threshold: float,
) -> Scored:
    first, again = (
        {
            arm: _by_perturbation(
                [s for s in rows if arms.get(s.perturbation) == arm and _late(s) is late]
            )
            for arm in ("found", "control")
        }
        for late in (False, True)
    )
    found, control = (_arm(first[arm], threshold) for arm in ("found", "control"))
    plain = [s.value for s in rows if s.perturbation == 0]
    best = sorted(first["found"].values(), key=_mean, reverse=True)[:BEST]
    top = [(max(each, key=lambda s: s.value), _mean(each)) for each in best]
    return Scored(
        judge.name,
        judge.higher_is,
        threshold,
        (
            (sum(plain) / len(plain), rate(sum(v >= threshold for v in plain), len(plain)))
            if plain
            else None
        ),
        found,
        control,
        more_often(found.shows, control.shows),
        (
            (_arm(again["found"], threshold), _arm(again["control"], threshold))
            if again["found"] and again["control"]
            else None
        ),
        tuple(Best(s.perturbation, mean, texts[s.of], s.why) for s, mean in top),
    )


def _by_perturbation(rows: Sequence[ScoreRow]) -> dict[int, list[ScoreRow]]:
    each: dict[int, list[ScoreRow]] = defaultdict(list)
    for row in rows:
        each[row.perturbation].append(row)
    return each


def _late(score: ScoreRow) -> bool:
    return isinstance(score.of, Row) and score.of.phase == RETEST


def _mean(rows: Sequence[ScoreRow]) -> float:
    return sum(row.value for row in rows) / len(rows)


def _arm(each: dict[int, list[ScoreRow]], threshold: float) -> Arm:
    shows = sum(any(row.value >= threshold for row in rows) for rows in each.values())
    means = [_mean(rows) for rows in each.values()]
    mean = bootstrap_mean(means) if means else (0.0, 0.0, 1.0)
    return Arm(mean, rate(shows, len(each)))
