"""What a method carries from one step to the next, and what it says about a step.

A state is a dictionary of tensors, so that any method can be saved in the middle and go on. The
names that every method ends with are ``directions`` ``[n, width]``, optionally ``outputs``
``[n, width]``, and ``score.*`` ``[n]``.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class State(dict[str, Tensor]):
    """Tensors by name; a step returns a new one."""

    def __or__(self, other: dict[str, Tensor]) -> State:  # type: ignore[override]
        return State({**self, **other})


class Progress(NamedTuple):
    """What one step of a method achieved; nothing that feeds back into it."""

    done: bool  #: whether the method has converged
    objective: float | None = None  #: mean of its objective over the directions
