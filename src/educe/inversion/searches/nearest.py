"""Nearest natural examples: texts that people wrote, ranked by how well they do it.

    argsort over texts s of a corpus of  loss(s)

No search at all, and so the fairest answer to whether a natural text does it: every text is read,
and all are ranked. It also gives the other searches something natural to begin with.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from jaxtyping import Int
from torch import Tensor

from educe.inversion.searches.state import advanced, begun, drawing
from educe.inversion.strings import Vocabulary
from educe.inversion.targets import Target
from educe.methods.state import State
from educe.whole import AtLeast


@dataclass(frozen=True)
class NearestConfig:
    """Settings of the ranking.

    Attributes:
        batch: Texts that are read in a step.
    """

    batch: Annotated[int, AtLeast(1)] = 64


def start(target: Target, first: Int[Tensor, "n k"], config: NearestConfig, seed: int) -> State:
    """Keep the texts that are to be read, and read the first."""
    state, draw = begun(seed)
    some, left = first[: config.batch], first[config.batch :]
    new = {"left": left} | _ranked(some, target.loss(some))
    return advanced(state, draw, len(some) * len(target.places), new)


def step(target: Target, vocabulary: Vocabulary, config: NearestConfig, state: State) -> State:
    """Read some more texts, and rank them with the others."""
    some, left = state["left"][: config.batch], state["left"][config.batch :]
    loss = torch.cat([state["loss"], target.loss(some)])
    new = {"left": left} | _ranked(torch.cat([state["strings"], some]), loss)
    return advanced(state, drawing(state), len(some) * len(target.places), new)


def _ranked(strings: Int[Tensor, "n k"], loss: Tensor) -> dict[str, Tensor]:
    order = loss.argsort(stable=True)
    return {"strings": strings[order], "loss": loss[order]}
