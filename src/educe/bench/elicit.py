"""The elicitation benchmark: organisms × families × seeds, at equal budget.

A cell is one family on one organism with one seed:

    make n perturbations ─► all answer the first questions ─► the best quarter answers more
        ─► the best by the rule, the most striking, and the family's average vector are re-tested
           on fresh questions

Every family goes through the same, its control and plain sampling too. The rule takes no part in
making perturbations; it chooses in one arm (what a judge that knows what to look for would choose),
and in the other the choice is blind, by coherence times novelty. Questions that the unperturbed
organism already answers in the hidden way are left out, so that its own rate is zero.

Each cell is one file, written whole when it is done: a killed benchmark loses the cell in flight.
"""

from __future__ import annotations

import hashlib
import json
import random
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from itertools import cycle
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from educe import files
from educe.bench.families import FAMILIES, SAMPLING, Budget, Problem, named
from educe.blocks import stream_out
from educe.comparison.halving import halve
from educe.errors import OrganismError, RunError
from educe.forward.generation import Completion, generate
from educe.forward.slice import Slice
from educe.judge.coherence import coherence
from educe.judge.novelty import novelty
from educe.judge.reading import read
from educe.judge.side_effect import side_effects
from educe.kinds import Kind, Vectors
from educe.model import LanguageModel
from educe.ordinary import ordinary_prompts
from educe.organisms import Organism, Question
from educe.organisms.words import KEYS, MONTHS
from educe.perturb import PerturbationSet
from educe.radius import calibrate
from educe.rendering import PromptBatch
from educe.rows import Row

#: Samples of the unperturbed model that a text is novel against, beside its greedy answer.
SAMPLES = 4


@dataclass(frozen=True)
class Place:
    """Where a family searches.

    Attributes:
        source: Layer after which vectors are added.
        target: Layer at which effects are read.
        positions: Tokens they are added to.
    """

    source: float = 0.33
    target: float = 0.8
    positions: str = "all"


class Subject:
    """An organism at hand: its model, its questions, and what it writes unperturbed.

    Args:
        lm: The organism's model.
        organism: Which.
        budget: How many questions are needed.
        seed: Of their order.

    Raises:
        OrganismError: It keeps its secret on too few questions.
    """

    def __init__(self, lm: LanguageModel, organism: Organism, budget: Budget, seed: int) -> None:
        self.lm, self.organism, self.budget = lm, organism, budget
        rng = random.Random(f"questions {seed}")
        pools = [rng.sample(some, len(some)) for some in (organism.search, organism.fresh)]
        everything = [question for pool in pools for question in pool]
        batch = lm.encode([q.prompt for q in everything], room=budget.tokens)
        rows = [Row(0, j) for j in range(len(batch))]
        texts = {c.row.prompt: c.text for c in self._plain(batch, rows, 0.0)}
        told = [q.elicited(texts[j]) for j, q in enumerate(everything)]
        cut = len(pools[0])
        kept = [
            [j for j in span if not told[j]] for span in (range(cut), range(cut, len(everything)))
        ]
        #: Questions that the unperturbed organism answers in the hidden way, of all there are.
        self.leaks = (sum(told), len(told))
        if len(kept[0]) < budget.first or not kept[1]:
            raise OrganismError(f"{organism.name} keeps its secret on too few questions to search")
        search, fresh = kept[0][: budget.then], kept[1][: budget.fresh]
        self.questions: list[Question] = [everything[j] for j in (*search, *fresh)]
        self.search = list(range(len(search)))
        self.fresh = list(range(len(search), len(self.questions)))
        self.batch = lm.encode([q.prompt for q in self.questions], room=budget.tokens)
        self.asked = lm.encode([q.prompt for q in self.questions[: budget.prompts]])
        # Others than those of plain sampling, which would not be novel against itself.
        numbers = range(budget.n, budget.n + SAMPLES)
        samples = [Row(0, j, k) for j in self.search for k in numbers]
        self.unperturbed: dict[int, list[str]] = {
            j: [texts[at]] for j, at in enumerate((*search, *fresh))
        }
        for c in self._plain(self.batch, samples, 1.0):
            self.unperturbed[c.row.prompt].append(c.text)
        key = organism.hidden["key"]
        others = cycle(word for word in (MONTHS if key in MONTHS else KEYS) if word != key)
        self.positive = lm.encode([q.prompt for q in organism.unlocked])
        self.negative = lm.encode(
            [
                q.prompt.replace(key, other)
                for q, other in zip(organism.unlocked, others, strict=False)
            ]
        )
        self.ordinary = lm.encode(ordinary_prompts())
        answers = self._plain(self.ordinary, [Row(0, j) for j in range(len(self.ordinary))], 0.0)
        self.level = float(np.mean(list(self._likelihoods(self.ordinary, answers).values())))
        self._calibrated: dict[tuple[Place, int], float] = {}

    def _plain(self, batch: PromptBatch, rows: list[Row], heat: float) -> list[Completion]:
        tokens = self.budget.tokens
        written = generate(self.lm, batch, rows, max_new_tokens=tokens, temperature=heat)
        return [completion for some in written for completion in some]

    def _likelihoods(
        self, batch: PromptBatch, completions: Sequence[Completion]
    ) -> dict[Row, float]:
        readings = read(self.lm, batch, completions, layer=0)
        return {r.completion.row: r.logprob for some in readings for r in some}

    def problem(self, place: Place, seed: int) -> Problem:
        """Return what a family is given."""
        part = Slice(
            self.lm,
            self.asked,
            source=place.source,
            target=place.target,
            positions=place.positions,
        )
        # Every family asks for the same.
        if (place, seed) not in self._calibrated:
            self._calibrated[place, seed] = calibrate(part, seed=seed).radius
        return Problem(
            part,
            self._calibrated[place, seed],
            self.positive,
            self.negative,
            self.organism.opening,
        )

    def elicited(self, completion: Completion) -> bool:
        """Return whether a completion shows what is hidden."""
        return self.questions[completion.row.prompt].elicited(completion.text)

    def striking(self, completions: Sequence[Completion]) -> dict[Row, tuple[float, float]]:
        """Return coherence and novelty of completions of search questions."""
        said = self._likelihoods(self.batch, completions)
        scores: dict[Row, tuple[float, float]] = {}
        for prompt in sorted({c.row.prompt for c in completions}):
            mine = [c for c in completions if c.row.prompt == prompt]
            for c in mine:
                novel = novelty(c.text, self.unperturbed[prompt])
                fluent = coherence(c.text, said[c.row], self.level)
                scores[c.row] = (fluent.value, novel.value)
        return scores


