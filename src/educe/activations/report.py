"""The manifold report: where a perturbation stands among natural activations, beside its controls.

Each number is a score of the perturbation in its run, under the judge's name in `JUDGES`. Its
controls are differences between natural activations and random vectors, of the same norm, through
the same measure: their values are kept in a file of the run's tensors, and a `Standing` says where
the number lies among them. Nothing here needs a model.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from educe.activations.distance import Coverage, percentile

#: A direction is not natural when fewer natural differences than this share lie so far out.
LEVEL = 0.01
#: Activations under a perturbation stand out when under a natural difference they would lie so far
#: out no more often than this.
CHANCE = 0.025
#: Values of a control of which no 95% can be told.
FEWEST = 40
#: Energy beyond massive coordinates, as a share, of which nothing can be said.
NOTHING = 1e-6

#: What is measured of the perturbation at its layer, of activations under it at that layer and
#: later ones (the layer's number follows the name), of the model on held-out texts, and of the
#: model without a direction; each with its unit.
AT_LAYER = {
    "energy_massive": "share of the energy in massive coordinates",
    "energy_top": "share of the energy in the top directions",
    "mahalanobis": "Mahalanobis length, beside controls of its norm",
    "mahalanobis_own": "Mahalanobis length, beside natural differences as long as they are",
    "energy_prompt": "share of the energy in the span of the prompts",
    "read": "share of the energy in what later layers read",
}
ALONG_DEPTH = {
    "distance": "share of natural activations at a smaller Mahalanobis distance",
    "nearest": "share of natural activations nearer to another",
    "energy": "share of the energy of the change in the top directions",
    "size": "norm of the change, as a share of the stream's",
}
ON_TEXTS = {
    "heldout_kl": "nats",
    "heldout_same": "share of tokens after which the likeliest next one is the same",
    "heldout_entropy": "nats",
    "heldout_perplexity": "perplexity",
}
OF_ABLATIONS = {
    "energy_unused": "share of the energy of the change in unused directions",
    "variance_unused": "variance in unused directions, as a share of the natural variance",
}
#: Those that are percentiles.
PERCENTILES = ("distance", "nearest")
JUDGES = AT_LAYER | ALONG_DEPTH | ON_TEXTS | OF_ABLATIONS

#: How perturbations are derived: parts of a vector, and directions that are taken away, its own
#: and random ones.
INSIDE, OUTSIDE = "part inside", "part outside"
FORMS = ("about the origin", "about the mean", "obliquely")
ABLATED, RANDOM = "direction ablated {}", "random "


def at_layer(judge: str, layer: int) -> str:
    """Return the name of a measure at a layer."""
    return f"{judge}_{layer}"


def unit(judge: str) -> str:
    """Return the unit of a judge."""
    name, _, number = judge.rpartition("_")
    return JUDGES[name if number.isdigit() else judge]


class Measure(NamedTuple):
    """A measure of a perturbation and of its controls, at ``s`` sizes of the corpus, all last."""

    own: Float[Tensor, "s"]  #: of the perturbation
    natural: Float[Tensor, "n s"]  #: of natural differences
    random: Float[Tensor, "m s"]  #: of random vectors
    activations: Float[Tensor, "a s"] = torch.zeros(0, 1)  #: of held-out ones, where it has a sense
    still: Float[Tensor, "#s"] = torch.zeros(0)  #: of the texts unperturbed, where it is of texts

    def standings(self, judge: str) -> tuple[Standing, ...]:
        """Return where the perturbation stands at each size.

        Distances are given as percentiles among held-out activations. Among the controls they are
        placed as they are: percentiles no longer differ at 100%.
        """
        return tuple(self._standing(i, judge.startswith(PERCENTILES)) for i in range(len(self.own)))

    def _standing(self, i: int, percentiles: bool) -> Standing:
        own, natural, random = self.own[i : i + 1], self.natural[:, i], self.random[:, i]
        activations, still = self.activations[:, i : i + 1].flatten(), self.still[i : i + 1]

        def shown(values: Tensor) -> Tensor:
            return percentile(values, activations) if percentiles else values

        return Standing(
            float(shown(own)),
            Range.of(shown(natural)),
            Range.of(shown(random)),
            float(percentile(own, natural)),
            float(percentile(own, random)),
            float(percentile(own, activations)) if len(activations) else None,
            float(shown(still)) if len(still) else None,
        )


@dataclass(frozen=True)
class Range:
    """Values of a control: the median, and what 95% of them lie between; of a few, what all do."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Any) -> Range:
        """Return the range of some values; from the lowest to the highest below 40 of them."""
        values = np.asarray(values, dtype=float)
        ends = [0.025, 0.5, 0.975] if len(values) >= FEWEST else [0, 0.5, 1]
        low, median, high = np.quantile(values, ends)
        return cls(float(median), float(low), float(high))


