"""The independent ways in which one layer affects the next, and where each is largest.

Of activations ``H`` at a layer, less their mean, with the singular value decomposition ``U S Vᵀ``,
the feature half ``S Vᵀ`` is multiplied with the weights by which the next block reads,

    S Vᵀ Ŵᵀ = A diag(σ) Bᵀ,        coefficient_i(h) = ⟨Ŵᵀb_i / σ_i, h - μ⟩

``Ŵ`` are queries, keys and values of a head, or of all, or gate and up, with the norm's gain folded
in (see `educe.reads.parts`). Each way is what is read together: its coefficient has variance one
over natural activations and is uncorrelated with those of all others, and ``σ_i²`` is how much of
what is read comes through it. These are the balanced components of ``Σ`` and ``ŴᵀŴ``
(`educe.activations.balanced`); that a token's activation is divided by its own norm before it is
read, and that attention adds to the stream before the MLP reads it, is left out.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from educe.activations import reading
from educe.activations.gradients import Layer
from educe.activations.reading import Piece, Place
from educe.model.language import LanguageModel
from educe.model.prompts import Prompt
from educe.progress import Reporter, Silent
from educe.reads.parts import Heads, Part

#: Ways that are shown of a part, and of a head; places that each is shown by.
SHOWN, OF_HEAD, WHERE = 3, 1, 5
#: The share of what is read whose ways are counted.
SHARE = 0.9
#: Tokens that are shown before the one where a way is large, and after.
BEFORE, AFTER = 12, 4


class Context(NamedTuple):
    """A token of the corpus at which a way is large."""

    coefficient: float  #: in standard deviations
    before: str
    token: str
    after: str


class Group(NamedTuple):
    """What some weights of the next block read of a layer.

    Attributes:
        layer: The layer whose stream is read.
        reader: ``attention``, ``mlp``, or ``head`` and its number.
        value: ``σ²`` of its ways, in descending order.
        read: The first of them, as rows whose product with ``h - μ`` is the coefficient.
        shown: Where each of these is largest, by magnitude; one token a document.
    """

    layer: int
    reader: str
    value: Float[Tensor, "k"]
    read: Float[Tensor, "m d"]
    shown: tuple[tuple[Context, ...], ...] = ()

    @property
    def number(self) -> int:
        """How many ways carry nine tenths of what is read."""
        return int((self.value.cumsum(0) < SHARE * self.value.sum()).sum()) + 1


def ways(
    covariance: Float[Tensor, "d d"], weight: Float[Tensor, "m d"], massive: Sequence[int] = ()
) -> tuple[Float[Tensor, "k"], Float[Tensor, "k d"]]:
    """Return how much is read in each way, and by which rows.

    Args:
        covariance: Of activations.
        weight: By which they are read, ``Ŵ``.
        massive: Coordinates to leave out.

    Example:
        >>> from educe.reads.ways import ways
        >>> covariance = torch.tensor([4.0, 1.0, 9.0]).diag()
        >>> weight = torch.tensor([[1.0, 2.0, 0.0]])
        >>> value, _ = ways(covariance, weight)
        >>> value.tolist()  # 4 · 1² + 1 · 2², in the one way that there is
        [8.0]
    """
    free = torch.ones(len(covariance), dtype=torch.float64)
    free[list(massive)] = 0
    rows, square = weight.double() * free, covariance.double()
    if len(rows) <= len(square):
        value, turn = torch.linalg.eigh(rows @ square @ rows.T)
        read = turn.T @ rows
    else:
        variance, basis = torch.linalg.eigh(square)
        root, gram = basis * variance.clamp(min=0).sqrt(), rows.T @ rows
        value, turn = torch.linalg.eigh(root.T @ gram @ root)
        read = (gram @ root @ turn).T / value.clamp(min=1e-300).sqrt()[:, None]  # Ŵᵀb
    value, read = value.flip(0), read.flip(0)
    there = value > len(square) * torch.finfo(value.dtype).eps * value[0]
    return value[there], read[there] / value[there].sqrt()[:, None]


def groups(
    lm: LanguageModel, layers: Mapping[int, Layer], blocks: Sequence[Sequence[Part]]
) -> list[Group]:
    """Return what each block reads of the layer before it: its parts, and each head.

    Args:
        lm: The model.
        layers: What is known of the layers.
        blocks: The parts of all blocks (see `educe.reads.parts.parts_of`).
    """
    heads, found = Heads.of(lm), []
    for layer, known in layers.items():
        if layer + 1 == lm.depth:
            continue
        for part in blocks[layer + 1]:
            rows = part.rows
            read = {part.name: torch.cat(rows)}
            if part.name == "attention":
                read |= _by_head(rows, heads)
            for reader, weight in read.items():
                value, by = ways(known.activations.covariance, weight, known.massive)
                some = SHOWN if reader == part.name else OF_HEAD
                found.append(Group(layer, reader, value, by[:some].clone()))
    return found


def _by_head(whole: Sequence[Tensor], heads: Heads) -> dict[str, Tensor]:
    """Return what each head reads by, where queries, keys and values are matrices of their own."""
    if len(whole) != 3 or any(len(rows) % heads.width for rows in whole):
        return {}
    split = [rows.split(heads.width) for rows in whole]
    if len(split[0]) != heads.queries or any(heads.queries % len(some) for some in split):
        return {}
    return {
        f"head {h}": torch.cat([some[h * len(some) // heads.queries] for some in split])
        for h in range(heads.queries)
    }


@torch.no_grad()
def shown(
    lm: LanguageModel,
    documents: Iterable[Prompt],
    layers: Mapping[int, Layer],
    found: Sequence[Group],
    *,
    limit: int,
    reporter: Reporter | None = None,
) -> list[Group]:
    """Return groups with the tokens and contexts at which their ways are largest.

    Args:
        lm: The model.
        documents: Where they are looked for.
        layers: What is known of the layers.
        found: The groups.
        limit: Stop after so many tokens.
        reporter: Is told of the progress.
    """
    pieces = list(reading.pieces(lm, documents, limit=limit))
    places = [Place(layer) for layer in sorted({group.layer for group in found})]
    rows = {p: torch.cat([g.read for g in found if g.layer == p.layer]).float() for p in places}
    coefficients: dict[Place, list[Tensor]] = {place: [] for place in places}
    at: list[tuple[Piece, int]] = []
    total = sum(len(piece.ids) - piece.skip for piece in pieces)
    with (reporter or Silent()).stage("where ways are largest", total, "tokens") as step:
        for some in reading.batches(pieces, reading.TOKENS_PER_BATCH[lm.device.type]):
            batch, _, counted = reading.padded(lm, some)
            with reading.watching(lm, places) as streams:
                lm.forward(batch.ids, batch.mask)
            massive = torch.stack([reading.is_massive(x) for x in streams.values()]).any(0)
            counted &= ~massive.cpu()
            for place, stream in streams.items():
                apart = stream[counted.to(stream.device)].float().cpu()
                apart = apart - layers[place.layer].activations.mean.float()
                coefficients[place].append(apart @ rows[place].T)
            for line, column in counted.nonzero().tolist():
                at.append((some[line], column - counted.shape[1]))
            step(int(counted.sum()))
    own = {p: torch.cat(values).T.split(1) for p, values in coefficients.items()}
    coming = {place.layer: iter(each) for place, each in own.items()}
    return [
        group._replace(
            shown=tuple(_largest(lm, next(coming[group.layer])[0], at) for _ in group.read)
        )
        for group in found
    ]


def _largest(
    lm: LanguageModel, coefficient: Tensor, at: Sequence[tuple[Piece, int]]
) -> tuple[Context, ...]:
    """Return the tokens at which a coefficient is largest, one a document."""
    found: dict[int, Context] = {}
    for i in coefficient.abs().argsort(descending=True)[: 20 * WHERE].tolist():
        piece, column = at[i]
        if piece.document not in found:
            place = len(piece.ids) + column
            parts = (
                piece.ids[max(0, place - BEFORE) : place],
                piece.ids[place : place + 1],
                piece.ids[place + 1 : place + 1 + AFTER],
            )
            texts = [lm.tokenizer.decode(ids) for ids in parts]
            found[piece.document] = Context(float(coefficient[i]), *texts)
        if len(found) == WHERE:
            break
    return tuple(found.values())
