"""Charts of a run: the map of what was written, responses, how interesting each arm is, layers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import altair as alt
import numpy as np

from educe.comparison.account import dose
from educe.comparison.cluster import plane
from educe.comparison.summary import Summary
from educe.comparison.verdict import Verdict
from educe.layer_map import LayerMap
from educe.report.behaviours import label
from educe.report.document import Chart, shorten
from educe.report.drawing import ARMS, PALETTE, colour, exact, figure, over, percent, share
from educe.report.size import most
from educe.rows import BEHAVIOUR, EQUAL, FIRST
from educe.scores.novelty import weighed

#: What a completion's behaviour is called on the map, and its colour.
SHORT = {
    Verdict.BEHAVIOUR: ("stands out", "accent"),
    Verdict.INVARIANT: ("prompt-invariant", "invariant"),
    Verdict.RARE: ("rare", "rare"),
    Verdict.FRAGILE: ("control as well", "fragile"),
    Verdict.OWN: ("unperturbed as well", "own"),
    Verdict.STOCK: ("stock phrase", "stock"),
    Verdict.DAMAGE: ("damaged", "damage"),
    Verdict.SAME: ("as before", "same"),
    None: ("only control", "control"),
}
#: The shape of each arm on the map.
SHAPES = {"found": "circle", "control": "diamond", EQUAL: "square", "unperturbed": "cross"}
TOOLTIP_LENGTH = 220
#: Different texts on the map, which takes memory by their square.
PLACED = 3_000


def charts(s: Summary, layer_map: LayerMap | None = None) -> Iterator[Chart]:
    """Yield the charts for which a run has numbers."""
    if points := places(s):
        yield figure("map", _map(points), placed=PLACED)
    if layer_map is not None:
        yield from survey(layer_map, (s.facts["source"], s.facts["target"]))
    if s.responses:
        yield figure("response", _response(s))
    if s.found or s.control:
        yield figure("interestingness", _interestingness(s))
    if any(r.trials for pair in s.by_radius.values() for r in pair):
        yield figure("radius", _by_radius(s))


def survey(layer_map: LayerMap, chosen: tuple[int, int] | None = None) -> Iterator[Chart]:
    """Yield the heat maps of a layer map: what a small dose becomes, and the spectral gap."""
    columns = (layer_map.pairs, layer_map.gain, layer_map.gap, layer_map.steadiness)
    rows = [
        {
            "source": pair.source,
            "target": pair.target,
            **dict(zip(("gain", "gap", "steadiness"), map(float, numbers), strict=True)),
            "sigma": ", ".join(f"{float(value):.3g}" for value in sigma),
        }
        for pair, *numbers, sigma in zip(*columns, layer_map.sigma, strict=True)
    ]
    across = alt.X("target:O", title="target layer", axis=alt.Axis(labelAngle=0))
    down = alt.Y("source:O", title="source layer", sort="ascending")
    told = ["source:O", "target:O", *exact("gain"), *percent("gap"), *exact("steadiness")]
    base = over(rows).encode(
        across, down, tooltip=[*told, alt.Tooltip("sigma:N", title="singular values")]
    )
    here = [dict(zip(("source", "target"), chosen, strict=True))] if chosen else []
    mark = over(here).mark_rect(fill=None, stroke=PALETTE["ink"][0], strokeWidth=2)
    height = 16 * len({pair.source for pair in layer_map.pairs}) + 60
    for name, kind, form in (("gain", "log", alt.Undefined), ("gap", "linear", "%")):
        legend = alt.Legend(gradientLength=140, tickCount=4, format=form)
        by = alt.Scale(type=kind, scheme="viridis")
        shade = alt.Color(f"{name}:Q", scale=by, title=name, legend=legend)
        drawn = base.mark_rect().encode(shade) + mark.encode(across, down)
        yield figure(f"layer-map-{name}", drawn.properties(height=height))


def places(s: Summary) -> list[dict[str, Any]]:
    """Return where completions lie on the map, and their verdict; equal ones are one point."""
    behaviours = {b.id: b for b in s.behaviours}
    rows, own = s.texts.rows, s.texts.rows.perturbation == 0
    known = rows[BEHAVIOUR].notna() & (rows.phase == FIRST) & (own | (rows.role == "asked"))
    unperturbed = set(rows[BEHAVIOUR][known & own])
    some = np.flatnonzero(known)
    key = rows.arm.cat.codes.to_numpy(np.int64)[some]  # one number for arm, prompt and text
    for column in (rows.prompt, rows.text):
        key = key * (column.max() + 1) + column.to_numpy()[some]
    _, first, times = np.unique(key, return_index=True, return_counts=True)
    rows = rows.iloc[some[first]].assign(completions=times).sort_index()
    often = rows.groupby("text").completions.sum().nlargest(PLACED)
    rows = rows[rows.text.isin(often.index)]
    rows = rows.nlargest(most(s).points or len(rows), "completions").sort_index()
    rows = rows.assign(said=list(s.texts.said(rows.number)))
    texts = sorted(set(rows.said))
    at = dict(zip(texts, plane(weighed(texts)).tolist(), strict=True)) if texts else {}
    made = []
    for one in rows.itertuples():
        named = behaviours.get(int(one.behaviour))
        plain = one.arm == "unperturbed" or one.behaviour in unperturbed
        verdict = named.verdict if named else Verdict.SAME if plain else None
        made.append(
            {
                "x": at[one.said][0],
                "y": at[one.said][1],
                "arm": one.arm,
                "verdict": SHORT[verdict][0],
                "behaviour": label(named) if named else "",
                "perturbation": int(one.perturbation),
                "prompt": int(one.prompt),
                "sample": int(one.sample),
                "completions": int(one.completions),
                "text": shorten(one.said, TOOLTIP_LENGTH),
            }
        )
    # The interesting ones are drawn last, over the others.
    layers = [SHORT[v][0] for v in (Verdict.SAME, None, *list(Verdict)[-2::-1])]
    made.sort(key=lambda p: (p["arm"] == "unperturbed", layers.index(p["verdict"])))
    return made


def _map(points: list[dict[str, Any]]) -> alt.Chart:
    there = {point["verdict"] for point in points}
    roles = {name: role for name, role in SHORT.values() if name in there}
    ends = alt.Scale(zero=False, nice=False, padding=12)
    sizes = alt.Scale(type="sqrt", domain=[1, 100], range=[44, 420], clamp=True)
    shapes = alt.Scale(domain=list(SHAPES), range=list(SHAPES.values()))
    arms = alt.Legend(title=None, orient="top", symbolFillColor=PALETTE["control"][0])
    drawn = alt.condition(
        "datum.arm == 'unperturbed'", alt.value(PALETTE["ink"][0]), alt.value("transparent")
    )
    told = ["arm:N", "completions:Q", "perturbation:N", "behaviour:N", "verdict:N", "text:N"]
    zoom = alt.selection_interval(
        name="zoom", bind="scales", zoom="wheel![event.ctrlKey || event.metaKey]"
    )
    return (
        over(points)
        .mark_point(filled=True, opacity=0.8)
        .encode(
            alt.X("x:Q", axis=None, scale=ends),
            alt.Y("y:Q", axis=None, scale=ends),
            colour("verdict", roles, orient="bottom", columns=3, symbolType="square"),
            alt.Shape("arm:N", scale=shapes, legend=arms),
            alt.Size("completions:Q", scale=sizes, legend=None),
            stroke=drawn,
            tooltip=told,
        )
        .add_params(zoom)
        .properties(height=420)
    )


def _response(s: Summary) -> alt.LayerChart:
    """Draw the norm of the effect against the dose, one line for each perturbation."""
    rows = [
        {
            "perturbation": item.row.id,
            "arm": arm,
            "dose": radius * item.row.dose / item.row.radius,
            "effect": size,
        }
        for arm, items in (("control", s.control), ("found", s.found))
        for item in items
        for radius, size in s.responses.get(item.row.id, ())
        if radius > 0 and size > 0
    ]
    log = alt.Scale(type="log", nice=False, padding=4)
    axis = alt.Axis(values=[d * 10.0**e for e in range(-4, 7) for d in (1, 2, 5)], grid=False)
    along = alt.X("dose:Q", scale=log, title="dose", axis=axis)
    lines = (
        over(rows)
        .mark_line(interpolate="monotone", opacity=0.85)
        .encode(
            along,
            alt.Y("effect:Q", scale=log, title="norm of the effect", axis=axis),
            colour("arm", ARMS, symbolType="stroke", symbolStrokeWidth=2),
            detail="perturbation:N",
            strokeWidth=alt.condition("datum.arm == 'found'", alt.value(1.8), alt.value(1.1)),
            tooltip=["perturbation:N", "arm:N", *exact("dose", "effect")],
        )
    )
    used = over([{"dose": r / s.facts["unit"]} for r in s.facts.get("radii", ())])
    rules = used.mark_rule(strokeDash=[3, 4], color=PALETTE["muted"][0]).encode(
        along, tooltip=[alt.Tooltip("dose:Q", format=".3~g", title="a dose searched")]
    )
    return (rules + lines).properties(height=300)


def _interestingness(s: Summary) -> alt.LayerChart:
    """Draw what share of each arm is at least so interesting."""
    rows = []
    for arm, items in (("found", s.found), ("control", s.control)):
        drawn = _spread(len(items), most(s).points)
        best = [items[place].best for place in drawn]
        said = iter(s.texts.said([number for number in best if number is not None]))
        rows += [
            {
                "arm": arm,
                "interestingness": items[place].interestingness,
                "share": (place + 1) / len(items),
                "perturbation": items[place].row.id,
                "text": shorten("" if number is None else next(said), TOOLTIP_LENGTH),
            }
            for place, number in zip(drawn, best, strict=True)
        ]
    base = over(rows).encode(
        alt.X(
            "interestingness:Q",
            scale=alt.Scale(domainMin=0, nice=True),
            axis=alt.Axis(tickCount=6, grid=False),
        ),
        share("share", "share at least this interesting"),
        colour("arm", ARMS),
    )
    steps = base.mark_line(interpolate="step-before", strokeWidth=1.6).encode(
        order=alt.Order("share:Q", sort="descending")
    )
    dots = base.mark_point(filled=True, size=34, opacity=0.9).encode(
        tooltip=["perturbation:N", "arm:N", *exact("interestingness"), "text:N"]
    )
    return (steps + dots).properties(height=280)


def _spread(count: int, points: int | None) -> list[int]:
    """Return places among some, all or evenly, with the first and the last."""
    if points is None or count <= points:
        return list(range(count))
    return np.linspace(0, count - 1, points).round().astype(int).tolist()


def _by_radius(s: Summary) -> alt.LayerChart:
    """Draw the share of perturbations that hit the pattern at each radius, with intervals."""
    doses = {i.row.radius: i.row.dose for i in (*s.found, *s.control)}
    rows = [
        {
            "radius": f"{radius:.3g} (dose {dose(doses[radius])})",
            "arm": arm,
            "share": its.share,
            "low": its.low,
            "high": its.high,
            "hits": f"{its.hits} of {its.trials}",
        }
        for radius, pair in s.by_radius.items()
        for arm, its in zip(ARMS, pair, strict=True)
        if its.trials
    ]
    order = list(dict.fromkeys(row["radius"] for row in rows))
    base = over(rows).encode(
        alt.X("radius:N", sort=order, axis=alt.Axis(labelAngle=0, labelLimit=110)),
        alt.XOffset("arm:N", sort=list(ARMS), scale=alt.Scale(paddingOuter=1)),
        colour("arm", ARMS),
        tooltip=["radius:N", "arm:N", "hits:N", *percent("low", "high")],
    )
    bars = base.mark_rule(strokeWidth=2).encode(
        share("low", "share with a match", whole=False), alt.Y2("high:Q")
    )
    dots = base.mark_point(filled=True, size=80, opacity=1).encode(alt.Y("share:Q"))
    return (bars + dots).properties(height=280)
