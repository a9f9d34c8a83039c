"""Which tokens: where a perturbation is added, and over which tokens its effect is read.

``all`` is every token of the prompt and every generated one; ``prompt`` and ``generated`` are the
halves of that; ``last:k`` is the last ``k`` tokens of the prompt.
"""

from __future__ import annotations

import re

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from educe.errors import PositionsError

NAMES = ("all", "prompt", "generated")


def check(positions: str) -> str:
    """Return ``positions`` when it can be read.

    Raises:
        PositionsError: It is neither ``all``, ``prompt``, ``generated`` nor ``last:k``.
    """
    if positions in NAMES or re.fullmatch(r"last:[1-9]\d*", positions):
        return positions
    raise PositionsError(f"positions {positions!r}: use all, prompt, generated or last:k")


def in_prompt(positions: str, mask: Int[Tensor, "p t"]) -> Bool[Tensor, "p t"]:
    """Return which tokens of left-padded prompts are meant; never the padding."""
    check(positions)
    if positions == "generated":
        return torch.zeros_like(mask, dtype=torch.bool)
    chosen = mask.bool()
    if positions.startswith("last:"):
        k = int(positions.removeprefix("last:"))
        chosen = chosen.clone()
        chosen[:, : max(0, mask.shape[1] - k)] = False
    return chosen


def in_generated(positions: str) -> bool:
    """Return whether generated tokens are meant."""
    return check(positions) in ("all", "generated")
