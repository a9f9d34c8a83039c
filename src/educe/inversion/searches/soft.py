"""Soft prompts: search among embeddings, project to tokens, and repair by flips.

    min over x in ℝ^{k × d} of  loss(x)          then  s_i near x_i,  then flips

`steps` of Adam move what stands for the embeddings. Then strings are drawn whose tokens are among
the `near` nearest embeddings at each place; the best that can be written is repaired by the greedy
coordinate gradient. The loss of the soft prompt itself is a bound of what any string of that length
could come to nearby: it is easy to reach in embeddings and hard in tokens (Lester et al. 2021; hard
prompts made easy, Wen et al. 2023).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from jaxtyping import Int
from torch import Tensor

from educe.inversion.places import table
from educe.inversion.searches import gcg
from educe.inversion.searches.state import GRADIENT, advanced, drawing
from educe.inversion.strings import Vocabulary
from educe.inversion.targets import Target
from educe.methods.state import State
from educe.whole import Above, AtLeast


@dataclass(frozen=True)
class SoftConfig(gcg.GcgConfig):
    """Settings of soft prompts, and of the repair; `width` strings are projected to as well.

    Attributes:
        steps: Steps among embeddings.
        rate: Their size, as a share of the standard deviation of the embeddings.
        near: Tokens that count as near at each place.
    """

    steps: Annotated[int, AtLeast(1)] = 16
    rate: Annotated[float, Above(0)] = 0.1
    near: Annotated[int, AtLeast(1)] = 4


def start(target: Target, first: Int[Tensor, "n k"], config: SoftConfig, seed: int) -> State:
    """Begin at the embeddings of the best string that is given."""
    state = gcg.start(target, first, config, seed)
    rows = table(target.lm)
    x = rows[state["strings"].to(rows.device)]
    zero, curve = torch.zeros_like(x), torch.zeros(0, dtype=torch.float64)
    new = {"soft": x, "soft.exp_avg": zero, "soft.exp_avg_sq": zero, "soft.curve": curve}
    return State(state | new)


def step(target: Target, vocabulary: Vocabulary, config: SoftConfig, state: State) -> State:
    """Move the embeddings, or project them, or repair the string that came of it."""
    done = len(state["soft.curve"])
    if done < config.steps:
        return _moved(target, config, state)
    if done == config.steps:
        return _projected(target, vocabulary, config, state)
    return gcg.step(target, vocabulary, config, state)


def _moved(target: Target, config: SoftConfig, state: State) -> State:
    """Take a step of Adam, which goes on where it was."""
    x, curve = state["soft"].clone(), state["soft.curve"]
    slope = target.slope(state["strings"], x)
    adam = torch.optim.Adam([x], lr=config.rate * float(table(target.lm).std()))
    moments = {name: state[f"soft.{name}"].clone() for name in ("exp_avg", "exp_avg_sq")}
    adam.state[x] = {"step": torch.tensor(float(len(curve)))} | moments
    x.grad = slope.embedded
    adam.step()
    new = {
        "soft": x,
        **{f"soft.{name}": moment for name, moment in moments.items()},
        "soft.curve": torch.cat([curve, slope.loss.double().cpu()]),
        "loss": state["loss"],
    }
    return advanced(state, drawing(state), GRADIENT * len(target.places), new)


def _projected(target: Target, vocabulary: Vocabulary, config: SoftConfig, state: State) -> State:
    """Read strings near the embeddings, and take the best; the one given stays if it is better."""
    draw, (x,) = drawing(state), state["soft"]
    rows = table(target.lm)
    allowed = vocabulary.allowed.to(x.device)
    near = torch.cdist(x, rows).masked_fill(~allowed, torch.inf)
    near = (-near).topk(min(config.near, int(allowed.sum())), dim=1).indices.cpu()
    k, some = len(near), 16 * config.width
    which = torch.randint(near.shape[1], (some, k), generator=draw)
    which[0] = 0  # the nearest everywhere
    made = near[torch.arange(k), which]
    made = torch.unique(made[vocabulary.writable(made)], dim=0)[: config.width]
    strings = torch.cat([state["strings"], made])
    loss = torch.cat([state["loss"], target.loss(made)]) if len(made) else state["loss"]
    best = loss.argsort(stable=True)[:1]
    new = {
        "strings": strings[best],
        "loss": loss[best],
        "soft.curve": torch.cat([state["soft.curve"], state["soft.curve"][-1:]]),
    }
    return advanced(state, draw, len(made) * len(target.places), new)
