"""Which words a weight difference reads: what matrices are given, against whole plain passes."""

from __future__ import annotations

import pytest
import torch

from educe.audit.difference import Change
from educe.audit.sources.weights import early, inputs, loudness, means
from educe.forward.inserted import Opening
from educe.model.language import LanguageModel

STRINGS = torch.tensor([[5, 7], [9, 7], [13, 5], [40, 9]])
TYPICAL = torch.tensor([[6, 8], [21, 3], [11, 5]])


def change(lm: LanguageModel, block: int, name: str = "mlp.gate_proj") -> Change:
    module = lm.blocks[block].get_submodule(name)
    draw = torch.Generator().manual_seed(block)
    down = torch.randn(3, module.in_features, generator=draw)
    return Change(f"{block}.{name}", block, module, None, down)


def test_the_first_half_of_the_blocks_that_differ_is_read(tiny_lm: LanguageModel) -> None:
    some = [change(tiny_lm, block) for block in (3, 1, 2, 1)]
    assert [c.block for c in early(some)] == [1, 2, 1]
    assert [c.block for c in early(some[:1])] == [3]
    assert early([]) == []


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
    loud = loudness(tiny_lm, reads, STRINGS, usual)
    assert loud.tolist() == pytest.approx(expected.tolist(), rel=1e-4)
