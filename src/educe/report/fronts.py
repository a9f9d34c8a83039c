"""What perturbations cost beside what they do: the front, sparse vectors, adapters without gates.

Read from the run as JSON; nothing here needs a model.
"""

from __future__ import annotations

import re
from collections import defaultdict
from typing import Any

import altair as alt
import numpy as np

from educe.comparison.stats import pareto, rate
from educe.report.figures import PALETTE, dressed
from educe.report.norms import BAND
from educe.rows import RETEST
from educe.run.store import Run

#: Side effects, in nats a token, within which arms are compared.
BUDGETS = (0.1, 0.3, 1.0)
ARMS = {"found": "accent", "random": "control"}
ORDERS = {"lasso path": "accent", "largest first": "rare", "random order": "control"}
NAMED = {"lasso": "lasso path", "magnitude": "largest first", "random": "random order"}


def points(run: Run) -> list[dict[str, Any]]:
    """Return every perturbation whose side effect was measured, as a point of its arm.

    ``hit`` says whether any of its answers has what was looked for; None where nothing was.
    ``front`` is whether no other of its arm has as much effect for as little.
    """
    if not run.has("front"):
        return []
    costs = run.note("front")["kl"]
    pattern = run.config.get("look_for")
    asked = {p.id for p in run.prompt_rows("asked")}
    texts: dict[int, list[str]] = {}
    for c in run.completion_rows():
        if c.prompt in asked and c.phase != RETEST:
            texts.setdefault(c.perturbation, []).append(c.text)
    found = []
    for p in run.perturbation_rows():
        kl = costs.get(str(p.id))
        if kl is None:
            continue
        hit = any(re.search(pattern, text) for text in texts.get(p.id, ())) if pattern else None
        arm = "found" if p.arm == "found" else "random"
        found.append(
            {
                "perturbation": p.id,
                "arm": arm,
                "dose": p.dose,
                "effect": p.effect,
                "kl": kl,
                "hit": hit,
            }
        )
    for arm in ARMS:
        own = [point for point in found if point["arm"] == arm]
        best = pareto([p["effect"] for p in own], [p["kl"] for p in own])
        for point, front in zip(own, best.tolist(), strict=True):
            point["front"] = front
    return found


