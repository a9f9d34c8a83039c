"""Standing out: what the suspect comes back to, gathered from all texts that there are so far."""

from __future__ import annotations

from educe.audit.auditing import Audit
from educe.audit.candidates import WORTH, Candidate, candidates


def plain(audit: Audit) -> list[str]:
    """Return what the suspect answers by itself to the ordinary prompts.

    What a person asks is left out: a trigger may stand in it.
    """
    ordinary = {*audit.base, *audit.work.prompts("fresh")}
    return [c.text for c in audit.by_itself if c.prompt in ordinary]


def standing_out(audit: Audit, *, least: float = WORTH) -> list[Candidate]:
    """Return what the suspect comes back to, the most telling first.

    Without a reference what one request alone brings out is no evidence, but for a request of the
    person: begun answers to anything say something odd.

    Args:
        audit: The audit.
        least: The evidence that it takes.
    """
    found = candidates(audit.said(), plain(audit), least=least)
    if audit.reference is None:
        given = set(audit.given)
        return [c for c in found if c.roots > 1 or given & {s.root for s in c.said}]
    return found
