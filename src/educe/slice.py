"""Slice: replay blocks ``source+1 .. target`` for many perturbations at once.

The unperturbed model runs once over the prompts; the residual stream at ``source`` is kept. A
perturbation ``θ`` is added to it, or changes blocks above it (see `educe.kinds`), and only the
blocks between source and target run again, for rows of perturbation × prompt. With ``Z`` the stream
leaving block ``target``, averaged over prompts and read-out positions,

    Δ(θ) = mean [ Z(θ) - Z(0) ]                                                     ``[width]``

The slice asks the model how it calls its own blocks: it lets the model's forward run over the rows
with every block replaced by a recorder, and replays with the arguments recorded. So masks, rotary
angles and whatever else an architecture hands to its blocks are the model's own, for these rows.

Tokens before the first perturbed one are the same whatever the perturbation. Where blocks know the
past by keys and values alone, one unperturbed run leaves those in the model's own cache, and only
the tokens from the first perturbed one on are replayed. And where the target block ends in modules
that work token by token, these run on the tokens from the first that is read on.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple, Protocol, TypeVar

import torch
import torch.nn.functional as F
from accelerate.utils.memory import should_reduce_batch_size
from jaxtyping import Float
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from educe import positions as where
from educe.blocks import Call, narrowed, replaced, stream_in, stream_out
from educe.errors import EffectError, LayerError, ModelError, PositionsError
from educe.kinds import Kind, Vectors
from educe.model import LanguageModel, PromptBatch

# Tokens a chunk: enough to reach a machine's full matmul rate, few enough for its memory; an
# out-of-memory error halves it.
TOKENS_PER_CHUNK = {"cpu": 2048, "cuda": 16384}

# For so many shapes of a batch it is remembered how the model calls its blocks. Asking again costs
# less than a hundredth of a replay; masks and rotary angles that are kept cost memory.
CALLS_KEPT = 8

# What of a block's past is keys and values, one for each token, and nothing else.
KEYS_AND_VALUES = (DynamicLayer, DynamicSlidingWindowLayer)

T = TypeVar("T")


class Chunk(NamedTuple):
    """Rows that run together: perturbations ``first:last`` on prompts ``start:stop``."""

    first: int
    last: int
    start: int
    stop: int


class Shift(NamedTuple):
    """What a chunk of perturbations does at the target, position by position.

    Attributes:
        values: Change of the target stream, ``[perturbations, prompts, positions, width]``.
        weights: Share of each read-out position in the mean over all, ``[prompts, positions]``.
        chunk: Which perturbations and prompts these are.
    """

    values: Float[Tensor, "n p k d"]
    weights: Float[Tensor, "p k"]
    chunk: Chunk

    @property
    def mean(self) -> Float[Tensor, "n d"]:
        """This chunk's part of the effect: summed over chunks of prompts it is Δ."""
        return torch.einsum("npkd,pk->nd", self.values, self.weights)


class Beside(Protocol):
    """Other prompts, to which perturbations ought to do little (see `educe.beside`)."""

    @property
    def weight(self) -> float:
        """How much they count."""

    @property
    def by(self) -> str:
        """What is kept small on them."""

    @property
    def part(self) -> Slice:
        """The same blocks on these prompts."""

    def on(self, kind: Kind) -> Beside:
        """Return the same for perturbations of another kind."""

    def value_and_grad(
        self, theta: Float[Tensor, "n s"]
    ) -> tuple[Float[Tensor, "n"], Float[Tensor, "n s"]]:
        """Return what perturbations do to these prompts, and its gradient."""


