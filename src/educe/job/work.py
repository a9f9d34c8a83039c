"""Work: what every stage of the main job knows."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from educe import discover
from educe.generation import left_out
from educe.job.settings import DISTINCT, encoded, loaded, stored, told_apart
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
        if not run.prompts():
            apart = told_apart(self.lm, self.settings, self.settings.prompts, self.settings.fresh)
            run.remember(DISTINCT, {"asked": apart.asked, "fresh": apart.fresh})
            self.settings = stored(run)
            self.tell(apart.said)
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
    def remarks(self) -> list[str]:
        """What is to be said of the prompts and the model beside the numbers."""
        return [*self._told(), *left_out(self.lm), *self.lm.remarks]

    def _told(self) -> list[str]:
        return self.run.note("told") if self.run.has("told") else []

    def tell(self, sentences: list[str]) -> None:
        """Say something of the prompts, and keep it."""
        for sentence in sentences:
            self.reporter.say(sentence)
        told = self._told()
        self.run.remember("told", told + [s for s in sentences if s not in told])

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
