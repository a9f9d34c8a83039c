"""Fronts, sparse vectors and adapters without gates on a terminal."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from educe.report.fronts import ARMS, within
from educe.summary import dose


def front(points: list[dict[str, Any]], console: Console | None = None) -> None:
    """Print the front of what was found, and both arms within budgets of side effect."""
    console = console or Console()
    best = sorted((p for p in points if p["front"] and p["arm"] == "found"), key=lambda p: p["kl"])
    grid = _grid("side effect", "effect", "dose", "id", title="on the front")
    for p in best:
        style = "bold" if p["hit"] else ""
        grid.add_row(
            f"{p['kl']:.2f}",
            f"{p['effect']:.3g}",
            dose(p["dose"]),
            str(p["perturbation"]),
            style=style,
        )
    console.print(grid)
    grid = _grid("within", "found", "largest", "hits", "random", "largest", "hits")
    for row in within(points):
        cells = [f"{row['budget']:g} nats"]
        for arm in ARMS:
            own = row[arm]
            effect = "" if own["effect"] is None else f"{own['effect']:.3g}"
            cells += [str(own["count"]), effect, own["hits"] or ""]
        grid.add_row(*cells)
    console.print(grid)


def sparse(
    vectors: list[dict[str, Any]], basis: str, keep: float, console: Console | None = None
) -> None:
    """Print how few groups keep a share of each vector's effect, and what these score."""
    console = console or Console()
    grid = _grid("id", "lasso", "largest", "random", "norm", "whole", "sparse", "re-test", "writes")
    for one in vectors:
        needed, scores, again = one["curve"]["needed"], one["scores"], one["again"]
        grid.add_row(
            str(one["number"]),
            *(str(needed[name]) for name in ("lasso", "magnitude", "random")),
            f"{one['norm']:.2f}",
            _score(scores["whole"]),
            _score(scores["lasso"]),
            f"{_score(again['whole'])} → {_score(again['lasso'])}",
            Text(" ".join(one["texts"]["lasso"].split()), no_wrap=True, overflow="ellipsis"),
        )
    total = vectors[0]["curve"]["counts"][-1]
    console.print(f"groups of {total} in {basis} that keep {keep:.0%} of the effect", style="bold")
    console.print(grid)


def degate(scan: dict[str, Any], console: Console | None = None) -> None:
    """Print the best sign and size of each arm, and its re-test."""
    console = console or Console()
    grid = _grid("arm", "id", "constant", "score", "re-test", "writes")
    for arm, cell in scan["best"].items():
        grid.add_row(
            "found" if arm == "found" else "random",
            str(cell["source"]),
            f"{cell['sign'] * cell['size']:+g}",
            _score(cell["score"]),
            _score(scan["again"][arm]),
            Text(" ".join(cell["text"].split()), no_wrap=True, overflow="ellipsis"),
        )
    console.print(grid)
    gated = ", ".join(f"{number}: {_score(own)}" for number, own in scan["gated"].items())
    console.print(f"with their gates {gated}; re-test of the best {_score(scan['again']['gated'])}")


def _grid(*names: str, title: str | None = None) -> Table:
    grid = Table(
        box=None, padding=(0, 1), header_style="bold dim", title=title, title_justify="left"
    )
    for name in names:
        grid.add_column(name, justify="left" if name in ("arm", "writes") else "right")
    return grid


def _score(own: dict[str, Any]) -> str:
    """Write a score, or hits of trials."""
    return f"{own['mean']:.2f}" if own["hits"] is None else f"{own['hits']} of {own['trials']}"
