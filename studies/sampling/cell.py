"""A cell: one way to search, on one organism with one seed, at a budget of texts.

    random, dct     N vectors at three norms ─► halving on the questions ─► the best that differ
    all others      16 vectors of DCT answer the questions ─► a sampler searches the span of the
                    best four with what is left of the budget ─► the best that differ
    ─► re-test on fresh questions: of what the judge thinks, and what the organism's rule finds

The control of DCT are random vectors; that of a sampler are draws of its prior, in the same span.
"""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from torch.nn.functional import normalize

import educe
from educe.comparison.cluster import clusters
from educe.comparison.halving import halve
from educe.derive.listing import taken
from educe.errors import JudgeError
from educe.methods.dct import DctConfig
from educe.organisms import Organism
from educe.rows import FOUND, RUNG
from educe.run import asking, preparing
from educe.run.chosen import measure_side_effects
from educe.run.fill import add_set, fill, interestingness, judge
from educe.run.settings import Settings
from educe.run.work import Work
from educe.sampling.measures import TEXTS, Measure
from educe.sampling.searching import ALIKE, sample, usual_terms
from educe.sampling.settings import Sampling
from studies.answers import locked
from studies.elicitation.subject import Rule

#: Searches of the whole stream, with selection; and of the span of a few finds.
WIDE, NARROW = ("random", "dct"), ("draws", "around", "de", "cma", "tpe", "diversity")
ROWS = (*WIDE, *NARROW)
#: Norms of the wide ones, as shares of the radius: about the sixths of the samplers' prior.
SHARES = (0.65, 1.0, 1.3)
#: Of all vectors on one question, a quarter goes on to all questions.
RUNGS = ((1, 0.25), (10_000, 1.0))
DCT = DctConfig(iterations=4)
#: Directions of the span, settings that are evaluated together, finds, and settings whose answers
#: are grouped.
SPAN, TOGETHER, KEEP, TOP = 4, 8, 4, 8
#: Samples of the unperturbed model for each question, which a text is to be unlike.
SAMPLES = 8


@dataclass(frozen=True)
class Budget:
    """What every row may spend.

    Attributes:
        texts: Written before the re-test, those of the parents among them.
        parents: Vectors of DCT that samplers start from.
        wide: Vectors of a wide search, as many as its rungs pay with `texts`.
        asked: Questions to choose by.
        fresh: Questions of the re-test.
        tokens: The most tokens of an answer.
        dose: The radius, as a share of the norm of activations.
        cold: The temperature of samplers.
    """

    texts: int = 240
    parents: int = 16
    wide: int = 192
    asked: int = 2
    fresh: int = 8
    tokens: int = 16
    dose: float = 0.15
    cold: float = 0.1


def settings(lm: educe.LanguageModel, organism: Organism, seed: int, budget: Budget) -> Settings:
    """Return the settings of a run, on questions that keep the secret where nothing perturbs."""
    rng = random.Random(f"sampling {seed}")
    asked, fresh = (
        tuple(q.prompt for q in locked(lm, rng.sample(some, len(some)), tokens=budget.tokens)[:n])
        for some, n in ((organism.search, budget.asked), (organism.fresh, budget.fresh))
    )
    return Settings(
        asked,
        **organism.how,
        dtype=str(lm.dtype).removeprefix("torch."),
        fresh=fresh,
        target=0.8,
        radius=f"{budget.dose}d",
        n=budget.parents,
        baseline=SAMPLES,
        max_new_tokens=budget.tokens,
        seed=seed,
    )


