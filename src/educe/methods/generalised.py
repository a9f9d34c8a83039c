"""Generalised: directions that the slice amplifies most relative to other prompts, while small.

    max over v in the span of v_1 … v_k of   vᵀ A v / vᵀ (B + ε I) v
    A = J_tᵀJ_t / positions,   B = J_bᵀJ_b / positions,   ε = ridge · trace(B on the span) / k

``J_t`` and ``J_b`` stack the Jacobians at zero of every read-out position of the prompts searched
on and of the others (`Slice.retain`); ``v_1 … v_k`` are the leading right singular vectors of
``J_t``, from the block iteration of `educe.methods.power`. The maximum, and the stationary points
below it, are the generalised eigenvectors of ``(A, B + εI)``: the first order of a search with a
penalty on the benign effect, with a ratio for the difference. Elsewhere: common spatial patterns
(Koles 1991), and with a difference contrastive component analysis (Abid et al. 2018).

Outside the span ``A`` is small, and a ratio of two small numbers is noise: there it is not looked
for. On the span ``A`` is ``diag(σ²)``. Vectors of different value are orthogonal in ``B + εI``, not
in the stream. Both signs are given, as in `educe.methods.linear`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import scipy.linalg
import torch
from jaxtyping import Float
from torch import Tensor

from educe.errors import MethodError
from educe.forward.slice import Slice
from educe.methods import power
from educe.methods.linear import check_signs, with_both_signs
from educe.methods.power import PowerConfig
from educe.methods.state import Progress, State
from educe.whole import Above, AtLeast

#: Directions whose product with ``B`` is one step.
AT_ONCE = 16


@dataclass(frozen=True)
class GeneralisedConfig:
    """Settings of the generalised eigenproblem.

    Attributes:
        subspace: ``k``: how many leading singular vectors span where it is solved.
        ridge: ``ε`` as a share of the mean eigenvalue of ``B`` there, above zero: else a ratio has
            no largest value. Smaller, and what counts is to leave other prompts alone, however
            little the target moves.
        iterations: See `PowerConfig`.
        tolerance: See `PowerConfig`.
    """

    subspace: Annotated[int, AtLeast(1)] = 64
    ridge: Annotated[float, Above(0)] = 0.1
    iterations: Annotated[int, AtLeast(1)] = 6
    tolerance: Annotated[float, AtLeast(0)] = 0.02


def start(
    part: Slice, n: int, radius: float, config: GeneralisedConfig, draw: torch.Generator
) -> State:
    """Draw the first block.

    Raises:
        MethodError: There are no other prompts, or more vectors are asked for than the span has.
    """
    if part.retain is None:
        raise MethodError("generalised compares with other prompts: give the slice some beside it")
    k = min(config.subspace, part.kind.size)
    check_signs("generalised", n, k, ", or set a larger subspace")
    state = power.start(part, 2 * k, radius, _block(config), draw)
    return state | {"others": state["products"], "n": torch.tensor(n)}


def step(
    part: Slice, radius: float, config: GeneralisedConfig, state: State
) -> tuple[State, Progress]:
    """Multiply a block with ``A``; when the span is known, its next directions with ``B``."""
    if len(state["products"]) < len(state["basis"]):
        new, reached = power.step(part, radius, _block(config), state)
        return new, Progress(done=False, objective=reached.objective)
    span, others = power.spectrum(state, _block(config)).v, state["others"]
    if len(others) < len(span):  # else the state was saved after the last step
        assert part.retain is not None
        some = span[len(others) : len(others) + AT_ONCE]
        others = torch.cat([others, part.retain.part.gram(torch.zeros_like(some), some)])
    return state | {"others": others}, Progress(done=len(others) == len(span))


def finish(part: Slice, radius: float, config: GeneralisedConfig, state: State) -> State:
    """Solve the eigenproblem and measure what its directions do at the radius."""
    assert part.retain is not None
    n, span = int(state["n"]), power.spectrum(state, _block(config))
    a = span.square.diag() / part.readouts
    b = state["others"] @ span.v.T / part.retain.part.readouts
    value, rows = solve(a, (b + b.T) / 2, config.ridge)
    inside = torch.nn.functional.normalize(rows, dim=1)

    def gain(of: Tensor) -> Tensor:
        """Return ``‖J v‖``, root mean square over positions."""
        return ((inside @ of) * inside).sum(1).clamp(min=0).sqrt()

    scores = {"ratio": value, "gain": gain(a), "gain_retain": gain(b)}
    return with_both_signs(part, radius, inside @ span.v, n, **scores)


def solve(
    a: Float[Tensor, "k k"], b: Float[Tensor, "k k"], ridge: float
) -> tuple[Float[Tensor, "k"], Float[Tensor, "k k"]]:
    """Return values and vectors, a row each, of ``a x = λ (b + ε I) x``, largest first.

    Rows have norm one in ``b + ε I``.
    """
    k = len(b)
    right = b + ridge * b.trace() / k * torch.eye(k).to(b)
    value, vectors = scipy.linalg.eigh(a.cpu().numpy(), right.cpu().numpy())
    return torch.tensor(value[::-1].copy()).to(b), torch.tensor(vectors.T[::-1].copy()).to(b)


def _block(config: GeneralisedConfig) -> PowerConfig:
    return PowerConfig(iterations=config.iterations, tolerance=config.tolerance)
