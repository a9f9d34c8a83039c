"""Work: what every stage of the main job knows."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from educe import discover
from educe.job.settings import encoded, loaded, stored
from educe.model import LanguageModel
from educe.perturb import PerturbationSet
from educe.runs import PromptRow, Run
from educe.slice import Slice


class Work:
    """The run that is worked on, its settings, the model, the prompts, and the time it takes.

    Attributes:
        run: The run.
        reporter: Is told of the progress (see `educe.progress`).
        settings: What was asked for.
        given: Perturbations to put through the job instead of searching, if any.
        seconds: What each stage took, over all sittings.
        lm: The model.
        asked: The prompts that are searched with.
        batch: These, and behind them the fresh ones.
        part: The slice that is searched, as soon as it is cut (see `educe.job.preparing`).
    """

    part: Slice

    def __init__(self, run: Run, lm: LanguageModel | None, reporter: Any) -> None:
        self.run, self.reporter = run, reporter
        self.settings = stored(run)
        given = self.settings.given
        self.given = PerturbationSet.load(given) if given else None
        self.seconds: dict[str, float] = run.note("seconds") if run.has("seconds") else {}
        with self.timed("load"):
            self.lm = loaded(run, self.settings, self.reporter.say, lm)
        self.asked = encoded(self.lm, self.settings, self.settings.prompts)
        everything = (*self.settings.prompts, *self.settings.fresh)
        self.batch = encoded(self.lm, self.settings, everything)
        run.add_prompts(
            [
                PromptRow(i, "asked" if i < len(self.asked) else "fresh", prompt, text, length)
                for i, (prompt, text, length) in enumerate(
                    zip(everything, self.batch.texts, self.batch.lengths, strict=True)
                )
            ]
        )

    @property
    def config(self) -> Any:
        """The configuration of the method."""
        return discover.configured(self.settings.method, self.settings.method_settings)

    @contextmanager
    def timed(self, what: str) -> Iterator[None]:
        """Count the seconds of a ``with`` statement to a stage."""
        began = time.monotonic()
        try:
            yield
        finally:
            self.seconds[what] = self.seconds.get(what, 0.0) + time.monotonic() - began
