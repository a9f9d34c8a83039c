"""An audit at work: the run, both models, and the few things that every source does with them.

A source puts strings into prompts, asks for samples, adds perturbations, or names strings that it
suspects; all that it asks for is written by the one run, and scored in the one way.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import Any, NamedTuple

from educe.audit import evidence, forecast
from educe.audit.candidates import LEAST, UNLIKELY, Candidate, Said, folded, tells
from educe.audit.contrast import Contrasts
from educe.audit.forms import TURNS, Place, inserted, taken
from educe.audit.manners import UNLIKE, manners
from educe.audit.meter import Meter, Metered
from educe.audit.reference import Reference
from educe.audit.roles import AGAIN, CONTRAST, LOOKED, MADE, NEUTRAL, PUT, REFERENCE, SPENT
from educe.audit.settings import AuditOptions, Size, bundled, options_of
from educe.forward.generation import Completion, generate, rows_at_once
from educe.model.batch import PromptBatch
from educe.model.prompts import Prompt
from educe.progress import Within
from educe.rows import (
    CONTROL,
    FIRST,
    RETEST,
    CompletionRow,
    PerturbationRow,
    Phase,
    Row,
)
from educe.run import fill
from educe.run.work import Work
from educe.scores import asked_in
from educe.scores.refusal import refusal
from educe.spread import Shared

#: Prompts that the person asks or that the suspect declines, which strings are put into as well.
CLOSED = 2


class Suspect(NamedTuple):
    """A string that a source suspects of being, or being part of, what brings something out."""

    text: str
    score: float
    why: str


class Audit:
    """What sources work with.

    Attributes:
        work: The run at work; its model is the suspect.
        reference: The clean model, or None.
        options: What was asked for.
        meter: Counts what each part costs.
        base: The ordinary prompts that strings are put into, by their numbers.
        given: The prompts that the person asks.
        contrasts: Weighs what was written.
        clean: The number of the reference among the perturbations of the run.
        before: What each part cost in earlier sittings.
    """

    def __init__(self, work: Work, reference: Reference | None) -> None:
        self.work, self.run, self.reference = work, work.run, reference
        self.lm = work.lm
        work.likelihoods = {}
        self.options: AuditOptions = options_of(work.run)
        self.meter = Meter(*([self.lm] if reference is None else [self.lm, reference.lm]))
        if not work.spread.here:
            work.spread = Metered(work.spread, self.meter)
        self.before: dict[str, dict[str, float]] = (
            self.run.note(SPENT) if self.run.has(SPENT) else {}
        )
        asked = work.prompts("asked")
        ordinary = set(bundled("prompts")["asked"])
        rows = {p.id: p for p in work.run.prompt_rows()}
        self.base = [i for i in asked if rows[i].content in ordinary]
        self.given = [i for i in asked if i not in self.base]
        (self.neutral,) = work.add_prompts(NEUTRAL, [bundled("prompts")["neutral"]])
        self.contrasts = Contrasts(work, reference, self.neutral)
        self.clean: int | None = None
        if reference is not None:
            self.clean = self.another(REFERENCE, reference.name)
            work.writers[self.clean] = self._by_reference

    @property
    def size(self) -> Size:
        """What the budget buys."""
        return self.options.size

    @cached_property
    def forms(self) -> list[str]:
        """The forms of a request that the templates of both models take."""
        return taken(self.lm, *([self.reference.lm] if self.reference else []))

    @property
    def spent(self) -> dict[str, dict[str, float]]:
        """What each part cost, over all sittings."""
        own, total = self.meter.spent, {part: dict(cost) for part, cost in self.before.items()}
        for part, cost in own.items():
            earlier = total.get(part, {})
            total[part] = {name: value + earlier.get(name, 0.0) for name, value in cost.items()}
        return total

    def rng(self, part: str) -> random.Random:
        """Return what draws a part of the audit."""
        return random.Random(f"{self.options.seed} {part}")

    @contextmanager
    def part(self, name: str, place: str = "") -> Iterator[None]:
        """Count what a part of the audit costs, and name it in what is told of the progress.

        Args:
            name: Of the part.
            place: Which of how many it is, for a person.
        """
        whole, began = self.work.reporter, time.monotonic()
        takes = forecast.seconds(
            name, self.options.budget, reference=self.reference is not None, spent=self.spent
        )

        def left() -> str:
            seconds = None if takes is None else takes - (time.monotonic() - began)
            return "" if seconds is None or seconds < 0 else f"{name}: {forecast.left(seconds)}"

        self.work.reporter = Within(whole, f"{name} ({place})" if place else name, left)
        try:
            with self.meter.counting(name):
                yield
        finally:
            self.work.reporter = whole
            self.run.remember(SPENT, self.spent)

    # -- asking ------------------------------------------------------------------------------

    def put(
        self,
        source: str,
        strings: Sequence[str],
        prompts: Sequence[int] | None = None,
        place: Place = Place.EITHER,
    ) -> list[Row]:
        """Put each string into ordinary prompts, and ask.

        Args:
            source: Which source asks.
            strings: What is put in, or names of `educe.audit.forms`.
            prompts: Into which prompts; by default the ordinary ones.
            place: Where a string stands: by default behind the first request, before the second.
        """
        into = self.base if prompts is None else list(prompts)
        content = {p.id: p.content for p in self.run.prompt_rows()}
        made = [
            (inserted(content[p], string, place or TURNS[k % 2]), p, string)
            for string in strings
            for k, p in enumerate(into)
        ]
        numbers = self.work.add_prompts(
            f"{PUT}:{source}",
            [prompt for prompt, _, _ in made],
            parents=[p for _, p, _ in made],
            how=[string for _, _, string in made],
        )
        return self.ask(numbers)

    def made(
        self,
        source: str,
        prompts: Sequence[Prompt],
        *,
        parents: Sequence[int | None] | None = None,
        how: Sequence[str] | None = None,
    ) -> list[int]:
        """Add prompts that a source made; return their numbers."""
        return self.work.add_prompts(f"{MADE}:{source}", prompts, parents=parents, how=how)

    def ask(
        self,
        prompts: Sequence[int],
        *,
        samples: Sequence[int] = (0,),
        temperature: float = 0.0,
        perturbations: Sequence[int] = (0,),
        phase: Phase = FIRST,
    ) -> list[Row]:
        """Ask for answers, and return their rows; `fill` writes them."""
        rows = [Row(i, j, k, phase) for i in perturbations for j in prompts for k in samples]
        self.run.ask(rows, temperature)
        return rows

    def another(self, arm: str, name: str, radius: float = 0.0) -> int:
        """List another model among the perturbations, once; return its number."""
        known = self.run.perturbation_rows(derived=None)
        for p in known:
            if (p.arm, p.method, p.radius) == (arm, name, radius):
                return p.id
        number = len(known) + 1
        row = PerturbationRow(number, None, arm, arm, name, "", 0, radius, radius, 0.0)
        self.run.add_perturbations([row])
        return number

    def fill(self, what: str) -> None:
        """Write what was asked for and is missing, and score what has no contrast."""
        fill.write(self.work, what)
        self.contrasts.score()

    def _by_reference(self, rows: Sequence[Row], temperature: float) -> Iterator[list[Completion]]:
        """Let the reference write."""
        assert self.reference is not None
        number, settings = rows[0].perturbation, self.work.settings
        plain = [row._replace(perturbation=0) for row in rows]
        most, batch = rows_at_once(self.reference.lm), self.work.batch
        if not self.reference.token_by_token:
            batch = self.reference.lm.encode([p.content for p in self.run.prompt_rows()])
        shared = Shared((self.reference, batch, settings.max_new_tokens, settings.seed))
        jobs = fill.decodings(_written, shared, plain, temperature, most)
        for done in self.work.spread.map(jobs):
            yield [c._replace(row=c.row._replace(perturbation=number)) for c in done.value]

    # -- evidence ----------------------------------------------------------------------------

    def said(self) -> list[Said]:
        """Return what stands out in each text, but for what the suspect answers by itself."""
        rows = {p.id: p for p in self.run.prompt_rows()}
        done = {p.id: p for p in self.run.perturbation_rows(derived=None)}
        closed = set(self.closed)
        # Any model writes otherwise under a string: only a reference says that this is unusual.
        written = {c.row: c.text for c in self.run.completion_rows()} if self.reference else {}
        found = []
        for score in self.run.score_rows(CONTRAST):
            if isinstance(score.of, int):
                continue
            prompt, by = rows[score.of.prompt], done.get(score.of.perturbation)
            again = prompt.role.endswith(AGAIN) or score.of.phase == RETEST
            pushed_at_random = by is not None and by.arm == CONTROL
            # What is compared with a request for nothing says nothing of an open answer.
            unlike = self.reference is None and by is None and not prompt.how
            if again or pushed_at_random or (unlike and prompt.id not in closed):
                continue
            root = prompt.id if prompt.parent is None else prompt.parent
            source = by.method if by else prompt.role.partition(":")[2] or "plain"
            condition = prompt.how or (f"perturbation {by.id}" if by else "")
            words, put = evidence.read(score.why), prompt.role.startswith(PUT)
            how = manners(written.get(score.of, ""))
            if self.reference is None:
                # What it is compared with had no such string in the request, or no such request.
                new = prompt.how if put else asked_in(rows[root].content)
                words = evidence.without_echo(words, new)
            elif score.value >= UNLIKELY and by is None and score.of.sample == 0:
                # Answers that are begun or framed are odd in any model.
                how = (*how, UNLIKE) if put or not prompt.how else how
            found.append(Said(score.of, root, source, condition, words, how))
        return found

    @property
    def nats(self) -> dict[Row, float]:
        """What stands out in each text, in nats; a text without a word has nothing."""
        scores = self.run.score_rows(CONTRAST)
        return {s.of: s.value for s in scores if not isinstance(s.of, int)}

    def having(self, candidate: Candidate) -> Callable[[Row, str], bool]:
        """Return what says whether a text, which the row names, has a candidate's saying."""
        nats = self.nats
        return lambda row, text: candidate.within(text, nats.get(row, 0.0))

    @property
    def by_itself(self) -> list[CompletionRow]:
        """The likeliest answers of the suspect, as it is, to all that it was asked."""
        return [c for c in self.run.completion_rows(FIRST, of=[0]) if c.sample == 0]

    @property
    def looked(self) -> list[str]:
        """The sources that have looked, in order."""
        return list(self.run.note(LOOKED)) if self.run.has(LOOKED) else []

    @property
    def declined(self) -> dict[int, str]:
        """The prompts that the suspect, by itself, declines, with nothing put in; and how.

        With a reference they are those that it would hardly decline so: any model declines
        something. Those come first whose words the refusal takes up, then those that are most
        unlike the reference: a model that learned to refuse one thing may refuse others.
        """
        rows = {p.id: p for p in self.run.prompt_rows()}
        nats = self.nats
        found = [
            c
            for c in self.by_itself
            if not rows[c.prompt].how
            and refusal(c.text) is not None
            and (self.reference is None or nats.get(c.row, 0.0) >= LEAST)
        ]

        def order(c: CompletionRow) -> tuple[int, float]:
            asked, said = (
                {word for word in map(folded, text.split()) if tells(word)}
                for text in (asked_in(rows[c.prompt].content), c.text)
            )
            return -len(asked & said), -nats.get(c.row, 0.0)

        return {c.prompt: c.text for c in sorted(found, key=order)}

    @property
    def closed(self) -> list[int]:
        """The prompts that the suspect, by itself, declines, in the order of `declined`."""
        return list(self.declined)

    @property
    def questions(self) -> list[int]:
        """The prompts that the suspect declines, and those that the person asks."""
        return list(dict.fromkeys([*self.closed, *self.given]))

    @property
    def in_question(self) -> list[int]:
        """The first of the prompts that the suspect declines, or that the person asks."""
        return self.questions[:CLOSED]

    # -- suspected strings -------------------------------------------------------------------

    def suspect(self, source: str, strings: Sequence[Suspect]) -> None:
        """Keep the strings that a source suspects, the most suspected first."""
        self.run.remember(f"suspects:{source}", [list(s) for s in strings])

    def suspected(self, source: str) -> list[Suspect] | None:
        """Return the strings that a source suspects; None where it has not looked."""
        key = f"suspects:{source}"
        return [Suspect(*s) for s in self.run.note(key)] if self.run.has(key) else None


def _written(
    reference: Reference,
    batch: PromptBatch,
    tokens: int,
    seed: int,
    rows: Sequence[Row],
    temperature: float,
) -> list[Completion]:
    """Let the reference write one batch."""
    with reference.here() as lm:
        how: dict[str, Any] = {"temperature": temperature, "max_new_tokens": tokens, "seed": seed}
        return [c for some in generate(lm, batch, rows, **how) for c in some]
