"""The command that searches for texts that do what perturbations do."""

from __future__ import annotations

from typing import Literal

from educe.cli.opening import end, opened, some, telling
from educe.cli.options import SCREEN, Number, Output, RunFolder
from educe.options import ALONE, Count, Natural, Seed, SpreadOptions


def invert(
    run: RunFolder,
    /,
    *numbers: Number,
    aim: Literal["both", "output", "source", "target"] = "both",
    method: Literal["gcg", "epo", "soft", "nearest"] = "gcg",
    tokens: Count = 6,
    reads: Count = 225,
    answer: Count = 4,
    searched: Count = 3,
    fresh: Count = 16,
    controls: Natural = 8,
    seed: Seed = 0,
    who: SpreadOptions = ALONE,
    output: Output = SCREEN,
) -> None:
    """Search for a text that does what a perturbation of a run does, beside controls.

    The verdict is one of: reachable, not reachable within this budget, the test has no power here.
    It goes on the screen and into the page. Run the command again to go on where it was cut off.

    Args:
        aim: what is to be met: the output, the direction of the change at the source or at the
            target; by default first the direction (at the source of a vector, for others at the
            target), then the output
        method: greedy coordinate gradient, evolution with fluency, soft prompts, or natural
            examples alone
        tokens: of the string that is searched for
        reads: strings that each search may read at one prompt
        answer: tokens of an answer that count
        searched: prompts that are searched on
        fresh: prompts that count
        controls: of what texts make, and random ones, for each aim; with fewer than 8 it is said
        seed: of the searches and the controls
    """
    from educe.inversion.in_run import invert_run
    from educe.inversion.report import Settings
    from educe.report import reachable, screen

    settings = Settings(
        aim=aim,
        method=method,
        tokens=tokens,
        budget=reads,
        answer=answer,
        searched=searched,
        fresh=fresh,
        controls=controls,
        seed=seed,
    )
    with opened(run, some(numbers)) as found:
        reports = invert_run(
            found, some(numbers), settings=settings, reporter=telling(), spread=who
        )

        def tell() -> None:
            screen.tell([reachable.card(report) for report in reports])

        end(found, output, {"reachable": [report.data() for report in reports]}, tell)
