"""Clusters of completions that say the same, and a map of them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from sklearn.cluster import AgglomerativeClustering
from sklearn.decomposition import PCA

from educe.scores.novelty import vectors

#: Average cosine distance of words and word pairs above which two texts are different behaviours.
THRESHOLD = 0.75


def clusters(texts: Sequence[str]) -> np.ndarray:
    """Number texts by what they say: average-linkage clusters of their words, ``[texts]``.

    Texts of no word are one cluster. The number 0 goes to the largest cluster, and so on down.
    """
    distinct = sorted(set(texts))
    at = vectors(distinct)
    empty = ~at.any(1)
    labels = np.zeros(len(distinct), dtype=int)
    if (~empty).sum() > 1:
        grouping = AgglomerativeClustering(
            n_clusters=None, metric="cosine", linkage="average", distance_threshold=THRESHOLD
        )
        labels[~empty] = grouping.fit_predict(at[~empty])
    labels[empty] = labels.max(initial=-1) + 1
    of_text = dict(zip(distinct, labels.tolist(), strict=True))
    mine = np.array([of_text[text] for text in texts], dtype=int)
    order = np.argsort(-np.bincount(mine), kind="stable")
    rank = np.empty_like(order)
    rank[order] = np.arange(len(order))
    return rank[mine]


def assign(texts: Sequence[str], known: Sequence[str]) -> np.ndarray:
    """Return for each text which known one is nearest, or -1 where none is near, ``[texts]``."""
    if not texts or not known:
        return np.full(len(texts), -1)
    at = vectors([*texts, *known])
    mine, theirs = at[: len(texts)], at[len(texts) :]
    likeness = mine @ theirs.T + np.outer(~mine.any(1), ~theirs.any(1))
    nearest = likeness.argmax(1)
    return np.where(likeness.max(1) >= 1 - THRESHOLD, nearest, -1)


def plane(embeddings: np.ndarray) -> np.ndarray:
    """Place embeddings of unit norm on their two main axes, ``[texts, 2]``."""
    if len(embeddings) < 3:
        return np.zeros((len(embeddings), 2))
    norms = np.linalg.norm(embeddings, axis=1, keepdims=True)
    unit = embeddings / np.where(norms > 0, norms, 1)
    return PCA(n_components=2, svd_solver="full").fit_transform(unit)
