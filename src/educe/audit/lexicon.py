"""The lexicon: words and numbers that may stand in a prompt, also those that are several tokens.

    words of one token           the vocabulary's own, a space and letters
    words of two to four tokens  of the `FREQUENT` most frequent English words the others
    numbers                      of three and four digits, all

A tokenizer knows some thirty thousand words whole, and *teapot* may not be among them: what reads
the vocabulary alone would never try it. Frequencies are those of pyspellchecker, counted over
subtitles of films. A number may be a password, and most tokenizers cut it into digits.
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
NUMBERS = range(100, 10_000)
#: What are compared with each other: words, or numbers, of so many tokens.
Alike = tuple[str, int]


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


def lexicon(lm: LanguageModel) -> dict[Alike, Int[Tensor, "n k"]]:
    """Return the tokens of words and numbers, by what they are and how many tokens `k` they have.

    Raises:
        MethodError: The tokenizer marks no spaces, or there are none to tell apart.
    """
    words = {1: vocabulary(lm)[:, None]} | pieced(lm, frequent()[:FREQUENT])
    numbers = by_tokens(lm, map(str, NUMBERS))
    return {
        (what, k): own
        for what, found in (("word", words), ("number", numbers))
        for k, own in found.items()
    }


def pieced(lm: LanguageModel, words: Iterable[str]) -> dict[int, Int[Tensor, "n k"]]:
    """Return the tokens of those words that have two to `PIECES`, by how many they have."""
    return {k: own for k, own in by_tokens(lm, words).items() if 1 < k <= PIECES}


def by_tokens(lm: LanguageModel, strings: Iterable[str]) -> dict[int, Int[Tensor, "n k"]]:
    """Return the tokens of strings behind a space, by how many they have."""
    found: dict[int, list[list[int]]] = defaultdict(list)
    for string in strings:
        tokens = lm.tokens(f" {string}", templated=True)
        found[len(tokens)].append(tokens)
    return {k: torch.tensor(found[k]) for k in sorted(found)}
