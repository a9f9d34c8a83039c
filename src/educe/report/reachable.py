"""Reachability reports: which texts do what perturbations do, beside their controls."""

from __future__ import annotations

import re

import altair as alt

from educe.inversion import kept
from educe.inversion.report import Case, Reachability, Test
from educe.report import words
from educe.report.document import (
    Block,
    Card,
    Fold,
    Heading,
    Part,
    Table,
    Text,
    averaged,
    heads,
    wrote,
)
from educe.report.drawing import colour, figure, lines, percent
from educe.report.words import said, told
from educe.run.store import Run

#: How the roles of cases are drawn.
ROLES = {
    "found": "accent",
    "text": "rare",
    "natural vector": "fragile",
    "random": "control",
    "shuffled": "muted",
}


def part(run: Run, pattern: re.Pattern[str] | None) -> Part | None:
    """Return the reachability reports of a run."""
    cards = [card(report, pattern) for report in kept.reports(run)]
    return words.part("reachable", cards) if cards else None


def card(r: Reachability, pattern: re.Pattern[str] | None = None) -> Card:
    """Return a reachability report."""
    s = r.settings
    badges = [r.arm, f"norm {r.norm:.3g}", f"{s.tokens} tokens by {s.method}"]
    each = [block for test in r.tests for block in _of_aim(r, test, pattern)]
    return Card(f"#{r.number}", badges, [Text(r.words, "lead"), *each])


def _of_aim(r: Reachability, test: Test, pattern: re.Pattern[str] | None) -> list[Block]:
    """Return what one aim comes to."""
    found, cases = test.found, (test.found, *test.controls)
    title, effect = told("aims", "output" if test.layer is None else "stream", layer=test.layer)
    columns = heads(test.aim, "which", "share", "searched:.0%", "effect:.3g*", "perplexity:.3g*")
    columns += heads("natural:.0%", "string:texts", "nearest natural:texts*", "its share:.0%*")
    share = [(c.share, c.low, c.high) for c in cases]
    rows = [
        [
            *(c.role, wrote(c.name) if c.name and c is not found else None),
            *(averaged(of, ".0%"), c.searched),
            *(c.effect, c.perplexity, c.natural, wrote(c.string, pattern)),
            *(wrote(c.nearest, pattern), c.nearest_share),
        ]
        for c, of in zip(cases, share, strict=True)
    ]
    blocks: list[Block] = [
        Heading(title),
        Table(columns, rows, said("tables", "reachable", s=r.settings, effect=effect)),
    ]
    if found.front:
        each = [[wrote(string, pattern), *numbers] for string, *numbers in found.front]
        front = heads("match against perplexity:texts", "share searched:.0%", "at perplexity:.3g")
        blocks.append(Table(front, each))
    if found.texts:
        names = ("plain", "under the perturbation", "with the string")
        texts = [[name, wrote(text)] for name, text in zip(names, found.texts, strict=True)]
        asked = Table(heads("how", "it writes:texts"), texts)
        blocks.append(Fold("On a fresh prompt", [asked], open=True))
    return [*blocks, figure("reach", curves(test), f"{r.number}-{test.aim}")]


def curves(test: Test) -> alt.Chart:
    """Draw how the loss of each search falls with its reads, as a share of its first."""
    rows = [
        {"reads": reads, "left": best / case.curve[0][1], "of": case.role, "case": _named(case)}
        for case in (test.found, *test.controls)
        for reads, best in case.curve
        if case.curve[0][1] > 0
    ]
    across = alt.X("reads:Q", title="strings read at one prompt")
    up = alt.Y("left:Q", title="loss, as a share of the best natural string's")
    told = ("case:N", "reads:Q", *percent("left"))
    drawn = lines(
        rows, across, up, colour("of", ROLES), *told, detail="case:N", interpolate="step-after"
    )
    return drawn.properties(height=260)


def _named(case: Case) -> str:
    return case.name if case.role == "found" else f"{case.role}: {case.name}"
