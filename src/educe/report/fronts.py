"""What perturbations cost beside what they do, as charts: fronts, sparse vectors, ungated ones."""

from __future__ import annotations

import re
from collections.abc import Sequence

import altair as alt
import pandas as pd

from educe.report import derived
from educe.report.derived import Point, Scan, Sparse
from educe.report.drawing import ARMS, LOG, banded, colour, exact, over, rule
from educe.report.figures import PALETTE, dressed
from educe.report.part import Part, Shown
from educe.report.templates import figure, fragment
from educe.run.store import Run

#: What each order of groups is called, and its colour.
ORDERS = {"lasso": "accent", "largest": "rare", "random": "control"}


def front(points: Sequence[Point]) -> alt.LayerChart:
    """Draw effect against side effect, and the front of each arm."""
    rows = pd.DataFrame(points)
    rows["looked for"] = rows.hit.map({True: "yes", False: "no"}).fillna("")
    base = over(rows[(rows.kl > 0) & (rows.effect > 0)]).encode(
        alt.X("kl:Q", scale=LOG, title="side effect, nats a token (95th percentile)"),
        alt.Y("effect:Q", scale=LOG, title="norm of the effect"),
        colour("arm", ARMS),
    )
    lines = base.transform_filter("datum.front").mark_line(
        interpolate="step-after", strokeWidth=1.6, opacity=0.8
    )
    hit = "datum.hit === true"
    dots = base.mark_point(filled=True, opacity=0.85).encode(
        size=alt.condition(hit, alt.value(130), alt.value(36)),
        shape=alt.condition(hit, alt.value("diamond"), alt.value("circle")),
        tooltip=["perturbation:N", "arm:N", *exact("dose", "effect", "kl"), "looked for:N"],
    )
    return (lines + dots).properties(height=320)


def kept(trial: Sparse) -> alt.LayerChart:
    """Draw the share of the effect that the first groups keep, for more and more of them."""
    lines = (
        over(trial.curves)
        .mark_line(strokeWidth=1.8)
        .encode(
            alt.X("groups:Q", scale=LOG, title="groups kept"),
            alt.Y("share:Q", axis=alt.Axis(format="%", tickCount=6), title="share of the effect"),
            colour("order", ORDERS),
            detail="number:N",
            tooltip=["number:N", "order:N", "groups:Q", alt.Tooltip("share:Q", format=".0%")],
        )
    )
    return (rule(share=trial.keep) + lines).properties(height=280)


def signs(scan: Scan) -> alt.LayerChart:
    """Draw the effect of each sign and size, an adapter a line, over the band of the control.

    A dot grows with its score. Lines and band are broken at zero, where the effect is none.
    """
    rows = pd.DataFrame(scan.cells).rename(columns={"share": "constant"}).drop(columns="again")
    rows = rows.assign(
        score=[cell.score.mean for cell in scan.cells],
        text=rows.text.str[:160],
        side=rows.constant > 0,
    )
    band = banded(rows[rows.arm == "control"], "effect", ["side", "constant"])
    title = "sign and size of what is written, as a share of what the adapter adds"
    along = alt.X("constant:O", title=title, axis=alt.Axis(labelAngle=0))
    title = "norm of the effect"
    shaded = (
        over(band)
        .mark_area(opacity=0.2, color=PALETTE["control"][0])
        .encode(along, alt.Y("low:Q", scale=LOG, title=title), alt.Y2("high:Q"), detail="side:N")
    )
    base = over(rows).encode(
        along,
        alt.Y("effect:Q", scale=LOG, title=title),
        colour("arm", ARMS),
        detail=["number:N", "side:N"],
        tooltip=["number:N", "arm:N", "constant:O", *exact("score", "effect"), "text:N"],
    )
    lines = base.mark_line(strokeWidth=1.2, opacity=0.6)
    size = alt.Size("score:Q", scale=alt.Scale(domain=[0, 1], range=[30, 260]), legend=None)
    dots = base.mark_point(filled=True, opacity=0.9).encode(size)
    return (shaded + lines + dots).properties(height=280)


def render(run: Run, pattern: re.Pattern[str] | None) -> Shown | None:
    """Return what perturbations of a run cost beside what they do."""
    costs, sparse, scans = derived.fronts(run), derived.sparse(run), derived.scans(run)
    if not (costs or sparse or scans):
        return None
    html = fragment(
        "fronts.html",
        pattern,
        fronts={judge: (points, derived.within(points)) for judge, points in costs.items()},
        sparse=sparse,
        scans=scans,
        looked=bool(pattern),
        chart=figure,
    )
    drawn = {f"front-{i}": front(points) for i, points in enumerate(costs.values())}
    drawn |= {f"sparse-{i}": kept(one) for i, one in enumerate(sparse)}
    drawn |= {f"ungated-{i}": signs(one) for i, one in enumerate(scans)}
    return Shown(html, {name: dressed(chart) for name, chart in drawn.items()})


PART = Part("fronts", "What it costs beside", render)
