"""Manifold reports of perturbations of a run, kept in it: one pass over the corpus for all of them.

What is derived from a perturbation, its parts and its direction ablated, are rows of the run as
well, and what the model writes under them is asked for as any other text is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from hashlib import sha256

import torch

from educe.activations import corpus as texts
from educe.activations import natural, stored
from educe.activations.examination import Part, depths, examine
from educe.activations.gradients import sweep
from educe.activations.reading import Place
from educe.activations.reference import Reference
from educe.activations.report import RANDOM, ManifoldReport
from educe.model.language import LanguageModel
from educe.perturbation.kinds import Kind
from educe.perturbation.set import PerturbationSet
from educe.progress import Reporter
from educe.rows import CONTROL, Row
from educe.run import asking
from educe.run.fill import add_set, fill, groups
from educe.run.store import Run
from educe.run.work import Work, at_work

#: The most tokens that are read backward as well, for what later layers read.
READ = 4096


def examine_run(
    run: Run,
    numbers: Sequence[int],
    *,
    lm: LanguageModel | None = None,
    corpus: str = texts.BUNDLED,
    tokens: int = 50_000,
    seed: int = 0,
    reporter: Reporter | None = None,
) -> list[ManifoldReport]:
    """Examine some perturbations and keep their manifold reports in their run.

    One that was examined on the same tokens already is not examined again.

    Args:
        run: The run.
        numbers: The perturbations, by their numbers in it.
        lm: Its model, when it is loaded already.
        corpus: See `educe.activations.corpus.documents`.
        tokens: The most tokens of the corpus that are read.
        seed: Of samples and controls.
        reporter: Is told of the progress (see `educe.progress`).

    Raises:
        PromptError: The corpus cannot be read, or is too small to hold anything out.
        RunError: The model is not the run's, or another process is at work on the run.
    """
    with at_work(run, lm, reporter) as work:
        target = run.note("facts")["target"]
        members = groups(run, numbers)
        layers = [depths(group.kind.last, target, work.lm.depth) for group in members]
        places = [Place(layer) for layer in sorted({layer for some in layers for layer in some})]
        gathered = natural.gather(
            work.lm,
            texts.documents(corpus),
            places,
            limit=tokens,
            seed=seed,
            reporter=work.reporter,
        )
        swept = sweep(
            work.lm,
            texts.documents(corpus),
            sorted({group.kind.last for group in members}),
            limit=min(tokens, READ),
            seed=seed,
            reporter=work.reporter,
        )
        for group, seen in zip(members, layers, strict=True):
            decides = (gathered.name, swept.name, corpus, seed, seen)
            keys = {n: sha256(repr((n, *decides)).encode()).hexdigest() for n in group.numbers}
            missing = [n for n in group.numbers if stored.key(run, n) != keys[n]]
            if not missing:
                continue
            read = swept.layers[group.kind.last].gradients
            reference = Reference(work.lm, gathered, group.kind.before, seen, read=read, seed=seed)
            for number in missing:
                item = torch.tensor([group.numbers.index(number)])
                made = examine(
                    reference,
                    group.kind.select(item),
                    group.theta[item].to(work.lm.device),
                    prompts=work.asked,
                    called=corpus,
                    reporter=work.reporter,
                )
                derived = _listed(work, number, keys[number], made.derived, target)
                stored.keep(run, number, keys[number], made, derived)
        fill(work, "what it writes")
    known = {report.number: report for report in stored.reports(run)}
    return [known[number] for number in numbers]


def _listed(work: Work, number: int, key: str, derived: Sequence[Part], target: int) -> list[int]:
    """List what was derived from a perturbation, and ask for texts; return the numbers in order."""
    run = work.run
    by_kind: dict[Kind, list[Part]] = {}
    for one in derived:
        by_kind.setdefault(one.kind, []).append(one)
    numbers: list[int] = []
    for kind, some in by_kind.items():  # in the order of what was derived
        name = f"{kind.name}-{key[:16]}.safetensors"
        listed = [p.id for p in run.perturbation_rows(derived=True) if p.file == name]
        numbers += listed or _added(run, number, name, some, target)
    # Of random directions one is enough to read. A run that was cut off may lack the other texts.
    first = {one.how: of for one, of in reversed(list(zip(derived, numbers, strict=True)))}
    asking.baseline(work, [stored.FIRST_PROMPT])
    written = [number, *sorted(first.values())]
    run.ask([Row(of, stored.FIRST_PROMPT) for of in written], work.settings.temperature)
    return numbers


def _added(run: Run, number: int, name: str, some: Sequence[Part], target: int) -> list[int]:
    """List perturbations of one kind, and keep them as a file."""
    (parent,) = (p for p in run.perturbation_rows(derived=None) if p.id == number)
    kind = some[0].kind
    unit = kind.unit(run.note("facts")["median_norm"], lambda paths: [])
    origin = replace(PerturbationSet.load(run.tensors / parent.file).origin, unit=unit)
    radii = torch.tensor([part.radius for part in some])
    directions = torch.cat([part.direction for part in some])
    made = PerturbationSet(kind, directions, radii, origin, parent.method, 0)
    made.save(run.tensors / name)
    return add_set(
        run,
        [CONTROL if part.how.startswith(RANDOM) else parent.arm for part in some],
        name,
        made,
        [part.effects[target] for part in some],
        parents=[number] * len(some),
        how=[part.how for part in some],
    )
