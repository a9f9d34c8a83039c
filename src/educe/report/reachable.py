"""Reachability reports: on the terminal, and as a part of the page."""

from __future__ import annotations

import re
from typing import Any

import altair as alt
from rich.console import Console
from rich.panel import Panel
from rich.table import Table

from educe.inversion import kept
from educe.inversion.report import Case, Reachability, Test
from educe.report.figures import PALETTE, dressed
from educe.report.part import Part, Shown, together
from educe.report.screen import screen, written
from educe.report.templates import figure, fragment
from educe.run.store import Run

#: How the roles of cases are drawn.
ROLES = {
    "found": "accent",
    "text": "rare",
    "natural vector": "fragile",
    "random": "control",
    "shuffled": "muted",
}


def tell(report: Reachability, console: Console | None = None) -> None:
    """Print a reachability report on one screen."""
    console, settings = console or screen(), report.settings
    console.print(
        Panel(
            written(report.words),
            title=f"perturbation {report.number} ({report.arm}), norm {report.norm:.3g}",
            title_align="left",
        )
    )
    for test in report.tests:
        grid = Table(box=None, padding=(0, 1))
        for head in (test.aim, "", "share", "95%", "searched", "natural", "string"):
            left = head in (test.aim, "", "string")
            grid.add_column(head, justify="left" if left else "right")
        for case in (test.found, *test.controls):
            grid.add_row(
                case.role,
                written("" if case.role == "found" else case.name),
                f"{case.share:.0%}",
                f"{case.low:.0%} to {case.high:.0%}",
                f"{case.searched:.0%}",
                f"{case.natural:.0%}",
                written(case.string),
            )
        console.print(grid)
        for string, share, perplexity in test.found.front:
            console.print(written(string, lead=f"{share:.0%} at perplexity {perplexity:.3g}: "))
    console.print(
        f"share: of what is changed, on {settings.fresh} fresh prompts; searched: on the "
        f"{settings.searched} searched; natural: natural strings that are no likelier"
    )


def render(run: Run, pattern: re.Pattern[str] | None) -> Shown | None:
    """Return the reachability reports of a run."""
    known = kept.reports(run)
    html = fragment("reachable.html", pattern, reports=known, figure=figure)
    charts = (
        {f"reach-{r.number}-{test.aim}": dressed(curves(test))} for r in known for test in r.tests
    )
    return Shown(html, together(charts)) if known else None


def curves(test: Test) -> alt.Chart:
    """Draw how the loss of each search falls with its reads, as a share of its first."""
    rows: list[dict[str, Any]] = [
        {"reads": reads, "left": best / case.curve[0][1], "of": case.role, "case": _named(case)}
        for case in (test.found, *test.controls)
        for reads, best in case.curve
        if case.curve[0][1] > 0
    ]
    scale = alt.Scale(domain=list(ROLES), range=[PALETTE[role][0] for role in ROLES.values()])
    return (
        alt.Chart(alt.Data(values=rows))
        .mark_line(strokeWidth=2, interpolate="step-after")
        .encode(
            alt.X("reads:Q", title="strings read at one prompt"),
            alt.Y("left:Q", title="loss, as a share of the best natural string's"),
            alt.Color("of:N", scale=scale, legend=alt.Legend(title=None, orient="top")),
            detail="case:N",
            tooltip=["case:N", "reads:Q", alt.Tooltip("left:Q", format=".0%")],
        )
        .properties(height=260)
    )


def _named(case: Case) -> str:
    return case.name if case.role == "found" else f"{case.role}: {case.name}"


PART = Part("reachable", "Which text does it", render)
