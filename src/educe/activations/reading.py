"""Activations that really occur, read from a model as it reads text, batch by batch.

What is left out is no part of what text does to activations. The first token of a text: whatever it
is, its activation is nearly the same, and in many models a hundred times as long as the others. Any
other token with such a massive activation (a coordinate a thousand times the median one; Sun et al.
2024). And tokens that a text shares with the one before it from its beginning on, such as a system
prompt: their activations are equal, and would be counted many times.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from educe.activations import corpus
from educe.forward.slice.norms import after_first
from educe.model.batch import PromptBatch
from educe.model.blocks import stream_out
from educe.model.language import LanguageModel
from educe.model.prompts import Prompt

#: A token whose largest coordinate is so many times its median one has a massive activation.
MASSIVE = 1000.0
#: The longest piece of a document that is read at once, in tokens.
PIECE = 256
#: Tokens that run together, and pieces that are read ahead to put like lengths together.
TOKENS_PER_BATCH, AHEAD = {"cpu": 2048, "cuda": 16384}, 128


class Place(NamedTuple):
    """Where activations are read.

    Attributes:
        layer: A block.
        part: The ``stream`` that leaves it; or what its ``attention`` or its ``mlp`` reads.
    """

    layer: int
    part: Literal["stream", "attention", "mlp"] = "stream"

    def __str__(self) -> str:
        return (
            f"resid_post.{self.layer}" if self.part == "stream" else f"{self.part}_in.{self.layer}"
        )


class Piece(NamedTuple):
    """A piece of a document."""

    document: int  #: which one
    ids: list[int]
    skip: int  #: tokens at its beginning that are not counted
    start: int = 0  #: the token of the document that it begins with


class Read(NamedTuple):
    """What was read of a batch of text."""

    rows: dict[Place, Float[Tensor, "n d"]]  #: activations, the tokens one after the other
    document: Int[Tensor, "n"]  #: which document each of these tokens is of
    pieces: list[Piece]
    first: dict[Place, float]  #: mean norm of the activations of first tokens
    massive: int  #: how many tokens but the first were left out for a massive activation


def read(lm: LanguageModel, pieces: Iterable[Piece], places: Sequence[Place]) -> Iterator[Read]:
    """Read `pieces` of documents, batch by batch; no activations but a batch's are in memory."""
    for batch in batches(pieces, TOKENS_PER_BATCH.get(lm.device.type, 2048)):
        yield _read(lm, batch, places)


def batches(pieces: Iterable[Piece], most: int) -> Iterator[list[Piece]]:
    """Put pieces of like lengths together, up to so many tokens with their padding."""
    coming = iter(pieces)
    while some := sorted(islice(coming, AHEAD), key=lambda piece: len(piece.ids)):
        batch: list[Piece] = []
        for piece in some:
            if batch and (len(batch) + 1) * len(piece.ids) > most:
                yield batch
                batch = []
            batch.append(piece)
        yield batch


def read_prompts(lm: LanguageModel, batch: PromptBatch, place: Place) -> Float[Tensor, "n d"]:
    """Return the activations of all tokens of some prompts, but first and massive ones."""
    with watching(lm, [place]) as seen:
        lm.forward(batch.ids, batch.mask)
    found = seen[place]
    return found[after_first(batch.mask).to(found.device) & ~is_massive(found)]


class _Seen(BaseException):
    """All places have been read; the rest of the model need not run."""


@contextmanager
def watching(lm: LanguageModel, places: Sequence[Place]) -> Iterator[dict[Place, Tensor]]:
    """Keep activations of one forward, ``[rows, tokens, width]``; it ends when all are there."""
    seen: dict[Place, Tensor] = {}

    def note(place: Place, value: Tensor) -> None:
        seen[place] = value
        if len(seen) == len(wanted):
            raise _Seen

    def after(place: Place) -> Callable[..., None]:
        return lambda module, args, output: note(place, stream_out(output))

    def before(place: Place) -> Callable[..., None]:
        def hook(module: Any, args: Any) -> None:
            note(place, args[0] if args[0].ndim == 3 else args[0][None])  # of a router, say

        return hook

    wanted = dict.fromkeys(places)
    # Found before any hook is there: looking for them runs the model.
    reads = {p: lm.reads(p.layer)[p.part] for p in wanted if p.part != "stream"}
    handles = [
        reads[p].register_forward_pre_hook(before(p))
        if p in reads
        else lm.blocks[p.layer].register_forward_hook(after(p))
        for p in wanted
    ]
    try:
        yield seen
    except _Seen:
        pass
    finally:
        for handle in handles:
            handle.remove()


def pieces(
    lm: LanguageModel, documents: Iterable[Prompt], *, limit: int | None = None
) -> Iterator[Piece]:
    """Cut documents into pieces; stop after so many counted tokens."""
    counted = 0
    last: dict[bool, list[int]] = {True: [], False: []}  # texts and chats by turns
    longest = min(PIECE, lm.context or PIECE)
    for number, document in enumerate(documents):
        ids = corpus.tokens(lm, document)
        chat = not isinstance(document, str)
        shared = _shared(ids, last[chat])
        last[chat] = ids[:longest]
        for start in range(0, len(ids), longest):
            piece = ids[start : start + longest]
            skip = max(1, shared - start)
            if len(piece) > skip:
                yield Piece(number, piece, skip, start)
                counted += len(piece) - skip
                if limit is not None and counted >= limit:
                    return


def _shared(ids: list[int], before: list[int]) -> int:
    """Return how many tokens two texts share at their beginning."""
    pairs = enumerate(zip(ids, before, strict=False))
    return next((at for at, (one, other) in pairs if one != other), min(len(ids), len(before)))


@torch.no_grad()
def _read(lm: LanguageModel, pieces: list[Piece], places: Sequence[Place]) -> Read:
    batch, first, counted = padded(lm, pieces)
    with watching(lm, places) as seen:
        lm.forward(batch.ids, batch.mask)
    flat = {p: x.reshape(*batch.ids.shape, -1).float().cpu() for p, x in seen.items()}
    massive = torch.stack([is_massive(x) for x in flat.values()]).any(0) & counted
    counted &= ~massive
    numbers = torch.tensor([piece.document for piece in pieces])
    return Read(
        rows={place: x[counted] for place, x in flat.items()},
        document=numbers[:, None].expand(counted.shape)[counted],
        pieces=pieces,
        first={place: float(x[first].norm(dim=1).mean()) for place, x in flat.items()},
        massive=int(massive.sum()),
    )


def padded(
    lm: LanguageModel, pieces: Sequence[Piece]
) -> tuple[PromptBatch, Bool[Tensor, "p t"], Bool[Tensor, "p t"]]:
    """Return pieces as a batch, its first tokens, and those that are counted."""
    batch = lm.pad([piece.ids for piece in pieces], [""] * len(pieces))
    at = torch.arange(batch.ids.shape[1])[None]
    begins = batch.ids.shape[1] - torch.tensor([len(piece.ids) for piece in pieces])
    skipped = begins + torch.tensor([piece.skip for piece in pieces])
    return batch, at == begins[:, None], at >= skipped[:, None]


def is_massive(x: Float[Tensor, "p t d"]) -> Bool[Tensor, "p t"]:
    """Return which tokens have a massive activation."""
    size = x.abs()
    return size.amax(-1) >= MASSIVE * size.median(-1).values
