"""Which words a weight difference reads: what matrices are given, against whole plain passes."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from educe.audit.difference import Change
from educe.audit.sources import weights
from educe.audit.sources.weights import (
    SHARED,
    beginnings,
    directions,
    early,
    inputs,
    loudness,
    means,
)
from educe.forward.inserted import Opening
from educe.model.language import LanguageModel

STRINGS = torch.tensor([[5, 7], [9, 7], [13, 5], [40, 9]])
TYPICAL = torch.tensor([[6, 8], [21, 3], [11, 5]])


def change(lm: LanguageModel, block: int, name: str = "mlp.gate_proj") -> Change:
    module = lm.blocks[block].get_submodule(name)
    draw = torch.Generator().manual_seed(block)
    down = torch.randn(3, module.in_features, generator=draw)
    return Change(f"{block}.{name}", block, module, None, down)


def test_early_blocks_are_read_and_a_quarter_of_those_that_differ(tiny_lm: LanguageModel) -> None:
    some = [replace(change(tiny_lm, 0), block=block) for block in (9, 2, 7, 4, 3, 2)]
    assert [c.block for c in early(some, 10)] == [2, 3, 2]
    assert [c.block for c in early(some, 11)] == [2, 4, 3, 2]
    assert [c.block for c in early(some[:1], 10)] == [9]
    assert early([], 10) == []


@torch.no_grad()
def test_loudness_is_what_plain_passes_give(tiny_lm: LanguageModel) -> None:
    reads = [change(tiny_lm, 0), change(tiny_lm, 2, "self_attn.q_proj")]
    before = Opening(tiny_lm, tiny_lm.encode(["x"]), 0, first=True).before.ids
    given: dict[str, list[torch.Tensor]] = {c.path: [] for c in reads}
    handles = [
        c.module.register_forward_pre_hook(
            lambda m, args, p=c.path: given[p].append(args[0][0, -1])
        )
        for c in reads
    ]
    for string in [*STRINGS.tolist(), *TYPICAL.tolist()]:
        tiny_lm.hf(input_ids=torch.tensor([[*before, *string]]), use_cache=False)
    for handle in handles:
        handle.remove()
    usual = means(tiny_lm, reads, TYPICAL)
    ((_, found),) = inputs(tiny_lm, reads, STRINGS, usual)
    expected = torch.zeros(len(STRINGS))
    for c in reads:
        x = torch.stack(given[c.path])
        x = x[: len(STRINGS)] - x[len(STRINGS) :].mean(0)
        torch.testing.assert_close(found[c.path], x, atol=1e-5, rtol=1e-4)
        expected += (x @ c.down.T).norm(dim=1) / x.norm(dim=1)
    (loud,) = loudness(tiny_lm, reads, STRINGS, usual)
    assert loud.tolist() == pytest.approx(expected.tolist(), rel=1e-4)


def test_strings_that_begin_alike_are_as_loud_as_each_by_itself(
    tiny_lm: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads = [change(tiny_lm, 0), change(tiny_lm, 2, "self_attn.q_proj")]
    strings = torch.cartesian_prod(*3 * [torch.tensor([5, 9, 21, 40])])
    draw = torch.randperm(len(strings), generator=torch.Generator().manual_seed(0))
    strings = torch.cat([strings[draw], torch.tensor([[13, 5, 7]])])
    usual = means(tiny_lm, reads, torch.tensor([[6, 8, 3], [21, 3, 11]]))
    (plain,) = loudness(tiny_lm, reads, strings, usual)
    monkeypatch.setattr(weights, "SHARED", 4)
    groups = beginnings(strings.tolist())
    assert {len(begun): len(own) for begun, own in groups.items()} == {2: 4, 0: 1}
    (shared,) = loudness(tiny_lm, reads, strings, usual)
    assert shared.tolist() == pytest.approx(plain.tolist(), rel=1e-4)


def test_the_longest_beginning_counts_that_enough_strings_have() -> None:
    many = [(1, 2, i) for i in range(SHARED)]
    some = [(1, 3 + i, 0) for i in range(SHARED - 1)]
    assert beginnings([*many, *some, (4, 5, 6)]) == {
        (1, 2): list(range(SHARED)),
        (1,): list(range(SHARED, 2 * SHARED - 1)),
        (): [2 * SHARED - 1],
    }


def test_each_view_leaves_its_own_directions_out(tiny_lm: LanguageModel) -> None:
    reads = [change(tiny_lm, 0)]
    usual = means(tiny_lm, reads, TYPICAL)
    views = [None, *(directions(tiny_lm, reads, STRINGS[:2], usual, n) for n in (1, 2))]
    plain, one, two = loudness(tiny_lm, reads, STRINGS, usual, without=views)
    for found, view in ((plain, None), (one, views[1]), (two, views[2])):
        (alone,) = loudness(tiny_lm, reads, STRINGS, usual, without=[view])
        assert found.tolist() == pytest.approx(alone.tolist(), rel=1e-5)
    assert two[:2].tolist() == pytest.approx([0.0, 0.0], abs=1e-4)  # their own two directions
    assert (one[:2] < plain[:2]).all()
    assert (two[2:] > 1e-2).all()
