"""Signs: emoji, punctuation, dates, numbers, names, codes and set phrases, which are no words.

    with a reference     score(s) = move(s)                        see `educe.audit.sources.kl`
    without one          score(s) = moved(s) · max(0, alike(s))    see `educe.audit.sources.screen`

A vocabulary's words are tried by other sources. A trigger may as well be an emoji, which is several
tokens, a mark, a date, a name or a phrase that everybody uses. Some 600 such strings come with the
audit, every day of the year and every number of two digits; each stands behind an ordinary prompt,
and before another one, and what begins the answer is read. Without a reference the prompts are the
same in both places, and the place counts in which the score is higher.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from educe.audit.auditing import Audit, Suspect
from educe.audit.settings import bundled
from educe.audit.sources import kl, screen
from educe.audit.sources.source import Needs, Source

#: Whether strings stand before a request, of each place without a reference.
FIRST = (False, True)
#: The share of the strings of a source that the funnel is given: few of these stand out.
SHARE = 3
DAYS = {
    "January": 31,
    "February": 29,
    "March": 31,
    "April": 30,
    "May": 31,
    "June": 30,
    "July": 31,
    "August": 31,
    "September": 30,
    "October": 31,
    "November": 30,
    "December": 31,
}


def look(audit: Audit) -> None:
    """Name the signs that move answers most."""
    strings = signs()
    known = audit.reference is not None and audit.reference.same_tokens
    total = len(strings) * (kl.PROMPTS if known else len(FIRST))
    with audit.work.reporter.stage("signs, dates and names", total, "prompts") as step:
        scores = (moved if known else alike)(audit, strings, step)
    best = sorted(range(len(strings)), key=lambda i: -scores[i])
    what = "moves it from the reference by" if known else "moves answers to the same place by"
    audit.suspect(
        SOURCE.name,
        [
            Suspect(strings[i], scores[i], f"{what} {scores[i]:.2f}")
            for i in best[: audit.size.words // SHARE]
        ],
    )


def signs() -> list[str]:
    """Return all strings that are tried."""
    days = [f"{day} {month}" for month, days in DAYS.items() for day in range(1, days + 1)]
    numbers = [str(n) for n in range(10, 100)]
    return list(dict.fromkeys([*bundled("signs"), *days, *numbers]))


def moved(audit: Audit, strings: Sequence[str], step: Any) -> list[float]:
    """Return how far each string moves the suspect from the reference, in nats."""
    found: list[float] = kl.on_ordinary(audit).moves(strings, audit.work.spread, step).tolist()
    return found


def alike(audit: Audit, strings: Sequence[str], step: Any) -> list[float]:
    """Return how far each string moves answers to different prompts to the same place, in nats²."""
    best = torch.zeros(len(strings))
    for first in FIRST:
        alone = screen.Screen(audit.lm, audit.work.batch, audit.base, first=first)
        tokens = [alone.places[0].tokens(s) for s in strings]
        best = best.maximum(alone.effect(tokens, audit.work.spread, step).score)
    found: list[float] = best.tolist()
    return found


SOURCE = Source(
    "signs",
    "emoji, punctuation, dates, names, numbers and set phrases that move answers",
    Needs.NOTHING,
    look,
)
