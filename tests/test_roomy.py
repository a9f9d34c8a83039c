"""A cache with room is transformers' own, bit for bit, whatever is done to it in between."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from transformers import DynamicCache, DynamicLayer

from educe.forward.generation import generate
from educe.forward.roomy import Roomy, with_room
from educe.model.language import LanguageModel
from educe.perturbation.kinds import Vectors
from educe.rows import Row


def states(tokens: int, rows: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(rows, 2, tokens, 4), torch.randn(rows, 2, tokens, 6)


def test_it_holds_what_the_plain_one_holds() -> None:
    plain = DynamicLayer()
    plain.update(*states(5))
    roomy = Roomy(copy.deepcopy(plain), room=2)

    def both(tokens: int, rows: int = 3) -> None:
        new = states(tokens, rows)
        for came, other in zip(roomy.update(*new), plain.update(*new), strict=True):
            assert torch.equal(came, other)
        assert roomy.get_seq_length() == plain.get_seq_length()

    for tokens in (1, 1, 1, 4, 1):  # within the room, at its end, and more than it
        both(tokens)
    aside = copy.deepcopy(roomy)
    before = aside.keys.clone()
    for layer in (plain, roomy):
        layer.reorder_cache(torch.tensor([2, 0]))
    both(1, rows=2)
    for layer in (plain, roomy):
        layer.crop(-3)
    both(2, rows=2)
    assert torch.equal(aside.keys, before)


def test_what_is_known_stays_where_it_is_while_there_is_room() -> None:
    plain = DynamicLayer()
    plain.update(*states(5))
    roomy = Roomy(plain, room=8)
    roomy.update(*states(1))
    at = roomy.keys.data_ptr(), roomy.values.data_ptr()
    for _ in range(7):
        roomy.update(*states(1))
    assert (roomy.keys.data_ptr(), roomy.values.data_ptr()) == at
    roomy.update(*states(1))
    assert roomy.keys.data_ptr() != at[0]


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "gemma3"])
def test_texts_are_the_same_bit_for_bit(
    lm_of: Callable[..., LanguageModel], architecture: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    lm = lm_of(architecture)
    batch = lm.encode(["Why?", "Tell me of it, and more."])
    rows = [Row(i, j) for i in range(4) for j in range(2)]
    theta = 5 * torch.randn(3, lm.width)

    def written() -> list[object]:
        how = {"kind": Vectors(1, lm.width), "max_new_tokens": 12}
        return sorted(c for some in generate(lm, batch, rows, theta, **how) for c in some)

    roomy = written()
    monkeypatch.setattr("educe.forward.generation.with_room", lambda cache, tokens: None)
    assert written() == roomy


def test_only_layers_that_grow_get_room() -> None:
    cache = DynamicCache()
    cache.update(*states(2), layer_idx=0)
    cache.layers.append(DynamicLayer())  # nothing is known of it yet
    with_room(cache, 3)
    assert [type(layer) for layer in cache.layers] == [Roomy, DynamicLayer]
