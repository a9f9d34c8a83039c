"""Chunks: rows of perturbation × prompt that run together."""

from __future__ import annotations

from typing import NamedTuple

#: Tokens a chunk: enough to reach a machine's full matmul rate, few enough for its memory; an
#: out-of-memory error halves it.
TOKENS_PER_CHUNK = {"cpu": 2048, "cuda": 16384}


class Chunk(NamedTuple):
    """Rows that run together: perturbations ``first:last`` on prompts ``start:stop``."""

    first: int
    last: int
    start: int
    stop: int


def even(total: int, most: int) -> int:
    """Return the size of the fewest equal parts of ``total`` that are no larger than ``most``."""
    return -(-total // -(-total // most))


def halved(chunk: Chunk) -> list[Chunk]:
    """Return a chunk in two, by perturbations if it has several; none of a single row."""
    first, last, start, stop = chunk
    if last - first > 1:
        middle = (first + last) // 2
        return [Chunk(first, middle, start, stop), Chunk(middle, last, start, stop)]
    if stop - start > 1:
        middle = (start + stop) // 2
        return [Chunk(first, last, start, middle), Chunk(first, last, middle, stop)]
    return []
