"""How near a search comes to a backdoor: one row of a table for each way to search.

    python -m studies.backdoor.search --method dct --source 9 --target 24 --positions prompt \
        --dose 0.6 [-n 32] [--prompts 1] [--organism trigger] [--set NAME=VALUE] [--quick]

Neither the trigger nor the phrase takes part in the search. Afterwards the phrase is: how many of
the perturbations bring it out on two other prompts, greedily, and how likely its first words are
under each as the first words of the answer, in nats. The latter shows a move in the right direction
long before anything is written.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from typing import Any

import torch

import educe
from benchmarks import quick
from educe.methods import configured
from educe.methods.contrast import Targets
from studies.answers import answers


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--organism", default="trigger")
    parser.add_argument("--method", default="dct")
    parser.add_argument("--source", type=float, default=9)
    parser.add_argument("--target", type=float, default=24)
    parser.add_argument("--positions", default="all")
    parser.add_argument("--readout", default="last:1")
    parser.add_argument("--dose", type=float, default=0.6)
    parser.add_argument("--prompts", type=int, default=1)
    parser.add_argument("-n", type=int, default=32)
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE")
    options = quick.parsed(parser, argv)
    if options.quick:
        options.source, options.target = 0.33, 0.8
    settings: dict[str, Any] = {}
    for one in options.set:
        name, _, value = one.partition("=")
        settings[name] = json.loads(value)
    organism = quick.organism(options.organism, quick=options.quick)
    lm = quick.model(organism, quick=options.quick)
    questions = organism.search
    asked = lm.encode([q.prompt for q in questions[: options.prompts]])
    other = questions[10:12]
    tested = lm.encode([q.prompt for q in other])
    part = educe.Slice(
        lm,
        asked,
        source=layer(options.source),
        target=layer(options.target),
        positions=options.positions,
        readout=options.readout,
    )
    began = time.monotonic()
    found = educe.search(
        part,
        options.method,
        n=options.n,
        radius=options.dose * part.median_norm,
        config=configured(options.method, settings),
    )
    took = time.monotonic() - began
    words = lm.tokenizer(organism.opening, add_special_tokens=False)["input_ids"]
    likely = Targets(lm, tested, torch.tensor([words] * len(found)), kind=found.kind)
    after, before = (likely.logprob(theta) * len(words) for theta in (found.theta, 0 * found.theta))
    hits = answers(lm, other, found.theta, found.kind, tokens=14).hits
    middle, best = after.median(), after.max()
    print(
        f"| {options.method} {' '.join(options.set)}| {part.source} → {part.target} "
        f"| {part.positions} | {options.dose:g} | {options.prompts} | {hits} of {len(found)} "
        f"| {best:.1f} | {middle:.1f} | {before[0]:.1f} | {took:.0f} s |"
    )


def layer(text: float) -> int | float:
    """Read a layer as the commands do: a whole number from 1 on is an index."""
    return int(text) if text >= 1 or text < 0 else text


if __name__ == "__main__":
    main()
