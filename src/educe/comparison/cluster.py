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

import heapq
import re
from collections import Counter, defaultdict
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import numpy as np
from scipy.cluster.hierarchy import linkage
from scipy.linalg import eigh
from scipy.sparse import csr_array
from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS, TfidfVectorizer
from sklearn.preprocessing import normalize

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
#: Different texts that are grouped, whose pairs take half a gigabyte; and rows of these at once.
GROUPED, BLOCK = 10_000, 256

#: A word with a digit in it, or groups of digits with a mark between them; no number of a list.
_NUMBER = re.compile(r"(?<![\w.])(?!\d{1,2}[.)](?:\s|$))\w*\d\w*(?:[.,:/-]\d+)*")
_NEGATION = re.compile(r"\b(?:no|not|never|none|nothing|neither|nor|cannot|without)\b|n't\b")

#: A text, how often it comes, and what else is known of it.
Counted = TypeVar("Counted", bound=tuple[Any, ...])


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
    """Number texts by what they say, ``[texts]``; -1 for one that is like none.

    Texts of no word are one cluster. The number 0 goes to the largest cluster, and so on down. Of
    more than `GROUPED` different texts the commonest are grouped, and the others join the nearest.
    """
    each = Counter(texts)
    known = grouped([text for text, _ in commonest(each.items())])
    of_text = dict(joined(sorted(each), known))
    return by_size(np.array([of_text[text] for text in texts], dtype=int))


def commonest(counted: Iterable[Counted]) -> list[Counted]:
    """Return the texts that come most often, at most `GROUPED`, in their own order.

    Args:
        counted: Different texts, each with how often it comes, and what else is known of it.
    """
    return sorted(heapq.nsmallest(GROUPED, counted, key=lambda one: (-one[1], one[0])))


def grouped(texts: Sequence[str]) -> dict[str, int]:
    """Return the group of each of some different texts, all of whose pairs are looked at."""
    if len(texts) < 2:
        return dict.fromkeys(texts, 0)
    labels = cut(linkage(_Distances(texts).condensed(), "average"))
    return dict(zip(texts, labels.tolist(), strict=True))


def joined(texts: Iterable[str], known: Mapping[str, int]) -> Iterator[tuple[str, int]]:
    """Yield texts with their groups: that of the nearest known text, or -1 where none is near.

    Args:
        texts: Different texts. Those that are not known come later, up to `GROUPED` at once.
        known: Texts that have a group.
    """
    new: list[str] = []
    for text in texts:
        if text in known:
            yield text, known[text]
        else:
            new.append(text)
        if len(new) == GROUPED:
            yield from _near(new, known)
            new = []
    yield from _near(new, known)


def _near(texts: Sequence[str], known: Mapping[str, int]) -> Iterator[tuple[str, int]]:
    labels = [*known.values(), -1]
    for text, nearest in zip(texts, assign(texts, list(known)).tolist(), strict=True):
        yield text, labels[nearest]


def by_size(labels: np.ndarray) -> np.ndarray:
    """Number groups anew, the largest 0 and so on down; -1 stays, ``[texts]``."""
    order = np.argsort(-np.bincount(labels[labels >= 0]), kind="stable")
    rank = np.full(len(order) + 1, -1)
    rank[order] = np.arange(len(order))
    return rank[labels]


def assign(texts: Sequence[str], known: Sequence[str]) -> np.ndarray:
    """Return for each text which known one is nearest, or -1 where none is near, ``[texts]``."""
    if not texts or not known:
        return np.full(len(texts), -1)
    first: dict[str, int] = {}
    for k, text in enumerate(known):
        first.setdefault(text, k)
    far, place = _Distances(list(dict.fromkeys((*first, *texts)))), np.array([*first.values()])
    of_text: dict[str, int] = {}
    later = list(dict.fromkeys(texts))
    for at in range(0, len(later), BLOCK):
        some = later[at : at + BLOCK]
        distances = far.among([far.place[text] for text in some], len(first))
        nearest = np.where(distances.min(1) <= THRESHOLD, place[distances.argmin(1)], -1)
        of_text |= zip(some, nearest.tolist(), strict=True)
    return np.array([of_text[text] for text in texts])


