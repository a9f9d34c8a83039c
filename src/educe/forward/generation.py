"""Batched generation: one perturbation a row, prompt work below the source done once a prompt.

A row is a perturbation, a prompt and a sample. Blocks that no perturbation reaches see the same
prompt whatever happens after them, so they run once a prompt; their keys and values, and the stream
they end in, are handed to every row of that prompt, and only the blocks above run a row at a time.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import Any, NamedTuple, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import DynamicCache

from educe.errors import SteeringError
from educe.forward.chunks import Chunker, halved
from educe.forward.continuations import prefilled
from educe.forward.decoding import Told, Way, Written, decoded, end_tokens, in_decodings, kept
from educe.forward.roomy import with_room
from educe.model.batch import PromptBatch
from educe.model.blocks import replaced, stream_in
from educe.model.language import LanguageModel
from educe.perturbation import positions as where
from educe.perturbation.kind import Keep
from educe.perturbation.kinds import Kind, Vectors
from educe.rows import Row

T = TypeVar("T")

#: Rows that decode together; halved when memory runs out.
ROWS_PER_BATCH = {"cpu": 128, "cuda": 256}


class Completion(NamedTuple):
    """What one perturbed model wrote for one prompt in one sample.

    Example:
        >>> theta = part.kind.draw(1, torch.Generator().manual_seed(0))
        >>> how = {"kind": part.kind, "max_new_tokens": 3}
        >>> ((one,),) = educe.generate(lm, part.batch, educe.rows_of(1, 1), theta, **how)
        >>> one.row.prompt, one.finished or len(one.tokens) == 3
        (0, True)
    """

    row: Row
    text: str
    tokens: tuple[int, ...]  #: without the token that ended it
    finished: bool  #: whether the model ended it, rather than the limit on its length
    #: log-likelihood of each token under the model that wrote it, in nats, at temperature 1
    logprobs: tuple[float, ...] = ()


def completed(lm: LanguageModel, row: Row, written: Written) -> Completion:
    """Return what was written of a row, as a text."""
    tokens, logprobs = tuple(written.tokens), tuple(written.logprobs)
    text = lm.text(tokens, skip_special_tokens=True)
    return Completion(row, text, tokens, written.finished, logprobs)


#: What transformers' `generate` takes from a model's generation_config and changes texts by, with
#: the value that changes none; so do None and what is empty.
GENERATION_CONFIG = {
    **dict.fromkeys(("temperature", "top_p", "typical_p", "guidance_scale"), 1.0),
    **dict.fromkeys(("repetition_penalty", "encoder_repetition_penalty"), 1.0),
    **dict.fromkeys(("num_beams", "num_beam_groups"), 1),
    **dict.fromkeys(("do_sample", "top_k", "min_p", "top_h", "epsilon_cutoff", "eta_cutoff"), 0),
    **dict.fromkeys(("no_repeat_ngram_size", "encoder_no_repeat_ngram_size"), 0),
    **dict.fromkeys(("min_length", "min_new_tokens", "diversity_penalty", "token_healing"), 0),
    **dict.fromkeys(("bad_words_ids", "suppress_tokens", "begin_suppress_tokens", "sequence_bias")),
    **dict.fromkeys(("forced_bos_token_id", "forced_eos_token_id", "stop_strings", "max_time")),
    **dict.fromkeys(("exponential_decay_length_penalty", "penalty_alpha", "dola_layers")),
    **dict.fromkeys(("watermarking_config", "constraints", "force_words_ids")),
}


def left_out(lm: LanguageModel) -> list[str]:
    """Return what to say of a model whose generation_config asks for more than `generate` does.

    `generate` takes no more from it than the tokens that end a text. Effects, side effects and
    likelihoods are measured on the model's own probabilities, and what it writes shall follow the
    same: a penalty for repetition, for instance, would make each token depend on the words of the
    prompt beside what the model makes of them, and would hide texts that a perturbation broke.
    """
    config = getattr(lm.unwrapped, "generation_config", None)
    asked = []
    for name, idle in GENERATION_CONFIG.items():
        value = getattr(config, name, None)
        if value not in (None, idle, [], {}, ""):
            short = isinstance(value, (int, float)) and not isinstance(value, bool)
            asked.append(f"{name} {value:g}" if short else name)
    if not asked:
        return []
    return [
        f"the model's generation_config asks for {', '.join(asked)}, which are not applied: texts "
        "follow the model's own probabilities"
    ]


def rows_of(n: int, prompts: int, *, samples: int = 1) -> list[Row]:
    """Return every row of the perturbations 1 to ``n``, in order.

    Example:
        >>> [tuple(row)[:3] for row in educe.rows_of(1, 2, samples=2)]
        [(1, 0, 0), (1, 0, 1), (1, 1, 0), (1, 1, 1)]
    """
    return [Row(i + 1, j, k) for i in range(n) for j in range(prompts) for k in range(samples)]


def generate(
    lm: LanguageModel,
    batch: PromptBatch,
    rows: Sequence[Row],
    theta: Float[Tensor, "n s"] | None = None,
    *,
    kind: Kind | None = None,
    numbers: Sequence[int] | None = None,
    max_new_tokens: int = 32,
    temperature: float = 0.0,
    seed: int = 0,
    rows_per_batch: int | Chunker | None = None,
    told: Told | None = None,
    ways: Mapping[Row, Way] | None = None,
    top: int = 0,
) -> Iterator[list[Completion]]:
    """Let the model write, one list of completions a batch, in no particular order.

    Args:
        lm: The model.
        batch: The prompts.
        rows: What to write.
        theta: The perturbations; may be left out when every row is unperturbed.
        kind: Their kind: what they change, and where.
        numbers: What rows call the perturbations; by default 1, 2, and so on.
        max_new_tokens: The most tokens to write.
        temperature: 0 for the most likely token; else the softmax temperature.
        seed: Of the samples. What a row draws depends on the seed and the row alone, not on the
            batch in which it runs.
        rows_per_batch: Rows that decode together; or what learns, from one call to the next, how
            many of them memory holds.
        told: Is told of a row after each token, and says whether to end it; what it raises ends
            the writing.
        ways: Of rows that have a limit, a temperature and draws of their own.
        top: How many of the likeliest tokens ``told`` hears of beside each token.

    Raises:
        LayerError: There is no such layer.
        SteeringError: The perturbations are not of this kind, or one never reached the model.

    Example:
        >>> found = educe.search(part, "random", n=3, radius=20.0)
        >>> rows = educe.rows_of(len(found), len(prompts))
        >>> texts = {}
        >>> for batch in educe.generate(lm, part.batch, rows, found.theta, kind=found.kind):
        ...     texts |= {completion.row: completion.text for completion in batch}
        >>> len(texts)
        6
    """

    def write(decoder: _Decoder) -> list[Completion]:
        return decoder.write(max_new_tokens, temperature, seed, told, ways, top)

    yield from _in_batches(lm, batch, rows, theta, kind, numbers, rows_per_batch, write)


def next_logits(
    lm: LanguageModel,
    batch: PromptBatch,
    rows: Sequence[Row],
    theta: Float[Tensor, "n s"],
    *,
    kind: Kind,
    numbers: Sequence[int] | None = None,
    rows_per_batch: int | None = None,
) -> Iterator[tuple[list[Row], Float[Tensor, "r v"]]]:
    """Return the logits of the first token of each answer, a batch of rows at a time.

    The arguments are those of `generate`.
    """

    def first(decoder: _Decoder) -> tuple[list[Row], Tensor]:
        return list(decoder.rows), decoder.prefill()[0][:, -1]

    yield from _in_batches(lm, batch, rows, theta, kind, numbers, rows_per_batch, first)


def rows_at_once(lm: LanguageModel) -> int:
    """Return how many rows of a model decode together, where memory is enough."""
    return ROWS_PER_BATCH.get(lm.device.type, 64)


def _in_batches(
    lm: LanguageModel,
    batch: PromptBatch,
    rows: Sequence[Row],
    theta: Tensor | None,
    kind: Kind | None,
    numbers: Sequence[int] | None,
    rows_per_batch: int | Chunker | None,
    work: Callable[[_Decoder], T],
) -> Iterator[T]:
    """Do some work for all rows, as many at a time as fit into memory."""
    if kind is None:
        kind = Vectors(0, lm.width)
    if theta is None:
        theta = torch.zeros(0, kind.size)
    if theta.ndim != 2 or theta.shape[1] != kind.size:
        raise SteeringError(
            f"{kind.name} have shape {tuple(theta.shape)}, expected [n, {kind.size}]"
        )
    items = {0: -1}
    items |= {number: item for item, number in enumerate(numbers or range(1, len(theta) + 1))}
    if unknown := [row for row in rows if row.perturbation not in items]:
        raise SteeringError(f"{unknown[0]} names none of {len(theta)} perturbations")
    layer = lm.source(kind.before)
    chunker = rows_per_batch or rows_at_once(lm)
    chunker = chunker if isinstance(chunker, Chunker) else Chunker(chunker)
    prefix: Prefix | None = None

    def run(now: Sequence[Row]) -> T:
        nonlocal prefix
        wanted = sorted({row.prompt for row in now})
        if prefix is None or not set(wanted) <= set(prefix.prompts):
            prefix = Prefix(lm, batch, wanted, layer)
        decoder = _Decoder(lm, prefix, now, theta, kind, [items[r.perturbation] for r in now])
        with decoder.at_work():
            return work(decoder)

    chunks = in_decodings(rows, kind.alone, chunker.most)
    for _, done in chunker.each(chunks, run, len, halved):
        yield done


class Prefix:
    """What blocks ``0 .. source`` make of some prompts: their cache and the stream they end in.

    They run when that is asked for first: rows that nothing perturbs do without.
    """

    def __init__(
        self, lm: LanguageModel, batch: PromptBatch, prompts: list[int], source: int
    ) -> None:
        self.lm, self.prompts, self.source = lm, prompts, source
        self.batch = batch.select(prompts).trimmed()

    @cached_property
    def _ran(self) -> tuple[Tensor, list[Any]]:
        lm, source = self.lm, self.source
        cache = DynamicCache(config=lm.unwrapped.config)
        with lm.watching([source]) as streams, lm.ending(source):
            lm.forward(self.batch.ids, self.batch.mask, cache=cache)
        if source not in streams:
            raise SteeringError(f"block {source} was never called: nothing can be added after it")
        return streams[source], cache.layers[: source + 1]

    @property
    def stream(self) -> Tensor:
        """The stream that they end in, ``[prompts, tokens, width]``."""
        return self._ran[0]

    def lower(self, lines: Tensor) -> list[Any]:
        """Return the cache layers of blocks ``0 .. source`` for rows of these prompts."""
        picked = copy.deepcopy(self._ran[1])
        for layer in picked:
            layer.reorder_cache(lines)
        return picked


class _Decoder:
    """One batch of rows, from prefill to the last token."""

    def __init__(
        self,
        lm: LanguageModel,
        prefix: Prefix,
        rows: Sequence[Row],
        theta: Tensor,
        kind: Kind,
        items: list[int],
    ) -> None:
        self.lm, self.rows, self.kind, self.items = lm, rows, kind, items
        self.source = prefix.source
        self.lines = torch.tensor([prefix.prompts.index(row.prompt) for row in rows])
        self.prefix = prefix
        chosen = torch.tensor(items)
        zero = torch.zeros(1, kind.size)
        known = torch.cat([theta.detach().cpu().double(), zero.double()])
        self.perturbed = bool((chosen >= 0).any())
        like = prefix.stream if self.perturbed else torch.empty(0, dtype=lm.dtype, device=lm.device)
        self.theta = known[chosen].to(like)
        self.alive = torch.arange(len(rows))  # the rows that are still being written
        self.ends = end_tokens(lm)
        self._at: Tensor | None = None  # the tokens of this pass that are perturbed; None for all

    @contextmanager
    def at_work(self) -> Iterator[None]:
        """Change the model's blocks as the perturbations do, if they do."""
        self._keep: Keep = lambda items: None
        if not self.perturbed:
            yield
            return
        with self.kind.changing(self.lm, self.theta, self.items, lambda: self._at) as self._keep:
            yield

    def _drop(self, going: Tensor) -> None:
        """Leave only some of the rows."""
        self.alive = self.alive[going]
        self.theta = self.theta[going.to(self.theta.device)]
        self._keep(going)

    def _added(self, places: range) -> Tensor | None:
        """Return what is added at some places of the rows, ``[rows, places, width]``."""
        items = [self.items[line] for line in self.alive.tolist()]
        added = self.kind.added(self.theta, items, places)
        return None if added is None else added[:, 0]

    def write(
        self,
        limit: int,
        temperature: float,
        seed: int,
        told: Told | None,
        ways: Mapping[Row, Way] | None,
        top: int,
    ) -> list[Completion]:
        """Write all rows to their end, or to ``limit`` tokens."""
        logits, cache, mask = self.prefill()
        with_room(cache, limit)

        def step(tokens: Tensor, going: Tensor | None) -> Tensor:
            nonlocal mask
            if going is not None:
                self._drop(going)
                mask = kept(cache, mask, going)
            mask = torch.cat([mask, mask.new_ones(len(mask), 1)], 1)
            return self._step(tokens[:, None], mask, cache)[:, -1]

        how = (limit, temperature, seed, told, ways, top)
        written = decoded(self.rows, logits[:, -1], step, self.ends, *how)
        return [completed(self.lm, row, own) for row, own in zip(self.rows, written, strict=True)]

    def prefill(self) -> tuple[Tensor, Any, Tensor]:
        """Run the prompts; return the last logits, the cache of all blocks, and the mask."""
        lm, prefix, lines = self.lm, self.prefix, self.lines
        if not self.perturbed:
            read = prefix.batch.read
            return prefilled(lm, [read[line] for line in lines.tolist()])
        lines = lines.to(prefix.stream.device)
        batch = prefix.batch.select(lines.tolist())
        mask = batch.mask
        start = prefix.stream[lines]
        added = self._added(range(-mask.shape[1], 0))
        self._at = batch.at(self.kind.positions)
        if added is not None:
            start = start + added * self._at.to(start)[:, :, None]
        reached = []

        def passed(layer: int) -> Any:
            def forward(*args: Any, **kwargs: Any) -> Any:
                stream, _ = stream_in(args, kwargs)
                if layer == self.source:
                    reached.append(layer)
                    stream = start
                return lm.stack.shaped(layer, stream)

            return forward

        cache = DynamicCache(config=lm.unwrapped.config)
        below = range(self.source + 1)
        with replaced(lm.blocks[: self.source + 1], [passed(i) for i in below]):
            logits = lm.forward(batch.ids, mask, cache=cache)
        if not reached:
            raise SteeringError(
                f"block {self.source} was never called: the text would be unperturbed"
            )
        cache.layers[: self.source + 1] = prefix.lower(lines)
        return logits, cache, mask

    def _step(self, tokens: Tensor, mask: Tensor, cache: Any) -> Tensor:
        added, meant = None, where.in_generated(self.kind.positions)
        self._at = torch.full(tokens.shape, meant)
        if self.perturbed and meant:
            place = mask.shape[1] - self.prefix.batch.mask.shape[1] - 1
            added = self._added(range(place, place + 1))
        if added is None:
            return self.lm.forward(tokens, mask, cache=cache)
        with self.lm.adding(self.source, lambda stream: added) as calls:
            logits = self.lm.forward(tokens, mask, cache=cache)
        if calls[0] != 1:
            raise SteeringError(
                f"block {self.source} ran {calls[0]} times for one token: the text would not be "
                "what the perturbed model writes"
            )
        return logits
