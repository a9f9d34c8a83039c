"""Retain prompts: other prompts, on which a search wants the model to stay as it is.

    max  f(θ) - μ c g(θ),     c = mean ‖∇f‖ / mean ‖∇g‖  at the first directions, along spheres

``f`` is what a method maximises on the prompts it searches, ``g`` what a perturbation does to the
others, one of

    effect    mean over other prompts and their read-out positions of   ‖Z(θ) - Z(0)‖²
    kl        mean over the first 20 tokens of their own answers of     KL( p ‖ p_θ )        in nats

So ``μ`` has no scale: at 1 both gradients are equally long at the start, whatever the model, the
radius and ``g``. ``c`` is one number for all perturbations, and stays what it was.

A search is given other prompts as `Slice.retain` of its slice, and never sees what they are:
ordinary requests, or prompts that match those searched on but have nothing to hide. A method asks
for the `penalty` at each step, and keeps in its state what is fixed at the first; without other
prompts, or at weight zero, there is none and the state is as it was.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from importlib.resources import files
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from educe.errors import MethodError
from educe.forward.benign import Ordinary
from educe.forward.slice import Retain, Slice
from educe.forward.slice.shift import Shift
from educe.methods.state import State
from educe.model.batch import PromptBatch
from educe.model.once import distinct
from educe.model.prompts import Prompt, read_prompts
from educe.perturbation.kinds import Kind

By = Literal["effect", "kl"]

#: The bundled prompts: other ones than those by which side effects are measured.
BUNDLED = "bundled"

#: The most prompts that are taken from a file; every step of a search runs all of them.
MOST = 16


@dataclass(frozen=True)
class RetainPrompts:
    """The retain prompts of a slice (a `educe.forward.slice.Retain`).

    Attributes:
        part: The same blocks on these prompts.
        weight: ``μ``.
        by: What is kept small: ``effect`` or ``kl``.
        answers: The unperturbed answers to them, where it is ``kl``.
    """

    part: Slice
    weight: float
    by: By
    answers: Ordinary | None

    def on(self, kind: Kind) -> RetainPrompts:
        """Return the same for perturbations of another kind."""
        return replace(self, part=self.part.on(kind))

    def value_and_grad(
        self, theta: Float[Tensor, "n s"]
    ) -> tuple[Float[Tensor, "n"], Float[Tensor, "n s"]]:
        """Return ``g`` of each perturbation and its gradient.

        Raises:
            EffectError: A value or gradient is NaN or infinite.
        """
        if self.answers is not None:
            return self.answers.value_and_grad(theta, self.part.kind)
        return self.part.value_and_grad(theta, mean_square)


def mean_square(shift: Shift) -> Float[Tensor, "n"]:
    """Return the mean square of the change at the read-out; parts of the prompts add up."""
    return torch.einsum("npkd,npkd,pk->n", shift.values, shift.values, shift.weights)


def with_retain_prompts(
    part: Slice, batch: PromptBatch, *, weight: float = 0.0, by: By = "effect"
) -> Slice:
    """Return a slice with other prompts beside it.

    Args:
        part: The slice.
        batch: The other prompts.
        weight: ``μ``.
        by: What is kept small on them.
    """
    there = Slice(
        part.lm,
        batch,
        source=part.source,
        target=part.target,
        positions=part.positions,
        readout=part.readout,
    )
    answers = Ordinary(part.lm, batch, before=part.source) if by == "kl" else None
    kept = copy.copy(part)
    others: Retain = RetainPrompts(there, weight, by, answers)
    kept.retain = others.on(part.kind)
    return kept


def drawn(
    prompts: Sequence[Prompt],
    encode: Callable[[Sequence[Prompt]], PromptBatch],
    asked: PromptBatch,
    *,
    seed: int,
) -> tuple[list[Prompt], list[str]]:
    """Draw at most `MOST` prompts that differ as the model reads them; all where there are fewer.

    Args:
        prompts: Those to draw from.
        encode: Makes of prompts what the model reads.
        asked: The prompts that are searched on, from which they are to differ as well.
        seed: Of the draw.

    Returns:
        The prompts, and what is to be said of those that were left out.

    Raises:
        PromptError: The model reads each as one that is searched on.
    """
    order = list(prompts)
    if len(order) > MOST:
        random.Random(seed).shuffle(order)
    known, looked = set(asked.read), 0
    new: set[tuple[int, ...]] = set()
    while looked < len(order) and len(new) < MOST:
        new |= {*encode([order[looked]]).read} - known
        looked += 1
    places, said = distinct("other prompts", encode(order[:looked]), asked)
    return [order[i] for i in places], said


def retain_prompts(source: str = BUNDLED) -> Sequence[Prompt]:
    """Return the bundled other prompts, or those of a file.

    Raises:
        PromptError: The file cannot be read or holds something else.
    """
    if source != BUNDLED:
        return read_prompts(Path(source))
    return files("educe.methods").joinpath("retain.txt").read_text(encoding="utf-8").splitlines()


# -- what a method asks at each step -------------------------------------------------------------


class Penalty(NamedTuple):
    """What is taken from an objective.

    Attributes:
        value: ``μ c g`` of each perturbation.
        gradient: Its gradient in ``θ``.
        kept: What the next state has to hold: ``worth``, which is ``c``.
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
