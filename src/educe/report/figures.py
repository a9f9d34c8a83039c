"""Charts of a run as Vega-Lite specifications, in the colours of a light page.

`PALETTE` has the colour of each role on a dark page too; the page swaps them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import altair as alt

from educe.comparison.account import dose
from educe.comparison.behaviours import Behaviour
from educe.comparison.cluster import plane
from educe.comparison.stats import Rate
from educe.comparison.summary import Summary
from educe.comparison.verdict import Verdict
from educe.layer_map import LayerMap
from educe.rows import BEHAVIOUR, EQUAL, FIRST
from educe.scores.novelty import vectors
from educe.visible import one_line

#: Light and dark colour by role.
PALETTE = {
    "paper": ("#fbfaf8", "#15181b"),
    "card": ("#ffffff", "#1d2125"),
    "ink": ("#1b1f23", "#e7e5e0"),
    "muted": ("#5d646b", "#a2a8ae"),
    "line": ("#e0dedb", "#343a40"),
    "accent": ("#0c6a72", "#56c2c8"),
    "control": ("#7f868d", "#8b9299"),
    "invariant": ("#4b7f2c", "#93c572"),
    "rare": ("#a8730f", "#dfab4a"),
    "fragile": ("#7573b8", "#a5a3e6"),
    "own": ("#3f6fb0", "#86aee6"),
    "stock": ("#8a7a66", "#b9a98f"),
    "damage": ("#b05c52", "#dd8a7f"),
    "same": ("#b3b8bc", "#5a6168"),
}

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

#: The heat maps of a layer map: name, title and what each shows.
MAPS = (
    (
        "layer-map-gain",
        "What a small dose becomes, layer to layer",
        "For each source and target, the largest factor by which a small vector at the source "
        "arrives at the target, both as shares of the activations there. The frame marks the "
        "layers that were chosen.",
    ),
    (
        "layer-map-gap",
        "How far one direction stands out",
        "How much lower the second singular value lies than the first. Where the gap is small, the "
        "top direction is an arbitrary one of several.",
    ),
)

FONT = "Segoe UI, Roboto, Helvetica Neue, Noto Sans, Liberation Sans, Arial, sans-serif"
ARMS = ["found", "control", EQUAL, "unperturbed"]
TOOLTIP_LENGTH = 220


def charts(summary: Summary, layer_map: LayerMap | None = None) -> dict[str, dict[str, Any]]:
    """Return the specifications of the charts for which a run has numbers, by name."""
    drawn = {
        "map": places(summary),
        "response": response(summary),
        "interestingness": interestingness(summary),
        "radius": by_radius(summary),
    }
    layers = {}
    if layer_map is not None:
        layers = survey(layer_map, (summary.facts["source"], summary.facts["target"]))
    return {name: dressed(chart) for name, chart in drawn.items() if chart is not None} | layers


def survey(layer_map: LayerMap, chosen: tuple[int, int] | None = None) -> dict[str, dict[str, Any]]:
    """Return the heat maps of a layer map: what a small dose becomes, and the spectral gap."""
    rows = [
        {
            "source": pair.source,
            "target": pair.target,
            "gain": _number(float(gain)),
            "gap": _number(float(gap)),
            "steadiness": _number(float(steady)),
            "sigma": ", ".join(f"{float(value):.3g}" for value in sigma),
        }
        for pair, gain, gap, steady, sigma in zip(
            layer_map.pairs,
            layer_map.gain,
            layer_map.gap,
            layer_map.steadiness,
            layer_map.sigma,
            strict=True,
        )
    ]
    across = alt.X("target:O", title="target layer", axis=alt.Axis(labelAngle=0))
    down = alt.Y("source:O", title="source layer", sort="ascending")
    told = ["source:O", "target:O", _exact("gain"), _percent("gap"), _exact("steadiness")]
    base = alt.Chart(alt.Data(values=rows)).encode(
        across, down, tooltip=[*told, alt.Tooltip("sigma:N", title="singular values")]
    )
    here = {"source": chosen[0], "target": chosen[1]} if chosen else {}
    mark = (
        alt.Chart(alt.Data(values=[here] if chosen else []))
        .mark_rect(fill=None, stroke=PALETTE["ink"][0], strokeWidth=2)
        .encode(across, down)
    )
    colours = {
        "gain": alt.Color(
            "gain:Q", scale=alt.Scale(type="log", scheme="viridis"), title="gain", legend=_bar()
        ),
        "gap": alt.Color(
            "gap:Q", scale=alt.Scale(scheme="viridis"), title="gap", legend=_bar(format="%")
        ),
    }
    height = 16 * len({pair.source for pair in layer_map.pairs}) + 60
    return {
        f"layer-map-{name}": dressed(
            (base.mark_rect().encode(colour) + mark).properties(height=height)
        )
        for name, colour in colours.items()
    }


def _bar(**options: Any) -> alt.Legend:
    return alt.Legend(gradientLength=140, tickCount=4, **options)


def places(summary: Summary) -> alt.Chart | None:
    """Draw where completions lie on the map, coloured by the verdict; equal ones are one point."""
    behaviours = {b.id: b for b in summary.behaviours}
    known = summary.texts[summary.texts[BEHAVIOUR].notna()]
    known = known[(known.phase == FIRST) & ((known.role == "asked") | (known.perturbation == 0))]
    unperturbed = set(known[BEHAVIOUR][known.perturbation == 0])
    texts = sorted(set(known.text))
    at = dict(zip(texts, plane(vectors(texts)).tolist(), strict=True))
    points = []
    for (arm, prompt, text), same in known.groupby(["arm", "prompt", "text"], sort=False):
        one = same.iloc[0]
        named = behaviours.get(int(one[BEHAVIOUR]))
        plain = arm == "unperturbed" or one[BEHAVIOUR] in unperturbed
        verdict = named.verdict if named else Verdict.SAME if plain else None
        points.append(
            {
                "x": _number(at[text][0]),
                "y": _number(at[text][1]),
                "arm": arm,
                "verdict": SHORT[verdict][0],
                "behaviour": label(named) if named else "",
                "perturbation": int(one.perturbation),
                "prompt": int(prompt),
                "sample": int(one["sample"]),
                "completions": len(same),
                "text": shorten(text, TOOLTIP_LENGTH),
            }
        )
    if not points:
        return None
    # The interesting ones are drawn last, over the others.
    layers = [SHORT[v][0] for v in (Verdict.SAME, None, *list(Verdict)[-2::-1])]
    points.sort(key=lambda p: (p["arm"] == "unperturbed", layers.index(p["verdict"])))
    there = {point["verdict"] for point in points}
    verdicts = [(name, role) for name, role in SHORT.values() if name in there]
    return (
        alt.Chart(alt.Data(values=points))
        .mark_point(filled=True, opacity=0.8, cursor="pointer")
        .encode(
            alt.X("x:Q", axis=None, scale=alt.Scale(zero=False, nice=False, padding=12)),
            alt.Y("y:Q", axis=None, scale=alt.Scale(zero=False, nice=False, padding=12)),
            alt.Color(
                "verdict:N",
                scale=_colours(verdicts),
                legend=alt.Legend(title=None, orient="bottom", columns=3, symbolType="square"),
            ),
            alt.Shape(
                "arm:N",
                scale=alt.Scale(domain=ARMS, range=["circle", "diamond", "square", "cross"]),
                legend=alt.Legend(title=None, orient="top", symbolFillColor=PALETTE["control"][0]),
            ),
            size=alt.Size(
                "completions:Q",
                scale=alt.Scale(type="sqrt", domain=[1, 100], range=[44, 420], clamp=True),
                legend=None,
            ),
            stroke=alt.condition(
                "datum.arm == 'unperturbed'",
                alt.value(PALETTE["ink"][0]),
                alt.value("transparent"),
            ),
            tooltip=["arm:N", "completions:Q", "behaviour:N", "verdict:N", "text:N"],
        )
        .add_params(
            alt.selection_interval(
                name="zoom", bind="scales", zoom="wheel![event.ctrlKey || event.metaKey]"
            )
        )
        .properties(height=420)
    )


def response(summary: Summary) -> alt.LayerChart | None:
    """Draw how the effect grows with the dose, on logarithmic axes.

    Not with the radius: the control of weight noise is vectors.
    """
    rows = [
        {
            "perturbation": item.row.id,
            "arm": arm,
            "dose": _number(r * item.row.dose / item.row.radius),
            "effect": _number(size),
        }
        for arm, items in (("control", summary.control), ("found", summary.found))
        for item in items
        for r, size in summary.responses.get(item.row.id, ())
        if r > 0 and size > 0
    ]
    if not rows:
        return None
    log = alt.Scale(type="log", nice=False, padding=4)
    axis = alt.Axis(values=[d * 10.0**e for e in range(-4, 7) for d in (1, 2, 5)], grid=False)
    along = alt.X("dose:Q", scale=log, title="dose", axis=axis)
    lines = (
        alt.Chart(alt.Data(values=rows))
        .mark_line(interpolate="monotone", opacity=0.85)
        .encode(
            along,
            alt.Y("effect:Q", scale=log, title="norm of the effect", axis=axis),
            _arm_colour("stroke"),
            detail="perturbation:N",
            strokeWidth=alt.condition("datum.arm == 'found'", alt.value(1.8), alt.value(1.1)),
            tooltip=["perturbation:N", "arm:N", _exact("dose"), _exact("effect")],
        )
    )
    used = [{"dose": _number(r / summary.facts["unit"])} for r in summary.facts.get("radii", ())]
    rules = (
        alt.Chart(alt.Data(values=used))
        .mark_rule(strokeDash=[3, 4], color=PALETTE["muted"][0])
        .encode(along, tooltip=[_exact("dose", "a dose searched")])
    )
    return (rules + lines).properties(height=300)


def interestingness(summary: Summary) -> alt.LayerChart | None:
    """Draw what share of each arm is at least so interesting."""
    rows = []
    for arm, items in (("found", summary.found), ("control", summary.control)):
        rows += [
            {
                "arm": arm,
                "interestingness": _number(item.interestingness),
                "share": _number((place + 1) / len(items)),
                "perturbation": item.row.id,
                "text": shorten(item.best.text if item.best else "", TOOLTIP_LENGTH),
            }
            for place, item in enumerate(items)
        ]
    if not rows:
        return None
    base = alt.Chart(alt.Data(values=rows)).encode(
        alt.X(
            "interestingness:Q",
            scale=alt.Scale(domainMin=0, nice=True),
            axis=alt.Axis(tickCount=6, grid=False),
            title="interestingness",
        ),
        alt.Y(
            "share:Q",
            scale=alt.Scale(domain=[0, 1]),
            axis=alt.Axis(format="%", tickCount=5),
            title="share at least this interesting",
        ),
        _arm_colour(),
    )
    steps = base.mark_line(interpolate="step-before", strokeWidth=1.6).encode(
        order=alt.Order("share:Q", sort="descending")
    )
    dots = base.mark_point(filled=True, size=34, opacity=0.9).encode(
        tooltip=["perturbation:N", "arm:N", _exact("interestingness"), "text:N"]
    )
    return (steps + dots).properties(height=280)


def by_radius(summary: Summary) -> alt.LayerChart | None:
    """Draw the share of perturbations that hit the pattern at each radius, with intervals."""
    doses = {i.row.radius: i.row.dose for i in (*summary.found, *summary.control)}
    rows = [
        {
            "radius": f"{radius:.3g} (dose {dose(doses[radius])})",
            "arm": arm,
            "share": _number(its.share),
            "low": _number(its.low),
            "high": _number(its.high),
            "hits": f"{its.hits} of {its.trials}",
        }
        for radius, pair in summary.by_radius.items()
        for arm, its in zip(ARMS[:2], pair, strict=True)
        if its.trials
    ]
    if not rows:
        return None
    order = list(dict.fromkeys(row["radius"] for row in rows))
    base = alt.Chart(alt.Data(values=rows)).encode(
        alt.X("radius:N", sort=order, title="radius", axis=alt.Axis(labelAngle=0, labelLimit=110)),
        alt.XOffset("arm:N", sort=ARMS[:2], scale=alt.Scale(paddingOuter=1)),
        _arm_colour(),
        tooltip=["radius:N", "arm:N", "hits:N", _percent("low"), _percent("high")],
    )
    bars = base.mark_rule(strokeWidth=2).encode(
        alt.Y("low:Q", title="share with a match", axis=alt.Axis(format="%", tickCount=5)),
        alt.Y2("high:Q"),
    )
    dots = base.mark_point(filled=True, size=80, opacity=1).encode(alt.Y("share:Q"))
    return (bars + dots).properties(height=280)


def label(behaviour: Behaviour, words: int = 5) -> str:
    """Return the words that a behaviour is called by."""
    return "\u00a0· ".join(shorten(w, 32) for w in behaviour.words[:words]) or "no words"


def shorten(text: str, length: int) -> str:
    """Return a text on one line, cut at a length."""
    line = one_line(text)
    return line if len(line) <= length else line[: length - 1] + "…"


def interval(of: Rate | tuple[float, float, float]) -> tuple[float, float, float]:
    """Return value, low and high of a rate or a mean."""
    return (of.share, of.low, of.high) if isinstance(of, Rate) else of


def _arm_colour(symbol: str = "circle") -> alt.Color:
    legend = alt.Legend(title=None, orient="top", symbolType=symbol, symbolStrokeWidth=2)
    arms = [("found", "accent"), ("control", "control")]
    return alt.Color("arm:N", scale=_colours(arms), legend=legend)


def _colours(pairs: Sequence[tuple[str, str]]) -> alt.Scale:
    return alt.Scale(domain=[n for n, _ in pairs], range=[PALETTE[role][0] for _, role in pairs])


def _exact(field: str, title: str | None = None) -> alt.Tooltip:
    return alt.Tooltip(f"{field}:Q", format=".3~g", title=title or field)


def _percent(field: str) -> alt.Tooltip:
    return alt.Tooltip(f"{field}:Q", format=".0%")


def _number(value: float) -> float | None:
    return float(f"{value:.4g}") if math.isfinite(value) else None


def dressed(chart: alt.Chart | alt.LayerChart) -> dict[str, Any]:
    """Return the specification of a chart in the page's style."""
    ink, muted, line = (PALETTE[role][0] for role in ("ink", "muted", "line"))
    return (
        chart.properties(width="container", background="transparent")
        .properties(autosize=alt.AutoSizeParams(type="fit-x", contains="padding"))
        .configure(font=FONT)
        .configure_view(stroke=line)
        .configure_axis(
            labelColor=muted,
            titleColor=muted,
            titleFontWeight="normal",
            labelFontSize=12,
            titleFontSize=12,
            titlePadding=10,
            domainColor=line,
            tickColor=line,
            gridColor=line,
        )
        .configure_legend(labelColor=ink, labelFontSize=12, labelLimit=160)
        .to_dict()
    )
