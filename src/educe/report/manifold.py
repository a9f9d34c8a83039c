"""Manifold reports: where perturbations stand among activations that really occur."""

from __future__ import annotations

import re
from collections.abc import Mapping
from statistics import median

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
from educe.report import words as report_words
from educe.report.document import Block, Card, Fold, Part, Table, Text, heads, wrote
from educe.report.drawing import (
    PALETTE,
    WHOLE,
    colour,
    figure,
    lines,
    over,
    percent,
    scale,
    share,
)
from educe.report.words import said
from educe.run.store import Run

KINDS = {"perturbation": "accent", "natural differences": "rare", "random vectors": "control"}
SPECTRA = {**KINDS, "held-out activations": "ink"}
#: What is measured along the depth, and what of a direction that is taken away.
DEPTH = {"distance": ".0%", "nearest": ".0%", "energy": ".2f", "size": ".2f"}
ABLATIONS = ("heldout_kl", "heldout_same", "heldout_perplexity")


def part(run: Run, pattern: re.Pattern[str] | None) -> Part | None:
    """Return the manifold reports of a run."""
    tests = reached(run)
    cards = [card(one, tests.get(one.number), pattern) for one in stored.reports(run)]
    return report_words.part("manifold", cards) if cards else None


def reached(run: Run) -> dict[int, Test]:
    """Return how far a text reaches each perturbation that was inverted, by the first aim."""
    return {one.number: one.tests[0] for one in kept.reports(run)}


def card(
    r: ManifoldReport, reached: Test | None = None, pattern: re.Pattern[str] | None = None
) -> Card:
    """Return a manifold report, and how far a text reaches the perturbation."""
    f, folds, three = r.facts, list[Block](), list[Block]()
    if texts := [[how, wrote(text, pattern, most=400)] for how, text in _texts(r)]:
        table = Table(heads("how", "it writes:texts"), texts)
        folds.append(Fold("What it writes to the first prompt", [table], open=True))
    drawn = {"spectrum": spectrum(r.spectrum), "depth": depth(r), "growth": growth(r)}
    if f.read_rank:
        drawn = {"present-read": present_and_read(r, reached), **drawn}
        three.append(Text(_three(r, reached)))
    return Card(
        f"#{r.number}",
        [r.arm, f"layer {f.layer}", f"norm {f.norm:.3g}"],
        [
            Text(words(r), "lead"),
            *three,
            _at_its_layer(r),
            _along_depth(r),
            _on_texts(r),
            *_ablated(r),
            *folds,
            *(figure(n, c, r.number, added=f.added, tried=f.tried) for n, c in drawn.items()),
            Fold("With more text, along the depth", [_more(r)]),
        ],
    )


def _three(r: ManifoldReport, reached: Test | None) -> str:
    by = said("manifold", "unasked")
    if reached is not None:
        share, verdict = reached.found.share, reached.verdict.value
        by = said("manifold", "reached", share=share, verdict=verdict)
    present, read = r["energy_top"].found, r["read"].found
    return said("manifold", "three", present=present, read=read, reached=by)


def _at_its_layer(r: ManifoldReport) -> Table:
    f = r.facts
    columns = heads("at its layer", "this:.3~g", "natural", "random", "%ile:.1%")
    columns += heads("among random:.1%*", "among activations:.1%*")
    rows = [
        [
            *(title, of.found, _range(of.natural), _range(of.random)),
            *(of.percentile, of.among_random, of.activations),
        ]
        for known, title, judge in (
            (f.massive, "energy in massive", "energy_massive"),
            (True, f"energy in top {f.rank} of {f.width}", "energy_top"),
            (True, "Mahalanobis, same norm", "mahalanobis"),
            (True, "Mahalanobis, own norms", "mahalanobis_own"),
            (f.prompt_rank, f"energy in prompts' {f.prompt_rank}", "energy_prompt"),
            (f.read_rank, f"energy in {f.read_rank} that are read", "read"),
        )
        if known
        for of in [r[judge]]
    ]
    left = f"massive coordinates {', '.join(map(str, f.massive))}" if f.massive else "no coordinate"
    read = f.read_rank / f.width
    return Table(columns, rows, said("tables", "at-its-layer", f=f, read=read, massive=left))


def _along_depth(r: ManifoldReport) -> Table:
    f, columns = r.facts, heads("along the depth", "still:.0%")
    for judge, form in DEPTH.items():
        page = "*" * (judge != "distance")
        columns += heads(*(f"{n}:{form}{page}" for n in (judge, "natural", "random")))
        columns += heads(f"above:.0%{page}")
    rows = []
    for layer in f.layers:
        row = [f"layer {layer}{'' if r.enough(layer) else '?'}", r.at("distance", layer).still]
        for judge in DEPTH:
            of = r.at(judge, layer)
            above = None if (layer, judge) == (f.layer, "size") else of.percentile
            row += [of.found, of.natural.median, of.random.median, above]
        rows.append(row)
    return Table(columns, rows, said("tables", "along-depth", f=f))


