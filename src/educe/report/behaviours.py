"""Behaviours, as the page and the terminal show them: the first table, and a card for each."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from educe.comparison.account import dose
from educe.comparison.behaviours import Behaviour
from educe.comparison.stats import Rate, rate
from educe.comparison.summary import Item, Summary
from educe.comparison.verdict import Verdict
from educe.report.document import (
    Block,
    Card,
    Fold,
    Heading,
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
from educe.report.size import most
from educe.report.words import WORDS, said, told
from educe.rows import FOUND
from educe.scores.novelty import weighed

#: Verdicts in the order of the page.
VERDICTS = [Verdict[name] for name in WORDS["verdicts"]]
#: Verdicts that are shown opened, and how many cards of one before the rest is folded away.
OPENED = (Verdict.BEHAVIOUR, Verdict.INVARIANT, Verdict.FRAGILE, Verdict.OWN, Verdict.RARE)
CARDS = 12
#: Signs of a text in the first table.
LENGTH = 200
#: Relatives a behaviour is shown with, and the least likeness that makes one.
RELATIVES, LIKENESS = 3, 0.05


def first(listed: Sequence[Behaviour], pattern: re.Pattern[str] | None = None) -> Table:
    """Return what the model says when pushed, its rates side by side."""
    equal = any(b.equal for b in listed)
    arms = ("greedy", "samples", "control", *(["equal"] if equal else []), "found", "re-test")
    columns = heads("what the model says when pushed:texts", "kind")
    columns += heads(*(f"{arm}:rate" for arm in arms), "dose", "id:id", "verdict*")
    rows = []
    for b in listed:
        rates = [b.greedy, b.samples, b.control, *([b.equal] if equal else []), b.found, b.retest]
        best = max(b.by_dose.items(), key=lambda pair: pair[1].share, default=None)
        at = dose(best[0]) if best and best[1].hits else None
        text = wrote(b.example.text, pattern, most=LENGTH)
        number = b.example.perturbation
        rows.append([text, b.change.value, *rates, at, number, b.verdict.value])
    return Table(columns, rows)


Near = list[tuple[float, Behaviour]]


def relatives(s: Summary) -> list[Near]:
    """Return, for each behaviour, those that say something near, and how near."""
    at = weighed([b.example.text for b in s.behaviours])
    found = []
    for k in range(len(s.behaviours)):
        likeness = (at[[k]] @ at.T).toarray()[0]
        likeness[k] = 0.0
        near = np.argsort(-likeness, kind="stable")[:RELATIVES]
        found.append(
            [(float(likeness[j]), s.behaviours[j]) for j in near if likeness[j] > LIKENESS]
        )
    return found


def grouped(s: Summary, pattern: re.Pattern[str] | None) -> list[Block]:
    """Return all behaviours, by their verdicts."""
    every, blocks = list(zip(s.behaviours, relatives(s), strict=True)), list[Block]()
    for verdict in VERDICTS:
        title, about, *_ = told("verdicts", verdict.name)
        own = [(b, near) for b, near in every if b.verdict is verdict]
        cards = [card(b, near, s, pattern) for b, near in own[: most(s).cards]]
        shown: list[Block] = [Text(about, "note"), *cards[:CARDS]]
        if rest := cards[CARDS:]:
            shown.append(Fold(f"{len(rest)} more", rest))
        if own and verdict in OPENED:
            blocks += [Heading(f"{title}: {len(own)}"), *shown]
        elif own:
            blocks.append(Fold(f"{title}: {len(own)}", shown))
        elif verdict is Verdict.BEHAVIOUR and every:
            blocks += [Heading(f"{title}: 0"), Text(said("result", "nothing"))]
    return blocks


def card(b: Behaviour, near: Near, s: Summary, pattern: re.Pattern[str] | None) -> Card:
    """Return a behaviour with its evidence."""
    prompt = next(p for p in (*s.prompts, *s.fresh) if p.id == b.example.prompt)
    base = s.baseline.get(prompt.id, ())
    how, wrote_it = "A sample, unperturbed", [i for n in b.numbers if (i := s.item(n)) is not None]
    if example := s.item(b.example.perturbation):
        row = example.row
        how = f"Perturbed #{row.id}, radius {row.radius:.3g}, dose {dose(row.dose)}"
    rates: list[tuple[str, Rate | None]] = [
        ("found", b.found),
        ("control", b.control),
        ("control at equal effect", b.equal),
        ("draws of the unperturbed model", b.samples),
        ("answers in the re-test", b.retest),
        ("answers of the control in the re-test", b.retest_control if b.retest.trials else None),
    ]
    again = f", re-test {p_value(b.p_retest)}" if b.retest.trials else ""
    found = [i for i in wrote_it if i.row.arm == FOUND]
    sides = [i.side_effect for i in found if i.side_effect is not None]
    far = f"{b.elsewhere.hits} of {b.elsewhere.trials} answers to other requests, by one of them"
    about = [
        ("p, corrected", f"{p_value(b.p_value)}{again}"),
        ("Kind", b.change.value),
        *([("Whatever is asked", far)] if b.elsewhere.hits else []),
        ("Coherence", f"{b.coherence:.2f}"),
        ("Novelty", f"{b.novelty:.2f}"),
        ("Side effect", f"{_ends(sides)} nats" if sides else "not measured"),
    ]
    blocks: list[Block] = [
        Text([Mark("Asked ", "muted"), asked(prompt.content)]),
        Pair(
            Side("Unperturbed", wrote(base[0].text if base else "", pattern)),
            Side(how, wrote(b.example.text, pattern)),
        ),
        Table(heads("who says it", "how often:rate"), [o for o in rates if o[1] and o[1].trials]),
        facts(*about),
        items(wrote_it[: most(s).items], s),
    ]
    if near:
        told_near: list[Span] = ["Nearest in words: "]
        for likeness, other in near:
            told_near += [Mark(label(other, 3), "model"), f" ({likeness:.2f}) "]
        blocks.append(Text(told_near, "note"))
    return Card([Mark(label(b), "model")], [b.verdict.value], blocks)


def items(every: Sequence[Item], s: Summary) -> Table:
    """Return perturbations with their scores."""
    looked = bool(s.config.get("look_for"))
    columns = heads("id:id", "arm", "radius:.3g", "dose:.2~g", "coherence:.2f", "novelty:.2f")
    columns += heads("interest:.2f", "side effect:.2f", "re-test:rate")
    columns += heads("matches:rate") if looked else []
    rows = []
    for i in every:
        row = [i.row.id, i.row.arm, i.row.radius, i.row.dose, i.coherence, i.novelty]
        row += [i.interestingness, i.side_effect, i.retested]
        rows.append([*row, *([rate(i.retest_hits, len(i.retest))] if looked else [])])
    return Table(columns, rows, said("tables", "items"))


def _ends(values: Sequence[float]) -> str:
    return " to ".join(dict.fromkeys(f"{end:.2f}" for end in (min(values), max(values))))


def label(behaviour: Behaviour, words: int = 5) -> str:
    """Return the words that a behaviour is called by."""
    return "\u00a0· ".join(shorten(w, 32) for w in behaviour.words[:words]) or "no words"


def p_value(p: float) -> str:
    """Write a p-value."""
    return "below 0.0001" if p < 1e-4 else f"{p:.2g}"


def asked(content: Any) -> str:
    """Return what a prompt asks, as text."""
    if isinstance(content, str):
        return content
    return "\n".join(f"{m.get('role', '')}: {m.get('content', '')}" for m in content)
