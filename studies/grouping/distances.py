"""How far texts are from one another, by what can be asked of them: each a `[texts, texts]`."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from scipy.sparse import csr_array, diags_array
from sklearn.feature_extraction.text import CountVectorizer, TfidfVectorizer
from sklearn.metrics.pairwise import cosine_distances
from sklearn.preprocessing import normalize
from transformers import AutoModel, AutoTokenizer

from educe.comparison.cluster import CHARACTERS, FAR, stated
from educe.model.language import LanguageModel
from educe.scores.asking import Local

Distance = Callable[[Sequence[str]], np.ndarray]
TOKEN = r"(?u)\b\w+\b"
#: What the model is asked of two texts.
QUESTION = 'Text A: "{}"\nText B: "{}"\nDo these two texts say the same? Answer yes or no.'
#: A capital letter behind a small one or a comma: a name, and no beginning of a sentence.
NAME = re.compile(r"(?<=[a-z,] )(?!I\b)[A-Z]\w+")


def words(texts: Sequence[str]) -> np.ndarray:
    """Words and pairs of words by TF-IDF."""
    how = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, token_pattern=TOKEN)
    return _cosine(how.fit_transform(texts))


def rare(texts: Sequence[str]) -> np.ndarray:
    """Words by the square of their IDF, those with a digit three times as heavy."""
    how = CountVectorizer(token_pattern=TOKEN)
    counts = csr_array(how.fit_transform(texts)).sign()
    idf = 1 + np.log((1 + len(texts)) / (1 + counts.sum(0)))
    digits = np.array([any(c.isdigit() for c in word) for word in how.get_feature_names_out()])
    return _cosine(counts @ diags_array(idf**2 * np.where(digits, 3, 1)))


def characters(texts: Sequence[str]) -> np.ndarray:
    """Three to five characters within words by TF-IDF, as `educe.comparison.cluster` has it."""
    how = TfidfVectorizer(**CHARACTERS)
    return _cosine(how.fit_transform(texts))


def both(texts: Sequence[str]) -> np.ndarray:
    """The mean of words and characters."""
    return (words(texts) + characters(texts)) / 2


def hidden(lm: LanguageModel) -> Distance:
    """The model's own stream at half the depth, its mean over a text, less that of all texts."""

    def distance(texts: Sequence[str]) -> np.ndarray:
        rows = []
        for text in texts:
            ids = lm.tokenizer(text or " ", return_tensors="pt").input_ids
            with torch.no_grad():
                streams = lm.hf(ids, output_hidden_states=True).hidden_states
            # The first token has a massive activation; a text of one token has nothing else.
            rows.append(streams[lm.depth // 2][0, min(1, ids.shape[1] - 1) :].mean(0).numpy())
        at = np.array(rows)
        return cosine_distances(at - at.mean(0))

    return distance


def sentences(folder: Path) -> Distance:
    """A sentence model's mean over tokens."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModel.from_pretrained(folder).eval()

    def distance(texts: Sequence[str]) -> np.ndarray:
        batch = tokenizer(list(texts), padding=True, truncation=True, return_tensors="pt")
        with torch.no_grad():
            stream = model(**batch).last_hidden_state
        mask = batch.attention_mask[..., None]
        return cosine_distances(((stream * mask).sum(1) / mask.sum(1)).numpy())

    return distance


def unlike(lm: LanguageModel, pairs: Sequence[tuple[str, str]]) -> np.ndarray:
    """How sure a model is that two texts do not say the same, in log odds, ``[pairs]``."""
    odds = np.empty(len(pairs))
    for batch in Local(lm).yes([QUESTION.format(*pair) for pair in pairs]):
        for line, chance in batch:
            odds[line] = np.log(chance.no) - np.log(chance.yes)
    return odds


# -- guards: which texts are never one group ----------------------------------------------------


def names(text: str) -> frozenset[str]:
    """Return the names in a text, as far as capital letters tell."""
    return frozenset(NAME.findall(text))


GUARDS: dict[str, Callable[[str], object]] = {
    "none": lambda text: None,
    "numbers": lambda text: stated(text).numbers,
    "declining": lambda text: stated(text).declines,
    "numbers, declining": lambda text: stated(text)[:2],
    "numbers, declining, negation": lambda text: stated(text)[:3],
}
NAMES = ", names"


def parted(distance: np.ndarray, texts: Sequence[str], guard: str) -> np.ndarray:
    """Return a distance that is large where texts do not state the same.

    Names part two texts of which each has one that the other has not.
    """
    kinds = [GUARDS[guard.removesuffix(NAMES)](text) for text in texts]
    apart = np.array([[one != other for other in kinds] for one in kinds])
    if guard.endswith(NAMES):
        own = [names(text) for text in texts]
        apart |= np.array([[bool(a - b and b - a) for b in own] for a in own])
    return np.where(apart, FAR, distance)


def _cosine(at: csr_array) -> np.ndarray:
    """Return cosine distances; texts without terms are alike."""
    at = normalize(csr_array(at))
    empty = np.diff(at.indptr) == 0
    return 1 - (at @ at.T).toarray() - np.outer(empty, empty)
