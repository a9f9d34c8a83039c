"""Continuation: a vector followed through the radius, optimised anew at each.

On the sphere of radius ``R`` a vector ``θ = R v`` is stationary where ``∇g(θ)`` is parallel to it.
From one radius to the next its direction is kept and improved by a few iterates (see
`educe.derive.stationary`), the first of which is DCT's own fixed-point map. Where a step turns a
vector too far it is gone again in two halves, and so on; where that does not help, the vector has
left its basin for another one, and is another vector from there on.

Where ``v(R)`` is stationary all along it is an implicit function of ``R``. With ``P = 1 - v vᵀ``,
``H = ∇²g(R v)`` and ``∇g = λ θ``, differentiating that equation gives

    (λ - P H P) w = P H v,        w = dv / d log R,

solved by conjugate gradients with exact Hessian-vector products (`tangent`). It is positive
definite at a strict maximum; where it is not, the vector is at none. Along a whole path, ``w`` is
taken from differences (`turning`), at a fraction of the price.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from educe.derive.objective import Objective, of_method
from educe.derive.projection import as_vectors, replaced
from educe.derive.stationary import Iterate, converge, put
from educe.forward.slice import Slice
from educe.methods.state import State
from educe.perturbation.set import PerturbationSet


@dataclass(frozen=True)
class PathConfig:
    """Settings of a continuation.

    Attributes:
        low: The smallest radius, as a share of a vector's own.
        high: The largest.
        steps: Radii for each doubling.
        iterates: The most iterates at a radius.
        converging: The most iterates at a vector's own radius, before it is followed, and after it
            has left its basin.
        tolerance: Iterating ends when the sine of the angle between ``∇g`` and ``θ`` is below.
        widest: The largest angle a vector may turn in a step, in radians.
        halvings: How often a step is halved before the vector is said to have left its basin.
    """

    low: float = 0.25
    high: float = 2.0
    steps: int = 5
    iterates: int = 3
    converging: int = 12
    tolerance: float = 0.05
    widest: float = 0.5
    halvings: int = 2

    @property
    def shares(self) -> list[float]:
        """The radii, as shares of a vector's own, evenly spaced in their logarithm below 1 and
        above it."""
        down, up = (
            math.ceil(abs(math.log2(end)) * self.steps - 1e-9) for end in (self.low, self.high)
        )
        below = [self.low ** (i / down) for i in range(down, 0, -1)]
        return [*below, 1.0, *(self.high ** (i / up) for i in range(1, up + 1))]


def advance(
    part: Slice,
    objective: Objective,
    v: Float[Tensor, "n s"],
    radius: tuple[Float[Tensor, "n"], Float[Tensor, "n"]],
    config: PathConfig,
    *,
    halvings: int | None = None,
) -> tuple[Iterate, Bool[Tensor, "n"]]:
    """Take directions from one radius to another; say which of them left their basin on the way."""
    left = config.halvings if halvings is None else halvings
    before, after = radius
    reached = _converged(part, objective, v, after, config)
    fast = _angle(v, reached.v) > config.widest
    if not fast.any():
        return reached, fast
    some = objective.select(fast)
    if left == 0:
        new = _converged(part, some, reached.v[fast], after[fast], config, config.converging)
        return reached.replaced(fast, new), fast
    middle = (before[fast] * after[fast]).sqrt()
    half, first = advance(part, some, v[fast], (before[fast], middle), config, halvings=left - 1)
    whole, second = advance(part, some, half.v, (middle, after[fast]), config, halvings=left - 1)
    return reached.replaced(fast, whole), put(fast, fast, first | second)


def _converged(
    part: Slice,
    objective: Objective,
    v: Float[Tensor, "n s"],
    radius: Float[Tensor, "n"],
    config: PathConfig,
    iterates: int | None = None,
) -> Iterate:
    many = config.iterates if iterates is None else iterates
    return converge(part, objective, v, radius, iterates=many, tolerance=config.tolerance)


def follow(
    part: Slice,
    objective: Objective,
    v: Float[Tensor, "n s"],
    radius: Float[Tensor, "n"],
    config: PathConfig,
    *,
    state: State | None = None,
    on_step: Callable[[State], None] = lambda state: None,
) -> State:
    """Follow directions from their own radius up to the largest, and down to the smallest.

    A state is where an earlier call left off, as it was given to ``on_step`` after each radius.

    Returns:
        ``directions`` ``[r, n, s]``, ``objective`` and ``sine`` ``[r, n]`` at each of the radii, in
        order; ``left`` ``[r, n]``, whether a vector left its basin between this radius and the one
        before on the way from its own; and ``done`` ``[r]``.
    """
    shares = config.shares
    home = shares.index(1.0)
    order = [home, *range(home + 1, len(shares)), *range(home - 1, -1, -1)]
    if state is None:
        none = v.new_full((len(shares), len(v)), math.nan)
        state = State(
            directions=v.expand(len(shares), *v.shape).clone(),
            objective=none,
            sine=none.clone(),
            left=torch.zeros_like(none, dtype=torch.bool),
            done=torch.zeros(len(shares), dtype=torch.bool),
        )
    for k in order[int(state["done"].sum()) :]:
        state = State({name: values.clone() for name, values in state.items()})
        if k == home:
            at = _converged(part, objective, v, radius, config, config.converging)
        else:
            near = k - 1 if k > home else k + 1
            span = (radius * shares[near], radius * shares[k])
            at, state["left"][k] = advance(part, objective, state["directions"][near], span, config)
        state["directions"][k], state["objective"][k], state["sine"][k] = at
        state["done"][k] = True
        on_step(state)
    return state


def followed(
    found: PerturbationSet,
    part: Slice,
    config: PathConfig | None = None,
    *,
    objective: Objective | None = None,
    state: State | None = None,
    on_step: Callable[[State], None] = lambda state: None,
) -> PerturbationSet:
    """Return vectors followed through the radius: all radii of the first one, then of the next.

    The scores are ``share`` of their own radius, ``objective``, ``sine`` of the angle between
    gradient and vector, and ``branch``, which changes where a vector left its basin.

    Args:
        found: Vectors.
        part: The slice.
        config: Settings.
        objective: What they are optimised for; by default what the method that found them has.
        state: Where an earlier call left off, as it was given to ``on_step``.
        on_step: Called after each radius.

    Raises:
        MethodError: They are no vectors.
        EffectError: A radius is so large that the model breaks down.

    Example:
        >>> found = educe.search(part, "dct", n=2, radius=2.0)
        >>> near = educe.derive.continuation.PathConfig(low=0.5, high=1.0, steps=1)
        >>> path = educe.derive.followed(found, part, near)
        >>> [round(r, 3) for r in path.radius.tolist()], path.scores["parent"].tolist()
        ([1.0, 2.0, 1.0, 2.0], [0.0, 0.0, 1.0, 1.0])
    """
    config = config or PathConfig()
    v, radius = unit_vectors(found, part)
    aim = objective or of_method(found.method, found.config)
    path = follow(part, aim, v, radius, config, state=state, on_step=on_step)
    shares = torch.tensor(config.shares).to(radius)
    made = replaced(
        found,
        (path["directions"] * (shares[:, None] * radius)[:, :, None]).transpose(0, 1).flatten(0, 1),
        torch.arange(len(v)).repeat_interleave(len(shares)),
        share=shares.repeat(len(v)),
        branch=branches(path["left"], config.shares.index(1.0)).T.flatten(),
        **{name: path[name].T.flatten() for name in ("objective", "sine")},
    )
    return replace(made, method="followed", config=asdict(config))


def unit_vectors(
    found: PerturbationSet, part: Slice
) -> tuple[Float[Tensor, "n d"], Float[Tensor, "n"]]:
    """Return the unit directions of vectors and their norms, where a slice computes."""
    theta = as_vectors(found).theta.to(part.device, part.work_dtype)
    radius = theta.norm(dim=1)
    return theta / radius[:, None], radius


def drift(
    part: Slice,
    objective: Objective,
    v: Float[Tensor, "n s"],
    radius: Float[Tensor, "n"],
    config: PathConfig,
) -> Float[Tensor, "n"]:
    """Return how far directions turn at the same radius, in as many iterates as a step has.

    In radians for each e-fold of the radius that a step goes, so that it can stand beside
    `turning`: what of that is not due to the radius. It is 0 where a direction is stationary.
    """
    moved = _converged(part, objective, v, radius, config)
    below = config.shares[config.shares.index(1.0) - 1]
    return _angle(v, moved.v) / -math.log(below)


def branches(left: Bool[Tensor, "r n"], home: int) -> Int[Tensor, "r n"]:
    """Number the vectors that a path goes through: 0 at its own radius, 1, 2, ... above it and
    -1, -2, ... below."""
    up = left[home:].int().cumsum(0)
    down = -left[: home + 1].flip(0).int().cumsum(0).flip(0)
    return torch.cat([down[:-1], up])


def turning(
    directions: Float[Tensor, "r n s"],
    shares: list[float],
    branch: Float[Tensor, "r n"] | Int[Tensor, "r n"],
) -> Float[Tensor, "r n s"]:
    """Return ``dv / d log R`` from differences along paths.

    Of second order in the step inside a branch (three points, not evenly spaced), of first order at
    its ends; NaN where a branch has a single radius.
    """
    at = torch.tensor(shares, dtype=directions.dtype, device=directions.device).log()
    slope = directions.diff(dim=0) / at.diff()[:, None, None]
    slope[branch.diff(dim=0) != 0] = math.nan
    none = slope.new_full((1, *slope.shape[1:]), math.nan)
    before, after = torch.cat([none, slope]), torch.cat([slope, none])
    gap = torch.cat([at.diff()[:1], at.diff(), at.diff()[-1:]])
    left, right = gap[:-1, None, None], gap[1:, None, None]
    inside = (left * after + right * before) / (left + right)
    rate = torch.where(inside.isnan(), torch.where(before.isnan(), after, before), inside)
    return rate - (rate * directions).sum(2, keepdim=True) * directions


class Tangent(NamedTuple):
    """How stationary directions turn."""

    turn: Float[Tensor, "n s"]  #: ``dv / d log R``; NaN where a vector is at no maximum
    residual: Float[Tensor, "n"]  #: what is left of the equation, relative to its right side


def tangent(
    part: Slice,
    objective: Objective,
    v: Float[Tensor, "n s"],
    radius: Float[Tensor, "n"],
    *,
    iterates: int = 60,
    tolerance: float = 1e-2,
) -> Tangent:
    """Return ``dv / d log R`` of stationary directions, by the implicit function theorem."""
    theta = v * radius[:, None]
    _, gradient = objective.climb(part, theta)
    level = (gradient * v).sum(1, keepdim=True) / radius[:, None]

    def across(x: Tensor, items: Tensor) -> Tensor:
        """Return ``P H x`` of some of the vectors."""
        bent = objective.select(items).hvp(part, theta[items], x)
        return bent - (bent * v[items]).sum(1, keepdim=True) * v[items]

    everyone = torch.ones(len(v), dtype=torch.bool, device=v.device)
    rest = across(v, everyone)
    turn, step = torch.zeros_like(v), rest.clone()
    size = first = rest.square().sum(1)
    peak = everyone.clone()
    for _ in range(iterates):
        going = peak & (size > tolerance**2 * first)
        if not going.any():
            break
        p = step[going]
        applied = level[going] * p - across(p, going)
        curve = (p * applied).sum(1)
        peak[going] = curve > 0
        length = (size[going] / curve)[:, None]
        turn[going] += length * p
        rest[going] -= length * applied
        new = rest[going].square().sum(1)
        step[going] = rest[going] + (new / size[going])[:, None] * p
        size = put(size, going, new)
    turn[~peak] = math.nan
    return Tangent(turn, (size / first.clamp(min=torch.finfo(first.dtype).tiny)).sqrt())


def _angle(one: Float[Tensor, "n s"], other: Float[Tensor, "n s"]) -> Float[Tensor, "n"]:
    """Return the angles between unit vectors; accurate where they are small."""
    return 2 * torch.asin(((one - other).norm(dim=1) / 2).clamp(max=1.0))
