"""Selection among the perturbations of a finished run, the control's put through the same.

    both arms → successive halving on the same prompts → the best of each
              → fresh prompts and fresh samples, which give the number that is shown

What is written is kept in a run inside the run, one for each set of prompts, whose perturbations
are numbered as in the run around it. So a command that was killed goes on, and another judge on the
same prompts pays only for texts that the first did not see.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from filelock import FileLock, Timeout

from educe.errors import BlockedError, MethodError, PromptError, RunError
from educe.job.rows import BASELINE_SAMPLES, RETEST_TEMPERATURE, baseline
from educe.job.settings import check_prompts, encoded, loaded, stored, told_apart
from educe.judge import Judge, asked_in
from educe.kinds import Row
from educe.model import LanguageModel
from educe.progress import Silent
from educe.rendering import Prompt
from educe.runs import CompletionRow, PromptRow, Run, ScoreRow
from educe.selection.chance import Chance, best_by_chance, best_mean_by_chance, p_of_best
from educe.selection.halving import RUNGS, Halving, checked, halve
from educe.selection.judging import Judged, Judging, Rule, Striking
from educe.stats import bootstrap_mean, more_often, rate
from educe.summary import RETEST
from educe.whole import check_seed, check_whole
from educe.writing import write

ARMS = ("found", "control")


@dataclass(frozen=True)
class SelectionPlan:
    """What is asked for.

    Attributes:
        prompts: On which perturbations are chosen, in this order.
        fresh: On which the chosen are tested again; those that were seen before are left out.
        look_for: A regular expression: a text scores 1 where it is found.
        judge: ``striking``, where nothing is looked for.
        rungs: See `educe.halve`.
        top: How many of each arm are tested again.
        samples: Texts a fresh prompt.
        seed: Of the lot that breaks ties.
    """

    prompts: tuple[Prompt, ...]
    fresh: tuple[Prompt, ...]
    look_for: str | None = None
    judge: str | None = None
    rungs: tuple[tuple[int, float], ...] = RUNGS
    top: int = 4
    samples: int = 1
    seed: int = 0

    def check(self, judge: Judge | None = None) -> None:
        """Find what cannot work before anything slow begins.

        Args:
            judge: What the selection goes by, where the plan does not say it.

        Raises:
            PromptError: There are no prompts, or one is none.
            MethodError: The judge is unknown, or numbers make no sense.
        """
        if not (self.prompts and self.fresh):
            raise PromptError("a selection needs prompts to choose on and fresh ones to test on")
        check_prompts(prompt=self.prompts, fresh_prompt=self.fresh)
        if sum(by is not None for by in (self.look_for, self.judge, judge)) != 1:
            raise MethodError("a selection goes by one thing: give --look-for or --judge")
        if self.judge not in (None, "striking"):
            raise MethodError(f"judge {self.judge!r} is unknown: use striking")
        check_whole("top", self.top)
        check_whole("samples", self.samples)
        check_seed(self.seed)
        Rule(self.look_for or "")
        checked(self.rungs)


class Estimate(NamedTuple):
    """A mean score with its 95% interval: Wilson's for hits, else bootstrapped over prompts."""

    mean: float
    low: float
    high: float
    trials: int
    hits: int | None  #: None where scores are not hits or misses

    def __str__(self) -> str:
        if self.hits is None:
            return f"{self.mean:.2f} ({self.low:.2f} to {self.high:.2f})"
        return f"{self.hits} of {self.trials} ({self.low:.0%} to {self.high:.0%})"


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

    folder: Path
    judge: str
    prompts: tuple[int, ...]  #: of each rung
    found: Arm
    control: Arm
    unperturbed: Estimate  #: on the fresh prompts, with as many samples
    chance: Chance  #: the best, were every candidate as the mean of the control
    p_again: float | None  #: Fisher's test of the two that were chosen first, for hits
    texts: int  #: kept, so paid, by all selections on these prompts


