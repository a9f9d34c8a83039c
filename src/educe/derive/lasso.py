"""The group lasso of a vector: which groups of coordinates leave first as a weight on them grows.

In a basis (`educe.derive.bases`) a vector has a part in reach of each group, ``θ_g = P_g θ``; in an
orthonormal one they add up to it. While ``μ`` grows, every part gets a factor that goes to zero:

    min over 0 ≤ m ≤ 1 of   ½ ‖Δ(Σ_g m_g θ_g) - Δ(θ)‖² / ‖Δ(θ)‖²  +  μ Σ_g m_g

a lasso (Tibshirani 1996) whose groups are a coordinate each, or a head, and whose model is the
slice itself. Proximal gradient steps, accelerated (Beck & Teboulle 2009) with a restart where they
overshoot (O'Donoghue & Candès 2015), the step halved until it descends; each ``μ`` begins where the
one before ended. For a linear slice whose parts act at right angles,
``m_g = max(0, 1 - μ ‖Δ(θ)‖² / ‖Δ(θ_g)‖²)``: soft thresholding.

A lasso also shrinks what it keeps, so it only ranks the groups: by when they leave, the last first.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from educe.derive.bases import Basis
from educe.errors import MethodError
from educe.forward.slice import Slice

#: Weights ``μ``, and the least of them as a share of the one that leaves nothing.
WEIGHTS, LEAST = 12, 1e-3
#: Proximal steps at each weight.
STEPS = 8


def lasso(
    part: Slice,
    basis: Basis,
    theta: Float[Tensor, "n d"],
    *,
    weights: int = WEIGHTS,
    steps: int = STEPS,
    known: tuple[Float[Tensor, "w n g"], Float[Tensor, "n"]] | None = None,
    on_weight: Callable[[Tensor, Tensor], None] = lambda path, rate: None,
) -> tuple[Float[Tensor, "w n g"], Float[Tensor, "w n"]]:
    """Return the factors along the path and the weights, which grow by a constant factor.

    The last weight is that which leaves nothing, to the first order.

    Args:
        part: The slice.
        basis: The basis.
        theta: The vectors.
        weights: How many weights.
        steps: Proximal steps at each.
        known: The beginning of the path and the step sizes, as ``on_weight`` had them after each.
        on_weight: See ``known``.

    Raises:
        MethodError: A vector has no effect.
    """
    along, aim = basis.along(theta), _effect(part, theta)
    size = aim.square().sum(1)
    if not bool((size > 0).all()):
        raise MethodError("a vector without effect has nothing that could be sparse")

    def off(m: Tensor) -> Tensor:
        """Return how far the effect is off."""
        return _effect(part, basis.weighted(along, m)) - aim

    def slope(m: Tensor, off: Tensor) -> Tensor:
        """Return the gradient of the smooth part."""
        like = (part.device, part.work_dtype)
        _, back = part.vjp(basis.weighted(along, m).to(*like), off.to(*like))
        return basis.summed(basis.along(back) * along) / size[:, None]

    problem = _Problem(off, slope, size, 64 * torch.finfo(part.work_dtype).eps)
    none = along.new_zeros(len(theta), len(basis.names))
    grid = torch.logspace(0, 1, weights, base=1 / LEAST, dtype=torch.float64) * LEAST
    every = grid[:, None] * slope(none, -aim).abs().amax(1)
    path, rate = known or (none.new_zeros(0, *none.shape), torch.ones_like(size))
    # At first all parts have the factor that brings their sum nearest to θ: one in an orthonormal
    # basis, less where parts overlap.
    sums = basis.weighted(along, none + 1)
    even = (sums * theta).sum(1) / sums.square().sum(1).clamp(min=torch.finfo(sums.dtype).tiny)
    m = path[-1] if len(path) else even.clamp(max=1)[:, None].expand_as(none)
    for weight in every[len(path) :]:
        m, rate = _descend(problem, m, weight, rate, steps)
        path = torch.cat([path, m[None]])
        on_weight(path, rate)
    return path, every


class _Problem(NamedTuple):
    off: Callable[[Tensor], Tensor]  #: takes factors, returns how far the effect is off
    slope: Callable[[Tensor, Tensor], Tensor]  #: takes both, returns the smooth part's gradient
    size: Float[Tensor, "n"]  #: the squared norm of the whole effect
    slack: float  #: what rounding makes of an effect

    def smooth(self, off: Tensor) -> Float[Tensor, "n"]:
        return off.square().sum(1) / (2 * self.size)


def _descend(
    problem: _Problem, m: Tensor, weight: Tensor, rate: Tensor, steps: int
) -> tuple[Tensor, Tensor]:
    """Take proximal steps at one weight; each vector has its own step size."""
    ahead, momentum, slack = m, torch.ones_like(rate), problem.slack
    for _ in range(steps):
        off = problem.off(ahead)
        gradient, here = problem.slope(ahead, off), problem.smooth(off)
        while True:
            new = (ahead - rate[:, None] * (gradient + weight[:, None])).clamp(0, 1)
            step = new - ahead
            bound = here + (gradient * step).sum(1) + step.square().sum(1) / (2 * rate)
            high = problem.smooth(problem.off(new)) > bound + slack * (here.sqrt() + slack)
            if not bool(high.any()):
                break
            rate = torch.where(high, rate / 2, rate)
        # Where the step turns back on the last one, what carried it there is dropped.
        back = ((ahead - new) * (new - m)).sum(1) > 0
        momentum = torch.where(back, 1.0, momentum)
        after = (1 + (1 + 4 * momentum.square()).sqrt()) / 2
        carried = torch.where(back, 0.0, (momentum - 1) / after)
        ahead, m, momentum = (new + carried[:, None] * (new - m)).clamp(0, 1), new, after
        rate = rate * 1.2
    return m, rate


def ranked(path: Float[Tensor, "w n g"]) -> Int[Tensor, "n g"]:
    """Return the groups of each vector by when they leave the path, the last one first."""
    return path.sum(0).argsort(dim=1, descending=True, stable=True)


def shares(
    part: Slice,
    basis: Basis,
    theta: Float[Tensor, "n d"],
    order: Int[Tensor, "n g"],
    counts: Sequence[int],
) -> Float[Tensor, "n c"]:
    """Return the share of the effect that what the first few groups can write has.

    It is along the direction ``u`` of the whole effect: ``⟨u, Δ(P θ)⟩ / ‖Δ(θ)‖``.
    """
    aim = _effect(part, theta)
    kept = [_effect(part, basis.onto(theta, order[:, :count])) for count in counts]
    return torch.stack([(some * aim).sum(1) / aim.square().sum(1) for some in kept], 1)


def _effect(part: Slice, theta: Float[Tensor, "n d"]) -> Float[Tensor, "n e"]:
    """Return effects in double precision on the processor."""
    return part.effect(theta.to(part.device, part.work_dtype)).double().cpu()


def grid(groups: int) -> list[int]:
    """Return the counts that are looked at: 1, 2, 3, 4, 6, 8, 12 … and all."""
    steps = [n * 2**i for i in range(30) for n in (2, 3)]
    return sorted({1, *(n for n in steps if n < groups), groups})


def fewest(shares: Float[Tensor, "c"], counts: Sequence[int], keep: float) -> int:
    """Return the fewest groups from which on, in all that are looked at, enough is kept."""
    short = (shares < keep).nonzero()
    first = int(short[-1]) + 1 if len(short) else 0
    return counts[min(first, len(counts) - 1)]
