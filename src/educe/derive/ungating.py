"""Ungated: an adapter without its gate, at both signs and several sizes.

An adapter adds ``R ⟨a_l, x⟩ b_l`` in block ``l``: what it reads decides how much it writes. Ungated
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

from collections.abc import Iterator, Sequence
from dataclasses import replace
from statistics import mean
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from educe.derive.listing import add, again, answers, named, taken
from educe.derive.scaling import derived
from educe.errors import MethodError
from educe.forward.slice import Slice
from educe.methods import origin
from educe.perturbation.kinds import Adapters, Biases
from educe.perturbation.set import PerturbationSet
from educe.rows import CONTROL, FOUND, UNGATED, ScoreRow
from educe.run.store import Run
from educe.run.work import Work

#: ``M``, and both signs of each.
SIZES = (0.25, 0.5, 1.0, 2.0, 4.0)
SHARES = tuple(sign * size for size in SIZES for sign in (1, -1))


class Gates(NamedTuple):
    """What adapters add on some prompts."""

    direction: Float[Tensor, "n s"]  #: the unit mean of it in each block
    size: Float[Tensor, "n"]  #: ``m``: its root mean square over tokens, averaged over blocks
    #: Norm of the mean over that root mean square, averaged over blocks: 1 where the gate is as
    #: wide open for every token.
    steady: Float[Tensor, "n"]


def ungated(
    found: PerturbationSet,
    part: Slice,
    shares: Sequence[float] = (1.0,),
    *,
    size: Float[Tensor, "n"] | None = None,
) -> PerturbationSet:
    """Return adapters without their gates: at each share the first one, then the next.

    The scores are the ``share`` ``± M``, and how ``steady`` the gate is.

    Args:
        found: Adapters.
        part: The slice.
        shares: Signs and sizes, as ``± M``.
        size: ``m`` of each; by default what it adds itself.

    Raises:
        MethodError: They are no adapters.

    Example:
        >>> kind = educe.perturbation.projected.adapters(lm, first=2, blocks=1)
        >>> found = educe.search(part.on(kind), "random", n=2, radius=2.0)
        >>> made = educe.derive.ungated(found, part, [1, -1])
        >>> made.kind.name, made.scores["parent"].tolist(), made.scores["share"].tolist()
        ('biases', [0.0, 0.0, 1.0, 1.0], [1.0, -1.0, 1.0, -1.0])
    """
    kind = _adapters(found)
    biases, gate = Biases.like(kind), gates(part, kind, found.theta)
    own = gate.size if size is None else size
    parents = torch.arange(len(found)).repeat_interleave(len(shares))
    share = torch.tensor(shares, dtype=torch.float32).repeat(len(found))
    made = derived(found, parents, share=share, steady=gate.steady[parents])
    return replace(
        made,
        kind=biases,
        directions=gate.direction[parents] * share.sign()[:, None],
        radius=own[parents].float() * share.abs(),
        origin=origin(part.on(biases)),
        method=UNGATED,
        config={},
    )


def gates(part: Slice, kind: Adapters, theta: Float[Tensor, "n s"]) -> Gates:
    """Return what adapters at their radius add on a slice's prompts, first tokens left out."""
    lm, batch = part.lm, part.batch
    seen: dict[str, Tensor] = {}

    def note(path: str) -> Any:
        return lambda module, args: seen.__setitem__(path, args[0].detach().double().cpu())

    handles = [
        lm.unwrapped.get_submodule(path).register_forward_pre_hook(note(path))
        for path in kind.paths
    ]
    try:
        lm.forward(batch.ids, batch.mask)
    finally:
        for handle in handles:
            handle.remove()
    means, sizes = [], []
    for path, (a, b) in zip(kind.paths, kind.split(theta.double().cpu()), strict=True):
        written = torch.einsum("ti,nki,nkd->ntd", seen[path][part.counted], a, b)
        means.append(written.mean(1))
        sizes.append(written.square().sum(2).mean(1).sqrt())
    mean, size = torch.stack(means, 1), torch.stack(sizes, 1)
    norm = mean.norm(dim=2)
    direction = (mean / norm[:, :, None]).flatten(1)
    return Gates(direction.float(), size.mean(1), (norm / size).mean(1))


def scan(work: Work, numbers: Sequence[int]) -> str:
    """Scan adapters of a run without their gates, beside random ones; the best is tested again.

    Of equal ones the best is the smallest. The best adapter as it was found is tested again too.

    Args:
        work: The run at work.
        numbers: Adapters, by their numbers.

    Returns:
        The name of the files in which the ungated ones are.

    Raises:
        MethodError: They are no adapters, or the run has no random ones of their radius.
    """
    part, run = work.part, work.run
    parents = {FOUND: numbers, CONTROL: list(_controls(run, numbers))}
    name = named(UNGATED, numbers=list(numbers))
    rows: dict[str, list[int]] = {}
    share: dict[int, float] = {}
    for arm, own in parents.items():
        file = f"{name}-{arm}.safetensors"

        def make(own: Sequence[int] = own) -> PerturbationSet:
            found = taken(run, numbers)
            size = gates(part, _adapters(found), found.theta).size
            return ungated(taken(run, own), part, SHARES, size=size)

        rows[arm] = add(work, file, UNGATED, own, make, arm=arm)
        made = PerturbationSet.load(run.tensors / file)
        share |= dict(zip(rows[arm], made.scores["share"].tolist(), strict=True))
        run.add_scores(
            ScoreRow(row, judge, value, "share", "")
            for judge in ("share", "steady")
            for row, value in zip(rows[arm], made.scores[judge].tolist(), strict=True)
        )
    everything = [*numbers, *rows[FOUND], *rows[CONTROL]]
    scores = answers(work, everything, what=f"{len(numbers)} adapters and as many random, ungated")
    tops = [max(own, key=lambda n: (mean(scores[n]), -abs(share[n]))) for own in rows.values()]
    tops.append(max(numbers, key=lambda n: mean(scores[n])))
    again(work, tops, what="re-test of the best")
    return name


def _adapters(found: PerturbationSet) -> Adapters:
    if not isinstance(found.kind, Adapters):
        raise MethodError(f"{found.kind.name} have no gate: only adapters can be ungated")
    return found.kind


def _controls(run: Run, numbers: Sequence[int]) -> Iterator[int]:
    """Return as many random perturbations, each of the radius of the one it stands beside."""
    radius = {p.id: p.radius for p in run.perturbation_rows(derived=None)}
    left = [p.id for p in run.perturbation_rows(CONTROL)]
    for number in numbers:
        same = next((n for n in left if radius[n] == radius[number]), None)
        if same is None:
            raise MethodError(f"the run has no random perturbation left beside number {number}")
        left.remove(same)
        yield same
