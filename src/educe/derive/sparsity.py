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
from pathlib import Path

import torch
from jaxtyping import Float, Int
from torch import Tensor

from educe import files
from educe.derive.bases import Basis, parse
from educe.derive.lasso import WEIGHTS, fewest, grid, lasso, ranked, shares
from educe.derive.listing import add, again, answers, named, taken
from educe.derive.projection import as_vectors, replaced
from educe.errors import MethodError
from educe.forward.slice import Slice
from educe.perturbation.set import PerturbationSet
from educe.progress import Reporter
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
    theta = as_vectors(found).theta.cpu().double()
    order = ranked(lasso(part, basis, theta)[0])
    seen = shares(part, basis, theta, order, grid(len(basis.names)))
    return _first(found, basis, order, seen, _fewest(seen, basis, keep), keep)


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
    part, reporter = work.part, work.reporter
    found = taken(work.run, numbers, vectors=True)
    theta = found.theta.double()
    read = parse(basis, work.lm, part.source, reporter=reporter)
    name = named(SPARSE, numbers=list(numbers), basis=basis, keep=keep)
    made: dict[str, PerturbationSet] = {}

    def make(how: str) -> PerturbationSet:
        if not made:
            state = work.run.tensors / f"{name}.state"
            path = _path(part, read, theta, state, reporter)
            made.update(_orders(found, part, read, ranked(path), keep, reporter))
        return made[how]

    rows = []
    for how, arm in ((SPARSE, None), (LARGEST, None), (AT_RANDOM, CONTROL)):
        file = f"{name}-{how.split()[-1]}.safetensors"
        rows += add(work, file, how, numbers, lambda how=how: make(how), arm=arm)  # type: ignore[misc]
    (work.run.tensors / f"{name}.state").unlink(missing_ok=True)
    answers(work, [*numbers, *rows], what="whole and sparse vectors")
    again(work, [*numbers, *rows], what="their re-test")
    return name


def _check(keep: float) -> None:
    if not 0 < keep < 1:
        raise MethodError(f"keep {keep:g}: give a share between 0 and 1")


def _orders(
    found: PerturbationSet,
    part: Slice,
    basis: Basis,
    order: Int[Tensor, "n g"],
    keep: float,
    reporter: Reporter,
) -> dict[str, PerturbationSet]:
    """Return the first groups in each order, as many as the lasso's first that are enough."""
    theta, draw = found.theta.double(), torch.Generator().manual_seed(0)
    counts = grid(len(basis.names))
    at_random = [
        torch.stack([torch.randperm(len(basis.names), generator=draw) for _ in theta])
        for _ in range(DRAWS)
    ]
    orders = [order, basis.sizes(theta).argsort(dim=1, descending=True), *at_random]
    seen = []
    with reporter.stage("keeping the first groups", len(orders), "orders") as step:
        for each in orders:
            seen.append(shares(part, basis, theta, each, counts))
            step()
    needed = [_fewest(each, basis, keep) for each in seen]
    middle = torch.stack(needed[2:]).sort(dim=0).values[DRAWS // 2]
    curves = (seen[0], seen[1], torch.stack(seen[2:]).mean(0))
    return {
        how: replace(
            _first(found, basis, orders[i], curves[i], needed[0], keep, (*needed[:2], middle)[i]),
            method=how,
        )
        for i, how in enumerate((SPARSE, LARGEST, AT_RANDOM))
    }


def _first(
    found: PerturbationSet,
    basis: Basis,
    order: Int[Tensor, "n g"],
    seen: Float[Tensor, "n c"],
    many: Int[Tensor, "n"],
    keep: float,
    needed: Int[Tensor, "n"] | None = None,
) -> PerturbationSet:
    """Return what so many of the first groups can write of each vector."""
    theta = as_vectors(found).theta.cpu().double()
    each = [
        basis.onto(theta[i : i + 1], order[i : i + 1, :count])
        for i, count in enumerate(many.tolist())
    ]
    rows = torch.cat(each)
    counts = grid(len(basis.names))
    made = replaced(
        found,
        rows,
        torch.arange(len(theta)),
        groups=many,
        needed=many if needed is None else needed,
        norm=rows.norm(dim=1) / theta.norm(dim=1),
        **{f"share {count}": seen[:, j] for j, count in enumerate(counts)},
    )
    names = [
        [basis.names[g] for g in order[i, :count].tolist()] for i, count in enumerate(many.tolist())
    ]
    config = {"basis": basis.name, "keep": keep, "groups": len(basis.names), "kept": names}
    return replace(made, method=SPARSE, config=config)


def _fewest(seen: Float[Tensor, "n c"], basis: Basis, keep: float) -> Int[Tensor, "n"]:
    counts = grid(len(basis.names))
    return torch.tensor([fewest(line, counts, keep) for line in seen])


def _path(
    part: Slice, basis: Basis, theta: Float[Tensor, "n d"], file: Path, reporter: Reporter
) -> Float[Tensor, "w n g"]:
    """Follow the path of the lasso, or go on with it; every weight is kept."""
    known = None
    if file.exists():
        tensors, _ = files.read_tensors(file)
        known = tensors["path"], tensors["rate"]
    with reporter.stage("lasso path", WEIGHTS, "weights") as step:
        step(0 if known is None else len(known[0]))

        def on_weight(path: Tensor, rate: Tensor) -> None:
            files.write_tensors(file, {"path": path, "rate": rate}, {})
            step()

        return lasso(part, basis, theta, known=known, on_weight=on_weight)[0]
