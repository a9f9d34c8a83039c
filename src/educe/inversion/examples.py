"""Examples: natural strings of a length, to begin with, to rank, and to compare a string with.

Short requests of many kinds, written for this project, and how sentences of a corpus begin.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from pathlib import Path

import torch
from jaxtyping import Int
from torch import Tensor

from educe.activations.corpus import documents
from educe.errors import PromptError
from educe.inversion.strings import Vocabulary

REQUESTS = Path(__file__).parent / "data" / "requests.txt"


def natural(vocabulary: Vocabulary, k: int, n: int) -> Int[Tensor, "m k"]:
    """Return how sentences of the bundled corpus begin, cut to ``k`` tokens; each once.

    Args:
        vocabulary: Strings that cannot be written are left out.
        k: Tokens of each.
        n: How many at most.

    Raises:
        PromptError: There is no string of that length.
    """
    found = _cut(vocabulary, _sentences(), k, n)
    if not len(found):
        raise PromptError(
            f"no sentence of the corpus has {k} tokens of {vocabulary.lm.name}: ask for fewer "
            "tokens"
        )
    return found


def requests(vocabulary: Vocabulary, k: int) -> Int[Tensor, "m k"]:
    """Return short requests of many kinds, cut to ``k`` tokens; each once."""
    return _cut(vocabulary, REQUESTS.read_text(encoding="utf-8").splitlines(), k)


def _cut(
    vocabulary: Vocabulary, texts: Iterable[str], k: int, n: int | None = None
) -> Int[Tensor, "m k"]:
    """Return what can be written of the beginnings of texts, at most ``n``."""
    found: dict[tuple[int, ...], None] = {}
    for text in texts:
        row = vocabulary.lm.tokenizer(f" {text}", add_special_tokens=False)["input_ids"][:k]
        if len(row) == k and bool(vocabulary.writable(torch.tensor([row]))):
            found[tuple(row)] = None
            if len(found) == n:
                break
    return torch.tensor(list(found), dtype=torch.long).reshape(-1, k)


def _sentences() -> Iterator[str]:
    """Yield the sentences of the bundled corpus."""
    for document in documents():
        texts = [document] if isinstance(document, str) else [m["content"] for m in document]
        for text in texts:
            yield from filter(None, map(str.strip, re.split(r"(?<=[.!?])\s+", text)))
