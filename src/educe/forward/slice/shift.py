"""Shift: what a chunk of perturbations does at the target, position by position."""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from educe.forward.chunks import Chunk


class Shift(NamedTuple):
    """What a chunk of perturbations does at the target, position by position.

    Attributes:
        values: Change of the target stream, ``[perturbations, prompts, positions, width]``.
        weights: Share of each read-out position in the mean over all, ``[prompts, positions]``.
        chunk: Which perturbations and prompts these are.
    """

    values: Float[Tensor, "n p k d"]
    weights: Float[Tensor, "p k"]
    chunk: Chunk

    @property
    def mean(self) -> Float[Tensor, "n d"]:
        """This chunk's part of the effect: summed over chunks of prompts it is Δ."""
        return torch.einsum("npkd,pk->nd", self.values, self.weights)
