"""ToySlice: what a `Slice` offers, in double precision, for a map that is written down.

A method of discovery, and the calibration of the radius, see only a slice. Here the slice is any
smooth map, so what they ought to find can be worked out by dense linear algebra.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from educe.errors import EffectError
from educe.forward.chunks import Chunk
from educe.forward.slice.shift import Shift
from educe.methods.state import State
from educe.model.blocks import Projection
from educe.perturbation.kinds import Adapters, Kind, Vectors


class ToySlice:
    """A slice whose shift is ``move(theta)``.

    Args:
        move: Maps perturbations ``[n, width]``, row by row, to what they do at the target:
            ``[n, width]``, or ``[n, prompts, positions, width]``.
        width: Width of the stream.
        read: Which positions of each prompt are read, ``[prompts, positions]``; all by default.
        median_norm: Mean norm of the activations at the source.
        prompts_at_once: Prompts a chunk; all by default.
    """

    source, target, positions, readout = 1, 5, "all", "last:3"

    def __init__(
        self,
        move: Callable[[Tensor], Tensor],
        width: int,
        *,
        read: list[list[int]] | None = None,
        median_norm: float = 1.0,
        prompts_at_once: int = 10**6,
        device: str = "cpu",
    ) -> None:
        self.move, self.width, self.median_norm = move, width, median_norm
        self.read = torch.tensor(read if read is not None else [[1]], dtype=torch.float64)
        self.prompts_at_once = prompts_at_once
        self.device, self.work_dtype = torch.device(device), torch.float64
        self.kind: Kind = Vectors(self.source, width)
        self.calibrations: dict[Any, Any] = {}
        self.lm: Any = SimpleNamespace(
            name="toy",
            revision=None,
            adapter=None,
            width=width,
            depth=self.target + 1,
            parts={},
            projection=lambda block, which: Projection(f"{block}.{which}", width + block),
        )
        self.batch: Any = SimpleNamespace(texts=("toy",))
        self.retain: Any = None

    def values(self, theta: Tensor) -> Tensor:
        """Return the change of each row of ``theta``, ``[n, prompts, positions, width]``."""
        assert theta.dtype == self.work_dtype
        return self.move(theta).reshape(len(theta), *self.read.shape, self.width)

    def delta(self, theta: Tensor) -> Tensor:
        """Return the effect of one perturbation or of several: the mean over what is read."""
        if theta.ndim == 1:
            return self.delta(theta[None])[0]
        share = self.read / self.read.sum(1, keepdim=True) / len(self.read)
        return (self.values(theta) * share[None, :, :, None]).sum((1, 2))

    def jacobian(self, theta: Tensor) -> Tensor:
        """Return the dense Jacobian of the effect at one perturbation, ``[width, width]``."""
        return torch.autograd.functional.jacobian(self.delta, theta)

    def on(self, kind: Kind) -> ToySlice:
        """Return this slice for another kind: each adapter adds ``Σ b ⟨a, x⟩``, ``x`` fixed."""
        if kind == self.kind:
            return self
        assert isinstance(kind, Adapters)
        part = copy.copy(self)
        part.kind = kind
        part.move = lambda theta: self.move(added(kind, theta))
        return part

    @property
    def unit(self) -> float:
        return self.median_norm

    @property
    def readouts(self) -> int:
        return int(self.read.sum())

    def curvature(self) -> Tensor:
        """Return the dense second derivative at zero, ``[width, width, width]``, outputs first."""

        def slopes(theta: Tensor) -> Tensor:
            return torch.autograd.functional.jacobian(self.delta, theta, create_graph=True)

        zero = torch.zeros(self.width, dtype=self.work_dtype)
        return torch.autograd.functional.jacobian(slopes, zero)

    # -- as in `Slice` ---------------------------------------------------------------------------

    def shift(self, theta: Tensor, chunk: Chunk | None = None) -> Shift:
        chunk = chunk or Chunk(0, len(theta), 0, len(self.read))
        prompts = slice(chunk.start, chunk.stop)
        values = self.values(theta[chunk.first : chunk.last]) * self.read[None, :, :, None]
        share = self.read / self.read.sum(1, keepdim=True) / len(self.read)
        return Shift(values[:, prompts], share[prompts], chunk)

    def effect(self, theta: Tensor) -> Tensor:
        with torch.no_grad():
            return self._summed(theta, lambda chunk: self.shift(theta, chunk).mean)

    def measure(self, theta: Tensor, objective: Callable[[Shift], Tensor]) -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            value = self._summed(theta, lambda chunk: objective(self.shift(theta, chunk))[:, None])
        return self.effect(theta), value[:, 0]

    def jvp(self, theta: Tensor, tangent: Tensor) -> tuple[Tensor, Tensor]:
        value, moved = torch.func.jvp(self.delta, (theta,), (tangent,))
        return self._finite(value), self._finite(moved)

    def vjp(self, theta: Tensor, cotangent: Tensor) -> tuple[Tensor, Tensor]:
        _, gradient = self.value_and_grad(theta, lambda shift: (shift.mean * cotangent).sum(1))
        return self.effect(theta), gradient

    def hvp(self, theta: Tensor, cotangent: Tensor, tangent: Tensor) -> Tensor:
        def slope(at: Tensor) -> Tensor:
            return torch.func.vjp(self.delta, at)[1](cotangent)[0]

        return self._finite(torch.func.jvp(slope, (theta,), (tangent,))[1])

    def objective_hvp(
        self, theta: Tensor, objective: Callable[[Shift], Tensor], tangent: Tensor
    ) -> Tensor:
        def run(chunk: Chunk) -> Tensor:
            rows = theta.detach().clone().requires_grad_(True)
            value = objective(self.shift(rows, chunk)).sum()
            (slope,) = torch.autograd.grad(value, rows, create_graph=True)
            return torch.autograd.grad((slope * tangent).sum(), rows)[0]

        return self._summed(theta, run)

    def second_derivative(self, theta: Tensor, tangent: Tensor) -> Tensor:
        def moved(at: Tensor) -> Tensor:
            return torch.func.jvp(self.delta, (at,), (tangent,))[1]

        return self._finite(torch.func.jvp(moved, (theta,), (tangent,))[1])

    def gram(self, theta: Tensor, tangent: Tensor) -> Tensor:
        read = self.read[None, :, :, None]
        _, moved = torch.func.jvp(lambda at: self.values(at) * read, (theta,), (tangent,))

        def project(shift: Shift) -> Tensor:
            return (shift.values * moved[:, shift.chunk.start : shift.chunk.stop]).sum((1, 2, 3))

        return self.value_and_grad(theta, project)[1]

    def value_and_grad(
        self, theta: Tensor, objective: Callable[[Shift], Tensor]
    ) -> tuple[Tensor, Tensor]:
        def run(chunk: Chunk) -> Tensor:
            rows = theta.detach().clone().requires_grad_(True)
            with torch.enable_grad():
                value = objective(self.shift(rows, chunk))
                (gradient,) = torch.autograd.grad(value.sum(), rows)
            return torch.cat([value.detach()[:, None], gradient], 1)

        joined = self._summed(theta, run)
        return joined[:, 0], joined[:, 1:]

    def _summed(self, theta: Tensor, run: Callable[[Chunk], Tensor]) -> Tensor:
        step, p = self.prompts_at_once, len(self.read)
        parts = [run(Chunk(0, len(theta), i, min(i + step, p))) for i in range(0, p, step)]
        return self._finite(torch.stack(parts).sum(0))

    def _finite(self, values: Tensor) -> Tensor:
        if not torch.isfinite(values).all():
            raise EffectError("the toy is NaN or infinite")
        return values


def inputs_of(kind: Adapters) -> list[Tensor]:
    """Return what the modules of a band take in the toy, one token."""
    return [normal(width, seed=7 + i) for i, width in enumerate(kind.inputs)]


def added(kind: Adapters, theta: Tensor) -> Tensor:
    """Return what adapters add to the stream of the toy, all blocks together, ``[n, width]``."""
    pairs = zip(kind.split(theta), inputs_of(kind), strict=True)
    return torch.stack([((a @ x)[..., None] * b).sum(1) for (a, b), x in pairs]).sum(0)


#: Two prompts, the second with two positions.
TWO = ((0, 1), (1, 1))


def curved(
    width: int,
    size: int | None = None,
    *,
    read: Sequence[Sequence[int]] = TWO,
    bend: float = 0.2,
    **options: Any,
) -> Any:
    """Prompts and their positions, each with a curved map of its own."""
    shape = len(read), len(read[0]), width, size or width
    first, second = normal(*shape, seed=1), normal(*shape, seed=2)

    def move(theta: Tensor) -> Tensor:
        inner = torch.einsum("pkde,ne->npkd", first, theta).tanh()
        return inner + bend * torch.einsum("pkde,ne->npkd", second, theta).square()

    return ToySlice(move, width, read=[list(row) for row in read], **options)


def through(
    method: Any,
    part: Any,
    n: int,
    config: Any,
    *,
    radius: float,
    seed: int = 0,
    state: State | None = None,
) -> tuple[State, list[State]]:
    """Return what a method's module finds, and its states: at the start and after each step."""
    if state is None:
        state = method.start(part, n, radius, config, torch.Generator().manual_seed(seed))
    states, done = [state], False
    while not done:
        after, progress = method.step(part, radius, config, states[-1])
        states.append(after)
        done = progress.done
    return method.finish(part, radius, config, states[-1]), states


def linear(matrix: Tensor, **options: Any) -> Any:
    """Return the slice ``Δ(θ) = matrix θ``."""
    return ToySlice(lambda theta: theta @ matrix.T, len(matrix), **options)


def with_singular_values(values: list[float], *, seed: int = 0) -> Tensor:
    """Return a square matrix with these singular values, its singular vectors random."""
    draw = torch.Generator().manual_seed(seed)
    size = (len(values), len(values))
    left, right = (
        torch.linalg.qr(torch.randn(size, generator=draw, dtype=torch.float64)).Q for _ in range(2)
    )
    return left @ torch.diag(torch.tensor(values, dtype=torch.float64)) @ right


def normal(*size: int, seed: int = 0) -> Tensor:
    """Return standard normal numbers in double precision."""
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(size, generator=draw, dtype=torch.float64)


def cosines(first: Tensor, second: Tensor) -> Tensor:
    """Return the absolute cosine of every row of one with every row of the other."""
    return (
        torch.nn.functional.normalize(first.double(), dim=1)
        @ torch.nn.functional.normalize(second.double(), dim=1).T
    ).abs()
