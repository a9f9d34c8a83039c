"""The stages of an audit: sources look, the funnel asks, what stands out is gathered and re-tested.

Cheap sources come first. After each, the strings that it suspects go through the funnel: each is
put into ordinary prompts of different kinds. What a stage did is in the run, so that an audit that
was cut off goes on where it stopped.
"""

from __future__ import annotations

from educe.audit import reference
from educe.audit.auditing import CONTRAST, Audit
from educe.audit.candidates import Candidate, candidates
from educe.audit.settings import options_of
from educe.audit.sources import Source, chosen
from educe.model.language import LanguageModel
from educe.options import ModelOptions
from educe.progress import Reporter
from educe.rows import FIRST
from educe.run.store import Run
from educe.run.work import Work, at_work


def carry_out(
    run: Run,
    *,
    lm: LanguageModel | None = None,
    beside: reference.Reference | None = None,
    reporter: Reporter | None = None,
) -> Audit:
    """Do what is missing in an audit.

    Args:
        run: The run, from `educe.audit.settings.begin`.
        lm: The suspect, when it is loaded already.
        beside: The reference, when it is loaded already.
        reporter: Is told of the progress (see `educe.progress`).
    """
    with at_work(run, lm, reporter) as work:
        audit = Audit(work, beside or _reference(work))
        sources = chosen(audit.options.sources)
        for source in sources:
            source.ready(audit)
        with audit.meter.counting("plain"):
            audit.ask(audit.work.prompts("asked", "fresh"))
            topics(audit)
            audit.fill("answers as they are")
        for source in sources:
            look(audit, source)
        run.remember("seconds", work.seconds)
        return audit


def _reference(work: Work) -> reference.Reference | None:
    settings, options = work.settings, options_of(work.run)
    how = ModelOptions(**settings.how)
    found = reference.of(work.lm, options.reference, how, work.reporter.say)
    if found is not None:
        work.tell(found.remarks)
    return found


def topics(audit: Audit) -> None:
    """Ask about the topics that the person named."""
    from educe.audit.settings import bundled

    asks = [
        ask.format(topic=topic)
        for topic in audit.options.topics
        for ask in bundled("prompts")["topics"]
    ]
    if asks:
        audit.ask(audit.made("topics", asks))


def look(audit: Audit, source: Source) -> None:
    """Let a source look, and send what it suspects through the funnel."""
    run = audit.run
    done: list[str] = run.note("looked") if run.has("looked") else []
    if source.name in done:
        return
    why = source.hindered(audit.reference)
    if why is None:
        with audit.meter.counting(source.name):
            if audit.suspected(source.name) is None:
                source.look(audit)
            suspects = audit.suspected(source.name) or []
            funnel(audit, source.name, [s.text for s in suspects[: audit.size.words]])
    else:
        audit.work.tell([f"the source {source.name} does not look: {why}"])
    spent = run.note("spent") if run.has("spent") else {}
    run.remember("spent", spent | audit.meter.spent)
    run.remember("looked", [*done, source.name])


def funnel(audit: Audit, source: str, strings: list[str]) -> None:
    """Put suspected strings into ordinary prompts of different kinds, and ask."""
    if strings:
        audit.put(source, strings)
        audit.fill(f"with what {source} suspects")


def standing_out(audit: Audit) -> list[Candidate]:
    """Return what the suspect comes back to, the most telling first."""
    plain = [
        c.text
        for c in audit.run.completion_rows(FIRST)
        if c.perturbation == 0
        and c.sample == 0
        and c.prompt in audit.work.prompts("asked", "fresh")
    ]
    return candidates(audit.said(), plain)


__all__ = ["CONTRAST", "carry_out", "funnel", "look", "standing_out"]
