"""Sampling: search around what a run found, with judges as the objective.

    space → sampler ⇄ objective (one batch of texts a round) → the best that differ → re-test
    control: as many settings of the same space, drawn from the prior, chosen and re-tested alike

Everything that is evaluated is a perturbation of the run with a parent, and the finds are further
ones, re-tested on fresh prompts or samples: the number to trust, since the best of many estimates
is the luckiest.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import torch

from educe.comparison.stats import estimate
from educe.derive.listing import add, looked_for, named
from educe.derive.projection import as_vectors
from educe.derive.scaling import derived
from educe.errors import MethodError
from educe.perturbation.kinds import Within
from educe.perturbation.set import PerturbationSet
from educe.rows import ARMS, CONTROL, FOUND, RETEST, SAMPLED, SAMPLING
from educe.run import asking
from educe.run.fill import fill, groups
from educe.run.work import Work
from educe.sampling.annealing import Annealed
from educe.sampling.best import CMA, TPE, Around, Draws
from educe.sampling.diagnostics import STEPS, answer, diagnose, states
from educe.sampling.diversity import Archived, Diversity, archived
from educe.sampling.elliptical import EllipticalSlice
from educe.sampling.ensemble import Ensemble, schedule
from educe.sampling.evaluating import Judged, Likely, Listed, Terms, quietly
from educe.sampling.measures import Measure
from educe.sampling.objective import Objective, Prior, Round, Sampler, drive
from educe.sampling.results import Find, Sampled, curve, means, plain
from educe.sampling.settings import CHAINS, Sampling
from educe.sampling.space import space
from educe.scores import Judge

#: Finds differ by their cosine; and of what was explored by likelihood, so many times the finds are
#: judged.
ALIKE, JUDGED = 0.9, 4
#: Directions of which the posterior is told one by one.
TOLD = 64


def sample(work: Work, asked: Sampling, terms: Terms, measure: Measure | None = None) -> Sampled:
    """Sample around what a run found, or go on with it.

    Args:
        work: A finished run at work.
        asked: What is asked for.
        terms: What settings are judged by.
        measure: What is measured of behaviour, for ``diversity``.

    Raises:
        MethodError: See `Sampling.check` and `educe.sampling.space.space`.
        JudgeError: The objective is no number, or the same everywhere.
    """
    asked.check()
    return _Sampling(work, asked, terms, measure).all()


def usual_terms(
    work: Work,
    judges: Sequence[tuple[float, Judge | None]] | None = None,
    *,
    side_effect: float = 0.0,
    incoherence: float = 0.0,
) -> Terms:
    """Return what settings are judged by.

    Args:
        work: The run at work.
        judges: Weights and judges, None for interestingness; by default what the run looks for, or
            else interestingness.
        side_effect: What a nat of KL on ordinary prompts costs.
        incoherence: What a text costs that is not coherent at all.
    """
    named = tuple(judges) if judges else ((1.0, looked_for(work.run)),)
    return Terms(named, side_effect, incoherence)


class _Sampling:
    """Both arms, the finds and their re-test; each leaves what it did in the run."""

    def __init__(self, work: Work, asked: Sampling, terms: Terms, measure: Measure | None) -> None:
        self.work, self.asked, self.terms = work, asked, terms
        self.measure = measure if asked.sampler == "diversity" else None
        found = [p.radius for p in work.run.perturbation_rows(FOUND)]
        self.space = space(
            work,
            asked.basis if not asked.numbers else (f"found:{len(asked.numbers)}", *asked.basis[1:]),
            asked.numbers,
            radius=asked.radius or float(np.median(np.abs(found))),
            natural_prior=asked.prior == "natural",
            fixed=asked.norm == "fixed",
            seed=asked.seed,
        )
        told = asdict(asked) | {"terms": terms.told}
        for free in ("keep", "control", "budget"):  # with more of them the same goes on
            del told[free]
        if asked.sampler in (*CHAINS, "anneal"):  # whose schedule goes by it
            told["budget"] = asked.budget
        self.name = named(SAMPLED, **told)
        self.prior = Prior("laplace" if asked.prior == "laplace" else "gaussian")
        self.parents = self._vectors()
        self.files: dict[str, str] = {}

    def all(self) -> Sampled:
        """Search, choose, and test again."""
        arms = ARMS if self.asked.control else (FOUND,)
        rounds: dict[str, list[Round]] = {}
        finds: dict[str, list[int]] = {}
        seen: dict[int, float] = {}
        sampler: Any = None
        for arm in arms:
            own = self._sampler() if arm == FOUND else self._draws()
            sampler = own if arm == FOUND else sampler
            listed = Listed(self.work, self.space, self.name, arm, self._nearest)
            rounds[arm] = self._driven(own, self._objective(listed), arm)
            chosen = self._chosen(rounds[arm], listed)
            finds[arm] = self._listed(arm, chosen, listed)
            seen |= zip(finds[arm], (value for _, value in chosen), strict=True)
        told = self._told(sampler, rounds, finds, seen)
        self.work.run.remember(SAMPLING + told.file, plain(told, self.asked, self.terms))
        return told

    # -- the search --------------------------------------------------------------------------------

    def _sampler(self) -> Sampler:
        """Return the sampler that is asked for."""
        a, k = self.asked, len(self.space)
        heat: dict[str, Any] = {"temperature": a.temperature, "seed": a.seed}
        common = heat | {"batch": a.walkers, "prior": self.prior}
        if a.sampler in ("cma", "tpe"):
            return (CMA if a.sampler == "cma" else TPE)(k, **common)
        if a.sampler == "around":
            return Around(k, start=self._start(), **common)
        if a.sampler == "diversity":
            assert self.measure is not None, "diversity comes with measures"
            return Diversity(k, ranges=self.measure.ranges, cells=a.cells, **common)
        if a.sampler == "slice":
            return EllipticalSlice(k, a.walkers, steps=a.budget, **heat)
        if a.sampler == "anneal":
            steps = max(1, int(a.budget / len(a.shares) / a.walkers) - 1)
            return Annealed(k, a.walkers, self._start(), a.shares, steps=steps, hot=a.hot, **heat)
        if a.sampler == "draws":
            return self._draws()
        again = 0 if a.exact else a.again
        each = a.walkers * a.ensembles * (1 + (1 / again if again else 0))
        steps = int((a.budget - a.walkers * a.ensembles) / each)
        if schedule(steps, a.hot, a.cycles).count(1.0) < STEPS:
            raise MethodError(
                f"a budget of {a.budget} is {max(0, steps)} steps of {a.ensembles} ensembles of "
                f"{a.walkers} walkers, and {STEPS} have to be left when the temperature has "
                f"fallen: give more, or fewer walkers or ensembles"
            )
        how: dict[str, Any] = {"move": a.sampler, "steps": steps, "again": again}
        how |= {"hot": a.hot, "cycles": a.cycles, "prior": self.prior}
        return Ensemble(k, a.walkers, a.ensembles, **how, **heat)

    def _draws(self) -> Draws:
        """Return draws of the prior, with a seed of their own."""
        a = self.asked
        return Draws(len(self.space), a.walkers, seed=a.seed + 1, prior=self.prior)

    def _start(self) -> np.ndarray:
        """Return the setting of the first of the vectors that are named."""
        (number, *_) = self.asked.numbers
        vector = self.parents[1][self.parents[0].index(number)]
        rows = self.space.vectors(torch.eye(len(self.space))).numpy()
        return rows @ vector / self.space.scale

    def _objective(self, listed: Listed) -> Objective:
        if self.asked.wanted is not None:
            return Likely(listed, self.asked.wanted, self.asked.unwanted)
        return self._judged(listed)

    def _judged(self, listed: Listed, label: str = "round") -> Judged:
        a = self.asked
        return Judged(listed, self.terms, a.samples, a.common, self.measure, label)

    def _driven(self, sampler: Sampler, objective: Objective, arm: str) -> list[Round]:
        best, title = -np.inf, f"{arm}: {self.asked.sampler if arm == FOUND else 'draws'}"
        with self.work.reporter.stage(title, self.asked.budget, "settings") as step:

            def after(one: Round) -> None:
                nonlocal best
                best = max(best, float(one.came.value.max()))
                moved = sampler.acceptance
                share = "" if moved is None else f", {moved:.0%} accepted"
                step(len(one.z), f"best {best:.3g}{share}")

            return drive(sampler, objective, budget=self.asked.budget, after=after)

    # -- the finds ---------------------------------------------------------------------------------

    def _chosen(self, rounds: list[Round], listed: Listed) -> list[tuple[np.ndarray, float]]:
        """Return the best settings that differ, with their mean values, judged."""
        a = self.asked
        if self.measure is not None:
            z = np.concatenate([one.z for one in rounds])
            values = np.concatenate([one.came.value for one in rounds])
            return [(z[i], float(values[i])) for i in self._archived(rounds).elites[: a.keep]]
        many = a.keep if a.wanted is None else JUDGED * a.keep
        best = self._differing(means(rounds), many)
        if a.wanted is None or not best:
            return best
        z = np.stack([one for one, _ in best])
        judged = self._judged(listed, "judged")(z)
        order = np.argsort(-judged.value, kind="stable")[: a.keep]
        return [(z[i], float(judged.value[i])) for i in order]

    def _archived(self, rounds: list[Round], lowest: float = 0.0) -> Archived:
        assert self.measure is not None, "diversity comes with measures"
        return archived(rounds, self.measure.ranges, cells=self.asked.cells, lowest=lowest)

    def _differing(
        self, means: list[tuple[np.ndarray, float]], many: int
    ) -> list[tuple[np.ndarray, float]]:
        kept: list[tuple[np.ndarray, float]] = []
        units: list[np.ndarray] = []
        for z, value in means:
            c = self.space.coefficients(z[None])[0]
            unit = c / np.linalg.norm(c)
            if all(unit @ other < ALIKE for other in units):
                kept.append((z, value))
                units.append(unit)
            if len(kept) == many:
                break
        return kept

    def _listed(
        self, arm: str, chosen: list[tuple[np.ndarray, float]], listed: Listed
    ) -> list[int]:
        """List finds as perturbations whose parents are the vectors that they are nearest to."""
        theta = torch.tensor(
            self.space.coefficients(np.stack([z for z, _ in chosen])), dtype=torch.float32
        )
        file = named(self.name, arm=arm, keep=self.asked.keep, budget=self.asked.budget)
        parents = self._nearest(theta)

        def make() -> PerturbationSet:
            made = listed.made(theta)
            made = as_vectors(made) if isinstance(made.kind, Within) else made
            seen = torch.tensor([value for _, value in chosen])
            return derived(made, range(len(made)), seen=seen)

        self.files[arm] = f"{file}.safetensors"
        return add(self.work, f"{file}.safetensors", SAMPLED, parents, make, arm=arm)

    def _vectors(self) -> tuple[list[int], np.ndarray]:
        """Return the vectors that were found, or that are named, as parents to choose from."""
        run = self.work.run
        numbers = list(self.asked.numbers) or [p.id for p in run.perturbation_rows(FOUND)]
        known, rows = [], []
        for group in groups(run, numbers):
            if group.theta.shape[1] == self.work.lm.width:
                known += group.numbers
                rows.append(group.theta)
            elif isinstance(group.kind, Within):
                known += group.numbers
                rows.append(group.theta @ group.kind.rows)
        if not known:
            return numbers[:1], np.ones((1, self.work.lm.width))
        return known, torch.cat(rows).numpy()

    def _nearest(self, theta: torch.Tensor) -> list[int]:
        numbers, vectors = self.parents
        added = self.space.vectors(theta)[:, : vectors.shape[1]].numpy()
        cosine = np.abs(added @ (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).T)
        return [numbers[i] for i in cosine.argmax(1)]

    # -- what came of it ---------------------------------------------------------------------------

    def _told(
        self,
        sampler: Any,
        rounds: dict[str, list[Round]],
        finds: dict[str, list[int]],
        seen: dict[int, float],
    ) -> Sampled:
        a, paid = self.asked, {arm: sum(len(r.z) for r in own) for arm, own in rounds.items()}
        diagnosis = answers = None
        if a.sampler in CHAINS and sum(sampler.kept) >= STEPS:
            chain = states(sampler.chain, sampler.kept)
            diagnosis = diagnose(chain, acceptance=sampler.acceptance, evaluations=paid[FOUND] // 2)
            if len(self.space) <= TOLD:
                drawn = self.prior.draw(1000, len(self.space), np.random.RandomState(a.seed))
                answers = answer(chain, self.space.names, drawn, seed=a.seed)
        archives = {}
        if self.measure is not None:
            low = min(float(r.came.value.min()) for own in rounds.values() for r in own)
            archives = {arm: self._archived(own, low) for arm, own in rounds.items()}
        return Sampled(
            self.name,
            self.files[FOUND],
            self.files.get(CONTROL),
            len(self.space),
            self._retested(finds, seen),
            paid,
            {arm: means(own)[0][1] for arm, own in rounds.items()},
            {arm: curve(own) for arm, own in rounds.items()},
            diagnosis,
            answers,
            archives,
            list(getattr(sampler, "path", [])),
        )

    def _retested(self, finds: dict[str, list[int]], seen: dict[int, float]) -> list[Find]:
        """Return the finds with the same terms on fresh prompts, or on fresh samples."""
        work, numbers = self.work, [n for own in finds.values() for n in own]
        asking.baseline(work, work.prompts("fresh", "asked"))
        rows = asking.retest(work, numbers)
        fill(work, "re-test")
        shape = len(numbers), len({row.prompt for row in rows}), -1
        values = self.terms.of_texts(work, rows, "re-test").reshape(shape)
        with quietly(work):
            values -= self.terms.of_perturbations(work, numbers)[:, None, None]
        said = {c.row: c.text for c in work.run.completion_rows(RETEST, of=numbers)}
        lines = {p.id: p for p in work.run.perturbation_rows(derived=True, of=numbers)}
        found = []
        for i, n in enumerate(numbers):
            best = rows[i * values[i].size + int(values[i].argmax())]
            again = estimate(values[i], False)
            found.append(Find(n, lines[n].parent or 0, lines[n].arm, seen[n], again, said[best]))
        return found
