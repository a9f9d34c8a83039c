"""Greedy coordinate gradient: exchange one token at a time, among those that the gradient favours.

    min over strings s of  loss(s)

Each step draws `width` strings that differ from the best one in one token, which is among the `top`
of steepest descent in its one-hot, and keeps the best of them (Zou et al. 2023). Unlike there

- the best so far stays where no candidate is better;
- the best flips are tried together as well: the first two, three, and so on (I-GCG, Jia et
  al. 2024);
- the search begins at the best of some strings that are given, such as natural ones, and not at a
  row of exclamation marks;
- where there are several places, all candidates are read at one of them, by turns, and the best
  quarter at all.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from jaxtyping import Int
from torch import Tensor

from educe.inversion.searches.state import GRADIENT, advanced, begun, drawing, flipped, screened
from educe.inversion.strings import Vocabulary
from educe.inversion.targets import Target
from educe.methods.state import State
from educe.whole import AtLeast

#: Flips that are tried together, at most.
TOGETHER = 8


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
    some, loss, reads = screened(target, some, len(state["curve"]))
    both = together(best[0], some, vocabulary)
    reads += (len(both) + GRADIENT) * len(target.places)
    strings = torch.cat([best, some, both])
    loss = torch.cat([state["loss"], loss, target.loss(both)])
    first = loss.argsort(stable=True)[:1]
    return advanced(state, draw, reads, {"strings": strings[first], "loss": loss[first]})


def together(
    string: Int[Tensor, "k"], ranked: Int[Tensor, "c k"], vocabulary: Vocabulary
) -> Int[Tensor, "m k"]:
    """Return a string with the first two, three, and so on of some flips done together.

    Args:
        string: The string.
        ranked: The same with one token exchanged, the best first; of several at one place the first
            counts.
        vocabulary: What can be written.

    Example:
        >>> from educe.inversion.searches.gcg import together
        >>> from educe.inversion.strings import Vocabulary
        >>> flips = torch.tensor([[220, 70, 66], [220, 65, 71]])
        >>> together(torch.tensor([220, 65, 66]), flips, Vocabulary(lm)).tolist()
        [[220, 70, 71]]
    """
    own, found = string.clone(), []
    changed: set[int] = set()
    for flip in ranked:
        at = int((flip != string).int().argmax())
        if at in changed:
            continue
        changed.add(at)
        own = own.clone()
        own[at] = flip[at]
        if len(changed) > 1:
            found.append(own)
        if len(changed) == TOGETHER:
            break
    made = torch.stack(found) if found else string.new_zeros(0, len(string))
    return made[vocabulary.writable(made)]
