"""Passports of perturbations, as charts and as rows; they are read from the run as JSON."""

from __future__ import annotations

from typing import Any

import altair as alt
import numpy as np

from educe.report.figures import PALETTE, dressed

#: How a direction is taken away.
FORMS = {"origin": "about the origin", "mean": "about the mean", "oblique": "obliquely, by Σ"}
MEASURED = ("kl", "same", "entropy", "perplexity")
KINDS = {"perturbation": "accent", "natural differences": "rare", "random vectors": "control"}


def charts(passport: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the specifications of a passport's charts, by name."""
    drawn = {
        "spectrum": spectrum(passport["spectrum"]),
        "depth": depth(passport["depth"]),
        "growth": growth(passport["growth"]),
    }
    return {f"{name}-{passport['number']}": dressed(chart) for name, chart in drawn.items()}


def spectrum(curves: dict[str, list[float]]) -> alt.LayerChart:
    """Draw the energy within the first directions, for more and more of them."""
    counts = curves["directions"]
    names = {
        "perturbation": "found",
        "natural differences": "natural",
        "random vectors": "random",
        "held-out activations": "held-out activations",
    }
    rows = [
        {"directions": count, "energy": energy, "of": name}
        for name, curve in names.items()
        for count, energy in zip(counts, curves[curve], strict=True)
    ]
    band = [
        {"directions": count, "low": low, "high": high}
        for count, low, high in zip(
            counts, curves["natural low"], curves["natural high"], strict=True
        )
    ]
    along = alt.X("directions:Q", scale=alt.Scale(type="log", nice=False), title="directions")
    lines = (
        alt.Chart(alt.Data(values=rows))
        .mark_line(strokeWidth=2)
        .encode(
            along,
            alt.Y(
                "energy:Q",
                scale=alt.Scale(domain=[0, 1]),
                axis=alt.Axis(format="%", tickCount=5),
                title="energy within",
            ),
            _colour({**KINDS, "held-out activations": "ink"}),
            tooltip=["of:N", "directions:Q", alt.Tooltip("energy:Q", format=".1%")],
        )
    )
    spread = (
        alt.Chart(alt.Data(values=band))
        .mark_area(opacity=0.18, color=PALETTE["rare"][0])
        .encode(along, alt.Y("low:Q", title="energy within"), alt.Y2("high:Q"))
    )
    return (spread + lines).properties(height=300)


def depth(layers: list[dict[str, Any]]) -> alt.LayerChart:
    """Draw how far out perturbed activations lie, layer by layer."""
    rows = []
    for at in layers:
        standing = at["distance"]
        rows.append({"of": "perturbation", "at": standing["found"]} | _spread(standing["found"]))
        for name, key in (("natural differences", "natural"), ("random vectors", "random")):
            rows.append({"of": name, "at": standing[key]["median"]} | _spread(standing[key]))
        for row in rows[-3:]:
            row |= {"layer": at["layer"], "enough": at["enough"]}
    base = alt.Chart(alt.Data(values=rows)).encode(
        alt.X("layer:O", title="layer", axis=alt.Axis(labelAngle=0)),
        alt.XOffset("of:N", sort=list(KINDS), scale=alt.Scale(paddingOuter=1)),
        _colour(KINDS),
        tooltip=["of:N", "layer:O", alt.Tooltip("at:Q", format=".0%")],
    )
    up = alt.Y(
        "at:Q",
        scale=alt.Scale(domain=[0, 1]),
        axis=alt.Axis(format="%", tickCount=5),
        title="median percentile",
    )
    bars = base.mark_rule(strokeWidth=2).encode(
        alt.Y("low:Q", title="median percentile"), alt.Y2("high:Q")
    )
    dots = base.mark_point(size=80, opacity=1).encode(
        up, fillOpacity=alt.condition("datum.enough", alt.value(1), alt.value(0)), fill=_fill(KINDS)
    )
    unmoved = [{"layer": at["layer"], "at": at["still_distance"]} for at in layers]
    ticks = (
        alt.Chart(alt.Data(values=unmoved))
        .mark_tick(thickness=2, color=PALETTE["muted"][0], width=60)
        .encode(
            alt.X("layer:O"), up, tooltip=[alt.Tooltip("at:Q", format=".0%", title="unperturbed")]
        )
    )
    return (ticks + bars + dots).properties(height=300)


def growth(sizes: list[dict[str, Any]]) -> alt.LayerChart:
    """Draw what the measures say as the corpus grows."""
    names = {"percentile of the energy inside": "share", "percentile of the length": "length"}
    rows = [
        {"tokens": at["tokens"], "percentile": at[key], "of": name}
        for at in sizes
        for name, key in names.items()
    ]
    roles = dict(zip(names, ("accent", "noise"), strict=True))
    along = alt.X("tokens:Q", scale=alt.Scale(type="log", nice=False, padding=12), title="tokens")
    percentiles = (
        alt.Chart(alt.Data(values=rows))
        .mark_line(point=True, strokeWidth=2)
        .encode(
            along,
            alt.Y(
                "percentile:Q",
                scale=alt.Scale(domain=[0, 1]),
                axis=alt.Axis(format="%", tickCount=5),
            ),
            _colour(roles),
            tooltip=["of:N", "tokens:Q", alt.Tooltip("percentile:Q", format=".1%")],
        )
    )
    ends = dict.fromkeys((0, len(sizes) - 1))
    far = [
        {"tokens": sizes[i]["tokens"], "told": f"held-out × {sizes[i]['optimism']:.2f}"}
        for i in ends
    ]
    labels = (
        alt.Chart(alt.Data(values=far))
        .mark_text(color=PALETTE["muted"][0], fontSize=12)
        .encode(along, alt.YDatum(0.5), text="told:N")
    )
    return (percentiles + labels).properties(height=260)


def told(passport: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the outputs of the perturbed models, those of each control as their median."""
    shown = [o for o in passport["outputs"] if not _control(o["name"])]
    for name in ("natural", "random"):
        own = [o for o in passport["outputs"] if _control(o["name"]) == name]
        middle = {k: float(np.median([o[k] for o in own])) for k in MEASURED}
        kind = "natural differences" if name == "natural" else "random vectors"
        lows, highs = min(o["kl"] for o in own), max(o["kl"] for o in own)
        said = f"{len(own)} {kind}, median (KL {lows:.3f} to {highs:.3f})"
        shown.append({"name": said, **middle})
    return shown


def _control(name: str) -> str | None:
    word, _, number = name.partition(" ")
    return word if number.isdigit() else None


def _spread(of: Any) -> dict[str, float]:
    return (
        {"low": of["low"], "high": of["high"]} if isinstance(of, dict) else {"low": of, "high": of}
    )


def _colour(roles: dict[str, str]) -> alt.Color:
    legend = alt.Legend(title=None, orient="top", columns=2, labelLimit=260)
    return alt.Color("of:N", scale=_scale(roles), legend=legend)


def _fill(roles: dict[str, str]) -> alt.Fill:
    return alt.Fill("of:N", scale=_scale(roles), legend=None)


def _scale(roles: dict[str, str]) -> alt.Scale:
    return alt.Scale(domain=list(roles), range=[PALETTE[role][0] for role in roles.values()])