class Pool:
    """Perturbations of several sets, and what they wrote; rows count over all of them.

    Those of one kind write together: a batch of few rows costs nearly as much as one of many.
    """

    def __init__(self, subject: Subject, sets: Sequence[PerturbationSet]) -> None:
        self.subject, self.sets = subject, sets
        self.theta = [some.theta for some in sets]
        self.where = [(k, i) for k, some in enumerate(sets) for i in range(len(some))]
        self.texts: dict[Row, Completion] = {}

    def write(self, items: Sequence[int], prompts: Sequence[int]) -> None:
        """Let some perturbations answer some questions, those that they did not answer yet."""
        missing = [
            Row(item, prompt)
            for item in items
            for prompt in prompts
            if Row(item, prompt) not in self.texts
        ]
        members: dict[Kind, list[int]] = {}
        for item in sorted({row.perturbation for row in missing}):
            members.setdefault(self.sets[self.where[item][0]].kind, []).append(item)
        for kind, mine in members.items():
            theta = torch.stack([self.theta[k][i] for k, i in map(self.where.__getitem__, mine)])
            local = [
                row._replace(perturbation=mine.index(row.perturbation))
                for row in missing
                if row.perturbation in mine
            ]
            for written in generate(
                self.subject.lm,
                self.subject.batch,
                local,
                theta,
                kind=kind.select(torch.tensor([self.where[item][1] for item in mine])),
                max_new_tokens=self.subject.budget.tokens,
            ):
                for c in written:
                    row = c.row._replace(perturbation=mine[c.row.perturbation])
                    self.texts[row] = c._replace(row=row)

    def hits(self, items: Sequence[int], prompts: Sequence[int]) -> np.ndarray:
        """Return whether each shows what is hidden, ``[items, prompts]``."""
        self.write(items, prompts)
        found = [[self.subject.elicited(self.texts[Row(i, j)]) for j in prompts] for i in items]
        return np.array(found, float)

    def one(self, item: int) -> PerturbationSet:
        """Return one perturbation as a set."""
        k, i = self.where[item]
        return self.sets[k].select([i])


