"""A trial: held-out texts, and what the model makes of them when it is perturbed.

The same few texts for every perturbation and every control, each token perturbed. What is kept: the
stream at some layers, and of the next-token distributions ``q``, ``p`` without perturbation, and
the tokens ``x`` that really come next,

    KL(p ‖ q),   entropy of q in nats,   perplexity exp(mean -log q(x)),
    how often the likeliest token of q is that of p.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from educe.kinds import Kind
from educe.manifold.activations import Piece
from educe.model import LanguageModel

#: Texts that run together: their logits over the vocabulary are the memory that counts.
TEXTS_PER_BATCH = 4


@dataclass(frozen=True)
class Outcome:
    """What the model makes of the texts.

    Attributes:
        streams: The stream at each layer, counted tokens one after the other, ``[tokens, width]``.
        kl: From the unperturbed model, mean over tokens, in nats.
        same: Share of the tokens after which the likeliest next one is the unperturbed model's.
        entropy: Of the next token, mean, in nats.
        perplexity: Of the texts.
    """

    streams: dict[int, Float[Tensor, "m d"]]
    kl: float
    same: float
    entropy: float
    perplexity: float


class Trial:
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
        self.lm, self.before, self.layers = lm, before, list(layers)
        ordered = sorted(pieces, key=lambda piece: len(piece.ids))
        self.parts = [
            (lm.pad([piece.ids for piece in some]), [piece.skip for piece in some])
            for some in (
                ordered[at : at + TEXTS_PER_BATCH] for at in range(0, len(ordered), TEXTS_PER_BATCH)
            )
        ]
        self.starts: list[Tensor] = []
        for batch, _ in self.parts:
            with lm.watching([before]) as streams:
                lm.forward(batch.ids, batch.mask)
            self.starts.append(streams[before])
        self.known: list[Tensor] = []
        self.plain = self.under(nullcontext)

    @torch.no_grad()
    def under(self, changing: Callable[[], AbstractContextManager[Any]]) -> Outcome:
        """Let the model read the texts while it is changed."""
        streams: dict[int, list[Tensor]] = {layer: [] for layer in self.layers}
        kl, same, entropy, surprise = [], [], [], []
        for number, ((batch, skips), start) in enumerate(zip(self.parts, self.starts, strict=True)):
            counted = batch.mask.cumsum(1) > torch.tensor(skips, device=batch.mask.device)[:, None]
            counted &= batch.mask.bool()
            # Padding is on the left: no logits of what only comes before all that is counted.
            last = int(counted.sum(1).max())

            with (
                self.lm.starting(self.before, start),
                changing(),
                self.lm.watching(self.layers) as seen,
            ):
                logits = self.lm.forward(batch.ids, batch.mask, last=last)
            for layer in self.layers:
                stream = seen[layer]
                streams[layer].append(stream[counted.to(stream.device)].float().cpu())
            said = logits.float()[counted[:, -last:].to(logits.device)].log_softmax(-1).cpu()
            if len(self.known) == number:
                self.known.append(said)
            known = self.known[number]
            kl.append(known.exp().mul_(known - said).sum(1))
            same.append((known.argmax(1) == said.argmax(1)).float())
            entropy.append(-said.exp().mul_(said).sum(1))
            following = torch.cat([batch.ids[:, 1:], batch.ids[:, :1]], 1)[counted].cpu()
            ends = torch.zeros_like(counted)
            ends[:, -1] = True
            there = ~ends[counted].cpu()
            surprise.append(-said.gather(1, following[:, None])[:, 0][there])
        return Outcome(
            {layer: torch.cat(some) for layer, some in streams.items()},
            float(torch.cat(kl).mean()),
            float(torch.cat(same).mean()),
            float(torch.cat(entropy).mean()),
            math.exp(min(700.0, float(torch.cat(surprise).mean()))),
        )


@contextmanager
def perturbing(lm: LanguageModel, kind: Kind, theta: Float[Tensor, "1 s"]) -> Iterator[None]:
    """Perturb every token of every row with one perturbation, of any kind."""

    def value(stream: Tensor) -> Tensor:
        added = kind.added(theta.to(stream), [0], range(-stream.shape[1], 0))
        return torch.zeros_like(stream) if added is None else added[0].expand_as(stream)

    with kind.changing(lm, theta.to(lm.device), [0]), lm.adding(kind.before, value):
        yield
