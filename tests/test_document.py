"""Documents: their form as the front end takes it, and as a terminal prints it."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

import audited_run
import synthetic_run
from educe.comparison.stats import Estimate, rate
from educe.report import page
from educe.report.document import (
    Block,
    Card,
    Chart,
    Code,
    Fold,
    Heading,
    Mark,
    Pair,
    Side,
    Table,
    Text,
    facts,
    heads,
    to_json,
)
from educe.report.screen import tell

#: What the front end takes (`educe.explore.bundle`): the fields of each kind of block.
BLOCKS = {
    "text": {"spans", "style"},
    "heading": {"text"},
    "table": {"columns", "rows", "caption", "sort"},
    "chart": {"name", "spec", "title", "caption"},
    "pair": {"left", "right"},
    "card": {"title", "badges", "blocks", "open"},
    "fold": {"title", "blocks", "open"},
    "facts": {"items"},
    "code": {"text"},
}
MARKS = {"match", "sign", "nats", "strong", "muted", "code", "model", "link"}


def check_spans(spans: Any) -> None:
    assert isinstance(spans, list)
    for span in spans:
        if not isinstance(span, str):
            assert set(span) == {"text", "mark", "value", "title", "to"}
            assert span["mark"] in MARKS


def check_block(block: dict[str, Any]) -> None:
    kind = block["type"]
    assert set(block) == {"type", *BLOCKS[kind]}
    for spans in (block.get("spans"), block["title"] if kind == "card" else None):
        if spans is not None:
            check_spans(spans)
    sides = [block["left"], block["right"]] if kind == "pair" else block.get("items", [])
    for side in sides:
        assert set(side) == {"title", "spans"}
        check_spans(side["spans"])
    for inside in block.get("blocks", ()):
        check_block(inside)
    if kind == "table":
        check_table(block)


def check_table(table: dict[str, Any]) -> None:
    types = {column["key"]: column["type"] for column in table["columns"]}
    assert len(types) == len(table["columns"])
    for column in table["columns"]:
        assert set(column) == {"key", "title", "type", "format", "help"}
    for row in table["rows"]:
        assert set(row) == set(types)
        for key, cell in row.items():
            if cell is None:
                continue
            if types[key] == "text":
                check_spans(cell)
            elif types[key] == "rate":
                assert set(cell) == {"hits", "trials", "low", "high"}
                assert 0 <= cell["hits"] <= cell["trials"] > 0
            else:
                assert isinstance(cell, int | float)
                assert types[key] in ("number", "id")


@pytest.mark.parametrize("build", [synthetic_run.build, audited_run.build])
def test_a_document_has_the_form_that_the_front_end_takes(build: Any, tmp_path: Path) -> None:
    with build(tmp_path / "run") as run:
        made = page.document(run)
    assert set(made) == {"title", "subtitle", "kind", "date", "command", "parts", "run"}
    assert len({part["id"] for part in made["parts"]}) == len(made["parts"]) > 3
    for part in made["parts"]:
        assert set(part) == {"id", "title", "blocks"}
        for block in part["blocks"]:
            check_block(block)
    json.dumps(made, allow_nan=False)


def test_cells_are_what_their_columns_say() -> None:
    columns = heads("who", "n:d", "share:.1%", "found:rate", "found:rate", "mean:rate", "id:id*")
    rows = [
        ["a", 3, float("nan"), rate(1, 4), Estimate(0.5, 0.2, 0.8, 2, 1), (0.5, 0.25, 1.0), 7],
        [Mark("\u202e", "model"), None, 0.5, rate(0, 0), None, Estimate(0.5, 0.2, 0.8, 9, None), 8],
    ]
    made = to_json(Table(columns, rows))
    assert [c["key"] for c in made["columns"]] == [
        *("who", "n", "share", "found", "found 2", "mean", "id")
    ]
    assert [c["type"] for c in made["columns"]] == [
        *("text", "number", "number", "rate", "rate", "text", "id")
    ]
    first, second = made["rows"]
    assert (first["who"], first["n"], first["share"]) == (["a"], 3, None)
    assert first["found"] == rate(1, 4)._asdict()
    assert (first["found 2"]["hits"], first["found 2"]["trials"]) == (1, 2)
    assert (second["found"], second["found 2"]) == (None, None)
    assert [first["mean"], second["mean"]] == [["0.50 (0.25 to 1.00)"], ["0.50 (0.20 to 0.80)"]]
    assert second["who"][0]["text"] == "\u202e"
    assert to_json("\u202e") == r"\u202e"
    assert to_json(Mark("\u202e", "code"))["text"] == r"\u202e"


ROWS = [["said \u202e it", 0.126, rate(1, 4), 3], ["so", None, rate(0, 0), 4]]
BLOCKS_OF_EACH: list[Block] = [
    Heading("a heading"),
    Text(["two ", Mark("spans", "model")]),
    Table(heads("what is said:texts", "share:.1%", "found:rate", "hidden:d*"), ROWS, "a caption"),
    Chart("c", {}, "a chart"),
    Fold("a fold", [Text("folded")], open=True),
    Card("a card", ["badge"], [Text("inside"), Pair(Side("One", "left"), Side("Two", "right"))]),
    facts(("Kind", "a fact")),
    Code("a line"),
]


def printed(width: int) -> str:
    into = io.StringIO()
    tell(BLOCKS_OF_EACH, Console(file=into, width=width, emoji=False))
    return into.getvalue()


def test_a_terminal_shows_what_is_not_folded() -> None:
    told = printed(120)
    for there in ("a heading", "two spans", "a card  badge", "inside", "left", "right", "a line"):
        assert there in told
    assert re.search(r"kind +a fact", told)
    for left_out in ("a caption", "a chart", "a fold", "folded", "hidden"):
        assert left_out not in told
    assert re.search(r"^what is said +share +found *$", told, re.MULTILINE)
    assert re.search(r"^said \\u202e it +12\.6% +1/4 *$", told, re.MULTILINE)
    assert re.search(r"^so +– +– *$", told, re.MULTILINE)


def test_where_there_is_little_room_a_text_stands_above_its_numbers() -> None:
    lines = [line.split() for line in printed(60).splitlines()]
    at = lines.index(["what", "is", "said"])
    assert lines[at + 1 : at + 6] == [
        ["share", "found"],
        ["said", r"\u202e", "it"],
        ["12.6%", "1/4"],
        ["so"],
        ["–", "–"],
    ]
