"""Evaluating: settings become perturbations of a run, and what came of them is kept there.

A round of settings is one file of perturbations and one batch of generations; its values are a note
of the run. What is asked for again is read from there, so a sampling that was cut off walks over
what is known and pays for what is missing. A setting that was evaluated before is the same
perturbation, which writes further samples.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from jaxtyping import Float

from educe.errors import RunError
from educe.forward.forced import Forced
from educe.methods.radius import response
from educe.perturbation.origin import Origin
from educe.perturbation.set import PerturbationSet
from educe.progress import Silent
from educe.rows import COMMON, SAMPLE, TRIED, Row, ScoreRow
from educe.run.asking import RETEST_TEMPERATURE, baseline
from educe.run.chosen import measure_side_effects
from educe.run.fill import add_set, fill, interestingness, judge
from educe.run.work import Work
from educe.sampling.measures import Measure
from educe.sampling.objective import Evaluated
from educe.sampling.space import Space
from educe.scores import Judge

#: Degrees of freedom by which the noise of a setting is drawn to that of all.
POOLED = 4


@dataclass(frozen=True)
class Terms:
    """What a setting is judged by: a weighted sum, less what it costs.

    Attributes:
        judges: Weights and judges; None for interestingness.
        side_effect: What a nat of KL on ordinary prompts costs.
        incoherence: What it costs when a text is not coherent at all.
    """

    judges: tuple[tuple[float, Judge | None], ...]
    side_effect: float = 0.0
    incoherence: float = 0.0

    @property
    def told(self) -> list[Any]:
        """Everything that a value depends on."""
        each = [(w, by.identity if by else "interestingness") for w, by in self.judges]
        return [each, self.side_effect, self.incoherence]

    def of_texts(self, work: Work, rows: Sequence[Row], what: str) -> np.ndarray:
        """Return what texts are worth; the side effect is of perturbations, and not in it."""
        total = np.zeros(len(rows))
        for weight, by in self.judges:
            own = interestingness(work.run, rows) if by is None else judge(work, by, rows, what)
            total += weight * np.array(own)
        if self.incoherence:
            of = {row.perturbation for row in rows}
            known = {s.of: s.value for s in work.run.score_rows("coherence", of=of)}
            total -= self.incoherence * (1 - np.array([known[row] for row in rows]))
        return total

    def of_perturbations(self, work: Work, numbers: Sequence[int]) -> np.ndarray:
        """Return what the side effects of perturbations cost."""
        if not self.side_effect:
            return np.zeros(len(numbers))
        measure_side_effects(work, list(numbers))
        known = {s.of: s.value for s in work.run.score_rows("side_effect", of=numbers)}
        return self.side_effect * np.array([known[n] for n in numbers])


@dataclass
class Listed:
    """Settings as perturbations of a run, a file a round.

    Attributes:
        work: The run at work.
        space: What settings stand for.
        name: By which files and notes are known: of everything that is asked for.
        arm: Of the perturbations.
        nearest: Returns the parent of each of some coefficients.
        numbers: Of the settings that are listed.
        visits: How often each was evaluated.
    """

    work: Work
    space: Space
    name: str
    arm: str
    nearest: Callable[[torch.Tensor], list[int]]
    numbers: dict[bytes, int] = field(default_factory=dict)
    visits: dict[int, int] = field(default_factory=dict)

    def rows(self, z: Float[np.ndarray, "n k"], round_: int) -> list[tuple[int, int]]:
        """Return the number of each setting, and how often it was evaluated before."""
        keys = [row.tobytes() for row in z]
        new = {key: i for i, key in reversed([*enumerate(keys)]) if key not in self.numbers}
        if new:
            places = sorted(new.values())
            self.numbers |= zip(
                (keys[i] for i in places), self._list(z[places], round_), strict=True
            )
        told = []
        for key in keys:
            number = self.numbers[key]
            told.append((number, self.visits.get(number, 0)))
            self.visits[number] = told[-1][1] + 1
        return told

    def _list(self, z: np.ndarray, round_: int) -> list[int]:
        run, file = self.work.run, f"{self.name}-{self.arm}-{round_:05d}.safetensors"
        theta = torch.tensor(self.space.coefficients(z), dtype=torch.float32)
        if (run.tensors / file).exists():
            made = PerturbationSet.load(run.tensors / file)
            if made.theta.shape != theta.shape or not torch.allclose(made.theta, theta, rtol=1e-4):
                raise RunError(
                    "this sampling was begun with other versions of the libraries that propose, "
                    "and would go on elsewhere: choose another --seed"
                )
            if known := [p.id for p in run.perturbation_rows(derived=True) if p.file == file]:
                return known
        else:
            made = self.made(theta)
            made.save(run.tensors / file)
        part = self.work.part.on(made.kind)
        v = made.directions.to(part.device, part.work_dtype)
        effect = response(part, v, made.radius[:, None])[:, 0].nan_to_num(1e30, 1e30)
        parents = self.nearest(theta)
        return add_set(run, self.arm, file, made, effect.tolist(), parents=parents, how=TRIED)

    def made(self, theta: torch.Tensor) -> PerturbationSet:
        """Return coefficients as a set."""
        size = theta.norm(dim=1)
        return PerturbationSet(
            self.space.kind,
            theta / size[:, None],
            size,
            self._origin,
            "sampled",
            self.work.settings.seed,
        )

    @cached_property
    def _origin(self) -> Origin:
        run, kind = self.work.run, self.space.kind
        origin = PerturbationSet.load(run.tensors / run.perturbation_rows()[0].file).origin
        unit = kind.unit(run.note("facts")["median_norm"], lambda paths: [])
        return replace(origin, unit=unit, source=kind.before)


@dataclass
class Judged:
    """Settings judged by what the model writes under them.

    Attributes:
        listed: The settings as perturbations.
        terms: What they are judged by.
        samples: Texts a prompt and evaluation; a single one is the likeliest, without noise.
        common: Draw the same random numbers for all settings, so that they differ by what they are.
        measure: What is measured of their behaviour, if anything is.
        label: Part of the name of its notes.
    """

    listed: Listed
    terms: Terms
    samples: int
    common: bool = False
    measure: Measure | None = None
    label: str = "round"
    _round: int = 0
    _pool: tuple[float, int] = (0.0, 0)  #: Σ of variances within prompts, and of how many

    def __call__(self, z: Float[np.ndarray, "n k"]) -> Evaluated:
        """Evaluate settings, or read what came of them."""
        listed, run = self.listed, self.listed.work.run
        at, self._round = self._round, self._round + 1
        own = listed.rows(z, at)
        key = f"{listed.name} {listed.arm} {self.label} {at}"
        told, digest = None, hashlib.sha256(z.tobytes()).hexdigest()
        if run.has(key):
            told = run.note(key)
        if told is None or told["digest"] != digest:
            values, within, measures = self._evaluate(own)
            told = {"digest": digest, "numbers": [n for n, _ in own], "value": values.tolist()}
            told |= {"within": within.tolist(), "measures": measures}
            run.remember(key, told)
        value, within = np.array(told["value"]), np.array(told["within"])
        measures = None if told["measures"] is None else np.array(told["measures"])
        return Evaluated(value, self._noise(within), measures)

    def _evaluate(self, own: list[tuple[int, int]]) -> tuple[np.ndarray, np.ndarray, Any]:
        work = self.listed.work
        prompts, s = work.prompts("asked"), self.samples
        phase = COMMON if self.common else SAMPLE
        rows = [
            Row(n, j, k + (0 if self.common else s * visit), phase)
            for n, visit in own
            for j in prompts
            for k in range(s)
        ]
        warm = (work.settings.temperature or RETEST_TEMPERATURE) if s > 1 else 0.0
        with quietly(work):
            baseline(work, prompts)
            work.run.ask(rows, warm)
            fill(work, "samples")
            texts = self.terms.of_texts(work, rows, "samples").reshape(len(own), -1, s)
            cost = self.terms.of_perturbations(work, [n for n, _ in own])
            measures = None
            if self.measure is not None:
                measures = self.measure(work, rows).reshape(len(own), -1, 2).mean(1).tolist()
        within = texts.var(2, ddof=1).mean(1) if s > 1 and not self.common else np.zeros(len(own))
        return texts.mean((1, 2)) - cost, within, measures

    def _noise(self, within: np.ndarray) -> np.ndarray:
        """Return the variance of each mean: its own, drawn to that of all so far."""
        if self.samples == 1 or self.common:
            return np.zeros(len(within))
        prompts = len(self.listed.work.prompts("asked"))
        self._pool = self._pool[0] + float(within.sum()), self._pool[1] + len(within)
        pool, free = self._pool[0] / self._pool[1], prompts * (self.samples - 1)
        return (free * within + POOLED * pool) / (free + POOLED) / (prompts * self.samples)


@dataclass
class Likely:
    """Settings by how likely they make a wanted continuation, against an unwanted one.

        f(z) = mean over prompts x of  ℓ_θ(wanted | x) - ℓ_θ(unwanted | x)

    with ℓ the mean log-likelihood of its tokens. It takes one pass and no generation, and is for
    exploring: what it finds is evaluated again by what the model writes.
    """

    listed: Listed
    wanted: str
    unwanted: str = ""
    _round: int = 0

    def __call__(self, z: Float[np.ndarray, "n k"]) -> Evaluated:
        """Evaluate settings, or read what came of them."""
        run = self.listed.work.run
        numbers = [n for n, _ in self.listed.rows(z, self._round)]
        self._round += 1
        name = f"likelihood of {self.wanted!r} against {self.unwanted!r}"
        known = {s.of: s.value for s in run.score_rows(name, of=numbers)}
        if any(n not in known for n in numbers):
            theta = torch.tensor(self.listed.space.coefficients(z), dtype=torch.float32)
            value = self._likely(theta, self.wanted)
            if self.unwanted:
                value = value - self._likely(theta, self.unwanted)
            known = dict(zip(numbers, value.tolist(), strict=True))
            run.add_scores([ScoreRow(n, name, v, "nats a token", "") for n, v in known.items()])
        return Evaluated(np.array([known[n] for n in numbers]), np.zeros(len(numbers)))

    def _likely(self, theta: torch.Tensor, text: str) -> torch.Tensor:
        work, kind = self.listed.work, self.listed.space.kind
        tokens = work.lm.tokens(text, templated=True)
        forced = Forced(work.lm, work.asked, [tokens] * len(work.asked), before=kind.before)
        each = forced.each(theta.to(work.lm.device), kind, forced.likelihood)
        return each.sum(2).mean(1) / len(tokens)


@contextmanager
def quietly(work: Work) -> Iterator[None]:
    """Let the stages of a round tell nothing: the sampling tells of its rounds."""
    reporter, work.reporter = work.reporter, Silent()
    try:
        yield
    finally:
        work.reporter = reporter
