"""Examples: natural strings of a length, to begin with, to rank, and to compare a string with.

Short requests of many kinds, written for this project, and how sentences of a corpus begin.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path

import torch
from jaxtyping import Int
from torch import Tensor

from educe.activations.corpus import documents
from educe.errors import PromptError
from educe.inversion.strings import Vocabulary
from educe.model.prompts import messages_of
from educe.model.rendering import Prompt

REQUESTS = Path(__file__).parent / "data" / "requests.txt"
#: Sentences that are cut at once.
AT_ONCE = 256


def natural(vocabulary: Vocabulary, k: int, n: int) -> Int[Tensor, "m k"]:
    """Return how sentences of the bundled corpus begin, cut to ``k`` tokens; each once.

    Args:
        vocabulary: Strings that cannot be written are left out.
        k: Tokens of each.
        n: How many at most.

    Raises:
        PromptError: There is no string of that length.
    """
    found: dict[tuple[int, ...], None] = {}
    sentences = _sentences(documents())
    while len(found) < n and (some := list(islice(sentences, AT_ONCE))):
        _cut(vocabulary, some, k, found)
    if not found:
        raise PromptError(
            f"no sentence of the corpus has {k} tokens of {vocabulary.lm.name}: ask for fewer "
            "tokens"
        )
    return torch.tensor(list(found)[:n])


def requests(vocabulary: Vocabulary, k: int) -> Int[Tensor, "m k"]:
    """Return short requests of many kinds, cut to ``k`` tokens; each once."""
    found: dict[tuple[int, ...], None] = {}
    _cut(vocabulary, REQUESTS.read_text(encoding="utf-8").splitlines(), k, found)
    return torch.tensor(list(found), dtype=torch.long).reshape(-1, k)


def _cut(
    vocabulary: Vocabulary, texts: list[str], k: int, found: dict[tuple[int, ...], None]
) -> None:
    """Add what can be written of the beginnings of some texts."""
    spaced = [f" {text}" for text in texts]
    read = vocabulary.lm.tokenizer(spaced, add_special_tokens=False)["input_ids"]
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
