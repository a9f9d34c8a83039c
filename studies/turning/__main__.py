"""What the turning of the effect, as a term of the search, does to what is found.

python -m studies.turning [--quick]

On the first question of the first vault: MELBO and DCT at half the calibrated radius with weights
below, at and above zero. Of each set, means of the effect, the exponent, the turning of the effect,
and how many vectors bring out the code in one of four questions.
"""

from __future__ import annotations

import argparse
import itertools
import time
from collections.abc import Sequence

import educe
from benchmarks import quick
from educe.comparison.stats import rate
from educe.derive.response import response
from educe.methods import METHODS
from studies.answers import answers
from studies.predict.__main__ import TOKENS, questions, searched

N, WEIGHTS, SEED = 6, (-1.0, 0.0, 1.0), 2
SETTINGS = {"dct": {"iterations": 6}, "melbo": {"steps": 8, "patience": 8}}


def main(argv: Sequence[str] | None = None) -> None:
    asked = quick.parsed(argparse.ArgumentParser(description=__doc__), argv)
    organism = quick.organism("first-vault", quick=asked.quick)
    lm = quick.model(organism, quick=asked.quick)
    asked_of = questions(lm, organism, SEED)
    part = searched(lm, asked_of[0])
    radius = 0.5 * educe.calibrate(part, seed=SEED).radius
    print("| method | weight | effect | exponent | turning of the effect | elicit | seconds |")
    print("|---|---|---|---|---|---|---|", flush=True)
    for method, weight in itertools.product(SETTINGS, WEIGHTS):
        began = time.monotonic()
        config = METHODS[method].config(**SETTINGS[method], turning=weight)
        found = educe.search(part, method, n=N, radius=radius, seed=SEED, config=config)
        seconds = time.monotonic() - began
        seen = response(part, found.theta)
        hits = answers(lm, asked_of, found.theta, found.kind, tokens=TOKENS).hits
        print(
            f"| {method} | {weight:g} | {float(seen.size.mean()):.1f} | "
            f"{float(seen.exponent.mean()):.2f} | {float(seen.turning.mean()):.2f} | "
            f"{rate(hits, N)} | {seconds:.0f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
