"""Charts of a run as Vega-Lite specifications, in the colours of a light page.

`PALETTE` has the colour of each role on a dark page too; the page swaps them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import altair as alt

from educe.atlas import Atlas
from educe.cluster import plane
from educe.judge.novelty import vectors
from educe.rows import CompletionRow, Row
from educe.stats import Rate
from educe.summary import Behaviour, Item, Summary, Verdict, dose
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
    "held": ("#4b7f2c", "#93c572"),
    "rare": ("#a8730f", "#dfab4a"),
    "noise": ("#7573b8", "#a5a3e6"),
    "damage": ("#b05c52", "#dd8a7f"),
    "same": ("#b3b8bc", "#5a6168"),
}

#: What a completion's behaviour is called on the map, and its colour.
SHORT = {
    Verdict.BEHAVIOUR: ("stands out", "accent"),
    Verdict.HELD: ("held to", "held"),
    Verdict.RARE: ("rare", "rare"),
    Verdict.NOISE: ("random as well", "noise"),
    Verdict.DAMAGE: ("damaged", "damage"),
    Verdict.SAME: ("as before", "same"),
    None: ("only random", "control"),
}

FONT = "Segoe UI, Roboto, Helvetica Neue, Noto Sans, Liberation Sans, Arial, sans-serif"
ARMS = ["found", "random", "unperturbed"]
TOOLTIP_LENGTH = 220


def charts(summary: Summary, atlas: Atlas | None = None) -> dict[str, dict[str, Any]]:
    """Return the specifications of the charts for which a run has numbers, by name."""
    drawn = {
        "map": places(summary),
        "response": response(summary),
        "striking": striking(summary),
        "radius": by_radius(summary),
    }
    layers = {}
    if atlas is not None:
        layers = survey(atlas, (summary.facts["source"], summary.facts["target"]))
    return {name: dressed(chart) for name, chart in drawn.items() if chart is not None} | layers


def survey(atlas: Atlas, chosen: tuple[int, int] | None = None) -> dict[str, dict[str, Any]]:
    """Return the heat maps of an atlas: what a small dose becomes, and the first spectral gap."""
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
            atlas.pairs, atlas.gain, atlas.gap, atlas.steadiness, atlas.sigma, strict=True
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
    height = 16 * len({pair.source for pair in atlas.pairs}) + 60
    return {
        f"atlas-{name}": dressed((base.mark_rect().encode(colour) + mark).properties(height=height))
        for name, colour in colours.items()
    }


def _bar(**options: Any) -> alt.Legend:
    return alt.Legend(gradientLength=140, tickCount=4, **options)


def places(summary: Summary) -> alt.Chart | None:
    """Draw where completions lie on the map, coloured by the verdict; equal ones are one point."""
    behaviours = {b.id: b for b in summary.behaviours}
    arms = [
        ("unperturbed", [c for own in summary.baseline.values() for c in own]),
        ("random", [c for item in summary.control for c in item.completions]),
        ("found", [c for item in summary.found for c in item.completions]),
    ]
    rows: dict[tuple, dict[str, Any]] = {}
    texts = sorted({c.text for _, some in arms for c in some if c.row in summary.map})
    at = dict(zip(texts, plane(vectors(texts)).tolist(), strict=True))
    for arm, completions in arms:
        for c in (c for c in completions if c.row in summary.map):
            number, (x, y) = summary.map[c.row], at[c.text]
            named = behaviours.get(number)
            verdict = named.verdict if named else Verdict.SAME if arm == "unperturbed" else None
            point = {
                "x": _number(x),
                "y": _number(y),
                "arm": arm,
                "verdict": SHORT[verdict][0],
                "behaviour": label(named) if named else "",
                "perturbation": c.perturbation,
                "prompt": c.prompt,
                "sample": c.sample,
                "completions": 0,
                "text": shorten(c.text, TOOLTIP_LENGTH),
            }
            rows.setdefault((arm, c.prompt, c.text), point)["completions"] += 1
    if not rows:
        return None
    # The interesting ones are drawn last, over the others.
    layers = [SHORT[v][0] for v in (Verdict.SAME, None, *list(Verdict)[-2::-1])]
    points = sorted(
        rows.values(), key=lambda p: (p["arm"] == "unperturbed", layers.index(p["verdict"]))
    )
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
                scale=alt.Scale(domain=ARMS, range=["circle", "diamond", "cross"]),
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
        for arm, items in (("random", summary.control), ("found", summary.found))
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


def striking(summary: Summary) -> alt.LayerChart | None:
    """Draw what share of each arm is at least so striking."""
    rows = []
    for arm, items in (("found", summary.found), ("random", summary.control)):
        ordered = sorted(items, key=lambda item: -item.striking)
        rows += [
            {
                "arm": arm,
                "striking": _number(item.striking),
                "share": _number((place + 1) / len(ordered)),
                "perturbation": item.row.id,
                "text": shorten(best.text if best else "", TOOLTIP_LENGTH),
            }
            for place, item in enumerate(ordered)
            for best in [telling(item, summary)]
        ]
    if not rows:
        return None
    base = alt.Chart(alt.Data(values=rows)).encode(
        alt.X(
            "striking:Q",
            scale=alt.Scale(domainMin=0, nice=True),
            axis=alt.Axis(tickCount=6, grid=False),
            title="striking",
        ),
        alt.Y(
            "share:Q",
            scale=alt.Scale(domain=[0, 1]),
            axis=alt.Axis(format="%", tickCount=5),
            title="share at least this striking",
        ),
        _arm_colour(),
    )
    steps = base.mark_line(interpolate="step-before", strokeWidth=1.6).encode(
        order=alt.Order("share:Q", sort="descending")
    )
    dots = base.mark_point(filled=True, size=34, opacity=0.9).encode(
        tooltip=["perturbation:N", "arm:N", _exact("striking"), "text:N"]
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


def telling(item: Item, summary: Summary) -> CompletionRow | None:
    """Return the most striking of what a perturbation wrote."""

    def score(row: Row) -> float:
        each = summary.scores.get(row, {})
        return math.prod(each[j][0] if j in each else 0.0 for j in ("coherence", "novelty"))

    return max(item.completions, key=lambda c: score(c.row), default=None)


def shorten(text: str, length: int) -> str:
    """Return a text on one line, cut at a length."""
    line = one_line(text)
    return line if len(line) <= length else line[: length - 1] + "…"


def interval(of: Rate | tuple[float, float, float]) -> tuple[float, float, float]:
    """Return value, low and high of a rate or a mean."""
    return (of.share, of.low, of.high) if isinstance(of, Rate) else of


def _arm_colour(symbol: str = "circle") -> alt.Color:
    legend = alt.Legend(title=None, orient="top", symbolType=symbol, symbolStrokeWidth=2)
    arms = [("found", "accent"), ("random", "control")]
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
