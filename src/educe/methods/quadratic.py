"""Quadratic DCT: the directions along which the effect bends most.

The transcoder ``Σ_l α_l ⟨v_l, θ⟩² u_l`` is fitted to the second derivative of the effect at zero,
``T(v, w) = D²Δ(0)[v, w]``: with unit ``u`` and ``v``,

    max  Σ_l ⟨u_l, T(v_l, v_l)⟩     over orthogonal v,     for each of which  u = normalise T(v, v)

by symmetric orthogonalised alternating least squares:

    V ← QR(V),   u_l ← normalise T(v_l, v_l),   v_l ← normalise ∇_v ⟨u_l, T(v_l, v)⟩

Mack & Turner, "Deep causal transcoding" (2024), where it is a sketch: the products of the reference
code are those of the Jacobian, so that it iterates to singular vectors, and no result for the true
second derivative has been published. Here both products are exact (`Slice.second_derivative`,
`Slice.hvp`). ``T(v, v)`` is even, so on which side QR leaves a vector does not matter to the
search; but ``Δ(R v)`` and ``Δ(-R v)`` share only the even part of the effect, so both signs are
given, one after the other, as the other methods that work at zero do.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor

from educe.errors import MethodError
from educe.forward.slice import Slice
from educe.methods.linear import check_signs, with_both_signs
from educe.methods.state import Progress, State
from educe.orthogonal import orthonormal
from educe.whole import AtLeast


@dataclass(frozen=True)
class QuadraticDctConfig:
    """Settings of the quadratic DCT.

    Attributes:
        iterations: How often ``U`` and ``V`` are updated.

    Example:
        >>> config = QuadraticDctConfig(iterations=3)
        >>> len(educe.search(part, "dct-quadratic", n=4, radius=2.0, config=config))
        4
    """

    iterations: Annotated[int, AtLeast(1)] = 20


def start(
    part: Slice, n: int, radius: float, config: QuadraticDctConfig, draw: torch.Generator
) -> State:
    """Draw the first directions: one for each two perturbations."""
    check_signs("dct-quadratic", n, part.kind.size)
    pairs = -(-n // 2)
    v = part.kind.draw(pairs, draw).to(part.device, part.work_dtype)
    return State(directions=v, curve=v.new_zeros(0, pairs), n=torch.tensor(n))


def step(
    part: Slice, radius: float, config: QuadraticDctConfig, state: State
) -> tuple[State, Progress]:
    """Update ``U`` and then ``V``; not beyond the last iteration."""
    if len(state["curve"]) >= config.iterations:  # a state that was saved after it
        return state, Progress(done=True)
    v = orthonormal(state["directions"])
    zero = torch.zeros_like(v)
    u, curvature = _bent(part, v)
    v = torch.nn.functional.normalize(part.hvp(zero, u, v), dim=1)
    curve = torch.cat([state["curve"], curvature[None]])
    new = state | {"directions": v, "curve": curve}
    return new, Progress(len(curve) >= config.iterations, float(curvature.mean()))


def finish(part: Slice, radius: float, config: QuadraticDctConfig, state: State) -> State:
    """Order the directions by their curvature and measure what they do at the radius."""
    n, v = int(state["n"]), state["directions"]
    _, curvature = _bent(part, v)
    order = curvature.argsort(descending=True)
    found = with_both_signs(part, radius, v[order], n, curvature=curvature[order])
    return found | {"curve": state["curve"][:, order]}


def _bent(part: Slice, v: Tensor) -> tuple[Tensor, Tensor]:
    """Return the unit vectors towards which the effect bends along ``v``, and how much."""
    second = part.second_derivative(torch.zeros_like(v), v)
    curvature = second.norm(dim=1)
    if straight := int((curvature == 0).sum()):
        raise MethodError(
            f"the effect does not bend at all along {straight} of {len(v)} directions: "
            "use dct-linear, or ask for fewer perturbations"
        )
    return second / curvature[:, None], curvature
