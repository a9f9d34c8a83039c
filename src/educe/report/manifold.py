"""Manifold reports, as charts and as rows of tables."""

from __future__ import annotations

import re
from collections.abc import Mapping
from statistics import median
from typing import Any, NamedTuple

import altair as alt

from educe.activations import stored
from educe.activations.report import (
    ABLATED,
    FORMS,
    INSIDE,
    ON_TEXTS,
    OUTSIDE,
    RANDOM,
    ManifoldReport,
    Range,
    words,
)
from educe.inversion import kept
from educe.inversion.report import RANDOM as REACHED_RANDOM
from educe.inversion.report import Test
from educe.report.figures import PALETTE, dressed
from educe.report.part import Part, Shown, together
from educe.report.templates import figure, fragment
from educe.run.store import Run

KINDS = {"perturbation": "accent", "natural differences": "rare", "random vectors": "control"}


def charts(report: ManifoldReport, reached: Test | None = None) -> dict[str, dict[str, Any]]:
    """Return the specifications of a report's charts, by name."""
    drawn = {
        "spectrum": spectrum(report.spectrum),
        "depth": depth(report),
        "growth": growth(report),
    }
    if report.facts.read_rank:
        drawn["present-read"] = present_and_read(report, reached)
    return {f"{name}-{report.number}": dressed(chart) for name, chart in drawn.items()}


class Row(NamedTuple):
    """The model on held-out texts: scores by judge, of controls the median."""

    name: str
    scores: Mapping[str, Any]


def on_texts(report: ManifoldReport) -> list[Row]:
    """Return what the model makes of held-out texts, in each way that it is perturbed."""
    rows = [
        Row("unperturbed", {judge: report[judge].still for judge in ON_TEXTS}),
        Row("the perturbation", {judge: report[judge].found for judge in ON_TEXTS}),
    ]
    rows += [
        Row(f"its {how}", one.scores) for how in (INSIDE, OUTSIDE) for one in report.outcomes(how)
    ]
    names = {"natural": "natural differences", "random": "random vectors"}
    for (kind, name), n in zip(names.items(), report.facts.tried, strict=True):
        of = {judge: getattr(report[judge], kind) for judge in ON_TEXTS}
        kl = of["heldout_kl"]
        told = f"{n} {name}, median (KL {kl.low:.3f} to {kl.high:.3f})"
        rows.append(Row(told, {judge: values.median for judge, values in of.items()}))
    return rows


class Ablated(NamedTuple):
    """The model without the direction: its scores, and the range of those of random directions."""

    form: str
    scores: Mapping[str, float]
    random: Mapping[str, Range]


def ablated(report: ManifoldReport) -> list[Ablated]:
    """Return what taking the direction away does, in each form."""
    return [
        Ablated(
            form,
            one.scores,
            {judge: report.range(RANDOM + ABLATED.format(form), judge) for judge in one.scores},
        )
        for form in FORMS
        for one in report.outcomes(ABLATED.format(form))
    ]


def texts(report: ManifoldReport) -> list[tuple[str, str]]:
    """Return what the model writes to the first prompt: how it is changed, and the text."""
    own = zip(("unperturbed", "the perturbation"), report.texts, strict=False)
    every = [*own, *((one.how, one.text) for one in report.derived)]
    return [(how, text) for how, text in every if text is not None]


def spectrum(curves: Mapping[str, list[float]]) -> alt.LayerChart:
    """Draw the energy within the first directions, for more and more of them."""
    names = {
        "perturbation": "found",
        "natural differences": "natural",
        "random vectors": "random",
        "held-out activations": "held-out activations",
    }
    rows = [
        {"directions": count, "energy": energy, "of": name}
        for name, curve in names.items()
        for count, energy in zip(curves["directions"], curves[curve], strict=True)
    ]
    edges = (curves[name] for name in ("directions", "natural low", "natural high"))
    band = [
        {"directions": count, "low": low, "high": high}
        for count, low, high in zip(*edges, strict=True)
    ]
    along = alt.X("directions:Q", scale=alt.Scale(type="log", nice=False), title="directions")
    lines = (
        _chart(rows)
        .mark_line(strokeWidth=2)
        .encode(
            along,
            _share("energy", "energy within"),
            _colour({**KINDS, "held-out activations": "ink"}),
            tooltip=["of:N", "directions:Q", alt.Tooltip("energy:Q", format=".1%")],
        )
    )
    spread = (
        _chart(band)
        .mark_area(opacity=0.18, color=PALETTE["rare"][0])
        .encode(along, alt.Y("low:Q", title="energy within"), alt.Y2("high:Q"))
    )
    return (spread + lines).properties(height=300)


