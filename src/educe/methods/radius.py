"""How far to go: the radius of perturbations, and how their effect grows with it.

The radius is calibrated by relative linearisation error (DCT post, Mack & Turner 2024, as its
reference code computes it): the ``R`` at which, over random unit directions ``v``,

    sqrt( mean_v ‖Δ(R v) - R J v‖² / ‖R J v‖² ) = 0.5,      J v by an exact Jacobian product.

For other kinds than vectors ``J v`` is the derivative of the effect in ``R``, at zero.

Below it a perturbation acts as its linear part; far above it the model is no longer itself.

Other directions would give another radius. With ``e²(R)`` the mean above without its root, ``s²``
the variance of its terms over the ``n`` directions, and ``t`` Student's quantile for ``n - 1``,

    log R  ±  t s / (√n de²/d log R)

is a 95% interval for the radius over all directions (the delta method for the root of a mean).
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from scipy.stats import t as student
from torch import Tensor

from educe.errors import EffectError, RadiusError
from educe.forward.slice import Slice
from educe.roots import crossing

#: The bracket of the search, as doses: shares of the median activation norm at the source.
SMALLEST, LARGEST = 1e-3, 10.0

#: The radius is found when the logarithm of the error is this near to the wanted one.
NEAR = 0.002

#: Random directions over which the error is taken; fewer where each costs a pass of its own. What
#: that leaves open is in the interval.
DIRECTIONS, ALONE = 30, 4

#: What ``--radius auto`` looks at, as shares of the calibrated radius. No single share serves every
#: model and prompt, so the search does not bet on one.
LADDER = (0.3, 0.5, 0.75)


@dataclass(frozen=True)
class Calibration:
    """The outcome of a calibration.

    Attributes:
        radius: The calibrated radius.
        dose: The same as a share of the median activation norm at the source (see `Slice.unit`).
        error: The linearisation error that defines it.
        interval: 95% interval of the radius over the draw of directions. None where fewer than two
            were drawn, or where the error does not rise at the radius.
        curve: Radii and errors that the search looked at, in increasing order of radius.

    Example:
        >>> found = educe.calibrate(part)
        >>> found.interval[0] < found.radius < found.interval[1]
        True
        >>> abs(found.dose - found.radius / part.unit) < 1e-9
        True
    """

    radius: float
    dose: float
    error: float
    interval: tuple[float, float] | None
    curve: tuple[tuple[float, float], ...]


def calibrate(
    part: Slice,
    *,
    seed: int = 0,
    directions: int | None = None,
    along: Float[Tensor, "n s"] | None = None,
    error: float = 0.5,
) -> Calibration:
    """Find the radius at which the relative linearisation error has a given size.

    Args:
        part: The slice.
        seed: Of the random directions.
        directions: How many; by default `DIRECTIONS`, or `ALONE` where only one acts at a time.
        along: Unit perturbations to calibrate for, instead of random ones.
        error: The size.

    Raises:
        RadiusError: No radius between 0.001 and 10 activation norms has that error.

    Example:
        >>> strict, loose = (educe.calibrate(part, error=error).radius for error in (0.2, 0.5))
        >>> strict < loose
        True
    """
    v = along
    if v is None:
        v = _drawn(part, directions or (ALONE if part.kind.alone else DIRECTIONS), seed)
    none = part.kind.scaled(v, 0.0)
    along_v = part.kind.scaled(v, 1.0) - none
    _, linear = part.jvp(none, along_v)
    size = linear.norm(dim=1)
    radius, curve = _with_error(part, v, linear, error)
    interval = None
    if along is None:
        effect, moving = part.jvp(part.kind.scaled(v, radius), along_v)
        off = (effect / radius - linear) / size[:, None]
        slope = 2 * (off * (moving - effect / radius) / size[:, None]).sum(1)
        interval = _interval(radius, off.square().sum(1), slope)
    return Calibration(radius, radius / part.unit, error, interval, curve)


def calibrated(part: Slice, seed: int = 0) -> Calibration:
    """Return the calibration of a slice for its kind, which is computed once and kept on it."""
    known = part.calibrations
    if (part.kind, seed) not in known:
        known[part.kind, seed] = calibrate(part, seed=seed)
    return known[part.kind, seed]


def of_one(asked: float | str, part: Slice) -> float:
    """Return one radius, from a number or from words as `parse` reads them.

    Raises:
        RadiusError: It cannot be read, or names several radii.
    """
    if not isinstance(asked, str):
        return asked
    words, _ = read(asked)
    if len(words) > 1:
        raise RadiusError(f"radius {asked!r} is {len(words)} radii ({', '.join(words)}): give one")
    return parse(asked, part)[0][0]


def _with_error(
    part: Slice, v: Float[Tensor, "n s"], linear: Float[Tensor, "n d"], error: float
) -> tuple[float, tuple[tuple[float, float], ...]]:
    """Return the radius with a linearisation error, and the radii and errors looked at."""
    seen: dict[float, float] = {}
    broken: list[EffectError] = []

    def measured(items: Tensor, radii: Tensor) -> Tensor:
        radius = float(radii)
        try:
            off = part.effect(part.kind.scaled(v, radius)) / radius - linear
        except EffectError as failed:
            broken.append(failed)
            return torch.full_like(radii, math.inf)
        seen[radius] = float((off.norm(dim=1) / linear.norm(dim=1)).square().mean().sqrt())
        return torch.tensor([seen[radius]])

    start = torch.tensor([part.unit], dtype=torch.float64)
    bounds = SMALLEST, LARGEST
    found = crossing(measured, start, error, slope=1.0, near=NEAR, rounds=30, within=bounds)
    radius, came = float(found.radius), float(found.value)
    if abs(math.log(max(came, 1e-30) / error)) <= NEAR:
        return radius, tuple(sorted(seen.items()))
    where = f"the slice {part.source} to {part.target}"
    if came > error:
        raise RadiusError(
            f"{where} is not linear even at {SMALLEST:g} of its activations' norm: give --radius "
            "yourself"
        )
    if broken:
        raise broken[-1]
    raise RadiusError(
        f"{where} stays linear up to {LARGEST:g} times its activations' norm: give --radius "
        "yourself, or a later target"
    )


def _interval(
    radius: float, squares: Float[Tensor, "n"], slopes: Float[Tensor, "n"]
) -> tuple[float, float] | None:
    """Return the interval from each direction's squared error and its slope in ``log R``."""
    n = len(squares)
    if n < 2 or float(slopes.mean()) <= 0:
        return None
    wide = student.ppf(0.975, n - 1) * float(squares.std() / slopes.mean()) / math.sqrt(n)
    return radius * math.exp(-wide), radius * math.exp(wide)


