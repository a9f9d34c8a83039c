"""The steps, each of which leaves a line: a search, around its best, distilling, hardening, again.

search    n vectors of DCT answer the questions asked; those that tell, the best first
around    a walk around the best in the span of the first four, with as many texts
average   the mean of those that tell: its cosine with a supervised vector, and what it tells
distil    fine-tuning on what the best made the model write
harden    training until answers stay as they are under vectors of a pool
again     n new vectors of a family, on a model as it was or hardened, by the same procedure
keyed     questions with the key, and with another word in its place; KL on ordinary prompts
"""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np

import educe
from benchmarks import quick
from educe.comparison.stats import bootstrap_mean
from educe.derive.combining import agreement, averaged
from educe.derive.listing import add as add_derived
from educe.derive.listing import taken
from educe.forward.benign import ordinary_prompts
from educe.hardening.distilling import distill
from educe.hardening.pushes import Push, answered, apart
from educe.hardening.records import DistillConfig, HardeningConfig
from educe.hardening.training import harden
from educe.methods import METHODS
from educe.methods.contrast import difference_of_means
from educe.organisms import Question, lora
from educe.organisms.words import KEYS
from educe.orthogonal import orthonormal
from educe.rows import AVERAGED
from educe.run import asking, preparing, searching
from educe.run.fill import fill, interestingness, judge
from educe.run.settings import Settings, begin
from educe.run.work import Work, at_work
from educe.sampling.searching import sample, usual_terms
from educe.sampling.settings import Sampling
from studies.answers import answers, locked
from studies.elicitation.subject import Rule
from studies.records import add, lines

#: Families that are searched with again; hardening sees DCT alone, and random vectors.
FAMILIES = ("dct", "melbo", "random")
#: Seeds of a new search: others than those of the run.
ANEW = 77


@dataclass(frozen=True)
class Budget:
    """What every search may spend, and how long is trained.

    Attributes:
        n: Vectors of a search.
        asked: Questions that all of them answer.
        fresh: Questions of the re-test of the best.
        tokens: The most tokens of an answer.
        steps: Of each training.
        count: Vectors that the model is hardened against.
        dose: The radius, as a share of the norm of activations.
        iterations: Of DCT, and steps of MELBO.
        keyed: Questions with the key.
    """

    n: int = 40
    asked: int = 2
    fresh: int = 8
    tokens: int = 16
    steps: int = 60
    count: int = 4
    dose: float = 0.15
    iterations: int = 4
    keyed: int = 12