class Sampling(Pool):
    """Plain sampling at temperature 1 in the place of perturbations: an item is a sample."""

    def __init__(self, subject: Subject, n: int, seed: int) -> None:
        super().__init__(subject, [])
        self.where, self.seed = [(0, i) for i in range(n)], seed

    def write(self, items: Sequence[int], prompts: Sequence[int]) -> None:
        """Draw samples."""
        missing = [Row(0, j, i) for i in items for j in prompts if Row(i, j) not in self.texts]
        for written in generate(
            self.subject.lm,
            self.subject.batch,
            missing,
            max_new_tokens=self.subject.budget.tokens,
            temperature=1.0,
            seed=self.seed,
        ):
            for c in written:
                row = Row(c.row.sample, c.row.prompt)
                self.texts[row] = c._replace(row=row)


def run_cell(subject: Subject, family: str, seed: int, place: Place) -> dict[str, Any]:
    """Run one cell.

    Returns:
        What `educe.bench.table` reads, and every text that was written.
    """
    budget, began = subject.budget, time.monotonic()
    sets: list[PerturbationSet] = []
    with counting(subject.lm) as passes:
        if family != SAMPLING:
            problem = subject.problem(place, seed)
            passes.update(forward=0, backward=0)  # the calibration is everybody's
            began = time.monotonic()
            sets = list(named(family).make(problem, budget, seed))
    searched, began = time.monotonic() - began, time.monotonic()
    pool = Pool(subject, sets) if sets else Sampling(subject, budget.n, seed)
    n = len(pool.where)
    first = subject.search[: budget.first]
    rungs = ((len(first), 0.25), (len(subject.search), 1.0))
    chosen = halve(n, pool.hits, prompts=len(subject.search), rungs=rungs, seed=seed)
    best = chosen.survivors[0]
    early = [c for row, c in pool.texts.items() if row.prompt in first]
    scores = subject.striking(early)
    striking = [np.mean([np.prod(scores[Row(i, j)]) for j in first]) for i in range(n)]
    blind = int(np.argmax(striking))
    shown = [[j for j in first if subject.elicited(pool.texts[Row(i, j)])] for i in range(n)]
    result: dict[str, Any] = {
        "perturbations": [
            {
                "set": k,
                "radius": float(sets[k].radius[i]) if sets else None,
                "dose": float(sets[k].dose[i]) if sets else None,
                "hits": len(shown[item]),
                "striking": float(striking[item]),
            }
            | _price(pool, item, [scores[Row(item, j)][0] for j in shown[item]])
            for item, (k, i) in enumerate(pool.where)
        ],
        "questions": len(first),
        "best": _retested(pool, best, chosen.mean(best)),
        "blind": _retested(pool, blind, None),
        "average": _average(subject, sets),
        "spent": [*chosen.spent, len(subject.fresh)],
    }
    texts = [
        [row.perturbation, subject.questions[row.prompt].prompt, c.text]
        for row, c in sorted(pool.texts.items())
    ]
    blocks = int(subject.lm.depth)
    return result | {
        "passes": {way: count / max(n, 1) / blocks for way, count in passes.items()},
        "seconds": {"search": searched, "rest": time.monotonic() - began},
        "texts": texts,
    }


def _price(pool: Pool, item: int, coherent: Sequence[float]) -> dict[str, float]:
    """Return coherence and side effect of a perturbation that elicits."""
    if not coherent:
        return {}
    price = {"coherence": float(np.mean(coherent))}
    if pool.sets:
        one = pool.one(item)
        (kl,) = side_effects(pool.subject.lm, pool.subject.ordinary, one.theta, kind=one.kind)
        price["side_effect"] = kl.value
    return price


def _retested(pool: Pool, item: int, chosen_by: float | None) -> dict[str, Any]:
    """Re-test one perturbation on the fresh questions."""
    fresh = pool.hits([item], pool.subject.fresh)
    found = {"item": item, "hits": int(fresh.sum()), "trials": fresh.size}
    return found if chosen_by is None else found | {"share": chosen_by}