def select_best(
    run: Run,
    plan: SelectionPlan,
    *,
    judge: Judge | None = None,
    lm: LanguageModel | None = None,
    reporter: Any = None,
) -> Selected:
    """Choose among the perturbations of a run, or go on with it.

    Args:
        run: A finished run.
        plan: What is asked for.
        judge: Goes before look-for and judge of the plan, which are then left out.
        lm: The model, when it is loaded already.
        reporter: Is told of the progress (see `educe.progress`).

    Raises:
        RunError: The run is not finished, its model is another now, or another process is at work
            on the selection.
        PromptError: See `SelectionPlan.check`; or no fresh prompt is left.
        MethodError: See `SelectionPlan.check`.
    """
    plan.check(judge)
    listed = {p.file for p in run.perturbations()}
    if not run.has("facts") or len(listed) < len(ARMS) * len(run.note("facts")["radii"]):
        raise RunError(f"the run in {run.folder} is not finished: educe discover --resume first")
    with _kept(run, plan) as kept:
        try:
            with FileLock(kept.folder / ".lock", timeout=0):
                return _Selection(run, kept, plan, judge, lm, reporter or Silent()).all()
        except Timeout:
            raise BlockedError(
                f"another process is at work on {kept.folder}: wait for it"
            ) from None


def _kept(run: Run, plan: SelectionPlan) -> Run:
    """Return the run that keeps what is written for these prompts."""
    asked = {"prompts": list(plan.prompts), "fresh": list(plan.fresh)}
    name = hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()[:12]
    folder = run.folder / "selections" / name
    return Run.open(folder) if (folder / "run.sqlite").exists() else Run.create(folder, asked)


