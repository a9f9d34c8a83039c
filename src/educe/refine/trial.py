"""Trial: perturbations made from those of a run, written and judged in a run of their own.

It lies under ``refined/`` of the run's folder, named by what was asked, so that asked again it goes
on. What is looked for in the run is what scores a text; where nothing is, how striking it is.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import Any, NamedTuple

from educe.comparison.stats import bootstrap_mean, rate
from educe.errors import RunError
from educe.model import LanguageModel
from educe.perturb import PerturbationSet
from educe.rows import PromptRow, Row, ScoreRow
from educe.run.asking import answers, baseline, retest
from educe.run.fill import add_set, write
from educe.run.reopened import slice_of
from educe.run.settings import encoded, stored
from educe.run.store import TRIALS, Run
from educe.selection.judging import Judging, Rule, Striking


class Share(NamedTuple):
    """A mean score with its 95% interval: Wilson's for hits, else bootstrapped."""

    mean: float
    low: float
    high: float
    hits: int | None  #: None where scores are not hits or misses
    trials: int


def share(scores: Sequence[float], rule: bool) -> Share:
    """Return the mean of some scores; those of a rule are hits and misses."""
    if rule:
        found = rate(round(sum(scores)), len(scores))
        return Share(found.share, found.low, found.high, found.hits, found.trials)
    return Share(*bootstrap_mean(scores), None, len(scores))


class Trial:
    """A run of its own beside another, for perturbations made from those of the other.

    Use it in a ``with`` statement, as a `Run`.

    Args:
        run: The other run, finished.
        name: What is tried.
        asked: What else tells this trial from others, as JSON can hold it.
        lm: The model.
        part: The slice of the run, for effects.
        reporter: Is told of the progress.

    Attributes:
        kept: The run of its own.
        rule: Whether texts are hits or misses.
    """

    def __init__(
        self,
        run: Run,
        name: str,
        asked: dict[str, Any],
        lm: LanguageModel,
        part: Slice,
        reporter: Any,
    ) -> None:
        self.run, self.lm, self.part, self.reporter = run, lm, part, reporter
        self.settings = s = stored(run)
        text = json.dumps([name, asked], sort_keys=True)
        folder = run.folder / TRIALS / f"{name}-{hashlib.sha256(text.encode()).hexdigest()[:10]}"
        everything = (*s.prompts, *s.fresh)
        self.batch = encoded(lm, s, everything)
        exists = (folder / "run.sqlite").exists()
        self.kept = Run.open(folder) if exists else Run.create(folder, asked)
        self.kept.add_prompts(
            [
                PromptRow(i, "asked" if i < len(s.prompts) else "fresh", prompt, text, length)
                for i, (prompt, text, length) in enumerate(
                    zip(everything, self.batch.texts, self.batch.lengths, strict=True)
                )
            ]
        )
        self.rule = s.look_for is not None
        self._judge: Judging | None = Rule(s.look_for) if s.look_for is not None else None

    def __enter__(self) -> Trial:
        return self

    def __exit__(self, *exception: Any) -> None:
        self.kept.__exit__(*exception)

    def add(self, arm: str, name: str, made: PerturbationSet) -> list[int]:
        """List some perturbations once; return their numbers in the trial."""
        file = f"{name}.safetensors"
        listed = [p.id for p in self.kept.perturbation_rows() if p.file == file]
        if listed:
            return listed
        made.save(self.kept.tensors / file)
        part = self.part.on(made.kind)
        effect = part.effect(made.theta.to(part.device, part.work_dtype)).norm(dim=1)
        return add_set(self.kept, arm, file, made, effect.tolist())

    def scores(self, numbers: Sequence[int], *, what: str) -> dict[int, list[float]]:
        """Return what perturbations score on the prompts of the run, writing what is missing."""
        return self._scored(numbers, answers(self.settings, numbers), what)

    def again(self, numbers: Sequence[int], *, what: str) -> dict[int, list[float]]:
        """Return what they score on fresh prompts, or where there are none on fresh samples."""
        return self._scored(numbers, retest(self.settings, numbers), what)

    def text(self, number: int) -> str:
        """Return the first text that a perturbation wrote."""
        return next(c.text for c in self.kept.completion_rows() if c.perturbation == number)

    def _scored(
        self, numbers: Sequence[int], rows: dict[float, list[Row]], what: str
    ) -> dict[int, list[float]]:
        self._write(what, rows)
        judge = self._judging()
        known = {
            (s.perturbation, s.prompt, s.sample): s.value for s in self.kept.score_rows(judge.name)
        }
        wanted = [(r.perturbation + 1, r.prompt, r.sample) for some in rows.values() for r in some]
        missing = set(wanted) - known.keys()
        if missing:
            texts = [c for c in self.kept.completion_rows() if c.row in missing]
            values = judge.scores(texts)
            pairs = list(zip(texts, values, strict=True))
            self.kept.add_scores(ScoreRow(*c.row, judge.name, value, "") for c, value in pairs)
            known |= {c.row: value for c, value in pairs}
        found: dict[int, list[float]] = {number: [] for number in numbers}
        for key in wanted:
            found[key[0]].append(known[key])
        return found

    def _judging(self) -> Judging:
        if self._judge is None:
            self._write("unperturbed", baseline(len(self.batch)))
            base: dict[int, list[str]] = {j: [] for j in range(len(self.batch))}
            for c in self.kept.completion_rows():
                if c.perturbation == 0:
                    base[c.prompt].append(c.text)
            ordinary = self.run.note("ordinary_logprob")
            self._judge = Striking(self.lm, self.batch, base, ordinary, self.part.target)
        return self._judge

    def _write(self, what: str, rows: dict[float, list[Row]]) -> None:
        write(
            self.lm,
            self.batch,
            rows,
            of=self.kept,
            into=self.kept,
            before=self.part.source,
            max_new_tokens=self.settings.max_new_tokens,
            seed=self.settings.seed,
            reporter=self.reporter,
            what=what,
        )


def finished_slice(run: Run, lm: LanguageModel) -> Slice:
    """Return the slice of a finished run on its own prompts.

    Raises:
        RunError: The run is not finished.
    """
    if not run.has("chosen"):
        raise RunError(f"the run in {run.folder} is not finished: educe discover --resume first")
    s = stored(run)
    return slice_of(run, lm, encoded(lm, s, s.prompts))