def of_effect(part: Slice, effect: float, *, directions: int = DIRECTIONS, seed: int = 0) -> float:
    """Return the radius at which random directions have some mean effect ``‖Δ(R v)‖``.

    Args:
        part: The slice.
        effect: That effect.
        directions: How many are drawn.
        seed: Of these.

    Raises:
        RadiusError: The effect is zero.
    """
    if effect <= 0:
        raise RadiusError("the effect is zero, which no radius has: perturb more, or other modules")
    v = _drawn(part, directions, seed)

    def reached(items: Tensor, radii: Tensor) -> Tensor:
        return part.effect(part.kind.scaled(v, float(radii))).norm(dim=1).mean()[None]

    start = torch.tensor([part.unit], dtype=torch.float64)
    found = crossing(reached, start, effect, slope=1.0, near=0.001, rounds=60, within=(1e-9, 1e9))
    return float(found.radius)


def _drawn(part: Slice, n: int, seed: int) -> Float[Tensor, "n s"]:
    draw = torch.Generator().manual_seed(seed)
    return part.kind.draw(n, draw).to(part.device, part.work_dtype)


def read(text: str) -> tuple[list[str], list[float]]:
    """Read a radius without a slice (see `parse`): its words, and the numbers in them.

    Raises:
        RadiusError: It cannot be read, or is not above zero.
    """
    words = [f"{share}x" for share in LADDER] if text == "auto" else text.split(",")
    numbers = []
    for word in words:
        if not re.fullmatch(r"\s*([0-9]+\.?[0-9]*|\.[0-9]+)(e-?[0-9]+)?[xd]?\s*", word):
            raise RadiusError(f"radius {word!r}: use auto, a number such as 8.5, 0.3x, or 0.6d")
        numbers.append(float(word.strip().rstrip("xd")))
    if min(numbers) <= 0:
        raise RadiusError(f"radius {text!r}: it must be above zero")
    if max(numbers) == math.inf:
        raise RadiusError(f"radius {text!r}: it must be finite")
    return words, numbers


