"""The reference: natural activations, held-out texts, and controls, to examine perturbations by.

Controls of a norm are the same for every perturbation of that norm: differences between held-out
activations of different documents, and random vectors. At their layer thousands of them cost
nothing. To see what later layers and the output make of it, the model runs under some: under 39
differences, so that one that lies farther out than all of them does so by chance once in 40 times.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from functools import partial
from itertools import pairwise
from math import ceil
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import normalize

from educe.activations.distance import Coverage, Geometry, differences, learning, random_vectors
from educe.activations.held_out import TEXTS_PER_BATCH, HeldOut, Outcome
from educe.activations.kept import once
from educe.activations.natural import Gathered, Natural
from educe.activations.reading import Place
from educe.activations.report import Measure
from educe.forward.forced import perturbing
from educe.model.language import LanguageModel
from educe.perturbation.kinds import Kind, Vectors
from educe.progress import Reporter, Silent

#: Controls of each kind whose share and length are measured, and those added to the texts there.
MANY, SOME = 2000, 400
#: Natural differences that run through the model; random vectors, and random directions taken away.
TRIED, FEW = 39, 5
#: Counts up whenever other controls would be kept, or in another way.
FORMAT = 2
#: Norms that are equal to so many digits have the same controls.
DIGITS = 4


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
        self.distances = torch.stack([geometry.distance(held) for geometry, _ in learned], 1)
        self.nearests = self._nearest(torch.cdist(self._centred(held), self.bank))
        self.shares = self.whole.share(held.double() - self.whole.mean)
        self.unmoved = self.of(still)

    def _centred(self, h: Float[Tensor, "m d"]) -> Float[Tensor, "m d"]:
        return self.whole.bare(h.double() - self.whole.mean).float()

    def _nearest(self, apart: Float[Tensor, "m b"]) -> Float[Tensor, "m s"]:
        """Return the least of each row: the bank is in random order, its beginning a sample."""
        parts = [apart[:, start:end].amin(1) for start, end in pairwise([0, *self.sizes])]
        return torch.stack(parts, 1).cummin(1).values

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
        apart = torch.empty_like(square)  # one for all: one for each breaks up the memory
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

    def measures(self, own: Seen, natural: Seen, random: Seen) -> dict[str, Measure]:
        """Return what is seen under a perturbation beside what is seen under its controls."""

        def measure(field: str, activations: Tensor, still: Tensor) -> Measure:
            of_own, of_natural, of_random = (
                values.double().reshape(len(values), -1)
                for values in (getattr(seen, field) for seen in (own, natural, random))
            )
            return Measure(of_own[0], of_natural, of_random, activations.double(), still.double())

        none = torch.zeros(0)
        return {
            "distance": measure("distance", self.distances, self.unmoved.distance[0]),
            "nearest": measure("nearest", self.nearests, self.unmoved.nearest[0]),
            "energy": measure("share", self.shares[:, None], none),
            "size": measure("size", torch.zeros(0, 1), none),
        }


class Controls(NamedTuple):
    """What differences between natural activations, and random vectors, of one norm do.

    Attributes:
        norm: Their norm; massive coordinates of differences are part of it.
        seen: What each layer sees of the texts under them, by ``natural`` and ``random``.
        outputs: What the model makes of the texts under those that run, by the same: a row each
            has what `Outcome.scores` has.
    """

    norm: float
    seen: dict[str, dict[int, Seen]]
    outputs: dict[str, Float[Tensor, "n 4"]]


class Reference:
    """Natural activations at a layer and later ones, held-out texts, and controls.

    Args:
        lm: The model.
        gathered: Natural activations at the layers (see `educe.activations.natural.gather`).
        before: The last layer that no perturbation reaches.
        layers: The last layer that is perturbed, and later ones.
        seed: Of the controls.
    """

    def __init__(
        self,
        lm: LanguageModel,
        gathered: Gathered,
        before: int,
        layers: Sequence[int],
        *,
        seed: int = 0,
    ) -> None:
        self.lm, self.gathered, self.seed = lm, gathered, seed
        self.before, self.layers, self.layer = before, list(layers), layers[0]
        self.natural = {layer: gathered.natural[Place(layer)] for layer in layers}
        self.learned = {layer: learning(known) for layer, known in self.natural.items()}
        self.here, self.home = self.natural[self.layer], self.learned[self.layer][-1][0]
        self.texts = HeldOut(lm, gathered.texts, before, layers)
        self.sights = {
            layer: Sight(self.natural[layer], self.learned[layer], self.texts.plain.streams[layer])
            for layer in layers
        }
        draw = torch.Generator().manual_seed(seed)
        self.apart = differences(self.here.sample, MANY, draw)
        self.drawn = random_vectors(MANY, self.home, draw)
        self.anywhere = torch.randn(MANY, lm.width, generator=draw)
        self._last: Controls | None = None

    def controls(self, norm: float, reporter: Reporter | None = None) -> Controls:
        """Return the controls of a norm, rounded: kept with what was gathered, if that is kept."""
        norm = float(f"{norm:.{DIGITS}g}")
        if self._last is None or norm != self._last.norm:

            def make() -> Controls:
                with (reporter or Silent()).stage("controls", TRIED + FEW) as step:
                    return self._run(norm, step)

            name = self._name(norm)
            self._last = once(name, make, (Controls, Seen), reporter) if name else make()
        return self._last

    def _name(self, norm: float) -> str | None:
        """Return what decides the controls of a norm, as a digest."""
        of = (self.gathered.name, self.before, self.layers, self.seed, norm)
        settings = (FORMAT, MANY, SOME, TRIED, FEW, TEXTS_PER_BATCH)
        digest = hashlib.sha256(repr((of, settings)).encode()).hexdigest()
        return f"controls-{digest}" if self.gathered.name else None

    def _run(self, norm: float, step: Any) -> Controls:
        vectors = {"natural": norm * normalize(self.apart, dim=1), "random": norm * self.drawn}
        seen, outputs = {}, {}
        for (name, all_of_them), tried in zip(vectors.items(), (TRIED, FEW), strict=True):
            later: dict[int, list[Seen]] = {layer: [] for layer in self.layers[1:]}
            scores = []
            for vector in all_of_them[:tried]:
                outcome = self.under(Vectors(self.layer, self.lm.width), vector[None].float())
                scores.append(list(outcome.scores.values()))
                for layer, some in later.items():
                    some.append(self.sights[layer].of(outcome.streams[layer]))
                step()
            here = {self.layer: self.sights[self.layer].under(all_of_them[:SOME])}
            seen[name] = here | {layer: Seen.joined(some) for layer, some in later.items()}
            outputs[name] = torch.tensor(scores, dtype=torch.float64)
        return Controls(norm, seen, outputs)

    def under(self, kind: Kind, theta: Float[Tensor, "1 s"]) -> Outcome:
        """Let the model read the texts under a perturbation, which acts on every token."""
        return self.texts.under(partial(perturbing, self.lm, kind, theta))
