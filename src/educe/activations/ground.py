"""Where perturbations are examined: natural activations, held-out texts, and controls.

Controls of a norm are the same for every perturbation of that norm: differences between held-out
activations of different documents, and random vectors. At their layer thousands of them cost
nothing. To see what later layers and the output make of it, the model runs under some: under 39
differences, so that one that lies farther out than all of them does so by chance once in 40 times.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import normalize

from educe.activations.depth import Seen, Sight
from educe.activations.distance import differences, learning, random_vectors
from educe.activations.kept import once
from educe.activations.natural import Gathered
from educe.activations.reading import Place
from educe.activations.record import Output
from educe.activations.trial import TEXTS_PER_BATCH, Outcome, Trial
from educe.forward.forced import perturbing
from educe.kinds import Vectors
from educe.model import LanguageModel
from educe.progress import Reporter, Silent

#: Controls of each kind whose share and length are measured, and those added to the texts there.
MANY, SOME = 2000, 400
#: Natural differences that run through the model; random vectors, and random directions taken away.
TRIED, FEW = 39, 5
#: Norms that are equal to so many digits have the same controls.
DIGITS = 4


class Controls(NamedTuple):
    """What differences between natural activations, and random vectors, of one norm do.

    Attributes:
        norm: Their norm; massive coordinates of differences are part of it.
        seen: What each layer sees of the texts under them, by ``natural`` and ``random``.
        outputs: What the model makes of the texts under those that run.
    """

    norm: float
    seen: dict[str, dict[int, Seen]]
    outputs: list[Output]


class Ground:
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
        self.trial = Trial(lm, gathered.texts, before, layers)
        self.sights = {
            layer: Sight(self.natural[layer], self.learned[layer], self.trial.plain.streams[layer])
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
            self._last = once(name, make, _packed, _unpacked, reporter) if name else make()
        return self._last

    def _name(self, norm: float) -> str | None:
        """Return what decides the controls of a norm, as a digest."""
        of = (self.gathered.name, self.before, self.layers, self.seed, norm)
        settings = (MANY, SOME, TRIED, FEW, TEXTS_PER_BATCH)
        digest = hashlib.sha256(repr((of, settings)).encode()).hexdigest()
        return f"controls-{digest}" if self.gathered.name else None

    def _run(self, norm: float, step: Any) -> Controls:
        vectors = {"natural": norm * normalize(self.apart, dim=1), "random": norm * self.drawn}
        seen, outputs = {}, []
        for (name, all_of_them), tried in zip(vectors.items(), (TRIED, FEW), strict=True):
            later: dict[int, list[Seen]] = {layer: [] for layer in self.layers[1:]}
            for i, vector in enumerate(all_of_them[:tried], 1):
                outcome = self.under(vector[None])
                outputs.append(output(f"{name} {i}", outcome))
                for layer, some in later.items():
                    some.append(self.sights[layer].of(outcome.streams[layer]))
                step()
            here = {self.layer: self.sights[self.layer].under(all_of_them[:SOME])}
            seen[name] = here | {layer: Seen.joined(some) for layer, some in later.items()}
        return Controls(norm, seen, outputs)

    def under(self, vector: Float[Tensor, "1 d"]) -> Outcome:
        """Let the model read the texts with a vector added to every token at the layer."""
        kind = Vectors(self.layer, self.lm.width)
        return self.trial.under(partial(perturbing, self.lm, kind, vector.float()))


def output(name: str, outcome: Outcome) -> Output:
    """Name an outcome, and leave its streams out."""
    return Output(name, outcome.kl, outcome.same, outcome.entropy, outcome.perplexity)


def _packed(controls: Controls) -> tuple[dict[str, Tensor], Any]:
    tensors = {
        f"{kind} {layer} {field}": value
        for kind, layers in controls.seen.items()
        for layer, seen in layers.items()
        for field, value in seen._asdict().items()
    }
    return tensors, [
        controls.norm,
        {kind: list(layers) for kind, layers in controls.seen.items()},
        [asdict(one) for one in controls.outputs],
    ]


def _unpacked(tensors: dict[str, Tensor], rest: Any) -> Controls:
    norm, layers, outputs = rest
    seen = {
        kind: {
            at: Seen(*(tensors[f"{kind} {at} {field}"] for field in Seen._fields)) for at in some
        }
        for kind, some in layers.items()
    }
    return Controls(norm, seen, [Output(**one) for one in outputs])
