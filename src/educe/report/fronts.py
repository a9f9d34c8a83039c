"""What perturbations cost beside what they do: fronts, sparse vectors, ungated adapters."""

from __future__ import annotations

import re
from collections.abc import Sequence

import altair as alt
import pandas as pd

from educe.comparison.account import dose
from educe.report import derived, words
from educe.report.derived import Point, Scan, Sparse
from educe.report.document import Block, Card, Part, Table, heads, wrote
from educe.report.drawing import (
    ARMS,
    LOG,
    PALETTE,
    banded,
    colour,
    exact,
    figure,
    lines,
    over,
    percent,
    rule,
    share,
)
from educe.report.words import said
from educe.run.store import Run

#: What each order of groups is called, and its colour.
ORDERS = {"lasso": "accent", "largest": "rare", "random": "control"}


def part(run: Run, pattern: re.Pattern[str] | None) -> Part | None:
    """Return what perturbations of a run cost beside what they do."""
    made: list[Block] = []
    for i, (judge, points) in enumerate(derived.fronts(run).items()):
        made += [figure("front", front(points), i, judge=judge), *budgets(points)]
    made += [sparse(one, i, pattern) for i, one in enumerate(derived.sparse(run))]
    made += [ungated(one, i, pattern) for i, one in enumerate(derived.scans(run))]
    return words.part("fronts", made) if made else None


def budgets(points: Sequence[Point]) -> list[Block]:
    """Return the front of what was found, and both arms within budgets of side effect."""
    best = sorted((p for p in points if p.front and p.arm == "found"), key=lambda p: p.kl)
    columns = heads("on the front:id", "side effect:.2f", "effect:.3g", "dose", "match")
    hits = {True: "yes", False: "no", None: None}
    rows = [[p.perturbation, p.kl, p.effect, dose(p.dose), hits[p.hit]] for p in best]
    each = [
        [f"{budget:g} nats", *(c for own in reached.values() for c in own)]
        for budget, reached in derived.within(points)
    ]
    within = heads("within", *(h for a in ARMS for h in (f"{a}:d", "largest:.3g", "hits:rate")))
    return [Table(columns, rows), Table(within, each, said("tables", "budgets"))]


def sparse(s: Sparse, i: int = 0, pattern: re.Pattern[str] | None = None) -> Card:
    """Return how few groups keep a share of each vector's effect, and what these score."""
    scored = ("whole", *ORDERS)
    columns = heads("id:id", *(f"{name}:d" for name in ORDERS), "norm:.2f")
    columns += heads("whole:rate", "lasso:rate", "largest:rate*", "random:rate*")
    columns += heads("sparse, it writes:texts")
    rows = [
        [
            *(v.number, *(v.needed[name] for name in ORDERS), v.norm),
            *(*(v.again[name] for name in scored), wrote(v.texts["lasso"], pattern)),
        ]
        for v in s.vectors
    ]
    badges = [f"groups of {s.groups} that keep {s.keep:.0%} of the effect", f"scores: {s.judge}"]
    table = Table(columns, rows, said("tables", "sparse"))
    return Card(f"Sparse in {s.basis}", badges, [table, figure("sparse", kept(s), i)])


def ungated(scan: Scan, i: int = 0, pattern: re.Pattern[str] | None = None) -> Card:
    """Return the best sign and size of each arm, and the adapters as they were found."""
    columns = heads("which", "id:id", "constant", "score:rate", "re-test:rate", "writes:texts")
    best = {"found": "best without gate", "control": "best of the control"}
    rows = [
        [
            "gated, as found" if cell.share is None else best[cell.arm],
            *(cell.number, None if cell.share is None else f"{cell.share:+g}"),
            *(cell.score, cell.again, wrote(cell.text, pattern, most=120)),
        ]
        for cell in (*scan.best.values(), *scan.gated)
    ]
    numbers = ", ".join(str(cell.number) for cell in scan.gated)
    table = Table(columns, rows, said("tables", "ungated"))
    badges = [f"adapters {numbers}", f"scores: {scan.judge}"]
    return Card("Without the gate", badges, [table, figure("ungated", signs(scan), i)])


def front(points: Sequence[Point]) -> alt.LayerChart:
    """Draw effect against side effect, and the front of each arm."""
    rows = pd.DataFrame(points)
    rows["looked for"] = rows.hit.map({True: "yes", False: "no"}).fillna("")
    base = over(rows[(rows.kl > 0) & (rows.effect > 0)]).encode(
        alt.X("kl:Q", scale=LOG, title="side effect, nats a token (95th percentile)"),
        alt.Y("effect:Q", scale=LOG, title="norm of the effect"),
        colour("arm", ARMS),
    )
    best = base.transform_filter("datum.front")
    edge = best.mark_line(interpolate="step-after", strokeWidth=1.6, opacity=0.8)
    hit = "datum.hit === true"
    dots = base.mark_point(filled=True, opacity=0.85).encode(
        size=alt.condition(hit, alt.value(130), alt.value(36)),
        shape=alt.condition(hit, alt.value("diamond"), alt.value("circle")),
        tooltip=["perturbation:N", "arm:N", *exact("dose", "effect", "kl"), "looked for:N"],
    )
    return (edge + dots).properties(height=320)


def kept(trial: Sparse) -> alt.LayerChart:
    """Draw the share of the effect that the first groups keep, for more and more of them."""
    across = alt.X("groups:Q", scale=LOG, title="groups kept")
    up = share("share", "share of the effect", whole=False)
    told = ("number:N", "order:N", "groups:Q", *percent("share"))
    drawn = lines(trial.curves, across, up, colour("order", ORDERS), *told, detail="number:N")
    return (rule(share=trial.keep) + drawn).properties(height=280)


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
    each = base.mark_line(strokeWidth=1.2, opacity=0.6)
    size = alt.Size("score:Q", scale=alt.Scale(domain=[0, 1], range=[30, 260]), legend=None)
    dots = base.mark_point(filled=True, opacity=0.9).encode(size)
    return (shaded + each + dots).properties(height=280)
