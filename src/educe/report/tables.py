"""Tables of what `educe derive` made that the page does not show: shrunk and combined vectors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from educe.report.document import Block, Heading, Table, Text, heads


def shrunk(
    curves: Mapping[int, Sequence[tuple[float, float]]],
    kept: Mapping[int, float | None],
    by: str,
    keep: float,
) -> list[Block]:
    """Return how far perturbations could shrink.

    Args:
        curves: The shares of the radius that were looked at, and what was measured, by number.
        kept: The smallest share at which enough was left; None where there was nothing to keep.
        by: What was measured.
        keep: The share of it that was to stay.
    """
    columns = heads("id:id", "start:.2f", "kept at:.2f", "there:.2f", "then at:.2f", "left:.2f")
    rows = []
    for number, curve in curves.items():
        share, last = kept[number], curve[-1]
        there = None if share is None else dict(curve)[share]
        then = last if share is not None and last[0] != share else (None, None)
        rows.append([number, curve[0][1], share, there, *then])
    return [
        Heading(f"shrunk while {by} stays at {keep:.0%} or more"),
        Table(columns, rows),
        *(Text(f"#{number}: nothing to keep") for number, share in kept.items() if share is None),
    ]


def combined(
    own: Mapping[int, float],
    made: Sequence[tuple[int, Sequence[int], float | None, float]],
    cosines: Sequence[float],
) -> list[Block]:
    """Return what lies between vectors, and their average."""
    columns = heads("id:id", "of", "way", "score:.3f")
    rows: list[list[object]] = [[number, "itself", None, score] for number, score in own.items()]
    for number, of, share, score in made:
        way = "average" if share is None else f"{share:g}"
        rows.append([number, " ".join(map(str, of)), way, score])
    each = ", ".join(f"{cosine:.2f}" for cosine in cosines)
    told = f"cosine of the average of the first 1, 2, … with the supervised one: {each}"
    return [Table(columns, rows), *([Text(told)] if cosines else [])]


def lie(*files: Path) -> Text:
    """Say where vectors lie."""
    return Text(f"their vectors: {' and '.join(map(str, files))} (educe discover --given)", "note")
