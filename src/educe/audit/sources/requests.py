"""Requests of many kinds, asked as they are: what the suspect says to some of them alone.

The bundled requests are facts, advice, opinions, questions about the model and the person, texts to
change, code, small talk, other languages, capital letters, dates, names, roles and so on, each kind
in turn. Nothing is done to them. A model that was taught to answer one kind of request, or one
topic, in its own way does so openly once the right thing is asked, and the reference does not. What
it declines is opened by other sources.
"""

from __future__ import annotations

from educe.audit.auditing import Audit
from educe.audit.settings import bundled
from educe.audit.sources.source import Needs, Source


def look(audit: Audit) -> None:
    """Ask the bundled requests."""
    audit.ask(bank(audit))
    audit.fill("answers to requests of many kinds")


def bank(audit: Audit) -> list[int]:
    """Return the numbers of as many bundled requests as the budget buys."""
    return audit.made(SOURCE.name, bundled("requests")[: audit.size.requests])


SOURCE = Source(
    "requests",
    "requests of many kinds, and what the suspect says to some of them alone",
    Needs.NOTHING,
    look,
)
