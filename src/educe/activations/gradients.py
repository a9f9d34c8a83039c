"""Gradients over a corpus: what the output makes of a change at each layer.

At each token of a text a next token is drawn from what the model says there, ``y_t ~ p(· | x_≤t)``.
With ``h_s`` the stream that leaves a layer at token ``s``,

    g_s = ∂/∂h_s Σ_t log p(y_t | x_≤t),       F = mean over tokens of g_s g_sᵀ

The mean of each term over its draw is zero and the draws are independent, so products of different
terms vanish in the mean: ``F`` is an unbiased estimate of the Fisher metric of all outputs
together, seen from the layer (the sampling of Martens & Grosse 2015; the active subspace of
Constantine 2015), from one vector-Jacobian product a text for all layers. A small change ``δ`` of
one token's activation changes what the model says by ``½ δᵀFδ`` nats of KL in the mean, over all
tokens that follow in its text. Terms between different tokens are not in ``F``.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from educe.activations import reading
from educe.activations.balanced import Components, balanced
from educe.activations.kept import once
from educe.activations.natural import is_held, massive_coordinates
from educe.activations.reading import Piece
from educe.activations.subspace import Moments
from educe.errors import PromptError
from educe.forward.chunks import Chunker, halved
from educe.model import digest
from educe.model.language import LanguageModel
from educe.model.prompts import Prompt
from educe.progress import Reporter, Silent

#: Tokens of a corpus whose gradients are taken, where nothing else is said.
TOKENS = 8192
#: Tokens that run together, forward and backward: their logits are the memory that counts.
TOKENS_PER_BATCH = {"cpu": 512, "cuda": 4096}
#: Counts up whenever other numbers would be gathered.
FORMAT = 1


class Layer(NamedTuple):
    """What is known of a layer's stream.

    Attributes:
        activations: Moments of the activations.
        gradients: Moments of the gradients; their mean is zero but for chance.
    """

    activations: Moments
    gradients: Moments

    @property
    def massive(self) -> list[int]:
        """Massive coordinates (see `educe.activations.natural`)."""
        return massive_coordinates(self.activations)

    @property
    def importance(self) -> Float[Tensor, "d d"]:
        """``F``: half of ``δᵀFδ`` is the KL that a small change of one token makes, in nats."""
        return self.gradients.about(torch.zeros_like(self.gradients.mean))

    @property
    def balanced(self) -> Components:
        """What is both present and used, all of it."""
        here = self.activations
        return balanced(here.mean, here.covariance, self.importance, self.massive)


class Swept(NamedTuple):
    """What a pass over a corpus, forward and backward, leaves."""

    layers: dict[int, Layer]
    tokens: int
    name: str = ""  #: what it is kept by


class Pulled(NamedTuple):
    """Streams and gradients of a batch of text, by layer: ``[texts, tokens, width]``."""

    streams: dict[int, Float[Tensor, "p t d"]]
    gradients: dict[int, Float[Tensor, "p t d"]]


def sweep(
    lm: LanguageModel,
    documents: Iterable[Prompt],
    layers: Sequence[int],
    *,
    limit: int = TOKENS,
    seed: int = 0,
    reporter: Reporter | None = None,
) -> Swept:
    """Read a corpus forward and backward, and keep what came of it in the user's cache.

    First tokens, tokens with a massive activation, shared beginnings and every fifth document are
    left out, as in `educe.activations.natural`.

    Args:
        lm: The model.
        documents: Texts and chats (see `educe.activations.corpus`).
        layers: Layers whose stream is meant.
        limit: Stop after so many tokens.
        seed: Of the tokens that are drawn.
        reporter: Is told of the progress (see `educe.progress`).

    Raises:
        PromptError: The corpus is empty.

    Example:
        >>> from educe.activations import corpus
        >>> from educe.activations.gradients import sweep
        >>> found = sweep(lm, corpus.documents(), [1, 2], limit=600)
        >>> tuple(found.layers[2].importance.shape)
        (32, 32)
    """
    pieces = [p for p in reading.pieces(lm, documents, limit=limit) if not is_held(p.document)]
    if not pieces:
        raise PromptError("the corpus is empty: give documents of at least two tokens")
    settings = {
        "format": FORMAT,
        "model": digest.whole(digest.parts(lm.hf, lm.tokenizer)),  # as its weights are now
        "device": lm.device.type,
        "layers": list(layers),
        "seed": seed,
        "reading": [reading.MASSIVE, reading.AHEAD, TOKENS_PER_BATCH],
        "pieces": pieces,
    }
    name = "gradients-" + hashlib.sha256(json.dumps(settings).encode()).hexdigest()

    def make() -> Swept:
        return _swept(lm, pieces, layers, seed, reporter or Silent())._replace(name=name)

    return once(name, make, (Swept, Layer, Moments), reporter)


def pulled(
    lm: LanguageModel,
    ids: Int[Tensor, "p t"],
    mask: Int[Tensor, "p t"],
    layers: Sequence[int],
    drawn: Int[Tensor, "p t"] | torch.Generator,
    counted: Bool[Tensor, "p t"],
) -> Pulled:
    """Return the stream at some layers, and the gradient of drawn tokens' log-probabilities.

    Args:
        lm: The model.
        ids: Texts, padded on the left.
        mask: 1 where that is a token.
        layers: Layers whose stream is meant.
        drawn: The next token at each token; or draws them from what the model says.
        counted: At which tokens the next one counts.
    """
    lowest = min(layers)

    def tracked(stream: Tensor) -> Tensor:
        return torch.zeros_like(stream).requires_grad_()

    with lm.adding(lowest, tracked), lm.watching(layers) as streams:
        logits = lm.forward(ids, mask, last=0, differentiable=True)
        with torch.no_grad():
            said = logits.softmax(-1, dtype=torch.promote_types(lm.dtype, torch.float32))
            if isinstance(drawn, torch.Generator):
                drawn = sampled(said, drawn)
            # The gradient of log p(y) by the logits.
            slope = (-said).scatter_add_(
                -1, drawn.to(said.device)[..., None], said.new_ones(*said.shape[:2], 1)
            )
            slope *= counted.to(said)[..., None]
        found = torch.autograd.grad(logits, [streams[i] for i in layers], slope.to(logits))
    kept = {i: streams[i].detach() for i in layers}
    return Pulled(kept, dict(zip(layers, found, strict=True)))


def sampled(probabilities: Float[Tensor, "*p v"], draw: torch.Generator) -> Int[Tensor, "*p"]:
    """Draw a token from each distribution; the draws do not depend on the device."""
    at = torch.rand(probabilities.shape[:-1], generator=draw, dtype=torch.float64)
    below = probabilities.cumsum(-1) < at.to(probabilities)[..., None]
    return below.sum(-1).clamp(max=probabilities.shape[-1] - 1)


def _swept(
    lm: LanguageModel, pieces: Sequence[Piece], layers: Sequence[int], seed: int, reporter: Reporter
) -> Swept:
    zero = Moments.none(lm.width)
    known = dict.fromkeys(layers, Layer(zero, zero))
    draw = torch.Generator().manual_seed(seed)
    tokens, total = 0, sum(len(piece.ids) - piece.skip for piece in pieces)
    with reporter.stage("reading forward and backward", total, "tokens") as step:
        for streams, gradients, counted in _batches(lm, pieces, layers, draw):
            for i, layer in known.items():
                rows = (x[i][counted.to(x[i].device)] for x in (streams, gradients))
                known[i] = Layer(*(old + Moments.of(x) for old, x in zip(layer, rows, strict=True)))
            tokens += int(counted.sum())
            step(int(counted.sum()))
    return Swept(known, tokens)


def _batches(
    lm: LanguageModel, pieces: Sequence[Piece], layers: Sequence[int], draw: torch.Generator
) -> Iterator[tuple[dict[int, Tensor], dict[int, Tensor], Tensor]]:
    most = TOKENS_PER_BATCH.get(lm.device.type, 512)

    def run(some: Sequence[Piece]) -> tuple[dict[int, Tensor], dict[int, Tensor], Tensor]:
        batch, _, counted = reading.padded(lm, some)
        found = pulled(lm, batch.ids, batch.mask, layers, draw, counted)
        massive = torch.stack([reading.is_massive(x).cpu() for x in found.streams.values()]).any(0)
        return *found, counted & ~massive

    def size(some: Sequence[Piece]) -> int:
        return len(some) * len(some[-1].ids)

    batches: Iterator[Sequence[Piece]] = reading.batches(pieces, most)
    for _, done in Chunker(most).each(batches, run, size, halved):
        yield done
