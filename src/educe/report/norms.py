"""What the norm tells, as charts; it is read from the run as JSON (see `educe.norm.survey`)."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import altair as alt
import numpy as np

from educe.comparison.summary import dose
from educe.report.figures import PALETTE, dressed

#: Charts of curves: what each shows and what is said of it.
CAPTIONS = {
    "effect": ("Effect", "Norm of the change at the target, ‖Δ‖."),
    "exponent": (
        "Response exponent",
        "d log ‖Δ‖ / d log R: 1 where the effect is linear, above where it leaves a plateau, below "
        "where it saturates.",
    ),
    "high": (
        "Side effect",
        "95th percentile of KL over the first 20 tokens of ordinary answers, in nats.",
    ),
    "coherence": ("Coherence", "Of what is written, as text the unperturbed model could write."),
    "novelty": ("Novelty", "Of what is written, against what the unperturbed model writes."),
    "score": ("Judged score", "Mean over the prompts."),
}
#: The share of random perturbations that the band holds.
BAND = (0.1, 0.9)
ARMS = {"found": "accent", "random": "control"}


def drawn(told: dict[str, Any]) -> list[str]:
    """Return which curves there are to draw."""
    return [name for name in CAPTIONS if told["curves"] and (name != "score" or told["judge"])]


def charts(told: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the specifications of all charts, by name."""
    made: dict[str, Any] = {name: curve(told["curves"], name) for name in drawn(told)}
    made["rules"] = rules(told["curves"]) if told["curves"] else None
    made["spread"] = scatter(told["points"])
    made["equal"] = equal(told["equal"]) if told["equal"] else None
    return {f"norm-{name}": dressed(chart) for name, chart in made.items() if chart is not None}


def curve(curves: list[dict[str, Any]], name: str) -> alt.LayerChart:
    """Draw something over the signed radius: lines of those found over a band of random ones."""
    grid = "fine" if name in ("effect", "exponent") else "points"
    rows, control = [], defaultdict(list)
    for c in curves:
        for p in c[grid]:
            value = p[name]
            if value is None:
                continue
            share = c["sign"] * abs(p["share"])
            rows.append(
                {
                    "share": share,
                    "value": value,
                    "line": f"{c['arm']} {c['sign']} {c['number']}",
                    "number": c["number"],
                    "of": "found" if c["arm"] == "found" else "random",
                    "dose": share * c["dose"],
                }
            )
            if c["arm"] == "control":
                control[round(share, 6)].append(value)
    band = [
        dict(zip(("low", "high"), np.quantile(values, BAND).tolist(), strict=True))
        | {"share": share, "middle": float(np.median(values)), "side": share > 0}
        for share, values in sorted(control.items())
    ]
    logs = name in ("effect", "high")
    scale = alt.Scale(type="symlog", constant=0.01) if name == "high" else alt.Scale()
    if name == "effect":
        scale = alt.Scale(type="log")
    title = CAPTIONS[name][0].lower() if name != "high" else "nats"
    across = alt.X(
        "share:Q",
        scale=alt.Scale(type="symlog", constant=0.25, nice=False),
        axis=alt.Axis(values=[-3, -2, -1, -0.5, -0.25, 0.25, 0.5, 1, 2, 3], format=".3~g"),
        title="radius, as a share of the one used",
    )
    up = alt.Y("value:Q", scale=scale, title=title, axis=alt.Axis(tickCount=5, format=".3~g"))
    layers: list[alt.Chart] = []
    if band:
        shaded = alt.Chart(alt.Data(values=band))
        layers.append(
            shaded.mark_area(opacity=0.2, color=PALETTE["control"][0]).encode(
                across, alt.Y("low:Q", scale=scale, title=title), alt.Y2("high:Q"), detail="side:N"
            )
        )
    lines = alt.Chart(alt.Data(values=rows)).encode(
        across,
        up,
        alt.Color("of:N", scale=_scale(), legend=alt.Legend(title=None, orient="top")),
        detail="line:N",
        tooltip=[
            "number:N",
            "of:N",
            alt.Tooltip("share:Q", format=".3~g"),
            alt.Tooltip("dose:Q", format=".3~g"),
            alt.Tooltip("value:Q", format=".3~g", title=title),
        ],
    )
    layers.append(
        lines.transform_filter("datum.of == 'random'").mark_line(strokeWidth=1, opacity=0.6)
    )
    layers.append(lines.transform_filter("datum.of == 'found'").mark_line(strokeWidth=2))
    if name == "exponent":
        one = alt.Chart(alt.Data(values=[{"value": 1}]))
        layers.append(
            one.mark_rule(strokeDash=[4, 4], color=PALETTE["muted"][0]).encode(alt.Y("value:Q"))
        )
    return alt.layer(*layers).properties(height=240 if not logs else 260)


