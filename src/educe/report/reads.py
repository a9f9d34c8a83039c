"""The page of what layers read: how far a model can be thinned, ways of reading, single answers."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import altair as alt
import pandas as pd

from educe import files
from educe.reads.single import ARMS, Used
from educe.reads.survey import Survey
from educe.reads.thinning import NATS, Curve
from educe.reads.ways import SHOWN
from educe.report import drawing, templates
from educe.report.figures import dressed

#: The colour of each form of thinning, of each reader, and of each arm of a single answer.
FORMS = {
    "weights": "rare",
    "gradients": "fragile",
    "balanced": "accent",
    "components": "own",
    "random": "control",
}
READERS = {"attention": "accent", "mlp": "fragile"}
TRIED = dict(zip(ARMS, ("accent", "own", "control", "rare"), strict=True))


def write_survey(survey: Survey, path: Path) -> Path:
    """Write the page of a survey.

    Raises:
        RunError: The file cannot be written.
    """
    charts = {"thinned": _thinned(survey), "alone": _alone(survey)}
    if survey.groups:
        charts["ways"] = _ways(survey)
    text = templates.page(
        "reads.html",
        {name: dressed(chart) for name, chart in charts.items()},
        s=survey,
        used=[],
        words=words(survey),
        nats=NATS,
        shown=SHOWN,
        figure=templates.figure,
        date=time.strftime("%Y-%m-%d"),
    )
    files.write_bytes(path, text.encode("utf-8", "replace"))
    return path


def write_used(model: str, found: Sequence[Used], path: Path) -> Path:
    """Write the page of single answers.

    Raises:
        RunError: The file cannot be written.
    """
    charts = {}
    for i, one in enumerate(found):
        charts[f"effect-{i}"] = dressed(_effect(one))
        charts[f"trials-{i}"] = dressed(_trials(one))
    text = templates.page(
        "reads.html",
        charts,
        s=None,
        model=model,
        used=[(one, words_of(one)) for one in found],
        figure=templates.figure,
        date=time.strftime("%Y-%m-%d"),
    )
    files.write_bytes(path, text.encode("utf-8", "replace"))
    return path


# -- in words --------------------------------------------------------------------------------------


def words(survey: Survey) -> list[str]:
    """Say how many dimensions are needed, a line for each place and form."""
    width = max(curve.kept[-1] for curve in survey.curves)
    lines = [
        f"{survey.model}: dimensions that keep KL below {' and '.join(map(str, NATS))} nats a token"
    ]
    for layer in dict.fromkeys(curve.layer for curve in survey.curves):
        where = "all layers" if layer is None else f"layer {layer}"
        told = [f"{form} {_needed(survey.curve(form, layer), width)}" for form in survey.forms]
        lines.append(f"{where}: {', '.join(told)}")
    return lines


def words_of(used: Used) -> list[str]:
    """Say what an answer used."""
    lines = [f"answer: {used.answer!r}, log-likelihood {used.logprob:.2f} nats a token"]
    for arm in ARMS:
        stays, goes = used.staying(arm), used.going(arm)
        lines.append(
            f"{arm}: the likeliest tokens stay with {_count(stays)} components of each layer alone,"
            f" and change without {_count(goes)}"
        )
    return lines


def _needed(curve: Curve, width: int) -> str:
    each = [curve.needed(nats) for nats in NATS]
    return " / ".join(f"above {width}" if n is None else f"{n:.0f}" for n in each)


def _count(number: int | None) -> str:
    return "no number of" if number is None else str(number)


# -- charts ----------------------------------------------------------------------------------------


def _points(curves: Sequence[Curve]) -> Iterator[dict[str, Any]]:
    for curve in curves:
        where = "all layers" if curve.layer is None else f"layer {curve.layer}"
        for kept, kl, same in zip(curve.kept, curve.kl, curve.same, strict=True):
            told = {"dimensions": kept, "KL": max(kl, 1e-6), "same": same}
            yield {"form": curve.form, "where": where} | told


def _lines(curves: Sequence[Curve]) -> alt.Chart:
    return (
        drawing.over(pd.DataFrame(list(_points(curves))))
        .mark_line(point=True, strokeWidth=2)
        .encode(
            alt.X("dimensions:Q", title="dimensions kept"),
            alt.Y("KL:Q", scale=drawing.LOG, title="KL, nats a token"),
            drawing.colour("form", FORMS),
            tooltip=["form:N", "where:N", *drawing.exact("dimensions", "KL", "same")],
        )
    )


def _thinned(survey: Survey) -> alt.LayerChart:
    lines = _lines([curve for curve in survey.curves if curve.layer is None])
    return (lines + drawing.rule(KL=NATS[0]) + drawing.rule(KL=NATS[1])).properties(height=320)


def _alone(survey: Survey) -> alt.LayerChart:
    """Draw how many dimensions each layer needs, thinned alone."""
    rows = pd.DataFrame(
        {"layer": curve.layer, "form": curve.form, "dimensions": curve.needed(NATS[0])}
        for curve in survey.curves
        if curve.layer is not None
    )
    return (
        drawing.over(rows)
        .mark_line(point=True, strokeWidth=2)
        .encode(
            alt.X("layer:Q", title="layer", axis=alt.Axis(tickMinStep=1)),
            alt.Y("dimensions:Q", title=f"dimensions for {NATS[0]} nats"),
            drawing.colour("form", FORMS),
            tooltip=["form:N", *drawing.exact("layer", "dimensions")],
        )
        .properties(height=260)
    )


def _ways(survey: Survey) -> alt.LayerChart:
    """Draw in how many ways each layer is read by the next block."""
    rows = pd.DataFrame(
        {"layer": group.layer, "reader": group.reader, "ways": group.number}
        for group in survey.groups
        if group.reader in READERS
    )
    return (
        drawing.over(rows)
        .mark_line(point=True, strokeWidth=2)
        .encode(
            alt.X("layer:Q", title="layer", axis=alt.Axis(tickMinStep=1)),
            alt.Y("ways:Q", title="ways with 90% of what is read"),
            drawing.colour("reader", READERS),
            tooltip=["reader:N", *drawing.exact("layer", "ways")],
        )
        .properties(height=220)
    )


def _effect(used: Used) -> alt.Chart:
    """Draw what taking away each token's activation at each layer does to the answer."""
    rows = pd.DataFrame(
        {"layer": layer, "at": at, "token": used.tokens[at], "nats": value}
        for layer, line in enumerate(used.effect.tolist())
        for at, value in enumerate(line)
    )
    scale = alt.Scale(scheme="viridis", type="symlog", constant=0.01)
    return (
        drawing.over(rows)
        .mark_rect()
        .encode(
            alt.X("at:O", title="token", axis=alt.Axis(labelOverlap=True)),
            alt.Y("layer:O", title="layer", sort="descending"),
            alt.Color("nats:Q", scale=scale, title="nats"),
            tooltip=["token:N", "layer:O", *drawing.exact("nats")],
        )
        .properties(height=10 * len(used.effect) + 60)
    )


def _trials(used: Used) -> alt.Chart:
    """Draw what becomes of the answer with components alone, and without them."""
    rows = pd.DataFrame(
        trial._asdict() | {"how": "taken away" if trial.away else "kept alone"}
        for trial in used.trials
    )
    dashes = alt.Legend(title=None, orient="top", symbolType="stroke")
    return (
        drawing.over(rows)
        .mark_line(point=True, strokeWidth=2)
        .encode(
            alt.X("number:Q", scale=drawing.LOG, title="components of each layer"),
            alt.Y("logprob:Q", title="nats a token"),
            drawing.colour("arm", TRIED),
            alt.StrokeDash("how:N", legend=dashes),
            tooltip=["arm:N", "how:N", *drawing.exact("number", "energy", "logprob", "same")],
        )
        .properties(height=300)
    )
