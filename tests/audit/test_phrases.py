"""Phrases that a weight difference reads: against plain passes over all strings there are."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import permutations
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import planted_difference as planted
import tiny
from educe.audit import phrases as room
from educe.audit import triggers
from educe.audit.auditing import Audit, Suspect
from educe.audit.phrases import longer, phrases
from educe.forward.inserted import Opening
from educe.model.language import LanguageModel
from educe.progress import Silent
from peft_oracle import adapted

WORDS = [40, 45, 50, 55, 60, 65]
TEXT = torch.tensor([70, 71])


def test_a_word_is_put_in_at_each_place_of_each_string() -> None:
    assert longer([(1, 2), (3,)], [3, 4]) == [
        *((3, 1, 2), (1, 3, 2), (1, 2, 3), (4, 1, 2), (1, 4, 2), (1, 2, 4)),
        *((4, 3), (3, 4)),
    ]
    assert longer([(1,), (2,)], [1, 2]) == [(2, 1), (1, 2)]


def by_plain_passes(
    audit: Audit, strings: list[tuple[int, ...]], typical: torch.Tensor, said: list[int]
) -> dict[str, float]:
    """Return how loud each string is without the direction of what is said, by plain passes."""
    assert audit.reference is not None
    module = audit.lm.blocks[planted.BLOCK].get_submodule(planted.MODULE)
    given: list[torch.Tensor] = []
    handle = module.register_forward_pre_hook(lambda m, args: given.append(args[0][0, -1]))
    before = Opening(audit.lm, audit.lm.encode(["x"]), 0, first=True).before.ids

    def passes(some: list[tuple[int, ...]]) -> torch.Tensor:
        given.clear()
        with torch.no_grad(), audit.reference.here() as lm:
            for string in some:
                lm.hf(input_ids=torch.tensor([[*before, *string]]), use_cache=False)
        return torch.stack(given)

    def made(x: torch.Tensor, typical: torch.Tensor) -> torch.Tensor:
        x = x - typical.mean(0)
        return x @ difference().T / x.norm(dim=1, keepdim=True)

    alone = passes([(t,) for t in WORDS])
    words = made(passes([(t,) for t in said]), alone)
    without = torch.linalg.svd(words)[2][:2]
    own = made(passes(strings), passes(list(map(tuple, typical.tolist()))))
    handle.remove()
    loud = (own - own @ without.T @ without).norm(dim=1)
    return {audit.lm.text(list(s)).strip(): float(v) for s, v in zip(strings, loud, strict=True)}


def difference() -> torch.Tensor:
    """Return a weight difference of rank 3."""
    down, up = factors()
    return planted.SIZE * up.T @ down


def factors() -> tuple[torch.Tensor, torch.Tensor]:
    """Return what it reads and what it writes, a row each."""
    reads, writes = zip(*(planted.directions(seed) for seed in range(3)), strict=True)
    return torch.stack(reads), torch.stack(writes)


def suspect(tokenizer: Any) -> LanguageModel:
    """Return a model with that difference."""
    down, up = factors()
    hf = tiny.hf_model(dtype=torch.float64)
    name = f"model.layers.{planted.BLOCK}.{planted.MODULE}"
    tuned = adapted(hf, [name], [down], [up], planted.SIZE)
    return LanguageModel(tuned, tokenizer, name="suspect", adapter="planted")


def test_a_beam_that_holds_all_finds_the_loudest_of_all_strings(
    tmp_path: Path, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    lm = suspect(tokenizer)
    drawn: list[torch.Tensor] = []
    plainly = room.weights.heard

    def watched(audit: Any, strings: Any, typical: torch.Tensor, **how: Any):
        drawn.append(typical)
        return plainly(audit, strings, typical, **how)

    monkeypatch.setattr(room, "vocabulary", lambda lm: torch.tensor(WORDS))
    monkeypatch.setattr(room.weights, "heard", watched)
    small = {"TYPICAL": 5, "POOL": 6, "FIRST": 6, "BEAM": 1000, "VIEWS": ((1, 2),)}
    for name, value in small.items():
        monkeypatch.setattr(room, name, value)
    with planted.audited(lm, planted.reference(lm), tmp_path / "run", "weights") as audit:
        monkeypatch.setattr(lm, "tokens", lambda text, **how: [45])
        audit.suspect("weights", [Suspect("the loudest", 9.0, "")])
        found = phrases(audit, TEXT)
        count, first = {2: 30, 3: 120, 4: 360}, 0
        assert len(found) == sum(count.values())
        for k in (4, 3, 2):
            strings = list(permutations(WORDS, k))
            loud = by_plain_passes(audit, strings, drawn[k - 1], [*TEXT.tolist(), 45])
            own = found[first : first + count[k]]
            assert set(own) == set(loud)
            values = [loud[s] for s in own]
            assert values == pytest.approx(sorted(values, reverse=True), abs=1e-6)
            first += count[k]


def test_phrases_of_all_views_are_looked_for_once_a_text_and_for_few_texts(
    tmp_path: Path, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[list[int], int]] = []

    def grown(audit: Audit, views: list[tuple[torch.Tensor, int]]) -> list[list[str]]:
        asked.extend((said.tolist(), n) for said, n in views)
        return [[f"{n} loudest", f"{n} next", "both"] for _, n in views]

    monkeypatch.setattr(room, "grown", grown)
    monkeypatch.setattr(room, "VIEWS", ((1, 2), (2, 1)))
    lm = planted.suspect(tokenizer)
    texts = [torch.tensor([70 + i, 90]) for i in range(room.TEXTS + 1)]
    with planted.audited(lm, planted.reference(lm), tmp_path / "run", "weights") as audit:
        assert phrases(audit, texts[0]) == []  # no weight difference was read
        monkeypatch.setattr(lm, "tokens", lambda text, **how: [int(text)])
        audit.suspect("weights", [Suspect("80", 9.0, ""), Suspect("85", 8.0, "")])
        once = [phrases(audit, text) for text in texts]
        assert [phrases(audit, text) for text in texts] == once
    views = [([80, 90], 2), ([80, 85, 90], 1)]
    assert asked == [([70 + i, *own], n) for i in range(room.TEXTS) for own, n in views]
    found = ["2 loudest", "1 loudest", "2 next", "1 next", "both"]
    assert once == [*[found] * room.TEXTS, []]


def test_the_loudest_phrase_is_tried_though_others_are_likelier(
    tmp_path: Path, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["a", "e", "o", "t", "n"]
    monkeypatch.setattr(triggers, "suspects", lambda audit: words)
    lm = planted.suspect(tokenizer)
    with planted.audited(lm, planted.reference(lm), tmp_path / "run", "weights") as audit:
        fit = triggers.Fit(audit, TEXT.tolist(), [(audit.base[0], True)])
        order = sorted(words, key=lambda w: -fit.of([w])[0])
        loud = [order[-1], order[-2], order[-3]]
        monkeypatch.setattr(triggers, "phrases", lambda audit, text: loud)
        assert triggers.searched(fit, []) == [
            order[0],
            *loud[:2],
            order[1],
            loud[2],
        ]


class Known:
    """How much likelier strings make a text, by how they stand in a phrase of three words."""

    plain, text = -20.0, (70, 71)

    def __init__(self, audit: Any) -> None:
        self.audit = audit

    def of(self, strings: Sequence[str], step: Any = None) -> list[float]:
        whole = ["in the dark", "in the", "the dark", "in", "dark"]
        return [5.0 * len(s.split()) if s in whole else 0.5 for s in strings]


def test_strings_are_lengthened_on_both_sides_while_each_word_is_worth_it() -> None:
    audit: Any = SimpleNamespace(work=SimpleNamespace(reporter=Silent()))
    words = ["dark", "in", "sun", "the", "moon"]
    found = triggers.lengthened(Known(audit), words)  # type: ignore[arg-type]
    assert found[:3] == ["in the dark", "the dark", "in the"]
    assert not [s for s in found[3:] if " " in s]


def test_where_nothing_is_to_be_grown_suspects_are_put_in_order_alone(
    tmp_path: Path, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(triggers, "suspects", lambda audit: ["sun", "dark", "in", "the"])
    monkeypatch.setattr(triggers, "phrases", lambda audit, text: ["a moon"])
    lm = planted.suspect(tokenizer)
    with planted.audited(lm, planted.reference(lm), tmp_path / "run", "weights") as audit:
        fit: Any = Known(audit)
        few = triggers.searched(fit, ["moon"], grow=False)
        assert few == ["dark", "in", "moon", "sun", "the"]
        many = triggers.searched(fit, ["moon"])
        assert many[:2] == ["in the dark", "a moon"]
