"""Paths of vectors through the radius as charts; they are read from the run as JSON."""

from __future__ import annotations

from typing import Any

import altair as alt
import numpy as np

from educe.report.figures import PALETTE, dressed
from educe.report.path_table import ARMS, CURVES, curves_of

#: Rates are shown within these: what is beyond has the colour of the end.
RATES = (-1.0, 3.0)
#: Curves whose values are of different sizes.
LOGARITHMIC = ("neurons_variance",)


def charts(path: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the specifications of a path's charts, by name."""
    drawn: dict[str, Any] = {f"path-{name}": curves(path, name) for name in curves_of(path)}
    for number, maps in path["maps"].items():
        drawn |= {f"path-map-{number}-{basis}": heat(path, number, basis) for basis in maps}
    return {f"{name}-{path['key']}": dressed(chart) for name, chart in drawn.items()}


def curves(path: dict[str, Any], name: str) -> alt.LayerChart:
    """Draw a curve of every vector found, and the median and range of each null."""
    lines, bands = [], []
    for arm, (title, _) in ARMS.items():
        for share, row in zip(
            path["shares"], path["arms"].get(arm, {}).get(name, []), strict=False
        ):
            values = [x for x in row if x is not None]
            if not values:
                continue
            low, middle, high = np.quantile(values, [0.0, 0.5, 1.0])
            bands.append({"share": share, "of": title, "at": middle, "low": low, "high": high})
            if arm == "found":
                lines += [
                    {"share": share, "at": x, "of": title, "number": n}
                    for n, x in zip(path["numbers"], row, strict=True)
                    if x is not None
                ]
    along = alt.X(
        "share:Q", scale=alt.Scale(type="log", nice=False), title="radius, share of its own"
    )
    scale = alt.Scale(type="log", nice=False) if name in LOGARITHMIC else alt.Scale()
    axis = alt.Axis(tickCount=5, format=".3~g")
    up = alt.Y("at:Q", title=CURVES[name], scale=scale, axis=axis)
    shown = [(t, c) for arm, (t, c) in ARMS.items() if name in path["arms"].get(arm, {})]
    colour = alt.Color(
        "of:N",
        scale=alt.Scale(domain=[t for t, _ in shown], range=[PALETTE[c][0] for _, c in shown]),
        legend=alt.Legend(title=None, orient="top", columns=4),
    )
    every = alt.Chart(alt.Data(values=lines)).mark_line(strokeWidth=1, opacity=0.35)
    median = alt.Chart(alt.Data(values=bands)).mark_line(strokeWidth=2.5)
    null = [band for band in bands if band["of"] != "found"]
    spread = alt.Chart(alt.Data(values=null)).mark_area(opacity=0.13)
    return (
        spread.encode(
            along,
            alt.Y("low:Q", title=CURVES[name], scale=scale, axis=axis),
            alt.Y2("high:Q"),
            colour,
        )
        + every.encode(
            along, up, colour, alt.Detail("number:N"), tooltip=["number:N", "share:Q", "at:Q"]
        )
        + median.encode(along, up, colour, tooltip=["of:N", "share:Q", "at:Q"])
    ).properties(height=240)


def heat(path: dict[str, Any], number: str, basis: str) -> alt.Chart:
    """Draw how the largest coordinates of a vector change along its path."""
    own = path["maps"][number][basis]
    rows = [
        {
            "share": f"{share:.2f}",
            "coordinate": name,
            "rate": min(max(own["rate"][k][j], RATES[0]), RATES[1]),
            "exact": own["rate"][k][j],
            "size": own["size"][k][j],
        }
        for k, share in enumerate(path["shares"])
        for j, name in enumerate(own["names"])
        if own["rate"][k][j] is not None
    ]
    return (
        alt.Chart(alt.Data(values=rows))
        .mark_rect()
        .encode(
            alt.X("share:O", sort=None, title="radius, share of its own"),
            alt.Y("coordinate:N", sort=own["names"], title=None),
            alt.Color(
                "rate:Q",
                scale=alt.Scale(scheme="purpleorange", domain=list(RATES), domainMid=1),
                legend=alt.Legend(title="rate", orient="right"),
            ),
            tooltip=["coordinate:N", "share:N", "exact:Q", "size:Q"],
        )
        .properties(height=18 * len(own["names"]))
    )