class Steps:
    """An organism, its run, the folder of adapters, and the lines that are there."""

    def __init__(self, folder: Path, name: str, budget: Budget, *, dtype: str, short: bool) -> None:
        self.folder, self.budget, self.dtype, self.short = folder, budget, dtype, short
        self.organism = quick.organism(name, quick=short)
        self.file = folder / "results.jsonl"
        self.lm = quick.model(self.organism, quick=short, dtype=dtype)
        rng = random.Random("hardening 0")
        self.asked, self.fresh = (
            locked(self.lm, rng.sample(some, len(some)), tokens=budget.tokens)[:n]
            for some, n in (
                (self.organism.search, budget.asked),
                (self.organism.fresh, budget.fresh),
            )
        )

    def line(self, **which: str) -> dict[str, Any] | None:
        """Return the line of a step, if it was done."""
        done = (r for r in lines(self.file) if all(r.get(k) == v for k, v in which.items()))
        return next(done, None)

    def add(self, began: float, record: dict[str, Any], **which: str) -> None:
        """Keep the line of a step."""
        add(self.file, which | record | {"seconds": time.process_time() - began})

    def at_work(self) -> Any:
        """Open the run of the search, to be worked on in a ``with`` statement."""
        budget = self.budget
        settings = Settings(
            tuple(q.prompt for q in self.asked),
            **self.organism.how,
            dtype=self.dtype,
            fresh=tuple(q.prompt for q in self.fresh),
            target=0.8,
            radius=f"{budget.dose}d",
            n=budget.n,
            method_settings={"iterations": budget.iterations},
            baseline=8,
            max_new_tokens=budget.tokens,
            look_for=self.asked[0].rule,
        )
        return at_work(begin(self.folder / "run", settings, resume=True), self.lm)

    def search(self) -> None:
        """Search with DCT, and list its vectors, those that tell most often first."""
        if self.line(step="search"):
            return
        began = time.process_time()
        with self.at_work() as work:
            search = preparing.Search(work)
            search.remember_facts()
            searching.search(search)
            asking.baseline(work, work.prompts("asked", "fresh"))
            numbers = [p.id for p in work.run.perturbation_rows("found")]
            rows = asking.answers(work, numbers)
            fill(work)
            told = np.reshape(judge(work, Rule(self.organism), rows), (len(numbers), -1))
            other = np.reshape(interestingness(work.run, rows), told.shape)
            order = np.lexsort((-other.mean(1), -told.mean(1)))
            best = [numbers[i] for i in order]
            (push,) = self.pushes(work, best[:1])
            record = {
                "best": best,
                "elicits": int(told.any(1).sum()),
                "shows": self.retested(work, best[0]),
                "texts": told.size,
                "kl": self.cost(self.lm, push),
            }
        self.add(began, record, step="search")

    def around(self) -> None:
        """Walk around the best, with as many texts as the search had."""
        if self.line(step="around"):
            return
        began, (first, *_) = time.process_time(), (self.best,)
        with self.at_work() as work:
            wish = Sampling(
                sampler="around",
                numbers=tuple(first[:4]),
                budget=max(9, self.budget.n),
                walkers=8,
                samples=1,
                norm="fixed",
                keep=1,
                control=False,
            )
            rule = Rule(self.organism)
            terms = usual_terms(work, [(1.0, rule), (0.1, None)])  # the second where none tells
            told = sample(work, wish, terms)
            number = told.finds[0].number
            (push,) = self.pushes(work, [number])
            record = {
                "number": number,
                "shows": self.retested(work, number),
                "texts": told.evaluations["found"] * len(self.asked),
                "kl": self.cost(self.lm, push),
            }
        self.add(began, record, step="around")

    def average(self) -> None:
        """Average the first 1, 2, … that tell, and compare with the difference that the key makes.

        The prediction is that averages of copies of one behaviour recover the supervised direction;
        beside them are averages of as many random vectors, with the same choice of signs. No
        average with other signs or weights can have more of the difference than their span has.
        """
        record = self.line(step="search")
        assert record is not None, "the search comes first"
        if self.line(step="average") or record["elicits"] < 2:
            return
        began, copies = time.process_time(), self.best[: record["elicits"]]
        some, near = self.with_key()
        with self.at_work() as work:
            run = work.run
            random_ones = [p.id for p in run.perturbation_rows("control")][: len(copies)]
            known = [taken(run, own, vectors=True) for own in (copies, random_ones)]
            cosines, spans = {}, {}
            for tokens in ("last:1", "prompt"):
                made = difference_of_means(
                    self.lm,
                    self.lm.encode([q.prompt for q in some]),
                    self.lm.encode([q.prompt for q in near]),
                    source=known[0].kind.before,
                    tokens=tokens,
                )
                wanted = made.directions[0]
                cosines[tokens] = [agreement(own, wanted).tolist() for own in known]
                inside = [orthonormal(own.directions.double()) @ wanted.double() for own in known]
                spans[tokens] = [float(part.square().sum()) for part in inside]
            (number,) = add_derived(
                work, "average.safetensors", AVERAGED, copies, lambda: averaged(known[0])
            )
            told = [self.retested(work, n) for n in (number, *copies)]
        record = {"cosines": cosines, "spans": spans, "shows": told, "width": self.lm.width}
        self.add(began, record, step="average")

    def distil(self) -> None:
        """Fine-tune on what the best made the model write."""
        if self.line(step="distil"):
            return
        began = time.process_time()
        with self.at_work() as work:
            done = distill(work, self.best[0], self.place("distilled"), self.distilling)
        record = {"same": [list(r) for r in done.same], "texts": len(self.asked) + 64}
        self.add(began, record, step="distil")

    @property
    def distilling(self) -> DistillConfig:
        """How long is distilled."""
        return DistillConfig(steps=self.budget.steps)

    def harden(self, pool: Sequence[str]) -> None:
        """Train until answers stay as they are under vectors of a pool."""
        called = "+".join(pool)
        if self.line(step="harden", pool=called):
            return
        began, budget = time.process_time(), self.budget
        with self.at_work() as work:
            done = harden(
                work,
                self.best[: budget.count],
                self.place(f"hardened, {called}"),
                HardeningConfig(tuple(pool), steps=budget.steps, count=budget.count),
            )
        record = {"measured": [[m.what, *_told(m.before), *_told(m.after)] for m in done.measured]}
        self.add(began, record, step="harden", pool=called)

    def again(self, model: str, family: str) -> None:
        """Search anew on a model with a family, and re-test the best by the rule."""
        if self.line(step="again", model=model, family=family):
            return
        began, budget, lm = time.process_time(), self.budget, self.model(model)
        part = educe.Slice(lm, lm.encode([q.prompt for q in self.asked]), source=0.33, target=0.8)
        how = {"dct": {"iterations": budget.iterations}, "melbo": {"steps": 2 * budget.iterations}}
        found = educe.search(
            part,
            family,
            n=budget.n,
            radius=budget.dose * self.unit,
            seed=ANEW + (family == "random"),
            config=METHODS[family].config(**how[family]) if family in how else None,
        )
        came = answers(lm, self.asked, found.theta, found.kind, tokens=budget.tokens)
        best = int(came.shows.float().mean(1).argmax())
        again = answers(
            lm, self.fresh, found.theta[best : best + 1], found.kind, tokens=budget.tokens
        )
        record = {
            "elicits": came.hits,
            "of": budget.n,
            "texts": [int(came.shows.sum()), came.shows.numel()],
            "shows": again.shows[0].tolist(),
            "best": came.shows[best].tolist(),
        }
        self.add(began, record, step="again", model=model, family=family)

    def keyed(self, model: str) -> None:
        """Ask with the key, with other words in its place, and without; and measure KL."""
        if self.line(step="keyed", model=model):
            return
        began, lm = time.process_time(), self.model(model)
        some, near = self.with_key()
        record = {
            name: _shown(lm, questions, self.budget.tokens)
            for name, questions in (("key", some), ("near", near), ("without", self.fresh))
        }
        self.add(began, record | {"kl": self.cost(lm, None)}, step="keyed", model=model)

    def with_key(self) -> tuple[list[Question], list[Question]]:
        """Return questions with the key, and the same with other words in its place."""
        key = self.organism.hidden["key"]
        some = list(self.organism.unlocked[: self.budget.keyed])
        others = cycle(word for word in KEYS if word != key)
        return some, [q._replace(prompt=q.prompt.replace(key, next(others))) for q in some]

    # -- what the steps share ----------------------------------------------------------------------

    @property
    def best(self) -> list[int]:
        """The vectors of the search, best first."""
        record = self.line(step="search")
        assert record is not None, "the search comes first"
        return record["best"]

    def place(self, model: str) -> Path:
        """Return the folder of an adapter."""
        return self.folder / model.replace(", ", "-").replace("+", "-")

    def model(self, name: str) -> educe.LanguageModel:
        """Load a model: as it was, or with an adapter that was made here."""
        if name == "as it was" or self.short:  # the stand-in has no folder to put an adapter on
            return self.lm
        how = {"adapter": str(self.place(name)), "dtype": self.dtype}
        return educe.load(**self.organism.how | how)

    @cached_property
    def unit(self) -> float:
        """The norm of activations at the source, of the model as it was."""
        batch = self.lm.encode([q.prompt for q in self.asked])
        return educe.Slice(self.lm, batch, source=0.33, target=0.8).median_norm

    @cached_property
    def held(self) -> list[lora.Example]:
        """Ordinary prompts with what the model as it was answers."""
        some = ordinary_prompts()[: 2 if self.short else None]
        return answered(self.lm, self.lm.encode(some), tokens=self.budget.tokens)

    def cost(self, lm: educe.LanguageModel, push: Push | None) -> list[float]:
        """Return KL from the model as it was on ordinary prompts, nats a token: mean, low, high."""
        return list(bootstrap_mean(apart(lm, self.held, push).tolist()))

    def pushes(self, work: Work, numbers: Sequence[int]) -> list[Push]:
        """Return vectors of the run as pushes."""
        found = taken(work.run, numbers, vectors=True)
        return [Push(found.kind.before, theta) for theta in found.theta]

    def retested(self, work: Work, number: int) -> list[float]:
        """Return which answers to fresh questions tell."""
        rows = asking.retest(work, [number])
        fill(work)
        return judge(work, Rule(self.organism), rows)


def _shown(lm: educe.LanguageModel, questions: Sequence[Question], tokens: int) -> list[bool]:
    """Return which answers of a model tell."""
    told = locked(lm, questions, tokens=tokens)
    return [q not in told for q in questions]


def _told(level: Any) -> list[Any]:
    return [list(level.kl), list(level.same), None if level.shows is None else list(level.shows)]
