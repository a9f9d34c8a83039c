"""Power: the singular vectors of the slice's Jacobian, by block power iteration.

    max over orthonormal v_1 … v_k of   Σ_i ‖J v_i‖²,      J: all read-out positions of all prompts

Ayyub, "Power steering" (2026); the same mathematics as the linear DCT of Mack & Turner (2024).
``JᵀJ`` is a sum over prompts and read-out positions, its products are exact, and all columns of the
block, padding among them, are rows of one batch. Both signs of a vector are items, next to each
other, the one of larger effect first.

What differs from the reference code, and why:

- Rayleigh-Ritz is over all blocks of the iteration, not the last alone (block Lanczos: Golub &
  Underwood 1977; Musco & Musco 2015). The products are the same; what they show is not forgotten;
- it ends when the residuals are small, not after five iterations, and says the residual of each;
- where singular values are equal within rounding, any rotation of their vectors is as good. The one
  that is given is drawn from the seed: the first block, projected into their span;
- vectors of nearly equal singular values are numbered as a band: the least change rotates them.
  ``search`` turns them to those of largest effect. With a band's rows in order of ``‖Δ(R w)‖``,

      W ← QR of the band's part of  J(R w)ᵀ Δ(R w)         (the gradient of ``½ ‖Δ(R w)‖²``),

  the first climbs in the whole band, and each other one in what those before it leave. It begins at
  the singular vectors and at random rotations of them, and keeps the best of each band.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from educe.forward.slice import Slice
from educe.methods.linear import both_signs, check_signs
from educe.methods.state import Progress, State, directed
from educe.orthogonal import orthonormal, projected
from educe.whole import AtLeast

#: Eigenvalues of ``JᵀJ`` are equal if they differ by less than so many roundings of the largest.
BLURRED = 100

#: Effects that a search compares are equal if they differ by less than this share.
ALIKE = 1e-4


@dataclass(frozen=True)
class PowerConfig:
    """Settings of the power iteration.

    Attributes:
        iterations: The most products of ``JᵀJ`` with a block.
        padding: Columns of the block beyond the vectors that are wanted; one at least, to tell
            the gap after the last of these.
        tolerance: End when ``‖JᵀJ v - σ² v‖`` is below this share of ``σ²`` for each vector.
        band: Neighbours whose singular values differ by less than this share are in one band.
        search: Steps of the search inside each band; 0 leaves the singular vectors as they are.
        starts: Of that search, in each band: the singular vectors, the others random rotations.

    Example:
        >>> config = PowerConfig(iterations=30)
        >>> found = educe.search(part, "power", n=4, radius=2.0, config=config)
        >>> value = found.scores["singular_value"]  # each vector comes with both signs
        >>> bool(value[0] == value[1] >= value[2])
        True
    """

    iterations: Annotated[int, AtLeast(1)] = 10
    padding: Annotated[int, AtLeast(1)] = 4
    tolerance: Annotated[float, AtLeast(0)] = 0.005
    band: Annotated[float, AtLeast(0)] = 0.05
    search: Annotated[int, AtLeast(0)] = 0
    starts: Annotated[int, AtLeast(1)] = 4


class Spectrum(NamedTuple):
    """The top of the spectrum of ``J``, as far as the products show it.

    Attributes:
        v: Right singular vectors, ``[vectors, width]``.
        square: Their squared singular values.
        gap: Relative distance of each singular value to the next; 0 of zero to zero.
        residual: ``‖JᵀJ v - σ² v‖ / σ²``; for ``σ = 0``, 0 if ``JᵀJ v`` is 0 too, else infinite.
        band: Number of the band that each is in.
    """

    v: Float[Tensor, "k d"]
    square: Float[Tensor, "k"]
    gap: Float[Tensor, "k"]
    residual: Float[Tensor, "k"]
    band: Int[Tensor, "k"]


def start(part: Slice, n: int, radius: float, config: PowerConfig, draw: torch.Generator) -> State:
    """Draw the first block."""
    vectors = -(-n // 2)
    size = part.kind.size
    check_signs("power", n, size)

    def drawn(rows: int) -> Tensor:
        return part.kind.draw(rows, draw).to(part.device, part.work_dtype)

    basis = orthonormal(drawn(min(vectors + config.padding, size)))
    state = State(basis=basis, products=basis[:0], curve=basis.new_zeros(0, n))
    if config.search:
        rows = drawn((config.starts - 1) * vectors) if config.starts > 1 else basis[:0]
        state["starts"] = rows.reshape(-1, vectors, size)
    return state


def step(part: Slice, radius: float, config: PowerConfig, state: State) -> tuple[State, Progress]:
    """Multiply the newest block with ``JᵀJ``; when that has converged, search inside the bands."""
    if len(state["products"]) < len(state["basis"]):
        return _multiply(part, config, state)
    if config.search and "turned" not in state:
        return _climb(part, radius, config, state)
    return state, Progress(done=True)  # a state that was saved after the last step


def finish(part: Slice, radius: float, config: PowerConfig, state: State) -> State:
    """Put both signs of each vector side by side and measure what they do."""
    found = spectrum(state, config)
    w, gap, residual = state.get("turned", found.v), found.gap, found.residual
    pairs, effect = both_signs(part, radius, w)
    u, size = directed(effect)
    order = torch.arange(len(w), device=w.device)
    if "turned" in state:  # what is said of a turned vector is said of its band
        order = ranked(size[::2])
        order = order[found.band[order].argsort(stable=True)]
        gap = gap[torch.searchsorted(found.band, found.band, right=True) - 1]
        residual = torch.stack([residual[found.band == b].max() for b in found.band])
    value = ((w[order] @ found.v.T).square() @ found.square).sqrt()
    items = torch.stack([2 * order, 2 * order + 1], 1).flatten()
    both = {
        "directions": pairs[items],
        "outputs": u[items],
        "score.singular_value": value.repeat_interleave(2),
        "score.gap": gap.repeat_interleave(2),
        "score.band": found.band.repeat_interleave(2),
        "score.residual": residual.repeat_interleave(2),
        "score.effect": size[items],
    }
    n = state["curve"].shape[1]
    return State({name: values[:n] for name, values in both.items()} | {"curve": state["curve"]})


def spectrum(state: State, config: PowerConfig) -> Spectrum:
    """Read the top of the spectrum off the products so far (Rayleigh-Ritz)."""
    products = state["products"]
    basis = state["basis"][: len(products)]
    vectors = -(-state["curve"].shape[1] // 2)
    square, turn = torch.linalg.eigh((basis @ products.T + products @ basis.T) / 2)
    square, turn = square.flip(0).clamp(min=0), _drawn(square.flip(0), turn.flip(1).T)
    sizes = torch.cat([square.sqrt(), square.new_zeros(1)])
    gap = shares(sizes[:-1] - sizes[1:], sizes[:-1])[:vectors]
    turn, square = turn[:vectors], square[:vectors]
    v = turn @ basis
    residual = shares((turn @ products - square[:, None] * v).norm(dim=1), square)
    band = torch.cat([gap.new_zeros(1), (gap[:-1] >= config.band).cumsum(0)]).long()
    return Spectrum(v, square, gap, residual, band)


def shares(part: Float[Tensor, "k"], whole: Float[Tensor, "k"]) -> Float[Tensor, "k"]:
    """Return ``part / whole``; 0 of 0 is 0, and anything else of 0 is infinite."""
    return (part / whole).where(part != 0, 0.0)


def _drawn(square: Float[Tensor, "b"], turn: Float[Tensor, "b b"]) -> Float[Tensor, "b b"]:
    """Turn eigenvectors, rows of coordinates in the basis, to what the seed has drawn.

    Those of equal eigenvalue become a rotation, and a single one takes a side, that depend on the
    first vectors of the basis, and on nothing that a library decides.
    """
    apart = -square.diff() > BLURRED * torch.finfo(square.dtype).eps * square[0]
    parts = turn.tensor_split((apart.nonzero()[:, 0] + 1).tolist())
    eye = torch.eye(len(turn), dtype=turn.dtype, device=turn.device)
    return torch.cat([projected(eye[: len(part)], part) for part in parts])


def _multiply(part: Slice, config: PowerConfig, state: State) -> tuple[State, Progress]:
    basis, products = state["basis"], state["products"]
    block = basis[len(products) :]
    product = part.gram(torch.zeros_like(block), block)
    state = state | {"products": torch.cat([products, product])}
    found = spectrum(state, config)
    size = found.square.sqrt()
    count = len(state["curve"]) + 1
    converged = count >= config.iterations or bool((found.residual <= config.tolerance).all())
    reached = size.repeat_interleave(2)[: state["curve"].shape[1]]
    state = state | {
        "basis": basis if converged else torch.cat([basis, beyond(product, basis)]),
        "curve": torch.cat([state["curve"], reached[None]]),
    }
    over = len(state["basis"]) == len(state["products"])  # converged, or nothing is beyond
    return state, Progress(over and not config.search, float(size.mean()))


def _climb(part: Slice, radius: float, config: PowerConfig, state: State) -> tuple[State, Progress]:
    """Turn each band of two vectors or more, from every start; at the end, keep the best."""
    found = spectrum(state, config)
    wide = found.band.bincount()[found.band] > 1
    if not wide.any():
        return state | {"turned": found.v}, Progress(done=True)
    v, band = found.v[wide], found.band[wide]
    inside = [(band == number).nonzero()[:, 0] for number in band.unique()]
    if "climbers" in state:
        w = state["climbers"].clone()
    else:
        w = torch.cat([v[None], state["starts"][:, wide]])
        for at in inside:
            w[:, at] = projected(w[:, at], v[at])
        w = both_signs(part, radius, w.flatten(0, 1))[0][::2].reshape(w.shape).contiguous()
    rows = radius * w.flatten(0, 1)
    effect = part.effect(rows)
    size = effect.norm(dim=1).reshape(w.shape[:2])
    gradient = part.vjp(rows, effect)[1].reshape(w.shape)
    for at in inside:
        order = ranked(size[:, at])
        w[:, at] = projected(gradient[:, at].take_along_dim(order[..., None], 1), v[at])
    climb = torch.cat([state.get("climb", size[None][:0]), size[None]])
    state = state | {"climbers": w, "climb": climb}
    if len(climb) < config.search:
        return state, Progress(False, float(size.mean()))
    size = part.effect(radius * w.flatten(0, 1)).norm(dim=1).reshape(size.shape)
    turned = found.v.clone()
    turned[wide] = torch.cat([w[strongest(size[:, at]), at] for at in inside])
    return state | {"turned": turned}, Progress(True, float(size.mean()))


def ranked(size: Float[Tensor, "*s k"]) -> Int[Tensor, "*s k"]:
    """Return places by size, largest first; of those that are alike the first, whatever rounds."""
    steps = (size / (ALIKE * size.amax(-1, keepdim=True))).round()
    return steps.argsort(dim=-1, descending=True, stable=True)


def strongest(size: Float[Tensor, "s k"]) -> int:
    """Return the start whose largest effect is largest; of equal ones, whose next is; the first."""
    left = torch.ones(len(size), dtype=torch.bool, device=size.device)
    for column in size.sort(dim=1, descending=True).values.T:
        left &= column >= (1 - ALIKE) * column[left].max()
    return int(left.nonzero()[0])


def beyond(block: Float[Tensor, "c d"], basis: Float[Tensor, "b d"]) -> Float[Tensor, "a d"]:
    """Return orthonormal rows for what a block adds to a basis; none where it adds nothing."""
    smallest = torch.finfo(block.dtype).eps * block.shape[1] * torch.linalg.matrix_norm(block, 2)
    rest = block - (block @ basis.T) @ basis
    _, size, rows = torch.linalg.svd(rest, full_matrices=False)
    rows = rows[size > smallest]
    return orthonormal(
        rows - (rows @ basis.T) @ basis
    )  # again, for what rounding left of the basis
