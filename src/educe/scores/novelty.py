"""Novelty: how unlike everything the unperturbed model writes for the same prompt.

    novelty = 1 - max over baseline texts b of  similarity(completion, b)

The baseline is the unperturbed model's greedy answer and its samples. Similarity is the cosine of
TF-IDF weighted words and word pairs: what a text says, in the words it says it with. The weights
are those of the completion and its baseline alone, so that a score depends on nothing that is
scored beside it. Texts of no word are alike.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.sparse import csr_array
from sklearn.feature_extraction.text import TfidfVectorizer

from educe.errors import JudgeError
from educe.scores import Answer, Score


def vectors(texts: Sequence[str]) -> np.ndarray:
    """Return TF-IDF vectors of unit norm, ``[texts, terms]``; zero for a text of no word."""
    return weighed(texts).toarray()


def weighed(texts: Sequence[str]) -> csr_array:
    """Return the same as a sparse array, which many texts need."""
    known = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, token_pattern=r"(?u)\b\w+\b")
    try:
        return csr_array(known.fit_transform(texts))
    except ValueError:  # no text has a word
        return csr_array((len(texts), 1))


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
