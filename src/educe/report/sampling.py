"""Samplings: the best so far against draws of the prior, what the chain says, and the finds."""

from __future__ import annotations

import re
from typing import Any

import altair as alt
import pandas as pd

from educe.comparison.stats import Estimate
from educe.report.drawing import ARMS, colour, exact, over
from educe.report.figures import dressed
from educe.report.part import Part, Shown
from educe.report.templates import figure, fragment
from educe.rows import SAMPLED, SAMPLING
from educe.run.store import Run


def samplings(run: Run) -> list[dict[str, Any]]:
    """Return what came of each sampling of a run, as the run keeps it."""
    files = dict.fromkeys(p.file for p in run.perturbation_rows(derived=True) if p.how == SAMPLED)
    return [run.note(SAMPLING + file) for file in files if run.has(SAMPLING + file)]


def title(told: dict[str, Any]) -> str:
    """Return what a sampling is called."""
    asked = told["asked"]
    many, of = told["evaluations"]["found"], told["dimensions"]
    return f"{asked['sampler']}, {many} settings of {of} directions"


def account(told: dict[str, Any]) -> list[str]:
    """Return what came of a sampling, in sentences."""
    best = ", ".join(f"{arm} {told['best'][arm]:.3f}" for arm in ARMS if arm in told["best"])
    said = [f"highest estimate: {best}"]
    if (d := told["diagnosis"]) is not None:
        share = f"{d['acceptance']:.0%} of proposals accepted, "
        rhat = "" if d["rhat"] is None else f", R-hat {d['rhat']:.2f}"
        said.append(
            f"{share}autocorrelation time {d['autocorrelation']:.1f} steps, effective sample size "
            f"{d['effective']:.0f} ({d['per_evaluation']:.2f} for each evaluation){rhat}"
        )
    if told["answers"] is not None:
        said += told["answers"]["sentences"]
    said += [
        f"archive of {arm}: coverage {one['coverage']:.0%}, QD-score {one['qd_score']:.2f}"
        for arm, one in told["archives"].items()
    ]
    said += [
        f"at {stop['share']:g} of the norm: mean {stop['value']:.3f}, cosine to the direction "
        f"before {stop['cosine']:.2f}"
        for stop in told["path"]
    ]
    return said


def curves(told: dict[str, Any]) -> alt.Chart:
    """Draw the best estimate so far after so many settings, a line for each arm."""
    rows = pd.DataFrame(
        [
            {"arm": arm, "settings": spent, "best": best}
            for arm, line in told["curves"].items()
            for spent, best in line
        ]
    )
    return (
        over(rows)
        .mark_line(interpolate="step-after", strokeWidth=1.8)
        .encode(
            alt.X("settings:Q", title="settings evaluated"),
            alt.Y("best:Q", title="highest estimate", scale=alt.Scale(zero=False)),
            colour("arm", ARMS),
            tooltip=["arm:N", *exact("settings", "best")],
        )
        .properties(height=220)
    )


def render(run: Run, pattern: re.Pattern[str] | None) -> Shown | None:
    """Return what samplings of a run found."""
    told = samplings(run)
    if not told:
        return None
    shown = [
        {
            "title": title(one),
            "account": "; ".join(account(one)) + ".",
            "warnings": one["diagnosis"]["warnings"] if one["diagnosis"] else [],
            "directions": one["answers"]["directions"] if one["answers"] else [],
            "finds": [f | {"again": Estimate(**f["again"])} for f in one["finds"]],
        }
        for one in told
    ]
    html = fragment("sampling.html", pattern, samplings=shown, chart=figure)
    charts = {f"sampling-{i}": dressed(curves(one)) for i, one in enumerate(told)}
    return Shown(html, charts)


PART = Part("sampling", "Sampling", render)
