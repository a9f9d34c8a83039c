"""The reference: natural activations, held-out texts, and controls, to examine perturbations by.

Held-out texts are the same few for every perturbation and every control, each token perturbed. What
the model makes of them is the stream at some layers, and of the next-token distributions ``q``,
``p`` without perturbation, and the tokens ``x`` that really come next, means over tokens of

    KL(p ‖ q),   how often the likeliest token of q is that of p,   entropy of q in nats,
    perplexity exp(mean -log q(x)).

Controls of a norm are the same for every perturbation of that norm: differences between held-out
activations of different documents, and random vectors. At their layer thousands of them cost
nothing. To see what later layers and the output make of it, the model runs under some: under 39
differences, so that one that lies farther out than all of them does so by chance once in 40 times.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from math import ceil
from typing import Any, NamedTuple, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import normalize

from educe.activations.distance import Coverage, Geometry, differences, learning, random_vectors
from educe.activations.kept import once
from educe.activations.natural import Gathered, Natural
from educe.activations.reading import Piece, Place
from educe.activations.report import ON_TEXTS, Measure
from educe.activations.subspace import Moments
from educe.forward.chunks import split
from educe.forward.forced import UNCHANGED, Forced, perturbing
from educe.model.language import LanguageModel
from educe.perturbation.kinds import Kind, Vectors
from educe.progress import Reporter

T = TypeVar("T")

#: Texts that run together: their logits over the vocabulary are the memory that counts.
TEXTS_PER_BATCH = 6
#: Controls of each kind whose share and length are measured, and those added to the texts there.
MANY, SOME = 2000, 400
#: Natural differences that run through the model; random vectors, and random directions taken away.
TRIED, FEW = 39, 5
#: Counts up whenever other controls would be kept, or in another way.
FORMAT = 3
#: Norms that are equal to so many digits have the same controls.
DIGITS = 4


class Outcome(NamedTuple):
    """What the model makes of the texts."""

    streams: dict[int, Float[Tensor, "m d"]]  #: at each layer, counted tokens one after the other
    scores: dict[str, float]  #: by the names of `educe.activations.report.ON_TEXTS`


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
        self.parts: list[Forced] = []
        for some in split(sorted(pieces, key=lambda piece: len(piece.ids)), TEXTS_PER_BATCH):
            batch = lm.pad([piece.ids for piece in some])
            mask = batch.mask.cpu()
            counted = mask.bool() & (mask.cumsum(1) > torch.tensor([[p.skip] for p in some]))
            # After the last token of a text any could follow.
            after = [[0]] * len(some)
            self.parts.append(Forced(lm, batch, after, before=before, counted=counted))
        self.plain = self.under([UNCHANGED] * len(self.parts))

    @torch.no_grad()
    def under(self, changes: Iterable[AbstractContextManager[Any]]) -> Outcome:
        """Let the model read the texts while it is changed; each batch has a change of its own."""
        streams: dict[int, list[Tensor]] = {layer: [] for layer in self.layers}
        measured: list[list[Tensor]] = [[] for _ in ON_TEXTS]
        for part, change in zip(self.parts, changes, strict=True):
            read, counted = part.under(change, self.layers), part.counted
            for layer, stream in read.streams.items():
                streams[layer].append(stream[0][counted.to(stream.device)].float().cpu())
            said, known = (logs[counted.to(logs.device)] for logs in (read.logprobs[0], part.plain))
            values = (
                (known.exp() * (known - said)).sum(1).clamp(min=0),
                (known.argmax(1) == said.argmax(1)).float(),
                -(said.exp() * said).sum(1),
                -part.likelihood(read)[0, :, :-1][counted[:, :-1].to(said.device)],
            )
            for all_of_them, some in zip(measured, values, strict=True):
                all_of_them.append(some)
        *means, surprise = (float(torch.cat(each).mean()) for each in measured)
        return Outcome(
            {layer: torch.cat(some) for layer, some in streams.items()},
            dict(zip(ON_TEXTS, [*means, math.exp(min(700.0, surprise))], strict=True)),
        )


class Seen(NamedTuple):
    """Medians over tokens of the texts, of ``n`` perturbations, by ``s`` sizes of the corpus."""

    distance: Float[Tensor, "n s"]  #: Mahalanobis distance from the mean
    nearest: Float[Tensor, "n s"]  #: distance to the nearest natural activation
    share: Float[Tensor, "n"]  #: share of the energy of the change that lies in the top directions
    size: Float[Tensor, "n"]  #: norm of the change, as a share of the stream's

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
        self.still, self.learned, self.whole = still, learned, learned[-1][0]
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
        apart = torch.empty_like(square)  # one for all: one for each breaks up the memory
        nearest = torch.empty(len(bare), len(self.sizes))
        for i, v in enumerate(bare):
            # ‖h + v - a‖² = ‖h - a‖² - 2⟨v, a⟩ + 2⟨v, h⟩ + ‖v‖², the last two the same for all a.
            torch.sub(square, along[i], alpha=2, out=apart)
            least = self._nearest(apart) + (2 * across[i] + v.square().sum())[:, None]
            nearest[i] = least.clamp(min=0).sqrt().median(0).values
        size = vectors.norm(dim=1, keepdim=True) / self.still.norm(dim=1)
        share = self.whole.share(vectors)
        return Seen(torch.stack(distances, 1), nearest, share, size.median(1).values)

    def measures(self, own: Seen, natural: Seen, random: Seen) -> dict[str, Measure]:
        """Return what is seen under a perturbation beside what is seen under its controls."""
        none = torch.zeros(0)
        beside = {
            "distance": ("distance", self.distances, self.unmoved.distance[0]),
            "nearest": ("nearest", self.nearests, self.unmoved.nearest[0]),
            "energy": ("share", self.shares[:, None], none),
            "size": ("size", torch.zeros(0, 1), none),
        }

        def values(seen: Seen, field: str) -> Tensor:
            found: Tensor = getattr(seen, field).double()
            return found.reshape(len(found), -1)

        return {
            judge: Measure(
                values(own, field)[0],
                values(natural, field),
                values(random, field),
                activations.double(),
                still.double(),
            )
            for judge, (field, activations, still) in beside.items()
        }


class Controls(NamedTuple):
    """What ``natural`` differences and ``random`` vectors of one norm do, by these names."""

    norm: float  #: massive coordinates of differences are part of it
    seen: dict[str, dict[int, Seen]]  #: what each layer sees of the texts under them
    outputs: dict[str, Float[Tensor, "n 4"]]  #: `Outcome.scores` under those that run, a row each


class Reference:
    """Natural activations at a layer and later ones, held-out texts, and controls.

    Args:
        lm: The model.
        gathered: Natural activations at the layers (see `educe.activations.natural.gather`).
        before: The last layer that no perturbation reaches.
        layers: The last layer that is perturbed, and later ones.
        read: Moments of the gradients at the first of them (see `educe.activations.gradients`),
            to say how much of a vector later layers read.
        seed: Of the controls.
    """

    def __init__(
        self,
        lm: LanguageModel,
        gathered: Gathered,
        before: int,
        layers: Sequence[int],
        *,
        read: Moments | None = None,
        seed: int = 0,
    ) -> None:
        self.lm, self.gathered, self.seed = lm, gathered, seed
        self.before, self.layers, self.layer = before, list(layers), layers[0]
        natural = {layer: gathered.natural[Place(layer)] for layer in layers}
        self.learned = {layer: learning(known) for layer, known in natural.items()}
        self.here, self.home = natural[self.layer], self.learned[self.layer][-1][0]
        massive = self.here.massive
        self.read = None if read is None else Geometry.of(read, massive=massive)
        self.texts = HeldOut(lm, gathered.texts, before, layers)
        self.still = self.texts.plain.streams
        self.sights = {
            layer: Sight(natural[layer], self.learned[layer], self.still[layer]) for layer in layers
        }
        draw = torch.Generator().manual_seed(seed)
        self.apart = differences(self.here.sample, MANY, draw)
        self.drawn = random_vectors(MANY, self.home, draw)
        self.anywhere = torch.randn(MANY, lm.width, generator=draw)
        self._made: dict[tuple[str, float], Any] = {}

    def once(self, what: str, of: float, make: Callable[[], T], *kinds: type, say: Reporter) -> T:
        """Return controls of a number, made once: kept with what was gathered, if that is kept."""
        if (what, of) not in self._made:
            decides = (self.gathered.name, self.before, self.layers, self.seed, of)
            settings = (FORMAT, MANY, SOME, TRIED, FEW, TEXTS_PER_BATCH)
            name = hashlib.sha256(repr((decides, settings)).encode()).hexdigest()
            is_kept = bool(self.gathered.name)
            self._made[what, of] = once(f"{what}-{name}", make, kinds, say) if is_kept else make()
        made: T = self._made[what, of]
        return made

    def controls(self, norm: float, reporter: Reporter) -> Controls:
        """Return the controls of a norm, rounded."""
        norm = float(f"{norm:.{DIGITS}g}")

        def make() -> Controls:
            with reporter.stage("controls", TRIED + FEW) as step:
                return self._run(norm, step)

        return self.once("controls", norm, make, Controls, Seen, say=reporter)

    def _run(self, norm: float, step: Any) -> Controls:
        vectors = {"natural": norm * normalize(self.apart, dim=1), "random": norm * self.drawn}
        kind = Vectors(self.layer, self.lm.width)
        seen, outputs = {}, {}
        for (name, all_of_them), tried in zip(vectors.items(), (TRIED, FEW), strict=True):
            later: dict[int, list[Seen]] = {layer: [] for layer in self.layers[1:]}
            scores = []
            for vector in all_of_them[:tried]:
                outcome = self.under(kind, vector[None].float())
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
        return self.texts.under(perturbing(self.lm, kind, theta) for _ in self.texts.parts)