@dataclass(frozen=True)
class Standing:
    """A value among those of its controls; shares of them are of those that are smaller."""

    found: float  #: of the perturbation: the score
    natural: Range  #: of natural differences
    random: Range  #: of random vectors
    percentile: float  #: the share of the natural differences
    among_random: float  #: the share of the random vectors
    activations: float | None = None  #: the share of held-out natural activations
    still: float | None = None  #: of the same texts without perturbation


@dataclass(frozen=True)
class Facts:
    """What a perturbation was examined with."""

    layer: int  #: where it is looked at first
    layers: tuple[int, ...]  #: where activations under it are: that layer and later ones
    norm: float  #: of what is added there
    corpus: str  #: where natural activations come from
    fitted: int  #: tokens of the corpus that the covariance is from
    held_out: int  #: those that are held out
    documents: int  #: of how many documents
    added: int  #: controls of each kind that are added to the texts at the layer
    tried: tuple[int, int]  #: natural differences that run through the model, and random vectors
    width: int  #: of the stream, massive coordinates left out
    rank: int  #: number of top directions, which hold 90% of the variance
    chance: Range  #: share of a random vector in them: mean, and what 95% lie between
    massive: tuple[int, ...]  #: coordinates that are left out
    massive_tokens: int  #: tokens that are left out for a massive activation
    first: float  #: norm of activations of first tokens, which are left out, over the others'
    prompt_rank: int  #: dimensions of the span of the prompts' own activations; 0 without prompts
    unused: tuple[float, float]  #: share of natural variance in unused directions; of random ones
    read_rank: int = 0  #: directions with 90% of what later layers read; 0 where it is not known


@dataclass(frozen=True)
class Derived:
    """A perturbation that is derived from the one examined, and what comes of it."""

    how: str  #: a part of it, or its direction or a random one ablated
    scores: Mapping[str, float]  #: by judge
    text: str | None = None  #: what the model writes to the first prompt under it, if asked


@dataclass(frozen=True)
class ManifoldReport:
    """Where a perturbation stands among natural activations.

    Attributes:
        number: In its run.
        arm: Found or control.
        facts: What it was examined with.
        standings: By judge, at each size of the corpus: an eighth, a quarter, a half and all.
        coverage: By layer, how well natural activations are known at each of these sizes.
        spectrum: Curves over the number of directions: energy within, by name.
        derived: Its parts, and what takes its direction, or random ones, away.
        texts: What the unperturbed model writes to the first prompt, and the perturbed one, where
            they were asked.
    """

    number: int
    arm: str
    facts: Facts
    standings: Mapping[str, tuple[Standing, ...]]
    coverage: Mapping[int, tuple[Coverage, ...]]
    spectrum: Mapping[str, list[float]]
    derived: tuple[Derived, ...]
    texts: tuple[str | None, ...] = ()

    def __getitem__(self, judge: str) -> Standing:
        """Return where it stands with all of the corpus, by the name of the measure."""
        return self.standings[judge][-1]

    def at(self, judge: str, layer: int) -> Standing:
        """Return where activations under it stand at a layer."""
        return self[at_layer(judge, layer)]

    def controls(self, layer: int) -> int:
        """Return how many natural differences activations under it are compared with."""
        return self.facts.added if layer == self.facts.layer else self.facts.tried[0]

    def enough(self, layer: int) -> bool:
        """Return whether the corpus is large enough at a layer."""
        return self.coverage[layer][-1].enough

    def outcomes(self, how: str) -> list[Derived]:
        """Return what was derived so."""
        return [one for one in self.derived if one.how == how]

    def range(self, how: str, judge: str) -> Range:
        """Return the range of a score over what was derived so."""
        return Range.of([one.scores[judge] for one in self.outcomes(how)])

    def data(self) -> dict[str, Any]:
        """Return all of it, and the words, as JSON can hold it."""
        coverage = {
            layer: [c._asdict() | {"enough": c.enough} for c in sizes]
            for layer, sizes in self.coverage.items()
        }
        told = {"words": words(self), "verdict": verdict(self)}
        return asdict(self) | {"coverage": coverage} | told


