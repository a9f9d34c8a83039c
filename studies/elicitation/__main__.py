"""Compare families of perturbations on organisms, at equal budget; run again to go on.

    python -m studies.elicitation FOLDER [--organism NAME|DIR ...] [--family NAME ...] [--seeds N]
                                  [--on devices] [--workers N]
    python -m studies.elicitation FOLDER --table
    python -m studies.elicitation --quick

The folder has a run for each organism and seed. The quick form has three families: one that is told
the secret, one that is not, and plain sampling.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks import quick
from educe import organisms
from educe.errors import MethodError
from educe.run.work import at_work
from educe.spread import Spread
from studies.elicitation.families import EVERYWHERE, FAMILIES, SAMPLING, Budget, named
from studies.elicitation.subject import Subject, opened
from studies.elicitation.table import lines, markdown, read_cells

#: Of the quick form.
FEW, SMALL = (SAMPLING, "dct", "optimised"), Budget(n=6, passes=4, then=3, fresh=2, tokens=6)


def main(argv: Sequence[str] | None = None) -> None:
    asked = _asked(argv)
    budget = Budget(n=asked.n, passes=asked.passes, prompts=asked.prompts, louder=asked.louder)
    with quick.kept(asked.folder, quick=asked.quick) as folder:
        if not asked.table:
            with quick.workers(asked) as who:
                bench(asked, folder, SMALL if asked.quick else budget, who)
        print(markdown(lines(read_cells(folder))))


def bench(asked: argparse.Namespace, folder: Path, budget: Budget, spread: Spread) -> None:
    """Do what is missing of every cell.

    Raises:
        MethodError: A family is unknown, or cannot be put where it is to act.
    """
    families = asked.family or (FEW if asked.quick else (SAMPLING, *FAMILIES))
    for family in families:
        if family != SAMPLING:
            named(family)
    if asked.positions != "all" and (barred := [one for one in families if one in EVERYWHERE]):
        raise MethodError(
            f"{', '.join(barred)}: these act on all tokens; leave --positions, or name other "
            "families with --family"
        )
    shipped = [one for one in organisms.SPECIES if one in organisms.names()]
    for name in asked.organism or (["vault"] if asked.quick else shipped):
        organism = quick.organism(name, quick=asked.quick)
        lm = quick.model(organism, quick=asked.quick)
        for seed in range(asked.seeds):
            place = folder / f"{organism.name}-{organism.seed}-{seed}"
            run = opened(
                place,
                organism,
                seed,
                budget,
                source=asked.source,
                target=asked.target,
                positions=asked.positions,
            )
            with run, at_work(run, lm, spread=spread) as work:
                subject = Subject(work, organism)
                able = [f for f in families if organism.opening or "optimised" not in f]
                subject.make(able)
                for family in able:
                    subject.cell(family)
                    print(place.name, family, file=sys.stderr, flush=True)


def _asked(argv: Sequence[str] | None) -> argparse.Namespace:
    usual = Budget()
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, nargs="?", help="of the runs")
    parser.add_argument(
        "--organism", action="append", help="a folder, or the name of a shipped one"
    )
    parser.add_argument("--family", action="append", help="by default all")
    parser.add_argument("--seeds", type=int, default=1, help="of every family on every organism")
    parser.add_argument("--n", type=int, default=usual.n, help="perturbations a cell")
    parser.add_argument(
        "--passes", type=int, default=usual.passes,
        help="of each block of the slice, for each perturbation and prompt",
    )  # fmt: skip
    parser.add_argument("--prompts", type=int, default=usual.prompts, help="in the slice")
    parser.add_argument("--louder", type=float, default=usual.louder, help="factor on every radius")
    parser.add_argument("--source", type=layer, default=0.33)
    parser.add_argument("--target", type=layer, default=0.8)
    parser.add_argument("--positions", default="all", help="tokens that vectors are added to")
    parser.add_argument("--table", action="store_true", help="only print the table")
    return quick.parsed(quick.with_workers(parser), argv)


def layer(text: str) -> int | float:
    """Read a layer as the commands do: a whole number is an index, else a fraction."""
    return float(text) if "." in text else int(text)


if __name__ == "__main__":
    main()
