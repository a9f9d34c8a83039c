"""Choosing the layers to search between, from what a layer map knows of promising pairs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from educe.errors import LayerError
from educe.layer_map import LayerMap, LayerMapConfig, Pair, grid

#: For a choice: two thirds of the work of the defaults.
CHEAP = LayerMapConfig(top=2, padding=2)
#: Where layers are chosen from, as shares of the depth: the range in which published searches that
#: found something were made. Nearer than `APART` a target is driven by what single blocks do.
SOURCES, TARGETS, APART = (0.2, 0.5), (0.5, 0.9), 0.15
#: What counts as nearly as good as the best, when a nearer target is.
NEARLY = 0.95
#: From so many sources, at most, a choice is made cheaply.
FEW = 8


def promising(depth: int, source: int | None = None, target: int | None = None) -> list[Pair]:
    """Return the pairs that layers are chosen from.

    Args:
        depth: Number of blocks.
        source: The source, where it is given.
        target: The target, where it is given; the others are there to compare with.

    Raises:
        LayerError: There is no source for the target, or no target for the source.
    """
    low, high = (round(share * depth) for share in SOURCES)
    sources = range(low, high) if source is None else [source]
    low, high = (round(share * depth) for share in TARGETS)
    targets = {*range(low, high), *([] if target is None else [target])}
    pairs = [
        pair
        for pair in grid(depth, sources, targets)
        if pair.target - pair.source >= APART * depth or (source, target) == pair
    ]
    if not any(target in (None, pair.target) for pair in pairs):
        raise LayerError(
            f"no layer can be chosen for source {source} and target {target} in {depth} blocks: "
            f"sources are looked for between {SOURCES[0]:.0%} and {SOURCES[1]:.0%} of the depth, "
            f"targets between {TARGETS[0]:.0%} and {TARGETS[1]:.0%}; give both layers"
        )
    return pairs


def thinned(pairs: Sequence[Pair]) -> list[Pair]:
    """Return the pairs of a few sources, evenly spaced; targets of a source cost little."""
    sources = sorted({pair.source for pair in pairs})
    kept = sources[:: -(-len(sources) // FEW)]
    return [pair for pair in pairs if pair.source in kept]


class Choice(NamedTuple):
    """A pair of layers, and why this one."""

    source: int
    target: int
    why: str


def choose(layer_map: LayerMap, source: int | None = None, target: int | None = None) -> Choice:
    """Choose layers to search between.

    The source whose top direction stands out most and stays the same from wherever one looks: the
    largest product of spectral gap and steadiness among `promising` pairs. There what is found
    depends least on choices that nobody has reasons for: the rotation of singular vectors among
    each other, and the target. Of its targets with nearly that product, the nearest, since search
    pays for every block between. It says nothing of how much is hidden.

    Args:
        layer_map: What is known, of some promising pairs at least.
        source: The source, where it is given.
        target: The target, where it is given.

    Raises:
        LayerError: The layer map knows no promising pair.
    """
    looked = layer_map.select(promising(layer_map.depth, source, target))
    rated = [
        (float(gap * steady), i)
        for i, (gap, steady) in enumerate(zip(looked.gap, looked.steadiness, strict=True))
        if target in (None, looked.pairs[i].target)
    ]
    if not rated:
        raise LayerError(
            "the layer map has no pair of layers to choose from: survey promising ones"
        )
    most, top = max(rated)
    best = min(
        (i for rate, i in rated if rate >= NEARLY * most),
        key=lambda i: (looked.pairs[i].source != looked.pairs[top].source, looked.pairs[i].target),
    )
    pair = looked.pairs[best]
    return Choice(
        *pair,
        why=f"of {len(rated)} pairs looked at, {pair.source} to {pair.target} has the direction "
        "that stands out most steadily, or nearly so with fewer blocks between: the next singular "
        f"value is {looked.gap[best]:.0%} lower, its mean cosine with what other targets see is "
        f"{looked.steadiness[best]:.2f}, and a small dose of it arrives {looked.gain[best]:.1f} "
        "times as large; where most is hidden this does not tell",
    )
