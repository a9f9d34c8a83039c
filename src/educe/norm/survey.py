"""Everything that the norm tells of a run, kept in it: curves, choices, spreads, comparisons.

    some perturbations of each arm   curves over radius, both signs; where they bend; the radius
                                     by three rules
    more of each arm                 the spread of every score at the radius that was used; texts
                                     and rates at equal effect, and at equal damage

Each point is measured once (see `educe.norm.points`); what is derived is computed again each time.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import groupby
from typing import Any

import numpy as np
import torch

from educe.forward.slice import Slice
from educe.judge import Judge
from educe.judge.rules import Regex
from educe.model import LanguageModel
from educe.norm.choice import BUDGET, at_value, linear
from educe.norm.equal import equal
from educe.norm.points import Point, Points
from educe.norm.response import FINE, SHARES, growth, marks, signs, steepest
from educe.norm.spread import SCORES, spread
from educe.once import encoded_once
from educe.ordinary import BUNDLED, Ordinary, ordinary_prompts
from educe.progress import Silent
from educe.rendering import PromptBatch
from educe.rows import PerturbationRow
from educe.run.reopened import slice_of
from educe.run.store import Run
from educe.stats import finite
from educe.summary import summarise

#: Perturbations of each arm that get curves, the most striking, and those that are compared.
CURVES, COMPARED = 3, 16

#: The name of the result in a run.
NOTE = "norm"


def examine_norm(
    run: Run,
    numbers: Sequence[int] | None,
    lm: LanguageModel,
    prompts: PromptBatch,
    *,
    judge: Judge | None = None,
    ordinary: str = BUNDLED,
    budget: float = BUDGET,
    compared: int = COMPARED,
    reporter: Any = None,
) -> dict[str, Any]:
    """Measure what the norm tells of a run, keep it in the run and return it.

    Args:
        run: The run.
        numbers: Perturbations that get curves; by default the most striking of each arm.
        lm: Its model.
        prompts: The prompts it asked.
        judge: What scores answers; by default what the run looks for, if it does.
        ordinary: See `educe.ordinary.ordinary_prompts`.
        budget: Nats at the 95th percentile of ordinary tokens.
        compared: The most perturbations of each arm that are compared, taken evenly from the list.
        reporter: Is told of the progress (see `educe.progress`).

    Raises:
        PromptError: The ordinary prompts cannot be read.
        ModelError: An operation of the model has no forward-mode derivative.
    """
    reporter, look_for = reporter or Silent(), run.config["look_for"]
    if judge is None and look_for:
        judge = Regex(look_for)
    part = slice_of(run, lm, prompts)
    asked = encoded_once(lm, ordinary_prompts(ordinary), reporter.say, "ordinary prompts")
    text = Ordinary(lm, asked, before=part.source)
    points = Points(run, lm, part, prompts, text, judge, reporter)
    rows = {p.id: p for p in run.perturbation_rows()}
    if numbers is None:
        seen = summarise(run)
        numbers = [i.row.id for arm in (seen.found, seen.control) for i in arm[:CURVES]]
    arms = [_evenly(run.perturbation_rows(arm), compared) for arm in ("found", "control")]
    curves = [curve for number in numbers for curve in _curves(points, rows[number], budget=budget)]
    used = [points.at([(p.id, p.radius) for p in arm], "as used") for arm in arms]
    result = {
        "judge": judge.name if judge else None,
        "budget": budget,
        "ordinary": {"prompts": len(text.batch), "tokens": text.tokens, "source": ordinary},
        "curves": curves,
        "spreads": _spreads(rows, *used),
        "points": [[_data(p, rows) for p in arm] for arm in used],
        "equal": _comparisons(points, arms, used, budget),
    }
    run.remember(NOTE, result)
    return result


# -- curves ------------------------------------------------------------------------------------


def _curves(points: Points, row: PerturbationRow, *, budget: float) -> list[dict[str, Any]]:
    """Return the curve of a perturbation for each of its signs."""
    group = next(g for g in points.groups if row.id in g.numbers)
    place = torch.tensor([group.numbers.index(row.id)])
    kind = group.kind.select(place)
    part = points.part.on(kind)
    v = group.directions[place].to(part.device, part.work_dtype)
    made = []
    for sign in signs(kind):
        fine = torch.tensor([FINE], dtype=v.dtype) * row.radius
        grown = growth(part, v, sign * fine)
        exponents = grown.exponent[0].tolist()
        own = points.at(
            [(row.id, sign * share * row.radius) for share in SHARES],
            f"perturbation {row.id}, {'+' if sign > 0 else '-'}",
        )
        bends = marks(
            list(FINE),
            exponents,
            list(SHARES),
            [p.novelty for p in own],
            [p.coherence for p in own],
        )
        known = [
            (torch.tensor([abs(p.radius)]), torch.tensor([math.inf if p.high is None else p.high]))
            for p in own
        ]
        (within,) = at_value(
            lambda _, radii, sign=sign: torch.tensor(  # type: ignore[misc]
                points.high([row.id], [sign * float(radii[0])])
            ),
            torch.tensor([row.radius]),
            budget,
            slope=2.0,
            known=known,
        ).tolist()
        chosen = {
            "linearisation": linear(part, v[0], sign=sign) if kind.size > 1 else math.nan,
            "steepest": steepest(FINE, exponents) * row.radius,
            "budget": within,
        }
        made.append(
            {
                "number": row.id,
                "arm": row.arm,
                "method": row.method,
                "sign": sign,
                "radius": row.radius,
                "dose": row.dose,
                "points": [_data(p, {row.id: row}) for p in own],
                "fine": [
                    {"share": share, "effect": finite(size), "exponent": finite(e)}
                    for share, size, e in zip(
                        FINE, grown.effect[0].tolist(), exponents, strict=True
                    )
                ],
                "marks": bends._asdict(),
                "choices": {name: finite(radius / row.radius) for name, radius in chosen.items()},
            }
        )
    return made


# -- the arms ----------------------------------------------------------------------------------


def _evenly(rows: Sequence[PerturbationRow], most: int) -> list[PerturbationRow]:
    """Return at most so many, from all radii and all along the list."""
    step = max(1.0, len(rows) / most)
    return [rows[int(i * step)] for i in range(min(most, len(rows)))]


def _spreads(
    rows: dict[int, PerturbationRow], found: Sequence[Point], control: Sequence[Point]
) -> list[dict[str, Any]]:
    """Return the spread of each score, over the perturbations of each radius apart."""
    told = []
    for radius, own in groupby(sorted(found, key=lambda p: p.radius), key=lambda p: p.radius):
        some = [p for p in own if p.effect]
        others = _nearest([p for p in control if p.effect], radius)
        for name in SCORES:
            values = [[_score(p, name) for p in arm] for arm in (some, others)]
            if min(map(len, values)) < 3 or not np.ptp(values[0] + values[1]):
                continue
            told.append(
                {"radius": radius, "dose": rows[some[0].number].dose}
                | _plain(
                    spread(
                        name,
                        [p.number for p in some],
                        *values,
                        *([p.effect or 0.0 for p in arm] for arm in (some, others)),
                    )
                )
            )
    return told


def _score(p: Point, name: str) -> float:
    if name == "striking":
        return p.coherence * p.novelty
    value = getattr(p, name)
    return 0.0 if value is None else float(value)


def _comparisons(
    points: Points,
    arms: Sequence[Sequence[PerturbationRow]],
    used: Sequence[Sequence[Point]],
    budget: float,
) -> list[dict[str, Any]]:
    """Compare the arms as they were used, at equal effect, and at equal damage.

    Those found at each radius apart. As used, random ones are those of the nearest radius; where
    something else is made equal, their radius does not matter, and all are compared.
    """
    sizes = [p.effect for p in used[0] if p.effect]
    if not sizes:
        return []
    size = float(np.median(sizes))
    louder = [points.at(_at_effect(points, arm, size), "at equal effect") for arm in arms]
    damaged = [
        points.at(_at_damage(points, arm, before, after, budget), "at equal damage")
        for arm, before, after in zip(arms, used, louder, strict=True)
    ]
    rows = {p.id: p for arm in arms for p in arm}
    told = []
    for at, value, (found, control) in (
        ("radius", None, used),
        ("effect", size, louder),
        ("kl", budget, damaged),
    ):
        for radius in sorted({p.radius for p in arms[0]}):
            own = [p for p in found if rows[p.number].radius == radius]
            others = _nearest(control, radius) if at == "radius" else control
            dose = next(p.dose for p in arms[0] if p.radius == radius)
            told.append({"dose": dose} | _plain(equal(at, value, own, others)))
    return told


def _nearest(control: Sequence[Point], radius: float) -> list[Point]:
    """Return the random ones of the radius that is nearest to another."""
    near = min({p.radius for p in control}, key=lambda r: abs(math.log(r / radius)), default=None)
    return [p for p in control if p.radius == near]


def _at_effect(
    points: Points, rows: Sequence[PerturbationRow], size: float
) -> list[tuple[int, float]]:
    """Return the radius at which each perturbation has an effect."""
    wanted = {p.id for p in rows}
    found: dict[int, float] = {}
    for group in points.groups:
        places = torch.tensor([i for i, n in enumerate(group.numbers) if n in wanted])
        if not len(places):
            continue
        kind = group.kind.select(places)
        part = points.part.on(kind)
        v = group.directions[places].to(part.device, part.work_dtype)

        def effects(
            items: torch.Tensor,
            radii: torch.Tensor,
            part: Slice = part,
            v: torch.Tensor = v,
        ) -> torch.Tensor:
            some = part.on(part.kind.select(items))
            return growth(some, v[items], radii[:, None]).effect[:, 0]

        radii = at_value(effects, group.radius[places].to(v), size, slope=1.0).tolist()
        found |= {group.numbers[i]: r for i, r in zip(places.tolist(), radii, strict=True)}
    return [(p.id, found[p.id]) for p in rows if math.isfinite(found[p.id])]


def _at_damage(
    points: Points,
    rows: Sequence[PerturbationRow],
    before: Sequence[Point],
    after: Sequence[Point],
    budget: float,
) -> list[tuple[int, float]]:
    """Return the radius at which each perturbation has a damage; points known already help."""
    radii = []
    with points.reporter.stage("radii of equal damage", len(rows), "perturbations") as step:
        for row in rows:
            known = [
                (torch.tensor([p.radius]), torch.tensor([math.inf if p.high is None else p.high]))
                for p in (*before, *after)
                if p.number == row.id
            ]
            radii += at_value(
                lambda _, r, number=row.id: torch.tensor(  # type: ignore[misc]
                    points.high([number], [float(r[0])])
                ),
                torch.tensor([row.radius]),
                budget,
                slope=2.0,
                known=known,
            ).tolist()
            step()
    return [(p.id, r) for p, r in zip(rows, radii, strict=True) if math.isfinite(r)]


# -- as JSON -----------------------------------------------------------------------------------


def _data(p: Point, rows: dict[int, PerturbationRow]) -> dict[str, Any]:
    row = rows[p.number]
    return vars(p) | {"share": p.radius / row.radius, "dose": p.radius * row.dose / row.radius}


def _plain(value: Any) -> Any:
    """Return named tuples as JSON can hold them."""
    if hasattr(value, "_asdict"):
        return {name: _plain(part) for name, part in value._asdict().items()}
    return [_plain(v) for v in value] if isinstance(value, tuple) else value
