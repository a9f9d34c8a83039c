"""CPE: causal perturbative elicitation, by softly orthogonalised gradient iteration.

Populations of adapters, one rank-1 term ``R b aᵀ`` on the attention output projection of each block
of a band, all ``a`` and ``b`` of norm one; ``φ`` is an adapter's ``a`` and ``b``, flattened. With
the effect ``Δ`` and unit ``u``,

    max  Σ_i ⟨u_i, Δ(R φ_i)⟩,      the φ_i apart from each other

Mack, Panickssery & Turner, "Mechanistically eliciting latent behaviors in language models"
(arXiv 2606.29604, 2026). A fixed-point map, as in `educe.methods.dct`: from one pass, with the
``u`` of the pass before, ``u ← normalise Δ(R φ)`` and ``φ ← g = ∂⟨u, Δ(R φ)⟩ / ∂φ``. Then, ``K``
times,

    S_ij = ⟨φ_i, φ_j⟩ / T + log ‖g_j‖,     φ_i ← normalise( φ_i - Σ_{j≠i} softmax_j(S_ij) φ_j )

so that a factor of strong gradient pushes the others away, and last every ``a`` and ``b`` to norm
one. The published code normalises ``φ`` whole in that loop and starts from the gradient at random
factors; the paper's algorithms normalise every ``a`` and ``b`` in it and start from the random
factors themselves: ``per_block`` and ``init``. Rows are factors.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import normalize

from educe.errors import MethodError
from educe.forward.slice import Slice
from educe.methods.state import Progress, State, directed
from educe.perturbation import kinds
from educe.whole import Above, AtLeast


@dataclass(frozen=True)
class CpeConfig:
    """Settings of CPE.

    Attributes:
        iterations: How often the fixed-point map is applied; published runs have 10 to 30.
        blocks: Width of the band, which begins right after the source.
        init: ``backward`` takes the gradient at random factors for the first ones, ``random`` the
            random factors.
        inner: ``K``, how often the factors push each other away in an iteration.
        temperature: ``T``; lower, and only near factors push each other.
        per_block: Normalise every ``a`` and ``b`` on the way, as the paper has it, instead of
            ``φ``.

    Example:
        >>> config = CpeConfig(iterations=2, blocks=2)
        >>> educe.search(part, "cpe", n=3, radius=1.0, config=config).kind.name
        'adapters'
    """

    iterations: Annotated[int, AtLeast(1)] = 10
    blocks: Annotated[int, AtLeast(1)] = 4
    init: Literal["backward", "random"] = "backward"
    inner: Annotated[int, AtLeast(0)] = 10
    temperature: Annotated[float, Above(0)] = 1.0
    per_block: bool = False


def kind(part: Slice, n: int, config: CpeConfig, seed: int) -> kinds.Kind:
    """Return rank-1 adapters on the attention of the first blocks of the slice."""
    first, last = part.source + 1, part.source + config.blocks
    if last > part.target:
        raise MethodError(
            f"cpe adapts blocks {first} to {last}, and their effect is read at {part.target}: "
            "choose a later target, an earlier source, or fewer blocks"
        )
    return kinds.adapters(part.lm, first=first, blocks=config.blocks, projection="attention")


def start(part: Slice, n: int, radius: float, config: CpeConfig, draw: torch.Generator) -> State:
    """Draw the first factors, or take them from the gradient at what was drawn."""
    phi = part.kind.draw(n, draw).to(part.device, part.work_dtype)
    u = normalize(torch.randn(n, part.width, generator=draw), dim=1)
    u = u.to(part.device, part.work_dtype)
    if config.init == "backward":
        phi = part.kind.normalised(_pass(part, radius, phi, u)[1])
    return State(directions=phi, outputs=u, curve=phi.new_zeros(0, n))


def step(part: Slice, radius: float, config: CpeConfig, state: State) -> tuple[State, Progress]:
    """Apply the fixed-point map once; not beyond the last iteration."""
    if len(state["curve"]) >= config.iterations:  # a state that was saved after it
        return state, Progress(done=True)
    effect, gradient = _pass(part, radius, state["directions"], state["outputs"])
    reached = (effect * state["outputs"]).sum(1)
    apart = softly_orthogonal(
        gradient,
        inner=config.inner,
        temperature=config.temperature,
        project=part.kind.normalised if config.per_block else normalize,
    )
    new = State(
        directions=part.kind.normalised(apart),
        outputs=directed(effect)[0],
        curve=torch.cat([state["curve"], reached[None]]),
    )
    return new, Progress(len(new["curve"]) >= config.iterations, float(reached.mean()))


def finish(part: Slice, radius: float, config: CpeConfig, state: State) -> State:
    """Measure the factors as they ended, and order them by their objective.

    Published runs do not rank factors by any such number: they choose by what the model writes.
    """
    effect = part.effect(part.kind.scaled(state["directions"], radius))
    u, size = directed(effect)
    reached = (effect * state["outputs"]).sum(1)
    order = reached.argsort(descending=True)
    return State(
        {
            "directions": state["directions"][order],
            "outputs": u[order],
            "score.objective": reached[order],
            "score.effect": size[order],
            "curve": state["curve"][:, order],
        }
    )


def softly_orthogonal(
    gradient: Float[Tensor, "n s"],
    *,
    inner: int,
    temperature: float,
    project: Callable[[Tensor], Tensor],
) -> Float[Tensor, "n s"]:
    """Let factors push each other away, each as hard as its gradient is long.

    Args:
        gradient: Of each factor; its direction is where the factor begins.
        inner: How often.
        temperature: Divides the similarities.
        project: Scales factors, to norm one or column by column.
    """
    phi = project(gradient)
    if len(phi) == 1:  # nobody to be pushed by
        return phi
    bias = gradient.norm(dim=1).log()
    for _ in range(inner):
        near = phi @ phi.T / temperature + bias
        near.fill_diagonal_(-torch.inf)
        phi = project(phi - near.softmax(1) @ phi)
    return phi


def _pass(
    part: Slice, radius: float, phi: Float[Tensor, "n s"], u: Float[Tensor, "n d"]
) -> tuple[Float[Tensor, "n d"], Float[Tensor, "n s"]]:
    """Return the effect of the factors and the gradient of ``⟨u, Δ⟩`` in them."""
    effect, gradient = part.vjp(part.kind.scaled(phi, radius), u)
    return effect, part.kind.scaled(gradient, radius)
