"""Norms: how large activations are, which is the unit of every dose.

It is the median over tokens. In each prompt the first token has a norm many times the others', and
in some models so have several more (massive activations; Sun et al. 2024): seven of a chat prompt
for Qwen, of 182 to 373 where the median is 19. A mean is mostly theirs.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


def after_first(mask: Int[Tensor, "p t"]) -> Bool[Tensor, "p t"]:
    """Return which tokens of left-padded prompts count: all but the first of each.

    Where every prompt is a single token, these.
    """
    there = mask.bool().cpu()
    later = there & (there.cumsum(1) > 1)
    return later if later.any() else there


def median_norm(activations: Float[Tensor, "p t d"], counted: Bool[Tensor, "p t"]) -> float:
    """Return the median norm of the activations of some tokens."""
    norms = activations.float().norm(dim=-1)
    return float(torch.quantile(norms[counted.to(norms.device)], 0.5))
