"""What the finds are for: around the best, distilling from it, hardening against it, and searching
again.

    python -m studies.hardening FOLDER [--organism NAME|DIR] [--steps N] [--fresh] [--matmul medium]
    python -m studies.hardening FOLDER --average [--dtype bfloat16]
    python -m studies.hardening FOLDER --table
    python -m studies.hardening --quick

FOLDER has the run, the adapters, and `results.jsonl` with a line for each step; what is there is
not made again. Vectors are chosen by the organism's rule on the questions asked, and tested on
fresh ones.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from benchmarks import quick
from educe.hardening.records import FOUND, FRESH, RANDOM
from educe.organisms.training import multiplying
from studies.hardening.steps import FAMILIES, Budget, Steps
from studies.hardening.table import tables
from studies.records import lines

SMALL = Budget(n=6, asked=1, fresh=2, tokens=4, steps=2, count=2, keyed=2)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, nargs="?", help="of the run and the adapters")
    parser.add_argument("--organism", default="first-vault")
    parser.add_argument("--steps", type=int, default=Budget().steps, help="of each training")
    parser.add_argument("--fresh", action="store_true", help="harden with the pool fresh as well")
    parser.add_argument("--average", action="store_true", help="no training: up to the averages")
    parser.add_argument("--dtype", default="auto", help="of the model; training is in float32")
    parser.add_argument("--matmul", default="highest", help="or medium, which is faster")
    parser.add_argument("--table", action="store_true", help="only print the tables")
    asked = quick.parsed(parser, argv)
    budget = SMALL if asked.quick else replace(Budget(), steps=asked.steps)
    with quick.kept(asked.folder, quick=asked.quick) as folder, multiplying(asked.matmul):
        folder.mkdir(parents=True, exist_ok=True)
        if not asked.table:
            steps = Steps(folder, asked.organism, budget, dtype=asked.dtype, short=asked.quick)
            steps.search()
            steps.around()
            steps.average()
            if not asked.average:
                train(steps, fresh=asked.fresh or asked.quick)
        print(tables(lines(folder / "results.jsonl")))


def train(steps: Steps, *, fresh: bool) -> None:
    """Distil and harden, and search again."""
    steps.distil()
    pools = [(FOUND, RANDOM), (FRESH,)][: 1 + fresh]
    for pool in pools:
        steps.harden(pool)
    for model in ["as it was", "distilled", *(f"hardened, {'+'.join(p)}" for p in pools)]:
        steps.keyed(model)
        for family in FAMILIES:
            if model != "distilled":
                steps.again(model, family)
        print(model, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
