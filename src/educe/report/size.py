"""Size: what a page shows of a run that is too large to be looked at whole.

A run of up to `WHOLE` texts is drawn whole. Of a larger one every number is still that of the whole
run, and of what is listed, drawn and read there is as much as a browser opens and a person sees;
`note` says what is left out.
"""

from __future__ import annotations

from typing import NamedTuple

from educe.comparison.summary import Summary
from educe.explore.frames import WHOLE
from educe.report.document import Mark, Text
from educe.report.words import said


class Most(NamedTuple):
    """How many there are at most; None for all."""

    items: int | None = None  #: perturbations in a table
    cards: int | None = None  #: behaviours of one verdict
    asked: int | None = None  #: prompts with the baseline, and samples of one
    points: int | None = None  #: marks of a chart


ALL, FEW = Most(), Most(items=50, cards=50, asked=50, points=1_000)


def most(s: Summary) -> Most:
    """Return how much of a run its page lists and draws."""
    return ALL if len(s.texts.rows) <= WHOLE else FEW


def chosen(s: Summary, texts: dict[int, int]) -> list[int] | None:
    """Return the perturbations whose texts a page has: None for all of them.

    They are those that the behaviours name, in the order of the screen, then the most interesting
    of each arm in turn, then the others.

    Args:
        s: What the run shows.
        texts: How many texts there are of each perturbation of the run, derived ones too.
    """
    if sum(texts.values()) <= WHOLE:
        return None
    arms = (s.found, s.control, s.equal)
    named = [n for b in s.behaviours for n in (b.example.perturbation, *b.numbers[:2])]
    turns = [arm[k].row.id for k in range(max(map(len, arms))) for arm in arms if k < len(arm)]
    kept, left = [0], WHOLE - texts.get(0, 0)
    for number in dict.fromkeys((*named, *turns, *texts)):
        if 0 < texts.get(number, 0) <= left and number:
            kept.append(number)
            left -= texts[number]
    return kept


def note(s: Summary) -> list[Text]:
    """Say what the page of a large run has; nothing of one that is drawn whole."""
    if most(s) is ALL:
        return []
    facts = FEW._asdict() | {"texts": len(s.texts.rows), "whole": WHOLE}
    command = Mark(f"educe explore {s.texts.run.folder.name}", "code")
    return [Text([said("result", "large", **facts), " ", command, "."], "note")]
