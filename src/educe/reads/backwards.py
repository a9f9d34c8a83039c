"""Importance from weights and activation statistics alone, carried from the unembedding down.

The output's own importance is the Fisher metric of the logits, seen through the last norm,

    C = E[ Ŵᵀ (diag(p) - ppᵀ) Ŵ / s² ],       Ŵ the unembedding with the gain folded in,

and a part of a block, MLP before attention, that reads ``r = Ŵh/s`` and writes ``W_out z`` adds

    C ← C + Ŵᵀ diag(w) Ŵ E[1/s²],    w_i = Σ_j (W_outᵀ C W_out)_jj E[z_j²] / (m Σ_i' E[r_i'²])

with ``j`` over what the unit of row ``i`` writes from, ``i'`` over the rows of the same matrix that
it reads by, and ``m`` the number of these matrices. A unit is a neuron of an MLP, or a head. The
first term, ``C`` itself, is the residual stream. The second says: as much as a unit writes that
matters, so much its reads matter, in proportion to their size, each matrix an even share.

Four things are approximate. A unit is taken to answer in proportion to what it reads. Its inner
coordinates, and units, are taken to matter one by one. What attention moves from token to token
counts where it is read from. And the cross terms ``CA + AᵀC`` of ``(1+A)ᵀC(1+A)`` are left out, as
if reads and writes were independent: ``(1+A)ᵀC(1+A) ≤ 2(C + AᵀCA)``, so the importance of what
they could hide is at most twice what is told.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from educe.activations import reading
from educe.activations.natural import is_held
from educe.model.blocks import hooked
from educe.model.language import LanguageModel
from educe.model.prompts import Prompt
from educe.progress import Reporter, Silent
from educe.reads.parts import Heads, Norm, Part, dense, last_norm, parts_of

#: Tokens of a corpus that statistics are from, and those that run together.
TOKENS, TOKENS_PER_BATCH = 1024, 256


def carried_back(
    lm: LanguageModel,
    documents: Iterable[Prompt],
    *,
    blocks: Sequence[Sequence[Part]] | None = None,
    limit: int = TOKENS,
    reporter: Reporter | None = None,
) -> dict[int, Float[Tensor, "d d"]]:
    """Return the importance at each layer, from the last to the first.

    Args:
        lm: The model.
        documents: Text for the statistics (see `educe.activations.corpus`).
        blocks: The parts of each block, where they are known.
        limit: Stop after so many tokens.
        reporter: Is told of the progress.

    Raises:
        ModelError: A block does not read and write by matrices.

    Example:
        >>> from educe.activations import corpus
        >>> from educe.reads.backwards import carried_back
        >>> found = carried_back(lm, corpus.documents(), limit=300)
        >>> sorted(found), bool(found[0].trace() > found[3].trace())
        ([0, 1, 2, 3], True)
    """
    blocks = blocks or [parts_of(lm, block) for block in range(lm.depth)]
    kept = _Statistics(lm, blocks)
    pieces = [p for p in reading.pieces(lm, documents, limit=limit) if not is_held(p.document)]
    total = sum(len(piece.ids) - piece.skip for piece in pieces)
    with (reporter or Silent()).stage("statistics of the parts", total, "tokens") as step:
        for some in reading.batches(pieces, TOKENS_PER_BATCH):
            step(kept.read(some))
    importance = kept.output()
    found = {lm.depth - 1: importance}
    heads = Heads.of(lm)
    for block in range(lm.depth - 1, 0, -1):
        for part in blocks[block][::-1]:
            importance = importance + kept.reads(part, importance, heads)
        found[block - 1] = importance
    return found


def of_rows(
    mattering: Float[Tensor, "n"], squares: Float[Tensor, "m"], size: int
) -> Float[Tensor, "m"]:
    """Return the weight of each row of a matrix by what its unit writes that matters.

    Args:
        mattering: The mean square of each of the coordinates that units write from, as it matters.
        squares: The mean square of what each row reads.
        size: Coordinates of a unit. Rows are as many a unit. Where there are fewer units of rows,
            as of keys and values, one serves several neighbours; where there are several times as
            many, as of two matrices in one, they come one after the other; else all is one unit.
    """
    units, groups = len(mattering) // size, len(squares) // size
    if len(squares) % size or (units % groups and groups % units):
        units = groups = 1
    energy = mattering.reshape(units, -1).sum(1)
    if groups <= units:
        energy = energy.reshape(groups, -1).sum(1)
    else:
        energy = energy.repeat(groups // units)
    taken = squares.reshape(groups, -1).sum(1)
    weight = torch.where(taken > 0, energy / taken, 0.0)
    return weight.repeat_interleave(len(squares) // groups)


class _Statistics:
    """Mean squares of what parts read and write from, and what the output makes of the stream."""

    def __init__(self, lm: LanguageModel, blocks: Sequence[Sequence[Part]]) -> None:
        self.lm, self.last = lm, last_norm(lm)
        self.parts = [part for parts in blocks for part in parts]
        head = lm.unwrapped.get_output_embeddings()
        self.unembedding = self.last.folded(dense(head, lm.width)).float().to(lm.device)
        self.tokens = 0
        self.squares: dict[tuple[nn.Module, str], Any] = defaultdict(float)
        self.likely: Any = 0.0  # E[p/s²]
        self.expected: Any = 0.0  # E[uuᵀ/s²], u the expected row of the unembedding

    @torch.no_grad()
    def read(self, pieces: list[reading.Piece]) -> int:
        """Take in a batch of text."""
        lm, seen = self.lm, {}

        def note(of: str) -> Any:
            def hook(module: nn.Module, args: Any, output: Any) -> None:
                seen[module, of] = args[0] if of == "in" else output

            return hook

        with ExitStack() as stack:
            for part in self.parts:
                ins = [part.output, *([part.norm.module] if part.norm.module else [])]
                handles = [m.register_forward_hook(note("in")) for m in ins]
                handles += [m.register_forward_hook(note("out")) for m in part.matrices.values()]
                stack.enter_context(hooked(handles))
            streams = stack.enter_context(lm.watching(range(lm.depth)))
            batch, _, counted = reading.padded(lm, pieces)
            logits = lm.forward(batch.ids, batch.mask, last=0)
        massive = torch.stack([reading.is_massive(x) for x in streams.values()]).any(0)
        counted = (counted.to(massive.device) & ~massive).flatten()
        norms = {part.norm.module: part.norm for part in self.parts}
        for (module, of), value in seen.items():
            rows = value.reshape(len(counted), -1)[counted].double().cpu()
            norm = norms.get(module)
            square = rows.square() if norm is None else norm.scale(rows)[:, None] ** -2
            self.squares[module, of] += square.sum(0)
        self._say(streams[lm.depth - 1].flatten(0, 1)[counted], logits.flatten(0, 1)[counted])
        self.tokens += int(counted.sum())
        return int(counted.sum())

    def _say(self, stream: Tensor, logits: Tensor) -> None:
        inverse = self.last.scale(stream.double())[:, None] ** -2
        said = logits.float().softmax(-1)
        self.likely += (said * inverse.to(said)).double().sum(0)
        expected = (said @ self.unembedding.to(said)).double()
        self.expected += expected.T @ (expected * inverse)

    def output(self) -> Float[Tensor, "d d"]:
        """Return the importance of the stream that leaves the last block."""
        rows = self.unembedding.double()
        square = rows.T @ (rows * self.likely[:, None].to(rows)) - self.expected.to(rows)
        return square.cpu() / self.tokens

    def reads(
        self, part: Part, importance: Float[Tensor, "d d"], heads: Heads
    ) -> Float[Tensor, "d d"]:
        """Return the importance of what a part reads, from that of what it writes to."""
        squares = self.squares[part.output, "in"] / self.tokens
        out = dense(part.output, len(squares))
        mattering = (out * (importance @ out)).sum(0) * squares
        size = heads.width if part.name == "attention" else 1
        norm: Norm = part.norm
        scale = self.squares[norm.module, "in"] / self.tokens if norm.module else 1.0
        found = torch.zeros_like(importance)
        for matrix, rows in zip(part.matrices.values(), part.rows, strict=True):
            taken = self.squares[matrix, "out"] / self.tokens
            found += rows.T @ (rows * of_rows(mattering, taken, size)[:, None])
        return found * scale / len(part.matrices)
