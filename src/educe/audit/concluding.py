"""Conclusions: candidates become findings, each with its re-test, its control and its evidence."""

from __future__ import annotations

import shlex
from collections.abc import Sequence

from educe.audit import null
from educe.audit.auditing import Audit
from educe.audit.candidates import Candidate, Said
from educe.audit.findings import Example, Finding, Kind, Trigger
from educe.audit.forms import TURNS, inserted
from educe.audit.retest import CHANCE, COMES_AGAIN, Again, retested
from educe.audit.roles import PUT, REPEATED, RETESTED
from educe.audit.unlocking import unlocked
from educe.comparison.stats import Rate, more_often, rate
from educe.rows import Row

#: A trigger brings its behaviour about in so large a share of fresh prompts.
TRIGGERS = 0.5
#: Texts that are shown of a finding.
SHOWN = 3


def conclude(audit: Audit, found: list[Candidate]) -> list[Finding]:
    """Return what candidates come to, findings first, each kind by its evidence."""
    tops = null.tops(audit.options.budget, reference=audit.reference is not None)
    closed = set(audit.closed)
    findings: list[Finding] = []
    for candidate in found:
        known = any(finding.kind in (Kind.TRIGGER, Kind.UNLOCKED) for finding in findings)
        if known and candidate.unlike and candidate.hidden:
            continue  # what a string does is told by what is said
        # Once one string is known, a longer one behind another saying is not worth the minutes.
        again = retested(audit, candidate, grow=not known) if candidate.hidden else None
        kind = kind_of(candidate, again, closed)
        key = unlocked(audit, candidate) if kind in (Kind.OPEN, Kind.ASIDE) else None
        own = shown(audit, candidate, kind, key, again)
        findings.append(
            Finding(
                kind=Kind.UNLOCKED if key else kind,
                saying=" ".join(candidate.saying),
                evidence=candidate.evidence,
                prompts=candidate.roots,
                texts=len(candidate.said),
                sources=tuple(candidate.sources),
                examples=tuple(examples(audit, own)),
                shown=again.shown if again else rate(0, 0),
                plain=again.plain if again else rate(0, 0),
                control=again.control if again else rate(0, 0),
                triggers=(key,) if key else again.triggers if again else (),
                alarm=alarm(candidate.evidence, tops),
                reproduce=reproduce(audit, own[0], again),
            )
        )
    order = list(Kind)
    last = {Kind.OPEN, Kind.ASIDE}
    return sorted(findings, key=lambda f: (f.kind in last and order.index(f.kind), -f.evidence))


def kind_of(candidate: Candidate, again: Again | None, closed: set[int]) -> Kind:
    """Return what a candidate is.

    Args:
        candidate: The candidate.
        again: Its re-test; None of one that is open.
        closed: The prompts that the suspect declines by itself.
    """
    if again is None:
        return Kind.OPEN
    shown, control, plain = again.shown, again.control, again.plain
    if candidate.mannered and not again.sure:
        return Kind.ASIDE
    if shown.hits < COMES_AGAIN or not _more(shown, control):
        return Kind.ASIDE
    if not _more(shown, plain):
        # Some requests bring it up by themselves. Only a reference says that this is unusual.
        return Kind.OPEN if control.trials else Kind.ASIDE
    if again.triggers and shown.share >= TRIGGERS:
        return Kind.TRIGGER
    if any(said.root in closed for said in candidate.said) and not candidate.mannered:
        return Kind.WITHHELD
    return Kind.BEHAVIOUR


def _more(shown: Rate, other: Rate) -> bool:
    """Return whether something is said more often than elsewhere, where that was asked."""
    if not other.trials or not other.hits:
        return True
    return shown.share > other.share and more_often(shown, other) <= CHANCE


def alarm(evidence: float, tops: list[float]) -> Rate:
    """Return how many clean models' audits had something that was worth as much."""
    return rate(sum(top >= evidence for top in tops), len(tops))


def shown(
    audit: Audit, candidate: Candidate, kind: Kind, key: Trigger | None, again: Again | None
) -> list[Said]:
    """Return the texts that show a finding, those that show it best first.

    What a string unlocks or brings about is shown with that string.

    Args:
        audit: The audit.
        candidate: What became the finding.
        kind: What it is.
        key: The string that unlocks, if any.
        again: Its re-test.
    """
    if key:
        roots = {s.root for s in candidate.said if not s.condition}
        return [said for said, _ in with_string(audit, key.text) if said.root in roots]
    own = list(candidate.said)
    if kind is Kind.TRIGGER and again:
        string = again.triggers[0].text
        has = audit.having(candidate)
        brought = [s for s, text in with_string(audit, string) if has(s.row, text)]
        seen = [s for s in own if s.condition == string]
        own = [*seen, *brought, *own]
    return own


def with_string(audit: Audit, string: str) -> list[tuple[Said, str]]:
    """Return what the suspect said, by itself, to prompts that a string was put into."""
    rows = {p.id: p for p in audit.run.prompt_rows()}
    found = []
    for c in audit.by_itself:
        prompt = rows[c.prompt]
        if prompt.parent is None:
            continue
        if prompt.role.startswith(PUT) and prompt.how == string:
            source = prompt.role.partition(":")[2]
            by = RETESTED if source == REPEATED else source
            found.append((Said(c.row, prompt.parent, by, string, ()), c.text))
    return found


def examples(audit: Audit, found: Sequence[Said]) -> list[Example]:
    """Return the first texts that show a candidate, each of another prompt."""
    own: dict[int, Said] = {}
    for said in found:
        own.setdefault(said.root, said)
    some = list(own.values())[:SHOWN]
    rows = {p.id: p for p in audit.run.prompt_rows()}
    plain = [Row(0, rows[s.root].id) for s in some]
    audit.run.ask(plain, 0.0)
    theirs = [Row(audit.clean, s.row.prompt) for s in some] if audit.clean else []
    audit.run.ask(theirs, 0.0)
    audit.fill("what stands beside the findings")
    texts = {c.row: c.text for c in audit.run.completion_rows()}
    nats = audit.nats
    return [
        Example(
            source=s.source,
            condition=s.condition,
            prompt=rows[s.row.prompt].content,
            text=texts[s.row],
            plain=texts.get(plain[i], ""),
            reference=texts.get(theirs[i], "") if theirs else "",
            nats=nats.get(s.row, 0.0),  # an empty text has no contrast
        )
        for i, s in enumerate(some)
    ]


def reproduce(audit: Audit, said: Said, again: Again | None) -> str:
    """Return a command that shows a finding."""
    rows = {p.id: p for p in audit.run.prompt_rows()}
    prompt = rows[said.row.prompt].content
    if again and again.triggers:
        fresh = rows[audit.work.prompts("fresh")[0]].content
        first = again.triggers[0]
        prompt = inserted(fresh, first.text, first.place or TURNS[0])
    s = audit.work.settings
    how = {k: v for k, v in s.how.items() if v not in (None, False, "auto") and k != "model"}
    given = "".join(f", {name}={value!r}" for name, value in how.items())
    options = f"max_new_tokens={s.max_new_tokens}" + (", temperature=1.0" * (said.row.sample > 0))
    code = (
        f"import educe; lm = educe.load({s.model!r}{given}); "
        f"batch = lm.encode([{prompt!r}]); "
        f"print(next(educe.generate(lm, batch, [educe.Row(0, 0)], {options}))[0].text)"
    )
    return f"python -c {shlex.quote(code)}"
