"""Chunks: rows that run together, as many as fit into memory.

Every pass of a model over many rows goes through a `Chunker`. It has the one answer to memory that
runs out: the rows at hand are halved, and so are all larger ones that follow.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple, TypeVar

import torch
from accelerate.utils.memory import should_reduce_batch_size

#: Tokens a chunk: enough to reach a machine's full matmul rate, few enough for its memory.
TOKENS_PER_CHUNK = {"cpu": 2048, "cuda": 16384}

Rows = TypeVar("Rows")
Result = TypeVar("Result")
Item = TypeVar("Item")


class Chunk(NamedTuple):
    """Rows that run together: perturbations ``first:last`` on prompts ``start:stop``."""

    first: int
    last: int
    start: int
    stop: int

    @property
    def rows(self) -> int:
        """How many rows these are."""
        return (self.last - self.first) * (self.stop - self.start)

    def halves(self) -> list[Chunk]:
        """Return it in two, by perturbations if it has several; nothing for a single row."""
        first, last, start, stop = self
        if last - first > 1:
            middle = (first + last) // 2
            return [Chunk(first, middle, start, stop), Chunk(middle, last, start, stop)]
        if stop - start > 1:
            middle = (start + stop) // 2
            return [Chunk(first, last, start, middle), Chunk(first, last, middle, stop)]
        return []


class Chunker:
    """Runs rows in chunks.

    Args:
        most: The most tokens (or rows, for who counts these) of a chunk.

    Attributes:
        most: The same, less where memory ran out.
    """

    def __init__(self, most: int) -> None:
        self.most = most

    @classmethod
    def of(cls, device: torch.device) -> Chunker:
        """Return one for the tokens that suit a device."""
        return cls(TOKENS_PER_CHUNK.get(device.type, 2048))

    def grid(
        self,
        run: Callable[[Chunk], Result],
        n: int,
        p: int,
        tokens: int,
        *,
        alone: bool = False,
        relieve: Callable[[], None] = lambda: None,
    ) -> Iterator[tuple[Chunk, Result]]:
        """Run every perturbation on every prompt, a chunk after the other.

        Args:
            run: Runs a chunk.
            n: How many perturbations there are.
            p: How many prompts.
            tokens: Tokens of a row.
            alone: Whether only one perturbation can act at a time.
            relieve: Frees what can be made again, when memory ran out.
        """
        together = max(1, self.most // tokens)
        wide = _even(p, together)
        tall = 1 if alone else _even(n, max(1, together // wide))
        chunks = [
            Chunk(i, min(i + tall, n), j, min(j + wide, p))
            for i in range(0, n, tall)
            for j in range(0, p, wide)
        ]
        return self.each(chunks, run, lambda chunk: chunk.rows * tokens, Chunk.halves, relieve)

    def each(
        self,
        chunks: Iterable[Rows],
        run: Callable[[Rows], Result],
        size: Callable[[Rows], int],
        halves: Callable[[Rows], list[Rows]],
        relieve: Callable[[], None] = lambda: None,
    ) -> Iterator[tuple[Rows, Result]]:
        """Run chunks in order; those that are too large, or run out of memory, in halves."""
        todo = list(chunks)[::-1]
        while todo:
            chunk = todo.pop()
            parts = halves(chunk)
            if parts and size(chunk) > self.most:
                todo += parts[::-1]
                continue
            try:
                done = run(chunk)
            except RuntimeError as error:
                if not parts or not should_reduce_batch_size(error):
                    raise
                self.most = size(chunk) // 2
                relieve()
                todo += parts[::-1]
                continue
            yield chunk, done


def split(items: Sequence[Item], size: int) -> list[Sequence[Item]]:
    """Return items in pieces of some size, in order."""
    return [items[at : at + size] for at in range(0, len(items), size)]


def halved(items: Sequence[Item]) -> list[Sequence[Item]]:
    """Return items in two halves; nothing for a single one."""
    middle = len(items) // 2
    return [items[:middle], items[middle:]] if middle else []


def _even(total: int, most: int) -> int:
    """Return the size of the fewest equal parts of ``total`` that are no larger than ``most``."""
    return -(-total // -(-total // most)) if total else 1
