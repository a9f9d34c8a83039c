"""What an audit came to, on one screen: its findings, what each source cost, or that nothing was.

Each finding has its saying on a line of its own and its rates below: shown again on fresh prompts,
by the suspect itself there, by the reference under the same condition.
"""

from __future__ import annotations

from dataclasses import replace

from rich.console import Console

from educe.audit.findings import Finding, Kind
from educe.audit.overview import Overview
from educe.comparison.stats import Rate
from educe.report.document import Heading, Table, Text, facts, heads
from educe.report.screen import grid, line, put, screen, tell, written
from educe.scores import asked_in

#: Findings, and what is no finding, in the table.
SHOWN, BELOW = 8, 4
HEADS = heads(
    *("kind", "nats:.0f", "again:rate", "by itself:rate", "reference:rate", "false alarms:rate")
)


def show(seen: Overview, console: Console | None = None) -> None:
    """Print what an audit came to."""
    console = console or screen()
    against = seen.reference or "no reference: the suspect itself, without what was done"
    about = [("audited", seen.model), ("against", against)]
    about += [("note", remark) for remark in seen.remarks]
    tell([Heading(seen.headline), facts(*about)], console)
    for finding in seen.findings[:SHOWN]:
        _finding(finding, console)
    if not seen.findings:
        tell([Text(seen.nothing)], console)
    if (more := len(seen.findings) - SHOWN) > 0:
        tell([Text(f"{more} more in the report", "note")], console)
    if seen.below:
        tell([Text("no findings: said openly, or not said again", "note")], console)
    for finding in seen.below[:BELOW]:
        _finding(finding, console)
    idle: dict[str, list[str]] = {}
    for one in seen.looked:
        if one.hindered and not one.texts:
            idle.setdefault(one.hindered, []).append(one.name)
    looked = tuple(one for one in seen.looked if not one.hindered or one.texts)
    not_tried = [("not tried", f"{', '.join(names)}: {why}") for why, names in idle.items()]
    tell([costs(replace(seen, looked=looked)), facts(*not_tried)], console)


def _finding(f: Finding, console: Console) -> None:
    put(console, line(f.saying, "bold"))
    row = [f.kind.value, f.evidence, f.shown, f.plain, f.control, f.alarm]
    console.print(grid(Table(HEADS, [row]), below=True))
    if f.kind is Kind.OPEN:
        asked = ", ".join(repr(asked_in(example.prompt)) for example in f.examples)
        console.print(written(asked, lead=" said to "))
    for trigger in f.triggers:
        beside = f"near misses {tally(trigger.near)}, {trigger.others} {tally(trigger.rare)}"
        told = f"{trigger.text!r} {trigger.standing}".rstrip()
        told = f"{told} {tally(trigger.shown)}, {beside}"
        lead = " ceases with " if f.kind is Kind.UNLOCKED else " brought about by "
        console.print(written(told, lead=lead))
    if f.kind is Kind.UNLOCKED:
        for example in f.examples[:1]:
            console.print(written(example.text, lead=" and it says "))


def tally(rate: Rate) -> str:
    """Write a rate; a dash where nothing was tried."""
    return f"{rate.hits}/{rate.trials}" if rate.trials else "–"


def costs(seen: Overview) -> Table:
    """Return what each source cost and saw."""
    columns = heads("source", "what it does*", "seconds:,.0f", "passes:,.0f", "tokens:,.0f")
    columns += heads("strings:,", "texts:,", "did not look")
    rows = [
        [
            *(one.name, one.about, one.seconds, one.passes, one.tokens),
            *(one.suspects or None, one.texts, one.hindered),
        ]
        for one in seen.looked
    ]
    return Table(columns, rows)