class Slice:
    """The part of a model between a source and a target layer, on given prompts.

    Args:
        lm: The model.
        batch: The prompts.
        source: Layer whose outgoing stream is perturbed.
        target: Layer whose outgoing stream is read; after the source.
        positions: Prompt tokens that are perturbed (see `educe.positions`).
        readout: Prompt tokens over which the effect is averaged.
        tokens_per_chunk: Rows × tokens that run together; halved when memory runs out.

    Attributes:
        start: Unperturbed stream at the source, ``[prompts, tokens, width]``.
        rest: Unperturbed stream at the target's read-out window, ``[prompts, k, width]``.
        kind: The kind of perturbation; vectors, unless `on` was asked for another.
        beside: Other prompts that a search keeps as they are, if any (see `educe.beside`).
        counted: Tokens that means are taken over, ``[prompts, tokens]``: the first of each prompt
            is left out, its norm is several times the others' (a massive activation).
        mean_norm: Mean norm of the stream at the source over these.

    Raises:
        LayerError: Source or target do not exist or are not in order.
        PositionsError: No prompt token is perturbed, or none is read.
    """

    def __init__(
        self,
        lm: LanguageModel,
        batch: PromptBatch,
        *,
        source: int | float,
        target: int | float,
        positions: str = "all",
        readout: str = "last:3",
        tokens_per_chunk: int | None = None,
    ) -> None:
        self.lm, self.batch = lm, batch
        self.beside: Beside | None = None
        self.source, self.target = lm.layer(source), lm.layer(target)
        if self.source >= self.target:
            raise LayerError(
                f"source {self.source} is not below target {self.target}: "
                "the effect is read in a later layer than the one perturbed"
            )
        self.readout = readout
        self._take(Vectors(self.source, lm.width, positions))
        read = where.in_prompt(readout, batch.mask)
        if not read.any(1).all():
            raise PositionsError(f"read-out {readout!r} reads nothing: use last:k, all or prompt")
        self._window = int(torch.where(read.any(0))[0][0])
        read = read[:, self._window :]
        share = read.to(self.work_dtype)
        self._weights = share / share.sum(1, keepdim=True) / len(batch)
        self._read = read
        self.tokens_per_chunk = tokens_per_chunk or TOKENS_PER_CHUNK.get(lm.device.type, 2048)
        self._tail = lm.tail(self.target)
        self._run_unperturbed()
        self._run_past()

    def on(self, kind: Kind) -> Slice:
        """Return the same slice for perturbations of another kind.

        Raises:
            LayerError: They act before the source, or after the target.
            PositionsError: They leave a prompt unperturbed.
        """
        if kind.before != self.source or kind.last > self.target:
            raise LayerError(
                f"{kind.name} in blocks {kind.before + 1} to {kind.last} do not fit a slice of "
                f"blocks {self.source + 1} to {self.target}: they begin where it does and end in it"
            )
        part = copy.copy(self)
        part._take(kind)
        part.beside = self.beside and self.beside.on(kind)
        if kind.positions != self.positions:
            part._run_past()
        return part

    def _take(self, kind: Kind) -> None:
        self.kind, self.positions = kind, kind.positions
        self._perturbed = where.in_prompt(kind.positions, self.batch.mask)
        if not self._perturbed.any(1).all():
            raise PositionsError(
                f"positions {kind.positions!r} leave a prompt unperturbed, so there is nothing to "
                "search"
            )

    @property
    def unit(self) -> float:
        """The radius whose dose is 1, for the kind of perturbation at hand."""
        return self.kind.unit(self.mean_norm, self._taken)

    def _taken(self, paths: Sequence[str]) -> list[float]:
        """Return the mean norm of what some modules of the slice take, without perturbation."""
        norms: dict[str, list[Tensor]] = {path: [] for path in paths}

        def note(path: str) -> Callable[..., None]:
            def hook(module: Any, args: Any) -> None:
                norms[path].append(args[0].float().norm(dim=-1).cpu())

            return hook

        modules = [self.lm.unwrapped.get_submodule(path) for path in paths]
        handles = [
            module.register_forward_pre_hook(note(path))
            for module, path in zip(modules, paths, strict=True)
        ]
        whole = copy.copy(self)
        whole._tail = []  # all tokens count
        try:
            whole.effect(torch.zeros(1, self.kind.size, device=self.device, dtype=self.work_dtype))
        finally:
            for handle in handles:
                handle.remove()
        return [float(torch.cat(lines)[self.counted].mean()) for lines in norms.values()]

    @property
    def readouts(self) -> int:
        """How many positions are read, over all prompts."""
        return int(self._read.sum())

    @property
    def width(self) -> int:
        """Width of the residual stream."""
        return self.lm.width

    @property
    def device(self) -> torch.device:
        """Where perturbations are added: the device of the stream at the source."""
        return self.start.device

    @property
    def work_dtype(self) -> torch.dtype:
        """Type of perturbations and effects: float64 for such a model, else float32."""
        return torch.float64 if self.lm.dtype == torch.float64 else torch.float32

    def _run_unperturbed(self) -> None:
        def run(ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
            with self.lm.watching([self.source, self.target]) as streams:
                self.lm.forward(ids, mask)
            return streams[self.source], streams[self.target][:, self._window :]

        starts, rests = zip(*self._over_prompts(run), strict=True)
        self.start, self.rest = torch.cat(starts), torch.cat(rests).to(self.work_dtype)
        self.counted = self.batch.mask.bool().cpu().clone()
        if self.counted.sum() > len(self.counted):  # else every prompt is a single token
            self.counted[range(len(self.counted)), self.counted.int().argmax(1)] = False
        norms = self.start.float().norm(dim=-1)
        self.mean_norm = float(norms[self.counted.to(norms.device)].mean())

    def _run_past(self) -> None:
        """Fill a cache with the tokens before the first that is perturbed, if blocks can use it."""

        def run(ids: Tensor, mask: Tensor) -> DynamicCache:
            cache = DynamicCache(config=self.lm.unwrapped.config)
            self.lm.forward(ids[:, : self._first], mask[:, : self._first], cache=cache)
            return cache

        self._calls: dict[tuple[int, int, int], list[Call]] = {}
        self._past: DynamicCache | None = None
        self._first = int(self._perturbed.any(0).int().argmax())
        inside = slice(self.source + 1, self.target + 1)
        plain = DynamicCache(config=self.lm.unwrapped.config).layers[inside]
        if not all(type(layer) in KEYS_AND_VALUES for layer in plain):
            self._first = 0
        if not self._first:
            return
        self._past, *others = self._over_prompts(run)
        for layer, *more in zip(*(c.layers[inside] for c in (self._past, *others)), strict=True):
            layer.keys = torch.cat([layer.keys, *(other.keys for other in more)])
            layer.values = torch.cat([layer.values, *(other.values for other in more)])

    def _over_prompts(self, run: Callable[[Tensor, Tensor], T]) -> list[T]:
        """Run all prompts, as many at once as fit; halve on out-of-memory."""
        tokens, done, at = self.batch.ids.shape[1], [], 0
        while at < len(self.batch):
            rows = min(max(1, self.tokens_per_chunk // tokens), len(self.batch) - at)
            try:
                done.append(run(self.batch.ids[at : at + rows], self.batch.mask[at : at + rows]))
            except RuntimeError as error:
                if rows == 1 or not should_reduce_batch_size(error):
                    raise
                self.tokens_per_chunk = rows // 2 * tokens
                continue
            at += rows
        return done

    # -- what the slice offers ---------------------------------------------------------------

    @torch.no_grad()
    def effect(self, theta: Float[Tensor, "n s"]) -> Float[Tensor, "n d"]:
        """Return the effect Δ of each perturbation.

        Raises:
            EffectError: An effect is NaN or infinite.
        """
        if not len(theta):
            return theta.new_zeros(0, self.width)
        return self._summed(theta, lambda chunk: self.shift(theta, chunk).mean.to(theta))

    @torch.no_grad()
    def measure(
        self, theta: Float[Tensor, "n s"], objective: Callable[[Shift], Float[Tensor, "n"]]
    ) -> tuple[Float[Tensor, "n d"], Float[Tensor, "n"]]:
        """Return the effect and an objective (see `value_and_grad`) of each, from one pass."""

        def run(chunk: Chunk) -> Tensor:
            shift = self.shift(theta, chunk)
            return torch.cat([shift.mean.to(theta), objective(shift)[:, None].to(theta)], 1)

        joined = self._summed(theta, run)
        return joined[:, :-1], joined[:, -1]

    def jvp(
        self,
        theta: Float[Tensor, "n s"],
        tangent: Float[Tensor, "n s"],
        *,
        of: Callable[[Shift], Float[Tensor, "n m"]] = lambda shift: shift.mean,
    ) -> tuple[Float[Tensor, "n m"], Float[Tensor, "n m"]]:
        """Return ``Δ(θ)`` and the Jacobian at ``θ`` times ``tangent``, row by row, exactly.

        Forward-mode differentiation: one pass, no approximation.

        Args:
            theta: Perturbations.
            tangent: In which direction each is changed.
            of: What is differentiated in the place of the effect, a function of the shift of a
                chunk; over all prompts it is the sum over chunks of prompts.

        Raises:
            EffectError: A value is NaN or infinite.
            ModelError: An operation of the model has no forward-mode derivative.
        """

        def both(chunk: Chunk) -> Tensor:
            rows = slice(chunk.first, chunk.last)
            with torch.no_grad(), _plain_kernels(self.lm), forward_ad.dual_level():
                dual = forward_ad.make_dual(theta[rows].clone(), tangent[rows].to(theta))
                out = forward_ad.unpack_dual(of(self._shift(dual, chunk)))
                moved = out.tangent if out.tangent is not None else torch.zeros_like(out.primal)
                return torch.cat([out.primal, moved], 1).to(theta)

        with _forward_mode(self.lm):
            value, moved = self._summed(theta, both).chunk(2, dim=1)
        return value, moved

    def vjp(
        self, theta: Float[Tensor, "n s"], cotangent: Float[Tensor, "n s"]
    ) -> tuple[Float[Tensor, "n d"], Float[Tensor, "n d"]]:
        """Return ``Δ(θ)`` and the transposed Jacobian at ``θ`` times ``cotangent``, row by row."""

        def project(shift: Shift) -> tuple[Tensor, Tensor]:
            mean = shift.mean
            rows = cotangent[shift.chunk.first : shift.chunk.last]
            return (mean * rows.to(mean)).sum(1), mean

        return self._differentiated(theta, project)

    def gram(
        self, theta: Float[Tensor, "n s"], tangent: Float[Tensor, "n s"]
    ) -> Float[Tensor, "n s"]:
        """Return ``JᵀJ tangent`` row by row, ``J`` the Jacobian of *every* read-out position.

        Nothing is averaged: ``JᵀJ`` is the sum over prompts and read-out positions. Exact: one
        forward-mode pass and one backward pass.

        Raises:
            EffectError: A value is NaN or infinite.
            ModelError: An operation of the model has no forward-mode derivative.
        """

        def run(chunk: Chunk) -> Tensor:
            rows = slice(chunk.first, chunk.last)
            with torch.no_grad(), _plain_kernels(self.lm), forward_ad.dual_level():
                dual = forward_ad.make_dual(theta[rows].clone(), tangent[rows].to(theta))
                moved = forward_ad.unpack_dual(self._shift(dual, chunk).values).tangent
            at = theta[rows].detach().clone().requires_grad_(True)
            with torch.enable_grad():
                values = self._shift(at, chunk).values
                return torch.autograd.grad(values, at, moved)[0]

        with _forward_mode(self.lm):
            return self._summed(theta, run)

    def push(
        self, tangent: Float[Tensor, "n s"], layers: Sequence[int]
    ) -> Float[Tensor, "l n p k d"]:
        """Return the Jacobians at zero of several layers times ``tangent``, from one pass.

        Args:
            tangent: Perturbations.
            layers: Layers of the slice, in order.

        Returns:
            The change of every read-out position of every prompt at each layer, none averaged.

        Raises:
            EffectError: A value is NaN or infinite.
            ModelError: An operation of the model has no forward-mode derivative.
        """
        pushed = self.rest.new_zeros(len(layers), len(tangent), *self.rest.shape)

        def run(chunk: Chunk) -> Tensor:
            rows, prompts = slice(chunk.first, chunk.last), slice(chunk.start, chunk.stop)
            with torch.no_grad(), _plain_kernels(self.lm), forward_ad.dual_level():
                dual = forward_ad.make_dual(torch.zeros_like(tangent[rows]), tangent[rows].clone())
                for into, stream in zip(pushed, self._streams(dual, chunk, layers), strict=True):
                    moved = forward_ad.unpack_dual(stream).tangent
                    into[rows, prompts] = self._readout_of(moved, chunk)
            return pushed[:, rows, prompts].square().sum((0, 2, 3, 4))[:, None]

        with _forward_mode(self.lm):
            self._summed(tangent, run)
        return pushed

    def pull(
        self, cotangent: Float[Tensor, "l n p k d"], layers: Sequence[int]
    ) -> Float[Tensor, "n s"]:
        """Return the transposed Jacobians of `push` times cotangents, summed over the layers.

        Raises:
            EffectError: A value is NaN or infinite.
        """
        zero = self.rest.new_zeros(cotangent.shape[1], self.kind.size).to(self.device)

        def run(chunk: Chunk) -> Tensor:
            rows, prompts = slice(chunk.first, chunk.last), slice(chunk.start, chunk.stop)
            at = zero[rows].requires_grad_(True)
            with torch.enable_grad():
                streams = self._streams(at, chunk, layers)
                seen = [self._readout_of(stream, chunk) for stream in streams]
                return torch.autograd.grad(seen, at, list(cotangent[:, rows, prompts]))[0]

        return self._summed(zero, run)

    def value_and_grad(
        self, theta: Float[Tensor, "n s"], objective: Callable[[Shift], Float[Tensor, "n"]]
    ) -> tuple[Float[Tensor, "n"], Float[Tensor, "n s"]]:
        """Differentiate an objective of the shift, one value a perturbation.

        Args:
            theta: Perturbations.
            objective: Maps the shift of a chunk to a value for each of its perturbations; the value
                over all prompts is the sum of its values over chunks of prompts.

        Raises:
            EffectError: A value or gradient is NaN or infinite.
        """

        def alone(shift: Shift) -> tuple[Tensor, Tensor]:
            value = objective(shift)
            return value, value[:, None]

        value, gradient = self._differentiated(theta, alone)
        return value[:, 0], gradient

    def hvp(
        self,
        theta: Float[Tensor, "n s"],
        cotangent: Float[Tensor, "n d"],
        tangent: Float[Tensor, "n s"],
    ) -> Float[Tensor, "n s"]:
        """Return the Hessian of ``⟨cotangent, Δ⟩`` at ``θ`` times ``tangent``, row by row, exactly.

        Reverse mode over reverse mode, twice as much work as `vjp`.

        Raises:
            EffectError: A value is NaN or infinite.
            ModelError: An operation of the model has no second derivative.
        """

        def along(shift: Shift) -> Tensor:
            mean = shift.mean
            return (mean * cotangent[shift.chunk.first : shift.chunk.last].to(mean)).sum(1)

        return self.objective_hvp(theta, along, tangent)

    def objective_hvp(
        self,
        theta: Float[Tensor, "n s"],
        objective: Callable[[Shift], Float[Tensor, "n"]],
        tangent: Float[Tensor, "n s"],
    ) -> Float[Tensor, "n s"]:
        """Return the Hessian of an objective (see `value_and_grad`) times ``tangent``, exactly.

        Raises:
            EffectError: A value is NaN or infinite.
            ModelError: An operation of the model has no second derivative.
        """

        def run(chunk: Chunk) -> Tensor:
            at, v = (x[chunk.first : chunk.last] for x in (theta, tangent))
            at = at.detach().clone().requires_grad_(True)
            value = objective(self._shift(at, chunk)).sum()
            (slope,) = torch.autograd.grad(value, at, create_graph=True)
            return torch.autograd.grad((slope * v.to(slope)).sum(), at)[0]

        return self._twice(theta, run)

    def second_derivative(
        self, theta: Float[Tensor, "n s"], tangent: Float[Tensor, "n s"]
    ) -> Float[Tensor, "n d"]:
        """Return the second derivative of ``Δ(θ + ε tangent)`` in ``ε`` at zero, row by row.

        Exactly, as the derivative in ``w`` of ``⟨tangent, hvp(θ, w, tangent)⟩``, which is linear in
        it: reverse mode three times over, in seven times the memory of `vjp`. Nested forward mode
        needs less of it but no less time, and PyTorch's leaves a term out of LayerNorm's second
        derivative without a word (pytorch/pytorch#196700; #198017 has more of the kind).

        Raises:
            EffectError: A value is NaN or infinite.
            ModelError: An operation of the model has no second derivative.
        """

        def run(chunk: Chunk) -> Tensor:
            at, v = (x[chunk.first : chunk.last] for x in (theta, tangent))
            at = at.detach().clone().requires_grad_(True)
            w = at.new_zeros(len(at), self.width, requires_grad=True)
            slope = self._slope(at, w, chunk)
            (bend,) = torch.autograd.grad((slope * v).sum(), at, create_graph=True)
            return torch.autograd.grad((bend * v).sum(), w)[0]

        return self._twice(theta, run)

    def _slope(self, theta: Tensor, cotangent: Tensor, chunk: Chunk) -> Tensor:
        """Return the gradient of ``⟨cotangent, Δ⟩``, itself differentiable."""
        mean = self._shift(theta, chunk).mean
        return torch.autograd.grad((mean * cotangent.to(mean)).sum(), theta, create_graph=True)[0]

    def _twice(self, theta: Tensor, run: Callable[[Chunk], Tensor]) -> Tensor:
        """Sum over chunks what takes second derivatives."""
        try:
            with torch.enable_grad(), _plain_kernels(self.lm):
                return self._summed(theta, lambda chunk: run(chunk).detach())
        except RuntimeError as error:
            if "is not implemented" not in str(error):
                raise
            raise ModelError(
                f"{self.lm.name} has an operation without second derivative "
                f"({str(error).splitlines()[0]}): use a method that needs first derivatives only"
            ) from error

    def _differentiated(
        self, theta: Tensor, objective: Callable[[Shift], tuple[Tensor, Tensor]]
    ) -> tuple[Tensor, Tensor]:
        """Return the second of what ``objective`` gives, and the gradient of the first."""

        def run(chunk: Chunk) -> Tensor:
            rows = theta[chunk.first : chunk.last].detach().clone().requires_grad_(True)
            with torch.enable_grad():
                value, kept = objective(self._shift(rows, chunk))
                (gradient,) = torch.autograd.grad(value.sum(), rows)
            return torch.cat([kept.detach().to(gradient), gradient], 1)

        joined = self._summed(theta, run)
        return joined[:, : -theta.shape[1]], joined[:, -theta.shape[1] :]

    def shift(self, theta: Float[Tensor, "n s"], chunk: Chunk | None = None) -> Shift:
        """Return the change at every read-out position, differentiable in ``theta``.

        Args:
            theta: All perturbations.
            chunk: Which of them on which prompts; by default all on all, in one pass.
        """
        chunk = chunk or Chunk(0, len(theta), 0, len(self.batch))
        return self._shift(theta[chunk.first : chunk.last], chunk)

    # -- chunks ------------------------------------------------------------------------------

    def _chunks(self, n: int) -> list[Chunk]:
        rows = max(1, self.tokens_per_chunk // self.batch.ids.shape[1])
        p = len(self.batch)
        wide = _even(p, rows)
        tall = 1 if self.kind.alone else _even(n, max(1, rows // wide))
        return [
            Chunk(i, min(i + tall, n), j, min(j + wide, p))
            for i in range(0, n, tall)
            for j in range(0, p, wide)
        ]

    def _tokens(self, chunk: Chunk) -> int:
        rows = (chunk.last - chunk.first) * (chunk.stop - chunk.start)
        return rows * self.batch.ids.shape[1]

    def _summed(self, theta: Tensor, run: Callable[[Chunk], Tensor]) -> Tensor:
        """Sum ``run`` over chunks of prompts, for every perturbation; halve on out-of-memory."""
        total: Tensor | None = None
        work = self._chunks(len(theta))[::-1]
        while work:
            chunk = work.pop()
            halves = _halves(chunk)
            if halves and self._tokens(chunk) > self.tokens_per_chunk:
                work += halves[::-1]  # made before memory ran out
                continue
            try:
                part = run(chunk)
            except RuntimeError as error:
                if not halves or not should_reduce_batch_size(error):
                    raise
                self.tokens_per_chunk = self._tokens(chunk) // 2
                self._calls.clear()
                work += halves[::-1]
                continue
            if total is None:
                total = part.new_zeros(len(theta), part.shape[1])
            total[chunk.first : chunk.last] += part
        assert total is not None, "at least one perturbation"
        return self._finite(total)

    def _finite(self, values: Tensor) -> Tensor:
        if not torch.isfinite(values).all():
            bad = int((~torch.isfinite(values)).any(1).sum())
            raise EffectError(
                f"{bad} of {len(values)} perturbations make the stream at layer {self.target} NaN "
                "or infinite: use a smaller radius, or a wider dtype"
            )
        return values

    # -- the replay --------------------------------------------------------------------------

    def _shift(self, theta: Tensor, chunk: Chunk) -> Shift:
        prompts = slice(chunk.start, chunk.stop)
        (came,) = self._streams(theta, chunk, [self.target])
        moved = self._readout_of(came - self.rest[prompts, self._still :], chunk)
        return Shift(moved, self._weights[prompts].to(came.device), chunk)

    def _streams(
        self, theta: Tensor, chunk: Chunk, layers: Sequence[int]
    ) -> list[Float[Tensor, "n p k d"]]:
        """Return the stream leaving each of some layers, at tokens that are read and replayed."""
        prompts, tokens = slice(chunk.start, chunk.stop), slice(self._first, None)
        start = self.start[prompts, tokens]
        n, (p, t, d) = len(theta), start.shape
        items = range(chunk.first, chunk.last)
        added = self.kind.added(theta.to(start), items, range(-t, 0))
        stream = start.expand(n, p, t, d)
        if added is not None:
            at = self._perturbed[prompts, tokens].to(start.device)
            stream = stream + added * at[None, :, :, None]
        stream = stream.reshape(n * p, t, d)
        arguments, streams = self._arguments(n, chunk), []
        first = self._window + self._still - self._first
        with (
            self.kind.changing(self.lm, theta, items),
            self._remembering(n, chunk),
            narrowed(self._tail if first else [], first),
        ):
            for layer in range(self.source + 1, max(layers) + 1):
                call = arguments[layer - self.source - 1]
                stream = stream_out(self.lm.blocks[layer](stream, *call.args, **call.kwargs))
                if layer in layers:
                    streams.append(stream[:, first:].reshape(n, p, -1, d).to(self.rest))
        return streams

    @property
    def _still(self) -> int:
        """How many of the tokens that are read come before the first perturbed one."""
        return max(0, self._first - self._window)

    def _readout_of(self, values: Tensor, chunk: Chunk) -> Float[Tensor, "n p k d"]:
        """Return what is replayed as the read-out has it: zero at padding, and at still tokens."""
        read = self._read[chunk.start : chunk.stop, self._still :].to(values.device)
        return F.pad(values * read[None, :, :, None], (0, 0, self._still, 0))

    def _arguments(self, n: int, chunk: Chunk) -> list[Call]:
        """Return how the model calls the slice's blocks for ``n`` perturbations on some prompts."""
        key = (n, chunk.start, chunk.stop)
        if key not in self._calls:
            ids = self.batch.ids[chunk.start : chunk.stop, self._first :].repeat(n, 1)
            mask = self.batch.mask[chunk.start : chunk.stop].repeat(n, 1)
            with _recording(self.lm, self.source, self.target) as calls:
                self.lm.forward(ids, mask, cache=self._past)
            if len(self._calls) == CALLS_KEPT:
                del self._calls[next(iter(self._calls))]
            self._calls[key] = calls
        return self._calls[key]

    @contextmanager
    def _remembering(self, n: int, chunk: Chunk) -> Iterator[None]:
        """Let the cache that blocks were called with hold the past of some rows, for a replay."""
        if self._past is None:
            yield
            return
        kept = self._past.layers
        self._past.layers = [copy.copy(layer) for layer in kept]
        for layer in self._past.layers[self.source + 1 : self.target + 1]:
            layer.keys, layer.values = (
                known[chunk.start : chunk.stop].expand(n, -1, -1, -1, -1).flatten(0, 1)
                for known in (layer.keys, layer.values)
            )
        try:
            yield
        finally:
            self._past.layers = kept


@contextmanager
def _plain_kernels(lm: LanguageModel) -> Iterator[None]:
    """Compute attention and experts from elementary operations.

    The fused kernels of both have neither a forward-mode nor a second derivative.
    """
    before = getattr(lm.unwrapped.config, "_experts_implementation", None)
    switch = before == "grouped_mm" and lm.unwrapped._can_set_experts_implementation()
    try:
        if switch:
            lm.unwrapped.set_experts_implementation("eager")
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        if switch:
            lm.unwrapped.set_experts_implementation(before)


@contextmanager
def _forward_mode(lm: LanguageModel) -> Iterator[None]:
    """Say which model cannot be differentiated in forward mode."""
    try:
        yield
    except NotImplementedError as error:
        raise ModelError(
            f"{lm.name} has an operation without forward-mode derivative "
            f"({str(error).splitlines()[0]}): use a method that needs no Jacobian product"
        ) from error


class _Reached(BaseException):
    """The recorder has heard of every block it wants to know about."""


@contextmanager
def _recording(lm: LanguageModel, source: int, target: int) -> Iterator[list[Call]]:
    """Let the model's forward run with blocks that record their arguments and compute nothing."""
    calls: list[Call] = []

    def recorder(layer: int) -> Callable[..., Any]:
        def forward(*args: Any, **kwargs: Any) -> Any:
            stream, call = stream_in(args, kwargs)
            if layer > source:
                calls.append(call)
            if layer == target:
                raise _Reached
            return lm.stack.shaped(layer, stream)

        return forward

    try:
        with replaced(lm.blocks[: target + 1], [recorder(i) for i in range(target + 1)]):
            yield calls
    except _Reached:
        pass


def _even(total: int, most: int) -> int:
    """Return the size of the fewest equal parts of ``total`` that are no larger than ``most``."""
    return -(-total // -(-total // most))


def _halves(chunk: Chunk) -> list[Chunk]:
    first, last, start, stop = chunk
    if last - first > 1:
        middle = (first + last) // 2
        return [Chunk(first, middle, start, stop), Chunk(middle, last, start, stop)]
    if stop - start > 1:
        middle = (start + stop) // 2
        return [Chunk(first, last, start, middle), Chunk(first, last, middle, stop)]
    return []
