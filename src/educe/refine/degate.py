"""Degating: an adapter without its gate, scanned over sign and size.

An adapter adds ``R ⟨a_l, x⟩ b_l`` in block ``l``: what it reads decides how much it writes. Degated
it writes the same always, in a unit direction on every token (Mack, Panickssery & Turner 2026,
from its replication: a factor found on one task transferred to another only so),

    θ_l = ± M m · normalise( mean over tokens of  R Σ_k ⟨a_k, x⟩ b_k )

which at rank one is ``± M m · sign(mean ⟨a_l, x⟩) b_l``.
``x`` is what the projection takes on the prompts, without perturbation; ``m`` is the root mean
square over tokens of what the adapter adds, averaged over blocks, so that ``M`` is a share: at 1
every block gets as much as the adapter gives in the mean. Where ``⟨a, x⟩`` is the same for all
tokens and there is one block, ``M = 1`` is the adapter itself.

Sign and size decide, so both are scanned. The control is random adapters of the same radius without
their gates: random directions, given the sizes of the adapters they stand beside, through the same
scan. The best of each arm is tested again on fresh prompts, or on fresh samples.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from educe.errors import MethodError
from educe.forward.slice import Slice
from educe.kinds import Adapters, Biases
from educe.methods import origin
from educe.model import LanguageModel
from educe.perturb import PerturbationSet
from educe.progress import Silent
from educe.refine.trial import Share, Trial, finished_slice, share
from educe.run.fill import Group, groups
from educe.run.store import Run

NAME = "degate"
#: ``M``, and both signs of each.
SIZES = (0.25, 0.5, 1.0, 2.0, 4.0)
ARMS = ("found", "control")


@dataclass(frozen=True)
class Gates:
    """What adapters add on some prompts.

    Attributes:
        direction: The unit mean of it in each block, ``[n, blocks · width]``.
        size: ``m``: its root mean square over tokens, averaged over blocks, ``[n]``.
        steady: Norm of the mean over that root mean square, averaged over blocks, ``[n]``: 1 where
            the gate is as wide open for every token.
    """

    direction: Float[Tensor, "n s"]
    size: Float[Tensor, "n"]
    steady: Float[Tensor, "n"]


@dataclass(frozen=True)
class Cell:
    """One sign and size of one adapter."""

    source: int  #: its number in the run
    arm: str
    sign: int
    size: float  #: ``M``
    effect: float
    score: Share
    text: str


@dataclass(frozen=True)
class Degated:
    """What a scan came to.

    Attributes:
        judge: What scores are of: what was looked for, or ``striking``.
        gated: Scores of the adapters as they were found, by number.
        steady: See `Gates`, by number.
        cells: All of both arms.
        best: The best of each arm, by its score, then by the smaller size.
        again: Their scores on fresh prompts or samples, and that of the best adapter as found.
    """

    judge: str
    gated: dict[str, Share]
    steady: dict[str, float]
    cells: tuple[Cell, ...]
    best: dict[str, Cell]
    again: dict[str, Share]

    def data(self) -> dict[str, Any]:
        """Return all of it as JSON can hold it."""
        return asdict(self) | {
            "cells": [_cell(cell) for cell in self.cells],
            "best": {arm: _cell(cell) for arm, cell in self.best.items()},
            "gated": {number: found._asdict() for number, found in self.gated.items()},
            "again": {arm: found._asdict() for arm, found in self.again.items()},
        }


def _cell(cell: Cell) -> dict[str, Any]:
    return asdict(cell) | {"score": cell.score._asdict()}


def gates(part: Slice, kind: Adapters, theta: Float[Tensor, "n s"]) -> Gates:
    """Return what some adapters add on a slice's prompts, first tokens left out.

    Args:
        part: A slice whose blocks the adapters are on.
        kind: Their kind.
        theta: The adapters at their radius.
    """
    taken = _taken(part, kind.paths)
    means, norms, sizes = [], [], []
    for (a, b), x in zip(kind.split(theta.double().cpu()), taken, strict=True):
        written = torch.einsum("ti,nki,nkd->ntd", x, a, b)
        mean = written.mean(1)
        sizes.append(written.square().sum(2).mean(1).sqrt())
        norms.append(mean.norm(dim=1))
        means.append(mean / norms[-1][:, None])
    size, norm = torch.stack(sizes, 1), torch.stack(norms, 1)
    return Gates(torch.cat(means, 1).float(), size.mean(1), (norm / size).mean(1))


def _taken(part: Slice, paths: Sequence[str]) -> list[Float[Tensor, "t i"]]:
    """Return what some modules take on the prompts without perturbation, token by token."""
    lm, batch = part.lm, part.batch
    seen: dict[str, Tensor] = {}

    def note(path: str) -> Any:
        return lambda module, args: seen.__setitem__(path, args[0].detach().double().cpu())

    handles = [
        lm.unwrapped.get_submodule(path).register_forward_pre_hook(note(path)) for path in paths
    ]
    try:
        lm.forward(batch.ids, batch.mask)
    finally:
        for handle in handles:
            handle.remove()
    return [seen[path][part.counted] for path in paths]


def degated(
    part: Slice, kind: Adapters, found: Gates, *, factors: Sequence[float], method: str = NAME
) -> PerturbationSet:
    """Return adapters without their gates: for each, one bias a factor, ``± M``, in order.

    Args:
        part: The slice.
        kind: The adapters' kind.
        found: Their gates.
        factors: Signs and sizes, as ``± M``.
        method: What the set says made it.
    """
    biases = Biases.like(kind)
    scale = torch.tensor(list(factors))
    directions = found.direction[:, None] * scale.sign()[None, :, None]
    radius = found.size.float()[:, None] * scale.abs()
    return PerturbationSet(
        kind=biases,
        directions=directions.flatten(0, 1),
        radius=radius.flatten(),
        origin=origin(part.on(biases)),
        method=method,
        seed=0,
        config={"factors": list(factors)},
    )


def degate(run: Run, numbers: Sequence[int], lm: LanguageModel, *, reporter: Any = None) -> Degated:
    """Scan adapters of a run without their gates, beside random ones; go on where it stopped.

    Args:
        run: A finished run.
        numbers: Adapters, by their numbers in it.
        lm: Its model.
        reporter: Is told of the progress (see `educe.progress`).

    Raises:
        MethodError: They are no adapters, or the run has no random ones of their radius.
        RunError: The run is not finished.
    """
    part = finished_slice(run, lm)
    controls = _controls(run, numbers)
    members = groups(run, [*numbers, *controls])
    kind = members[0].kind
    if len(members) > 1 or not isinstance(kind, Adapters):
        raise MethodError(f"{members[0].kind.name} have no gate: only adapters can be degated")
    asked = {"numbers": list(numbers)}
    with Trial(run, NAME, asked, lm, part, reporter or Silent()) as trial:
        return _scanned(trial, numbers, controls, members[0], kind)


def _scanned(
    trial: Trial, numbers: Sequence[int], controls: list[int], group: Group, kind: Adapters
) -> Degated:
    """Scan sign and size of adapters without their gate, and test the best again."""
    part = trial.part
    own = dict(zip(group.numbers, group.theta, strict=True))
    factors = [sign * size for size in SIZES for sign in (1, -1)]
    open_ = gates(part, kind, torch.stack([own[n] for n in numbers]))
    random = gates(part, kind, torch.stack([own[n] for n in controls]))
    random = Gates(random.direction, open_.size, random.steady)
    listed = {
        "found": trial.add("found", "degated", degated(part, kind, open_, factors=factors)),
        "control": trial.add(
            "control", "random", degated(part, kind, random, factors=factors, method="random")
        ),
    }
    first = group.numbers.index
    gated = trial.add(
        "gated",
        "gated",
        PerturbationSet(
            kind=kind,
            directions=group.directions[[first(n) for n in numbers]],
            radius=group.radius[[first(n) for n in numbers]],
            origin=origin(part.on(kind)),
            method=trial.run.note("facts")["method"],
            seed=0,
        ),
    )
    everything = [*gated, *listed["found"], *listed["control"]]
    scores = trial.scores(everything, what=f"{len(numbers)} adapters and as many random, degated")
    rows = {p.id: p for p in trial.kept.perturbation_rows()}
    cells, at = [], {}
    for arm, sources in zip(ARMS, (numbers, controls), strict=True):
        labels = [(source, factor) for source in sources for factor in factors]
        for number, (source, factor) in zip(listed[arm], labels, strict=True):
            cell = Cell(
                source,
                arm,
                1 if factor > 0 else -1,
                abs(factor),
                rows[number].effect,
                share(scores[number], trial.rule),
                trial.text(number),
            )
            cells.append(cell)
            at[number] = cell
    best = {arm: max(listed[arm], key=lambda n: (at[n].score.mean, -at[n].size)) for arm in ARMS}
    top = max(gated, key=lambda n: sum(scores[n]))
    again = trial.again([*best.values(), top], what="re-test of the best")
    done = Degated(
        judge=trial.run.config.get("look_for") or "striking",
        gated={str(n): share(scores[g], trial.rule) for n, g in zip(numbers, gated, strict=True)},
        steady={
            str(n): float(value)
            for n, value in zip((*numbers, *controls), (*open_.steady, *random.steady), strict=True)
        },
        cells=tuple(cells),
        best={arm: at[number] for arm, number in best.items()},
        again={arm: share(again[number], trial.rule) for arm, number in best.items()}
        | {"gated": share(again[top], trial.rule)},
    )
    trial.kept.remember("result", done.data())
    return done


def _controls(run: Run, numbers: Sequence[int]) -> list[int]:
    """Return as many random perturbations, each of the radius of the one it stands beside."""
    rows = {p.id: p for p in run.perturbation_rows()}
    left = run.perturbation_rows("control")
    chosen = []
    for number in numbers:
        same = next((p for p in left if p.radius == rows[number].radius), None)
        if same is None:
            raise MethodError(f"the run has no random perturbation left beside number {number}")
        left.remove(same)
        chosen.append(same.id)
    return chosen
