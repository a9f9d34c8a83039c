"""Greedy coordinate gradient: exchange one token at a time, among those that the gradient favours.

    min over strings s of  loss(s)

Each step draws `width` strings that differ from the best one in one token, which is among the `top`
of steepest descent in its one-hot, and keeps the best of them (Zou et al. 2023). Unlike there the
best so far stays where no candidate is better; the search begins at the best of some strings that
are given, such as natural ones, and not at a row of exclamation marks; and where there are several
places, all candidates are read at one of them, by turns, and the best quarter at all.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from jaxtyping import Int
from torch import Tensor

from educe.inversion.searches.state import GRADIENT, State, advanced, begun, drawing, flipped
from educe.inversion.strings import Vocabulary
from educe.inversion.targets import Target
from educe.whole import AtLeast

#: One in so many candidates is read at all places.
KEPT = 4


@dataclass(frozen=True)
class GcgConfig:
    """Settings of the greedy coordinate gradient.

    Attributes:
        width: Strings that are tried in a step.
        top: Tokens that count as favoured at each place.
    """

    width: Annotated[int, AtLeast(1)] = 32
    top: Annotated[int, AtLeast(1)] = 128


def start(target: Target, first: Int[Tensor, "n k"], config: GcgConfig, seed: int) -> State:
    """Read the strings to begin with."""
    state, draw = begun(seed)
    loss = target.loss(first)
    best = loss.argsort(stable=True)[:1]
    new = {"strings": first[best], "loss": loss[best]}
    return advanced(state, draw, len(first) * len(target.places), new)


def step(target: Target, vocabulary: Vocabulary, config: GcgConfig, state: State) -> State:
    """Try some flips of the best string."""
    draw, best = drawing(state), state["strings"]
    gradient = target.slope(best).tokens
    some = flipped(best, gradient, vocabulary, config.width, config.top, draw)
    places, reads = len(target.places), GRADIENT * len(target.places)
    if places > 1 and len(some) > KEPT:
        reads += len(some)
        rough = target.at_one(len(state["curve"]) % places).loss(some)
        some = some[rough.argsort(stable=True)[: -(-len(some) // KEPT)]]
    reads += len(some) * places
    strings = torch.cat([best, some])
    loss = torch.cat([state["loss"], target.loss(some)]) if len(some) else state["loss"]
    first = loss.argsort(stable=True)[:1]
    return advanced(state, draw, reads, {"strings": strings[first], "loss": loss[first]})
