"""Held-out texts, and what the model makes of them when it is perturbed.

The same few texts for every perturbation and every control, each token perturbed. What is kept: the
stream at some layers, and of the next-token distributions ``q``, ``p`` without perturbation, and
the tokens ``x`` that really come next,

    KL(p ‖ q),   entropy of q in nats,   perplexity exp(mean -log q(x)),
    how often the likeliest token of q is that of p.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from educe.activations.reading import Piece
from educe.activations.report import ON_TEXTS
from educe.forward.chunks import split
from educe.forward.forced import Forced
from educe.model.language import LanguageModel

#: Texts that run together: their logits over the vocabulary are the memory that counts.
TEXTS_PER_BATCH = 4


class Outcome(NamedTuple):
    """What the model makes of the texts.

    Attributes:
        streams: The stream at each layer, counted tokens one after the other, ``[tokens, width]``.
        scores: By the names of `educe.activations.report.ON_TEXTS`, means over tokens: divergence
            from the unperturbed model, share of the tokens after which the likeliest next one is
            still its, entropy of the next token, perplexity of the texts.
    """

    streams: dict[int, Float[Tensor, "m d"]]
    scores: dict[str, float]


class HeldOut:
    """Held-out texts, read once without perturbation.

    Args:
        lm: The model.
        pieces: The texts, and how many tokens at the beginning of each are not counted.
        before: The last layer that no perturbation reaches: blocks up to it run once.
        layers: Layers whose stream is kept.

    Attributes:
        plain: The outcome without perturbation.
    """

    def __init__(
        self, lm: LanguageModel, pieces: Sequence[Piece], before: int, layers: Sequence[int]
    ) -> None:
        self.layers = list(layers)
        ordered = sorted(pieces, key=lambda piece: len(piece.ids))
        self.parts = [self._part(lm, some, before) for some in split(ordered, TEXTS_PER_BATCH)]
        self.plain = self.under(nullcontext)

    @staticmethod
    def _part(lm: LanguageModel, pieces: Sequence[Piece], before: int) -> Forced:
        batch = lm.pad([piece.ids for piece in pieces])
        mask = batch.mask.cpu()
        counted = mask.bool() & (mask.cumsum(1) > torch.tensor([[p.skip] for p in pieces]))
        # After the last token of a text any could follow.
        return Forced(lm, batch, [[0]] * len(pieces), before=before, counted=counted)

    @torch.no_grad()
    def under(self, changing: Callable[[], AbstractContextManager[Any]]) -> Outcome:
        """Let the model read the texts while it is changed."""
        streams: dict[int, list[Tensor]] = {layer: [] for layer in self.layers}
        kl, same, entropy, surprise = [], [], [], []
        for part in self.parts:
            read, counted = part.under(changing(), self.layers), part.counted
            for layer, stream in read.streams.items():
                streams[layer].append(stream[0][counted.to(stream.device)].float().cpu())
            said, known = (logs[counted.to(logs.device)] for logs in (read.logprobs[0], part.plain))
            kl.append(part.divergence(read)[0][counted.to(said.device)])
            same.append((known.argmax(1) == said.argmax(1)).float())
            entropy.append(-(said.exp() * said).sum(1))
            surprise.append(-part.likelihood(read)[0, :, :-1][counted[:, :-1].to(said.device)])
        *means, last = (float(torch.cat(each).mean()) for each in (kl, same, entropy, surprise))
        return Outcome(
            {layer: torch.cat(some) for layer, some in streams.items()},
            dict(zip(ON_TEXTS, [*means, math.exp(min(700.0, last))], strict=True)),
        )
