"""Survey: what the norm tells of a run is measured, and kept in it as rows and scores.

    some perturbations of each arm   curves over radius, both signs; the radius by three rules
    more of each arm                 side effects as used; texts at equal effect, at equal damage

A point is a perturbation at a radius: derived from one of the run, written and scored as every
other. So a second survey, with other settings too, measures what is missing. What is made of the
points is in `educe.comparison.norm`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from educe.comparison.norm import FINE, NOTE, SHARES, Asked, Norm, compared, median_effect, norm_of
from educe.comparison.points import NEAR, beside, nearest, points_of
from educe.comparison.summary import summarise
from educe.derive.listing import looked_for
from educe.errors import EffectError, RadiusError
from educe.forward.benign import BUNDLED
from educe.forward.slice import Slice
from educe.methods.radius import calibrate
from educe.model.language import LanguageModel
from educe.perturbation.kinds import Kind, Noise
from educe.progress import Reporter
from educe.roots import crossing
from educe.rows import ARMS, ScoreRow
from educe.run import asking
from educe.run.damage import OrdinaryText
from educe.run.fill import fill, groups
from educe.run.fill import judge as judged
from educe.run.scaling import At, at_radii, exponents, scaled, without
from educe.run.store import Run
from educe.run.work import Work, at_work
from educe.scores import Judge

if TYPE_CHECKING:
    import pandas as pd

#: Perturbations of each arm that get curves, the most interesting, and those that are compared.
CURVES, COMPARED = 3, 16

#: The budget: nats at the 95th percentile of tokens.
BUDGET = 1.0

#: With which power of the radius effect and damage grow while it is small, and how many radii are
#: looked at for one of them.
SLOPES, ROUNDS = {"effect": 1.0, "kl_p95": 2.0}, 12

#: The score that is the radius at which the linearisation error is one half.
LINEAR = "linear_radius"


def examine_norm(
    run: Run,
    numbers: Sequence[int] | None = None,
    *,
    lm: LanguageModel | None = None,
    judge: Judge | None = None,
    ordinary: str = BUNDLED,
    budget: float = BUDGET,
    compared: int = COMPARED,
    reporter: Reporter | None = None,
) -> Norm:
    """Measure what the norm tells of a run, keep it in the run and return it.

    Args:
        run: The run.
        numbers: Perturbations that get curves; by default the most interesting of each arm.
        lm: Its model, when it is loaded already.
        judge: What scores answers; by default what the run looks for, if it does.
        ordinary: See `educe.forward.benign.ordinary_prompts`.
        budget: Nats at the 95th percentile of ordinary tokens.
        compared: The most perturbations of each arm that are compared, taken evenly from the list.
        reporter: Is told of the progress (see `educe.progress`).

    Raises:
        PromptError: The ordinary prompts cannot be read.
        ModelError: An operation of the model has no forward-mode derivative.
        RunError: Another process is at work on the run, or its model is another now.
    """
    judge = judge or looked_for(run)
    if numbers is None:
        seen = summarise(run)
        numbers = [i.row.id for arm in (seen.found, seen.control) for i in arm[:CURVES]]
    with at_work(run, lm, reporter) as work:
        text = OrdinaryText(work, ordinary)
        survey = _Survey(work, text, judge)
        for number in numbers:
            survey.curve(number, budget)
        survey.arms(compared, budget)
        asked = Asked(
            numbers=numbers,
            compared=compared,
            budget=budget,
            judge=judge.name if judge else None,
            identity=judge.identity if judge else None,
            ordinary=ordinary,
            prompts=len(text.batch),
            kl=text.kl,
            kl_p95=text.kl_p95,
        )
        run.remember(NOTE, asdict(asked))
    told = norm_of(run)
    assert told is not None
    return told


class _Survey:
    """A run at work, what ordinary text loses, and who judges."""

    def __init__(self, work: Work, text: OrdinaryText, judge: Judge | None) -> None:
        self.work, self.text, self.judge = work, text, judge

    def curve(self, number: int, budget: float) -> None:
        """Measure what one perturbation does at all radii, for each of its signs."""
        run = self.work.run
        (group,) = groups(run, [number])
        (used,) = (p.radius for p in run.perturbation_rows() if p.id == number)
        signed = [(number, sign * used) for sign in signs(group.kind)]
        fine = scaled(self.work, [(number, share * r) for _, r in signed for share in FINE])
        exponents(self.work, [p.id for p in fine])
        own = [(number, share * r) for _, r in signed for share in SHARES]
        self._written(own, f"perturbation {number}")
        ends = [p.id for p in scaled(self.work, signed)]
        for ((n, r),), at in at_radii(run, without(run, LINEAR, ends), 1):
            part = self.work.part.on(at.kind)
            v = at.directions.to(part.device, part.work_dtype)
            run.add_scores([ScoreRow(n, LINEAR, linear(part, v[0], r), "radius", "")])
        self._reached(signed, "kl_p95", budget)

    def arms(self, most: int, budget: float) -> None:
        """Measure perturbations of both arms as used, at equal effect, and at equal damage."""
        run = self.work.run
        numbers = {n for arm in ARMS for n in compared(run, arm, most)}
        used = [(p.id, p.radius) for p in run.perturbation_rows() if p.id in numbers]
        self._written(used, "as used")
        size = median_effect(self._points().loc[[n for n, _ in used]])
        if size > 0:
            self._written(self._reached(used, "effect", size), "at equal effect")
            self._written(self._reached(used, "kl_p95", budget), "at equal damage")

    def _points(self) -> pd.DataFrame:
        return points_of(self.work.run, kl=self.text.kl, kl_p95=self.text.kl_p95)

    def _written(self, at: Iterable[At], what: str) -> None:
        """Let perturbations at radii answer as the main job does, and measure their damage."""
        numbers = [p.id for p in scaled(self.work, at)]
        with self.work.reporter.stage(f"side effects: {what}", len(numbers), "points") as step:
            self.text.damage(numbers, step)
        rows = asking.answers(self.work, numbers)
        fill(self.work, what)
        if self.judge is not None:
            judged(self.work, self.judge, rows, what)

    def _reached(self, used: Sequence[At], what: str, wanted: float) -> list[At]:
        """Return where perturbations have an effect or a damage, on the side that they were used.

        Where no point of theirs has it yet, such a radius is looked for.
        """
        points = self._points()
        missing = [at for at in used if nearest(beside(points, *at), what, wanted).empty]
        if missing:
            title = "radii of equal " + ("effect" if what == "effect" else "damage")
            with self.work.reporter.stage(title, len(missing), "perturbations") as step:
                for at in missing:
                    self._search(at, beside(points, *at), what, wanted)
                    step()
            points = self._points()
        there = (nearest(beside(points, *at), what, wanted) for at in used)
        return [at for point in there for at in zip(point.number, point.radius, strict=True)]

    def _search(self, at: At, points: pd.DataFrame, what: str, wanted: float) -> None:
        """Measure one perturbation at radii that come ever nearer to a value.

        From its points on the grid alone, so that a second search takes the same way.
        """
        number, used = at
        sign = math.copysign(1.0, used)

        def measured(_: Tensor, radii: Tensor) -> Tensor:
            (at_radius,) = scaled(self.work, [(number, sign * float(radii))])
            damage = what == "kl_p95"
            (value,) = self.text.damage([at_radius.id]) if damage else [at_radius.effect]
            return torch.tensor([value], dtype=torch.float64)

        grid = points[points.radius.isin([share * used for share in SHARES])].dropna(subset=what)
        known = [
            (torch.tensor([abs(radius)]).double(), torch.tensor([value]).double())
            for radius, value in zip(grid.radius, grid[what], strict=True)
        ]
        start, near = torch.tensor([abs(used)], dtype=torch.float64), math.log1p(NEAR)
        slope = SLOPES[what]
        crossing(measured, start, wanted, slope=slope, near=near, rounds=ROUNDS, known=known)


def signs(kind: Kind) -> tuple[int, ...]:
    """Return the signs that a kind of perturbation has: the other noise is only other noise."""
    return (1,) if isinstance(kind, Noise) else (1, -1)


def linear(part: Slice, direction: Tensor, radius: float) -> float:
    """Return the radius at which one perturbation's relative linearisation error is 0.5.

    It is on the side of the sign of ``radius``; infinite where there is none, as for a perturbation
    of one number.
    """
    if part.kind.size == 1:
        return math.inf
    try:
        along = part.kind.scaled(direction[None], math.copysign(1.0, radius))
        return calibrate(part, along=along).radius
    except (RadiusError, EffectError):
        return math.inf
