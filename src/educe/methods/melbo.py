"""MELBO: vectors that change the target as much as a given norm allows.

    max over ‖θ‖ = R of   Σ_prompts ( Σ_tokens ‖Z(h + θ) - Z(h)‖₂ᵖ )^(1/q)

Mack & Turner, "Mechanistically eliciting latent behaviors in language models" (2024). Projected
gradient ascent on the sphere: the gradient loses its radial part, AdamW with AMSGrad
(betas 0.9 and 0.98, no weight decay) takes a step, the result is scaled back to ``R``.

What differs from the reference code, and why:

- its ``norm(dim=1)`` runs over tokens where the text says features; here it runs over features;
- all vectors run in one batch instead of one after the other. Orthogonality, when asked for, is to
  every other vector: the nearest orthogonal set (polar decomposition) after each step, which
  prefers no vector over another;
- the step is a share of ``R``. Adam moves each of ``d`` coordinates by about its learning rate, so
  the rate is ``step · R / √d``. The published 1e-3 moves nothing in 30 steps where ``R`` is large;
- it ends when the objective has stopped growing;
- with ``turning`` the turning of the effect with the radius is part of the objective.

With other prompts beside the slice the objective is the above less ``μ c g`` (see
`educe.methods.retain`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from jaxtyping import Float
from torch import Tensor

from educe.errors import MethodError
from educe.forward.slice import Slice
from educe.forward.slice.shift import Shift
from educe.methods.retain import penalty, scores, tangent
from educe.methods.state import Progress, State, directed
from educe.methods.turning import turned
from educe.whole import Above, AtLeast

BETAS = (0.9, 0.98)
EPSILON = 1e-8


@dataclass(frozen=True)
class AscentConfig:
    """Settings of the objective and of the ascent.

    Attributes:
        power: ``p``: 2 counts tokens alike by their squared change; larger is spikier over tokens.
            Below 1 a token that does not move has no gradient.
        root: ``q``: 1, or ``p`` to keep the gradient alive where the objective is flat.
        step: Length of a step as a share of the radius.
        steps: The most steps.
        tolerance: Stop when the mean objective grew by less than this share in ``patience`` steps.
        patience: How many steps that is.
    """

    power: Annotated[float, AtLeast(1)] = 2.0
    root: Annotated[float, AtLeast(1)] = 1.0
    step: Annotated[float, Above(0)] = 0.3
    steps: Annotated[int, AtLeast(1)] = 60
    tolerance: float = 0.02
    patience: Annotated[int, AtLeast(1)] = 8


@dataclass(frozen=True)
class MelboConfig(AscentConfig):
    """Settings of MELBO: those of the ascent, and two more.

    Attributes:
        orthogonal: Keep every vector orthogonal to every other.
        turning: Weight of the turning of the effect (see `educe.methods.turning`).

    Example:
        >>> config = MelboConfig(steps=3, orthogonal=True)
        >>> found = educe.search(part, "melbo", n=4, radius=2.0, config=config)
        >>> torch.allclose(found.directions @ found.directions.T, torch.eye(4), atol=1e-4)
        True
    """

    orthogonal: bool = False
    turning: float = 0.0


def objective(shift: Shift, power: float, root: float) -> Float[Tensor, "n"]:
    """Return the MELBO objective of each perturbation; prompts add up."""
    # vector_norm's gradient at exactly zero is zero, so padding does not spoil it.
    norms = torch.linalg.vector_norm(shift.values, dim=-1)
    return norms.pow(power).sum(-1).pow(1 / root).sum(-1)


def start(part: Slice, n: int, radius: float, config: MelboConfig, draw: torch.Generator) -> State:
    """Draw the first directions."""
    if config.orthogonal and n > part.kind.size:
        raise MethodError(
            f"{n} vectors of width {part.kind.size} cannot be orthogonal: ask for fewer, or not "
            "for it"
        )
    v = part.kind.draw(n, draw).to(part.device, part.work_dtype)
    return at_rest(_orthogonal(v) if config.orthogonal else v)


def step(part: Slice, radius: float, config: MelboConfig, state: State) -> tuple[State, Progress]:
    """Take one projected step of all vectors at once; none when they have converged."""
    return ascend(part, radius, config, state, orthogonal=config.orthogonal, weight=config.turning)


def at_rest(directions: Float[Tensor, "n s"]) -> State:
    """Return the state before the first step."""
    zero = torch.zeros_like(directions)
    none = directions.new_zeros(0, len(directions))
    return State(directions=directions, first=zero, second=zero, largest=zero, curve=none)


def ascend(
    part: Slice,
    radius: float,
    config: AscentConfig,
    state: State,
    *,
    orthogonal: bool = False,
    weight: float = 0.0,
) -> tuple[State, Progress]:
    """Take one projected step, each column of a perturbation on its own sphere.

    With a weight the ascent is that of `educe.methods.turning`, the curve ``g exp(weight · V)``.
    """
    if _converged(state["curve"].mean(1), config):  # a state that was saved after the last step
        return state, Progress(done=True)
    kind, v, curve = part.kind, state["directions"], state["curve"]
    value, gradient = part.value_and_grad(
        kind.scaled(v, radius), lambda shift: objective(shift, config.power, config.root)
    )
    if weight:
        turning, slope = turned(part, kind.scaled(v, radius))
        gradient = gradient + weight * value[:, None] * slope
        value = value * (weight * turning).exp()
    # In θ rather than in the unit columns: a factor for each column, which AdamW does not see.
    lost = penalty(part, radius, gradient, state)
    if lost is not None:
        value, gradient = value - lost.value, gradient - lost.gradient
    if orthogonal:
        gradient = gradient - (gradient @ v.T) @ v
    gradient = tangent(kind, v, gradient)

    count = len(curve) + 1
    first = torch.lerp(gradient, state["first"], BETAS[0])
    second = torch.lerp(gradient.square(), state["second"], BETAS[1])
    largest = torch.maximum(state["largest"], second)
    widths = torch.cat([torch.full_like(c, c.shape[-1]).flatten(1) for c in kind.columns(v[:1])], 1)
    rate = config.step / widths.sqrt() / (1 - BETAS[0] ** count)
    v = v + rate * first / ((largest / (1 - BETAS[1] ** count)).sqrt() + EPSILON)

    v = _orthogonal(v) if orthogonal else kind.normalised(v)
    curve = torch.cat([curve, value[None]])
    new = State(directions=v, first=first, second=second, largest=largest, curve=curve)
    if lost is not None:
        new |= lost.kept
    return new, Progress(_converged(curve.mean(1), config), float(value.mean()))


def finish(part: Slice, radius: float, config: AscentConfig, state: State) -> State:
    """Measure the objective and the effect of the perturbations as they ended."""
    effect, value = part.measure(
        part.kind.scaled(state["directions"], radius),
        lambda shift: objective(shift, config.power, config.root),
    )
    (u, size), others = directed(effect), scores(part, radius, state)
    if others and part.retain is not None:
        value = value - part.retain.weight * others["score.retain_scale"] * others["score.retain"]
    return others | {
        "directions": state["directions"],
        "outputs": u,
        "score.objective": value,
        "score.effect": size,
        "curve": torch.cat([state["curve"], value[None]]),
    }


def _converged(curve: Float[Tensor, "steps"], config: AscentConfig) -> bool:
    if len(curve) >= config.steps:
        return True
    if len(curve) <= config.patience:
        return False
    before = curve[: -config.patience].max()
    # A share of its size: less a penalty, it can be below zero.
    return bool(curve[-config.patience :].max() < before + config.tolerance * before.abs())


def _orthogonal(v: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
    """Return the orthonormal rows nearest to these (the polar factor)."""
    left, _, right = torch.linalg.svd(v, full_matrices=False)
    return left @ right
