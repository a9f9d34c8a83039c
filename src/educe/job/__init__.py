"""The main job: prompts in, behaviours out, every step kept in a run.

    prompts → slice → radii → discover, and as many random directions at each radius
            → what each makes the model write → judge → group → re-test → responses

Each stage asks the run what is missing and does that, so running it again goes on where it stopped.
The matched control goes through every stage, the selection for the re-test among them.
"""

from __future__ import annotations

from itertools import chain
from typing import Any

from filelock import FileLock, Timeout

from educe.atlas import ATLAS
from educe.errors import BlockedError
from educe.job import chosen, judging, preparing, rows, searching
from educe.job.preparing import WITHIN
from educe.job.work import Work
from educe.model import LanguageModel
from educe.progress import Silent
from educe.runs import Run
from educe.summary import Summary, summarise


def discover_behaviours(
    run: Run, *, lm: LanguageModel | None = None, reporter: Any = None
) -> Summary:
    """Do what is missing in a run.

    Args:
        run: The run, from `begin`.
        lm: The model, when it is loaded already.
        reporter: Is told of the progress (see `educe.progress`).

    Raises:
        RunError: Another process is at work on the run, or its model is another now.
    """
    try:
        with FileLock(run.folder / ".lock", timeout=0):
            own = (run.folder.glob(f".{file}.*") for file in (ATLAS, WITHIN))
            left = (*run.tensors.glob(".*"), *chain.from_iterable(own))
            for scratch in left:  # by a process that was killed while it wrote
                scratch.unlink()
            _do(Work(run, lm, reporter or Silent()))
    except Timeout:
        raise BlockedError(f"another process is at work on {run.folder}: wait for it") from None
    return summarise(run)


def _do(work: Work) -> None:
    """Run the stages in order; each leaves what it did in the run."""
    run = work.run
    run.event("begun")
    work.part = preparing.cut(work)
    preparing.remember_facts(work)
    with work.timed("discover"):
        searching.search(work)
    rows.write(work, "baseline", rows.baseline(len(work.batch)))
    everything = [p.id for p in run.perturbations()]
    rows.write(work, "completions", rows.answers(work.settings, everything))
    if not run.has("chosen"):
        judging.judge(work)
    numbers = chosen.choose(work)
    rows.write(work, "re-test", rows.retest(work.settings, numbers))
    judging.judge(work)
    chosen.measure_side_effects(work, numbers)
    chosen.measure_responses(work)
    run.remember("seconds", work.seconds)
    run.remember("facts", {**run.note("facts"), "seconds": work.seconds})
    run.event("done")
