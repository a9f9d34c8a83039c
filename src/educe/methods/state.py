"""What a method carries from one step to the next, and what it says about a step.

A state is a dictionary of tensors, so that any method can be saved in the middle and go on. The
names that every method ends with are ``directions`` ``[n, width]``, optionally ``outputs``
``[n, width]``, and ``score.*`` ``[n]``.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from educe.errors import RadiusError


class State(dict[str, Tensor]):
    """Tensors by name; a step returns a new one."""

    def __or__(self, other: dict[str, Tensor]) -> State:  # type: ignore[override]
        return State({**self, **other})

    def to(self, device: torch.device) -> State:
        """Return the tensors on a device."""
        return State({name: tensor.to(device) for name, tensor in self.items()})


def directed(effect: Float[Tensor, "n d"]) -> tuple[Float[Tensor, "n d"], Float[Tensor, "n"]]:
    """Return the directions of effects, of norm one or zero where nothing arrives, and their norms.

    Raises:
        RadiusError: All are zero: the radius is lost in rounding.
    """
    size = effect.norm(dim=1)
    if not size.any():
        raise RadiusError(
            "no perturbation changes anything at the target, not even in the last digit: use a "
            "larger radius"
        )
    return (effect / size[:, None]).where(effect != 0, 0.0), size


class Progress(NamedTuple):
    """What one step of a method achieved; nothing that feeds back into it."""

    done: bool  #: whether the method has converged
    objective: float | None = None  #: mean of its objective over the directions
