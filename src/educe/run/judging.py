"""What is said of texts beside each other: prompt invariance, and which say the same.

Texts are read as they are needed, in the order of perturbations or of the texts themselves, which
SQLite sorts on the disk: what is held of each is its number and that of its group.
"""

from __future__ import annotations

from array import array
from collections import defaultdict
from collections.abc import Iterator, Mapping
from itertools import groupby
from operator import itemgetter
from typing import Any

import numpy as np

from educe.comparison.cluster import by_size, commonest, grouped, joined
from educe.comparison.texts import ROLES
from educe.forward.chunks import split
from educe.rows import BEHAVIOUR, ELSEWHERE, FIRST, PROMPT_INVARIANCE, RETEST, ScoreRow
from educe.run.schema import UNSCORED, reading
from educe.run.store import Run
from educe.run.work import Work
from educe.scores.invariance import prompt_invariance

#: Perturbations whose texts are held together.
TOGETHER = 256

_IN = "text IS NOT NULL AND prompt IN (SELECT id FROM prompts WHERE role IN {})"
_ASKED, _OURS, _LATER = map(_IN.format, ("('asked')", ROLES, ("fresh", ELSEWHERE)))
#: Answers to the prompts asked, but not those of derived perturbations.
_FIRST = (
    f"{_ASKED} AND phase = '{FIRST}' AND (c.perturbation = 0 "
    "OR c.perturbation IN (SELECT id FROM perturbations WHERE how = ''))"
)
#: What has no group yet of the re-test, and of what the unperturbed model writes for its prompts.
_AGAIN = (
    f"{_OURS} AND (phase = '{RETEST}' OR phase = '{FIRST}' AND c.perturbation = 0 "
    f"AND {_LATER}) AND " + UNSCORED.format(f"'{BEHAVIOUR}'")
)
#: How often each text comes, and its group.
_COUNTED = "SELECT text, count(*) FROM completions c WHERE {} GROUP BY text"
_KNOWN = (
    "SELECT text, count(*), max(value) FROM completions c JOIN scores s ON s.completion = c.id "
    f"AND s.judge = '{BEHAVIOUR}' WHERE {_FIRST} GROUP BY text"
)


def compare(work: Work) -> None:
    """Score prompt invariance, and put the texts that were written since into behaviours."""
    with work.timed("judge"):
        if len(work.prompts("asked")) > 1:
            _invariances(work)
        number(work.run)


def _invariances(work: Work) -> None:
    """Score how alike the answers of each perturbation are, where that is not known."""
    run, asked = work.run, set(work.prompts("asked"))
    known = {s.of for s in run.score_rows(PROMPT_INVARIANCE)}
    for some in split([p.id for p in run.perturbation_rows() if p.id not in known], TOGETHER):
        written = defaultdict(list)
        for c in run.completion_rows(FIRST, of=some):
            if c.prompt in asked:
                written[c.perturbation].append(c)
        each = {
            n: prompt_invariance([c.text for c in own], [c.prompt for c in own])
            for n, own in written.items()
        }
        run.add_scores(ScoreRow(n, s.judge, s.value, s.higher_is, s.why) for n, s in each.items())


def number(run: Run) -> None:
    """Number the behaviours once; the re-test joins the groups as they are."""
    if BEHAVIOUR not in run.judges():
        counted = commonest(_read(run, _COUNTED.format(_FIRST)))
        numbers, labels = _joined(run, _FIRST, grouped([text for text, _ in counted]))
        _keep(run, numbers, by_size(labels))
    if next(_read(run, f"SELECT 1 FROM completions c WHERE {_AGAIN} LIMIT 1"), None):
        known = {text: int(label) for text, _, label in commonest(_read(run, _KNOWN))}
        _keep(run, *_joined(run, _AGAIN, known))


def _joined(run: Run, which: str, known: Mapping[str, int]) -> tuple[np.ndarray, np.ndarray]:
    """Return the numbers of some texts, and the group of each."""
    waiting: dict[str, list[int]] = {}  # a text's numbers, until its group comes
    numbers, labels = array("q"), array("q")

    def texts() -> Iterator[str]:
        found = _read(run, f"SELECT text, id FROM completions c WHERE {which} ORDER BY text, id")
        for text, own in groupby(found, itemgetter(0)):
            waiting[text] = [number for _, number in own]
            yield text

    for text, label in joined(texts(), known):
        own = waiting.pop(text)
        numbers.extend(own)
        labels.extend([label] * len(own))
    return np.array(numbers), np.array(labels)


def _keep(run: Run, numbers: np.ndarray, labels: np.ndarray) -> None:
    """Keep the groups of texts, all or none."""
    rows = zip(map(int, numbers), map(float, labels), strict=True)
    with run.writing():
        run.database.executemany(
            f"INSERT INTO scores VALUES (?, NULL, '{BEHAVIOUR}', ?, 'number', '')", rows
        )


@reading
def _read(run: Run, query: str) -> Iterator[Any]:
    return iter(run.database.execute(query))
