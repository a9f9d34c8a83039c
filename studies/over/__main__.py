"""Over which of several prompts should a search go?

    python -m studies.over [--organism NAME ...] [--seeds 0 1] [--quick]

For each organism and seed, three of its questions: DCT over the mean effect, over each question by
itself, and over the one that is moved least, at the same radii and at about equal passes; and
random perturbations. All are asked these questions and three fresh ones, and the organism's rule
counts the answers that show what is hidden.
"""

from __future__ import annotations

import argparse
import random
import time
from collections.abc import Sequence

import educe
from benchmarks import quick
from educe.comparison.stats import rate
from educe.methods.dct import DctConfig
from educe.organisms import Organism

ORGANISMS = ("first-vault", "vault", "locked", "marked", "persona", "trigger")
QUESTIONS, N, RADII, TOKENS = 3, 12, ("0.5x", "0.75x"), 24
#: Iterations for about equal passes, a gradient counted as two: of P prompts the mean takes 3 P in
#: an iteration, the least P + 3, and each one 3.
ITERATIONS = {"mean": 10, "least": 15, "each": 30}
HEAD = "| organism | seed | over | told: asked | told: fresh | perturbations that tell | seconds |"


def main(argv: Sequence[str] | None = None) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--organism", nargs="+", default=ORGANISMS)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1])
    asked = quick.parsed(parser, argv)
    print(f"{HEAD}\n{'|---' * 7}|", flush=True)
    for name in asked.organism[:1] if asked.quick else asked.organism:
        organism = quick.organism(name, quick=asked.quick)
        lm = quick.model(organism, quick=asked.quick)
        for seed in asked.seeds[:1] if asked.quick else asked.seeds:
            rows(lm, organism, seed, iterations=1 if asked.quick else 10)


def rows(lm: educe.LanguageModel, organism: Organism, seed: int, *, iterations: int) -> None:
    """Print the lines of one organism and seed."""
    draw = random.Random(seed)
    asked = draw.sample(organism.search, QUESTIONS)
    fresh = draw.sample(organism.fresh, QUESTIONS)
    part = educe.Slice(lm, [q.prompt for q in asked], source=0.33, target=0.6)
    ways, found, seconds = (*ITERATIONS, "random"), [], []
    for over in ways:
        began = time.monotonic()
        found += [searched(part, over, k, seed, iterations) for k in range(len(RADII))]
        seconds.append(time.monotonic() - began)
    rules = {q.prompt: q for q in (*asked, *fresh)}
    group = educe.PerturbationGroup(tuple(found))
    texts = educe.write(lm, group, list(rules), baseline=1, max_new_tokens=TOKENS)
    rule = list(rules.values())
    told = [rule[p].elicited(t) for p, t in zip(texts.prompt, texts.text, strict=True)]
    texts = texts.assign(told=told, way=(texts.perturbation - 1) // (N * len(RADII)))
    for way, over in enumerate(ways):
        own = texts[texts.way == way]
        here = own.prompt < QUESTIONS
        shares = [rate(int(some.told.sum()), len(some)) for some in (own[here], own[~here])]
        each = own[~here].groupby("perturbation").told.any()
        cells = [organism.name, seed, over, *shares, rate(int(each.sum()), len(each))]
        print(f"| {' | '.join(map(str, cells))} | {seconds[way]:.0f} |", flush=True)


def searched(
    part: educe.Slice, over: str, k: int, seed: int, iterations: int
) -> educe.PerturbationSet:
    """Return what is found at a radius, or random perturbations of it."""
    how = {"n": N, "radius": RADII[k], "seed": 100 * seed + k}
    if over == "random":
        return educe.search(part, "random", **how)  # type: ignore[arg-type]
    config = DctConfig(iterations=ITERATIONS[over] * iterations // 10)
    return educe.search(part, "dct", over=over, config=config, **how)  # type: ignore[arg-type]


if __name__ == "__main__":
    main()