def _on_texts(r: ManifoldReport) -> Table:
    """Return what the model makes of held-out texts, in each way that it is perturbed."""
    rows: list[tuple[str, Mapping[str, float | None]]] = [
        ("unperturbed", {judge: r[judge].still for judge in ON_TEXTS}),
        ("the perturbation", {judge: r[judge].found for judge in ON_TEXTS}),
        *((f"its {h}", one.scores) for h in (INSIDE, OUTSIDE) for one in r.outcomes(h)),
    ]
    for kind, n in zip(("natural", "random"), r.facts.tried, strict=True):
        of = {judge: getattr(r[judge], kind) for judge in ON_TEXTS}
        kl = of["heldout_kl"]
        told = f"{n} {kind}, median (KL {kl.low:.3f} to {kl.high:.3f})"
        rows.append((told, {judge: values.median for judge, values in of.items()}))
    columns = heads("on held-out text", "KL:.3f", "same:.0%", "entropy:.2f", "perplexity:.3~g")
    cells = [[name, *(own[judge] for judge in ON_TEXTS)] for name, own in rows]
    return Table(columns, cells, said("tables", "held-out"))


def _ablated(r: ManifoldReport) -> list[Table]:
    """Return what taking the direction away does, in each form."""
    rows = []
    for form in FORMS:
        for one in r.outcomes(how := ABLATED.format(form)):
            beside = [_range(r.range(RANDOM + how, judge)) for judge in ABLATIONS]
            own = [one.scores[judge] for judge in ABLATIONS]
            each = [cell for pair in zip(own, beside, strict=True) for cell in pair]
            rows.append([form, one.scores["energy_unused"], one.scores["variance_unused"], *each])
    columns = heads("its direction taken away", "unused:.1%", "variance there:.1%*", "KL:.3f")
    columns += heads("random", "same:.2f*", "random*", "perplexity:.3~g*", "random*")
    return [Table(columns, rows, said("tables", "ablated", f=r.facts))] if rows else []


def _more(r: ManifoldReport) -> Table:
    columns = heads("layer", "tokens:d", "held out, times as far:.2f", "enough", "distance:.0%")
    columns += heads("above natural:.0%", "nearest:.0%", "above natural:.0%")
    rows = []
    for layer in r.facts.layers:
        for size, known in enumerate(r.coverage[layer]):
            row = [
                str(layer),
                known.tokens,
                known.optimism,
                "yes" if known.enough else "too little",
            ]
            for judge in ("distance", "nearest"):
                of = r.standings[f"{judge}_{layer}"][size]
                row += [of.found, of.percentile]
            rows.append(row)
    return Table(columns, rows)


def _texts(r: ManifoldReport) -> list[tuple[str, str]]:
    """Return what the model writes to the first prompt: how it is changed, and the text."""
    own = zip(("unperturbed", "the perturbation"), r.texts, strict=False)
    every = [*own, *((one.how, one.text) for one in r.derived)]
    return [(how, text) for how, text in every if text is not None]


def _range(of: Range) -> str:
    return f"{of.median:.3g} ({of.low:.3g}–{of.high:.3g})"


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
    up, by = share("energy", "energy within"), colour("of", SPECTRA, columns=2)
    told = ("of:N", "directions:Q", *percent("energy", digits=1))
    spread = (
        over(band)
        .mark_area(opacity=0.18, color=PALETTE["rare"][0])
        .encode(along, alt.Y("low:Q", title="energy within"), alt.Y2("high:Q"))
    )
    return (spread + lines(rows, along, up, by, *told)).properties(height=300)


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
    by = colour("of", KINDS, columns=2)
    base = over(rows).encode(
        alt.X("layer:O", title="layer", axis=alt.Axis(labelAngle=0)),
        alt.XOffset("of:N", sort=list(KINDS), scale=alt.Scale(paddingOuter=1)),
        by,
        tooltip=["of:N", "layer:O", *percent("at")],
    )
    up = share("at", "median percentile")
    bars = base.mark_rule(strokeWidth=2).encode(
        alt.Y("low:Q", title="median percentile"), alt.Y2("high:Q")
    )
    dots = base.mark_point(size=80, opacity=1).encode(
        up,
        alt.Fill("of:N", scale=scale(KINDS), legend=by["legend"]),
        fillOpacity=alt.condition("datum.enough", alt.value(1), alt.value(0)),
    )
    told = [alt.Tooltip("at:Q", format=".0%", title="unperturbed")]
    ticks = over(unmoved).mark_tick(thickness=2, color=PALETTE["muted"][0], width=60)
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
    told = ["of:N", "present:Q", "read:Q"]
    base = over(rows).encode(colour("of", KINDS, columns=2), tooltip=told)
    along = alt.X("present:Q", scale=WHOLE, axis=alt.Axis(format="%"))
    wide = base.mark_rule().encode(
        alt.X("left:Q", title="present"), alt.X2("right:Q"), share("read", "read")
    )
    tall = base.mark_rule().encode(along, alt.Y("low:Q", title="read"), alt.Y2("high:Q"))
    dots = base.mark_point(size=90, filled=True, opacity=1).encode(along, share("read", "read"))
    texts = base.mark_text(dy=-12)
    beside = texts.encode(along, share("read", "read"), text="reached:N")
    return (wide + tall + dots + beside).properties(height=280)


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
    by = colour("of", dict(zip(names, ("accent", "fragile"), strict=True)))
    told = ("of:N", "tokens:Q", *percent("percentile", digits=1))
    drawn = lines(rows, along, share("percentile", "percentile"), by, *told, point=True)
    ends = dict.fromkeys((0, len(sizes) - 1))
    far = [{"tokens": sizes[i].tokens, "told": f"held-out × {sizes[i].optimism:.2f}"} for i in ends]
    labels = over(far).mark_text(color=PALETTE["muted"][0], fontSize=12)
    known = labels.encode(along, alt.YDatum(0.5), text="told:N")
    return (drawn + known).properties(height=260)
