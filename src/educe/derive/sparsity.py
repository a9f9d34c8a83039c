"""Sparse: how few groups of coordinates carry what a vector does.

A lasso (`educe.derive.lasso`) ranks the groups of a basis. Of the first ``k`` is kept what they can
write of the vector together, its projection ``P_k θ`` onto all that they span. Of the effect is
left, along its own direction ``u``,

    share(k) = ⟨u, Δ(P_k θ)⟩ / ‖Δ(θ)‖

The sparsest vector is that of the fewest groups whose share is no less than what is asked for. In a
run it stands beside as many groups by their size ``‖P_g θ‖``, and in random order.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cache

import torch
from jaxtyping import Int
from torch import Tensor

from educe import files
from educe.derive.bases import Basis, parse
from educe.derive.lasso import WEIGHTS, fewest, grid, lasso, ranked, shares
from educe.derive.listing import add, again, answers, named, taken
from educe.derive.projection import as_vectors, replaced
from educe.errors import MethodError
from educe.forward.slice import Slice
from educe.perturbation.set import PerturbationSet
from educe.progress import Advance
from educe.rows import AT_RANDOM, CONTROL, LARGEST, SPARSE
from educe.run.work import Work

#: Random orders that a curve is the mean of.
DRAWS = 4


def sparse(
    found: PerturbationSet, part: Slice, basis: Basis, *, keep: float = 0.8
) -> PerturbationSet:
    """Return what the fewest groups of a basis that carry enough of the effect write of vectors.

    The scores are how many ``groups`` are kept, of the first ones which keep enough; the ``norm``
    as a share of the vector's; and ``share K``, what the first K groups keep of the effect.

    Args:
        found: Vectors.
        part: The slice.
        basis: The basis.
        keep: The share of the effect that is to be kept.

    Raises:
        MethodError: They are no vectors, one has no effect, or the share is none.

    Example:
        >>> found = educe.search(part, "random", n=2, radius=2.0)
        >>> basis = educe.derive.bases.residual(lm.width)
        >>> few = educe.derive.sparse(found, part, basis, keep=0.5)
        >>> bool((few.scores["groups"] < 32).all()), bool((few.radius < found.radius).all())
        (True, True)
    """
    _check(keep)
    order = ranked(lasso(part, basis, as_vectors(found).theta.cpu().double())[0])
    return _kept(found, part, basis, [order], keep)[0]


def sparsify(
    work: Work, numbers: Sequence[int], *, basis: str = "residual", keep: float = 0.8
) -> str:
    """Make vectors of a run sparse in a basis, and let the model write under what is left.

    Args:
        work: The run at work.
        numbers: Vectors, by their numbers.
        basis: See `educe.derive.bases.parse`.
        keep: The share of the effect that is to be kept.

    Returns:
        The name of the files in which the sparse vectors are.

    Raises:
        MethodError: The perturbations are no vectors, or the share is none.
    """
    _check(keep)
    run, reporter = work.run, work.reporter
    found = taken(run, numbers, vectors=True)
    read = parse(basis, work.lm, work.part.source, reporter=reporter)
    name = named(SPARSE, numbers=list(numbers), basis=basis, keep=keep)
    state = run.tensors / f"{name}.state"

    @cache
    def made() -> dict[str, PerturbationSet]:
        theta = found.theta.double()
        known = files.read_tensors(state)[0] if state.exists() else None
        with reporter.stage("lasso path", WEIGHTS, "weights") as step:
            step(len(known["path"]) if known else 0)

            def on_weight(path: Tensor, rate: Tensor) -> None:
                files.write_tensors(state, {"path": path, "rate": rate}, {})
                step()

            begun = (known["path"], known["rate"]) if known else None
            path, _ = lasso(work.part, read, theta, known=begun, on_weight=on_weight)
        draw = torch.Generator().manual_seed(0)
        lots = [
            torch.stack([torch.randperm(len(read.names), generator=draw) for _ in theta])
            for _ in range(DRAWS)
        ]
        largest = read.sizes(theta).argsort(dim=1, descending=True)
        with reporter.stage("keeping the first groups", 2 + DRAWS, "orders") as step:
            sets = _kept(found, work.part, read, [ranked(path), largest, *lots], keep, step)
        return {
            how: replace(some, method=how)
            for how, some in zip((SPARSE, LARGEST, AT_RANDOM), sets, strict=True)
        }

    rows = []
    for how, arm in ((SPARSE, None), (LARGEST, None), (AT_RANDOM, CONTROL)):
        file = f"{name}-{how.split()[-1]}.safetensors"
        rows += add(work, file, how, numbers, lambda how=how: made()[how], arm=arm)  # type: ignore[misc]
    state.unlink(missing_ok=True)
    answers(work, [*numbers, *rows], what="whole and sparse vectors")
    again(work, [*numbers, *rows], what="their re-test")
    return name


def _check(keep: float) -> None:
    if not 0 < keep < 1:
        raise MethodError(f"keep {keep:g}: give a share between 0 and 1")


def _kept(
    found: PerturbationSet,
    part: Slice,
    basis: Basis,
    orders: Sequence[Int[Tensor, "n g"]],
    keep: float,
    step: Advance = lambda steps=1: None,
) -> list[PerturbationSet]:
    """Return what as many groups of each order as are enough in the first one write of vectors.

    From the third order on they are random: the first of them stands for all, with their mean
    curve and the median of how many they need.
    """
    theta = as_vectors(found).theta.cpu().double()
    counts, curves = grid(len(basis.names)), []
    for order in orders:
        curves.append(shares(part, basis, theta, order, counts))
        step()
    needed = [torch.tensor([fewest(line, counts, keep) for line in each]) for each in curves]
    if len(orders) > 2:
        middle = torch.stack(needed[2:]).sort(dim=0).values[(len(orders) - 2) // 2]
        curves[2:], needed[2:] = [torch.stack(curves[2:]).mean(0)], [middle]
    many = needed[0].tolist()
    made = []
    for order, curve, need in zip(orders[: len(needed)], curves, needed, strict=True):
        first = [order[i, :count] for i, count in enumerate(many)]
        rows = torch.cat([basis.onto(theta[i : i + 1], own[None]) for i, own in enumerate(first)])
        names = [[basis.names[g] for g in own.tolist()] for own in first]
        config = {"basis": basis.name, "keep": keep, "groups": len(basis.names), "kept": names}
        some = replaced(
            found,
            rows,
            torch.arange(len(theta)),
            groups=needed[0],
            needed=need,
            norm=rows.norm(dim=1) / theta.norm(dim=1),
            **{f"share {count}": curve[:, j] for j, count in enumerate(counts)},
        )
        made.append(replace(some, method=SPARSE, config=config))
    return made
