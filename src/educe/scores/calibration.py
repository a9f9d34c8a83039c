"""Is a judge any good? Its scores against labels that are known to be right.

    agreement      share of answers that it puts on the right side of a threshold
    false alarms   share of the answers without the behaviour that it puts above it
    detected       share of those with it that it puts above it
    AUC            P(score of one with it > score of one without) + P(equal) / 2
    kappa          (agreement - by chance) / (1 - by chance), Cohen 1960

A threshold can be wrong for a judge that ranks well; the AUC knows of none. 0.5 is chance. Shares
have Wilson intervals. That of the AUC is the score interval of Newcombe (Statistics in Medicine 25,
2006, method 5): those values A that differ from the estimate by at most 1.96 of

    √( A (1 - A) (1 + N (1 - A) / (2 - A) + N A / (1 + A)) / (m n) ),   N = (m + n) / 2 - 1,

with ``m`` answers that show it and ``n`` that do not. A bootstrap would give a judge that is right
ten times out of ten no interval at all. Both take answers as independent of each other; several of
one prompt are not, which makes intervals too narrow.
"""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

from scipy.optimize import brentq
from scipy.stats import norm
from sklearn.metrics import cohen_kappa_score, roc_auc_score

from educe.comparison.stats import Rate, rate
from educe.errors import JudgeError
from educe.model.prompts import well_formed
from educe.scores import Answer, Judge, compares

#: Where a score counts as "yes".
THRESHOLD = 0.5
FORM = '{"prompt": "...", "text": "...", "label": true}'


class Labelled(NamedTuple):
    """An answer, and whether it shows the behaviour."""

    answer: Answer
    label: bool
    group: str | None = None  #: what it is compared with together, for judges that compare


class Area(NamedTuple):
    """An area under the ROC curve, with a 95% interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.2f} ({self.low:.2f} to {self.high:.2f})"


class Checked(NamedTuple):
    """How a judge did on labelled answers."""

    judge: str
    threshold: float
    agreement: Rate
    false_alarms: Rate  #: of the answers that do not show the behaviour
    detected: Rate  #: of those that do
    auc: Area
    kappa: float

    @property
    def near_chance(self) -> bool:
        """Whether the interval of the AUC holds 0.5: no sign that the judge tells them apart."""
        return self.auc.low <= 0.5 <= self.auc.high


def check_judge(
    judge: Judge, labelled: Sequence[Labelled], *, threshold: float = THRESHOLD
) -> Checked:
    """Measure a judge on labelled answers.

    One that compares is measured on groups of them, each showing the behaviour when at least half
    of its answers do; an answer of no group is one of its own.

    Args:
        judge: The judge.
        labelled: Answers, of both kinds.
        threshold: A score from here on says that an answer shows the behaviour.

    Raises:
        JudgeError: All answers have the same label.
    """
    together = compares(judge)
    groups = _groups(labelled, together)
    truth = [2 * sum(each.label for each in group) >= len(group) for group in groups]
    shown, what = sum(truth), "groups of answers" if together else "answers"
    if not 0 < shown < len(truth):
        raise JudgeError(
            f"{shown} of {len(truth)} {what} are labelled true: a judge is measured on both kinds"
        )
    answers = [[each.answer for each in group] for group in groups]
    asked: Any = answers if together else list(chain(*answers))
    values = [score.value for score in judge.score(asked)]
    said = [value >= threshold for value in values]
    right = sum(s == t for s, t in zip(said, truth, strict=True))
    hits = sum(s and t for s, t in zip(said, truth, strict=True))
    return Checked(
        judge.name,
        threshold,
        rate(right, len(truth)),
        rate(sum(said) - hits, len(truth) - shown),
        rate(hits, shown),
        area(truth, values),
        # A judge that says the same of all agrees by chance alone.
        float(cohen_kappa_score(truth, said)) if len({*said, *truth}) == 2 else 0.0,
    )


def _groups(labelled: Sequence[Labelled], together: bool) -> list[list[Labelled]]:
    """Return answers by their groups; by themselves where they have none, or are not compared."""
    found: dict[str | int, list[Labelled]] = defaultdict(list)
    for line, each in enumerate(labelled):
        found[line if each.group is None or not together else each.group].append(each)
    return list(found.values())


def area(truth: Sequence[bool], values: Sequence[float]) -> Area:
    """Return the area under the ROC curve and its interval; both labels must be there."""
    estimate = float(roc_auc_score(truth, values))
    m = sum(truth)
    n = len(truth) - m
    z = norm.ppf(0.975)

    def off(a: float) -> float:
        whole = (m + n) / 2 - 1
        spread = a * (1 - a) * (1 + whole * (1 - a) / (2 - a) + whole * a / (1 + a)) / (m * n)
        return abs(estimate - a) - z * math.sqrt(max(spread, 0.0))

    near = 1e-12  # at 0 and 1 the spread is 0, so an estimate there solves it as well
    low = 0.0 if estimate <= near else brentq(off, 0.0, estimate - near)
    high = 1.0 if estimate >= 1 - near else brentq(off, estimate + near, 1.0)
    return Area(estimate, float(low), float(high))


def read_labelled(
    path: str | Path, say: Callable[[str], None] = lambda sentence: None
) -> list[Labelled]:
    """Read labelled answers from JSON lines: prompt, text, label; plain, group where there are any.

    Lines that say the same count once: they are no independent answers.

    Args:
        path: The file.
        say: Is told how many lines are not counted.

    Raises:
        JudgeError: The file cannot be read or holds something else.
        PromptError: A text in it has half of a surrogate pair.
    """
    path = Path(path)
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise JudgeError(f"cannot read labelled answers from {path}: {error}") from error
    found = [
        _labelled(line, f"{path}, line {i}") for i, line in enumerate(lines, 1) if line.strip()
    ]
    if not found:
        raise JudgeError(f"{path} holds no labelled answer: give lines such as {FORM}")
    once = list(dict.fromkeys(found))
    if len(once) < len(found):
        say(
            f"{len(found) - len(once)} of the {len(found)} labelled answers are as one before: "
            "counted once"
        )
    return once


def _labelled(line: str, where: str) -> Labelled:
    try:
        row: Any = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise JudgeError(f"{where} is no JSON: {error}") from error
    whole: Any = {"plain": [], "group": None} | (row if isinstance(row, dict) else {})
    match whole:
        case {
            "prompt": str(prompt),
            "text": str(text),
            "label": bool(label),
            "plain": list() as plain,
            "group": (str() | None) as group,
        } if all(isinstance(each, str) for each in plain):
            for each in (prompt, text, *plain, group or ""):
                well_formed(each, where)
            return Labelled(Answer(prompt, text, tuple(plain)), label, group)
    raise JudgeError(
        f"{where}: give {FORM}, a list of texts as plain if there is one, and the name of a group "
        "if it has one"
    )
