"""Reopened: the slice of a run, for what begins with it."""

from __future__ import annotations

from educe.forward.slice import Slice
from educe.model import LanguageModel
from educe.rendering import PromptBatch
from educe.run import same_model
from educe.run.store import Run


def slice_of(run: Run, lm: LanguageModel, prompts: PromptBatch) -> Slice:
    """Return the slice of a run, for vectors, on some prompts.

    Raises:
        RunError: The model is not the run's.
    """
    same_model.check(run, lm)
    facts = run.note("facts")
    return Slice(
        lm,
        prompts,
        source=facts["source"],
        target=facts["target"],
        positions=facts["positions"],
        readout=run.config["readout"],
    )
