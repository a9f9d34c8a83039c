"""Strings: the tokens that one may have, and which strings a person can write.

A string that a search makes of tokens is worth something only where a tokenizer reads its text as
these very tokens: others are left out (Zou et al. 2023). It begins with a space, as what is put
behind a message does, and it is plain ASCII, so that it can be typed.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from educe.errors import PromptError
from educe.model.language import LanguageModel


class Vocabulary:
    """What strings are made of.

    Args:
        lm: The model.

    Attributes:
        allowed: Which tokens a string may have.

    Raises:
        PromptError: The tokenizer has no token that can be typed.

    Example:
        >>> from educe.inversion.strings import Vocabulary
        >>> words = Vocabulary(lm)
        >>> words.writable(torch.tensor([lm.tokens(" a b", templated=True), [256] * 4])).tolist()
        [True, False]
    """

    def __init__(self, lm: LanguageModel) -> None:
        self.lm = lm
        texts = lm.tokenizer.batch_decode([[i] for i in range(lm.vocabulary)])
        special = set(lm.tokenizer.all_special_ids)
        self.allowed: Bool[Tensor, "v"] = torch.tensor(
            [
                bool(text) and text.isascii() and text.isprintable() and i not in special
                for i, text in enumerate(texts)
            ]
        )
        if not bool(self.allowed.any()):
            raise PromptError(f"the vocabulary of {lm.name} has no token that can be typed")

    def writable(self, strings: Int[Tensor, "n k"]) -> Bool[Tensor, "n"]:
        """Return which strings a tokenizer reads as their own tokens."""
        if not strings.numel():
            return torch.ones(len(strings), dtype=torch.bool)
        rows = strings.tolist()
        texts = self.lm.tokenizer.batch_decode(rows)
        again = self.lm.tokenizer(texts, add_special_tokens=False)["input_ids"]
        return torch.tensor(
            [
                text == f" {text.strip()}" and list(read) == row
                for text, read, row in zip(texts, again, rows, strict=True)
            ]
        )

    def text(self, string: Sequence[int]) -> str:
        """Return what a string says, without the space before it."""
        return self.lm.text(list(string)).strip()
