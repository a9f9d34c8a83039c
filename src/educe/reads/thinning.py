"""Thinning: keep a few dimensions of layers, about the mean, and see what the output loses.

At a layer, or at all layers at once, each activation becomes ``μ + P_k (h - μ)`` (see
`educe.activations.balanced`), for ``P_k`` from

    weights      balanced: what is present and, by the importance carried back, used
                 (`educe.reads.backwards`)
    gradients    top eigenvectors of the gradients' covariance: used alone (active subspace)
    balanced     what is present and, by the gradients' covariance, used
    components   principal components: present alone
    random       random directions

and what is measured, on held-out text, is ``KL(output ‖ output of the thinned model)`` a token.
First tokens, tokens with a massive activation and massive coordinates stay as they are.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import groupby
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from educe.activations import reading
from educe.activations.balanced import Components, at_random, balanced, orthogonal
from educe.activations.gradients import Layer
from educe.activations.reading import Piece
from educe.forward.chunks import split
from educe.forward.slice.norms import after_first
from educe.model.blocks import hooked, stream_out, with_stream
from educe.model.language import LanguageModel
from educe.progress import Advance

#: What may be kept, in the order of the page.
FORMS = ("weights", "gradients", "balanced", "components", "random")
#: Dimensions that are kept, as shares of the width.
GRID = (1 / 16, 1 / 8, 1 / 4, 1 / 2, 3 / 4, 7 / 8, 31 / 32)
#: Divergences whose dimensions are told, in nats a token.
NATS = (0.1, 0.01)
#: Texts that run together.
TEXTS_PER_BATCH = 6


class Curve(NamedTuple):
    """What is left of the output with more and more dimensions.

    Attributes:
        form: Whose dimensions (see `FORMS`).
        layer: At which layer; None at all.
        kept: How many.
        kl: Mean divergence from the whole model, nats a token.
        same: Share of tokens after which the likeliest next one is the same.
    """

    form: str
    layer: int | None
    kept: tuple[int, ...]
    kl: tuple[float, ...]
    same: tuple[float, ...]

    def needed(self, nats: float) -> float | None:
        """Return how many dimensions keep the divergence below some nats, between those tried.

        On a line between the logarithms of both; None where all that were tried are too few.
        """
        for i, value in enumerate(self.kl):
            if value <= nats:
                if i == 0 or value <= 0:
                    return float(self.kept[i])
                ends = np.log(self.kl[i - 1 : i + 1])[::-1]
                sizes = np.log(self.kept[i - 1 : i + 1])[::-1]
                return float(np.exp(np.interp(np.log(nats), ends, sizes)))
        return None


def components_of(
    known: Layer, weights: Float[Tensor, "d d"] | None = None, *, seed: int = 0
) -> dict[str, Components]:
    """Return all dimensions of a layer in the order of each form.

    Args:
        known: What is known of the layer.
        weights: The importance carried back; without, that form is left out.
        seed: Of random directions.

    Example:
        >>> from educe.activations import corpus
        >>> from educe.activations.gradients import sweep
        >>> from educe.reads.thinning import components_of
        >>> known = sweep(lm, corpus.documents(), [1, 2], limit=600).layers[2]
        >>> list(components_of(known))
        ['gradients', 'balanced', 'components', 'random']
    """
    mean, massive = known.activations.mean, known.massive
    covariance, used = known.activations.covariance, known.importance
    found = {} if weights is None else {"weights": balanced(mean, covariance, weights, massive)}
    return found | {
        "gradients": orthogonal(mean, used, massive),
        "balanced": known.balanced,
        "components": orthogonal(mean, covariance, massive),
        "random": at_random(mean, massive, torch.Generator().manual_seed(seed)),
    }


@contextmanager
def thinned(
    lm: LanguageModel,
    kept: Mapping[int, Components],
    *,
    tokens: Bool[Tensor, "p t"] | None = None,
    away: bool = False,
) -> Iterator[None]:
    """Keep some components alone of the stream that leaves layers, for a ``with`` statement.

    Args:
        lm: The model.
        kept: By layer, what is kept; about the mean, which stays.
        tokens: Of which tokens; by default of all.
        away: Take these away, and keep the rest.

    Example:
        >>> from educe.activations import corpus
        >>> from educe.activations.gradients import sweep
        >>> from educe.reads.thinning import components_of, thinned
        >>> known = sweep(lm, corpus.documents(), [1, 2], limit=600).layers[2]
        >>> with thinned(lm, {2: components_of(known)["balanced"].top(4)}):
        ...     logits = lm.forward(part.batch.ids, part.batch.mask)
    """

    def hook(components: Components) -> Any:
        def outgoing(module: Any, args: Any, output: Any) -> Any:
            stream = stream_out(output)
            changed = components.without(stream) if away else components.only(stream)
            if tokens is not None:
                changed = torch.where(tokens.to(stream.device)[..., None], changed, stream)
            return with_stream(output, changed)

        return outgoing

    with hooked([lm.blocks[i].register_forward_hook(hook(c)) for i, c in kept.items()]):
        yield


class Loss(NamedTuple):
    """What a thinned model loses."""

    kl: float  #: nats a token
    same: float  #: share of tokens after which the likeliest next one is the same


class Texts:
    """Texts that a model reads again and again while it is thinned.

    Args:
        lm: The model.
        pieces: The texts, and how many tokens at the beginning of each are not counted.
    """

    def __init__(self, lm: LanguageModel, pieces: Sequence[Piece]) -> None:
        self.lm = lm
        # Texts of one length, so that no padding is read at each pass.
        by_length = groupby(sorted(pieces, key=_length), _length)
        self.batches = [
            self._read(some) for _, same in by_length for some in split(list(same), TEXTS_PER_BATCH)
        ]

    @torch.no_grad()
    def _read(self, pieces: Sequence[Piece]) -> _Batch:
        batch, _, counted = reading.padded(self.lm, pieces)
        layers = range(self.lm.depth)
        most = int(counted.sum(1).max())
        with self.lm.watching(layers) as streams:
            logits = self.lm.forward(batch.ids, batch.mask, last=most)
        massive = torch.stack([reading.is_massive(x).cpu() for x in streams.values()]).any(0)
        counted = counted[:, -most:]
        said = logits[counted.to(logits.device)].float().log_softmax(-1)
        tokens = after_first(batch.mask) & ~massive
        likely, first = said.exp(), said.argmax(-1)
        return _Batch(batch.ids, batch.mask, counted, tokens, streams, said, likely, first)

    @torch.no_grad()
    def under(self, kept: Mapping[int, Components], *, away: bool = False) -> Loss:
        """Let the model read them with some components alone."""
        lowest, kl, same = min(kept), [], []
        for b in self.batches:
            with (
                self.lm.starting(lowest, b.streams[lowest]),
                thinned(self.lm, kept, tokens=b.tokens, away=away),
            ):
                logits = self.lm.forward(b.ids, b.mask, last=b.counted.shape[1])
            said = logits[b.counted.to(logits.device)].float().log_softmax(-1)
            kl.append((b.likely * (b.said - said)).sum(-1).clamp(min=0))
            same.append((b.first == said.argmax(-1)).float())
        return Loss(float(torch.cat(kl).mean()), float(torch.cat(same).mean()))


class _Batch(NamedTuple):
    ids: Tensor
    mask: Tensor
    counted: Tensor  #: of the last tokens
    tokens: Tensor  #: that are thinned
    streams: dict[int, Tensor]
    said: Tensor  #: log-probabilities after each counted token
    likely: Tensor  #: probabilities
    first: Tensor  #: the likeliest next token


def _length(piece: Piece) -> int:
    return len(piece.ids)


def dimensions(width: int) -> tuple[int, ...]:
    """Return how many dimensions are kept, of some width."""
    return tuple(dict.fromkeys(max(1, round(share * width)) for share in GRID))


def curves(
    texts: Texts,
    by_layer: Mapping[int, Mapping[str, Components]],
    alone: Sequence[int],
    step: Advance,
) -> list[Curve]:
    """Return what is left of the output with some layers thinned alone, and with all of them.

    Args:
        texts: Held-out text.
        by_layer: All dimensions of each layer, by form.
        alone: Layers that are thinned alone.
        step: Is called after each pass.

    Raises:
        LayerError: The model cannot begin above one of the layers.
    """
    kept = dimensions(texts.lm.width)
    forms = next(iter(by_layer.values()))
    places: list[int | None] = [*map(texts.lm.source, alone), None]
    found = []
    for place in places:
        at = by_layer if place is None else {place: by_layer[place]}
        for form in forms:
            losses = []
            for k in kept:
                losses.append(texts.under({i: own[form].top(k) for i, own in at.items()}))
                step()
            found.append(Curve(form, place, kept, *(tuple(x) for x in zip(*losses, strict=True))))
    return found
