"""What a layer sees of perturbed texts: how far out they lie, at each size of the corpus."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from math import ceil
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from educe.activations.distance import Coverage, Geometry, percentile
from educe.activations.natural import Natural
from educe.activations.record import Depth, Known, Range, Standing


class Seen(NamedTuple):
    """Medians over the tokens of the texts, of ``n`` perturbations, by ``s`` sizes of the corpus.

    Attributes:
        distance: Mahalanobis distance from the mean.
        nearest: Distance to the nearest natural activation.
        share: Share of the energy of what is changed that lies in the top directions.
        size: Norm of what is changed, as a share of the stream's.
    """

    distance: Float[Tensor, "n s"]
    nearest: Float[Tensor, "n s"]
    share: Float[Tensor, "n"]
    size: Float[Tensor, "n"]

    @classmethod
    def joined(cls, some: Iterable[Seen]) -> Seen:
        """Put together what was seen under some perturbations and others."""
        return cls(*(torch.cat(parts) for parts in zip(*some, strict=True)))


class Sight:
    """A layer that looks at texts.

    The nearest natural activations are looked for in single precision, from their mean: what is
    kept of them is no more precise.

    Args:
        natural: Natural activations there.
        learned: Geometry and coverage at each size of the corpus.
        still: The stream of the texts without perturbation, token after token.
    """

    def __init__(
        self,
        natural: Natural,
        learned: Sequence[tuple[Geometry, Coverage]],
        still: Float[Tensor, "m d"],
    ) -> None:
        self.layer, self.still, self.learned = natural.place.layer, still, learned
        self.whole = learned[-1][0]
        self.bank = self._centred(natural.bank.rows)
        counts = [known.tokens for _, known in learned]
        self.sizes = [ceil(len(self.bank) * count / counts[-1]) for count in counts]
        held = natural.sample.rows
        self.distances = [geometry.distance(held) for geometry, _ in learned]
        self.nearests = self._nearest(torch.cdist(self._centred(held), self.bank)).T
        self.shares = self.whole.share(held.double() - self.whole.mean)
        self.unmoved = self.of(still)

    def _centred(self, h: Float[Tensor, "m d"]) -> Float[Tensor, "m d"]:
        return self.whole.bare(h.double() - self.whole.mean).float()

    def _nearest(self, apart: Float[Tensor, "m b"]) -> Float[Tensor, "m s"]:
        """Return the least of each row: the bank is in random order, its beginning a sample."""
        return torch.stack([apart[:, :size].amin(1) for size in self.sizes], 1)

    def of(self, stream: Float[Tensor, "m d"]) -> Seen:
        """Look at the texts under one perturbation."""
        moved = stream - self.still
        distances = [geometry.distance(stream).median() for geometry, _ in self.learned]
        nearest = self._nearest(torch.cdist(self._centred(stream), self.bank))
        size = moved.norm(dim=1) / self.still.norm(dim=1)
        return Seen(
            torch.stack(distances)[None],
            nearest.median(0).values[None],
            self.whole.share(moved).median()[None],
            size.median()[None],
        )

    def under(self, vectors: Float[Tensor, "n d"]) -> Seen:
        """Look at the texts with each of some vectors added at this very layer: no model runs."""
        distances = [
            geometry.distances(self.still, vectors).median(1).values for geometry, _ in self.learned
        ]
        at, bare = self._centred(self.still), self.whole.bare(vectors).float()
        square, along, across = torch.cdist(at, self.bank).square(), bare @ self.bank.T, bare @ at.T
        apart = torch.empty_like(
            square
        )  # one for all: as large a one for each breaks up the memory
        nearest = torch.empty(len(bare), len(self.sizes))
        for i, v in enumerate(bare):
            # ‖h + v - a‖² = ‖h - a‖² - 2⟨v, a⟩ + 2⟨v, h⟩ + ‖v‖², the last two the same for all a.
            torch.sub(square, along[i], alpha=2, out=apart)
            least = self._nearest(apart) + (2 * across[i] + v.square().sum())[:, None]
            nearest[i] = least.clamp(min=0).sqrt().median(0).values
        size = vectors.norm(dim=1, keepdim=True) / self.still.norm(dim=1)
        return Seen(
            torch.stack(distances, 1),
            nearest,
            self.whole.share(vectors),
            size.median(1).values,
        )

    def depth(self, own: Seen, natural: Seen, random: Seen) -> Depth:
        """Place what is seen under a perturbation among its controls."""
        growth = tuple(
            Known(
                known.tokens,
                known.optimism,
                known.enough,
                _out(self.distances[i], *(seen.distance[:, i] for seen in (own, natural, random))),
                _out(self.nearests[i], *(seen.nearest[:, i] for seen in (own, natural, random))),
            )
            for i, (_, known) in enumerate(self.learned)
        )
        return Depth(
            self.layer,
            controls=(len(natural.size), len(random.size)),
            distance=growth[-1].distance,
            nearest=growth[-1].nearest,
            share=Standing(
                float(own.share),
                Range.of(natural.share),
                Range.of(random.share),
                float(percentile(own.share, natural.share)),
                float(percentile(own.share, self.shares)),
            ),
            size=Standing(
                float(own.size),
                Range.of(natural.size),
                Range.of(random.size),
                float(percentile(own.size, natural.size)),
            ),
            still_distance=float(percentile(self.unmoved.distance[:, -1], self.distances[-1])),
            still_nearest=float(percentile(self.unmoved.nearest[:, -1], self.nearests[-1])),
            chance=self.whole.chance[0],
            enough=growth[-1].enough,
            growth=growth,
        )


def _out(activations: Tensor, own: Tensor, natural: Tensor, random: Tensor) -> Standing:
    """Give distances as percentiles among held-out activations.

    Among the controls they are placed as they are: percentiles no longer differ at 100%.
    """
    return Standing(
        float(percentile(own, activations)),
        Range.of(percentile(natural, activations)),
        Range.of(percentile(random, activations)),
        float(percentile(own, natural)),
    )
