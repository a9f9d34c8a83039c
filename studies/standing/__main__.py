"""Can vectors on and off the manifold of the embedded model be told apart?

python -m studies.standing [LAYER...] [--quick]

Reads the bundled corpus. Controls are differences between held-out activations of every second
document; what is told apart are such differences of the other documents, random vectors, mixtures
of both by energy, and random vectors of the top 64 directions, all of one norm. A vector is called
outside when fewer than one in a hundred controls lie so far out, by share or by length. Then the
same for vectors that are searched for an effect nine layers later, on one prompt.
"""

from __future__ import annotations

import argparse
import resource
import time
from collections.abc import Sequence

import torch
from torch.nn.functional import normalize

import educe
from benchmarks import quick
from educe.activations import corpus
from educe.activations.distance import (
    Geometry,
    differences,
    learning,
    percentile,
    random_vectors,
)
from educe.activations.natural import Natural, Sample, gather
from educe.activations.project import injection, oblique, plain
from educe.activations.reading import Place
from educe.activations.report import LEVEL, Range
from educe.comparison.stats import rate

N, MANY, ABLATED = 500, 2000, 20
#: Layers, and how many later a search reads: in full, and in the quick form.
LAYERS, LATER = ((9, 18, 29), (2,)), (9, 4)
#: Directions that random vectors are drawn within.
TOP = 64
METHODS, FOUND, SHARE, PROMPT = ("dct", "melbo", "power"), 16, 0.75, "What code unlocks the vault?"


def halves(sample: Sample) -> list[Sample]:
    """Split a sample by documents."""
    even = torch.isin(sample.document, sample.document.unique()[::2])
    return [Sample(*(part[at] for part in sample)) for at in (even, ~even)]


def tell(natural: Natural, searched: dict[str, torch.Tensor]) -> None:
    draw = torch.Generator().manual_seed(0)
    curve = learning(natural)
    geometry = curve[-1][0]
    for _, known in curve:
        print("  ", known, "enough" if known.enough else "too small")
    first, second = halves(natural.sample)

    def unit(sample: Sample, n: int) -> torch.Tensor:
        return normalize(geometry.bare(differences(sample, n, draw)), dim=1)

    controls, random = unit(first, MANY), random_vectors(MANY, geometry, draw)
    apart, drawn = unit(second, N), random_vectors(N, geometry, draw)
    for name, measure in (("share", geometry.share), ("length", geometry.length)):
        print("  ", name, Range.of(measure(controls)), "random", Range.of(measure(random)))
    planted = {"natural differences": apart, "random vectors": drawn}
    for m in (0.1, 0.25, 0.5, 0.75):
        planted[f"{m:.0%} random by energy"] = normalize(
            (1 - m) ** 0.5 * apart + m**0.5 * drawn, dim=1
        )
    top = geometry.vectors[:TOP]
    inside = torch.randn(N, len(top), generator=draw, dtype=torch.float64) @ top
    planted[f"random in the top {len(top)}"] = normalize(inside, dim=1)
    found = {name: normalize(geometry.bare(v), dim=1) for name, v in searched.items()}
    for name, vectors in (planted | found).items():
        print("  ", name, rate(int(outside(geometry, vectors, controls).sum()), len(vectors)))
    for name, vectors in found.items():
        for measure in (geometry.share, geometry.length):
            print("  ", name, measure.__name__, Range.of(measure(vectors)))
    for name, vectors in (("natural", apart), ("random", drawn)):
        for form in ("mean", "oblique"):
            shares = [
                injection(
                    plain(u[None], natural.moments.mean)
                    if form == "mean"
                    else oblique(u[None], natural.moments),
                    geometry,
                ).outside
                for u in vectors[:ABLATED]
            ]
            print("   change in unused directions:", name, form, Range.of(shares))


def outside(geometry: Geometry, vectors: torch.Tensor, controls: torch.Tensor) -> torch.Tensor:
    share = percentile(geometry.share(vectors), geometry.share(controls))
    length = percentile(geometry.length(vectors), geometry.length(controls))
    return (share < LEVEL) | (length > 1 - LEVEL)


def search(lm: educe.LanguageModel, layer: int, later: int) -> dict[str, torch.Tensor]:
    """Return the vectors that each method finds between a layer and one above."""
    if layer + later >= lm.depth:
        return {}
    part = educe.Slice(lm, lm.encode([PROMPT]), source=layer, target=layer + later)
    radius = SHARE * educe.calibrate(part).radius
    print(f"   searched at a dose of {radius / part.median_norm:.2f}")
    return {m: educe.search(part, m, n=FOUND, radius=radius, seed=0).directions for m in METHODS}


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("layers", type=int, nargs="*", help="by default 9, 18 and 29")
    asked = quick.parsed(parser, argv)
    lm = quick.model(quick=asked.quick)
    places = [Place(layer) for layer in asked.layers or LAYERS[asked.quick]]
    began = time.process_time()
    gathered = gather(lm, corpus.documents(), places)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    print(f"{time.process_time() - began:.0f} s, {peak:.2f} GB, {gathered.massive} massive tokens")
    for place, natural in gathered.natural.items():
        print(place, "massive coordinates", natural.massive, "first tokens", natural.first_norm)
        tell(natural, search(lm, place.layer, LATER[asked.quick]))


if __name__ == "__main__":
    main()
