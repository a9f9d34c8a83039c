"""Biases against hooks by hand, and adapters without their gates against what they are made of."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import tiny
from educe.derive.listing import deriving
from educe.derive.ungating import SHARES, gates, scan, ungated
from educe.errors import MethodError, SteeringError
from educe.forward.generation import generate, rows_of
from educe.forward.slice import Slice
from educe.methods import origin, search
from educe.model.language import LanguageModel
from educe.perturbation.kinds import Adapters, Biases, adapters
from educe.perturbation.set import PerturbationSet
from educe.report import derived
from educe.rows import ARMS, Row
from educe.run.fill import add_set
from educe.run.store import Run
from small_run import small_run

ROWS = tiny.ragged([7, 15, 1])
PATHS = ("model.layers.2.self_attn.o_proj", "model.layers.3.self_attn.o_proj")
BIASES = Biases(2, PATHS, 32)


@contextmanager
def by_hand(hf: Any, row: Tensor) -> Iterator[None]:
    """Add each half of a row to what the two projections return."""

    def adding(vector: Tensor) -> Any:
        return lambda module, args, output: output + vector

    handles = [
        hf.get_submodule(path).register_forward_hook(adding(vector))
        for path, vector in zip(PATHS, row.split(32), strict=True)
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def drawn(n: int = 3, *, size: float = 2.0) -> Tensor:
    return size * BIASES.draw(n, torch.Generator().manual_seed(0)).double()


# -- the kind --------------------------------------------------------------------------------------


@torch.no_grad()
def test_the_effect_is_that_of_vectors_added_by_hooks(tiny64: LanguageModel) -> None:
    part = Slice(tiny64, tiny64.pad(ROWS), source=1, target=3).on(BIASES)
    for theta, effect in zip(drawn(), part.effect(drawn()), strict=True):
        expected = torch.zeros(32, dtype=torch.float64)
        for ids in ROWS:
            rest = tiny.run(tiny64.hf, ids)[1][3]
            with by_hand(tiny64.hf, theta):
                came = tiny.run(tiny64.hf, ids)[1][3]
            expected += (came - rest)[-3:].mean(0) / len(ROWS)
        torch.testing.assert_close(effect, expected)


def test_each_row_of_a_batch_writes_under_its_own(tiny64: LanguageModel) -> None:
    rows = [*rows_of(3, len(ROWS)), Row(0, 0)]
    told = [
        c
        for some in generate(tiny64, tiny64.pad(ROWS), rows, drawn(), kind=BIASES, max_new_tokens=6)
        for c in some
    ]
    assert len(told) == len(rows)
    for c in told:
        theta = [torch.zeros(64).double(), *drawn()][c.row.perturbation]
        with by_hand(tiny64.hf, theta):
            expected = tiny.greedy(tiny64.hf, ROWS[c.row.prompt], 6, ends=(257,))
        assert list(c.tokens) == expected


def test_its_gradient_is_that_through_the_hooks(tiny64: LanguageModel) -> None:
    part = Slice(tiny64, tiny64.pad(ROWS[:1]), source=1, target=3, readout="last:1").on(BIASES)
    theta = drawn(1).requires_grad_()
    u = torch.linspace(-1, 1, 32, dtype=torch.float64)
    with by_hand(tiny64.hf, theta[0]):
        (expected,) = torch.autograd.grad(tiny.run(tiny64.hf, ROWS[0])[1][3][-1] @ u, theta)
    torch.testing.assert_close(part.vjp(theta.detach(), u[None])[1], expected)


def test_a_set_comes_back_from_its_file(tiny_lm: LanguageModel, tmp_path: Path) -> None:
    part = Slice(tiny_lm, tiny_lm.pad(ROWS), source=1, target=3).on(BIASES)
    made = search(part, "random", n=2, radius=1.5)
    assert [column.norm(dim=2).tolist() for column in BIASES.columns(made.theta)] == [
        [[pytest.approx(1.5)]] * 2
    ] * 2
    made.save(tmp_path / "set.safetensors")
    again = PerturbationSet.load(tmp_path / "set.safetensors")
    assert again.kind == BIASES
    assert torch.equal(again.theta, made.theta)


def test_a_projection_that_is_never_called_is_an_error(tiny_lm: LanguageModel) -> None:
    tiny_lm.unwrapped.get_submodule("model").unused = torch.nn.Identity()
    try:
        unused = Biases(2, ("model.unused",), 32)
        part = Slice(tiny_lm, tiny_lm.pad(ROWS), source=1, target=3).on(unused)
        with pytest.raises(SteeringError, match="never called"):
            part.effect(torch.ones(1, 32))
    finally:
        del tiny_lm.unwrapped.get_submodule("model").unused


# -- without the gate ------------------------------------------------------------------------------


def made(part: Slice, kind: Adapters, n: int, radius: float) -> Tensor:
    v = kind.draw(n, torch.Generator().manual_seed(3)).to(part.work_dtype)
    return kind.scaled(v, radius)


@pytest.mark.parametrize("rank", [1, 2])
def test_where_the_gate_is_constant_size_one_is_the_adapter(
    tiny64: LanguageModel, rank: int
) -> None:
    """One prompt of one token: a single ``x``, so a constant gate, in the one block adapted."""
    part = Slice(tiny64, tiny64.pad([[65]]), source=1, target=3, readout="last:1")
    kind = adapters(tiny64, first=2, blocks=1, rank=rank)
    theta = made(part, kind, 4, 3.0)
    torch.testing.assert_close(gates(part, kind, theta).steady, torch.ones(4).double())
    v = kind.draw(4, torch.Generator().manual_seed(3))
    found = PerturbationSet(kind, v, torch.full((4,), 3.0), origin(part), "random", 3)
    one = ungated(found, part, [1.0, -1.0])
    assert one.scores["parent"].tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    effect = part.on(one.kind).effect(one.theta.double())
    torch.testing.assert_close(effect[::2], part.on(kind).effect(theta), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(effect[1::2], effect[::2], rtol=0.1)


def test_gates_are_means_over_what_the_projections_take(tiny64: LanguageModel) -> None:
    part = Slice(tiny64, tiny64.pad(ROWS), source=1, target=3)
    kind = adapters(tiny64, first=2, blocks=2)
    theta = made(part, kind, 3, 2.0)
    open_ = gates(part, kind, theta)
    for i, row in enumerate(theta):
        size, steady = [], []
        for block, (a, b) in enumerate(kind.split(row[None])):
            taken: list[Tensor] = []
            handle = tiny64.hf.get_submodule(PATHS[block]).register_forward_pre_hook(
                lambda module, args, into=taken: into.extend(args[0][0])
            )
            for ids in ROWS:
                first = len(taken)
                tiny.run(tiny64.hf, ids)
                del taken[first]  # the first token of each prompt does not count
            handle.remove()
            gate = torch.stack(taken) @ a[0, 0]
            sign = gate.mean().sign()
            expected = sign * b[0, 0] / b[0, 0].norm()
            own = open_.direction[i].split(32)[block]
            torch.testing.assert_close(own, expected.float(), rtol=1e-4, atol=1e-5)
            size.append(gate.square().mean().sqrt() * b.norm())
            steady.append(gate.mean().abs() / gate.square().mean().sqrt())
        torch.testing.assert_close(open_.size[i], torch.stack(size).mean())
        torch.testing.assert_close(open_.steady[i], torch.stack(steady).mean())


@pytest.fixture(scope="module")
def audited(tiny_lm: LanguageModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("audited") / "run"
    return small_run(folder, tiny_lm, "cpe", iterations=2, blocks=2)


def test_a_scan_has_both_arms_at_the_same_sizes_and_goes_on(
    audited: Path, tiny_lm: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Run.open(audited) as run:
        with deriving(run, [1, 2], tiny_lm) as work:
            name = scan(work, [1, 2])
        rows = run.perturbation_rows(derived=True)
        arms = {arm: [p for p in rows if p.file == f"{name}-{arm}.safetensors"] for arm in ARMS}
        assert [len(own) for own in arms.values()] == [20, 20]
        assert [p.parent for p in arms["found"]] == [1] * 10 + [2] * 10
        assert [p.parent for p in arms["control"]] == [4] * 10 + [5] * 10
        assert [p.radius for p in arms["found"]] == [p.radius for p in arms["control"]]
        shares = {s.of: s.value for s in run.score_rows("share")}
        for own in arms.values():
            assert [shares[p.id] for p in own] == list(SHARES) * 2
        (done,) = derived.scans(run)
        assert [cell.number for cell in done.gated] == [1, 2]
        pattern = re.compile("[a-m]")
        for arm in ARMS:
            hits = {
                p.id: [
                    bool(pattern.search(c.text))
                    for c in run.completion_rows("first")
                    if c.perturbation == p.id
                ]
                for p in arms[arm]
            }
            best = done.best[arm]
            top = max(sum(own) for own in hits.values())
            assert best.score.hits == top
            assert abs(best.share or 0) == min(abs(shares[n]) for n in hits if sum(hits[n]) == top)
            assert best.again is not None
            assert best.again.trials == 4  # fresh samples
        before = [*run.completion_rows(), *run.score_rows()]

        def never(*args: Any, **options: Any) -> None:
            raise AssertionError("it wrote again")

        monkeypatch.setattr("educe.run.fill.generate", never)
        with deriving(run, [1, 2], tiny_lm) as work:
            assert scan(work, [1, 2]) == name
        assert [*run.completion_rows(), *run.score_rows()] == before


def test_random_ones_without_their_gates_have_the_sizes_of_those_beside_them(
    audited: Path, tiny_lm: LanguageModel
) -> None:
    part = Slice(tiny_lm, tiny_lm.pad(ROWS), source=1, target=3)
    kind = adapters(tiny_lm, first=2, blocks=2)
    some = search(part.on(kind), "random", n=2, radius=2.0)
    size = torch.tensor([0.5, 3.0])
    assert ungated(some, part, [1, -2], size=size).radius.tolist() == [0.5, 1.0, 3.0, 6.0]


def test_vectors_have_no_gate(audited: Path, tiny_lm: LanguageModel, tmp_path: Path) -> None:
    with Run.open(audited) as run:
        vectors = search(
            Slice(tiny_lm, tiny_lm.pad(ROWS), source=1, target=3), "random", n=3, radius=2.0
        )
        own = {}
        for arm in ARMS:
            vectors.save(run.tensors / f"{arm}-v.safetensors")
            own[arm] = add_set(run, arm, f"{arm}-v.safetensors", vectors, [1.0] * 3)
        with (
            deriving(run, own["found"], tiny_lm) as work,
            pytest.raises(MethodError, match="have no gate: only adapters can be ungated"),
        ):
            scan(work, own["found"])
