"""Examples: natural strings of a length, to begin with, to rank, and to compare a string with."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

import torch
from jaxtyping import Int
from torch import Tensor

from educe.activations.corpus import BUNDLED, documents
from educe.errors import PromptError
from educe.inversion.strings import Vocabulary
from educe.model.prompts import messages_of
from educe.model.rendering import Prompt

#: Sentences that are cut at once.
AT_ONCE = 256


def natural(vocabulary: Vocabulary, k: int, n: int, *, corpus: str = BUNDLED) -> Int[Tensor, "m k"]:
    """Return how sentences of a corpus begin, cut to ``k`` tokens; each once, ``n`` at most.

    Args:
        vocabulary: Strings that cannot be written are left out.
        k: Tokens of each.
        n: How many at most.
        corpus: See `educe.activations.corpus.documents`.

    Raises:
        PromptError: The corpus cannot be read, or has no sentence of that length.
    """
    lm = vocabulary.lm
    found: dict[tuple[int, ...], None] = {}
    waiting: list[str] = []
    for sentence in _sentences(documents(corpus)):
        waiting.append(f" {sentence}")
        if len(waiting) < AT_ONCE:
            continue
        _cut(vocabulary, waiting, k, found)
        waiting = []
        if len(found) >= n:
            break
    _cut(vocabulary, waiting, k, found)
    if not found:
        raise PromptError(
            f"the corpus {corpus} has no sentence of {k} tokens of {lm.name}: ask for fewer tokens"
        )
    return torch.tensor(list(found)[:n])


def _cut(
    vocabulary: Vocabulary, texts: list[str], k: int, found: dict[tuple[int, ...], None]
) -> None:
    """Add what can be written of the beginnings of some texts."""
    if not texts:
        return
    read = vocabulary.lm.tokenizer(texts, add_special_tokens=False)["input_ids"]
    rows = torch.tensor([row[:k] for row in read if len(row) >= k], dtype=torch.long)
    if len(rows):
        found.update(dict.fromkeys(map(tuple, rows[vocabulary.writable(rows)].tolist())))


def _sentences(some: Iterable[Prompt]) -> Iterator[str]:
    """Yield the sentences of documents."""
    for document in some:
        texts = (
            [document]
            if isinstance(document, str)
            else [message["content"] for message in messages_of(document)]
        )
        for text in texts:
            for sentence in re.split(r"(?<=[.!?])\s+", text):
                if sentence.strip():
                    yield sentence.strip()
