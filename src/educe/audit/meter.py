"""The meter: what a part of an audit costs, in passes, tokens and seconds.

A token counts as one when it went through every block of the model: a search that runs half of the
blocks pays half a token for each. What workers compute is counted where they do, and comes with
what they return.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from educe.model.blocks import hooked
from educe.model.language import LanguageModel
from educe.spread import Done, Job, Spread


class Meter:
    """Counts what some models compute.

    Attributes:
        spent: By part: ``passes`` (calls of a whole model), ``tokens`` and ``seconds``.
        part: The part that is counted now; None where none is.
    """

    def __init__(self, *models: LanguageModel) -> None:
        self.models = {id(lm): lm for lm in models}.values()
        self.spent: dict[str, dict[str, float]] = {}
        self.part: str | None = None

    @contextmanager
    def counting(self, part: str) -> Iterator[None]:
        """Count what is computed inside a ``with`` statement to a part."""
        own = self.spent.setdefault(part, {"passes": 0.0, "tokens": 0.0, "seconds": 0.0})

        def tokens(share: float) -> Any:
            def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
                stream = args[0] if args else next(iter(kwargs.values()))
                own["tokens"] += share * stream.shape[0] * stream.shape[1]

            return hook

        def passed(module: nn.Module, args: Any) -> None:
            own["passes"] += 1

        handles = []
        for lm in self.models:
            handles.append(lm.hf.register_forward_pre_hook(passed))
            for block in lm.blocks:
                # A block that hands on a known stream calls nothing inside: it costs nothing.
                inner = next(iter(block.children()), block)
                handles.append(
                    inner.register_forward_pre_hook(tokens(1 / lm.depth), with_kwargs=True)
                )
        began, before, self.part = time.monotonic(), self.part, part
        try:
            with hooked(handles):
                yield
        finally:
            self.part = before
            own["seconds"] += time.monotonic() - began

    def add(self, passes: float, tokens: float) -> None:
        """Count what another process computed for the part that is counted now."""
        if self.part is not None:
            self.spent[self.part]["passes"] += passes
            self.spent[self.part]["tokens"] += tokens


class Metered:
    """Workers who say what each job cost, as `educe.spread.Spread` has it.

    Each job is named by the part that is counted, and by its function.

    Args:
        spread: The workers.
        meter: Counts what they compute.
    """

    here = False

    def __init__(self, spread: Spread, meter: Meter) -> None:
        self.spread, self.meter = spread, meter

    def map(self, jobs: Iterable[Job]) -> Iterator[Done]:
        """Do jobs, as `educe.spread.Spread` has it."""
        models = tuple(self.meter.models)

        def metered(job: Job) -> Job:
            named = f"{self.meter.part or 'the audit'}: {job.name}"
            return job._replace(do=_metered, given=(models, job.do, job.given), named=named)

        for done in self.spread.map(map(metered, jobs)):
            _, do, given = done.job.given
            value, passes, tokens = done.value
            self.meter.add(passes, tokens)
            yield Done(done.job._replace(do=do, given=given), value, done.note)


def _metered(*asked: Any) -> tuple[Any, float, float]:
    """Do a job; return what came, and the passes and tokens of the models that are counted."""
    *shared, models, do, given = asked
    meter = Meter(*models)
    with meter.counting(""):
        value = do(*shared, *given)
    return value, meter.spent[""]["passes"], meter.spent[""]["tokens"]
