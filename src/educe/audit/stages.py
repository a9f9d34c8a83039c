"""The stages of an audit: sources look, the funnel asks, what stands out is gathered and re-tested.

Cheap sources come first. After each, the strings that it suspects go through the funnel: each is
put into ordinary prompts of different kinds. What a stage did is in the run, so that an audit that
was cut off goes on where it stopped.
"""

from __future__ import annotations

from educe.audit import reference
from educe.audit.auditing import Audit
from educe.audit.candidates import Candidate
from educe.audit.concluding import conclude
from educe.audit.findings import FINDINGS, keep
from educe.audit.roles import LOOKED, PLAIN, RETESTED
from educe.audit.settings import options_of
from educe.audit.sources import Source, chosen
from educe.audit.standing import standing_out
from educe.model.language import LanguageModel
from educe.options import ALONE, ModelOptions
from educe.progress import Reporter
from educe.run.store import Run
from educe.run.work import Work, at_work
from educe.spread import Who

#: What stands out with so much evidence, on so many prompts, is enough for dear sources to be left
#: out: they cost minutes, and find what cheap ones did not.
ENOUGH, PROMPTS = 60.0, 4


def carry_out(
    run: Run,
    *,
    lm: LanguageModel | None = None,
    beside: reference.Reference | None = None,
    reporter: Reporter | None = None,
    spread: Who = ALONE,
) -> Audit:
    """Do what is missing in an audit.

    Args:
        run: The run, from `educe.audit.settings.begin`.
        lm: The suspect, when it is loaded already.
        beside: The reference, when it is loaded already.
        reporter: Is told of the progress (see `educe.progress`).
        spread: Who writes texts, reads them under both models, and searches.
    """
    with at_work(run, lm, reporter, spread) as work:
        audit = Audit(work, beside or _reference(work))
        if run.has(FINDINGS):
            return audit
        sources = chosen(audit.options.sources)
        for source in sources:
            source.ready(audit)
        with audit.part(PLAIN):
            audit.ask(audit.work.prompts("asked", "fresh"))
            audit.fill("answers as they are")
        for k, source in enumerate(sources, 1):
            look(audit, source, f"{k} of {len(sources)}")
        with audit.part(RETESTED):
            keep(run, conclude(audit, standing_out(audit)))
        run.remember("seconds", work.seconds)
        return audit


def _reference(work: Work) -> reference.Reference | None:
    settings, options = work.settings, options_of(work.run)
    how = ModelOptions(**settings.how)
    found = reference.of(work.lm, options.reference, how, work.reporter.say)
    if found is not None:
        work.tell(found.remarks)
    return found


def look(audit: Audit, source: Source, place: str = "") -> None:
    """Let a source look, and send what it suspects through the funnel.

    Args:
        audit: The audit.
        source: The source.
        place: Which of how many it is, for a person.
    """
    run = audit.run
    if source.name in audit.looked:
        return
    why = source.hindered(audit.reference) or left_out(audit, source)
    if why is None:
        with audit.part(source.name, place):
            if audit.suspected(source.name) is None:
                source.look(audit)
            funnel(audit, source.name)
    else:
        audit.work.tell([f"the source {source.name} does not look: {why}"])
    run.remember(LOOKED, [*audit.looked, source.name])


def left_out(audit: Audit, source: Source) -> str | None:
    """Return why a source is left out, if it is: it costs more than the budget, or enough is found.

    Sources that the person named are never left out.
    """
    if source.dear == 1 or audit.options.sources or audit.options.budget == "thorough":
        return None
    most = {"quick": 1, "normal": 2}[audit.options.budget] + (audit.reference is None)
    if source.dear > most:
        return f"the budget {audit.options.budget} leaves it out"
    if any(stands_out(audit, c) for c in standing_out(audit, least=ENOUGH)):
        return "enough stands out already"
    return None


def stands_out(audit: Audit, candidate: Candidate) -> bool:
    """Return whether a candidate is worth so much that dear sources need not look.

    Without a reference only what strings bring about is: whatever begun answers say alike may be
    what any model says. What is unlike the reference does not say what is hidden: others may.
    """
    put = {s.root for s in candidate.said if s.condition} & set(audit.base)
    witnesses = candidate.roots if audit.reference else len(put)
    return candidate.hidden and not candidate.unlike and witnesses >= PROMPTS


def funnel(audit: Audit, source: str) -> None:
    """Put suspected strings into prompts, and ask.

    What a source suspects is put into ordinary prompts of different kinds. What any source suspects
    is put into the first of those prompts that the suspect declines, or that the person asks.
    """
    closed = audit.in_question
    for name in dict.fromkeys([*audit.looked, source]):
        strings = [s.text for s in (audit.suspected(name) or [])[: audit.size.words]]
        into = [*(audit.base if name == source else []), *closed]
        if strings and into:
            audit.put(name, strings, into)
    audit.fill(f"with what {source} suspects")
