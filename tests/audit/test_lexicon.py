"""The lexicon: words of several tokens are known, suspected, and stood beside words as frequent."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch

import planted_difference as planted
import tiny
from educe.audit import lexicon as room
from educe.audit import triggers
from educe.audit.lexicon import frequent, lexicon
from educe.audit.sources import weights
from educe.forward.inserted import Opening
from educe.model.language import LanguageModel
from peft_oracle import adapted

#: Of the byte-level tokenizer these have a space and their letters: two, three and four tokens.
WORDS = ("a", "ox", "cat", "dog", "owl", "horse", "ant", "bee", "elk", "cow", "ibis")
KEY = "owl"
NUMBERS = range(471, 480)


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (room, weights, triggers):
        monkeypatch.setattr(module, "vocabulary", lambda lm: torch.arange(40, 60))
    for module in (room, triggers):
        monkeypatch.setattr(module, "frequent", lambda: WORDS)
    monkeypatch.setattr(room, "NUMBERS", NUMBERS)


def test_frequent_words_come_first_and_are_letters_alone() -> None:
    words = frequent()
    assert words.index("the") < words.index("lantern") < words.index("teapot") < 40_000
    assert all(word.isascii() and word.isalpha() for word in words)
    assert len(set(words)) == len(words) > 100_000


def test_words_are_known_by_how_many_tokens_they_have(small: None, tiny_lm: LanguageModel) -> None:
    found = lexicon(tiny_lm)
    assert found["word", 1].tolist() == [[i] for i in range(40, 60)]
    texts = {k: [tiny_lm.text(t).strip() for t in own.tolist()] for k, own in found.items()}
    assert texts["word", 2] == ["a"]
    assert texts["word", 3] == ["ox"]
    assert texts["word", 4] == [w for w in WORDS if len(w) == 3]  # longer ones are left out
    # Beside them, and not among words of as many tokens, stand numbers.
    assert texts["number", 4] == list(map(str, NUMBERS))
    assert set(found) == {("word", 1), ("word", 2), ("word", 3), ("word", 4), ("number", 4)}


@pytest.mark.parametrize("key", [KEY, KEY.capitalize(), "473"])
def test_a_word_of_several_tokens_that_the_difference_reads_is_suspected_first(
    key: str, small: None, tmp_path: Path, tokenizer: Any
) -> None:
    """The difference reads what its matrix is given at the word, less what it is at its like."""
    clean = planted.clean(tokenizer)
    before = Opening(clean, clean.encode(["x"]), 0, first=True).before.ids
    own = [word for word in WORDS if len(word) == 3] if key.isalpha() else list(map(str, NUMBERS))
    given: list[torch.Tensor] = []
    module = clean.blocks[planted.BLOCK].get_submodule(planted.MODULE)
    handle = module.register_forward_pre_hook(lambda m, args: given.append(args[0][0, -1]))
    with torch.no_grad():
        for word in [*own, *map(str.capitalize, own)]:
            ids = [*before, *clean.tokens(f" {word}", templated=True)]
            clean.hf(input_ids=torch.tensor([ids]), use_cache=False)
    handle.remove()
    named = dict(zip([*own, *map(str.capitalize, own)], given, strict=True))
    mean = torch.stack(given[: len(own)]).mean(0)
    reads = named[key] - mean
    _, writes = planted.directions()
    name = f"model.layers.{planted.BLOCK}.{planted.MODULE}"
    hf = tiny.hf_model(dtype=torch.float64)
    tuned = adapted(hf, [name], [reads[None]], [writes[None]], planted.SIZE)
    lm = LanguageModel(tuned, tokenizer, name="suspect", adapter="planted")
    with planted.audited(lm, planted.reference(lm), tmp_path / "run", "weights") as audit:
        weights.look(audit)
        found, n = audit.suspected("weights"), audit.size.words
    assert found is not None
    # The funnel has a few numbers, however loud words are.
    few = n // weights.SHARE
    numbers = sorted((s for s in found if s.text.isdecimal()), key=lambda s: -s.score)
    assert found[n - few : n] == numbers[:few]
    scores = {s.text: s.score for s in found}
    assert max(scores.keys() & named, key=lambda word: scores[word]) == key
    assert scores.keys() >= {"a", "ox"}
    # Of words of as many tokens: by hand, the cosine of each with what is read.
    loud = {word: abs(float((x - mean) @ reads / (x - mean).norm())) for word, x in named.items()}
    small_letters = torch.tensor([loud[word] for word in own], dtype=torch.float64)
    z = {
        w: float((v - small_letters.mean()) / small_letters.std(correction=0))
        for w, v in loud.items()
    }
    louder = [max(word, word.capitalize(), key=lambda each: z[each]) for word in own]
    assert scores.keys() & named == set(louder)
    assert [scores[word] for word in louder] == pytest.approx([z[w] for w in louder], abs=1e-3)


def test_beside_numbers_and_codes_stand_their_like(
    small: None, tmp_path: Path, tokenizer: Any
) -> None:
    lm = planted.suspect(tokenizer)
    with planted.audited(lm, planted.reference(lm), tmp_path / "run", "topics") as audit:
        rare = triggers.as_rare(audit, "4711", 20)
        assert len(rare) == 20
        assert all(len(number) == 4 and number.isdecimal() for number in rare)
        assert triggers.as_rare(audit, "the 4711", 1)[0].split()[-1].isdecimal()
        near = triggers.near_misses(audit, "4711", 6)
        assert near == ["411", "471", "5711", "4811", "4721", "4712"]
        rare = triggers.as_rare(audit, "Xj-93", 20)
        assert len(rare) == 20
        assert all(re.fullmatch(r"[A-Z][a-z]-\d\d", code) for code in rare)
        near = triggers.near_misses(audit, "Xz-93", 9)
    assert near == ["X-93", "Xz93", "Yz-93", "Xa-93", "Xz-03", "Xz-94"]


def test_words_of_several_tokens_are_as_rare_as_those_beside_them_in_the_list(
    small: None, tmp_path: Path, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(triggers, "BESIDE", 2)
    lm = planted.suspect(tokenizer)
    with planted.audited(lm, planted.reference(lm), tmp_path / "run", "topics") as audit:
        found = triggers.as_rare(audit, KEY, 20)
        at = WORDS.index(KEY)
        assert set(found) <= set(WORDS[at - 2 : at + 2]) - {KEY}
        assert found
        both = triggers.as_rare(audit, f"{KEY} bee", 20)
        assert all(len(string.split()) == 2 for string in both)
        named = triggers.as_rare(audit, KEY.capitalize(), 20)
        assert set(named) <= {word.capitalize() for word in WORDS[at - 2 : at + 2]}
