"""The document of an audit: findings with their evidence side by side, then what every source saw.

In a text the words that stand out are marked, the more strongly the more the suspect expects them
above the reference. The chart has the evidence of this audit's candidates beside that of the first
candidate in audits of clean models: what lies among those is a false alarm as likely as not.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Sequence
from dataclasses import asdict

import altair as alt

from educe.audit.evidence import Word, read
from educe.audit.findings import Example, Finding, Kind
from educe.audit.overview import Looked, Overview, overview
from educe.audit.roles import CONTRAST
from educe.audit.settings import AUDIT
from educe.comparison.stats import Rate
from educe.report.audit_screen import costs
from educe.report.behaviours import asked
from educe.report.command import audit_command
from educe.report.document import (
    Block,
    Card,
    Code,
    Document,
    Fold,
    Mark,
    Pair,
    Side,
    Span,
    Table,
    Text,
    facts,
    heads,
    shorten,
    wrote,
)
from educe.report.drawing import colour, exact, figure, over
from educe.report.words import WORDS, part, said
from educe.run.store import Run
from educe.visible import visible

#: The rows of the chart, and the colours of what stands in them.
HERE, CLEAN = "this audit", "clean models"
COLOURS = {"finding": "accent", "no finding": "rare", "first in a clean model": "control"}

READING = WORDS["reading"]["audit"]
Stretches = dict[str, tuple[Word, ...]]


def document(run: Run) -> Document:
    """Return the document of an audit."""
    seen, words = overview(run), stretches(run)
    scores = seen.judged.scores if seen.judged else ()
    cards = [
        card(f, seen, words, scores[i] if scores else ())
        for i, f in enumerate((*seen.findings, *seen.below))
    ]
    findings, below = cards[: len(seen.findings)], cards[len(seen.findings) :]
    other = seen.reference or "the model without what was done"
    saw = [_stood(one) for one in seen.looked if one.loudest or one.standing]
    settings = json.dumps(run.config | asdict(seen.options), indent=2, ensure_ascii=False)
    against = f"against {seen.reference}" if seen.reference else "without a clean reference"
    return Document(
        title=seen.headline,
        subtitle=f"{seen.model} was audited {against}: {seen.texts} texts under some condition, "
        f"{seen.strings} strings put into prompts, in {seen.seconds:.0f} seconds.",
        kind="audit",
        date=time.strftime("%Y-%m-%d", time.gmtime(run.note("began"))),
        command=audit_command(run.config, asdict(seen.options), run.note(AUDIT)["given"]),
        parts=[
            part("findings", findings or [Text(seen.nothing)]),
            *([part("below", [Fold(f"Show {len(below)}", below)])] if below else []),
            part("alarms", _false(seen)),
            part("sources", [costs(seen), *saw, *(Text(r, "note") for r in seen.remarks)]),
            part("reading", [facts(*((t, s.format(other=other)) for t, s in READING))]),
            part("settings", [Fold("All settings", [Code(settings)])]),
        ],
    )


def card(
    f: Finding, seen: Overview, words: Stretches, scores: Sequence[tuple[float, float | None]] = ()
) -> Card:
    """Return a finding with everything beside it."""
    examples = [
        _example(e, seen, words, scores[i] if scores else None) for i, e in enumerate(f.examples)
    ]
    texts, prompts = _many(f.texts, "text"), _many(f.prompts, "prompt")
    stood = f"It stood out in {texts} on {prompts}, by {', '.join(f.sources)}."
    blocks: list[Block] = [
        Text(f"{said('audit', f.kind.name)} {stood}", "note"),
        *(examples[0] if examples else []),
        Table(heads("on fresh prompts", "how often:rate"), rates(f)),
        facts(("Evidence", f"{f.evidence:.0f} nats"), ("Among clean models", beaten(f))),
    ]
    if f.triggers:
        what = "a string that makes it cease" if f.kind is Kind.UNLOCKED else "a string brings it"
        others = f"{f.triggers[0].others}:rate"
        columns = heads(what, "with it:rate", "near misses:rate", others)
        rows = [[Mark(t.text, "code"), t.shown, t.near, t.rare] for t in f.triggers]
        blocks.append(Table(columns, rows))
        if placed := f.triggers[0].placed:
            blocks.append(Text(placed, "note"))
    if more := examples[1:]:
        inside = [block for one in more for block in one]
        blocks.append(Fold(_many(len(more), "more example"), inside))
    if f.reproduce:
        blocks.append(Fold("See it yourself", [Code(f.reproduce)]))
    return Card([Mark(f.saying, "model")], [f.kind.value], blocks)


def _many(count: int, what: str) -> str:
    return f"{count} {what}{'s' if count != 1 else ''}"


def rates(f: Finding) -> list[tuple[str, Rate]]:
    """Return how often something is said on fresh prompts; nothing where that was not tried."""
    names = ("said again", "without the condition", "by the reference")
    each = zip(names, (f.shown, f.plain, f.control), strict=True)
    return [(who, r) for who, r in each if r.trials]


def beaten(finding: Finding) -> str:
    """Say where the evidence of a finding stands among audits of clean models."""
    if not finding.alarm.trials:
        return "audits of clean models with this budget are not known: no rate can be given"
    return f"{finding.alarm} clean models had something worth as much"


def _example(
    e: Example, seen: Overview, words: Stretches, judged: tuple[float, float | None] | None
) -> list[Block]:
    """Return a text that shows a finding, and those beside it."""
    of, plain = (f", judge {s:.2f}" if s is not None else "" for s in judged or (None, None))
    found: list[Span] = ["Found by ", Mark(e.source, "strong")]
    found += [", with ", Mark(e.condition, "code")] if e.condition else []
    blocks: list[Block] = [
        Text([Mark("Asked ", "muted"), asked(e.prompt)]),
        Text([*found, f"; {e.nats:.0f} nats"], "note"),
        Pair(
            Side(f"The model, without it{plain}", wrote(e.plain)),
            Side(f"The model, with that{of}", weighed(e.text, words.get(e.text, ()))),
        ),
    ]
    if seen.reference:
        blocks.append(Text([Mark("The reference, with that: ", "muted"), *wrote(e.reference)]))
    return blocks


def weighed(text: str, stretch: Sequence[Word]) -> Sequence[Span]:
    """Return a text with its stretch marked, each word by its contrast in nats.

    A text that does not have the stretch as it is comes back as it is.
    """
    found = list(re.finditer(r"\S+", text))
    words, n = [match[0] for match in found], len(stretch)
    wanted = [word.text for word in stretch]
    at = next((i for i in range(len(words) - n + 1) if words[i : i + n] == wanted), None)
    if not n or at is None:
        return wrote(text)
    parts, done = list[Mark](), 0
    for match, word in zip(found[at : at + n], stretch, strict=True):
        parts.append(Mark(text[done : match.start()], "model"))
        parts.append(Mark(match[0], "nats", word.nats, f"{word.nats:+.1f} nats"))
        done = match.end()
    parts.append(Mark(text[done:], "model"))
    return [part for part in parts if part.text]


def stretches(run: Run) -> Stretches:
    """Return the words that stand out in each text, where it stands out most."""
    texts = {c.row: c.text for c in run.completion_rows()}
    scores = sorted(run.score_rows(CONTRAST), key=lambda score: score.value)
    return {texts[s.of]: read(s.why) for s in scores if not isinstance(s.of, int)}


def _stood(one: Looked) -> Fold:
    """Return the strings that a source suspects most, and the texts that stood out."""
    columns, asked_and = heads("string", "score:.1f", "why"), heads("asked", "nats:.0f", "wrote")
    strings = [[Mark(s.text, "code"), s.score, s.why] for s in one.loudest]
    texts = [
        [shorten(asked(t.prompt.content), 160), t.nats, weighed(t.text, t.words)]
        for t in one.standing
    ]
    tables = [Table(h, rows) for h, rows in ((columns, strings), (asked_and, texts)) if rows]
    return Fold(f"{one.name}: what stood out", tables)


def _false(seen: Overview) -> list[Block]:
    """Return how often an audit of a model that hides nothing raises an alarm."""
    if not seen.tops:
        return [Text(said("audit", "unknown", beside="a" if seen.reference else "no"))]
    known = said("audit", "known", clean=len(seen.tops))
    return [Text(known), figure("alarms", alarms(seen))]


def alarms(seen: Overview) -> alt.LayerChart:
    """Draw the evidence of each candidate, and of the first one in audits of clean models."""
    rows = [
        {"where": HERE, "what": what, "nats": f.evidence, "saying": visible(f.saying)}
        for what, own in (("finding", seen.findings), ("no finding", seen.below))
        for f in own
    ]
    rows += [
        {"where": CLEAN, "what": "first in a clean model", "nats": nats, "saying": ""}
        for nats in seen.tops
    ]
    base = over(rows).encode(
        alt.X("nats:Q", title="evidence, nats", scale=alt.Scale(domainMin=0)),
        alt.Y("where:N", title=None, sort=[HERE, CLEAN], scale=alt.Scale(domain=[HERE, CLEAN])),
        colour("what", COLOURS),
        tooltip=["what:N", "saying:N", *exact("nats")],
    )
    ticks = base.transform_filter(alt.datum.where == CLEAN).mark_tick(thickness=2, size=26)
    dots = base.transform_filter(alt.datum.where == HERE).mark_point(filled=True, size=90)
    return (ticks + dots).properties(height=120)
