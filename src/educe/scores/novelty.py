"""Novelty: how unlike everything the unperturbed model writes for the same prompt.

    novelty = 1 - max over baseline texts b of  similarity(completion, b)

The baseline is the unperturbed model's greedy answer and its samples. Similarity is the cosine of
TF-IDF weighted words and word pairs: what a text says, in the words it says it with. The weights
are those of the completion and its baseline alone, so that a score depends on nothing that is
scored beside it. Texts of no word are alike.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from functools import lru_cache
from itertools import pairwise

import numpy as np

from educe.errors import JudgeError
from educe.scores import Answer, Score

_WORD = re.compile(r"\b\w+\b")


def vectors(texts: Sequence[str]) -> np.ndarray:
    """Return TF-IDF vectors of unit norm, ``[texts, terms]``; zero for a text of no word.

    They are those of scikit-learn's ``TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True)`` with
    words of one letter too, up to rounding, without what that takes to begin: a run scores each
    text beside its own baseline, in a sixth of the time.
    """
    counts = [Counter(_terms(text)) for text in texts]
    known = {term: place for place, term in enumerate(sorted(set().union(*counts)))}
    if not known:
        return np.zeros((len(texts), 1))
    found = np.zeros((len(texts), len(known)))
    for row, own in zip(found, counts, strict=True):
        row[[known[term] for term in own]] = list(own.values())
    there = found > 0
    found[there] = np.log(found[there]) + 1
    found *= np.log((1 + len(texts)) / (1 + there.sum(0))) + 1
    norm = np.linalg.norm(found, axis=1, keepdims=True)
    return found / np.where(norm > 0, norm, 1)


@lru_cache(maxsize=1024)
def _terms(text: str) -> list[str]:
    """Return the words of a text and its pairs; a baseline is asked for again and again."""
    words = _WORD.findall(text.lower())
    return words + [" ".join(pair) for pair in pairwise(words)]


def novelty(text: str, baseline: Sequence[str]) -> Score:
    """Score a completion against what the unperturbed model wrote for its prompt."""
    mine, *theirs = vectors([text, *baseline])
    likeness = [float(mine @ one) + (not mine.any() and not one.any()) for one in theirs]
    best = int(np.argmax(likeness))
    return Score(
        "novelty",
        float(np.clip(1 - likeness[best], 0, 1)),
        "unlike the unperturbed model",
        f"nearest unperturbed text: {baseline[best]!r}",
    )


class Novelty:
    """The novelty of answers, each against the unperturbed texts that come with it."""

    name, higher_is = "novelty", "unlike the unperturbed model"
    identity, cost = "novelty:1", "nothing"

    def score(self, answers: Sequence[Answer]) -> list[Score]:
        """Score answers, in their order.

        Raises:
            JudgeError: An answer comes without unperturbed texts.
        """
        if any(not answer.plain for answer in answers):
            raise JudgeError("novelty compares: give each answer the unperturbed texts, as plain")
        return [novelty(answer.text, answer.plain) for answer in answers]
