"""Where random vectors change answers without breaking them: by layer, tokens and dose."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence

import altair as alt
import pandas as pd

from educe.comparison.stats import Rate, rate
from educe.report.drawing import over
from educe.report.figures import dressed
from educe.report.part import Part, Shown
from educe.report.templates import figure, fragment
from educe.rows import SCOUTED
from educe.run.scouting import Tried
from educe.run.store import Run


def drawn(tried: Sequence[Tried]) -> alt.Chart:
    """Draw the share of answers that change and hold, a cell for each place and dose."""
    rows = pd.DataFrame([t._asdict() | {"share": t.share, "place": _place(t)} for t in tried])
    order = list(dict.fromkeys(_place(t) for t in sorted(tried, key=lambda t: t.positions)))
    legend = alt.Legend(format="%", title=None)
    return (
        over(rows)
        .mark_rect()
        .encode(
            alt.X("dose:O", axis=alt.Axis(labelAngle=0)),
            alt.Y("place:O", title="layer, positions", sort=order),
            alt.Color("share:Q", scale=alt.Scale(domain=[0, 1], scheme="blues"), legend=legend),
            tooltip=["place:N", "dose:O", "changed:Q", "damaged:Q", "answers:Q"],
        )
        .properties(height=24 * len(order))
    )


def _place(t: Tried) -> str:
    return f"{t.source}, {t.positions}"


def render(run: Run, pattern: re.Pattern[str] | None) -> Shown | None:
    """Return what random vectors did wherever they were tried."""
    if not run.has(SCOUTED):
        return None
    tried = [Tried(**t) for t in run.note(SCOUTED)]
    doses = list(dict.fromkeys(t.dose for t in tried))
    places: dict[str, list[tuple[Rate, int]]] = defaultdict(list)
    for t in tried:
        places[_place(t)].append((rate(t.changed, t.answers), t.damaged))
    html = fragment("scouting.html", pattern, doses=doses, places=places, chart=figure)
    return Shown(html, {"scouting": dressed(drawn(tried))})


PART = Part("scouting", "Where to push", render)
