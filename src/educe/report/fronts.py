"""What perturbations cost beside what they do, as charts: fronts, sparse vectors, ungated ones."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import altair as alt
import numpy as np

from educe.report import derived
from educe.report.derived import Point, Scan, Sparse
from educe.report.figures import PALETTE, dressed
from educe.report.norms import BAND
from educe.report.part import Part, Shown
from educe.report.templates import figure, fragment
from educe.run.store import Run

ARMS = {"found": "accent", "control": "control"}
ORDERS = {"lasso path": "accent", "largest first": "rare", "random order": "control"}
NAMED = {"lasso": "lasso path", "largest": "largest first", "random": "random order"}


def charts(
    fronts: Sequence[Sequence[Point]], sparse: Sequence[Sparse], scans: Sequence[Scan]
) -> dict[str, dict[str, Any]]:
    """Return the specifications of the charts, by name."""
    drawn = {f"front-{i}": dressed(front(points)) for i, points in enumerate(fronts)}
    drawn |= {f"sparse-{i}": dressed(kept(one)) for i, one in enumerate(sparse)}
    return drawn | {f"ungated-{i}": dressed(signs(one)) for i, one in enumerate(scans)}


def front(points: Sequence[Point]) -> alt.LayerChart:
    """Draw effect against side effect, and the front of each arm."""
    shown = [
        asdict(p) | {"kl": _number(p.kl), "effect": _number(p.effect), "looked for": _hit(p.hit)}
        for p in points
        if p.kl > 0 and p.effect > 0
    ]
    base = alt.Chart(alt.Data(values=shown)).encode(
        alt.X("kl:Q", scale=_log(), title="side effect, nats a token (95th percentile)"),
        alt.Y("effect:Q", scale=_log(), title="norm of the effect"),
        _colour("arm", ARMS),
    )
    lines = base.transform_filter("datum.front").mark_line(
        interpolate="step-after", strokeWidth=1.6, opacity=0.8
    )
    hit = "datum.hit === true"
    dots = base.mark_point(filled=True, opacity=0.85).encode(
        size=alt.condition(hit, alt.value(130), alt.value(36)),
        shape=alt.condition(hit, alt.value("diamond"), alt.value("circle")),
        tooltip=[
            "perturbation:N",
            "arm:N",
            alt.Tooltip("dose:Q", format=".3~g"),
            alt.Tooltip("effect:Q", format=".3~g"),
            alt.Tooltip("kl:Q", format=".2~g", title="side effect"),
            "looked for:N",
        ],
    )
    return (lines + dots).properties(height=320)


def kept(trial: Sparse) -> alt.LayerChart:
    """Draw the share of the effect that the first groups keep, for more and more of them."""
    rows = [
        {
            "vector": vector.number,
            "groups": count,
            "share": _number(value),
            "order": NAMED[name],
            "line": f"{vector.number} {name}",
        }
        for vector in trial.vectors
        for name, line in vector.curve.items()
        for count, value in zip(trial.counts, line, strict=True)
    ]
    lines = (
        alt.Chart(alt.Data(values=rows))
        .mark_line(strokeWidth=1.8)
        .encode(
            alt.X("groups:Q", scale=alt.Scale(type="log", nice=False), title="groups kept"),
            alt.Y("share:Q", axis=alt.Axis(format="%", tickCount=6), title="share of the effect"),
            _colour("order", ORDERS),
            detail="line:N",
            tooltip=["vector:N", "order:N", "groups:Q", alt.Tooltip("share:Q", format=".0%")],
        )
    )
    rule = (
        alt.Chart(alt.Data(values=[{"share": trial.keep}]))
        .mark_rule(strokeDash=[3, 4], color=PALETTE["muted"][0])
        .encode(alt.Y("share:Q"))
    )
    return (rule + lines).properties(height=280)


def signs(scan: Scan) -> alt.LayerChart:
    """Draw the effect of each sign and size, an adapter a line, over the band of the control.

    A dot grows with its score. Lines and band are broken at zero, where the effect is none.
    """
    rows: list[dict[str, Any]] = [
        {
            "adapter": cell.number,
            "arm": cell.arm,
            "constant": cell.share,
            "side": 1 if cell.share > 0 else -1,
            "score": _number(cell.score.mean),
            "effect": _number(cell.effect),
            "text": cell.text[:160],
        }
        for cell in scan.cells
        if cell.share is not None
    ]
    control = defaultdict(list)
    for row in rows:
        if row["arm"] == "control":
            control[row["side"], row["constant"]].append(row["effect"])
    band = [
        {"constant": constant, "side": side, "low": _number(low), "high": _number(high)}
        for (side, constant), values in control.items()
        for low, high in [np.quantile(values, BAND)]
    ]
    along = alt.X(
        "constant:O",
        title="sign and size of what is written, as a share of what the adapter adds",
        axis=alt.Axis(labelAngle=0),
    )
    title = "norm of the effect"
    shaded = (
        alt.Chart(alt.Data(values=band))
        .mark_area(opacity=0.2, color=PALETTE["control"][0])
        .encode(along, alt.Y("low:Q", scale=_log(), title=title), alt.Y2("high:Q"), detail="side:N")
    )
    base = alt.Chart(alt.Data(values=rows)).encode(
        along,
        alt.Y("effect:Q", scale=_log(), title=title),
        _colour("arm", ARMS),
        detail=["adapter:N", "side:N"],
        tooltip=[
            "adapter:N",
            "arm:N",
            "constant:O",
            alt.Tooltip("score:Q", format=".2~f"),
            alt.Tooltip("effect:Q", format=".3~g"),
            "text:N",
        ],
    )
    lines = base.mark_line(strokeWidth=1.2, opacity=0.6)
    size = alt.Size("score:Q", scale=alt.Scale(domain=[0, 1], range=[30, 260]), legend=None)
    return (shaded + lines + base.mark_point(filled=True, opacity=0.9).encode(size)).properties(
        height=280
    )


def _log() -> alt.Scale:
    return alt.Scale(type="log", nice=False, padding=8)


def _hit(hit: bool | None) -> str:
    return "" if hit is None else "yes" if hit else "no"


def _colour(field: str, roles: dict[str, str]) -> alt.Color:
    scale = alt.Scale(domain=list(roles), range=[PALETTE[role][0] for role in roles.values()])
    return alt.Color(
        f"{field}:N", scale=scale, legend=alt.Legend(title=None, orient="top", labelLimit=260)
    )


def _number(value: float) -> float:
    return float(f"{value:.4g}")


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
    return Shown(html, charts(list(costs.values()), sparse, scans))


PART = Part("fronts", "What it costs beside", render)
