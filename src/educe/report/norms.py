"""What the norm tells of a run (see `educe.comparison.norm`)."""

from __future__ import annotations

import re

import altair as alt
import pandas as pd

from educe.comparison.account import dose
from educe.comparison.norm import Curve, Norm, norm_of
from educe.report import words
from educe.report.document import Block, Heading, Part, Table, Text, heads
from educe.report.drawing import ARMS, PALETTE, WHOLE, banded, colour, exact, figure, over, rule
from educe.report.words import WORDS, said
from educe.run.store import Run

#: What curves are drawn of.
CURVES = ("effect", "exponent", "kl_p95", "coherence", "novelty", "score")
#: Their vertical scales, where these are not linear.
SCALES = {"effect": alt.Scale(type="log"), "kl_p95": alt.Scale(type="symlog", constant=0.01)}
#: What the horizontal axis is.
RADIUS = "radius, as a share of the one used"
#: The colour of the radius by each rule.
RULES = {"linearisation": "rare", "steepest": "accent", "budget": "fragile", "nonsense": "damage"}
#: What scores are called.
SCORED = {
    "coherence": "coherence",
    "novelty": "novelty",
    "interestingness": "interestingness",
    "kl": "mean KL",
    "kl_p95": "KL, 95%",
    "score": "judged",
}
#: What is equal in a comparison, and what is counted.
EQUAL = {"radius": "as used", "effect": "equal effect", "kl": "equal KL"}
COUNTED = {"shows": "shows it", "new": "new", "nonsense": "nonsense"}


def part(run: Run, pattern: re.Pattern[str] | None) -> Part | None:
    """Return what the norm tells of a run."""
    if (told := norm_of(run)) is None:
        return None
    asked = told.asked
    return words.part("norm", blocks(told), prompts=asked.prompts, judge=asked.judge or "nothing")


def blocks(told: Norm) -> list[Block]:
    """Return what the norm tells."""
    budget, judge = told.asked.budget, told.asked.judge
    made: list[Block] = []
    if told.curves:
        columns = heads("perturbation", "dose", "leaves:.2f", "flat:.2f", "new:.2f", "nons.:.2f")
        columns += heads("linear:.2f", "steep:.2f", f"{budget:g} nat:.2f")
        rows = [[called(c), dose(c.dose), *c.marks, *c.choices] for c in told.curves]
        drawn = [name for name in CURVES if name != "score" or judge]
        made += [
            Heading("Response curves, and three ways to choose the radius"),
            Table(columns, rows, said("tables", "norm-marks", budget=budget)),
            figure("norm-rules", rules(told.curves), budget=budget),
            Text(said("tables", "norm-curves"), "note"),
            *(figure(f"norm-{name}", curve(told.curves, name)) for name in drawn),
        ]
    columns = heads("score", "dose", "found:.3g*", "control:.3g*", "top:.3g", "of:id")
    columns += heads("p set:.2g", "p control:.2g", "by effect:.0%*", "beyond:id")
    columns += heads("p set:.2g", "p control:.2g")
    rows = [
        [
            *(SCORED[s.score], dose(s.dose), s.found[2], s.control[2]),
            *(s.top.value, s.top.number, s.top.grubbs, s.top.random),
            *(s.explained, s.left.number, s.left.grubbs, s.left.random),
        ]
        for s in told.spreads
    ]
    made += [
        Heading("Only louder?"),
        Table(columns, rows, said("tables", "norm-spreads")),
        figure("norm-spread", scatter(told.used)),
        Heading("Equal effect, equal damage"),
        _equal(told),
    ]
    return [*made, *([figure("norm-equal", equal(told))] if told.equal else [])]


def _equal(told: Norm) -> Table:
    counted = [what for what in COUNTED if what != "shows" or told.asked.judge]
    columns = heads("at", "dose", "arm", "n:d", "radius:.3g", "effect:.3g*", "KL 95%:.2f")
    names = {"shows": "it", "nonsense": "nons."}
    for what in counted:
        columns += heads(f"{names.get(what, what)}:rate", f"p:.2g{'*' * (what == 'nonsense')}")
    rows = [
        [
            *(EQUAL[e.at], dose(e.dose), arm, a.reached, a.radius, a.effect, a.kl_p95),
            *(
                cell
                for what in counted
                for cell in (getattr(a, what), getattr(e, f"p_{what}") if a is e.found else None)
            ),
        ]
        for e in told.equal
        for arm, a in (("found", e.found), ("control", e.control))
    ]
    return Table(columns, rows, said("tables", "norm-equal"))


