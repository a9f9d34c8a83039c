"""What is said of texts beside each other: prompt invariance, and which say the same."""

from __future__ import annotations

from collections import defaultdict

from educe.comparison.cluster import assign, clusters
from educe.rows import (
    BEHAVIOUR,
    ELSEWHERE,
    FIRST,
    PROMPT_INVARIANCE,
    RETEST,
    CompletionRow,
    ScoreRow,
)
from educe.run.work import Work
from educe.scores.invariance import prompt_invariance


def compare(work: Work) -> None:
    """Score prompt invariance, and put the texts that were written since into behaviours."""
    with work.timed("judge"):
        first = _first(work)
        if len(work.prompts("asked")) > 1:
            work.run.add_scores(_invariances(work, first))
        work.run.add_scores(_behaviours(work, first))


def _first(work: Work) -> list[CompletionRow]:
    """Return the answers to the prompts asked, but not those of derived perturbations."""
    asked = set(work.prompts("asked"))
    ours = {0, *(p.id for p in work.run.perturbation_rows())}
    return [
        c for c in work.run.completion_rows(FIRST) if c.prompt in asked and c.perturbation in ours
    ]


def _plain(work: Work) -> list[CompletionRow]:
    """Return what the unperturbed model writes for the prompts of the re-test."""
    others = set(work.prompts("fresh", ELSEWHERE))
    return [
        c for c in work.run.completion_rows(FIRST) if c.perturbation == 0 and c.prompt in others
    ]


def _invariances(work: Work, first: list[CompletionRow]) -> list[ScoreRow]:
    """Score how alike the answers of each perturbation are, where that is not known."""
    known, written = {s.of for s in work.run.score_rows(PROMPT_INVARIANCE)}, defaultdict(list)
    for c in first:
        if c.perturbation and c.perturbation not in known:
            written[c.perturbation].append(c)
    each = {
        n: prompt_invariance([c.text for c in own], [c.prompt for c in own])
        for n, own in written.items()
    }
    return [ScoreRow(n, s.judge, s.value, s.higher_is, s.why) for n, s in each.items()]


def _behaviours(work: Work, first: list[CompletionRow]) -> list[ScoreRow]:
    """Number the behaviours once; the re-test joins the groups as they are."""
    known = {s.of: s.value for s in work.run.score_rows(BEHAVIOUR)}
    if known:
        first = [c for c in first if c.row in known]  # others are asked for by later programs
    labels = [known[c.row] for c in first] if known else clusters([c.text for c in first])
    ours = set(work.prompts("asked", "fresh", ELSEWHERE))  # a selection has prompts of its own
    more = (*work.run.completion_rows(RETEST), *_plain(work))
    again = [c for c in more if c.row not in known and c.prompt in ours]
    nearest = assign([c.text for c in again], [c.text for c in first]).tolist()
    new = [] if known else list(zip(first, labels, strict=True))
    new += [(c, labels[n] if n >= 0 else -1) for c, n in zip(again, nearest, strict=True)]
    return [ScoreRow(c.row, BEHAVIOUR, float(label), "number", "") for c, label in new]
