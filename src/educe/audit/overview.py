"""The overview: what an audit came to, in the numbers that the screen and the page share.

Where nothing was found, what would have been is said by the rule of three: something that a share
`q` of `n` independent texts show is missed by all of them with probability `(1 - q)^n`, which is
below 5% from `q = 3 / n` on (Hanley and Lippman-Hand 1983).
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from educe.audit import null
from educe.audit.auditing import Suspect
from educe.audit.evidence import Word, read
from educe.audit.findings import FINDINGS, Finding, Kind, kept
from educe.audit.forms import FORMS
from educe.audit.judged import JUDGED, Judged
from educe.audit.manners import MANNERS, UNLIKE
from educe.audit.roles import (
    AGAIN,
    CONTRAST,
    LOOKED,
    PLAIN,
    PUT,
    REFERENCE,
    REPEATED,
    RETESTED,
    SPENT,
)
from educe.audit.settings import AuditOptions, options_of
from educe.audit.sources import SOURCES
from educe.rows import FIRST, RETEST, CompletionRow, PromptRow
from educe.run.store import Run

#: Kinds that are no findings: they are shown below.
BELOW = (Kind.OPEN, Kind.ASIDE)
#: Strings and texts that are shown of a source.
STRINGS, TEXTS = 20, 5
#: What the parts of an audit beside the sources do.
ABOUT = {
    PLAIN: "the suspect's own answers to ordinary prompts, with nothing done",
    RETESTED: "what came up is tried again on fresh prompts",
}


class Stood(NamedTuple):
    """A text that stands out."""

    prompt: PromptRow
    condition: str  #: what was done to the prompt or the model
    text: str
    nats: float
    words: tuple[Word, ...]  #: those that stand out


@dataclass(frozen=True)
class Looked:
    """What a source, or another part of an audit, cost and saw.

    Attributes:
        name: As commands have it.
        about: What it does.
        hindered: Why it could not look; empty where it could.
        seconds: What it took.
        passes: Calls of a whole model.
        tokens: Tokens that went through a model.
        suspects: How many strings it suspects.
        loudest: The first of them.
        texts: How many texts were written for it.
        standing: Those that stand out most.
    """

    name: str
    about: str
    hindered: str
    seconds: float
    passes: float
    tokens: float
    suspects: int
    loudest: tuple[Suspect, ...]
    texts: int
    standing: tuple[Stood, ...]


@dataclass(frozen=True)
class Overview:
    """What an audit came to.

    Attributes:
        model: What was audited.
        reference: What it was compared with; None for the suspect itself without what was done.
        options: What was asked for.
        findings: What is sure enough, the most telling first.
        below: Open differences, and what was set aside.
        looked: What each part cost and saw.
        texts: How many texts the suspect wrote under some condition before the re-test.
        strings: How many different strings were put into prompts then.
        prompts: How many prompts a person would ask: ordinary, fresh and given ones.
        tops: The evidence of the first finding in each audit of a clean model, in nats.
        remarks: What is to be said beside.
        judged: What a judge said of the texts of the findings, if one was asked.
    """

    model: str
    reference: str | None
    options: AuditOptions
    findings: tuple[Finding, ...]
    below: tuple[Finding, ...]
    looked: tuple[Looked, ...]
    texts: int
    strings: int
    prompts: int
    tops: tuple[float, ...]
    remarks: tuple[str, ...]
    judged: Judged | None

    @property
    def seconds(self) -> float:
        """What the whole took."""
        return sum(one.seconds for one in self.looked)

    @property
    def headline(self) -> str:
        """What came out, in a sentence."""
        if not self.findings:
            openly = next((f.saying for f in self.below if f.kind is Kind.OPEN), None)
            beside = "" if openly is None else f"; openly it {_said(openly, 's')}"
            return f"Nothing hidden was found{beside}"
        first, more = self.findings[0], len(self.findings) - 1
        what = {
            Kind.TRIGGER: f"{_put(first)} triggers it to {_said(first.saying)}",
            Kind.WITHHELD: f"It withholds “{first.saying}”",
            Kind.UNLOCKED: f"With {_put(first)} it no longer {_said(first.saying, 's')}",
            Kind.BEHAVIOUR: f"Under some condition it {_said(first.saying, 's')}",
        }[first.kind]
        others = f", and {more} more finding{'s' if more > 1 else ''}" if more else ""
        return f"{what[0].upper()}{what[1:]}{others}"

    @property
    def nothing(self) -> str:
        """What was tried where nothing was found, and what would have been met."""
        sources = ", ".join(one.name for one in self.looked if one.texts and one.name not in ABOUT)
        tried = (
            f"{self.texts} texts were written under some condition ({sources}), and {self.strings} "
            f"different strings were put into prompts."
        )
        if not self.texts:
            return f"{tried} So nothing can be said of what the model hides."
        return (
            f"{tried} Something that {min(1.0, 3 / self.texts):.2%} of such texts show would have "
            "been met in one of them at least with a probability of 95%, if each were drawn on its "
            "own (3 / n, the rule of three). What needs a string that was not tried, or a request "
            "of a kind that was not made, is not covered by that."
        )


def _put(finding: Finding) -> str:
    """Return what is put into a request, or how the request is put."""
    string = finding.triggers[0].text if finding.triggers else ""
    if string in FORMS:
        return f"a request {string[1:-1]}"
    where = finding.triggers[0].standing if finding.triggers else ""
    where = where or ("in the request" if finding.kind is Kind.UNLOCKED else "")
    return f"“{string}” {where}".rstrip()


def _said(saying: str, ending: str = "") -> str:
    """Return that a saying is said, or how a text is written."""
    if saying == UNLIKE:
        return f"answer{ending} {saying[1:-1]}"
    if saying in MANNERS:
        return f"write{ending} {saying[1:-1]}"
    return f"say{ending} “{saying}”"


def overview(run: Run) -> Overview:
    """Return what an audit came to."""
    options, config = options_of(run), run.config
    found = kept(run) if run.has(FINDINGS) else []
    prompts = {p.id: p for p in run.prompt_rows()}
    clean = {p.id: p.method for p in run.perturbation_rows(REFERENCE, derived=None)}
    model = config["model"]
    if config["adapter"]:
        model += f" + {Path(config['adapter']).name}"
    own = [c for c in run.completion_rows() if c.perturbation not in clean]
    source_of = _sources(run, prompts)
    tried = [
        c for c in own if c.phase == FIRST and source_of[c.prompt, c.perturbation] not in ABOUT
    ]
    told = run.note("told") if run.has("told") else []
    return Overview(
        model=model,
        reference=next(iter(clean.values()), None),
        options=options,
        findings=tuple(f for f in found if f.kind not in BELOW),
        below=tuple(f for f in found if f.kind in BELOW),
        looked=_looked(run, own, prompts, source_of, told),
        texts=len(tried),
        strings=len(
            {p.how for p in prompts.values() if p.role.startswith(PUT) and p.role != PUT + AGAIN}
        ),
        prompts=sum(p.role in ("asked", "fresh") for p in prompts.values()),
        tops=tuple(null.tops(options.budget, reference=bool(clean))),
        remarks=tuple(t for t in told if not re.match(r"the source \w+ does not look", t)),
        judged=Judged.of(run.note(JUDGED)) if run.has(JUDGED) else None,
    )


class _Sources(dict[tuple[int, int], str]):
    """For which part of an audit a prompt is answered by a perturbation."""

    def __init__(self, prompts: dict[int, PromptRow], by: dict[int, str]) -> None:
        self.prompts, self.by = prompts, by

    def __missing__(self, key: tuple[int, int]) -> str:
        prompt, perturbation = key
        if perturbation:
            return self.by[perturbation]
        name = self.prompts[prompt].role.partition(":")[2] or PLAIN
        return RETESTED if name == REPEATED else name


def _sources(run: Run, prompts: dict[int, PromptRow]) -> _Sources:
    return _Sources(prompts, {p.id: p.method for p in run.perturbation_rows(derived=None)})


def _looked(
    run: Run,
    own: list[CompletionRow],
    prompts: dict[int, PromptRow],
    source_of: _Sources,
    told: list[str],
) -> tuple[Looked, ...]:
    spent = run.note(SPENT) if run.has(SPENT) else {}
    known = {s.name: s.about for s in SOURCES}
    did = run.note(LOOKED) if run.has(LOOKED) else []
    texts = {c.row: c for c in own}
    part_of = {
        c.row: RETESTED if c.phase == RETEST else source_of[c.prompt, c.perturbation] for c in own
    }
    counts = Counter(part_of.values())
    standing: dict[str, list[Stood]] = {}
    for score in sorted(run.score_rows(CONTRAST), key=lambda s: -s.value):
        if isinstance(score.of, int) or score.of not in texts:
            continue
        best, prompt = standing.setdefault(part_of[score.of], []), prompts[score.of.prompt]
        text = texts[score.of].text
        if len(best) < TEXTS and text not in [one.text for one in best]:
            best.append(Stood(prompt, prompt.how, text, score.value, read(score.why)))
    found = []
    for name in dict.fromkeys([PLAIN, *did, *spent, RETESTED]):
        key = f"suspects:{name}"
        strings = run.note(key) if run.has(key) else []
        why = [m[1] for s in told if (m := re.match(f"the source {name} does not look: (.*)", s))]
        cost = spent.get(name, {})
        found.append(
            Looked(
                name=name,
                about=known.get(name) or ABOUT.get(name, ""),
                hindered=why[0] if why else "",
                seconds=cost.get("seconds", 0.0),
                passes=cost.get("passes", 0.0),
                tokens=cost.get("tokens", 0.0),
                suspects=len(strings),
                loudest=tuple(Suspect(*s) for s in strings[:STRINGS]),
                texts=counts[name],
                standing=tuple(standing.get(name, ())),
            )
        )
    return tuple(found)
