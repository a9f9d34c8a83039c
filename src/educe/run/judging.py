"""What is said of texts beside each other: how constant answers are, and which say the same."""

from __future__ import annotations

from collections import defaultdict

from educe.cluster import assign, clusters
from educe.judge.constancy import constancy
from educe.rows import FIRST, RETEST, CompletionRow, ScoreRow
from educe.run.work import Work

#: The score that numbers the behaviour a text belongs to; -1 for one that is like none.
BEHAVIOUR = "behaviour"


def compare(work: Work) -> None:
    """Score constancy, and put the texts that were written since into behaviours."""
    with work.timed("judge"):
        if len(work.prompts("asked")) > 1:
            work.run.add_scores(_constancies(work))
        work.run.add_scores(_behaviours(work))


def _constancies(work: Work) -> list[ScoreRow]:
    """Score how alike the answers of each perturbation to the prompts asked are."""
    asked, written = set(work.prompts("asked")), defaultdict(list)
    for c in work.run.completion_rows(FIRST):
        if c.perturbation and c.prompt in asked:
            written[c.perturbation].append(c)
    each = {
        n: constancy([c.text for c in own], [c.prompt for c in own]) for n, own in written.items()
    }
    return [ScoreRow(n, s.judge, s.value, s.higher_is, s.why) for n, s in each.items()]


def _behaviours(work: Work) -> list[ScoreRow]:
    asked = set(work.prompts("asked"))
    # What was derived after the search, as for a manifold report, joins no group.
    listed = {0, *(p.id for p in work.run.perturbation_rows())}
    written = [c for c in work.run.completion_rows(FIRST) if c.perturbation in listed]
    first = [c for c in written if c.prompt in asked]
    labels = clusters([c.text for c in first]).tolist()
    # The re-test joins the groups as they are.
    known = set(work.prompts("asked", "fresh"))
    again = [c for c in work.run.completion_rows(RETEST) if c.perturbation and c.prompt in known]
    nearest = assign([c.text for c in again], [c.text for c in first]).tolist()
    joined = [labels[near] if near >= 0 else -1 for near in nearest]

    def scored(c: CompletionRow, label: int) -> ScoreRow:
        return ScoreRow(c.row, BEHAVIOUR, float(label), "number", "")

    return [scored(c, label) for c, label in zip((*first, *again), (*labels, *joined), strict=True)]
