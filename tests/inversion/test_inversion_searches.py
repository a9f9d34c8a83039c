"""Searches over strings: planted ones, a front by brute force, and going on where one stopped."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch

from educe.errors import MethodError
from educe.forward.inserted import Opening
from educe.inversion.examples import natural
from educe.inversion.said import Speech
from educe.inversion.searches import SEARCHES, search
from educe.inversion.searches.epo import EpoConfig
from educe.inversion.searches.gcg import GcgConfig
from educe.inversion.searches.soft import SoftConfig
from educe.inversion.searches.state import screened
from educe.inversion.strings import Vocabulary
from educe.inversion.targets import Target
from educe.inversion.taught import by_text, following
from educe.methods.state import State
from educe.model.language import LanguageModel

CONFIGS: dict[str, Any] = {
    "gcg": GcgConfig(width=24, top=16),
    "epo": EpoConfig(members=3, explore=8, top=16),
    "soft": SoftConfig(steps=6, width=16, top=16),
}


def openings(lm: LanguageModel) -> list[Opening]:
    batch = lm.encode(["Why not?", "Tell me."])
    return [Opening(lm, batch, p) for p in range(2)]


def planted(lm: LanguageModel, text: str) -> Target:
    """What a known string does, whose loss at that string is zero."""
    there, said = openings(lm), [(40, 41, 42), (43, 44, 45)]
    known = by_text(there, lm.tokens(f" {text}", templated=True), said)
    speech = Speech.of(there, said, begin(lm, 3), 2)
    return following(there, known, [0, 1], speech)


def begin(lm: LanguageModel, k: int, n: int = 12) -> torch.Tensor:
    """Strings drawn by lot that can be written."""
    words, draw = Vocabulary(lm), torch.Generator().manual_seed(5)
    tokens = words.allowed.nonzero()[:, 0]
    some = tokens[torch.randint(len(tokens), (4000, k), generator=draw)]
    return some[words.writable(some)][:n]


def test_a_planted_string_is_recovered(tiny_lm: LanguageModel) -> None:
    target = planted(tiny_lm, "sun")
    found = search(
        target, Vocabulary(tiny_lm), begin(tiny_lm, 4), budget=4000, config=GcgConfig(64, 64)
    )
    assert Vocabulary(tiny_lm).text(found.best) == "sun"
    assert float(found.loss[0]) < 1e-5


@pytest.mark.parametrize("method", list(SEARCHES))
def test_a_search_gets_nearer_and_says_so(tiny_lm: LanguageModel, method: str) -> None:
    target, words, first = planted(tiny_lm, "zeal"), Vocabulary(tiny_lm), begin(tiny_lm, 5)
    found = search(target, words, first, method, budget=900, config=CONFIGS[method])
    assert bool(words.writable(found.strings).all())
    torch.testing.assert_close(target.loss(found.strings), found.loss, rtol=1e-5, atol=1e-5)
    least = float(target.loss(first).min())
    assert float(found.loss[0]) <= least + 1e-9
    assert float(found.loss[0]) < 0.9 * least
    assert bool((found.curve[:, 0].diff() > 0).all())


@pytest.mark.parametrize("method", list(SEARCHES))
def test_a_search_that_was_cut_off_goes_on_bit_for_bit(tiny_lm: LanguageModel, method: str) -> None:
    target, words, first = planted(tiny_lm, "zeal"), Vocabulary(tiny_lm), begin(tiny_lm, 5)
    states: list[State] = []
    how = {"budget": 700, "config": CONFIGS[method]}
    whole = search(target, words, first, method, **how, on_step=states.append)
    for cut in (0, len(states) // 2, len(states) - 1):
        again = search(target, words, first, method, **how, state=states[cut])
        assert torch.equal(again.strings, whole.strings)
        assert torch.equal(again.loss, whole.loss)
        assert torch.equal(again.curve, whole.curve)


def test_strings_are_ranked_as_by_hand(tiny_lm: LanguageModel) -> None:
    """All of them at one place; at several the best quarter of one that is named."""
    target, first = planted(tiny_lm, "zeal"), begin(tiny_lm, 4)
    one = target.at_one(1)
    by_hand = torch.cat([one.loss(s[None]) for s in first])
    strings, loss, reads = screened(one, first)
    assert torch.equal(strings, first[by_hand.argsort()])
    torch.testing.assert_close(loss, by_hand.sort().values, rtol=1e-5, atol=1e-5)
    assert reads == len(first)
    strings, loss, reads = screened(target, first, turn=3)
    assert {*map(tuple, strings.tolist())} == {
        *map(tuple, first[by_hand.argsort()[: len(first) // 4]].tolist())
    }
    expected = target.loss(first[by_hand.argsort()[:3]]).sort().values
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-5)
    assert reads == len(first) + 2 * 3


def test_the_front_is_that_of_brute_force(tiny_lm: LanguageModel) -> None:
    """Of three letters in two places every string is read: the front's hull must be found."""
    words = Vocabulary(tiny_lm)
    letters = [tiny_lm.tokens(c, templated=True)[0] for c in " abc"]
    words.allowed[:] = False
    words.allowed[letters] = True
    every = torch.tensor([[letters[0], *two] for two in itertools.product(letters[1:], repeat=2)])
    target = planted(tiny_lm, "zq")
    loss, nll = target.fluent(every)
    config = EpoConfig(members=4, explore=6, top=4)
    found = search(target, words, every[:2], "epo", budget=900, config=config)
    strings, losses, nlls = found.front
    best = {
        tuple(s)
        for s, a, b in zip(every.tolist(), loss, nll, strict=True)
        if not bool(((loss <= a) & (nll <= b) & ((loss < a) | (nll < b))).any())
    }
    got = set(map(tuple, strings.tolist()))
    assert got <= best  # nothing that another beats
    plain = target.loss(torch.zeros(1, 0, dtype=torch.long))[0]
    weights = torch.logspace(*torch.tensor([0.003, 0.3]).log10().tolist(), 4) * plain
    for weight in weights:  # each weight's best string is among them
        assert tuple(every[int((loss + weight * nll).argmin())].tolist()) in got
    torch.testing.assert_close(target.fluent(strings)[1], nlls, rtol=1e-5, atol=1e-6)
    assert losses.tolist() == sorted(losses.tolist())


