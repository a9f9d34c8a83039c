"""The screen as it was before kinds and four rates: what it showed, and in which order.

Groups by the words alone; novelty beside the likeliest answer and eight samples; a group that a
sample is in, or that is little novel, is as before; then damage by coherence; then more often than
the control, then what the control does not do. Of each verdict the most interesting first.
"""

from __future__ import annotations

import numpy as np
from sklearn.cluster import AgglomerativeClustering

from educe.comparison.stats import comparisons, more_often, rate
from educe.comparison.summary import Summary
from educe.comparison.verdict import DAMAGED, LEVEL, SAME
from educe.rows import ARMS, FOUND, CompletionRow
from educe.scores.novelty import vectors

#: Distance of groups; samples beside the likeliest answer.
THRESHOLD, SAMPLES = 0.75, 8


def lines(s: Summary) -> list[CompletionRow]:
    """Return the examples of the lines that the screen had, in order."""
    texts = s.texts.rows[(s.texts.rows.phase == "first") & (s.texts.rows.role == "asked")]
    texts = texts[texts.arm.isin((*ARMS, "unperturbed")) & (texts["sample"] <= SAMPLES)]
    texts = texts.assign(group=grouped(list(s.texts.said(texts.number)))).fillna(
        {"coherence": 0.0, "novelty": 0.0}
    )
    plain = set(texts.group[texts.perturbation == 0])
    sizes = [len(arm) for arm in (s.found, s.control)]
    by_arm = texts[texts.perturbation > 0].groupby(["group", "arm"]).perturbation.nunique()
    counts = by_arm.unstack(fill_value=0).reindex(columns=ARMS, fill_value=0)
    tests = comparisons(counts.sum(axis=1).tolist(), *sizes)
    told = []
    for group, own in texts[texts.arm == FOUND].groupby("group"):
        found, control = (rate(int(h), n) for h, n in zip(counts.loc[group], sizes, strict=True))
        if group in plain or own.novelty.mean() < SAME or own.coherence.mean() < DAMAGED:
            continue
        clear = min(1.0, more_often(found, control) * tests) < LEVEL / 2
        if clear or not control.hits:
            best = own.iloc[int((own.coherence * own.novelty).argmax())]
            told.append((not clear, -float((own.coherence * own.novelty).mean()), best.number))
    return s.texts.written(number for *_, number in sorted(told, key=lambda one: one[:2]))


def grouped(texts: list[str]) -> np.ndarray:
    """Number texts by the words they share: average linkage of TF-IDF words and word pairs."""
    at = vectors(texts)
    empty = ~at.any(1)
    labels = np.full(len(texts), -1)
    if (~empty).sum() < 2:
        return labels
    labels[~empty] = AgglomerativeClustering(
        n_clusters=None, metric="cosine", linkage="average", distance_threshold=THRESHOLD
    ).fit_predict(at[~empty])
    return labels
