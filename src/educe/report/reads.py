"""What layers read: how far a model can be thinned, ways of reading, single answers."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import Any

import altair as alt

from educe.reads.single import ARMS, Used
from educe.reads.survey import Survey
from educe.reads.thinning import NATS, Curve
from educe.reads.ways import Context, Group
from educe.report import words as report_words
from educe.report.document import Block, Document, Fold, Mark, Part, Text
from educe.report.drawing import LOG, colour, exact, figure, lines, over, rule

#: The colour of each form of thinning, of each reader, and of each arm of a single answer.
FORMS = {
    "weights": "rare",
    "gradients": "fragile",
    "balanced": "accent",
    "components": "own",
    "random": "control",
}
READERS = {"attention": "accent", "mlp": "fragile"}
LAYER = alt.X("layer:Q", title="layer", axis=alt.Axis(tickMinStep=1))
TRIED = dict(zip(ARMS, ("accent", "own", "control", "rare"), strict=True))


def of_survey(survey: Survey) -> Document:
    """Return the document of a survey."""
    drawn = [figure("thinned", _thinned(survey)), figure("alone", _alone(survey))]
    parts = [report_words.part("thinning", [*map(Text, words(survey)), *drawn])]
    if survey.groups:
        ways: list[Block] = [figure("ways", _ways(survey)), *_readers(survey)]
        parts.append(report_words.part("ways", ways))
    read = f"{survey.tokens} tokens of the corpus {survey.corpus} forward and backward"
    return _document(survey.model, f"{read}, {survey.held_out} held out", parts)


def of_answers(model: str, found: Sequence[Used]) -> Document:
    """Return the document of single answers."""
    parts = []
    for i, one in enumerate(found):
        facts = one._asdict()
        drawn = [figure(n, draw(one), i, **facts) for n, draw in DRAWN.items()]
        parts.append(Part(f"used-{i}", one.answer, [*map(Text, words_of(one)), *drawn]))
    return _document(model, "What single answers use of each layer", parts)


def _document(model: str, subtitle: str, parts: Sequence[Part]) -> Document:
    title, date = f"{model}: what later layers read", time.strftime("%Y-%m-%d")
    return Document(title, subtitle, "reads", date, None, parts)


def _readers(survey: Survey) -> Iterator[Fold]:
    """Yield where each reader's ways are largest; of a head, the first way."""
    heads: dict[int, list[Block]] = {}
    for group in survey.groups:
        ways = [block for i in range(len(group.shown)) for block in _way(group, i)]
        if group.reader.startswith("head"):
            heads.setdefault(group.layer, []).extend(_way(group, 0))
            continue
        by = f"{group.reader} of block {group.layer + 1}: {group.number} ways"
        yield Fold(f"layer {group.layer}, read by the {by}", ways)
    for layer, blocks in heads.items():
        yield Fold(f"layer {layer}, read by the heads of block {layer + 1}", blocks)


def _way(group: Group, i: int) -> list[Block]:
    """Return where a way is largest."""
    share = group.value[i].item() / group.value.sum().item()
    said = f"{group.reader}, way {i + 1} of {group.number}, {share:.1%} of what is read"
    return [Text(said, "note"), *map(_context, group.shown[i])]


def _context(c: Context) -> Text:
    return Text(
        [Mark(f"{c.coefficient:+.1f} ", "muted"), c.before, Mark(c.token, "match"), c.after]
    )


# -- in words --------------------------------------------------------------------------------------


def words(survey: Survey) -> list[str]:
    """Say how many dimensions are needed, a line for each place and form."""
    width = max(curve.kept[-1] for curve in survey.curves)
    below = " and ".join(map(str, NATS))
    said = [f"{survey.model}: dimensions that keep KL below {below} nats a token"]
    for layer in dict.fromkeys(curve.layer for curve in survey.curves):
        where = "all layers" if layer is None else f"layer {layer}"
        each = [f"{form} {_needed(survey.curve(form, layer), width)}" for form in survey.forms]
        said.append(f"{where}: {', '.join(each)}")
    return said


