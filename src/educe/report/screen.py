"""A terminal that shows what models wrote as text, and obeys none of it."""

from __future__ import annotations

from rich.console import Console
from rich.markup import escape
from rich.text import Text

from educe.visible import isolated, one_line, runs, visible

SIGN = "dim italic"  #: style of what stands for a hidden sign


def screen() -> Console:
    """Return the terminal; ``:words:`` in colons are no pictures there."""
    return Console(emoji=False)


def escaped(text: str) -> str:
    """Return text that can stand within rich's markup."""
    return escape(visible(text))


def written(text: str, style: str = "", *, lead: str = "") -> Text:
    """Return text as it was written, after a lead of ours; hidden signs are escapes."""
    shown = Text(lead, style)
    for number, row in enumerate(text.split("\n")):
        opened, closed = isolated(row).split(row, 1) if row else ("", "")
        shown.append("\n" * bool(number) + opened)
        for i, piece in enumerate(runs(row)):
            shown.append(piece, SIGN if i % 2 else None)
        shown.append(closed)
    return shown


def line(text: str, style: str = "", *, lead: str = "", limit: int = 4000) -> Text:
    """Return text on one line that is cut where the room ends."""
    short = one_line(text)
    short = short if len(short) <= limit else short[: limit - 1] + "…"
    shown = written(short, style, lead=lead)
    shown.no_wrap, shown.overflow = True, "ellipsis"
    return shown


def put(console: Console, one: Text) -> None:
    """Print a line, which is cut where the terminal ends."""
    console.print(one, no_wrap=True, overflow="ellipsis")
