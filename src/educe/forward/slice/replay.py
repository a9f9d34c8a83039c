"""Replay: run the blocks between source and target again, for rows of perturbation × prompt.

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
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from educe.errors import EffectError, LayerError, PositionsError
from educe.forward.chunks import Chunk, Chunker
from educe.forward.slice.norms import after_first, median_norm
from educe.forward.slice.shift import Shift
from educe.model.batch import PromptBatch
from educe.model.blocks import Call, narrowed, replaced, stream_in, stream_out
from educe.model.language import LanguageModel, loaded
from educe.model.prompts import Prompt
from educe.perturbation.kinds import Kind, Vectors

# For so many shapes of a batch it is remembered how the model calls its blocks. Asking again costs
# less than a hundredth of a replay; masks and rotary angles that are kept cost memory.
CALLS_KEPT = 8

# What of a block's past is keys and values, one for each token, and nothing else.
KEYS_AND_VALUES = (DynamicLayer, DynamicSlidingWindowLayer)

T = TypeVar("T")


class Replay:
    """What a slice keeps of the unperturbed model, and the perturbed rows it runs beside that.

    Its arguments and what it has are those of `educe.forward.slice.Slice`.
    """

    def __init__(
        self,
        lm: LanguageModel,
        batch: PromptBatch | Sequence[Prompt],
        *,
        source: int | float,
        target: int | float,
        positions: str = "all",
        readout: str = "last:3",
        tokens_per_chunk: int | None = None,
    ) -> None:
        batch = batch if isinstance(batch, PromptBatch) else loaded(lm).encode(batch)
        self.lm, self.batch = lm, batch
        self.calibrations: dict[tuple[Kind, int], Any] = {}
        self.source, self.target = lm.layer(source), lm.layer(target)
        if self.source >= self.target:
            raise LayerError(
                f"source {self.source} is not below target {self.target}: "
                "the effect is read in a later layer than the one perturbed"
            )
        lm.source(self.source)
        self.readout, read = readout, batch.at(readout)
        if not read.any(1).all():
            raise PositionsError(f"read-out {readout!r} reads nothing: use last:k, all or prompt")
        self._take(Vectors(self.source, lm.width, positions))
        self._window = int(torch.where(read.any(0))[0][0])
        read = read[:, self._window :]
        share = read.to(self.work_dtype)
        self._weights = share / share.sum(1, keepdim=True) / len(batch)
        self._read = read
        self._chunker = Chunker(tokens_per_chunk) if tokens_per_chunk else Chunker.of(lm.device)
        self._tail = lm.tail(self.target)
        self._run_unperturbed()
        self._run_past()

    def _take(self, kind: Kind) -> None:
        self.kind, self.positions = kind, kind.positions
        self._perturbed = self.batch.at(kind.positions)
        if not self._perturbed.any(1).all():
            raise PositionsError(
                f"positions {kind.positions!r} leave a prompt unperturbed, so there is nothing to "
                "search"
            )
        if not (self._perturbed.cumsum(1).bool() & self.batch.at(self.readout)).any():
            raise PositionsError(
                f"read-out {self.readout!r} comes before the tokens that positions "
                f"{kind.positions!r} perturb, so that every effect is zero: read later tokens, or "
                "perturb earlier ones"
            )

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
        self.counted = after_first(self.batch.mask)
        self.median_norm = median_norm(self.start, self.counted)

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
        """Run all prompts, as many at once as fit."""

        def some(chunk: Chunk) -> T:
            prompts = slice(chunk.start, chunk.stop)
            return run(self.batch.ids[prompts], self.batch.mask[prompts])

        return [done for _, done in self._chunker.grid(some, 1, *self.batch.ids.shape)]

    # -- chunks ------------------------------------------------------------------------------

    @property
    def tokens_per_chunk(self) -> int:
        """Rows × tokens that run together; less than was asked for where memory ran out."""
        return self._chunker.most

    def _summed(self, theta: Tensor, run: Callable[[Chunk], Tensor]) -> Tensor:
        """Sum ``run`` over chunks of prompts, for every perturbation."""
        total: Tensor | None = None
        for chunk, part in self._chunker.grid(
            run,
            len(theta),
            *self.batch.ids.shape,
            alone=self.kind.alone,
            relieve=lambda: self._calls.clear(),
        ):
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
            self.kind.changing(self.lm, theta, items, lambda: self._perturbed[prompts, tokens]),
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
            with recording(self.lm, self.source, self.target) as calls:
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


class _Reached(BaseException):
    """The recorder has heard of every block it wants to know about."""


@contextmanager
def recording(lm: LanguageModel, source: int, target: int) -> Iterator[list[Call]]:
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