def words_of(used: Used) -> list[str]:
    """Say what an answer used."""
    said = [f"answer: {used.answer!r}, log-likelihood {used.logprob:.2f} nats a token"]
    for arm in ARMS:
        stays, goes = used.staying(arm), used.going(arm)
        said.append(
            f"{arm}: the likeliest tokens stay with {_count(stays)} components of each layer alone,"
            f" and change without {_count(goes)}"
        )
    return said


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


def _thinned(survey: Survey) -> alt.LayerChart:
    rows = list(_points([curve for curve in survey.curves if curve.layer is None]))
    across = alt.X("dimensions:Q", title="dimensions kept")
    up, by = alt.Y("KL:Q", scale=LOG, title="KL, nats a token"), colour("form", FORMS)
    told = ("form:N", "where:N", *exact("dimensions", "KL", "same"))
    drawn = lines(rows, across, up, by, *told, point=True)
    return (drawn + rule(KL=NATS[0]) + rule(KL=NATS[1])).properties(height=320)


def _alone(survey: Survey) -> alt.Chart:
    """Draw how many dimensions each layer needs, thinned alone."""
    rows = [
        {"layer": curve.layer, "form": curve.form, "dimensions": curve.needed(NATS[0])}
        for curve in survey.curves
        if curve.layer is not None
    ]
    up = alt.Y("dimensions:Q", title=f"dimensions for {NATS[0]} nats")
    told = ("form:N", *exact("layer", "dimensions"))
    return lines(rows, LAYER, up, colour("form", FORMS), *told, point=True).properties(height=260)


def _ways(survey: Survey) -> alt.Chart:
    """Draw in how many ways each layer is read by the next block."""
    rows = [
        {"layer": group.layer, "reader": group.reader, "ways": group.number}
        for group in survey.groups
        if group.reader in READERS
    ]
    up, by = alt.Y("ways:Q", title="ways with 90% of what is read"), colour("reader", READERS)
    told = ("reader:N", *exact("layer", "ways"))
    return lines(rows, LAYER, up, by, *told, point=True).properties(height=220)


def _effect(used: Used) -> alt.Chart:
    """Draw what taking away each token's activation at each layer does to the answer."""
    rows = [
        {"layer": layer, "at": at, "token": used.tokens[at], "nats": value}
        for layer, line in enumerate(used.effect.tolist())
        for at, value in enumerate(line)
    ]
    shade = alt.Scale(scheme="viridis", type="symlog", constant=0.01)
    drawn = over(rows).encode(
        alt.X("at:O", title="token", axis=alt.Axis(labelOverlap=True)),
        alt.Y("layer:O", title="layer", sort="descending"),
        alt.Color("nats:Q", scale=shade, title="nats"),
        tooltip=["token:N", "layer:O", *exact("nats")],
    )
    return drawn.mark_rect().properties(height=10 * len(used.effect) + 60)


def _trials(used: Used) -> alt.Chart:
    """Draw what becomes of the answer with components alone, and without them."""
    rows = [
        trial._asdict() | {"how": "taken away" if trial.away else "kept alone"}
        for trial in used.trials
    ]
    dashes = alt.Legend(title=None, orient="top", symbolType="stroke")
    across = alt.X("number:Q", scale=LOG, title="components of each layer")
    told = ("arm:N", "how:N", *exact("number", "energy", "logprob", "same"))
    up, by = alt.Y("logprob:Q", title="nats a token"), colour("arm", TRIED)
    drawn = lines(rows, across, up, by, *told, point=True)
    return drawn.encode(alt.StrokeDash("how:N", legend=dashes)).properties(height=300)


#: The charts of a single answer.
DRAWN = {"effect": _effect, "trials": _trials}