def rules(curves: list[dict[str, Any]]) -> alt.LayerChart:
    """Draw the radius of each perturbation by the three rules, and where its text falls apart."""
    names = {"linearisation": "rare", "steepest": "accent", "budget": "noise"}
    rows = []
    for c in curves:
        own = f"{'+' if c['sign'] > 0 else '−'}{c['number']} {_arm(c['arm'])}"
        for name in names:
            if c["choices"][name] is not None:
                rows.append({"who": own, "of": name, "share": c["choices"][name]})
        if c["marks"]["nonsense"] is not None:
            rows.append({"who": own, "of": "nonsense", "share": c["marks"]["nonsense"]})
    colours = names | {"nonsense": "damage"}
    base = alt.Chart(alt.Data(values=rows)).encode(
        alt.X("share:Q", scale=alt.Scale(type="log"), title="radius, as a share of the one used"),
        alt.Y("who:N", title=None, sort=[]),
    )
    return alt.layer(
        base.mark_point(size=90, filled=True, opacity=1).encode(
            alt.Color(
                "of:N",
                scale=alt.Scale(
                    domain=list(colours), range=[PALETTE[role][0] for role in colours.values()]
                ),
                legend=alt.Legend(title=None, orient="top"),
            ),
            alt.Shape(
                "of:N",
                scale=alt.Scale(
                    domain=list(colours), range=["circle", "diamond", "square", "cross"]
                ),
                legend=alt.Legend(title=None, orient="top"),
            ),
            tooltip=["who:N", "of:N", alt.Tooltip("share:Q", format=".3~g")],
        )
    ).properties(height=max(120, 24 * len(curves)))


def scatter(points: list[list[dict[str, Any]]]) -> alt.LayerChart:
    """Draw how striking perturbations are against their effect, as they were used."""
    rows = [
        {
            "of": arm,
            "number": p["number"],
            "effect": p["effect"],
            "striking": p["coherence"] * p["novelty"],
            "dose": p["dose"],
            "high": p["high"],
        }
        for arm, own in zip(ARMS, points, strict=True)
        for p in own
        if p["effect"]
    ]
    return alt.layer(
        alt.Chart(alt.Data(values=rows))
        .mark_point(size=60, filled=True, opacity=0.85)
        .encode(
            alt.X("effect:Q", scale=alt.Scale(type="log"), title="effect ‖Δ‖"),
            alt.Y("striking:Q", title="coherence × novelty"),
            alt.Color("of:N", scale=_scale(), legend=alt.Legend(title=None, orient="top")),
            tooltip=[
                "number:N",
                "of:N",
                *(alt.Tooltip(f"{k}:Q", format=".3~g") for k in ("effect", "striking", "dose")),
                alt.Tooltip("high:Q", format=".3~g", title="KL, 95%"),
            ],
        )
    ).properties(height=280)


def equal(compared: list[dict[str, Any]]) -> alt.LayerChart:
    """Draw the rates of both arms at equal radius, effect and damage, with their intervals."""
    names = {"radius": "as used", "effect": "equal effect", "kl": "equal KL"}
    rows = []
    several = len({e["dose"] for e in compared}) > 1
    for e in compared:
        used = f", {dose(e['dose'])}" if several else ""
        for arm, of in (("found", e["found"]), ("random", e["control"])):
            for what, title in (("shows", "shows it"), ("new", "new"), ("nonsense", "nonsense")):
                r = of[what]
                if r["trials"]:
                    rows.append(
                        {
                            "at": f"{title}, {names[e['at']]}{used}",
                            "of": arm,
                            "share": r["hits"] / r["trials"],
                            "low": r["low"],
                            "high": r["high"],
                            "told": f"{r['hits']} of {r['trials']}",
                        }
                    )
    base = alt.Chart(alt.Data(values=rows)).encode(
        alt.Y("at:N", title=None, sort=[]),
        alt.YOffset("of:N", sort=list(ARMS)),
        alt.Color("of:N", scale=_scale(), legend=alt.Legend(title=None, orient="top")),
        tooltip=["at:N", "of:N", "told:N"],
    )
    axis = alt.Axis(format="%", tickCount=5)
    bars = base.mark_rule(strokeWidth=2).encode(
        alt.X("low:Q", title="perturbations", axis=axis, scale=alt.Scale(domain=[0, 1])),
        alt.X2("high:Q"),
    )
    dots = base.mark_point(size=70, filled=True, opacity=1).encode(alt.X("share:Q"))
    return (bars + dots).properties(height=102 * len(compared))


def _arm(arm: str) -> str:
    return "found" if arm == "found" else "random"


def _scale() -> alt.Scale:
    return alt.Scale(domain=list(ARMS), range=[PALETTE[role][0] for role in ARMS.values()])
