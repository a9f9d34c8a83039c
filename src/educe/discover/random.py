"""Random directions: uniform on the sphere. The control of every other method.

A Gaussian vector divided by its norm is uniform on the sphere (Muller 1959).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from educe.discover.state import Progress, State
from educe.slice import Slice


@dataclass(frozen=True)
class RandomConfig:
    """Random directions have no settings."""


def unit_directions(n: int, width: int, draw: torch.Generator) -> Float[Tensor, "n d"]:
    """Draw directions uniform on the sphere; float32 on the processor, the same on any device."""
    drawn = torch.randn(n, width, generator=draw)
    return drawn / drawn.norm(dim=1, keepdim=True)


def start(part: Slice, n: int, radius: float, config: RandomConfig, draw: torch.Generator) -> State:
    """Draw the directions."""
    return State(directions=unit_directions(n, part.width, draw))


def step(part: Slice, radius: float, config: RandomConfig, state: State) -> tuple[State, Progress]:
    """Do nothing more: random directions are found when they are drawn."""
    return state, Progress(done=True)


def finish(part: Slice, radius: float, config: RandomConfig, state: State) -> State:
    """Measure what the directions do."""
    effect = part.effect(radius * state["directions"].to(part.device, part.work_dtype))
    return state | {"score.effect": effect.norm(dim=1)}
