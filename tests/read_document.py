"""A document as a test reads it: its blocks, tables and texts."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any


def of_page(file: Path) -> dict[str, Any]:
    """Return the document that a page was made of."""
    island = re.search(
        r'<script type="application/json" id="document">(.*?)</script>', file.read_text("utf-8")
    )
    assert island is not None
    return json.loads(island[1])


def part(document: dict[str, Any], name: str) -> dict[str, Any]:
    """Return a part by its id."""
    (found,) = [one for one in document["parts"] if one["id"] == name]
    return found


def has(document: dict[str, Any], name: str) -> bool:
    return name in [one["id"] for one in document["parts"]]


def blocks(of: Any, kind: str) -> Iterator[dict[str, Any]]:
    """Yield the blocks of a kind, wherever they stand."""
    if isinstance(of, dict):
        if of.get("type") == kind:
            yield of
        if of.get("type") not in ("table", "chart"):
            yield from (block for value in of.values() for block in blocks(value, kind))
    elif isinstance(of, list):
        yield from (block for value in of for block in blocks(value, kind))


def charts(of: Any) -> dict[str, dict[str, Any]]:
    """Return the specifications of charts, by name."""
    every = list(blocks(of, "chart"))
    assert len({chart["name"] for chart in every}) == len(every)
    return {chart["name"]: chart["spec"] for chart in every}


def table(of: Any, head: str) -> list[dict[str, Any]]:
    """Return the rows of the one table whose first column has a head."""
    (found,) = [one for one in blocks(of, "table") if one["columns"][0]["title"] == head]
    return found["rows"]


def text(value: Any) -> str:
    """Return everything that a block, a cell or a span says, as one line."""
    return " ".join(_text(value).split())


def _text(value: Any) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, dict):
        if "mark" in value:
            return "".join(value["text"])  # cut at hidden signs in a page
        if "trials" in value:
            return f" {value['hits']}/{value['trials']} "
        shown = {k: v for k, v in value.items() if k not in ("type", "style", "spec", "key", "id")}
        return " ".join(map(_text, shown.values()))
    if isinstance(value, list):
        spans = all(isinstance(one, str) or "mark" in one for one in value if one is not None)
        return ("" if spans else " ").join(map(_text, value))
    return "" if value is None else str(value)


def marked(of: Any, mark: str) -> list[str]:
    """Return the stretches with a mark."""
    if isinstance(of, dict):
        own = [of["text"]] if of.get("mark") == mark else []
        return own + [one for value in of.values() for one in marked(value, mark)]
    return [one for value in of for one in marked(value, mark)] if isinstance(of, list) else []


def count(rate: Any) -> dict[str, Any] | None:
    """Return a rate as a document has it."""
    return rate._asdict() if rate.trials else None
