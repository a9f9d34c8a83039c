"""DCT: the exponential deep causal transcoder, by orthogonalised gradient iteration.

A shallow network ``Σ_l α_l (exp⟨v_l, θ⟩ - 1) u_l`` is fitted to the effect ``Δ(Rθ)`` of the slice
by matching all its derivatives at zero, which for unit ``u`` and ``v`` is

    max  Σ_l α_l ⟨u_l, Δ(R v_l)⟩  -  ½ Σ_{l≠l'} α_l α_l' ⟨u_l, u_l'⟩ (exp⟨v_l, v_l'⟩ - 1)

Mack & Turner, "Deep causal transcoding" (2024). The iteration is a fixed-point map, not an ascent:
``V ← QR(V)``, then ``V ← normalise R J(R V)ᵀ U`` and ``U ← normalise Δ(R V)``, backward and forward
of one pass, the ``U`` of the pass before in it; the first ``U`` is ``normalise Δ(R V)`` as well.
``α = K⁻¹ diag(Uᵀ Δ(R V))`` with ``K = (UᵀU) ∘ (exp(VᵀV) - 1)``; factors are ranked by ``α²``.

The reference code adds ``θ`` before block ``s`` and steers after it; its "jacobian" start takes
rows of ``Vᵀ`` for columns of ``V``; and its QR, LAPACK's, turns up to half of the vectors to their
negatives, which are then what is evaluated. All three are put right here. Rows are factors: ``U``,
``V``: ``[n, width]``.

With other prompts beside the slice, ``⟨u_l, Δ(R v_l)⟩`` above is less ``μ c g(R v_l)`` (see
`educe.methods.retain`), and the map is, with ``s`` the longest gradient of the latter so far,

    v ← normalise( J(R v)ᵀ u  -  μ c ∇g(R v)  +  s v )

Both have the fixed points: where the gradient of the difference is along ``v``. The last term is
the shift of the symmetric power method (Kolda & Mayo 2011). Without it the map, which multiplies a
direction by its curvature, ends where the curvature is largest in size, and with a penalty that is
where the other prompts move most.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from educe.errors import MethodError
from educe.forward.slice import Slice
from educe.methods.linear import jacobian_rows, random_probes, singular_directions
from educe.methods.retain import penalty, scores
from educe.methods.state import Progress, State, directed
from educe.methods.turning import turned
from educe.orthogonal import orthonormal
from educe.whole import AtLeast


@dataclass(frozen=True)
class DctConfig:
    """Settings of the exponential DCT.

    Attributes:
        iterations: How often the fixed-point map is applied; published runs use 10.
        init: ``random`` directions, or the top right singular vectors of a random projection of the
            ``jacobian``.
        projections: Rows of that projection (``d_proj``), orthonormal ones, so that as many as the
            width lose nothing; directions beyond them start random.
        turning: Weight of the turning of the effect (see `educe.methods.turning`): ``Jᵀ u`` gains
            ``turning ⟨u, Δ⟩ ∇V``.

    Example:
        >>> config = DctConfig(iterations=5, init="jacobian")
        >>> len(educe.search(part, "dct", n=4, radius=2.0, config=config))
        4
    """

    iterations: Annotated[int, AtLeast(1)] = 10
    init: Literal["random", "jacobian"] = "random"
    projections: Annotated[int, AtLeast(1)] = 32
    turning: float = 0.0


def start(part: Slice, n: int, radius: float, config: DctConfig, draw: torch.Generator) -> State:
    """Draw or compute the first factors."""
    if n > part.kind.size:
        raise MethodError(
            f"dct finds at most {part.kind.size} factors here, one for each dimension"
        )
    v = part.kind.draw(n, draw).to(part.device, part.work_dtype)
    if config.init == "jacobian":
        probes = random_probes(part, config.projections, draw)
        _, known = singular_directions(jacobian_rows(part, probes))
        v = torch.cat([known[:n], v[len(known) :]])
    u, _ = directed(part.effect(radius * orthonormal(v)))
    return State(directions=v, outputs=u, curve=torch.zeros(0, n, dtype=v.dtype, device=v.device))


def step(part: Slice, radius: float, config: DctConfig, state: State) -> tuple[State, Progress]:
    """Apply the fixed-point map once; not beyond the last iteration."""
    if len(state["curve"]) >= config.iterations:  # a state that was saved after it
        return state, Progress(done=True)
    v = orthonormal(state["directions"])
    effect, gradient = part.vjp(radius * v, state["outputs"])
    reached = (effect * state["outputs"]).sum(1)
    if config.turning:
        gradient = gradient + config.turning * reached[:, None] * turned(part, radius * v)[1]
    kept = State()
    lost = penalty(part, radius, gradient, state | {"directions": v})
    if lost is not None:
        steepest = lost.gradient.norm(dim=1).max()
        steepest = steepest.maximum(state.get("steepest", steepest))
        gradient = gradient - lost.gradient + steepest * v
        reached, kept = reached - lost.value, lost.kept | {"steepest": steepest}
    new = kept | State(
        directions=gradient / gradient.norm(dim=1, keepdim=True),
        outputs=directed(effect)[0],
        curve=torch.cat([state["curve"], reached[None]]),
    )
    return new, Progress(len(new["curve"]) >= config.iterations, float(reached.mean()))


def finish(part: Slice, radius: float, config: DctConfig, state: State) -> State:
    """Solve for ``α`` and order the factors by it."""
    v = state["directions"]
    effect = part.effect(radius * v)
    u, size = directed(effect)
    alpha = solve_alpha(u, v, effect)
    order = alpha.square().argsort(descending=True)
    others = scores(part, radius, state)
    return State(
        {name: values[order] for name, values in others.items()}
        | {
            "directions": v[order],
            "outputs": u[order],
            "score.alpha": alpha[order],
            "score.effect": size[order],
            "curve": state["curve"][:, order],
        }
    )


def solve_alpha(
    u: Float[Tensor, "n d"], v: Float[Tensor, "n s"], effect: Float[Tensor, "n d"]
) -> Float[Tensor, "n"]:
    """Return the factors' weights: ``K α = diag(U Δᵀ)``; factors that coincide share theirs."""
    kernel = (u @ u.T) * torch.expm1(v @ v.T)
    return torch.linalg.pinv(kernel, hermitian=True) @ (u * effect).sum(1)
