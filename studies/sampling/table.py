"""The table of the comparison: rows of all cells of an organism put together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from educe.comparison.stats import bootstrap_mean, more_often, rate
from studies.sampling.cell import ROWS, WIDE

HEAD = (
    "search", "success, all finds", "control", "p", "best find", "judge: chosen by",
    "judge: re-test", "coherence", "side effect", "dose", "modes", "CPU",
)  # fmt: skip


def tables(records: Sequence[dict[str, Any]]) -> str:
    """Return a table in Markdown for each organism."""
    parts = []
    for organism in dict.fromkeys(r["organism"] for r in records):
        own = [r for r in records if r["organism"] == organism]
        seeds = len({r["seed"] for r in own})
        of = {row: [r for r in own if r["row"] == row] for row in ROWS}
        lines = [f"| {' | '.join(_line(row, of))} |" for row in ROWS if of[row]]
        body = "\n".join((f"| {' | '.join(HEAD)} |", "|" + "---|" * len(HEAD), *lines))
        parts.append(f"### {organism}, {seeds} seed{'s' * (seeds > 1)}\n\n{body}\n")
    return "\n".join(parts)


def _line(row: str, of: dict[str, list[dict[str, Any]]]) -> tuple[str, ...]:
    cells = of[row]
    control = of["random" if row in WIDE else "draws"]
    shows = rate(*_counted(cells))
    beside, p = "–", "–"
    if row not in ("random", "draws") and control:
        other = rate(*_counted(control))
        beside, p = f"{other.hits} of {other.trials}", f"{more_often(shows, other):.2g}"
    best = rate(
        int(sum(np.sum(r["shows"][0]) for r in cells)), sum(len(r["shows"][0]) for r in cells)
    )
    return (
        row,
        str(shows),
        beside,
        p,
        str(best),
        *_finds([r for r in cells if "ended" not in r]),
        f"{np.mean([r['seconds'] for r in cells]):.0f} s",
    )


def _finds(cells: Sequence[dict[str, Any]]) -> tuple[str, ...]:
    """Return what is told of finds, where there are some."""
    if not cells:
        return ("–",) * 6
    return (
        f"{np.mean([v for r in cells for v in r['seen']]):.2f}",
        _mean([np.mean(own) for r in cells for own in r["again"]]),
        _mean([np.mean(own) for r in cells for own in r["coherence"]]),
        _mean([v for r in cells for v in r["side_effect"]]),
        f"{np.mean([v for r in cells for v in r['dose']]):.2f}",
        f"{np.mean([r['modes'] for r in cells]):.1f}",
    )


def _counted(cells: Sequence[dict[str, Any]]) -> tuple[int, int]:
    return int(sum(np.sum(r["shows"]) for r in cells)), sum(np.size(r["shows"]) for r in cells)


def _mean(values: Sequence[float]) -> str:
    """Return a mean over finds with its bootstrap interval."""
    mean, low, high = bootstrap_mean(values)
    return f"{mean:.2f} ({low:.2f} to {high:.2f})"
