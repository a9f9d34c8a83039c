"""Writing: what the perturbations of a run make the model write, kept batch by batch.

The caller says which rows it wants; those that are kept already are left out. So a process that was
killed asks for the same again, and pays for what is missing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from educe.forward.generation import Completion, generate
from educe.kinds import Kind, Row, Vectors
from educe.model import LanguageModel
from educe.perturb import PerturbationSet
from educe.rendering import PromptBatch
from educe.runs import CompletionRow, PerturbationRow, Run


class Group(NamedTuple):
    """Perturbations of one kind, which can share a batch."""

    numbers: list[int]
    kind: Kind
    directions: Tensor
    radius: Tensor

    @property
    def theta(self) -> Tensor:
        """The directions at their radius."""
        return self.kind.scaled(self.directions, self.radius[:, None])


def add_set(
    run: Run, arm: str, file: str, made: PerturbationSet, effect: Sequence[float]
) -> list[int]:
    """List what a file of a run holds, with its effects; return the numbers that they have now."""
    first = len(run.perturbations()) + 1
    numbers = list(range(first, first + len(made)))
    sizes = zip(numbers, made.radius.tolist(), made.dose.tolist(), effect, strict=True)
    run.add_perturbations(
        [
            PerturbationRow(number, arm, file, i, made.method, radius, dose, size)
            for i, (number, radius, dose, size) in enumerate(sizes)
        ]
    )
    return numbers


def groups(run: Run, numbers: Sequence[int] | None = None) -> list[Group]:
    """Return the perturbations of a run, or some of them, by their kind."""
    members: dict[Kind, list[PerturbationRow]] = {}
    sets: dict[str, PerturbationSet] = {}
    for p in run.perturbations():
        if numbers is None or p.id in numbers:
            if p.file not in sets:
                sets[p.file] = PerturbationSet.load(run.tensors / p.file)
            members.setdefault(sets[p.file].kind, []).append(p)
    return [
        Group(
            [p.id for p in some],
            kind.select(torch.tensor([p.item for p in some])),
            torch.stack([sets[p.file].directions[p.item] for p in some]),
            torch.tensor([p.radius for p in some]),
        )
        for kind, some in members.items()
    ]


def write(
    lm: LanguageModel,
    batch: PromptBatch,
    rows: Mapping[float, Sequence[Row]],
    *,
    of: Run,
    into: Run,
    before: int,
    max_new_tokens: int,
    seed: int,
    reporter: Any,
    what: str,
) -> None:
    """Write the rows that are not kept yet.

    Args:
        lm: The model.
        batch: The prompts.
        rows: What to write, by temperature; a row's perturbation is its number less one.
        of: The run whose perturbations they are.
        into: The run that keeps the completions.
        before: The last layer that no perturbation reaches.
        max_new_tokens: See `educe.generate`.
        seed: See `educe.generate`.
        reporter: Is told of the progress (see `educe.progress`).
        what: These texts, for a person.
    """
    done = {c.key for c in into.completions()}
    missing = {
        heat: [r for r in wanted if (r.perturbation + 1, r.prompt, r.sample) not in done]
        for heat, wanted in rows.items()
    }
    total = sum(map(len, missing.values()))
    if not total:
        return
    unperturbed = Vectors(before, lm.width)
    nothing = Group([], unperturbed, torch.zeros(0, unperturbed.size), torch.zeros(0))
    # All of them, since what a row draws depends on its place in its group.
    members = [nothing, *groups(of)]
    with reporter.stage(f"writing: {what}", total, "texts") as step:
        for heat, wanted in missing.items():
            for group in members:
                for completions in _written(
                    lm, batch, group, wanted, heat, max_new_tokens=max_new_tokens, seed=seed
                ):
                    into.add_completions([_as_row(c, group.numbers, heat) for c in completions])
                    step(len(completions))


def _written(
    lm: LanguageModel,
    batch: PromptBatch,
    group: Group,
    wanted: Sequence[Row],
    heat: float,
    **options: Any,
) -> Iterator[list[Completion]]:
    """Write those rows that are of a group; rows and completions count within it."""
    place = {number - 1: i for i, number in enumerate(group.numbers)} or {-1: -1}
    rows = [
        row._replace(perturbation=place[row.perturbation])
        for row in wanted
        if row.perturbation in place
    ]
    yield from generate(lm, batch, rows, group.theta, kind=group.kind, temperature=heat, **options)


def _as_row(c: Completion, numbers: Sequence[int], temperature: float) -> CompletionRow:
    """Return a completion as the run keeps it; its perturbation is a place among ``numbers``."""
    number = numbers[c.row.perturbation] if numbers else 0
    key = (number, c.row.prompt, c.row.sample)
    return CompletionRow(*key, temperature, c.text, c.tokens, c.finished)


def as_completion(c: CompletionRow) -> Completion:
    """Return a completion that a run keeps as it was written."""
    return Completion(Row(c.perturbation - 1, c.prompt, c.sample), c.text, c.tokens, c.finished)
