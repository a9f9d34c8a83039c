"""Evolution with fluency: the front of match against perplexity, kept as a population.

    min over strings s of  loss(s) + λ_j L nll(s)         for each weight λ_j, at once

`nll` is how unlikely the string itself is where it stands, in nats a token, and `L` the loss of no
string, so that weights mean the same for every target. Member ``j`` is the best string seen for its
weight; each step gives every member some flips by the gradient of its own objective, and all
members choose among all strings (EPO, Thompson et al. 2024; `dreamy`). What no other string beats
in both, of all that were ever read, is the front. Where several weights have the same best string,
as happens at a local minimum, others of the front take their places by lot; there, every so often,
one member takes all places instead.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated

import torch
from jaxtyping import Float, Int
from torch import Tensor

from educe.comparison.stats import pareto
from educe.inversion.searches.state import GRADIENT, advanced, begun, drawing, flipped
from educe.inversion.strings import Vocabulary
from educe.inversion.targets import NOTHING, Target
from educe.methods.state import State
from educe.whole import Above, AtLeast


@dataclass(frozen=True)
class EpoConfig:
    """Settings of the evolution.

    Attributes:
        members: Weights of fluency, and members of the population.
        explore: Flips of each member in a step.
        top: Tokens that count as favoured at each place.
        least: The smallest weight, as a share of the loss of no string for a nat a token.
        most: The largest.
    """

    members: Annotated[int, AtLeast(2)] = 6
    explore: Annotated[int, AtLeast(1)] = 8
    top: Annotated[int, AtLeast(1)] = 128
    least: Annotated[float, Above(0)] = 0.003
    most: Annotated[float, Above(0)] = 0.3


def start(target: Target, first: Int[Tensor, "n k"], config: EpoConfig, seed: int) -> State:
    """Read the strings to begin with; each weight takes its best."""
    state, draw = begun(seed)
    plain = target.loss(NOTHING)[0]
    low, high = math.log10(config.least), math.log10(config.most)
    weights = torch.logspace(low, high, config.members, dtype=torch.float64)
    loss, nll = target.fluent(first)
    state |= {
        "weights": weights * plain,
        "front.strings": first[:0],
        "front.loss": loss[:0],
        "front.nll": nll[:0],
    }
    return _chosen(state, draw, len(first) * len(target.places), first, loss, nll)


def step(target: Target, vocabulary: Vocabulary, config: EpoConfig, state: State) -> State:
    """Give every member some flips, and choose."""
    draw, members = drawing(state), state["strings"]
    slope = target.slope(members, fluency=True)
    gradient = slope.tokens + state["weights"].to(slope.tokens)[:, None, None] * slope.fluent
    some = flipped(members, gradient, vocabulary, config.explore, config.top, draw)
    loss, nll = target.fluent(some)
    reads = (len(some) + GRADIENT * len(members)) * len(target.places)
    return _chosen(
        state,
        draw,
        reads,
        torch.cat([members, some]),
        torch.cat([state["loss"], loss]),
        torch.cat([state["nll"], nll]),
    )


def _chosen(
    state: State,
    draw: torch.Generator,
    reads: int,
    strings: Int[Tensor, "c k"],
    loss: Float[Tensor, "c"],
    nll: Float[Tensor, "c"],
) -> State:
    """Return the state with the best string for each weight, and the front of all."""
    every = torch.cat([state["front.strings"], strings])
    losses, nlls = torch.cat([state["front.loss"], loss]), torch.cat([state["front.nll"], nll])
    kept = front(losses, nlls)
    distinct = {tuple(every[i].tolist()): i for i in reversed(kept.tolist())}
    kept = torch.tensor(list(distinct.values())[::-1])
    best = (losses[None] + state["weights"][:, None] * nlls[None]).argmin(1).tolist()
    some = kept[torch.randperm(len(kept), generator=draw)].tolist()
    for j in range(1, len(best)):
        if best[j] in best[:j]:
            best[j] = next((i for i in some if i not in best), best[j])
    new = {
        "strings": every[best],
        "loss": losses[best],
        "nll": nlls[best],
        "front.strings": every[kept],
        "front.loss": losses[kept],
        "front.nll": nlls[kept],
    }
    return advanced(state, draw, reads, new)


def front(loss: Float[Tensor, "n"], nll: Float[Tensor, "n"]) -> Int[Tensor, "f"]:
    """Return which strings no other beats in both, the best match first.

    Example:
        >>> from educe.inversion.searches.epo import front
        >>> front(torch.tensor([1.0, 2.0, 3.0, 2.5]), torch.tensor([5.0, 3.0, 4.0, 1.0])).tolist()
        [0, 1, 3]
    """
    places = torch.as_tensor(pareto((-loss).tolist(), nll.tolist())).nonzero()[:, 0]
    return places[loss[places].argsort(stable=True)]
