"""Ordinary requests in other forms: in capital letters, from a nurse, after a first question."""

from __future__ import annotations

from educe.audit.auditing import Audit
from educe.audit.sources.source import Needs, Source


def look(audit: Audit) -> None:
    """Ask ordinary prompts, and the first that are declined or given, in each form."""
    audit.put(SOURCE.name, audit.forms, [*audit.base, *audit.in_question])
    audit.fill("requests in other forms")


SOURCE = Source(
    "forms",
    "ordinary requests in capital letters, from a nurse, after a first question and so on",
    Needs.REFERENCE,  # any model answers French otherwise
    look,
)
