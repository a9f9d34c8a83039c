"""Where random vectors change answers without breaking them: by layer, tokens and dose."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence

import altair as alt
import pandas as pd

from educe.comparison.stats import Rate, rate
from educe.report import words
from educe.report.document import Part, Table, heads
from educe.report.drawing import figure, over
from educe.rows import SCOUTED
from educe.run.scouting import Tried
from educe.run.store import Run


def part(run: Run, pattern: re.Pattern[str] | None) -> Part | None:
    """Return what random vectors did wherever they were tried."""
    if not run.has(SCOUTED):
        return None
    tried = [Tried(**t) for t in run.note(SCOUTED)]
    doses = [f"{dose:g}" for dose in dict.fromkeys(t.dose for t in tried)]
    columns = heads("layer, positions", *(h for d in doses for h in (f"dose {d}:rate", "broken:d")))
    places: dict[str, list[Rate | int]] = defaultdict(list)
    for t in tried:
        places[_place(t)] += [rate(t.changed, t.answers), t.damaged]
    table = Table(columns, [[place, *cells] for place, cells in places.items()])
    return words.part("scouting", [figure("scouting", drawn(tried)), table])


def drawn(tried: Sequence[Tried]) -> alt.Chart:
    """Draw the share of answers that change and hold, a cell for each place and dose."""
    rows = pd.DataFrame([t._asdict() | {"share": t.share, "place": _place(t)} for t in tried])
    order = list(dict.fromkeys(_place(t) for t in sorted(tried, key=lambda t: t.positions)))
    legend, blues = alt.Legend(format="%", title=None), alt.Scale(domain=[0, 1], scheme="blues")
    base = over(rows).encode(
        alt.X("dose:O", axis=alt.Axis(labelAngle=0)),
        alt.Y("place:O", title="layer, positions", sort=order),
        alt.Color("share:Q", scale=blues, legend=legend),
        tooltip=["place:N", "dose:O", "changed:Q", "damaged:Q", "answers:Q"],
    )
    return base.mark_rect().properties(height=24 * len(order))


def _place(t: Tried) -> str:
    return f"{t.source}, {t.positions}"
