"""Documents: what a page and a terminal say, as blocks that know of neither.

    document = parts = blocks = spans

A part builds its blocks once. The front end draws all of them (`educe.explore`); the terminal
prints those that fit there (`educe.report.screen`): no charts, no folds, no captions, and of tables
no columns that are for the ``page``. `to_json` is the form in which the front end takes them.

Text that a model wrote is a span ``model``, ``match`` or ``nats``: it is data, is never obeyed, and
its hidden signs are shown as such. In all other text, `to_json` writes them as escapes.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, fields, is_dataclass
from typing import Any, Literal, NamedTuple

from educe.comparison.stats import Estimate, Rate
from educe.visible import one_line, visible

Marks = Literal["match", "sign", "nats", "strong", "muted", "code", "model", "link"]
#: Marks of what a model wrote.
WRITTEN = ("model", "match", "nats")


@dataclass(frozen=True)
class Mark:
    """A marked stretch of text.

    Attributes:
        text: The stretch.
        mark: What it is.
        value: Of ``nats``, how many.
        title: What is told when the pointer is on it.
        to: Where a ``link`` leads: ``perturbation/3``, ``part/ID``.
    """

    text: str
    mark: Marks
    value: float | None = None
    title: str | None = None
    to: str | None = None


Span = str | Mark
Said = Span | Sequence[Span]
#: A mean with its interval: the mean, low and high.
Mean = tuple[float, float, float]


@dataclass(frozen=True)
class Text:
    """A paragraph; a ``lead`` stands at the beginning, a ``note`` beside."""

    spans: Said
    style: Literal["lead", "plain", "note"] = "plain"


@dataclass(frozen=True)
class Heading:
    """A heading within a part."""

    text: str


class Column(NamedTuple):
    """A column of a table, see `heads`."""

    title: str
    type: str = "text"
    format: str | None = None
    page: bool = False


def heads(*described: str) -> list[Column]:
    """Return columns, each described by its head and, behind a colon, by what it holds.

    ``rate`` are a `Rate`, an `Estimate` or a mean with its interval, ``id`` the number of a
    perturbation, ``texts`` what a model wrote, and a format are numbers; with nothing behind it, a
    column has text. One with a star at the end is for the page alone.

    Example:
        >>> from educe.report.document import heads
        >>> heads("arm", "KL:.2f", "found:rate*")[1:]
        [Column(title='KL', type='number', format='.2f', page=False), \
Column(title='found', type='rate', format=None, page=True)]
    """
    made = []
    for one in described:
        title, _, kind = one.removesuffix("*").partition(":")
        number = kind not in ("", "rate", "id", "texts")
        of = "number" if number else kind or "text"
        made.append(Column(title, of, kind if number else None, one.endswith("*")))
    return made


@dataclass(frozen=True)
class Table:
    """A table: rows have a cell for each column, None where there is nothing."""

    columns: Sequence[Column]
    rows: Sequence[Sequence[Any]]
    caption: str | None = None

    @property
    def keys(self) -> list[str]:
        """The names of the columns: their heads, numbered where they repeat."""
        titles = [column.title for column in self.columns]
        again = [titles[:i].count(title) for i, title in enumerate(titles)]
        return [f"{t} {n + 1}" if n else t for t, n in zip(titles, again, strict=True)]


@dataclass(frozen=True)
class Chart:
    """A chart, as a Vega-Lite specification in the colours of a light page."""

    name: str
    spec: dict[str, Any]
    title: str
    caption: str | None = None


@dataclass(frozen=True)
class Side:
    """A text with what it is."""

    title: str
    spans: Said


@dataclass(frozen=True)
class Pair:
    """Two texts side by side, of which the right one is changed."""

    left: Side
    right: Side


@dataclass(frozen=True)
class Card:
    """Something that stands for itself, with its evidence."""

    title: Said
    badges: Sequence[str]
    blocks: Sequence[Block]
    open: bool = True


@dataclass(frozen=True)
class Fold:
    """What is shown when it is asked for."""

    title: str
    blocks: Sequence[Block]
    open: bool = False


@dataclass(frozen=True)
class Facts:
    """Names and what they are."""

    items: Sequence[Side]


@dataclass(frozen=True)
class Code:
    """Lines to be copied."""

    text: str


Block = Text | Heading | Table | Chart | Pair | Card | Fold | Facts | Code


@dataclass(frozen=True)
class Part:
    """A part of a document."""

    id: str
    title: str
    blocks: Sequence[Block]


@dataclass(frozen=True)
class Document:
    """A document; ``run`` are the frames of a run, where it has one (`educe.explore.frames`)."""

    title: str
    subtitle: str
    kind: Literal["run", "audit", "layer map", "reads"]
    date: str | None
    command: str | None
    parts: Sequence[Part]
    run: dict[str, Any] | None = None


def facts(*pairs: tuple[str, Said]) -> Facts:
    """Return names and what they are."""
    return Facts([Side(*pair) for pair in pairs])


def wrote(text: str, pattern: re.Pattern[str] | None = None, *, most: int = 0) -> list[Span]:
    """Return what a model wrote, its matches with a pattern marked.

    Args:
        text: What it wrote.
        pattern: What is looked for.
        most: On one line of so many signs; all of it with 0.
    """
    if not text.strip():
        return [Mark("(nothing)", "muted")]
    text, made, at = shorten(text, most) if most else text, list[Mark](), 0
    for found in pattern.finditer(text) if pattern else ():
        if found.end() > found.start():
            made += [Mark(text[at : found.start()], "model"), Mark(found.group(), "match")]
            at = found.end()
    made.append(Mark(text[at:], "model"))
    return [span for span in made if span.text]


def shorten(text: str, length: int) -> str:
    """Return a text on one line, cut at a length."""
    short = one_line(text)
    return short if len(short) <= length else short[: length - 1] + "…"


def flat(said: Said) -> Sequence[Span]:
    """Return spans as a sequence of them."""
    return (said,) if isinstance(said, str | Mark) else said


def averaged(of: Rate | Estimate | Mean, form: str | None = None) -> str | None:
    """Write a rate or a mean with its interval; None where nothing was tried."""
    if isinstance(of, Rate):
        return str(of) if of.trials else None
    if isinstance(of, Estimate) and form is None:
        return str(of)
    mean, low, high = (f"{value:{form or '.2f'}}" for value in of[:3])
    return f"{mean} ({low} to {high})"


def to_json(value: Any) -> Any:
    """Return a document, or a part of one, as JSON has it; numbers that are not finite are null."""
    if isinstance(value, str):
        return visible(value)
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, int | None):
        return value
    if isinstance(value, Mark):
        said = {f.name: getattr(value, f.name) for f in fields(value)}
        return said | {"text": value.text if value.mark in WRITTEN else visible(value.text)}
    if isinstance(value, Table):
        return _table(value)
    if is_dataclass(value):
        said = {f.name: getattr(value, f.name) for f in fields(value)}
        spans = said.keys() & ({"title"} if isinstance(value, Card) else {"spans"})
        said |= {name: list(flat(said[name])) for name in spans}
        if isinstance(value, Document):  # frames are JSON already
            return {n: one if n == "run" else to_json(one) for n, one in said.items()}
        kind = {"type": type(value).__name__.lower()} if isinstance(value, Block) else {}
        return kind | {name: to_json(one) for name, one in said.items()}
    if isinstance(value, dict):
        return {visible(str(key)): to_json(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [to_json(one) for one in value]
    return value


def _table(table: Table) -> dict[str, Any]:
    """Return a table; rates of one column that are not all counts are written as text."""
    columns, cells = [], []
    for i, column in enumerate(table.columns):
        own, kind = [row[i] for row in table.rows], column.type
        if kind == "rate":
            counts = [_counted(one) for one in own]
            if all(counts):
                own = [of._asdict() if of and of.trials else None for of in counts]
            else:
                kind, own = "text", [one and averaged(one, column.format) for one in own]
        if kind in ("text", "texts"):
            kind, own = "text", [None if one is None else list(flat(one)) for one in own]
        cells.append(to_json(own))
        columns.append({"type": kind, "title": column.title, "format": column.format, "help": None})
    keys = table.keys
    return {
        "type": "table",
        "columns": [{"key": key, **column} for key, column in zip(keys, columns, strict=True)],
        "rows": [dict(zip(keys, row, strict=True)) for row in zip(*cells, strict=True)],
        "caption": to_json(table.caption),
        "sort": None,
    }


def _counted(of: Rate | Estimate | Mean | None) -> Rate | None:
    """Return what is counted as hits and trials; none of a mean."""
    if isinstance(of, Estimate):
        return None if of.hits is None else Rate(of.hits, of.trials, of.low, of.high)
    return Rate(0, 0, 0.0, 1.0) if of is None else of if isinstance(of, Rate) else None
