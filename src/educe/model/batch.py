"""A batch of prompts as the model reads them: token numbers, padding, and where the message is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Int
from torch import Tensor
from torch.nn import functional

from educe.model.asked import Span
from educe.perturbation import positions


@dataclass(frozen=True)
class PromptBatch:
    """Prompts as the model reads them, padded on the left to one length.

    Attributes:
        texts: Each prompt with every special token, as the tokenizer got it.
        ids: Token numbers, ``[prompts, tokens]``.
        mask: 1 where a token is one, 0 where it is padding, ``[prompts, tokens]``.
        asked: Which tokens are the person's last message (see `educe.model.asked`); none of a
            prompt in which it cannot be found, ``[prompts, tokens]``.
    """

    texts: tuple[str, ...]
    ids: Int[Tensor, "p t"]
    mask: Int[Tensor, "p t"]
    asked: Bool[Tensor, "p t"]

    def __len__(self) -> int:
        return len(self.texts)

    @property
    def read(self) -> list[tuple[int, ...]]:
        """Token numbers of each prompt, padding not counted."""
        return [
            tuple(row[kept].tolist()) for row, kept in zip(self.ids, self.mask.bool(), strict=True)
        ]

    @property
    def lengths(self) -> list[int]:
        """Number of tokens of each prompt, padding not counted."""
        return [int(n) for n in self.mask.sum(1)]

    @property
    def spans(self) -> list[Span]:
        """Where the person's last message is in each prompt, padding not counted."""
        there = [own[mask.bool()] for own, mask in zip(self.asked, self.mask, strict=True)]
        return [Span(int(own.int().argmax()), int(own.int().argmax() + own.sum())) for own in there]

    def at(self, where: str) -> Bool[Tensor, "p t"]:
        """Return which tokens are meant by some positions (see `educe.perturbation.positions`).

        Raises:
            PositionsError: They cannot be read, or need a message that cannot be found.
        """
        return positions.in_prompt(where, self.mask, self.asked)

    def select(self, prompts: Sequence[int], tokens: int | None = None) -> PromptBatch:
        """Return some of the prompts, in the order given.

        Args:
            prompts: Which.
            tokens: How many tokens at the end are kept, padding among them; by default all.
        """
        first = 0 if tokens is None else self.ids.shape[1] - tokens
        lines = list(prompts)
        return PromptBatch(
            tuple(self.texts[line] for line in lines),
            self.ids[lines, first:],
            self.mask[lines, first:],
            self.asked[lines, first:],
        )

    def trimmed(self) -> PromptBatch:
        """Return the prompts without the padding that all of them have."""
        return self.select(range(len(self)), max(self.lengths))

    def followed_by(self, other: PromptBatch) -> PromptBatch:
        """Return these prompts and then others."""
        width = max(self.ids.shape[1], other.ids.shape[1])

        def joined(mine: Tensor, theirs: Tensor) -> Tensor:
            wide = [functional.pad(t, (width - t.shape[1], 0)) for t in (mine, theirs)]
            return torch.cat(wide)

        return PromptBatch(
            (*self.texts, *other.texts),
            joined(self.ids, other.ids),
            joined(self.mask, other.mask),
            joined(self.asked, other.asked),
        )
