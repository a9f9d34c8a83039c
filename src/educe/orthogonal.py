"""Orthonormal rows that do not depend on the library that decomposes.

A decomposition leaves open on which side a singular vector lies, and which basis of an eigenspace
stands for it. Libraries, and processors under one library, decide these differently. What is
computed here is decided by the arguments alone.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor


def orthonormal(v: Float[Tensor, "*s n d"]) -> Float[Tensor, "*s n d"]:
    """Orthonormalise row after row, each on its own side: an effect differs from its mirror's."""
    q, r = torch.linalg.qr(v.mT)
    mirrored = r.diagonal(dim1=-2, dim2=-1) < 0
    return torch.where(mirrored[..., None, :], -q, q).mT


def projected(rows: Float[Tensor, "*s k d"], span: Float[Tensor, "k d"]) -> Float[Tensor, "*s k d"]:
    """Project rows into a span and orthonormalise them there, row after row.

    Args:
        rows: As many as the span has dimensions.
        span: An orthonormal basis of it; the result does not depend on which one.
    """
    return orthonormal(rows @ span.T) @ span


def upright(v: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
    """Return each row on the side on which its largest coordinate is positive."""
    return v * v.gather(1, v.abs().argmax(1, keepdim=True)).sign()