def parse(text: str, part: Slice, *, seed: int = 0) -> tuple[list[float], Calibration | None]:
    """Read a radius: ``auto``, a number, a share of the calibrated radius (``0.3x``), or a dose.

    A dose is a share of the stream's median norm at the source (``0.6d``; see `Slice.unit`).
    Several, separated by commas, are all looked at; ``auto`` is ``0.3x,0.5x,0.75x``.

    Raises:
        RadiusError: It cannot be read, or is not above zero.
    """
    words, numbers = read(text)
    found = calibrated(part, seed) if any("x" in word for word in words) else None
    units = [
        found.radius if found and "x" in word else part.unit if "d" in word else 1.0
        for word in words
    ]
    return [unit * number for unit, number in zip(units, numbers, strict=True)], found


class Growth(NamedTuple):
    """How effects grow with the radius; NaN where the model breaks down."""

    effect: Float[Tensor, "n r"]  #: ``‖Δ(R v)‖``
    exponent: Float[Tensor, "n r"]  #: ``e(R)``


def response(
    part: Slice, directions: Float[Tensor, "n s"], radii: Sequence[float] | Float[Tensor, "n r"]
) -> Float[Tensor, "n r"]:
    """Return ``‖Δ(R v)‖`` for each direction and radius; NaN where the model breaks down.

    Args:
        part: The slice, for the kind of these perturbations.
        directions: Unit perturbations.
        radii: Radii for all, or each direction's own; negative for the other sign.

    Example:
        >>> directions = part.kind.draw(3, torch.Generator().manual_seed(0))
        >>> sizes = response(part, directions, [0.001, 0.002])  # almost linear as yet
        >>> torch.allclose(sizes[:, 1] / sizes[:, 0], torch.tensor(2.0), rtol=0.1)
        True
    """

    def sizes(own: Slice, v: Tensor, r: Tensor) -> Tensor:
        return own.effect(own.kind.scaled(v, r)).norm(dim=1, keepdim=True)

    return _at_radii(part, directions, radii, sizes, 1)[..., 0]


def growth(
    part: Slice, directions: Float[Tensor, "n s"], radii: Sequence[float] | Float[Tensor, "n r"]
) -> Growth:
    """Return effects and response exponents of perturbations.

        e(R) = d log ‖Δ(R v)‖ / d log R = R ⟨Δ, ∂Δ/∂R⟩ / ‖Δ‖²

    with ``∂Δ/∂R`` by an exact Jacobian product along ``∂θ/∂R``. It is 1 where the effect is linear,
    above 1 where it leaves a plateau, and below 1 where it saturates.

    Args:
        part: The slice, for the kind of these perturbations.
        directions: Unit perturbations.
        radii: As of `response`; not zero, where no exponent is defined.

    Raises:
        ModelError: An operation of the model has no forward-mode derivative.
    """

    def grown(own: Slice, v: Tensor, r: Tensor) -> Tensor:
        # Scaling is affine in the radius, for every kind.
        along = own.kind.scaled(v, 1.0) - own.kind.scaled(v, 0.0)
        effect, slope = own.jvp(own.kind.scaled(v, r), along)
        squared = effect.square().sum(1)
        return torch.stack([squared.sqrt(), r[:, 0] * (effect * slope).sum(1) / squared], 1)

    return Growth(*_at_radii(part, directions, radii, grown, 2).unbind(-1))


def _at_radii(
    part: Slice,
    directions: Float[Tensor, "n s"],
    radii: Sequence[float] | Tensor,
    measure: Callable[[Slice, Tensor, Tensor], Float[Tensor, "k c"]],
    columns: int,
) -> Float[Tensor, "n r c"]:
    """Measure every direction at each of its radii; NaN where the model breaks down."""
    n = len(directions)
    r = torch.as_tensor(radii).to(directions).expand(n, -1)
    items = torch.arange(n).repeat_interleave(r.shape[1])
    flat = r.flatten()[:, None]

    def measured(places: Tensor) -> Tensor:
        some = items[places]
        return measure(part.on(part.kind.select(some)), directions[some], flat[places])

    broken = directions.new_full((1, columns), math.nan)
    return surviving(measured, torch.arange(len(items)), broken).view(*r.shape, columns)


def surviving(
    measure: Callable[[Int[Tensor, "k"]], Float[Tensor, "k c"]],
    items: Int[Tensor, "n"],
    broken: Float[Tensor, "1 c"],
) -> Float[Tensor, "n c"]:
    """Return what is measured of some items, and `broken` for those that break the model down.

    All are measured together; where one breaks down, each half is measured by itself.
    """
    try:
        return measure(items)
    except EffectError:
        if len(items) == 1:
            return broken
        return torch.cat([surviving(measure, half, broken) for half in items.tensor_split(2)])
