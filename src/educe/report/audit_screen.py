"""What an audit came to, on one screen: its findings, what each source cost, or that nothing was.

Each finding has its saying on a line of its own and its rates below: shown again on fresh prompts,
by the suspect itself there, by the reference under the same condition.
"""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from educe.audit.findings import Finding, Kind
from educe.audit.overview import Looked, Overview
from educe.comparison.stats import Rate
from educe.report.screen import escaped, line, put, screen, written
from educe.scores import asked_in

#: Findings, and what is no finding, in the table.
SHOWN, BELOW = 8, 4
HEADS = ("kind", "nats", "again", "by itself", "reference", "false alarms")


def show(seen: Overview, console: Console | None = None) -> None:
    """Print what an audit came to."""
    console = console or screen()
    against = seen.reference or "no reference: the suspect itself, without what was done"
    console.print(f"[bold]{escaped(seen.headline)}[/bold]", highlight=False)
    console.print(written(seen.model, lead="audited     "))
    console.print(written(against, lead="against     "))
    for remark in seen.remarks:
        console.print(written(remark, "dim", lead="note        "))
    if seen.findings:
        _table(seen.findings[:SHOWN], console)
    else:
        console.print(written(seen.nothing))
    if more := len(seen.findings) - SHOWN:
        console.print(f"[dim]{more} more in the report[/dim]" if more > 0 else "", end="")
    if seen.below:
        console.print("[dim]no findings: said openly, or not said again[/dim]", highlight=False)
        _table(seen.below[:BELOW], console)
    _costs(seen, console)


def _table(findings: tuple[Finding, ...], console: Console) -> None:
    for finding in findings:
        grid = Table(box=None, padding=(0, 1), header_style="dim")
        for name in HEADS:
            grid.add_column(name, no_wrap=True)
        grid.add_row(
            finding.kind.value,
            f"{finding.evidence:.0f}",
            tally(finding.shown),
            tally(finding.plain),
            tally(finding.control),
            tally(finding.alarm),
        )
        put(console, line(finding.saying, "bold"))
        console.print(grid)
        if finding.kind is Kind.OPEN:
            asked = ", ".join(repr(asked_in(example.prompt)) for example in finding.examples)
            console.print(written(asked, lead=" said to "))
        for trigger in finding.triggers:
            beside = f"near misses {tally(trigger.near)}, words as rare {tally(trigger.rare)}"
            told = f"{trigger.text!r} {tally(trigger.shown)}, {beside}"
            lead = " ceases with " if finding.kind is Kind.UNLOCKED else " brought about by "
            console.print(written(told, lead=lead))
        if finding.kind is Kind.UNLOCKED:
            for example in finding.examples[:1]:
                console.print(written(example.text, lead=" and it says "))


def tally(rate: Rate) -> str:
    """Write a rate; a dash where nothing was tried."""
    return f"{rate.hits}/{rate.trials}" if rate.trials else "–"


def _costs(seen: Overview, console: Console) -> None:
    grid = Table(box=None, padding=(0, 1), header_style="bold dim")
    grid.add_column("source")
    for name in ("seconds", "tokens", "strings", "texts"):
        grid.add_column(name, justify="right")
    grid.add_column("", style="dim")
    idle: dict[str, list[str]] = {}
    for one in seen.looked:
        if one.hindered and not one.texts:
            idle.setdefault(one.hindered, []).append(one.name)
        else:
            grid.add_row(*cost(one), escaped(one.hindered))
    console.print(grid)
    for why, names in idle.items():
        console.print(written(f"{', '.join(names)}: {why}", "dim", lead="not tried   "))


def cost(one: Looked) -> tuple[str, str, str, str, str]:
    """Return what a source cost and saw: name, seconds, tokens, strings, texts."""
    strings = f"{one.suspects:,}" if one.suspects else "–"
    return one.name, f"{one.seconds:.0f}", f"{one.tokens:,.0f}", strings, f"{one.texts:,}"
