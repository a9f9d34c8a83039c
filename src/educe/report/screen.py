"""A terminal that shows what models wrote as text, and obeys none of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.segment import Segments
from rich.table import Table as Grid
from rich.text import Text as Line

from educe.comparison.stats import Estimate, Rate
from educe.report.document import (
    Block,
    Card,
    Code,
    Column,
    Facts,
    Heading,
    Mark,
    Pair,
    Said,
    Table,
    Text,
    averaged,
    flat,
)
from educe.visible import isolated, one_line, runs

SIGN = "dim italic"  #: style of what stands for a hidden sign
STYLES = {"lead": "bold", "plain": "", "note": "dim"}
#: Signs of what a model wrote in a table, and the width from which it has a line with its numbers.
LENGTH, WIDE = 200, 110


def screen() -> Console:
    """Return the terminal; ``:words:`` in colons are no pictures there."""
    return Console(emoji=False)


def written(text: str, style: str = "", *, lead: str = "") -> Line:
    """Return text as it was written, after a lead of ours; hidden signs are escapes."""
    shown = Line(lead, style)
    for number, row in enumerate(text.split("\n")):
        opened, closed = isolated(row).split(row, 1) if row else ("", "")
        shown.append("\n" * bool(number) + opened)
        for i, piece in enumerate(runs(row)):
            shown.append(piece, SIGN if i % 2 else None)
        shown.append(closed)
    return shown


def line(text: str, style: str = "", *, lead: str = "", limit: int = 4000) -> Line:
    """Return text on one line that is cut where the room ends."""
    short = one_line(text)
    short = short if len(short) <= limit else short[: limit - 1] + "…"
    shown = written(short, style, lead=lead)
    shown.no_wrap, shown.overflow = True, "ellipsis"
    return shown


def put(console: Console, one: Line) -> None:
    """Print a line, which is cut where the terminal ends."""
    console.print(one, no_wrap=True, overflow="ellipsis")


def plain(said: Said) -> str:
    """Return spans as text."""
    return "".join(span.text if isinstance(span, Mark) else span for span in flat(said))


def tell(blocks: Sequence[Block], console: Console | None = None) -> None:
    """Print blocks: no charts, no folds, no captions."""
    console = console or screen()
    for block in blocks:
        match block:
            case Text():
                console.print(written(plain(block.spans), STYLES[block.style]), highlight=False)
            case Heading():
                console.print(written(block.text, "bold"), highlight=False)
            case Code():
                console.print(written(block.text), highlight=False)
            case Facts():
                for side in block.items:
                    lead = f"{side.title.lower():<12}"
                    console.print(written(plain(side.spans), "dim", lead=lead))
            case Pair():
                for side in (block.left, block.right):
                    lead = f"  {side.title.lower()}  "
                    put(console, line(plain(side.spans), lead=lead))
            case Table():
                _table(block, console)
            case Card():
                badges = "".join(f"  {badge}" for badge in block.badges)
                console.print(written(plain(block.title) + badges, "bold"), highlight=False)
                tell(block.blocks, console)


def grid(table: Table, *, below: bool = False) -> Grid:
    """Return a table for the terminal: words on the left, numbers on the right.

    What is written gives way, and so do words; a number alone is whole at any width. One that
    stands ``below`` a text is set in by a space.
    """
    made = Grid(box=None, padding=(0, 1), pad_edge=below, header_style="bold dim")
    kept = [i for i, column in enumerate(table.columns) if not column.page]
    for i in kept:
        column = table.columns[i]
        words = column.type in ("text", "texts")
        made.add_column(
            column.title, justify="left" if words else "right", no_wrap=not words, overflow="fold"
        )
    for row in table.rows:
        made.add_row(*(cell(table.columns[i], row[i]) for i in kept))
    return made


def cell(column: Column, value: Any) -> Line:
    """Return what stands in a cell; a dash where there is nothing."""
    if value is None:
        return Line("–")
    if column.type == "texts":
        return line(plain(value), limit=LENGTH)
    if column.type == "text":
        return written(plain(value))
    if isinstance(value, Rate | Estimate) and value.hits is not None:
        return Line(f"{value.hits}/{value.trials}" if value.trials else "–")
    if column.type == "rate":
        return Line(averaged(value, column.format) or "–")
    return Line(format(value, (column.format or "").replace("~", "")))


def _table(table: Table, console: Console) -> None:
    """Print a table; where there is little room, a text stands above its numbers."""
    first, *rest = table.columns
    if first.type != "texts" or console.width >= WIDE:
        console.print(grid(table))
        return
    console.print(first.title, style="bold dim")
    numbers = grid(Table(rest, [row[1:] for row in table.rows]), below=True)
    heads, *rows = console.render_lines(numbers, pad=False, new_lines=True)
    console.print(Segments(heads), end="")
    for own, row in zip(table.rows, rows, strict=False):
        put(console, cell(first, own[0]))
        console.print(Segments(row), end="")
