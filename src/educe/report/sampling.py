"""Samplings: the best so far against draws of the prior, what the chain says, and the finds."""

from __future__ import annotations

import re
from typing import Any

import altair as alt

from educe.comparison.stats import Estimate
from educe.report import words
from educe.report.document import Block, Heading, Part, Table, Text, heads, wrote
from educe.report.drawing import ARMS, colour, exact, figure, lines
from educe.rows import SAMPLED, SAMPLING
from educe.run.store import Run


def part(run: Run, pattern: re.Pattern[str] | None) -> Part | None:
    """Return what samplings of a run found."""
    files = dict.fromkeys(p.file for p in run.perturbation_rows(derived=True) if p.how == SAMPLED)
    told = [run.note(SAMPLING + file) for file in files if run.has(SAMPLING + file)]
    shown = [block for i, one in enumerate(told) for block in blocks(one, i)]
    return words.part("sampling", shown) if told else None


def blocks(told: dict[str, Any], number: int = 0) -> list[Block]:
    """Return what came of a sampling, as the run keeps it."""
    asked, many = told["asked"], told["evaluations"]["found"]
    columns = heads("id:id", "from:id", "arm", "chosen:.3f", "re-test:rate", "it writes:texts")
    rows = [
        [f["number"], f["parent"], f["arm"], f["seen"], Estimate(**f["again"]), wrote(f["text"])]
        for f in told["finds"]
    ]
    warnings = told["diagnosis"]["warnings"] if told["diagnosis"] else ()
    return [
        Heading(f"{asked['sampler']}, {many} settings of {told['dimensions']} directions"),
        *(Text(sentence) for sentence in account(told)),
        *(Text(f"not mixed: {warning}") for warning in warnings),
        *_directions(told),
        figure("sampling", curves(told), number),
        Table(columns, rows),
    ]


def _directions(told: dict[str, Any]) -> list[Block]:
    """Return what the posterior says of each direction."""
    if not told["answers"]:
        return []
    columns = heads("direction", "mean:+.2f", "sd:.2f", "verdict")
    each = told["answers"]["directions"]
    rows = [[one[name] for name in ("name", "mean", "sd", "says")] for one in each]
    return [Text(words.said("tables", "directions"), "note"), Table(columns, rows)]


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
    rows = [
        {"arm": arm, "settings": spent, "best": best}
        for arm, line in told["curves"].items()
        for spent, best in line
    ]
    across = alt.X("settings:Q", title="settings evaluated")
    up = alt.Y("best:Q", title="highest estimate", scale=alt.Scale(zero=False))
    beside = ("arm:N", *exact("settings", "best"))
    drawn = lines(rows, across, up, colour("arm", ARMS), *beside, interpolate="step-after")
    return drawn.properties(height=220)
