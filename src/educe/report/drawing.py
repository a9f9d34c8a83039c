"""What the charts of studies share: marks over the rows of a frame, in the page's colours."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import altair as alt
import pandas as pd

from educe.report.figures import PALETTE

#: The colour of each arm.
ARMS = {"found": "accent", "control": "control"}
#: The share of the control that a band holds.
BAND = (0.1, 0.9)
#: A logarithmic axis that ends where the points do.
LOG = alt.Scale(type="log", nice=False, padding=8)


def over(rows: pd.DataFrame) -> alt.Chart:
    """Return a chart over the rows of a frame; numbers with four digits, NaN as none."""
    values = [{str(k): _short(v) for k, v in row.items()} for row in rows.to_dict("records")]
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


def colour(field: str, roles: dict[str, str], **legend: Any) -> alt.Color:
    """Return colours by a field, which has the roles of the palette."""
    scale = alt.Scale(domain=list(roles), range=[PALETTE[role][0] for role in roles.values()])
    shown = alt.Legend(**{"title": None, "orient": "top", "labelLimit": 260} | legend)
    return alt.Color(f"{field}:N", scale=scale, legend=shown)


def exact(*names: str) -> Iterable[alt.Tooltip]:
    """Return tooltips that show numbers."""
    return (alt.Tooltip(f"{name}:Q", format=".3~g") for name in names)


def rule(**at: float) -> alt.Chart:
    """Draw a dashed line across, at a value of the vertical axis."""
    ((name, _),) = at.items()
    line = alt.Chart(alt.Data(values=[at])).encode(alt.Y(f"{name}:Q"))
    return line.mark_rule(strokeDash=[4, 4], color=PALETTE["muted"][0])
