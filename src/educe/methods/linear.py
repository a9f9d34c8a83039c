"""Linear DCT: the directions that the slice amplifies most, however small they are.

The linear transcoder ``Σ_l α_l ⟨v_l, θ⟩ u_l`` that fits the effect best near zero is the singular
value decomposition of its Jacobian, which is also what power steering looks for:

    J = dΔ/dθ at 0 = Σ_l σ_l u_l v_lᵀ,      σ_1 = max ‖J v‖,  σ_2 the same orthogonal to v_1,  ...

Mack & Turner, "Deep causal transcoding" (2024). ``full`` computes every row of ``J``; ``projected``
(their algorithm 1') those of ``W J`` for a few random orthonormal rows ``W``, whose right singular
vectors stand for those of ``J``. A row is one pass in reverse mode, which costs no more than a
column in forward mode, and some models have no forward mode.

A direction and its mirror image change the target by opposite amounts only while they are short, so
both are given, one after the other. The reference code stores ``Vᵀ`` and takes its columns, which
are close to random directions; here they are the singular vectors.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from educe.errors import MethodError
from educe.forward.slice import Slice
from educe.methods.state import Progress, State, directed
from educe.orthogonal import orthonormal, upright
from educe.perturbation.kinds import Vectors
from educe.whole import AtLeast


@dataclass(frozen=True)
class LinearDctConfig:
    """Settings of the linear DCT.

    Attributes:
        mode: ``full``, or ``projected``: cheaper by the width over ``projections``, and inexact.
        projections: Rows of the projection (``d_proj``); ``projected`` has as many directions.
        steps: In how many parts the Jacobian is computed; it makes no difference to what is found.

    Example:
        >>> config = LinearDctConfig(mode="projected", projections=8)
        >>> found = educe.search(part, "dct-linear", n=4, radius=2.0, config=config)
        >>> sorted(found.scores)
        ['effect', 'singular_value']
    """

    mode: Literal["full", "projected"] = "full"
    projections: Annotated[int, AtLeast(1)] = 32
    steps: Annotated[int, AtLeast(1)] = 16


def start(
    part: Slice, n: int, radius: float, config: LinearDctConfig, draw: torch.Generator
) -> State:
    """Choose of which outputs the Jacobian is taken."""
    if config.mode == "full":
        probes = torch.eye(part.width, device=part.device, dtype=part.work_dtype)
    else:
        probes = random_probes(part, config.projections, draw)
    most = min(len(probes), part.kind.size)
    cure = "" if most == part.kind.size else f", or set projections={-(-n // 2)} or mode='full'"
    check_signs("dct-linear", n, most, cure)
    none = probes.new_zeros(0, part.kind.size)
    return State(probes=probes, rows=none, n=torch.tensor(n))


def step(
    part: Slice, radius: float, config: LinearDctConfig, state: State
) -> tuple[State, Progress]:
    """Compute the next rows of the Jacobian."""
    probes, rows = state["probes"], state["rows"]
    if len(rows) < len(probes):  # else the state was saved after the last step
        more = -(-len(probes) // config.steps)
        rows = torch.cat([rows, jacobian_rows(part, probes[len(rows) : len(rows) + more])])
    return state | {"rows": rows}, Progress(done=len(rows) == len(probes))


def finish(part: Slice, radius: float, config: LinearDctConfig, state: State) -> State:
    """Decompose the Jacobian and measure what its directions do at the radius."""
    n = int(state["n"])
    value, right = singular_directions(state["rows"])
    return with_both_signs(part, radius, right, n, singular_value=value)


# -- what other methods use as well -------------------------------------------------------------


def random_probes(part: Slice, n: int, draw: torch.Generator) -> Float[Tensor, "n d"]:
    """Draw orthonormal outputs, no more than there are: as many as the width lose nothing."""
    drawn = Vectors(part.target, part.width).draw(min(n, part.width), draw)
    return orthonormal(drawn.to(part.device, part.work_dtype))


def jacobian_rows(part: Slice, probes: Float[Tensor, "n d"]) -> Float[Tensor, "n s"]:
    """Return ``W J``: how much of each output ``W`` a unit of each input gives at zero."""
    return part.vjp(probes.new_zeros(len(probes), part.kind.size), probes)[1]


def singular_directions(
    rows: Float[Tensor, "n d"],
) -> tuple[Float[Tensor, "k"], Float[Tensor, "k d"]]:
    """Return the singular values and the right singular vectors, a row each, largest first."""
    _, value, right = torch.linalg.svd(rows, full_matrices=False)
    return value, upright(right)


def check_signs(method: str, n: int, most: int, cure: str = "") -> None:
    """Make sure that so many directions, with two signs each, are enough perturbations.

    Raises:
        MethodError: They are not.
    """
    if n > 2 * most:
        raise MethodError(
            f"{method} has {most} directions here, with two signs each: ask for at most "
            f"{2 * most} perturbations{cure}"
        )


def with_both_signs(
    part: Slice, radius: float, v: Float[Tensor, "k s"], n: int, **scores: Float[Tensor, "k"]
) -> State:
    """Return the first ``n`` of some directions with both signs, as `finish` does.

    Args:
        part: The slice.
        radius: Of the perturbations.
        v: Directions, in order.
        n: How many perturbations there are to be.
        scores: Of each direction; both signs get it. The effect is added to them.
    """
    half = -(-n // 2)
    pairs, effect = both_signs(part, radius, v[:half])
    u, size = directed(effect)
    both = {f"score.{name}": own[:half].repeat_interleave(2) for name, own in scores.items()}
    found = {"directions": pairs, "outputs": u, **both, "score.effect": size}
    return State({name: values[:n] for name, values in found.items()})


def both_signs(
    part: Slice, radius: float, v: Float[Tensor, "n s"]
) -> tuple[Float[Tensor, "2*n s"], Float[Tensor, "2*n d"]]:
    """Return each direction and its mirror image, the more effective one first, and their effects.

    What finds a direction from derivatives at zero knows it up to its sign.
    """
    pairs = torch.stack([v, -v], 1)
    effect = part.effect(radius * pairs.flatten(0, 1)).unflatten(0, (-1, 2))
    first, second = effect.norm(dim=2).T
    turned = (second > first)[:, None, None]
    pairs, effect = (torch.where(turned, two.flip(1), two) for two in (pairs, effect))
    return pairs.flatten(0, 1), effect.flatten(0, 1)
