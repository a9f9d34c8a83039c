"""Groups of completions that say the same, and a map of them.

Two texts are one behaviour when they say the same: their words are near, and what a single word or
digit turns round is equal.

    distance(a, b) = 1 - cosine(TF-IDF of the characters of a, of b)   where a and b state the same
                     infinite                                          elsewhere
    groups         = average-linkage clusters under a threshold

What is stated are the numbers and codes of a text, whether it declines, and whether it denies:
"The code is 4417." is near "The code is 4471." in its words, and neither says what the other does.
Nor do short texts that differ in one word alone: "The opposite of up is down." and "... is blue."
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Hashable, Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy.sparse import csr_array
from sklearn.cluster import AgglomerativeClustering
from sklearn.decomposition import PCA
from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS, TfidfVectorizer

from educe.scores.refusal import refusal
from educe.scores.rules import folded

#: Three to five characters within words, ends of words among them; rare ones count more.
CHARACTERS: dict[str, Any] = {
    "preprocessor": lambda text: " ".join(re.findall(r"\w+", text.lower())),
    "analyzer": "char_wb",
    "ngram_range": (3, 5),
    "sublinear_tf": True,
}
#: Average distance above which two texts are different behaviours: chosen in `studies/grouping`.
THRESHOLD = 0.65
#: The longest text, in words, that one word in place of another makes a different statement.
SHORT = 8
#: The distance of texts that state different things: large enough to part any average with them.
FAR = 1e6

#: A word with a digit in it, or groups of digits with a mark between them; no number of a list.
_NUMBER = re.compile(r"(?<![\w.])(?!\d{1,2}[.)](?:\s|$))\w*\d\w*(?:[.,:/-]\d+)*")
_NEGATION = re.compile(r"\b(?:no|not|never|none|nothing|neither|nor|cannot|without)\b|n't\b")


class Stated(NamedTuple):
    """What texts of one group have in common to the letter."""

    numbers: frozenset[str]
    declines: bool
    denies: bool  #: something else than to answer


def stated(text: str) -> Stated:
    """Return what a text states that its words do not weigh."""
    plain = folded(text)
    declines = refusal(text) is not None
    denies = not declines and bool(_NEGATION.search(plain))
    return Stated(frozenset(_NUMBER.findall(plain)), declines, denies)


def clusters(texts: Sequence[str]) -> np.ndarray:
    """Number texts by what they say, ``[texts]``.

    Texts of no word are one cluster. The number 0 goes to the largest cluster, and so on down.
    """
    distinct = sorted(set(texts))
    labels = np.zeros(len(distinct), dtype=int)
    if len(distinct) > 1:
        grouping = AgglomerativeClustering(
            n_clusters=None, metric="precomputed", linkage="average", distance_threshold=THRESHOLD
        )
        labels = grouping.fit_predict(_distances(distinct, distinct))
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
    distances = _distances(texts, known)
    return np.where(distances.min(1) <= THRESHOLD, distances.argmin(1), -1)


def apart(texts: Sequence[str]) -> np.ndarray:
    """Return which texts state different things, ``[texts, texts]``."""
    says = [stated(text) for text in texts]
    words = [tuple(re.findall(r"\w+", folded(text))) for text in texts]
    frames: dict[Hashable, list[int]] = defaultdict(list)
    for k, own in enumerate(words):
        if len(own) <= SHORT and not says[k].declines:  # in whatever words
            for place, word in enumerate(own):
                if word not in ENGLISH_STOP_WORDS:
                    frames[own[:place], own[place + 1 :]].append(k)
    different = _unequal(says)
    for some in frames.values():
        different[np.ix_(some, some)] |= _unequal([words[k] for k in some])
    return different


def _unequal(values: Sequence[Hashable]) -> np.ndarray:
    """Return which values differ, ``[values, values]``."""
    number: dict[Hashable, int] = {}
    at = np.array([number.setdefault(value, len(number)) for value in values])
    return at[:, None] != at


def _distances(texts: Sequence[str], others: Sequence[str]) -> np.ndarray:
    """Return how far texts are from others, ``[texts, others]``; texts of no word are alike."""
    distinct = sorted({*texts, *others})
    try:
        at = csr_array(TfidfVectorizer(**CHARACTERS).fit_transform(distinct))
    except ValueError:  # no text has a word
        at = csr_array((len(distinct), 1))
    place = {text: k for k, text in enumerate(distinct)}
    mine, theirs = ([place[text] for text in some] for some in (texts, others))
    empty = np.diff(at.indptr) == 0
    likeness = (at[mine] @ at[theirs].T).toarray() + np.outer(empty[mine], empty[theirs])
    return np.where(apart(distinct)[np.ix_(mine, theirs)], FAR, 1 - likeness)


def plane(embeddings: np.ndarray) -> np.ndarray:
    """Place embeddings of unit norm on their two main axes, ``[texts, 2]``."""
    if len(embeddings) < 3:
        return np.zeros((len(embeddings), 2))
    norms = np.linalg.norm(embeddings, axis=1, keepdims=True)
    unit = embeddings / np.where(norms > 0, norms, 1)
    return PCA(n_components=2, svd_solver="full").fit_transform(unit)