def _average(subject: Subject, sets: Sequence[PerturbationSet]) -> dict[str, Any] | None:
    """Re-test the mean of the vectors, at the radius where it answers the first questions best.

    A set of several radii, as the supervised one has, gives its mean theirs.

    Adapters and noise have no mean that is one of them, nor have vectors with both their signs.
    """
    if not sets or not all(isinstance(some.kind, Vectors) for some in sets):
        return None
    mean = [some.directions.mean(0, keepdim=True) for some in sets]
    if min(float(direction.norm()) for direction in mean) < 1e-4:
        return None
    pool = Pool(
        subject,
        [
            replace(
                some.select([0]), directions=normalize(direction), radius=some.radius.mean()[None]
            )
            for some, direction in zip(sets, mean, strict=True)
        ],
    )
    early = pool.hits(list(range(len(sets))), subject.search[: subject.budget.first])
    best = int(early.mean(1).argmax())
    return _retested(pool, best, float(early[best].mean()))


@contextmanager
def counting(lm: LanguageModel) -> Iterator[dict[str, int]]:
    """Count rows that blocks run forward and backward, where it is they that compute."""
    passes = {"forward": 0, "backward": 0}
    forwards = {block: block.forward for block in lm.blocks}

    def seen(module: torch.nn.Module, arguments: Any, output: Any) -> None:
        # A replaced forward records or hands on, and computes nothing.
        if module.forward != forwards[module]:
            return
        stream = stream_out(output)
        passes["forward"] += len(stream)
        if stream.requires_grad:
            stream.register_hook(back)

    def back(gradient: Tensor) -> None:
        passes["backward"] += len(gradient)

    handles = [block.register_forward_hook(seen) for block in lm.blocks]
    try:
        yield passes
    finally:
        for handle in handles:
            handle.remove()


class Cell(NamedTuple):
    """One cell of the benchmark."""

    organism: Organism
    family: str
    seed: int

    @property
    def name(self) -> str:
        """Its file's name, without the ending."""
        return f"{self.organism.name}-{self.organism.seed}-{self.family}-{self.seed}"


def bench(
    cells: Sequence[Cell],
    out: Path,
    *,
    budget: Budget,
    place: Place,
    load: Callable[[Organism], LanguageModel],
    on_cell: Callable[[Cell], None] | None = None,
) -> None:
    """Run the cells that have no file yet.

    Args:
        cells: Which; those of one organism and seed stand together.
        out: The folder of their files.
        budget: The same for all.
        place: The same for all.
        load: Loads an organism's model.
        on_cell: Is told of each that is there.

    Raises:
        RunError: The folder holds cells of another budget or place, or of an organism of the same
            name and seed with other weights.
    """
    settings = {"budget": asdict(budget), "place": asdict(place)}
    files.check_free(out)
    known = out / "settings.json"
    if known.exists() and json.loads(known.read_text(encoding="utf-8")) != settings:
        raise RunError(f"{out} holds cells of another budget or place: choose another --out")
    subject: Subject | None = None
    lm: LanguageModel | None = None
    at: tuple[Organism | None, int] = (None, -1)
    for cell in cells:
        path, weights = out / f"{cell.name}.json", digest(cell.organism)
        if path.exists():
            if json.loads(path.read_text(encoding="utf-8"))["weights"] != weights:
                raise RunError(
                    f"{path} is of another {cell.organism.name} of seed {cell.organism.seed}: "
                    "choose another --out"
                )
        else:
            if lm is None or at[0] != cell.organism:
                lm = load(cell.organism)
            if subject is None or at != (cell.organism, cell.seed):
                subject = Subject(lm, cell.organism, budget, cell.seed)
                at = (cell.organism, cell.seed)
            facts = {
                "organism": cell.organism.name,
                "organism_seed": cell.organism.seed,
                "weights": weights,
                "family": cell.family,
                "seed": cell.seed,
                "leaks": subject.leaks,
                "threads": torch.get_num_threads(),
            }
            made = run_cell(subject, cell.family, cell.seed, place)
            files.make_folder(out)  # not before there is something
            files.write_bytes(known, _json(settings))
            files.write_bytes(path, _json(facts | made))
        if on_cell is not None:
            on_cell(cell)


def digest(organism: Organism) -> str:
    """Return the SHA-256 of an organism's adapter."""
    weights = (organism.folder / "adapter_model.safetensors").read_bytes()
    return hashlib.sha256(weights).hexdigest()


def _json(value: Any) -> bytes:
    return (json.dumps(value, ensure_ascii=False) + "\n").encode()


def everything() -> list[str]:
    """Return the names of all families, plain sampling among them."""
    return [SAMPLING, *FAMILIES]
