"""Kinds of perturbation: what their numbers mean, and what they change in a running model.

    vectors        h ← h + θ              one vector, added to the stream that leaves a block
    within         h ← h + θ A            the same, of a subspace: θ has k coefficients, A is [k, d]
    joint          h_l ← h_l + θ A_l      the same after several blocks: A is [k, layers, d]
    ablations      h ← h - R ⟨h - a, r⟩ w   a direction, taken away from that stream
    adapters       W ← W + R b aᵀ         on one projection of each block of a band; unit a and b
    biases         W x ← W x + θ_l        the same for every token, on such projections
    token noise    h_t ← h_t + R g_t      fresh for each token t, g_t uniform on the sphere
    weight noise   W ← W + σ rms(W) G     on the matrices of a band of blocks, G standard normal

``θ`` is a row of numbers for every perturbation, ``[n, size]``, and differentiable; for noise it is
a single number, the size. `kind` has what they all say of themselves; `vectors`, `joint`,
`ablations`, `projected` and `noise` are the kinds.
"""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from torch import Tensor

from educe.errors import FileFormatError
from educe.perturbation.ablations import Ablations
from educe.perturbation.joint import Joint
from educe.perturbation.kind import Kind
from educe.perturbation.noise import Noise, TokenNoise, WeightNoise
from educe.perturbation.projected import Adapters, Biases, adapters
from educe.perturbation.vectors import Vectors, Within

__all__ = [
    "KINDS",
    "Ablations",
    "Adapters",
    "Biases",
    "Joint",
    "Kind",
    "Noise",
    "TokenNoise",
    "Vectors",
    "WeightNoise",
    "Within",
    "adapters",
    "described",
    "read",
]

#: By the name that files have for them.
KINDS: dict[str, type[Kind]] = {
    k.name: k
    for k in (Vectors, Within, Joint, Ablations, Adapters, Biases, TokenNoise, WeightNoise)
}


def described(kind: Kind) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return what `read` needs to make a kind again: what JSON can hold, and tensors."""
    parts = {f.name: getattr(kind, f.name) for f in fields(kind)}  # type: ignore[arg-type]
    tensors = {name: part for name, part in parts.items() if isinstance(part, Tensor)}
    return {name: part for name, part in parts.items() if name not in tensors}, tensors


def read(name: str, plain: dict[str, Any], tensors: dict[str, Tensor]) -> Kind:
    """Make a kind again from its name and what `described` gave.

    Raises:
        FileFormatError: There is no such kind.
    """
    if name not in KINDS:
        raise FileFormatError(f"perturbations of kind {name!r} are unknown to this educe")
    lists = {key: tuple(value) for key, value in plain.items() if isinstance(value, list)}
    return KINDS[name](**plain | lists, **tensors)
