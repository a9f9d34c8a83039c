"""Random perturbations of the kind at hand: the control of every other method.

Vectors are uniform on the sphere; adapters have every factor uniform on its own.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from educe.forward.slice import Slice
from educe.methods.state import Progress, State


@dataclass(frozen=True)
class RandomConfig:
    """Random perturbations have no settings.

    Example:
        >>> found = educe.search(part, "random", n=4, radius=2.0, config=RandomConfig())
        >>> found.theta.shape
        torch.Size([4, 32])
    """


def start(part: Slice, n: int, radius: float, config: RandomConfig, draw: torch.Generator) -> State:
    """Draw them."""
    return State(directions=part.kind.draw(n, draw))


def step(part: Slice, radius: float, config: RandomConfig, state: State) -> tuple[State, Progress]:
    """Do nothing more: they are found when they are drawn."""
    return state, Progress(done=True)


def finish(part: Slice, radius: float, config: RandomConfig, state: State) -> State:
    """Measure what they do."""
    directions = state["directions"].to(part.device, part.work_dtype)
    effect = part.effect(part.kind.scaled(directions, radius))
    return state | {"score.effect": effect.norm(dim=1)}
