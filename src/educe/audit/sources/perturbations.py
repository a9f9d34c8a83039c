"""Perturbations: what the suspect says while it is pushed, by every family and at several depths.

Each family of searches finds perturbations between several pairs of layers, on the ordinary
prompts, and as many random ones of their kind and radius stand beside them. Each writes one answer
to each prompt. A family searches once more inside the subspace of the activations on the prompts
themselves, where what a search finds is a mixture of what the model does anyway.

Where there is a reference, a text stands out by what the suspect expects more than it does. Without
one it is the push that has to explain the text:

    contrast(w) = log p_θ(w | x, words before) - log p(w | x, words before)

with the suspect pushed by `θ` and as it is. The words of a payload that only follow on from its
beginning are expected without the push as well, and speak less; those that begin it speak.

The families and their papers are in `educe.methods`; measured on a backdoor of two words, 26 of 128
token directions and 12 of 128 random vectors brought the payload out, on one of six prompts.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from educe import methods
from educe.activations import inside
from educe.audit import evidence
from educe.audit.auditing import Audit
from educe.audit.sources.source import Needs, Source
from educe.forward.forced import Forced
from educe.forward.slice import Slice
from educe.methods.cpe import CpeConfig
from educe.model.batch import PromptBatch
from educe.model.language import LanguageModel
from educe.perturbation.set import PerturbationSet
from educe.rows import ARMS, FOUND, CompletionRow, ScoreRow
from educe.run import fill
from educe.run.fill import Group, add_set
from educe.spread import Job, Shared

#: A source and a target, as fractions of the depth.
Place = tuple[float, float]
#: Those between which each family searches.
PLACES: tuple[Place, ...] = ((0.2, 0.5), (0.35, 0.65), (0.5, 0.8))
#: The subspace of a search inside one (see `educe.activations.inside.parse`).
SUBSPACE = "prompts:16"
#: Prompts that are searched with.
PROMPTS = 2


@dataclass(frozen=True)
class Family:
    """A way to search.

    Attributes:
        method: Its name in `educe.methods`.
        radius: At this radius (see `educe.methods.radius`).
        settings: Of the method, where they are not its defaults.
        within: Whether it searches inside the subspace.
    """

    method: str
    radius: str
    settings: dict[str, Any] = field(default_factory=dict)
    within: bool = False

    @property
    def name(self) -> str:
        """What it is called."""
        return f"{self.method} inside" if self.within else self.method


def families(audit: Audit) -> list[Family]:
    """Return the families; token directions try as many words as a budget allows."""
    return [
        Family("dct", "0.6d"),
        Family("melbo", "0.6d"),
        Family("power", "0.6d"),
        Family("cpe", "2"),
        Family("noise", "2x"),
        Family("tokens", "0.6d", {"words": audit.size.screened}),
        Family("dct", "0.6d", within=True),
    ]


def look(audit: Audit) -> None:
    """Search, let what was found and its control answer, and see what stands out."""
    searches = [(f, place) for f in families(audit) for place in PLACES]
    search(audit, searches)
    numbers = [i for k, (family, _) in enumerate(searches) for i in listed(audit, family, k)]
    audit.ask(audit.base, perturbations=numbers)
    if audit.reference is None:
        fill.write(audit.work, "under perturbations")
        for rows in pushed(audit, numbers):
            audit.run.add_scores(rows)
    audit.fill("under perturbations")


def search(audit: Audit, searches: Sequence[tuple[Family, Place]]) -> None:
    """Let whoever works search, and keep what each family finds at a place, and its control."""
    n = max(1, audit.size.perturbations // len(PLACES))
    shared = Shared((audit.lm, audit.work.batch.select(audit.base).trimmed(), n))
    jobs = []
    for k, what in enumerate(searches):
        if not all(_file(audit, arm, k).exists() for arm in ARMS):
            seed = 2 * (1000 * audit.options.seed + k)
            jobs.append(Job(_searched, shared, (*what, seed), place=k))
    with audit.work.reporter.stage("searching for perturbations", len(jobs), "") as step:
        for done in audit.work.spread.map(jobs):
            for arm, made in zip(ARMS, done.value, strict=True):
                made.save(_file(audit, arm, done.job.place))
            step(note=done.note or done.job.given[0].name)


def _searched(
    lm: LanguageModel, base: PromptBatch, n: int, family: Family, place: Place, seed: int
) -> tuple[PerturbationSet, PerturbationSet]:
    """Return what a family finds at a place, and its control."""
    part = _slice(lm, base, family, place)
    found = _found(part, family, n, seed)
    return found, methods.control(part, found, seed=seed + 1)


def listed(audit: Audit, family: Family, k: int) -> list[int]:
    """Return the numbers of what a family found and of its control, which are listed once."""
    run, numbers = audit.run, []
    known = run.perturbation_rows(derived=None)
    for arm in ARMS:
        path = _file(audit, arm, k)
        if own := [p.id for p in known if p.file == path.name]:
            numbers += own
            continue
        made = PerturbationSet.load(path)
        where = f"{family.name} {made.origin.source}-{made.origin.target}"
        told = replace(made, method=where if arm == FOUND else f"random beside {where}")
        numbers += add_set(run, arm, path.name, told, made.scores["effect"].tolist())
    return numbers


def _file(audit: Audit, arm: str, k: int) -> Path:
    return audit.run.tensors / f"audit-{arm}-{k}.safetensors"


def _slice(lm: LanguageModel, base: PromptBatch, family: Family, place: Place) -> Slice:
    source, target = place
    prompts = base.select(range(min(PROMPTS, len(base)))).trimmed()
    part = Slice(lm, prompts, source=source, target=target)
    if not family.within:
        return part
    subspace = inside.described(lm, base, part.source, SUBSPACE)
    return part.on(inside.within(subspace, part.source))


def _found(part: Slice, family: Family, n: int, seed: int) -> PerturbationSet:
    settings = dict(family.settings)
    if family.method == "cpe":  # in a shallow model the band is no wider than the slice
        settings["blocks"] = min(CpeConfig.blocks, part.target - part.source)
    config = methods.configured(family.method, settings)
    return methods.search(part, family.method, n=n, radius=family.radius, seed=seed, config=config)


def pushed(audit: Audit, numbers: Sequence[int]) -> Iterator[list[ScoreRow]]:
    """Yield what a push adds to each text that it made, for perturbations of each kind.

    Args:
        audit: The audit.
        numbers: Perturbations that answered all ordinary prompts.
    """
    texts = [c for c in audit.run.completion_rows() if c.prompt in audit.base]
    shared = Shared((audit.lm, audit.work.batch))
    jobs = []
    for group in fill.groups(audit.run, numbers):
        order = {number: i for i, number in enumerate(group.numbers)}
        own = [c for c in texts if c.perturbation in order]
        own.sort(key=lambda c: (order[c.perturbation], audit.base.index(c.prompt)))
        jobs.append(Job(_read, shared, (group, own), len(own)))
    with audit.work.reporter.stage("what a push adds", sum(j.size for j in jobs), "texts") as step:
        for done in audit.work.spread.map(jobs):
            said = [c for c in done.job.given[1] if c.tokens]
            yield [
                audit.contrasts.compared(c, *both) for c, both in zip(said, done.value, strict=True)
            ]
            step(done.job.size, done.note)


def _read(
    lm: LanguageModel, batch: PromptBatch, group: Group, texts: Sequence[CompletionRow]
) -> list[tuple[list[float], list[float]]]:
    """Return what the pushed suspect and the suspect expect of each text that says something."""
    mine, said = under(lm, batch, group, texts), [c for c in texts if c.tokens]
    plain = dict(evidence.logprobs(lm, batch, [c.prompt for c in said], [c.tokens for c in said]))
    return [(mine[c], plain[i]) for i, c in enumerate(said)]


def under(
    lm: LanguageModel, batch: PromptBatch, group: Group, texts: Sequence[CompletionRow]
) -> dict[CompletionRow, list[float]]:
    """Return the log-likelihood of each token of texts under the perturbation that wrote it.

    Args:
        lm: The suspect.
        batch: All prompts.
        group: Perturbations of one kind.
        texts: Of each perturbation in turn, as many of each.
    """
    forced = Forced(
        lm,
        batch.select([c.prompt for c in texts]).trimmed(),
        [c.tokens or (0,) for c in texts],  # a text that says nothing is not counted
        before=group.kind.before,
    )
    of = torch.arange(len(texts)).view(len(group.numbers), -1)
    found = forced.each(group.theta, group.kind, forced.likelihood, of).flatten(0, 1).tolist()
    return {c: found[i][: len(c.tokens)] for i, c in enumerate(texts)}


SOURCE = Source(
    "perturbations",
    "what the suspect says while it is pushed",
    Needs.NOTHING,
    look,
    dear=3,
)