class _Selection:
    """The two halvings and the re-test; each leaves what it did in the kept run."""

    def __init__(
        self,
        run: Run,
        kept: Run,
        plan: SelectionPlan,
        judge: Judge | None,
        lm: LanguageModel | None,
        reporter: Any,
    ) -> None:
        self.run, self.kept, self.plan, self.reporter = run, kept, plan, reporter
        self.settings = settings = stored(run)
        self.lm = loaded(run, settings, reporter.say, lm)
        apart = told_apart(self.lm, settings, plan.prompts, plan.fresh, seen=settings.prompts)
        for sentence in apart.said:
            reporter.say(sentence)
        asked, fresh = [plan.prompts[i] for i in apart.asked], [plan.fresh[i] for i in apart.fresh]
        everything = (*asked, *fresh)
        self.batch = encoded(self.lm, settings, everything)
        self.fresh = range(len(asked), len(everything))
        kept.add_prompts(
            [
                PromptRow(i, "fresh" if i in self.fresh else "asked", prompt, text, length)
                for i, (prompt, text, length) in enumerate(
                    zip(everything, self.batch.texts, self.batch.lengths, strict=True)
                )
            ]
        )
        self.judge = self._judging(judge)

    def all(self) -> Selected:
        """Choose, and test again."""
        candidates = self._candidates()
        halvings = {arm: self._halve(arm, candidates[arm]) for arm in ARMS}
        best = {
            arm: [candidates[arm][i] for i in halvings[arm].survivors[: self.plan.top]]
            for arm in ARMS
        }
        again = self._retest([0, *best["found"], *best["control"]])
        tables = [*(h.scores for h in halvings.values()), *again.values()]
        hits = all(bool(np.isin(t[~np.isnan(t)], (0, 1)).all()) for t in tables)
        trials = halvings["control"].prompts[-1]
        before = halvings["control"].scores[:, : halvings["control"].prompts[0]]
        first = estimate(before, hits)
        arms, chances = {}, {}
        for arm in ARMS:
            seen = {
                number: halvings[arm].scores[candidates[arm].index(number), :trials]
                for number in best[arm]
            }
            top = seen[best[arm][0]]
            if hits:
                chance = best_by_chance(len(candidates[arm]), trials, first.mean)
                control = (first.hits or 0, first.trials)
                p_value = p_of_best(int(top.sum()), len(candidates[arm]), trials, control)
            else:
                chance, p_value = best_mean_by_chance(
                    len(candidates[arm]), trials, before.ravel().tolist(), float(top.mean())
                )
            chances[arm] = chance
            arms[arm] = Arm(
                len(candidates[arm]),
                estimate(halvings[arm].scores[:, : halvings[arm].prompts[0]], hits),
                halvings[arm].spent,
                tuple(
                    Chosen(
                        number,
                        estimate(seen[number][:, None], hits),
                        estimate(again[number], hits),
                    )
                    for number in best[arm]
                ),
                p_value,
            )
        found, control_again = (arms[arm].chosen[0].again for arm in ARMS)
        return Selected(
            self.kept.folder,
            self.judge.name,
            halvings["found"].prompts,
            arms["found"],
            arms["control"],
            estimate(again[0], hits),
            chances["found"],
            more_often(
                rate(found.hits or 0, found.trials),
                rate(control_again.hits or 0, control_again.trials),
            )
            if hits
            else None,
            len(self.kept.completions()),
        )

    def _judging(self, judge: Judge | None) -> Judging:
        if self.plan.look_for is not None:
            return Rule(self.plan.look_for)
        if judge is not None:
            asked = [asked_in(row.content) for row in self.kept.prompts()]
            return Judged(judge, asked, self._unperturbed(0))
        return Striking(
            self.lm,
            self.batch,
            self._unperturbed(BASELINE_SAMPLES),
            self.run.note("ordinary_logprob"),
            self.run.note("facts")["target"],
        )

    def _unperturbed(self, samples: int) -> dict[int, list[str]]:
        """Return the unperturbed model's most likely answers, and so many samples."""
        self._write("unperturbed", baseline(len(self.batch), samples))
        texts: dict[int, list[str]] = {j: [] for j in range(len(self.batch))}
        for c in self.kept.completions():
            if c.perturbation == 0 and c.sample <= samples:
                texts[c.prompt].append(c.text)
        return texts

    def _candidates(self) -> dict[str, list[int]]:
        """Return as many perturbations of each arm; a lot picks among those of the larger."""
        numbers = {arm: [p.id for p in self.run.perturbations(arm)] for arm in ARMS}
        n = min(map(len, numbers.values()))
        lot = np.random.default_rng(self.plan.seed)
        return {
            arm: [some[i] for i in sorted(lot.permutation(len(some))[:n].tolist())]
            for arm, some in numbers.items()
        }

    def _halve(self, arm: str, numbers: list[int]) -> Halving:
        def score(items: list[int], prompts: list[int]) -> np.ndarray:
            rows = [Row(numbers[i] - 1, j, 0) for i in items for j in prompts]
            values = self._scores(f"{arm}, {len(items)} on {prompts[-1] + 1} prompts", rows, heat)
            return np.array(values).reshape(len(items), len(prompts))

        heat = self.settings.temperature
        many = self.fresh.start
        rungs, seed = self.plan.rungs, self.plan.seed
        return halve(len(numbers), score, prompts=many, rungs=rungs, seed=seed)

    def _retest(self, numbers: list[int]) -> dict[int, np.ndarray]:
        """Return the scores of some perturbations on fresh prompts, ``[prompts, samples]``."""
        samples = range(RETEST, RETEST + self.plan.samples)
        rows = [Row(number - 1, j, k) for number in numbers for j in self.fresh for k in samples]
        heat = self.settings.temperature or RETEST_TEMPERATURE
        values = np.array(self._scores("re-test", rows, heat))
        tables = values.reshape(len(numbers), len(self.fresh), len(samples))
        return dict(zip(numbers, tables, strict=True))

    def _scores(self, what: str, rows: list[Row], heat: float) -> list[float]:
        """Write and judge what is missing, and return the scores of all."""
        self._write(what, {heat: rows})
        known = {(s.perturbation, s.prompt, s.sample): s.value for s in self._judged()}
        wanted = [(row.perturbation + 1, row.prompt, row.sample) for row in rows]
        missing = set(wanted) - known.keys()
        if missing:
            texts = [c for c in self.kept.completions() if c.key in missing]
            with self.reporter.stage(f"judging: {what}", len(texts), "texts") as step:
                for some in _portions(texts):
                    values = self.judge.scores(some)
                    self.kept.add_scores(
                        ScoreRow(*c.key, self.judge.name, value, "")
                        for c, value in zip(some, values, strict=True)
                    )
                    known |= {c.key: v for c, v in zip(some, values, strict=True)}
                    step(len(some))
        return [known[key] for key in wanted]

    def _judged(self) -> list[ScoreRow]:
        return self.kept.scores(self.judge.name)

    def _write(self, what: str, rows: dict[float, list[Row]]) -> None:
        write(
            self.lm,
            self.batch,
            rows,
            of=self.run,
            into=self.kept,
            before=self.run.note("facts")["source"],
            max_new_tokens=self.settings.max_new_tokens,
            seed=self.settings.seed,
            reporter=self.reporter,
            what=what,
        )


def estimate(scores: np.ndarray, hits: bool) -> Estimate:
    """Return the mean of scores with its interval, ``[prompts, samples]`` of one perturbation."""
    if hits:
        found = rate(int(scores.sum()), scores.size)
        return Estimate(found.share, found.low, found.high, found.trials, found.hits)
    mean, low, high = bootstrap_mean(scores.mean(1).tolist())
    return Estimate(mean, low, high, scores.size, None)


def _portions(texts: list[CompletionRow]) -> Iterable[list[CompletionRow]]:
    """Return texts in portions, after each of which scores are kept."""
    return (texts[i : i + 64] for i in range(0, len(texts), 64))
