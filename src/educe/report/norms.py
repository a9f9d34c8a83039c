"""What the norm tells of a run, as charts (see `educe.comparison.norm`)."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import altair as alt

from educe.comparison.account import dose
from educe.comparison.norm import Curve, Norm, norm_of
from educe.report.figures import PALETTE, dressed
from educe.report.part import Part, Shown
from educe.report.templates import figure, fragment
from educe.run.store import Run

if TYPE_CHECKING:
    import pandas as pd

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
#: The share of the control that the band holds.
BAND = (0.1, 0.9)
#: The colour of each arm, and of the radius by each rule.
ARMS = {"found": "accent", "control": "control"}
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


def drawn(told: Norm) -> list[str]:
    """Return which curves there are to draw."""
    return [name for name in CAPTIONS if told.curves and (name != "score" or told.asked.judge)]


def charts(told: Norm) -> dict[str, dict[str, Any]]:
    """Return the specifications of all charts, by name."""
    made: dict[str, alt.LayerChart] = {name: curve(told.curves, name) for name in drawn(told)}
    if told.curves:
        made["rules"] = rules(told.curves)
    made["spread"] = scatter(told.used)
    if told.equal:
        made["equal"] = equal(told)
    return {f"norm-{name}": dressed(chart) for name, chart in made.items()}


def curve(curves: list[Curve], name: str) -> alt.LayerChart:
    """Draw something over the signed radius: lines of those found over the band of the control."""
    import pandas as pd

    shown = ["number", "arm", "share", "dose", name]
    rows = pd.concat([c.fine if name in ("effect", "exponent") else c.points for c in curves])
    rows = rows[shown].dropna().rename(columns={name: "value"})
    rows["side"] = rows.share > 0
    control = rows[rows.arm == "control"]
    each = control.groupby(control.share.round(6)).value
    ends = each.agg(low=lambda v: v.quantile(BAND[0]), high=lambda v: v.quantile(BAND[1]))
    band = ends.reset_index().assign(side=lambda b: b.share > 0)
    title, scale = CAPTIONS[name][0].lower(), SCALES.get(name, alt.Scale())
    across = alt.X(
        "share:Q",
        scale=alt.Scale(type="symlog", constant=0.25, nice=False),
        axis=alt.Axis(values=[-3, -2, -1, -0.5, -0.25, 0.25, 0.5, 1, 2, 3], format=".3~g"),
        title="radius, as a share of the one used",
    )
    shaded = _chart(band).mark_area(opacity=0.2, color=PALETTE["control"][0])
    low = alt.Y("low:Q", scale=scale, title=title, axis=alt.Axis(tickCount=5, format=".3~g"))
    lines = _chart(rows).encode(
        across,
        alt.Y("value:Q", scale=scale, title=title),
        _colour(ARMS),
        detail=["number:N", "side:N"],
        tooltip=["number:N", "arm:N", *_exact("share", "dose", "value")],
    )
    layers = [
        shaded.encode(across, low, alt.Y2("high:Q"), detail="side:N"),
        lines.transform_filter("datum.arm == 'control'").mark_line(strokeWidth=1, opacity=0.6),
        lines.transform_filter("datum.arm == 'found'").mark_line(strokeWidth=2),
    ]
    if name == "exponent":
        one = alt.Chart(alt.Data(values=[{"value": 1}])).encode(alt.Y("value:Q"))
        layers.append(one.mark_rule(strokeDash=[4, 4], color=PALETTE["muted"][0]))
    return alt.layer(*layers).properties(height=250)


def rules(curves: list[Curve]) -> alt.LayerChart:
    """Draw the radius of each perturbation by the three rules, and where its text falls apart."""
    rows = [
        {"who": called(c), "of": name, "share": share}
        for c in curves
        for name, share in (*c.choices._asdict().items(), ("nonsense", c.marks.nonsense))
        if share is not None
    ]
    title = "radius, as a share of the one used"
    shapes = alt.Scale(domain=list(RULES), range=["circle", "diamond", "square", "cross"])
    dots = (
        alt.Chart(alt.Data(values=rows))
        .mark_point(size=90, filled=True, opacity=1)
        .encode(
            alt.X("share:Q", scale=alt.Scale(type="log"), title=title),
            alt.Y("who:N", title=None, sort=[]),
            _colour(RULES, "of"),
            alt.Shape("of:N", scale=shapes, legend=alt.Legend(title=None, orient="top")),
            tooltip=["who:N", "of:N", *_exact("share")],
        )
    )
    return alt.layer(dots).properties(height=max(120, 24 * len(curves)))


def scatter(used: pd.DataFrame) -> alt.LayerChart:
    """Draw how interesting perturbations are against their effect, as they were used."""
    shown = ["number", "arm", "dose", "effect", "interestingness", "kl_p95"]
    rows = used[used.effect > 0][shown]
    dots = _chart(rows).mark_point(size=60, filled=True, opacity=0.85)
    return alt.layer(
        dots.encode(
            alt.X("effect:Q", scale=alt.Scale(type="log"), title="effect ‖Δ‖"),
            alt.Y("interestingness:Q", title="coherence × novelty"),
            _colour(ARMS),
            tooltip=["number:N", "arm:N", *_exact("effect", "interestingness", "dose", "kl_p95")],
        )
    ).properties(height=280)


def equal(told: Norm) -> alt.LayerChart:
    """Draw the rates of both arms at equal radius, effect and damage, with their intervals."""
    several = len({e.dose for e in told.equal}) > 1
    rows = [
        {
            "at": f"{title}, {EQUAL[e.at]}" + (f", {dose(e.dose)}" if several else ""),
            "arm": arm,
            "share": rate.share,
            "low": rate.low,
            "high": rate.high,
            "told": f"{rate.hits} of {rate.trials}",
        }
        for e in told.equal
        for what, title in COUNTED.items()
        for arm, of in zip(ARMS, (e.found, e.control), strict=True)
        for rate in [getattr(of, what)]
        if rate.trials and (what != "shows" or told.asked.judge)
    ]
    base = alt.Chart(alt.Data(values=rows)).encode(
        alt.Y("at:N", title=None, sort=[]),
        alt.YOffset("arm:N", sort=list(ARMS)),
        _colour(ARMS),
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


def _chart(rows: pd.DataFrame) -> alt.Chart:
    return alt.Chart(alt.Data(values=rows.to_dict("records")))


def _exact(*names: str) -> Iterable[alt.Tooltip]:
    return (alt.Tooltip(f"{name}:Q", format=".3~g") for name in names)


def _colour(roles: dict[str, str], field: str = "arm") -> alt.Color:
    scale = alt.Scale(domain=list(roles), range=[PALETTE[role][0] for role in roles.values()])
    return alt.Color(f"{field}:N", scale=scale, legend=alt.Legend(title=None, orient="top"))


def render(run: Run, pattern: re.Pattern[str] | None) -> Shown | None:
    """Return what the norm tells of a run."""
    told = norm_of(run)
    if told is None:
        return None
    html = fragment(
        "norms.html",
        pattern,
        told=told,
        drawn=drawn(told),
        captions=CAPTIONS,
        called=called,
        equal=EQUAL,
        scored=SCORED,
        chart=figure,
    )
    return Shown(html, charts(told))


PART = Part("norm", "What the norm tells", render)
