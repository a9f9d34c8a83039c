"""The main job: prompts in, behaviours out, every step kept in a run.

    prompts → slice → radii → discover, and as many random directions at each radius
            → what each makes the model write → judge → group → re-test → responses

Each stage asks the run what is missing and does that, so running it again goes on where it stopped.
The matched control goes through every stage, the selection for the re-test among them.
"""

from __future__ import annotations

from educe.comparison.summary import Summary, summarise
from educe.model.language import LanguageModel
from educe.options import ALONE
from educe.progress import Reporter
from educe.run import asking, chosen, judging, preparing, searching
from educe.run.fill import fill
from educe.run.store import Run
from educe.run.work import Work, at_work
from educe.spread import Who


def discover_behaviours(
    run: Run,
    *,
    lm: LanguageModel | None = None,
    reporter: Reporter | None = None,
    spread: Who = ALONE,
) -> Summary:
    """Do what is missing in a run.

    Args:
        run: The run, from `begin`.
        lm: The model, when it is loaded already.
        reporter: Is told of the progress (see `educe.progress`).
        spread: Who writes, scores and searches.

    Raises:
        RunError: Another process is at work on the run, or its model is another now.
        SpreadError: There are no such workers, or none is left.
    """
    with at_work(run, lm, reporter, spread) as work:
        _do(work)
    return summarise(run)


def _do(work: Work) -> None:
    """Run the stages in order; each leaves what it did in the run."""
    run = work.run
    search = preparing.Search(work)
    search.remember_facts()
    with work.timed("discover"):
        searching.search(search)
    asking.baseline(work, work.prompts("asked"))
    asking.baseline(work, work.prompts("fresh"), min(asking.FRESH_SAMPLES, work.settings.baseline))
    asking.answers(work, [p.id for p in run.perturbation_rows()])
    fill(work, "completions")
    if not run.has("chosen"):
        judging.compare(work)
    numbers = chosen.choose(work)
    asking.retest(work, numbers)
    asking.elsewhere(work, numbers)
    fill(work, "re-test")
    judging.compare(work)
    chosen.measure_side_effects(work, numbers)
    chosen.measure_responses(work)
    run.remember("seconds", work.seconds)
    run.remember("facts", {**run.note("facts"), "seconds": work.seconds})
