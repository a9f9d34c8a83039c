"""Nearest natural examples: texts that people wrote, ranked by how well they do it.

    argsort over texts s of  loss(s)

No search at all, and so the fairest answer to whether a natural text does it: every text is read,
and all are ranked, whatever the budget.
"""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Int
from torch import Tensor

from educe.inversion.searches.state import advanced, begun
from educe.inversion.targets import Target
from educe.methods.state import State


@dataclass(frozen=True)
class NearestConfig:
    """Settings of the ranking: there are none."""


def start(target: Target, first: Int[Tensor, "n k"], config: NearestConfig, seed: int) -> State:
    """Read all texts."""
    state, draw = begun(seed)
    loss = target.loss(first)
    order = loss.argsort(stable=True)
    new = {"strings": first[order], "loss": loss[order]}
    return advanced(state, draw, len(first) * len(target.places), new)
