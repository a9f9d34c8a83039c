"""The passport of a perturbation: its numbers, each with its controls, and what they say in words.

Controls are differences between natural activations and random vectors, of the same norm, through
the same measures. Nothing here needs a model: a run keeps passports as JSON.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

#: A direction is not natural when fewer natural differences than this share lie so far out.
LEVEL = 0.01
#: Activations under a perturbation stand out when under a natural difference they would lie so far
#: out no more often than this.
CHANCE = 0.025
#: Values of a control of which no 95% can be told.
FEWEST = 40
#: Energy beyond massive coordinates, as a share, of which nothing can be said.
NOTHING = 1e-6


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
    """A value among those of its controls.

    Attributes:
        found: Of the perturbation.
        natural: Of natural differences.
        random: Of random vectors.
        percentile: The share of the natural differences whose value is smaller.
        activations: The share of held-out natural activations whose value is smaller: what deviates
            from the mean in place of the vector.
        among_random: The share of the random vectors whose value is smaller.
    """

    found: float
    natural: Range
    random: Range
    percentile: float
    activations: float | None = None
    among_random: float | None = None


@dataclass(frozen=True)
class Known:
    """What a layer sees of the perturbation by what some share of the corpus says.

    Attributes:
        tokens: Tokens that the geometry was computed from; of the activations to look for the
            nearest among, as large a share is taken.
        optimism: Mean squared distance of held-out activations over that of the others.
        enough: Whether held-out activations look like the others.
        distance: See `Depth`.
        nearest: See `Depth`.
    """

    tokens: int
    optimism: float
    enough: bool
    distance: Standing
    nearest: Standing


@dataclass(frozen=True)
class Depth:
    """What a layer sees of the perturbation.

    Attributes:
        layer: The layer.
        controls: How many natural differences and how many random vectors it is compared with.
        distance: Median percentile of perturbed activations' Mahalanobis distance among that of
            held-out natural ones; and the share of natural differences under which they lie less
            far out.
        nearest: The same of the distance to the nearest natural activation.
        still_distance: The first, of the same texts without perturbation.
        still_nearest: The second.
        share: Share of the energy of what is changed that lies in the top directions.
        size: Norm of what is changed, as a share of the stream's.
        chance: That share for a random vector at this layer.
        enough: Whether the corpus is large enough at this layer.
        growth: Distance and nearest at an eighth, a quarter, a half and all of the corpus.
    """

    layer: int
    controls: tuple[int, int]
    distance: Standing
    nearest: Standing
    share: Standing
    size: Standing
    still_distance: float
    still_nearest: float
    chance: float
    enough: bool
    growth: tuple[Known, ...]


@dataclass(frozen=True)
class Grown:
    """What the measures say at some size of the corpus.

    Attributes:
        tokens: Tokens that the geometry was computed from.
        covered: Share of the held-out variance in the top directions; ``fitted``: of its own.
        optimism: Mean squared distance of held-out activations over that of the others.
        share: Percentile of the vector's share among natural differences.
        length: Percentile of its length.
        enough: Whether held-out activations look like the others.
    """

    tokens: int
    covered: float
    fitted: float
    optimism: float
    share: float
    length: float
    enough: bool


@dataclass(frozen=True)
class Output:
    """What the model makes of held-out texts (see `educe.activations.trial`), under what."""

    name: str
    kl: float
    same: float
    entropy: float
    perplexity: float


@dataclass(frozen=True)
class Taken:
    """What taking the direction away does at its layer.

    Attributes:
        form: ``origin``, ``mean`` or ``oblique``.
        outside: Share of the energy of the change in directions that natural activations do not
            use; `natural` and `chance` of it are in the passport.
        after: Variance in these directions afterwards, as a share of the natural variance.
        kl: From the unperturbed model on held-out texts, in nats.
        random: The same for random directions of equal variance.
        same: How often the likeliest next token is still the unperturbed model's.
        random_same: The same for random directions of equal variance.
        perplexity: Of held-out texts.
        random_perplexity: The same for random directions of equal variance.
    """

    form: str
    outside: float
    after: float
    kl: float
    random: Range
    same: float
    random_same: Range
    perplexity: float
    random_perplexity: Range


@dataclass(frozen=True)
class Passport:
    """Where a perturbation stands among natural activations.

    Attributes:
        number: In its run.
        arm: Found or control.
        layer: Where it is looked at first.
        target: The target layer of its run.
        norm: Norm of what is added there.
        corpus: Where natural activations come from.
        tokens: How many they are: those fitted to, and those held out.
        documents: Of how many documents.
        controls: How many natural differences, and how many random vectors, run through the model;
            as many random directions are taken away.
        width: Width of the stream, massive coordinates left out.
        rank: Number of top directions, which hold 90% of the variance.
        chance: Share of a random vector in them: mean, and what 95% lie between.
        massive: Coordinates that were left out.
        massive_share: Share of the energy in them.
        massive_tokens: Tokens that were left out for a massive activation.
        first: Norm of the activations of first tokens, which are left out, over that of the others.
        share: Share of the energy in the top directions.
        length: Mahalanobis length of the vector and of controls scaled to its norm.
        size: Mahalanobis length of the vector and of natural differences in their own norm.
        prompt: Share of the energy in the span of the prompts' own activations, if there are any.
        prompt_rank: Dimensions of that span.
        spectrum: Curves over the number of directions: energy within, by name.
        depth: What each layer sees.
        growth: The learning curve.
        outputs: Perturbed models on held-out texts; the first is the unperturbed one.
        unused: Natural share, and chance, of directions that natural activations do not use.
        taken: What taking the direction away does.
        writes: What the model writes: how it is changed, and the text.
    """

    number: int
    arm: str
    layer: int
    target: int
    norm: float
    corpus: str
    tokens: tuple[int, int]
    documents: int
    controls: tuple[int, int]
    width: int
    rank: int
    chance: Range
    massive: tuple[int, ...]
    massive_share: Standing
    massive_tokens: int
    first: float
    share: Standing
    length: Standing
    size: Standing
    prompt: Standing | None
    prompt_rank: int
    spectrum: dict[str, list[float]]
    depth: tuple[Depth, ...]
    growth: tuple[Grown, ...]
    outputs: tuple[Output, ...]
    unused: tuple[float, float]
    taken: tuple[Taken, ...]
    writes: tuple[tuple[str, str], ...]

    def data(self) -> dict[str, Any]:
        """Return all of it, and the words, as JSON can hold it."""
        return asdict(self) | {"words": words(self), "verdict": verdict(self)}


def verdict(p: Passport) -> str:
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
    return {"massive": "outside", "nothing": "unknown"}.get(found := _found(p), found)


def _found(p: Passport) -> str:
    """Return the verdict, or ``massive`` or ``nothing`` where massive coordinates decide."""
    last, before = p.growth[-1], p.growth[-2] if len(p.growth) > 1 else None
    if not last.enough:
        return "unknown"
    if p.massive_share.percentile > 1 - LEVEL:
        return "massive"
    if p.massive_share.found > 1 - NOTHING:
        return "nothing"
    if before is None or _beyond(before) != _beyond(last):
        return "unknown"
    if not _beyond(last):
        return "exaggerated" if p.size.percentile > 1 - LEVEL else "natural"
    if p.share.found > p.share.random.high or p.length.found < p.length.random.low:
        return "outside"
    return "farther" if _beyond_random(p) else "random"


def _beyond(at: Grown) -> bool:
    return at.share < LEVEL or at.length > 1 - LEVEL


def _beyond_random(p: Passport) -> bool:
    """Whether it lies farther out than random vectors, by both measures.

    By one alone a random vector would pass twice as often; by both it does in fewer than one of a
    hundred draws.
    """
    share, length = p.share.among_random, p.length.among_random
    assert share is not None
    assert length is not None
    return share < LEVEL and length > 1 - LEVEL


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


def words(p: Passport) -> str:
    """Say in one sentence what the evidence allows."""
    found = _found(p)
    told = f"At layer {p.layer} {_WORDS[found]}"
    if len(p.depth) > 1 and p.depth[0].enough:
        told += f"; {_healing(p.depth)}"
    return told + "."


def _healing(depth: Sequence[Depth]) -> str:
    """Say what becomes of it along the depth, against natural differences of the same norm."""
    first, last = depth[0], depth[-1]
    began, ended = map(stands_out, (first, last))
    told = (
        f"activations under it {'stand' if began else 'do not stand'} out from those under natural "
        f"differences of its norm (farther out than {_beaten(first)})"
    )
    if not last.enough:
        return (
            f"{told}, and the corpus is too small to say what becomes of it by layer {last.layer}"
        )
    ends = {
        (True, True): "and at layer {} still do",
        (True, False): "and at layer {} no longer do",
        (False, True): "but at layer {} they do",
        (False, False): "nor do they at layer {}",
    }
    return f"{told}, {ends[began, ended].format(last.layer)} ({_beaten(last)})"


def stands_out(at: Depth) -> bool:
    """Whether activations lie so far out that exchangeable ones rarely would."""
    n = at.controls[0]
    return (1 + n * (1 - at.distance.percentile)) / (1 + n) <= CHANCE


def _beaten(at: Depth) -> str:
    n = at.controls[0]
    return f"{int(n * at.distance.percentile)} of {n}"
