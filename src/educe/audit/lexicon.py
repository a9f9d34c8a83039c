"""The lexicon: words that may stand in a prompt, also those that a tokenizer cuts into pieces.

    words of one token           the vocabulary's own, a space and letters
    words of two to four tokens  of the `FREQUENT` most frequent English words the others

A tokenizer knows some thirty thousand words whole, and *teapot* may not be among them: what reads
the vocabulary alone would never try it. Frequencies are those of pyspellchecker, counted over
subtitles of films.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from functools import cache

import torch
from jaxtyping import Int
from spellchecker import SpellChecker
from torch import Tensor

from educe.methods.token_directions import vocabulary
from educe.model.language import LanguageModel

#: Words that are looked through, the most frequent, and the tokens that one may have.
FREQUENT, PIECES = 40_000, 4


@cache
def frequent() -> tuple[str, ...]:
    """Return English words of letters alone, the most frequent first.

    Example:
        >>> from educe.audit.lexicon import frequent
        >>> frequent()[:3]
        ('the', 'you', 'i')
    """
    counts = SpellChecker(language="en").word_frequency.dictionary
    words = (word for word in counts if word.isascii() and word.isalpha())
    return tuple(sorted(words, key=lambda word: (-counts[word], word)))


def lexicon(lm: LanguageModel) -> dict[int, Int[Tensor, "n k"]]:
    """Return the tokens of words, by how many tokens `k` they have.

    Raises:
        MethodError: The tokenizer marks no spaces, or there are none to tell apart.
    """
    return {1: vocabulary(lm)[:, None]} | pieced(lm, frequent()[:FREQUENT])


def pieced(lm: LanguageModel, words: Iterable[str]) -> dict[int, Int[Tensor, "n k"]]:
    """Return the tokens of those words that have two to `PIECES`, by how many they have."""
    found: dict[int, list[list[int]]] = defaultdict(list)
    for word in words:
        tokens = lm.tokens(f" {word}", templated=True)
        if 1 < len(tokens) <= PIECES:
            found[len(tokens)].append(tokens)
    return {k: torch.tensor(found[k]) for k in sorted(found)}
