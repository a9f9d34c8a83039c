"""Which tokens: where a perturbation is added, and over which tokens its effect is read.

    all          every token of the prompt and every generated one
    prompt       those of the prompt
    generated    the others
    asked        of the prompt, those of the person's last message
    asked:k      the k-th of these, counted from the message's end: asked:1 is its last token
    last:k       the last k tokens of the prompt as the model reads it
    at:k         the k-th of them, counted from the end

A chat template writes several tokens behind the person's message: that the turn ends, and that the
model's begins. How many they are depends on the template and the tokenizer, so what is meant to
act on the question is counted from the question's end.
"""

from __future__ import annotations

import re

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from educe.errors import PositionsError

NAMES = ("all", "prompt", "generated", "asked")


def check(positions: str) -> str:
    """Return ``positions`` when it can be read.

    Raises:
        PositionsError: It is none of those named above.
    """
    if positions in NAMES or re.fullmatch(r"(asked|last|at):[1-9][0-9]*", positions):
        return positions
    raise PositionsError(
        f"positions {positions!r}: use all, prompt, generated, asked, asked:k, last:k or at:k"
    )


def in_prompt(
    positions: str, mask: Int[Tensor, "p t"], asked: Bool[Tensor, "p t"] | None = None
) -> Bool[Tensor, "p t"]:
    """Return which tokens of prompts are meant; never the padding, on either side.

    Args:
        positions: See above.
        mask: 1 where a token is one, 0 where it is padding.
        asked: Which tokens are the person's last message; none of a prompt where that is unknown.

    Raises:
        PositionsError: The positions cannot be read, or need a message whose place is unknown.
    """
    check(positions)
    if positions == "generated":
        return torch.zeros_like(mask, dtype=torch.bool)
    how, _, k = positions.partition(":")
    chosen = mask.bool()
    if how == "asked":
        chosen = torch.zeros_like(chosen) if asked is None else chosen & asked
        unknown = (~chosen.any(1)).nonzero()[:, 0].tolist()
        if unknown:
            raise PositionsError(
                f"positions {positions!r} are tokens of a person's message, which is empty or "
                f"cannot be found in prompt {unknown[0]}: give text or a user's message, or count "
                "from the prompt's end with last:k or at:k"
            )
    if not k:
        return chosen
    place = chosen.flip(1).cumsum(1).flip(1)  # from the end, which is 1
    return chosen & (place == int(k) if how in ("at", "asked") else place <= int(k))


def in_generated(positions: str) -> bool:
    """Return whether generated tokens are meant."""
    return check(positions) in ("all", "generated")