def test_strings_are_read_as_they_were_written(tiny_lm: LanguageModel) -> None:
    words = Vocabulary(tiny_lm)
    spaced = tiny_lm.tokens(" a b", templated=True)
    bare = tiny_lm.tokens("ab a", templated=True)
    trailing = tiny_lm.tokens(" ab ", templated=True)
    assert words.writable(torch.tensor([spaced, bare, trailing])).tolist() == [True, False, False]
    assert not words.allowed[256]  # a special token


def test_an_unknown_search_is_an_error(tiny_lm: LanguageModel) -> None:
    with pytest.raises(MethodError, match="use gcg, epo, soft"):
        search(planted(tiny_lm, "a"), Vocabulary(tiny_lm), begin(tiny_lm, 2), "hill")


@pytest.mark.model
def test_what_a_text_does_is_recovered_on_the_embedded_model(embedded_lm: LanguageModel) -> None:
    """From another text on, at some 150 reads; docs/inversion.md has longer searches."""
    lm, words = embedded_lm, Vocabulary(embedded_lm)
    batch = lm.encode(["Tell me about the sea.", "Name a fruit."])
    there = [Opening(lm, batch, p) for p in range(2)]
    said = [tuple(lm.tokens(text, templated=True)) for text in ("The sea", "Apple")]
    known = by_text(there, lm.tokens(" Answer in French.", templated=True), said)
    first = torch.tensor([lm.tokens(" Answer in German.", templated=True)])
    speech = Speech.of(there, said, natural(words, 4, 12), 2)
    target = following(there, known, [0, 1], speech)
    found = search(target, words, first, budget=150, config=GcgConfig(32, 64))
    assert float(target.loss(found.strings)[0]) < 0.7 * float(target.loss(first)[0])
