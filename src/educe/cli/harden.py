"""The commands that train on what a run found: hardening against it, and distilling from it."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from educe.cli.opening import going_on, opened, telling
from educe.cli.options import SCREEN, Output, RunFolder
from educe.cli.streams import print_text
from educe.errors import RunError
from educe.options import Count, Names, Natural, Seed
from educe.plain import as_data

#: A folder that is made.
Out = Annotated[Path, Parameter(help="a new folder: the adapter, its card, and JSON")]


def harden(
    run: RunFolder,
    /,
    *numbers: Natural,
    out: Out,
    pool: Names = ("found", "random", "fresh"),
    rounds: Count = 4,
    steps: Count = 200,
    count: Count = 8,
    rank: Count = 8,
    seed: Seed = 0,
    output: Output = SCREEN,
) -> None:
    """Train an adapter that keeps answers as they are under vectors, and measure what it cost.

    Args:
        numbers: vectors of the run, as the table numbers them; by default its most interesting
        pool: where vectors come from, with commas: found (those of the run), random (of the same
            dose, after several layers), fresh (a new search on the model as it is then)
        rounds: how many new searches the pool fresh makes
        steps: steps of training
        count: vectors of each pool: how many of the run's best, how many a search looks for
        rank: rank of the adapter
        seed: of everything that is drawn
    """
    from educe.derive.listing import deriving
    from educe.hardening import card, records, training

    config = records.HardeningConfig(pool, rounds, steps, count, rank, seed)
    config.check()
    with going_on(), opened(run) as kept, deriving(kept, numbers, reporter=telling()) as work:
        done = training.harden(work, numbers, out, config)
    data = as_data(done)
    output.put(data, lambda: print_text(f"{card.table(done.measured)}\n{_next(out)}"))


def distill(
    run: RunFolder,
    /,
    *numbers: Natural,
    out: Out,
    steps: Count = 100,
    rank: Count = 8,
    seed: Seed = 0,
    output: Output = SCREEN,
) -> None:
    """Fine-tune on what a perturbation made the model write, and see if it says so without it.

    Args:
        numbers: the perturbation, as the table numbers them
        steps: steps of training
        rank: rank of the adapter
        seed: of everything that is drawn
    """
    from educe.derive.listing import deriving
    from educe.hardening import card, distilling, records

    config = records.DistillConfig(steps, rank, seed)
    if len(numbers) != 1:
        raise RunError(f"{len(numbers)} perturbations: name one, by its number in educe show")
    (number,) = numbers
    with going_on(), opened(run) as kept, deriving(kept, [number], reporter=telling()) as work:
        done = distilling.distill(work, number, out, config)
    data = as_data(done)
    output.put(data, lambda: print_text(f"{card.distilled_table(done)}\n{_next(out)}"))


def _next(out: Path) -> str:
    return f"adapter: {out}; search it with: educe discover ... --adapter {shlex.quote(str(out))}"