class Trial:
    """An organism whose run is at work: its unperturbed answers and the parents are there."""

    def __init__(self, work: Work, organism: Organism, seed: int, budget: Budget) -> None:
        self.work, self.seed, self.budget = work, seed, budget
        self.rule, self.asked = Rule(organism), work.prompts("asked")
        preparing.Search(work).remember_facts()
        (self.radius,) = work.run.note("facts")["radii"]
        #: On one question: what a search pays is not compared here.
        self.part = work.slice_on(work.asked.select([0]))
        asking.baseline(work, work.prompts("asked", "fresh"))
        numbers = self._listed("dct", budget.parents, (1.0,))
        each = self._interest(asking.answers(work, numbers)).reshape(len(numbers), -1).mean(1)
        self.parents = [numbers[i] for i in np.argsort(-each, kind="stable")[:SPAN]]

    def cell(self, row: str) -> dict[str, Any]:
        """Search in one way, re-test, and say what came of it.

        A search that ends because the judge tells nothing apart has no finds: nothing shows.
        """
        began = time.process_time()
        run = self.work.run
        try:
            finds, seen, top = self._wide(row) if row in WIDE else self._narrow(row)
        except JudgeError as error:
            nothing = np.zeros((KEEP, len(self.work.prompts("fresh")))).tolist()
            return {"ended": str(error), "shows": nothing, "seconds": time.process_time() - began}
        again = asking.retest(self.work, finds)
        fill(self.work, "re-test")
        measure_side_effects(self.work, finds)
        scores = {
            name: {s.of: s.value for s in run.score_rows(name)}
            for name in ("coherence", "side_effect")
        }
        said = {c.row: c.text for c in run.completion_rows()}
        first = [said[educe.Row(n, self.asked[0], 0, phase)] for n, phase in top]
        shape, shows = (len(finds), -1), judge(self.work, self.rule, again)
        return {
            "finds": finds,
            "seen": seen,
            "again": self._interest(again).reshape(shape).tolist(),
            "shows": np.reshape(shows, shape).tolist(),
            "coherence": np.reshape([scores["coherence"][r] for r in again], shape).tolist(),
            "side_effect": [scores["side_effect"][n] for n in finds],
            "dose": [p.dose for p in run.perturbation_rows(derived=None, of=finds)],
            "modes": len(set(clusters(first).tolist())),
            "example": next((said[r] for r, hit in zip(again, shows, strict=True) if hit), None),
            "seconds": time.process_time() - began,
        }

    def _wide(self, method: str) -> tuple[list[int], list[float], list[tuple[int, Any]]]:
        """Return the best vectors of a method by halving, and what they were chosen by."""
        numbers = self._listed(method, self.budget.wide, SHARES)

        def score(items: list[int], prompts: list[int]) -> np.ndarray:
            rows = [educe.Row(numbers[i], self.asked[j], 0, RUNG) for i in items for j in prompts]
            self.work.run.ask(rows, 0.0)
            return self._interest(rows).reshape(len(items), len(prompts))

        came = halve(len(numbers), score, prompts=len(self.asked), rungs=RUNGS, seed=self.seed)
        best = list(came.survivors)
        unit = normalize(taken(self.work.run, [numbers[i] for i in best]).theta)
        kept: list[int] = []
        for i in range(len(best)):
            if len(kept) < KEEP and all(float(unit[i] @ unit[j]) < ALIKE for j in kept):
                kept.append(i)
        return (
            [numbers[best[i]] for i in kept],
            [came.mean(best[i]) for i in kept],
            [(numbers[i], RUNG) for i in best[:TOP]],
        )

    def _narrow(self, sampler: Any) -> tuple[list[int], list[float], list[tuple[int, Any]]]:
        """Return the finds of a sampler in the span of the parents."""
        work, budget = self.work, self.budget
        measure = Measure((TEXTS,), {}, work) if sampler == "diversity" else None
        wish = Sampling(
            sampler=sampler,
            numbers=tuple(self.parents),
            budget=budget.texts // budget.asked - budget.parents,
            walkers=TOGETHER,
            ensembles=1,
            radius=self.radius,
            temperature=budget.cold,
            samples=1,
            keep=KEEP,
            control=False,
            seed=self.seed,
        )
        told = sample(work, wish, usual_terms(work, [(1.0, None)]), measure)
        values: dict[int, float] = {}
        at = 0
        while work.run.has(key := f"{told.name} {FOUND} round {at}"):
            note, at = work.run.note(key), at + 1
            values |= zip(note["numbers"], note["value"], strict=True)
        best = sorted(values, key=lambda n: -values[n])[:TOP]
        finds = told.finds
        return [f.number for f in finds], [f.seen for f in finds], [(n, "sample") for n in best]

    def _listed(self, method: str, n: int, shares: Sequence[float]) -> list[int]:
        """Search, at some norms, and list what is found; once."""
        run, numbers = self.work.run, []
        for k, share in enumerate(shares):
            file = f"{method}-{n}-{k}.safetensors"
            known = [p.id for p in run.perturbation_rows() if p.file == file]
            if not known:
                made = educe.search(
                    self.part,
                    method,
                    n=n // len(shares),
                    radius=share * self.radius,
                    seed=2 * (1000 * self.seed + k) + (method == "random"),
                    config=DCT if method == "dct" else None,
                )
                made = replace(made, outputs=None)
                made.save(run.tensors / file)
                known = add_set(run, FOUND, file, made, made.scores["effect"].tolist())
            numbers += known
        return numbers

    def _interest(self, rows: Sequence[educe.Row]) -> np.ndarray:
        fill(self.work)
        return np.array(interestingness(self.work.run, rows))
