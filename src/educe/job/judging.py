"""Judging: what was written is read by the unperturbed model, scored, and put into groups."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import numpy as np

from educe.cluster import assign, clusters, plane
from educe.job.work import Work
from educe.judge.coherence import coherence, ordinary_logprob
from educe.judge.constancy import constancy
from educe.judge.novelty import novelty
from educe.judge.reading import read
from educe.kinds import Row
from educe.runs import CompletionRow, ScoreRow
from educe.summary import RETEST
from educe.writing import as_completion


def judge(work: Work) -> None:
    """Read, score and group what was written since."""
    with work.timed("judge"):
        _read(work)
        _score(work)
        _group(work)


def _read(work: Work) -> None:
    done = work.run.readings()
    missing = [as_completion(c) for c in work.run.completions() if c.key not in done]
    if not missing:
        return
    with work.reporter.stage("reading what was written", len(missing), "texts") as step:
        for batch in read(work.lm, work.batch, missing, layer=work.part.target):
            work.run.add_readings([(_key(r.completion.row), r.logprob, r.embedding) for r in batch])
            step(len(batch))


def _ordinary(work: Work) -> float:
    if not work.run.has("ordinary_logprob"):
        value = ordinary_logprob(
            work.lm, max_new_tokens=work.settings.max_new_tokens, layer=work.part.target
        )
        work.run.remember("ordinary_logprob", value)
    return work.run.note("ordinary_logprob")


def _score(work: Work) -> None:
    ordinary = _ordinary(work)
    readings, scores = work.run.readings(), []
    everything = work.run.completions()
    for prompt in range(len(work.batch)):
        texts = [c for c in everything if c.prompt == prompt]
        base = [c for c in texts if c.perturbation == 0]
        written = [c for c in texts if c.perturbation > 0]
        if not written:
            continue
        # Apart, so that the re-test cannot change what it was chosen by.
        for some in (
            [c for c in written if c.sample < RETEST],
            [c for c in written if c.sample >= RETEST],
        ):
            new = novelty([c.text for c in some], [c.text for c in base])
            for completion, novel in zip(some, new, strict=True):
                fluent = coherence(completion.text, readings[completion.key][0], ordinary)
                scores += [
                    ScoreRow(*completion.key, s.judge, s.value, s.why) for s in (fluent, novel)
                ]
    if len(work.asked) > 1:
        scores += _constancies(work, everything)
    work.run.add_scores(scores)


def _constancies(work: Work, everything: Sequence[CompletionRow]) -> list[ScoreRow]:
    """Score how alike the answers of each perturbation to the prompts asked are."""
    written: dict[int, list[CompletionRow]] = defaultdict(list)
    for c in everything:
        if c.perturbation > 0 and c.prompt < len(work.asked) and c.sample < RETEST:
            written[c.perturbation].append(c)
    each = {
        n: constancy([c.text for c in own], [c.prompt for c in own]) for n, own in written.items()
    }
    return [ScoreRow(n, -1, -1, s.judge, s.value, s.why) for n, s in each.items()]


def _group(work: Work) -> None:
    readings = work.run.readings()
    everything = work.run.completions()
    asked = [c for c in everything if c.prompt < len(work.asked) and c.sample < RETEST]
    labels = clusters([c.text for c in asked])
    places = plane(np.stack([readings[c.key][1] for c in asked]))
    rows = [
        (c.key, int(label), float(x), float(y))
        for c, label, (x, y) in zip(asked, labels, places, strict=True)
    ]
    # The re-test joins the groups as they are.
    again = [c for c in everything if c.sample >= RETEST]
    nearest = assign([c.text for c in again], [c.text for c in asked])
    rows += [
        (c.key, rows[near][1] if near >= 0 else -1, *rows[near][2:])
        for c, near in zip(again, nearest.tolist(), strict=True)
    ]
    work.run.set_behaviours(rows)


def _key(row: Row) -> tuple[int, int, int]:
    return row.perturbation + 1, row.prompt, row.sample
