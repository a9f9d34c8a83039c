"""Parts of the page that studies of a run add: each says what it shows, and its charts.

A part needs no change anywhere else: it stands in `PARTS`, and the page goes through these.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

from markupsafe import Markup

from educe.report import fronts, norms, passports, path_table, paths
from educe.report.tables import SCORED
from educe.report.templates import figure, fragment
from educe.run.store import Run

Charts = dict[str, dict[str, Any]]


class Shown(NamedTuple):
    """What a part shows of a run."""

    html: Markup  #: a section whose id is the part's name
    charts: Charts  #: specifications of its charts, by name


@dataclass(frozen=True)
class Part:
    """A part of the page.

    Attributes:
        name: The id of its section.
        title: In the contents.
        render: Returns what it shows of a run, or None where the run has nothing for it; what was
            looked for is marked.
    """

    name: str
    title: str
    render: Callable[[Run, re.Pattern[str] | None], Shown | None]


def _manifold(run: Run, pattern: re.Pattern[str] | None) -> Shown | None:
    papers = run.notes("passport-")

    def chart(paper: dict[str, Any], name: str, title: str, text: str) -> Markup:
        return figure(f"{name}-{paper['number']}", title, text)

    html = fragment(
        "passports.html",
        pattern,
        passports=[paper | {"told": passports.told(paper)} for paper in papers],
        forms=passports.FORMS,
        chart=chart,
    )
    return Shown(html, _together(map(passports.charts, papers))) if papers else None


def _norm(run: Run, pattern: re.Pattern[str] | None) -> Shown | None:
    if not run.has("norm"):
        return None
    told = run.note("norm")
    html = fragment(
        "norms.html",
        pattern,
        told=told,
        drawn=norms.drawn(told),
        captions=norms.CAPTIONS,
        scored=SCORED,
    )
    return Shown(html, norms.charts(told))


def _paths(run: Run, pattern: re.Pattern[str] | None) -> Shown | None:
    followed = run.notes("path-")
    html = fragment(
        "paths.html",
        paths=followed,
        rows=path_table.rows,
        middles=path_table.middles,
        spreads=path_table.spreads,
        neurons=path_table.NEURONS,
        curves=path_table.curves_of,
        chart=figure,
    )
    return Shown(html, _together(map(paths.charts, followed))) if followed else None


def _fronts(run: Run, pattern: re.Pattern[str] | None) -> Shown | None:
    costs = fronts.section(run)
    if costs is None:
        return None
    html = fragment("fronts.html", pattern, **costs, looked=bool(pattern), chart=figure)
    return Shown(html, fronts.charts(costs))


def _together(each: Any) -> Charts:
    return {name: chart for charts in each for name, chart in charts.items()}


PARTS = (
    Part("manifold", "On or off the manifold", _manifold),
    Part("norm", "What the norm tells", _norm),
    Part("paths", "Through the radius", _paths),
    Part("fronts", "What it costs beside", _fronts),
)
