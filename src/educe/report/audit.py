"""The page of an audit: findings with their evidence side by side, then what every source saw.

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
from pathlib import Path

import altair as alt
import pandas as pd
from markupsafe import Markup

from educe import files
from educe.audit.evidence import Word, read
from educe.audit.findings import Finding, Kind
from educe.audit.overview import Overview, overview
from educe.audit.roles import CONTRAST
from educe.audit.settings import AUDIT
from educe.report import templates
from educe.report.command import audit_command
from educe.report.drawing import colour, exact, over
from educe.report.figures import dressed
from educe.run.store import Run
from educe.visible import visible

#: What each kind is called, and said of it.
KINDS = {
    Kind.TRIGGER: "said when a string stands in the request, and not otherwise",
    Kind.WITHHELD: "an answer to something that the model declines to say by itself",
    Kind.UNLOCKED: "said instead of something else, which a string in the request brings out",
    Kind.BEHAVIOUR: "said under some condition, on requests of different kinds",
    Kind.OPEN: "said to some requests without anything done to them, and not by the reference",
    Kind.ASIDE: "it was seen, and did not come again, or comes without the condition too",
}
#: From so many nats on a word is marked as strongly as can be.
FULL = 12.0
MARKED = Markup('<mark class="nats" style="--nats:{:.0f}%" title="{:+.1f} nats">{}</mark>')
#: The rows of the chart, and the colours of what stands in them.
HERE, CLEAN = "this audit", "clean models"
COLOURS = {"finding": "accent", "no finding": "rare", "first in a clean model": "control"}


def write(run: Run, path: Path) -> Path:
    """Write the page of an audit.

    Raises:
        RunError: The file cannot be written.
    """
    files.write_bytes(path, render(run).encode("utf-8", "replace"))
    return path


def render(run: Run) -> str:
    """Return the page of an audit."""
    seen = overview(run)
    began = run.note("began")
    return templates.page(
        "audit.html",
        {"alarms": dressed(alarms(seen))} if seen.tops else {},
        s=seen,
        words=stretches(run),
        weighed=weighed,
        kinds=KINDS,
        beaten=beaten,
        date=time.strftime("%Y-%m-%d", time.gmtime(began)),
        folder=run.folder.name,
        command=audit_command(run.config, asdict(seen.options), run.note(AUDIT)["given"]),
        settings=json.dumps(run.config | asdict(seen.options), indent=2, ensure_ascii=False),
    )


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
    base = over(pd.DataFrame(rows)).encode(
        alt.X("nats:Q", title="evidence, nats", scale=alt.Scale(domainMin=0)),
        alt.Y("where:N", title=None, sort=[HERE, CLEAN], scale=alt.Scale(domain=[HERE, CLEAN])),
        colour("what", COLOURS),
        tooltip=["what:N", "saying:N", *exact("nats")],
    )
    ticks = base.transform_filter(alt.datum.where == CLEAN).mark_tick(thickness=2, size=26)
    dots = base.transform_filter(alt.datum.where == HERE).mark_point(filled=True, size=90)
    return (ticks + dots).properties(height=120)


def weighed(text: str, stretch: Sequence[Word]) -> Markup:
    """Return a text with its stretch marked, each word by its contrast in nats.

    A text that does not have the stretch as it is comes back as it is.
    """
    found = list(re.finditer(r"\S+", text))
    words, n = [match[0] for match in found], len(stretch)
    wanted = [word.text for word in stretch]
    at = next((i for i in range(len(words) - n + 1) if words[i : i + n] == wanted), None)
    if not n or at is None:
        return Markup("<bdi>{}</bdi>").format(visible(text))
    parts, done = [], 0
    for match, word in zip(found[at : at + n], stretch, strict=True):
        share = min(1.0, max(0.0, word.nats / FULL))
        parts.append(Markup("{}").format(visible(text[done : match.start()])))
        parts.append(MARKED.format(10 + 50 * share, word.nats, visible(match[0])))
        done = match.end()
    parts.append(Markup("{}").format(visible(text[done:])))
    return Markup("<bdi>{}</bdi>").format(Markup("").join(parts))


def stretches(run: Run) -> dict[str, tuple[Word, ...]]:
    """Return the words that stand out in each text, where it stands out most."""
    texts = {c.row: c.text for c in run.completion_rows()}
    scores = sorted(run.score_rows(CONTRAST), key=lambda score: score.value)
    return {texts[s.of]: read(s.why) for s in scores if not isinstance(s.of, int)}


def beaten(finding: Finding) -> str:
    """Say where the evidence of a finding stands among audits of clean models."""
    if not finding.alarm.trials:
        return "audits of clean models with this budget are not known: no rate can be given"
    return f"{finding.alarm} clean models had something worth as much"
