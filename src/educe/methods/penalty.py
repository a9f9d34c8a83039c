"""Penalty: what a search loses for what its perturbations do to other prompts.

See `educe.methods.retain` for what is maximised. A method asks at each step, adds nothing of its
own, and
keeps in its state what is fixed at the first: without other prompts, or at weight zero, there is no
penalty and the state is as it was.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from educe.errors import MethodError
from educe.forward.slice import Slice
from educe.methods.state import State
from educe.perturbation.kinds import Kind


class Penalty(NamedTuple):
    """What is taken from an objective.

    Attributes:
        value: ``μ c g`` of each perturbation.
        gradient: Its gradient in ``θ``.
        kept: What the next state has to hold: ``retain_scale``, which is ``c``.
    """

    value: Float[Tensor, "n"]
    gradient: Float[Tensor, "n s"]
    kept: State


def penalty(
    part: Slice, radius: float, gradient: Float[Tensor, "n s"], state: State
) -> Penalty | None:
    """Return the penalty at the directions of a state, or None where there is none.

    Args:
        part: The slice.
        radius: Of the perturbations.
        gradient: Of the objective in ``θ`` at these directions.
        state: With ``directions``, and ``retain_scale`` from the second step on.

    Raises:
        MethodError: No perturbation does anything to the other prompts.
    """
    retain = part.retain
    if retain is None or retain.weight == 0:
        return None
    v = state["directions"]
    value, slope = retain.value_and_grad(part.kind.scaled(v, radius))
    if "retain_scale" in state:
        scale = state["retain_scale"]
    else:
        own, theirs = (tangent(part.kind, v, g).norm(dim=1).mean() for g in (gradient, slope))
        if not theirs:
            raise MethodError("the other prompts do not move at all: there is nothing to keep")
        scale = own / theirs
    factor = retain.weight * scale
    return Penalty(factor * value, factor * slope, State(retain_scale=scale))


def scores(part: Slice, radius: float, state: State) -> State:
    """Return ``g`` of the perturbations as they ended and ``c``, for `finish`."""
    retain = part.retain
    if retain is None or "retain_scale" not in state:
        return State()
    value, _ = retain.value_and_grad(part.kind.scaled(state["directions"], radius))
    return State(
        {"score.retain": value, "score.retain_scale": state["retain_scale"].expand_as(value)}
    )


def tangent(
    kind: Kind, v: Float[Tensor, "n s"], gradient: Float[Tensor, "n s"]
) -> Float[Tensor, "n s"]:
    """Take from a gradient what would change the norm of a column."""
    pairs = zip(kind.columns(v), kind.columns(gradient), strict=True)
    return torch.cat([(g - (g * c).sum(-1, keepdim=True) * c).flatten(1) for c, g in pairs], 1)
