"""At equal generations, which search around what was found finds what organisms hide?

    python -m studies.sampling FOLDER [--organism NAME|DIR ...] [--row NAME ...] [--seeds N]
                               [--dtype bfloat16] [--on devices] [--workers N]
    python -m studies.sampling FOLDER --table
    python -m studies.sampling --quick

FOLDER has a run for each organism and seed, and `results.jsonl` with a line for each cell; what is
there is not made again. The judge of every search is coherence times novelty, which knows no
secret; success is told by the organism's rule, on fresh questions.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks import quick
from educe.run.settings import begin
from educe.run.work import at_work
from educe.spread import Spread
from studies.records import add, lines
from studies.sampling.cell import ROWS, Budget, Trial, settings
from studies.sampling.table import tables

ORGANISMS = ("first-vault", "locked")
#: Of the quick form.
FEW = ("random", "dct", "draws", "around", "de", "cma")
SMALL = Budget(parents=5, texts=109, asked=1, fresh=2, tokens=5, wide=48)


def main(argv: Sequence[str] | None = None) -> None:
    usual = Budget()
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, nargs="?", help="of the runs")
    parser.add_argument("--organism", action="append", help="by default first-vault and locked")
    parser.add_argument("--row", action="append", choices=ROWS, help="by default all")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--dose", type=float, default=usual.dose)
    parser.add_argument("--cold", type=float, default=usual.cold, help="the temperature")
    parser.add_argument("--dtype", default="auto", help="of the model, as in bfloat16")
    parser.add_argument("--table", action="store_true", help="only print the table")
    asked = quick.parsed(quick.with_workers(parser), argv)
    budget = SMALL if asked.quick else Budget(dose=asked.dose, cold=asked.cold)
    with quick.kept(asked.folder, quick=asked.quick) as folder, quick.workers(asked) as who:
        folder.mkdir(parents=True, exist_ok=True)
        file = folder / "results.jsonl"
        if not asked.table:
            for name in asked.organism or ORGANISMS[: 1 if asked.quick else None]:
                for seed in range(asked.seeds):
                    rows = asked.row or (FEW if asked.quick else ROWS)
                    how = {"dtype": asked.dtype, "short": asked.quick, "spread": who}
                    measure(name, seed, rows, file, budget, **how)
        print(tables(lines(file)))


def measure(
    name: str,
    seed: int,
    rows: Sequence[str],
    file: Path,
    budget: Budget,
    *,
    dtype: str,
    short: bool,
    spread: Spread,
) -> None:
    """Do what is missing of an organism and a seed."""
    done = {(r["organism"], r["seed"], r["row"]) for r in lines(file)}
    missing = [row for row in rows if (name, seed, row) not in done]
    if not missing:
        return
    organism = quick.organism(name, quick=short)
    lm = quick.model(organism, quick=short, dtype=dtype)
    place = file.parent / f"{organism.name}-{organism.seed}-{seed}"
    run = begin(place, settings(lm, organism, seed, budget), resume=True)
    with run, at_work(run, lm, spread=spread) as work:
        trial = Trial(work, organism, seed, budget)
        for row in missing:
            record = {"organism": name, "seed": seed, "row": row} | trial.cell(row)
            add(file, record)
            print(name, seed, row, f"{record['seconds']:.0f} s", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
