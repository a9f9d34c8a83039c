"""What the norm tells of a run, as charts (see `educe.comparison.norm`)."""

from __future__ import annotations

import re

import altair as alt
import pandas as pd

from educe.comparison.account import dose
from educe.comparison.norm import Curve, Norm, norm_of
from educe.report.drawing import ARMS, banded, colour, exact, over, rule
from educe.report.figures import PALETTE, dressed
from educe.report.part import Part, Shown
from educe.report.templates import figure, fragment
from educe.run.store import Run

#: Charts of curves: what each shows and what is said of it.
CAPTIONS = {
    "effect": ("Effect", "Norm of the change at the target, ‖Δ‖."),
    "exponent": (
        "Response exponent",
        "d log ‖Δ‖ / d log R: 1 where the effect is linear, above where it leaves a plateau, below "
        "where it saturates.",
    ),
    "kl_p95": (
        "Side effect",
        "95th percentile of KL over the first 20 tokens of ordinary answers, in nats.",
    ),
    "coherence": ("Coherence", "Of what is written, as text the unperturbed model could write."),
    "novelty": ("Novelty", "Of what is written, against what the unperturbed model writes."),
    "score": ("Judged score", "Mean over what is written."),
}
#: Their vertical scales, where these are not linear.
SCALES = {
    "effect": alt.Scale(type="log"),
    "kl_p95": alt.Scale(type="symlog", constant=0.01),
}
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


def curve(curves: list[Curve], name: str) -> alt.LayerChart:
    """Draw something over the signed radius: lines of those found over the band of the control."""
    rows = pd.concat([c.fine if name in ("effect", "exponent") else c.points for c in curves])
    rows = rows[["number", "arm", "share", "dose", name]].dropna().rename(columns={name: "value"})
    rows["side"] = rows.share > 0
    control = rows[rows.arm == "control"].round({"share": 6})
    band = banded(control, "value", ["share", "side"])
    title, scale = CAPTIONS[name][0].lower(), SCALES.get(name, alt.Scale())
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
        alt.X("low:Q", title="perturbations", axis=axis, scale=alt.Scale(domain=[0, 1])),
        alt.X2("high:Q"),
    )
    dots = base.mark_point(size=70, filled=True, opacity=1).encode(alt.X("share:Q"))
    return (bars + dots).properties(height=102 * len(told.equal))


def called(c: Curve) -> str:
    """Return what a curve is called: its sign, its number and its arm."""
    return f"{'+' if c.sign > 0 else '−'}{c.number} {c.arm}"


def render(run: Run, pattern: re.Pattern[str] | None) -> Shown | None:
    """Return what the norm tells of a run."""
    told = norm_of(run)
    if told is None:
        return None
    drawn = [name for name in CAPTIONS if told.curves and (name != "score" or told.asked.judge)]
    html = fragment(
        "norms.html",
        pattern,
        told=told,
        drawn=drawn,
        captions=CAPTIONS,
        called=called,
        equal=EQUAL,
        scored=SCORED,
        chart=figure,
    )
    made: dict[str, alt.Chart | alt.LayerChart] = {n: curve(told.curves, n) for n in drawn}
    made |= {"rules": rules(told.curves)} if told.curves else {}
    made |= {"spread": scatter(told.used)} | ({"equal": equal(told)} if told.equal else {})
    return Shown(html, {f"norm-{name}": dressed(chart) for name, chart in made.items()})


PART = Part("norm", "What the norm tells", render)