def depth(report: ManifoldReport) -> alt.LayerChart:
    """Draw how far out perturbed activations lie, layer by layer."""
    rows, unmoved = [], []
    for layer in report.facts.layers:
        own = report.at("distance", layer)
        alone = Range(own.found, own.found, own.found)
        for name, of in zip(KINDS, (alone, own.natural, own.random), strict=True):
            there = {"at": of.median, "low": of.low, "high": of.high}
            rows.append({"of": name, "layer": layer, "enough": report.enough(layer), **there})
        unmoved.append({"layer": layer, "at": own.still})
    base = _chart(rows).encode(
        alt.X("layer:O", title="layer", axis=alt.Axis(labelAngle=0)),
        alt.XOffset("of:N", sort=list(KINDS), scale=alt.Scale(paddingOuter=1)),
        _colour(KINDS),
        tooltip=["of:N", "layer:O", alt.Tooltip("at:Q", format=".0%")],
    )
    up = _share("at", "median percentile")
    bars = base.mark_rule(strokeWidth=2).encode(
        alt.Y("low:Q", title="median percentile"), alt.Y2("high:Q")
    )
    dots = base.mark_point(size=80, opacity=1).encode(
        up,
        alt.Fill("of:N", scale=_scale(KINDS), legend=None),
        fillOpacity=alt.condition("datum.enough", alt.value(1), alt.value(0)),
    )
    told = [alt.Tooltip("at:Q", format=".0%", title="unperturbed")]
    ticks = _chart(unmoved).mark_tick(thickness=2, color=PALETTE["muted"][0], width=60)
    return (ticks.encode(alt.X("layer:O"), up, tooltip=told) + bars + dots).properties(height=300)


def present_and_read(report: ManifoldReport, reached: Test | None = None) -> alt.LayerChart:
    """Draw how much of the vector, and of its controls, is present and read, and reachable."""
    shares = dict.fromkeys(KINDS, "")
    if reached is not None:
        kinds = ([reached.found], reached.made, reached.of(REACHED_RANDOM))
        for name, cases in zip(KINDS, kinds, strict=True):
            if cases:
                shares[name] = f"reached to {median(case.share for case in cases):.0%}"
    rows = []
    for name, field in zip(KINDS, ("found", "natural", "random"), strict=True):
        across, up = (getattr(report[judge], field) for judge in ("energy_top", "read"))
        if field == "found":
            across, up = (Range(value, value, value) for value in (across, up))
        ends = {"left": across.low, "right": across.high, "low": up.low, "high": up.high}
        at = {"present": across.median, "read": up.median, "reached": shares[name]}
        rows.append({"of": name, **at, **ends})
    base = _chart(rows).encode(_colour(KINDS), tooltip=["of:N", "present:Q", "read:Q"])
    along = alt.X("present:Q", scale=alt.Scale(domain=[0, 1]), axis=alt.Axis(format="%"))
    wide = base.mark_rule().encode(
        alt.X("left:Q", title="present"), alt.X2("right:Q"), _share("read")
    )
    tall = base.mark_rule().encode(along, alt.Y("low:Q", title="read"), alt.Y2("high:Q"))
    dots = base.mark_point(size=90, filled=True, opacity=1).encode(along, _share("read"))
    told = base.mark_text(align="left", dx=9, dy=-9).encode(along, _share("read"), text="reached:N")
    return (wide + tall + dots + told).properties(height=280)


def growth(report: ManifoldReport) -> alt.LayerChart:
    """Draw what the measures say as the corpus grows."""
    sizes = report.coverage[report.facts.layer]
    names = {
        "percentile of the energy inside": "energy_top",
        "percentile of the length": "mahalanobis",
    }
    rows = [
        {"tokens": known.tokens, "percentile": at.percentile, "of": name}
        for name, judge in names.items()
        for known, at in zip(sizes, report.standings[judge], strict=True)
    ]
    along = alt.X("tokens:Q", scale=alt.Scale(type="log", nice=False, padding=12), title="tokens")
    percentiles = (
        _chart(rows)
        .mark_line(point=True, strokeWidth=2)
        .encode(
            along,
            _share("percentile"),
            _colour(dict(zip(names, ("accent", "fragile"), strict=True))),
            tooltip=["of:N", "tokens:Q", alt.Tooltip("percentile:Q", format=".1%")],
        )
    )
    ends = dict.fromkeys((0, len(sizes) - 1))
    far = [{"tokens": sizes[i].tokens, "told": f"held-out × {sizes[i].optimism:.2f}"} for i in ends]
    labels = _chart(far).mark_text(color=PALETTE["muted"][0], fontSize=12)
    return (percentiles + labels.encode(along, alt.YDatum(0.5), text="told:N")).properties(
        height=260
    )


def _chart(rows: list[dict[str, Any]]) -> alt.Chart:
    return alt.Chart(alt.Data(values=rows))


def _share(field: str, title: str | None = None) -> alt.Y:
    """Return an axis from none to all."""
    axis = alt.Axis(format="%", tickCount=5)
    return alt.Y(f"{field}:Q", scale=alt.Scale(domain=[0, 1]), axis=axis, title=title or field)


def _colour(roles: dict[str, str]) -> alt.Color:
    legend = alt.Legend(title=None, orient="top", columns=2, labelLimit=260)
    return alt.Color("of:N", scale=_scale(roles), legend=legend)


def _scale(roles: dict[str, str]) -> alt.Scale:
    return alt.Scale(domain=list(roles), range=[PALETTE[role][0] for role in roles.values()])


def render(run: Run, pattern: re.Pattern[str] | None) -> Shown | None:
    """Return the manifold reports of a run."""
    examined = stored.reports(run)
    reached = {one.number: one.tests[0] for one in kept.reports(run)}
    shown = {"words": words, "on_texts": on_texts, "ablated": ablated, "texts": texts}
    html = fragment(
        "manifold.html", pattern, reports=examined, figure=figure, reached=reached, **shown
    )
    drawn = (charts(report, reached.get(report.number)) for report in examined)
    return Shown(html, together(drawn)) if examined else None


PART = Part("manifold", "On or off the manifold", render)
