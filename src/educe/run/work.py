"""Work: a run that is being worked on, with its model and prompts, by one process at a time."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from itertools import chain
from typing import TYPE_CHECKING

from educe.forward.generation import Completion, left_out
from educe.forward.slice import Slice
from educe.layer_map import LAYER_MAP
from educe.model.batch import PromptBatch
from educe.model.language import LanguageModel
from educe.model.prompts import Prompt
from educe.options import ALONE, SpreadOptions
from educe.progress import Reporter, Silent
from educe.rows import ELSEWHERE, PromptRow, Row
from educe.run.lock import locked
from educe.run.settings import DISTINCT, encoded, loaded, other_requests, stored, told_apart
from educe.run.store import Run
from educe.spread import Local, Spread, Who, opened

if TYPE_CHECKING:
    from educe.run.served import Served

#: Writes rows at a temperature, a list of completions a batch.
Writer = Callable[[Sequence[Row], float], Iterator[list[Completion]]]

#: The subspace of a search inside one.
WITHIN = "within.safetensors"


class Work:
    """The run that is worked on, its settings, the model, the prompts, and the time it takes.

    Attributes:
        run: The run.
        reporter: Is told of the progress (see `educe.progress`).
        settings: What was asked for.
        seconds: What each stage took, over all sittings.
        lm: The model.
        spread: Who writes, scores and searches.
        server: Who writes the likeliest texts under perturbations that it takes, where it is not
            `spread`.
        writers: Who writes for perturbations that are another model, by their numbers.
        likelihoods: What the writer of each text of this sitting expected of its tokens, in nats,
            where somebody wants to know; they are not kept in the run.
    """

    def __init__(
        self,
        run: Run,
        lm: LanguageModel | None,
        reporter: Reporter,
        spread: Spread | None = None,
    ) -> None:
        self.run, self.reporter, self.spread = run, reporter, spread or Local()
        self.settings = stored(run)
        self.seconds: dict[str, float] = run.note("seconds") if run.has("seconds") else {}
        with self.timed("load"):
            self.lm = loaded(run, self.settings, reporter.say, lm)
        if not run.has(DISTINCT):
            apart = told_apart(self.lm, self.settings, self.settings.prompts, self.settings.fresh)
            self.tell(apart.said)  # before it is known, or a process killed between says nothing
            run.remember(DISTINCT, {"asked": apart.asked, "fresh": apart.fresh})
            self.settings = stored(run)
        self.writers: dict[int, Writer] = {}
        self.server: Served | None = None
        self.likelihoods: dict[Row, tuple[float, ...]] | None = None
        self._batch: PromptBatch | None = None
        self.add_prompts("asked", self.settings.prompts)
        self.add_prompts("fresh", self.settings.fresh)
        if not self.prompts(ELSEWHERE):
            self.add_prompts(ELSEWHERE, other_requests(self.lm, self.settings))

    def add_prompts(
        self,
        role: str,
        prompts: Sequence[Prompt],
        *,
        parents: Sequence[int | None] | None = None,
        how: Sequence[str] | None = None,
    ) -> list[int]:
        """Keep prompts in a role, each once; return their numbers.

        Args:
            role: What they are for.
            prompts: Which.
            parents: The prompt of the run that each was made from, where it was.
            how: How each was made.
        """
        rows = self.run.prompt_rows()
        if self._batch is None and rows:
            self._batch = encoded(self.lm, self.settings, [p.content for p in rows])
        if not prompts:
            return []
        made = encoded(self.lm, self.settings, prompts)
        known = {(p.role, p.rendered): p.id for p in rows}
        numbers: list[int] = []
        new: list[PromptRow] = []
        places: list[int] = []
        for i, (prompt, text, length) in enumerate(
            zip(prompts, made.texts, made.lengths, strict=True)
        ):
            number = known.setdefault((role, text), len(rows) + len(new))
            if number == len(rows) + len(new):
                of, way = parents[i] if parents else None, how[i] if how else ""
                new.append(PromptRow(number, role, prompt, text, length, of, way))
                places.append(i)
            numbers.append(number)
        self.run.add_prompts(new)
        if new:
            some = made.select(places)
            self._batch = some if self._batch is None else self._batch.followed_by(some)
        return numbers

    @property
    def batch(self) -> PromptBatch:
        """All prompts of the run, by their numbers."""
        assert self._batch is not None, "a run has a prompt"
        return self._batch

    def prompts(self, *roles: str) -> list[int]:
        """Return the numbers of the prompts in some roles."""
        return [p.id for p in self.run.prompt_rows() if p.role in roles]

    @property
    def asked(self) -> PromptBatch:
        """The prompts that are searched with."""
        return encoded(self.lm, self.settings, self.settings.prompts)

    @cached_property
    def part(self) -> Slice:
        """The run's slice, for vectors, on the prompts that were searched with."""
        return self.slice_on(self.asked)

    def slice_on(self, prompts: PromptBatch) -> Slice:
        """Return the run's slice on other prompts."""
        facts = self.run.note("facts")
        return Slice(
            self.lm,
            prompts,
            source=facts["source"],
            target=facts["target"],
            positions=facts["positions"],
            readout=self.settings.readout,
        )

    @property
    def remarks(self) -> list[str]:
        """What is to be said of the prompts and the model beside the numbers."""
        return [*self._told(), *left_out(self.lm), *self.lm.remarks]

    def _told(self) -> list[str]:
        return self.run.note("told") if self.run.has("told") else []

    def tell(self, sentences: Sequence[str]) -> None:
        """Say something of the prompts, and keep it."""
        for sentence in sentences:
            self.reporter.say(sentence)
        told = self._told()
        if new := [s for s in sentences if s not in told]:
            self.run.remember("told", told + new)

    @contextmanager
    def timed(self, what: str) -> Iterator[None]:
        """Count the seconds of a ``with`` statement to a stage."""
        began = time.monotonic()
        try:
            yield
        finally:
            self.seconds[what] = self.seconds.get(what, 0.0) + time.monotonic() - began


@contextmanager
def at_work(
    run: Run,
    lm: LanguageModel | None = None,
    reporter: Reporter | None = None,
    spread: Who = ALONE,
) -> Iterator[Work]:
    """Work on a run in a ``with`` statement; no other process does meanwhile.

    Args:
        run: The run.
        lm: Its model, when it is loaded already.
        reporter: Is told of the progress (see `educe.progress`).
        spread: Who writes, scores and searches.

    Raises:
        RunError: Another process is at work on the run, or its model is another now.
        SpreadError: There are no such workers, or none is left.
    """
    tells = reporter or Silent()
    with locked(run.folder), opened(spread, tells.say) as workers:
        own = (run.folder.glob(f".{file}.*") for file in (LAYER_MAP, WITHIN))
        left = (*run.tensors.glob(".*"), *chain.from_iterable(own))
        for scratch in left:  # by a process that was killed while it wrote
            scratch.unlink()
        work = Work(run, lm, tells, workers)
        if not (isinstance(spread, SpreadOptions) and spread.writer):
            yield work
            return
        from educe.run.served import served

        with served(spread.writer, run.folder / ".served", tells.say) as work.server:
            yield work