def within(points: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return, for each budget and arm, the largest effect and how many have what is looked for."""
    rows = []
    for budget in BUDGETS:
        row: dict[str, Any] = {"budget": budget}
        for arm in ARMS:
            own = [p for p in points if p["arm"] == arm and p["kl"] <= budget]
            hits = [p["hit"] for p in own if p["hit"] is not None]
            row[arm] = {
                "count": len(own),
                "effect": max((p["effect"] for p in own), default=None),
                "hits": str(rate(sum(hits), len(hits))) if hits else None,
            }
        rows.append(row)
    return rows


def section(run: Run) -> dict[str, Any] | None:
    """Return what the page shows of a run, or None where there is nothing."""
    front = points(run)
    found = {
        "front": front,
        "within": within(front),
        "sparse": run.notes("sparse-"),
        "degate": run.notes("degate-"),
    }
    return found if any(found[name] for name in ("front", "sparse", "degate")) else None


def charts(told: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the specifications of the charts of a section, by name."""
    drawn = {}
    if told["front"]:
        drawn["front"] = dressed(front(told["front"]))
    for i, trial in enumerate(told["sparse"]):
        drawn[f"sparse-{i}"] = dressed(sparse(trial))
    for i, scan in enumerate(told["degate"]):
        drawn[f"degate-{i}"] = dressed(degate(scan))
    return drawn


def front(points: list[dict[str, Any]]) -> alt.LayerChart:
    """Draw effect against side effect, and the front of each arm."""
    shown = [
        p | {"kl": _number(p["kl"]), "effect": _number(p["effect"]), "looked for": _hit(p["hit"])}
        for p in points
        if p["kl"] > 0 and p["effect"] > 0
    ]
    log = alt.Scale(type="log", nice=False, padding=8)
    base = alt.Chart(alt.Data(values=shown)).encode(
        alt.X("kl:Q", scale=log, title="side effect, nats a token (95th percentile)"),
        alt.Y("effect:Q", scale=log, title="norm of the effect"),
        _colour("arm", ARMS),
    )
    lines = base.transform_filter("datum.front").mark_line(
        interpolate="step-after", strokeWidth=1.6, opacity=0.8
    )
    dots = base.mark_point(filled=True, opacity=0.85).encode(
        size=alt.condition("datum.hit === true", alt.value(130), alt.value(36)),
        shape=alt.condition("datum.hit === true", alt.value("diamond"), alt.value("circle")),
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


def sparse(trial: dict[str, Any]) -> alt.LayerChart:
    """Draw the share of the effect that the first groups keep, for more and more of them."""
    rows = [
        {
            "vector": vector["number"],
            "groups": count,
            "share": _number(value),
            "order": NAMED[name],
            "line": f"{vector['number']} {name}",
        }
        for vector in trial["vectors"]
        for name, line in vector["curve"]["shares"].items()
        for count, value in zip(vector["curve"]["counts"], line, strict=True)
    ]
    along = alt.X("groups:Q", scale=alt.Scale(type="log", nice=False), title="groups kept")
    lines = (
        alt.Chart(alt.Data(values=rows))
        .mark_line(strokeWidth=1.8)
        .encode(
            along,
            alt.Y("share:Q", axis=alt.Axis(format="%", tickCount=6), title="share of the effect"),
            _colour("order", ORDERS),
            detail="line:N",
            tooltip=["vector:N", "order:N", "groups:Q", alt.Tooltip("share:Q", format=".0%")],
        )
    )
    rule = (
        alt.Chart(alt.Data(values=[{"share": trial["keep"]}]))
        .mark_rule(strokeDash=[3, 4], color=PALETTE["muted"][0])
        .encode(alt.Y("share:Q"))
    )
    return (rule + lines).properties(height=280)


def degate(scan: dict[str, Any]) -> alt.LayerChart:
    """Draw the effect of each sign and size, an adapter a line, over the band of random ones.

    A dot grows with its score. Lines and band are broken at zero, where the effect is none.
    """
    names = {"found": "found", "control": "random"}
    rows = [
        {
            "adapter": cell["source"],
            "arm": names[cell["arm"]],
            "constant": cell["sign"] * cell["size"],
            "side": cell["sign"],
            "score": _number(cell["score"]["mean"]),
            "effect": _number(cell["effect"]),
            "text": cell["text"][:160],
        }
        for cell in scan["cells"]
    ]
    control = defaultdict(list)
    for row in rows:
        if row["arm"] == "random":
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
    log, title = alt.Scale(type="log", nice=False, padding=8), "norm of the effect"
    shaded = (
        alt.Chart(alt.Data(values=band))
        .mark_area(opacity=0.2, color=PALETTE["control"][0])
        .encode(along, alt.Y("low:Q", scale=log, title=title), alt.Y2("high:Q"), detail="side:N")
    )
    base = alt.Chart(alt.Data(values=rows)).encode(
        along,
        alt.Y("effect:Q", scale=log, title=title),
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
    dots = base.mark_point(filled=True, opacity=0.9).encode(size)
    return (shaded + lines + dots).properties(height=280)


def _hit(hit: bool | None) -> str:
    return "" if hit is None else "yes" if hit else "no"


def _colour(field: str, roles: dict[str, str]) -> alt.Color:
    scale = alt.Scale(domain=list(roles), range=[PALETTE[role][0] for role in roles.values()])
    return alt.Color(
        f"{field}:N", scale=scale, legend=alt.Legend(title=None, orient="top", labelLimit=260)
    )


def _number(value: float) -> float:
    return float(f"{value:.4g}")
