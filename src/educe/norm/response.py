"""Response: the effect of a perturbation at every radius, and where its curve bends.

    e(R) = d log ‖Δ(R v)‖ / d log R = R ⟨Δ, ∂Δ/∂R⟩ / ‖Δ‖²

The response exponent, with ``∂Δ/∂R`` by an exact Jacobian product along ``∂θ/∂R``. It is 1 where
the effect is linear, above 1 where it leaves a plateau, and below 1 where it saturates. (Published
work fits one exponent to a whole curve, Ferreira da Silva & Heimersheim 2026; here it is local.)

Radii are shares of the one that was used, and both signs are looked at: a negative radius is the
perturbation with its sign turned. Noise has one sign, since the other is only other noise.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from educe.comparison.verdict import DAMAGED, SAME
from educe.errors import EffectError
from educe.forward.slice import Slice
from educe.kinds import Kind, Noise

#: Shares of the used radius at which texts are written.
SHARES = (0.125, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0)

#: Shares at which the effect alone is looked at, which costs next to nothing: six an octave.
FINE = tuple(2 ** (k / 6 - 4) for k in range(37))

#: The exponent from which on an effect is said to leave its plateau, and the one below which it is
#: said to saturate.
LEAVING, SATURATED = 1.25, 0.5


class Growth(NamedTuple):
    """How effects grow with the radius; NaN where the model breaks down."""

    effect: Float[Tensor, "n r"]  #: ``‖Δ(R v)‖``
    exponent: Float[Tensor, "n r"]  #: ``e(R)``


class Marks(NamedTuple):
    """Radii at which a curve changes; None where that is not reached on the grid."""

    plateau: float | None  #: the smallest at which ``e ≥ 1.25``
    saturation: float | None  #: the smallest past the maximum of ``e`` at which ``e ≤ 0.5``
    onset: float | None  #: the smallest with new text (see `educe.comparison.verdict.SAME`)
    nonsense: float | None  #: the smallest with damage (see `educe.comparison.verdict.DAMAGED`)


def signs(kind: Kind) -> tuple[int, ...]:
    """Return the signs that a kind of perturbation has."""
    return (1,) if isinstance(kind, Noise) else (1, -1)


def growth(part: Slice, directions: Float[Tensor, "n s"], radii: Float[Tensor, "n r"]) -> Growth:
    """Return effects and exponents of perturbations, each at radii of its own.

    Args:
        part: The slice, for the kind of these perturbations.
        directions: Unit perturbations.
        radii: Radii, negative for the other sign; not zero, where no exponent is defined.

    Raises:
        ModelError: An operation of the model has no forward-mode derivative.
    """
    items = torch.arange(len(directions)).repeat_interleave(radii.shape[1])
    effect, exponent = _at(part, directions, items, radii.to(directions).flatten())
    return Growth(effect.view(radii.shape), exponent.view(radii.shape))


def _at(part: Slice, directions: Tensor, items: Tensor, radii: Tensor) -> tuple[Tensor, Tensor]:
    own = part.on(part.kind.select(items))
    v, r = directions[items], radii[:, None]
    none = own.kind.scaled(v, 0.0)
    try:
        # Scaling is affine in the radius, for every kind.
        effect, slope = own.jvp(own.kind.scaled(v, r), own.kind.scaled(v, 1.0) - none)
    except EffectError:
        if len(items) == 1:
            return r.new_full((1,), math.nan), r.new_full((1,), math.nan)
        half = len(items) // 2
        pairs = [
            _at(part, directions, items[some], radii[some])
            for some in (slice(None, half), slice(half, None))
        ]
        first, second = zip(*pairs, strict=True)
        return torch.cat(first), torch.cat(second)
    squared = effect.square().sum(1)
    return squared.sqrt(), radii * (effect * slope).sum(1) / squared


def steepest(radii: Sequence[float], exponents: Sequence[float]) -> float:
    """Return the radius of the grid at which the exponent is largest; NaN is passed over."""
    pairs = [(e, r) for r, e in zip(radii, exponents, strict=True) if math.isfinite(e)]
    return max(pairs)[1] if pairs else math.nan


def marks(
    fine: Sequence[float],
    exponents: Sequence[float],
    radii: Sequence[float],
    novelty: Sequence[float],
    coherence: Sequence[float],
) -> Marks:
    """Return where curves change, on grids of increasing radii.

    Args:
        fine: Radii at which exponents are known.
        exponents: These.
        radii: Radii at which texts are known.
        novelty: Mean novelty of the texts at each.
        coherence: Mean coherence of them.
    """
    top = steepest(fine, exponents)
    return Marks(
        _first(fine, [e >= LEAVING for e in exponents]),
        _first(fine, [r > top and e <= SATURATED for r, e in zip(fine, exponents, strict=True)]),
        _first(radii, [n >= SAME for n in novelty]),
        _first(radii, [c < DAMAGED for c in coherence]),
    )


def _first(radii: Sequence[float], there: Sequence[bool]) -> float | None:
    return next((r for r, yes in zip(radii, there, strict=True) if yes), None)
