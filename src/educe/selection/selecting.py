"""Selection among the perturbations of a finished run, the control's put through the same.

    both arms → successive halving on the same prompts → the best of each
              → fresh prompts and fresh samples, which give the number that is shown

What is written is kept in the run, in the phases ``rung`` and ``retest`` of prompts in roles of
their own. So a command that was killed goes on, and another judge on the same prompts pays only for
texts that the first did not see.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from educe.comparison.chance import Chance, best_by_chance, best_mean_by_chance, p_of_best
from educe.comparison.halving import RUNGS, Halving, checked, halve
from educe.comparison.stats import Estimate, estimate, more_often, rate
from educe.errors import PromptError, RunError
from educe.forward.chunks import split
from educe.model.language import LanguageModel
from educe.model.prompts import Prompt
from educe.options import ALONE, Count, Seed, SpreadOptions
from educe.progress import Reporter
from educe.rows import ARMS, RETEST, RUNG, Row
from educe.run import asking
from educe.run.fill import fill, interestingness, judge
from educe.run.settings import check_prompts, told_apart
from educe.run.store import Run
from educe.run.work import Work, at_work
from educe.scores import Judge
from educe.whole import check_fields

#: Roles of the prompts that a selection chooses on, and of those that it tests on.
CHOSEN_ON, TESTED_ON = "chosen on", "tested on"
#: Texts that are scored together; all that their perturbations wrote is held meanwhile.
PART = 2**13


@dataclass(frozen=True)
class SelectionPlan:
    """What is asked for.

    Attributes:
        prompts: On which perturbations are chosen, in this order.
        fresh: On which the chosen are tested again; those that were seen before are left out.
        rungs: See `educe.comparison.halving.halve`.
        top: How many of each arm are tested again.
        samples: Texts a fresh prompt.
        seed: Of the lot that breaks ties.
        derived: Choose among what was derived in this way, such as ``sampled``, instead of what was
            found and its control.
    """

    prompts: tuple[Prompt, ...]
    fresh: tuple[Prompt, ...]
    rungs: tuple[tuple[int, float], ...] = RUNGS
    top: Count = 4
    samples: Count = 1
    seed: Seed = 0
    derived: str = ""

    def check(self) -> None:
        """Find what cannot work before anything slow begins.

        Raises:
            PromptError: There are no prompts, or one is none.
            MethodError: Numbers make no sense.
        """
        if not (self.prompts and self.fresh):
            raise PromptError("a selection needs prompts to choose on and fresh ones to test on")
        check_prompts(prompt=self.prompts, fresh_prompt=self.fresh)
        check_fields(self)
        checked(self.rungs)


class Chosen(NamedTuple):
    """A perturbation that was chosen."""

    number: int
    seen: Estimate  #: on the prompts it was chosen by, so too good
    again: Estimate  #: on fresh prompts and samples


class Arm(NamedTuple):
    """What came of one arm."""

    candidates: int
    first: Estimate  #: all candidates in the first rung, before any was chosen
    spent: tuple[int, ...]  #: texts of each rung
    chosen: tuple[Chosen, ...]  #: best first
    p_value: float  #: of the best in the selection, corrected for the number of candidates


class Selected(NamedTuple):
    """What a selection found."""

    judge: str
    prompts: tuple[int, ...]  #: of each rung
    found: Arm
    control: Arm
    unperturbed: Estimate  #: on the fresh prompts, with as many samples
    chance: Chance  #: the best, were every candidate as the mean of the control
    p_again: float | None  #: Fisher's test of the two that were chosen first, for hits
    texts: int  #: written, so paid, by all selections on these prompts


def select_best(
    run: Run,
    plan: SelectionPlan,
    *,
    judge: Judge | None = None,
    lm: LanguageModel | None = None,
    reporter: Reporter | None = None,
    spread: SpreadOptions = ALONE,
) -> Selected:
    """Choose among the perturbations of a run, or go on with it.

    Args:
        run: A finished run.
        plan: What is asked for.
        judge: What it goes by; by default the interestingness of each text.
        lm: The model, when it is loaded already.
        reporter: Is told of the progress (see `educe.progress`).
        spread: Who writes and judges.

    Raises:
        RunError: The run is not finished, its model is another now, or another process is at work
            on it.
        PromptError: See `SelectionPlan.check`; or no fresh prompt is left.
        MethodError: See `SelectionPlan.check`.
    """
    plan.check()
    if not run.has("chosen"):
        raise RunError(f"the run in {run.folder} is not finished: educe discover --resume first")
    with at_work(run, lm, reporter, spread) as work:
        return _Selection(work, plan, judge).all()


class _Selection:
    """The two halvings and the re-test; each leaves what it did in the run."""

    def __init__(self, work: Work, plan: SelectionPlan, by: Judge | None) -> None:
        self.work, self.plan, self.by = work, plan, by
        apart = told_apart(
            work.lm, work.settings, plan.prompts, plan.fresh, seen=work.settings.prompts
        )
        for sentence in apart.said:
            work.reporter.say(sentence)
        self.asked = work.add_prompts(CHOSEN_ON, [plan.prompts[i] for i in apart.asked])
        self.fresh = work.add_prompts(TESTED_ON, [plan.fresh[i] for i in apart.fresh])

    def all(self) -> Selected:
        """Choose, and test again."""
        run, plan = self.work.run, self.plan
        asking.baseline(self.work, [*self.asked, *self.fresh])
        numbers = {
            arm: [
                p.id
                for p in run.perturbation_rows(arm, derived=bool(plan.derived))
                if p.how == plan.derived
            ]
            for arm in ARMS
        }
        if not all(numbers.values()):
            raise RunError(
                f"in one of the arms of the run there is none that is {plan.derived or 'found'}: "
                "see the column how of its perturbations"
            )
        n = min(map(len, numbers.values()))  # drawn at random from the larger arm
        draw = np.random.default_rng(plan.seed)
        for arm, some in numbers.items():
            numbers[arm] = [some[i] for i in sorted(draw.permutation(len(some))[:n].tolist())]
        halvings = {arm: self._halve(arm, numbers[arm]) for arm in ARMS}
        best = {arm: [numbers[arm][i] for i in halvings[arm].survivors[: plan.top]] for arm in ARMS}
        again = self._retest([0, *best["found"], *best["control"]])
        tables = [*(h.scores for h in halvings.values()), *again.values()]
        hits = all(bool(np.isin(t[~np.isnan(t)], (0, 1)).all()) for t in tables)
        before = halvings["control"].scores[:, : halvings["control"].prompts[0]]
        (found, chance), (control, _) = (
            _arm(halvings[arm], numbers[arm], best[arm], again, before, hits) for arm in ARMS
        )
        top, other = (
            rate(arm.chosen[0].again.hits or 0, again[0].size) for arm in (found, control)
        )
        mine = {*self.asked, *self.fresh}
        return Selected(
            self.by.name if self.by else "interestingness",
            halvings["found"].prompts,
            found,
            control,
            estimate(again[0], hits),
            chance,
            more_often(top, other) if hits else None,
            run.texts_kept(mine),
        )

    def _halve(self, arm: str, numbers: list[int]) -> Halving:
        def score(items: list[int], prompts: list[int]) -> np.ndarray:
            rows = [Row(numbers[i], self.asked[j], 0, RUNG) for i in items for j in prompts]
            what = f"{arm}, {len(items)} on {prompts[-1] + 1} prompts"
            scores = self._scores(what, rows, self.work.settings.temperature)
            return np.array(scores).reshape(len(items), len(prompts))

        many, plan = len(self.asked), self.plan
        return halve(len(numbers), score, prompts=many, rungs=plan.rungs, seed=plan.seed)

    def _retest(self, numbers: list[int]) -> dict[int, np.ndarray]:
        """Return the scores of some perturbations on fresh prompts, ``[prompts, samples]``."""
        samples = range(self.plan.samples)
        rows = [Row(i, j, k, RETEST) for i in numbers for j in self.fresh for k in samples]
        heat = self.work.settings.temperature or asking.RETEST_TEMPERATURE
        tables = np.array(self._scores("re-test", rows, heat))
        return dict(zip(numbers, tables.reshape(len(numbers), -1, len(samples)), strict=True))

    def _scores(self, what: str, rows: Sequence[Row], heat: float) -> list[float]:
        """Write and judge what is missing, and return the scores of all."""
        self.work.run.ask(rows, heat)
        fill(self.work, what)
        scores = list[float]()
        for some in split(rows, PART):
            scores += (
                interestingness(self.work.run, some)
                if self.by is None
                else judge(self.work, self.by, some, what)
            )
        return scores


def _arm(
    halving: Halving,
    candidates: list[int],
    best: list[int],
    again: dict[int, np.ndarray],
    before: np.ndarray,
    hits: bool,
) -> tuple[Arm, Chance]:
    """Return what came of an arm, and how good its best would be by chance.

    Args:
        halving: Its halving.
        candidates: Its perturbations.
        best: Those that are tested again.
        again: The scores of the re-test.
        before: The control's scores in the first rung, before any was chosen.
        hits: Whether scores are hits and misses.
    """
    trials, n = halving.prompts[-1], len(candidates)
    seen = {number: halving.scores[candidates.index(number), :trials] for number in best}
    top, first = seen[best[0]], estimate(before, hits)
    if hits:
        chance = best_by_chance(n, trials, first.mean)
        p_value = p_of_best(int(top.sum()), n, trials, (first.hits or 0, first.trials))
    else:
        scores = before.ravel().tolist()
        chance, p_value = best_mean_by_chance(n, trials, scores, float(top.mean()))
    chosen = [Chosen(i, estimate(seen[i][:, None], hits), estimate(again[i], hits)) for i in best]
    rung = estimate(halving.scores[:, : halving.prompts[0]], hits)
    return Arm(n, rung, halving.spent, tuple(chosen), p_value), chance
