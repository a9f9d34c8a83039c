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

import educe
from educe.comparison.cluster import CHARACTERS, FAR, apart, stated
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


def hidden(lm: educe.LanguageModel) -> Distance:
    """The model's own stream at half the depth, its mean over a text, in units of its spread.

    Tokens with a massive activation are left out: five times the median norm.
    """

    def distance(texts: Sequence[str]) -> np.ndarray:
        streams = []
        for text in texts:
            ids = lm.tokenizer(text or " ", return_tensors="pt").input_ids
            with torch.no_grad():
                states = lm.hf(ids, output_hidden_states=True).hidden_states
            streams.append(states[lm.depth // 2][0].numpy())
        limit = 5 * np.median(np.linalg.norm(np.concatenate(streams), axis=1))
        kept = [one[np.linalg.norm(one, axis=1) < limit] for one in streams]
        at = np.array([one.mean(0) if len(one) else np.zeros(lm.width) for one in kept])
        return cosine_distances((at - at.mean(0)) / at.std(0))

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


def unlike(lm: educe.LanguageModel, pairs: Sequence[tuple[str, str]]) -> np.ndarray:
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
    "numbers, declining, negation": stated,
}
#: What is added to the last of these.
NAMES, WORD = ", names", ", one word"


def parted(distance: np.ndarray, texts: Sequence[str], guard: str) -> np.ndarray:
    """Return a distance that is large where texts do not state the same.

    Names part two texts of which each has one that the other has not.
    """
    if guard.endswith(WORD):
        return np.where(apart(texts), FAR, distance)
    kinds = [GUARDS[guard.removesuffix(NAMES)](text) for text in texts]
    different = np.array([[one != other for other in kinds] for one in kinds])
    if guard.endswith(NAMES):
        own = [names(text) for text in texts]
        different |= np.array([[bool(a - b and b - a) for b in own] for a in own])
    return np.where(different, FAR, distance)


def _cosine(at: csr_array) -> np.ndarray:
    """Return cosine distances; texts without terms are alike."""
    at = normalize(csr_array(at))
    empty = np.diff(at.indptr) == 0
    return 1 - (at @ at.T).toarray() - np.outer(empty, empty)