def verdict(r: ManifoldReport) -> str:
    """Say in one word where a perturbation stands.

    ``unknown``: the corpus is too small to say, or half of it says something else; or the vector
    lies in massive coordinates alone, and natural differences do too.
    ``natural``: natural activations differ in such directions. ``exaggerated``: they do, but not by
    so much: more than 99 in a hundred differences are shorter. ``outside``: fewer than one in a
    hundred natural differences lie so far out, by share or by length, yet the vector is nearer than
    random ones; or more of it lies in massive coordinates than of 99 in a hundred. ``random``: as
    far out as random vectors. ``farther``: farther out than 99 in a hundred of them, by share and
    by length: it avoids the directions in which natural activations differ.
    """
    return {"massive": "outside", "nothing": "unknown"}.get(found := _found(r), found)


def _found(r: ManifoldReport) -> str:
    """Return the verdict, or ``massive`` or ``nothing`` where massive coordinates decide."""
    massive, share, length = (r[j] for j in ("energy_massive", "energy_top", "mahalanobis"))
    if not r.enough(r.facts.layer):
        return "unknown"
    if massive.percentile > 1 - LEVEL:
        return "massive"
    if massive.found > 1 - NOTHING:
        return "nothing"
    beyond = _beyond(r)
    if len(beyond) < 2 or beyond[-2] != beyond[-1]:
        return "unknown"
    if not beyond[-1]:
        return "exaggerated" if r["mahalanobis_own"].percentile > 1 - LEVEL else "natural"
    if share.found > share.random.high or length.found < length.random.low:
        return "outside"
    # By one measure alone a random vector would pass twice as often; by both it does in fewer than
    # one of a hundred draws.
    farther = share.among_random < LEVEL and length.among_random > 1 - LEVEL
    return "farther" if farther else "random"


def _beyond(r: ManifoldReport) -> list[bool]:
    """Return, at each size of the corpus, whether few natural differences lie so far out."""
    sizes = zip(r.standings["energy_top"], r.standings["mahalanobis"], strict=True)
    return [share.percentile < LEVEL or length.percentile > 1 - LEVEL for share, length in sizes]


_WORDS = {
    "natural": "it points where natural activations differ from one another",
    "exaggerated": "it points where natural activations differ from one another, but is longer "
    "than such differences are",
    "outside": "it points where natural activations hardly differ from one another, though more so "
    "than random vectors do",
    "random": "it points where natural activations hardly differ from one another, as random "
    "vectors do",
    "farther": "it points where natural activations hardly differ from one another, and lies "
    "farther out than 99 in a hundred random vectors",
    "massive": "more of it lies in massive coordinates than of 99 in a hundred differences between "
    "natural activations",
    "nothing": "it lies in massive coordinates alone, as differences between natural activations "
    "do, and these are in no measure",
    "unknown": "the corpus is too small to say whether it points where natural activations differ",
}


def words(r: ManifoldReport) -> str:
    """Say in one sentence what the evidence allows."""
    told = f"At layer {r.facts.layer} {_WORDS[_found(r)]}"
    if len(r.facts.layers) > 1 and r.enough(r.facts.layer):
        told += f"; {_healing(r)}"
    return f"{told}."


def _healing(r: ManifoldReport) -> str:
    """Say what becomes of it along the depth, against natural differences of the same norm."""
    first, last = r.facts.layers[0], r.facts.layers[-1]
    began, ended = (rare(r.at("distance", at), r.controls(at)) for at in (first, last))
    told = (
        f"activations under it {'stand' if began else 'do not stand'} out from those under natural "
        f"differences of its norm (farther out than {_beaten(r, first)})"
    )
    if not r.enough(last):
        return f"{told}, and the corpus is too small to say what becomes of it by layer {last}"
    ends = {
        (True, True): "and at layer {} still do",
        (True, False): "and at layer {} no longer do",
        (False, True): "but at layer {} they do",
        (False, False): "nor do they at layer {}",
    }
    return f"{told}, {ends[began, ended].format(last)} ({_beaten(r, last)})"


def rare(at: Standing, controls: int) -> bool:
    """Whether a value is so high among its controls that an exchangeable one rarely would be."""
    return (1 + controls * (1 - at.percentile)) / (1 + controls) <= CHANCE


def _beaten(r: ManifoldReport, layer: int) -> str:
    n = r.controls(layer)
    return f"{int(n * r.at('distance', layer).percentile)} of {n}"