def cut(tree: np.ndarray) -> np.ndarray:
    """Number the leaves of a tree of clusters, cut at the threshold, ``[leaves]``.

    Args:
        tree: As `scipy.cluster.hierarchy.linkage` returns it. The numbers are those that
            `sklearn.cluster.AgglomerativeClustering` would give.
    """
    joined, leaves = tree[:, :2].astype(int), len(tree) + 1
    tops = [-(2 * leaves - 2)]  # of the subtrees, negative: the one joined last is split first
    for _ in range(int((tree[:, 2] >= THRESHOLD).sum())):
        one, other = joined[-tops[0] - leaves]
        heapq.heappush(tops, -int(one))
        heapq.heappushpop(tops, -int(other))
    labels = np.empty(leaves, dtype=int)
    for label, top in enumerate(tops):
        inside = [-top]
        while inside:
            node = inside.pop()
            if node < leaves:
                labels[node] = label
            else:
                inside += joined[node - leaves].tolist()
    return labels


def apart(texts: Sequence[str]) -> np.ndarray:
    """Return which texts state different things, ``[texts, texts]``."""
    return _Apart(texts).among(list(range(len(texts))), len(texts))


class _Apart:
    """Which of some texts state different things."""

    def __init__(self, texts: Sequence[str]) -> None:
        says = [stated(text) for text in texts]
        words = [tuple(re.findall(r"\w+", folded(text))) for text in texts]
        self.says, self.words = _numbered(says), _numbered(words)
        self.frames: dict[Hashable, list[int]] = defaultdict(list)  #: all words of some but one
        self.frames_of: list[list[Hashable]] = [[] for _ in texts]
        for k, own in enumerate(words):
            if len(own) <= SHORT and not says[k].declines:  # in whatever words
                for place, word in enumerate(own):
                    if word not in ENGLISH_STOP_WORDS:
                        self.frames_of[k].append((own[:place], own[place + 1 :]))
                        self.frames[own[:place], own[place + 1 :]].append(k)

    def among(self, rows: Sequence[int], columns: int) -> np.ndarray:
        """Return which differ, of some texts and the first so many, ``[rows, columns]``."""
        different = self.says[rows][:, None] != self.says[:columns]
        for own, k in zip(different, rows, strict=True):
            for frame in self.frames_of[k]:
                others = np.array(self.frames[frame])
                others = others[others < columns]
                own[others] |= self.words[others] != self.words[k]
        return different


class _Distances:
    """How far texts are from each other, a few rows at a time; texts of no word are alike.

    Args:
        texts: Texts, each once.
    """

    def __init__(self, texts: Sequence[str]) -> None:
        self.place = {text: k for k, text in enumerate(texts)}
        try:
            self.weights = csr_array(TfidfVectorizer(**CHARACTERS).fit_transform(texts))
        except ValueError:  # no text has a word
            self.weights = csr_array((len(texts), 1))
        self.empty = np.diff(self.weights.indptr) == 0
        self.apart = _Apart(texts)

    def among(self, rows: Sequence[int], columns: int) -> np.ndarray:
        """Return how far some texts are from the first so many, ``[rows, columns]``."""
        likeness = (self.weights[rows] @ self.weights[:columns].T).toarray()
        likeness += np.outer(self.empty[rows], self.empty[:columns])
        return np.where(self.apart.among(rows, columns), FAR, 1 - likeness)

    def condensed(self) -> np.ndarray:
        """Return the distances of all pairs, as `scipy.spatial.distance.squareform` has them."""
        n = len(self.place)
        found = np.empty(n * (n - 1) // 2)
        end = 0
        for at in range(0, n, BLOCK):
            rows = list(range(at, min(at + BLOCK, n)))
            for k, own in zip(rows, self.among(rows, n), strict=True):
                begin, end = end, end + n - k - 1
                found[begin:end] = own[k + 1 :]
        return found


def _numbered(values: Sequence[Hashable]) -> np.ndarray:
    """Return a number for each value, equal for equal ones."""
    number: dict[Hashable, int] = {}
    return np.array([number.setdefault(value, len(number)) for value in values])


def plane(embeddings: np.ndarray | csr_array) -> np.ndarray:
    """Place embeddings on their two main axes by their directions, ``[texts, 2]``.

    As the products of texts are fewer than those of terms, it takes memory by the square of the
    texts, and not by their terms. The largest loading of an axis is positive.
    """
    if embeddings.shape[0] < 3:
        return np.zeros((embeddings.shape[0], 2))
    unit = csr_array(normalize(embeddings))
    mean = unit.mean(0)
    along = unit @ mean
    products = (unit @ unit.T).toarray() - along - along[:, None] + mean @ mean
    values, axes = eigh(products)
    noise = len(products) * np.finfo(float).eps
    placed = (axes * np.sqrt(np.where(values > noise, values, 0)))[:, :-3:-1]
    loadings = unit.T @ placed - np.outer(mean, placed.sum(0))
    return placed * np.where(loadings[np.abs(loadings).argmax(0), [0, 1]] < 0, -1.0, 1.0)
