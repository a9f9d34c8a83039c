"""What charts share: marks over rows, axes, legends, and the colours of a light page.

`PALETTE` has the colour of each role on a dark page too; the page swaps them.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import altair as alt
import pandas as pd
from altair.utils.schemapi import debug_mode

from educe.explore import bundle
from educe.report.document import Chart
from educe.report.words import told

#: Light and dark colour by role.
PALETTE = bundle.palette()
FONT = "Segoe UI, Roboto, Helvetica Neue, Noto Sans, Liberation Sans, Arial, sans-serif"
#: The colour of each arm.
ARMS = {"found": "accent", "control": "control"}
#: The share of the control that a band holds.
BAND = (0.1, 0.9)
#: A logarithmic axis that ends where the points do.
LOG = alt.Scale(type="log", nice=False, padding=8)
#: All of it, on an axis of shares.
WHOLE = alt.Scale(domain=[0, 1])


def over(rows: pd.DataFrame | Sequence[dict[str, Any]]) -> alt.Chart:
    """Return a chart over rows; numbers with four digits, NaN as none."""
    each = rows.to_dict("records") if isinstance(rows, pd.DataFrame) else rows
    values = [{str(k): _short(v) for k, v in row.items()} for row in each]
    with debug_mode(False):  # or each row is held against a schema
        return alt.Chart(alt.Data(values=values))


def _short(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.4g}") if math.isfinite(value) else None
    return value


def banded(rows: pd.DataFrame, value: str, by: list[str]) -> pd.DataFrame:
    """Return the ends of what `BAND` of the values lies between, in each group."""
    each = rows.groupby(by)[value]
    ends = {"low": each.quantile(BAND[0]), "high": each.quantile(BAND[1])}
    return pd.DataFrame(ends).reset_index()


def lines(
    rows: pd.DataFrame | Sequence[dict[str, Any]],
    x: alt.X,
    y: alt.Y,
    by: alt.Color,
    *told: str | alt.Tooltip,
    detail: Any = alt.Undefined,
    **mark: Any,
) -> alt.Chart:
    """Draw lines over rows, a colour each, which tell so much where the pointer is."""
    drawn = over(rows).mark_line(**{"strokeWidth": 2} | mark)
    return drawn.encode(x, y, by, tooltip=list(told), detail=detail)


def scale(roles: dict[str, str]) -> alt.Scale:
    """Return the colours of some names, which have the roles of the palette."""
    return alt.Scale(domain=list(roles), range=[PALETTE[role][0] for role in roles.values()])


def colour(field: str, roles: dict[str, str], **legend: Any) -> alt.Color:
    """Return colours by a field, with their legend."""
    shown = alt.Legend(**{"title": None, "orient": "top", "labelLimit": 260} | legend)
    return alt.Color(f"{field}:N", scale=scale(roles), legend=shown)


def exact(*names: str) -> Iterable[alt.Tooltip]:
    """Return tooltips that show numbers."""
    return [alt.Tooltip(f"{name}:Q", format=".3~g", title=name) for name in names]


def percent(*names: str, digits: int = 0) -> Iterable[alt.Tooltip]:
    """Return tooltips that show shares."""
    return [alt.Tooltip(f"{name}:Q", format=f".{digits}%", title=name) for name in names]


def share(field: str, title: str, *, whole: bool = True) -> alt.Y:
    """Return a vertical axis of shares, from none to all, or from the least to the most."""
    axis, ends = alt.Axis(format="%", tickCount=5), WHOLE if whole else alt.Undefined
    return alt.Y(f"{field}:Q", scale=ends, axis=axis, title=title)


def rule(**at: float) -> alt.Chart:
    """Draw a dashed line across, at a value of the vertical axis."""
    ((name, _),) = at.items()
    across = over([at]).encode(alt.Y(f"{name}:Q"))
    return across.mark_rule(strokeDash=[4, 4], color=PALETTE["muted"][0])


def figure(kind: str, chart: alt.Chart | alt.LayerChart, of: str | int = "", **facts: Any) -> Chart:
    """Return a chart as a block, in the style of the page, with the words of its kind."""
    name = f"{kind}-{of}" if of != "" else kind
    ink, muted, grey = (PALETTE[role][0] for role in ("ink", "muted", "line"))
    spec = (
        chart.properties(width="container", background="transparent")
        .properties(autosize=alt.AutoSizeParams(type="fit-x", contains="padding"))
        .configure(font=FONT)
        .configure_view(stroke=grey)
        .configure_axis(
            labelColor=muted,
            titleColor=muted,
            titleFontWeight="normal",
            labelFontSize=12,
            titleFontSize=12,
            titlePadding=10,
            domainColor=grey,
            tickColor=grey,
            gridColor=grey,
        )
        .configure_legend(labelColor=ink, labelFontSize=12, labelLimit=160)
        .to_dict(validate=False)  # it takes seconds for some thousand rows
    )
    return Chart(name, spec, *told("charts", kind, **facts))
