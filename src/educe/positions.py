"""Which tokens: where a perturbation is added, and over which tokens its effect is read.

``all`` is every token of the prompt and every generated one; ``prompt`` and ``generated`` are the
halves of that; ``last:k`` is the last ``k`` tokens of the prompt, and ``at:k`` the ``k``-th of
them, counted from the end: with a chat template, some token of the question.
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
        PositionsError: It is none of ``all``, ``prompt``, ``generated``, ``last:k`` and ``at:k``.
    """
    if positions in NAMES or re.fullmatch(r"(last|at):[1-9]\d*", positions):
        return positions
    raise PositionsError(f"positions {positions!r}: use all, prompt, generated, last:k or at:k")


def in_prompt(positions: str, mask: Int[Tensor, "p t"]) -> Bool[Tensor, "p t"]:
    """Return which tokens of left-padded prompts are meant; never the padding."""
    check(positions)
    if positions == "generated":
        return torch.zeros_like(mask, dtype=torch.bool)
    chosen = mask.bool()
    if positions not in NAMES:
        how, k = positions.split(":")
        first = mask.shape[1] - int(k)
        chosen = chosen.clone()
        chosen[:, : max(0, first)] = False
        if how == "at":
            chosen[:, max(0, first + 1) :] = False
    return chosen


def in_generated(positions: str) -> bool:
    """Return whether generated tokens are meant."""
    return check(positions) in ("all", "generated")