def curve(curves: list[Curve], name: str) -> alt.LayerChart:
    """Draw something over the signed radius: lines of those found over the band of the control."""
    rows = pd.concat([c.fine if name in ("effect", "exponent") else c.points for c in curves])
    rows = rows[["number", "arm", "share", "dose", name]].dropna().rename(columns={name: "value"})
    rows["side"] = rows.share > 0
    control = rows[rows.arm == "control"].round({"share": 6})
    band = banded(control, "value", ["share", "side"])
    title, scale = WORDS["charts"][f"norm-{name}"][0].lower(), SCALES.get(name, alt.Scale())
    across = alt.X(
        "share:Q",
        scale=alt.Scale(type="symlog", constant=0.25, nice=False),
        axis=alt.Axis(values=[-3, -2, -1, -0.5, -0.25, 0.25, 0.5, 1, 2, 3], format=".3~g"),
        title=RADIUS,
    )
    low = alt.Y("low:Q", scale=scale, title=title, axis=alt.Axis(tickCount=5, format=".3~g"))
    shaded = over(band).mark_area(opacity=0.2, color=PALETTE["control"][0])
    lines = over(rows).encode(
        across,
        alt.Y("value:Q", scale=scale, title=title),
        colour("arm", ARMS),
        detail=["number:N", "side:N"],
        tooltip=["number:N", "arm:N", *exact("share", "dose", "value")],
    )
    layers = [
        shaded.encode(across, low, alt.Y2("high:Q"), detail="side:N"),
        lines.transform_filter("datum.arm == 'control'").mark_line(strokeWidth=1, opacity=0.6),
        lines.transform_filter("datum.arm == 'found'").mark_line(strokeWidth=2),
        *([rule(value=1)] if name == "exponent" else []),
    ]
    return alt.layer(*layers).properties(height=250)


def rules(curves: list[Curve]) -> alt.Chart:
    """Draw the radius of each perturbation by the three rules, and where its text falls apart."""
    rows = [
        (called(c), name, share)
        for c in curves
        for name, share in (*c.choices._asdict().items(), ("nonsense", c.marks.nonsense))
        if share is not None
    ]
    shapes = alt.Scale(domain=list(RULES), range=["circle", "diamond", "square", "cross"])
    dots = over(pd.DataFrame(rows, columns=["who", "of", "share"])).encode(
        alt.X("share:Q", scale=alt.Scale(type="log"), title=RADIUS),
        alt.Y("who:N", title=None, sort=[]),
        colour("of", RULES),
        alt.Shape("of:N", scale=shapes, legend=alt.Legend(title=None, orient="top")),
        tooltip=["who:N", "of:N", *exact("share")],
    )
    dots = dots.mark_point(size=90, filled=True, opacity=1)
    return dots.properties(height=max(120, 24 * len(curves)))


def scatter(used: pd.DataFrame) -> alt.Chart:
    """Draw how interesting perturbations are against their effect, as they were used."""
    shown = ["number", "arm", "dose", "effect", "interestingness", "kl_p95"]
    dots = over(used[used.effect > 0][shown]).encode(
        alt.X("effect:Q", scale=alt.Scale(type="log"), title="effect ‖Δ‖"),
        alt.Y("interestingness:Q", title="coherence × novelty"),
        colour("arm", ARMS),
        tooltip=["number:N", "arm:N", *exact("effect", "interestingness", "dose", "kl_p95")],
    )
    return dots.mark_point(size=60, filled=True, opacity=0.85).properties(height=280)


def equal(told: Norm) -> alt.LayerChart:
    """Draw the rates of both arms at equal radius, effect and damage, with their intervals."""
    several = len({e.dose for e in told.equal}) > 1
    rows = [
        (
            f"{title}, {EQUAL[e.at]}" + (f", {dose(e.dose)}" if several else ""),
            *(arm, rate.low, rate.high, rate.share, f"{rate.hits} of {rate.trials}"),
        )
        for e in told.equal
        for what, title in COUNTED.items()
        for arm, of in zip(ARMS, (e.found, e.control), strict=True)
        for rate in [getattr(of, what)]
        if rate.trials and (what != "shows" or told.asked.judge)
    ]
    base = over(pd.DataFrame(rows, columns=["at", "arm", "low", "high", "share", "told"])).encode(
        alt.Y("at:N", title=None, sort=[]),
        alt.YOffset("arm:N", sort=list(ARMS)),
        colour("arm", ARMS),
        tooltip=["at:N", "arm:N", "told:N"],
    )
    axis = alt.Axis(format="%", tickCount=5)
    bars = base.mark_rule(strokeWidth=2).encode(
        alt.X("low:Q", title="perturbations", axis=axis, scale=WHOLE), alt.X2("high:Q")
    )
    dots = base.mark_point(size=70, filled=True, opacity=1).encode(alt.X("share:Q"))
    return (bars + dots).properties(height=102 * len(told.equal))


def called(c: Curve) -> str:
    """Return what a curve is called: its sign, its number and its arm."""
    return f"{'+' if c.sign > 0 else '−'}{c.number} {c.arm}"
