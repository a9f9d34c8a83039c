"""Sparse vectors: paths in closed form on linear slices, planted coordinates, and a run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import tiny
from educe.derive.bases import Basis, residual, rotation
from educe.derive.lasso import WEIGHTS, fewest, grid, lasso, ranked, shares
from educe.derive.listing import deriving, taken
from educe.derive.sparsity import sparsify
from educe.errors import EffectError, MethodError
from educe.forward.slice import Slice
from educe.methods import search
from educe.model.language import LanguageModel
from educe.perturbation.kinds import adapters
from educe.perturbation.set import PerturbationSet
from educe.report import derived
from educe.run.fill import add_set
from educe.run.store import Run
from small_run import small_run
from toy_slice import ToySlice, linear, normal

WIDTH = 8


def paired(width: int) -> Basis:
    """The stream's own coordinates, two and two in a group."""
    group = torch.arange(width) // 2
    names = tuple(f"pair {i}" for i in range(width // 2))
    return Basis("pairs", torch.eye(width, dtype=torch.float64), group, names)


def orthogonal(scales: Tensor) -> Any:
    """A linear slice whose coordinates act at right angles, by so much."""
    turn = torch.linalg.qr(normal(WIDTH, WIDTH, seed=3)).Q
    return linear(turn @ scales.diag())


# -- the path --------------------------------------------------------------------------------------


@pytest.mark.parametrize("basis", [residual(WIDTH), paired(WIDTH)], ids=["one", "pairs"])
def test_contributions_at_right_angles_are_soft_thresholded(basis: Basis) -> None:
    part = orthogonal(torch.linspace(0.8, 1.6, WIDTH, dtype=torch.float64))
    theta = normal(3, WIDTH, seed=1).sign() * (1 + normal(3, WIDTH, seed=2).sigmoid())
    path, weights = lasso(part, basis, theta, weights=5, steps=100)
    size = part.effect(theta).square().sum(1)
    each = []
    for g in range(len(basis.names)):
        own = torch.where(basis.group == g, theta, 0.0)
        each.append(part.effect(own).square().sum(1))
    own = torch.stack(each, 1)
    expected = (1 - weights[:, :, None] * size[:, None] / own).clamp(min=0)
    torch.testing.assert_close(path, expected, rtol=0, atol=1e-5)
    assert (path[0] > 0.9).any()
    assert not path[-1].any()
    assert torch.equal(ranked(path)[:, 0], own.argmax(1))


@pytest.mark.parametrize("overlapping", [False, True])
def test_a_path_is_the_minimum_of_its_objective_on_any_linear_slice(overlapping: bool) -> None:
    """At the minimum the gradient of the smooth part is -μ, but at factors of zero and one."""
    matrix = normal(WIDTH, WIDTH, seed=5)
    part, theta = linear(matrix), normal(2, WIDTH, seed=6)
    some = normal(WIDTH + 4, WIDTH, seed=7)
    basis = Basis.of("many", some, "direction") if overlapping else residual(WIDTH)
    path, weights = lasso(part, basis, theta, weights=3, steps=500)
    for v in range(2):
        acts = matrix @ (basis.atoms * (basis.atoms @ theta[v])[:, None]).T
        whole = matrix @ theta[v]
        for m, weight in zip(path[:, v], weights[:, v], strict=True):
            slope = acts.T @ (acts @ m - whole) / whole.square().sum() + weight
            free = (m > 0) & (m < 1)
            assert float(slope[free].abs().max() if free.any() else 0) < 1e-4 * float(weights.max())
            assert bool((slope[m == 0] > -1e-6).all())
            assert bool((slope[m == 1] < 1e-6).all())


@pytest.mark.parametrize("curved", [False, True])
def test_a_planted_sparse_vector_is_found(curved: bool) -> None:
    """A vector's effect comes through three directions of a basis, though others are longer."""
    basis = rotation(WIDTH, seed=2)
    planted = torch.tensor([1, 4, 6])
    reads = basis.atoms[planted]
    out = torch.linalg.qr(normal(WIDTH, 3, seed=4)).Q

    def move(theta: Tensor) -> Tensor:
        inside = theta @ reads.T
        return (inside.tanh() if curved else inside) @ out.T

    part = ToySlice(move, WIDTH)
    coordinates = torch.full((1, WIDTH), 3.0, dtype=torch.float64)
    coordinates[0, planted] = torch.tensor([1.0, -0.8, 0.6], dtype=torch.float64)
    theta = coordinates @ basis.atoms
    path, _ = lasso(part, basis, theta)
    largest = basis.sizes(theta).argsort(dim=1, descending=True)
    orders = {"lasso": ranked(path), "magnitude": largest}
    assert set(orders["lasso"][0, :3].tolist()) == set(planted.tolist())
    counts = grid(WIDTH)
    seen = {name: shares(part, basis, theta, order, counts) for name, order in orders.items()}
    assert fewest(seen["lasso"][0], counts, 0.99) == 3
    assert fewest(seen["magnitude"][0], counts, 0.99) > 3
    torch.testing.assert_close(
        basis.onto(theta, orders["lasso"][:, :3])[0],
        (coordinates[0, planted, None] * reads).sum(0),
    )


def test_going_on_along_the_path_changes_nothing() -> None:
    part = ToySlice(lambda theta: (theta @ normal(WIDTH, WIDTH)).tanh(), WIDTH)
    basis, theta = residual(WIDTH), normal(2, WIDTH, seed=1)
    known: list[tuple[Tensor, Tensor]] = []
    whole, _ = lasso(part, basis, theta, steps=3, on_weight=lambda *kept: known.append(kept))
    assert len(known) == WEIGHTS
    again, _ = lasso(part, basis, theta, steps=3, known=known[4])
    assert torch.equal(again, whole)


# -- what is kept ----------------------------------------------------------------------------------


def test_shares_are_along_the_direction_of_the_whole_effect() -> None:
    matrix, theta = normal(WIDTH, WIDTH, seed=7), normal(2, WIDTH, seed=8)
    order = torch.stack([torch.randperm(WIDTH), torch.arange(WIDTH)])
    seen = shares(linear(matrix), residual(WIDTH), theta, order, [1, 3, WIDTH])
    for v in range(2):
        whole = matrix @ theta[v]
        for column, count in enumerate((1, 3, WIDTH)):
            kept = torch.zeros(WIDTH, dtype=torch.float64)
            kept[order[v, :count]] = theta[v, order[v, :count]]
            expected = (matrix @ kept) @ whole / whole.square().sum()
            torch.testing.assert_close(seen[v, column], expected)
    torch.testing.assert_close(seen[:, -1], torch.ones(2).double())


def test_the_fewest_keep_enough_from_there_on() -> None:
    counts = [1, 2, 4, 8]
    assert fewest(torch.tensor([0.9, 0.7, 0.85, 1.0]), counts, 0.8) == 4
    assert fewest(torch.tensor([0.9, 0.9, 0.9, 1.0]), counts, 0.8) == 1
    assert fewest(torch.tensor([0.1, 0.2, 0.3, 1.0]), counts, 0.8) == 8
    assert grid(10) == [1, 2, 3, 4, 6, 8, 10]
    assert grid(1) == [1]


# -- of a run --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def audited(tiny_lm: LanguageModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("audited") / "run"
    return small_run(folder, tiny_lm, "dct", iterations=2)


def test_a_run_keeps_its_sparse_vectors_and_goes_on(
    audited: Path, tiny_lm: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Run.open(audited) as run:
        with deriving(run, [2, 1], tiny_lm) as work:
            name = sparsify(work, [2, 1], keep=0.7)
            part = work.part
        (done,) = [one for one in derived.sparse(run) if one.name == name]  # others share the run
        assert (done.name, done.groups, done.keep) == (name, tiny_lm.width, 0.7)
        assert [one.number for one in done.vectors] == [2, 1]
        rows = [p for p in run.perturbation_rows(derived=True) if p.file.startswith(name)]
        whole = {p.id: p for p in run.perturbation_rows()}
        for i, one in enumerate(done.vectors):
            assert len(one.kept) == one.needed["lasso"] < tiny_lm.width
            own = done.curves[(done.curves.number == one.number) & (done.curves.order == "lasso")]
            curve = own.set_index("groups").share
            at = one.needed["lasso"]
            assert curve.loc[at:].min() >= 0.7
            assert curve.iloc[-1] == pytest.approx(1, abs=1e-4)
            assert set(one.scores) == set(one.again) == {"whole", *derived.ORDERS}
            assert 0 < one.norm < 1
            # What the file holds keeps the share that is told, by an effect of its own.
            made = PerturbationSet.load(run.tensors / f"{name}-sparse.safetensors")
            assert sum(made.theta[i] != 0) == one.needed["lasso"]
            aim = part.effect(taken(run, [one.number]).theta)[0]
            share = (part.effect(made.theta)[i] @ aim) / aim.square().sum()
            assert float(share) == pytest.approx(curve[at], rel=1e-3)
            own = [p for p in rows if p.parent == one.number]
            assert [p.arm for p in own] == [whole[one.number].arm] * 2 + ["control"]
            assert own[0].radius == pytest.approx(one.norm * whole[one.number].radius, rel=1e-5)

        def never(*args: Any, **options: Any) -> None:
            raise AssertionError("it began again")

        monkeypatch.setattr("educe.run.fill.generate", never)
        monkeypatch.setattr("educe.derive.lasso._descend", never)
        with deriving(run, [2, 1], tiny_lm) as work:
            assert sparsify(work, [2, 1], keep=0.7) == name
        (again,) = [one for one in derived.sparse(run) if one.name == name]
        assert again.vectors == done.vectors
        assert again.curves.equals(done.curves)


def test_a_path_that_was_cut_off_goes_on_with_its_weights(
    audited: Path, tiny_lm: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Run.open(audited) as run, deriving(run, [3], tiny_lm) as work:
        monkeypatch.setattr("educe.derive.sparsity.shares", lambda *_: pytest.fail("stopped"))
        with pytest.raises(pytest.fail.Exception, match="stopped"):
            sparsify(work, [3], keep=0.6)
        (state,) = run.tensors.glob("*.state")
        monkeypatch.undo()
        monkeypatch.setattr("educe.derive.lasso._descend", lambda *_: pytest.fail("begun again"))
        sparsify(work, [3], keep=0.6)
        assert not state.exists()


def test_what_makes_no_sense_is_an_error(audited: Path, tiny_lm: LanguageModel) -> None:
    with Run.open(audited) as run:
        part = Slice(tiny_lm, tiny_lm.pad(tiny.ragged([5])), source=1, target=3)
        kind = adapters(tiny_lm, first=2, blocks=1)
        made = search(part.on(kind), "random", n=1, radius=1.0)
        made.save(run.tensors / "found-a.safetensors")
        (number,) = add_set(run, "found", "found-a.safetensors", made, [1.0])
        with deriving(run, [1, number], tiny_lm) as work:
            with pytest.raises(MethodError, match="give a share between 0 and 1"):
                sparsify(work, [1], keep=1.0)
            with pytest.raises(MethodError, match="adapters, which are no vectors"):
                sparsify(work, [number])
            with pytest.raises(MethodError, match="adapters, which are no vectors"):
                sparsify(work, [1, number])
    still = ToySlice(lambda theta: 0 * theta, WIDTH)
    with pytest.raises(MethodError, match="without effect"):
        lasso(still, residual(WIDTH), normal(1, WIDTH))


@pytest.mark.parametrize("error", [EffectError, KeyboardInterrupt])
def test_what_nothing_came_of_leaves_nothing(
    audited: Path, tiny_lm: LanguageModel, monkeypatch: Any, error: type[BaseException]
) -> None:
    def broken(*_: Any, **__: Any) -> Any:
        raise error("no")

    monkeypatch.setattr("educe.derive.sparsity.lasso", broken)
    with Run.open(audited) as run:
        before = sorted(audited.rglob("*")), run.perturbations.to_csv(), run.completion_rows()
        with pytest.raises(error), deriving(run, [1], tiny_lm) as work:
            sparsify(work, [1], keep=0.123)
        assert before == (
            sorted(audited.rglob("*")),
            run.perturbations.to_csv(),
            run.completion_rows(),
        )
