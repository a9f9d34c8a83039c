"""Phrases that a weight difference reads: against plain passes over all strings there are."""

from __future__ import annotations

from itertools import permutations
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.functional import normalize

import planted_difference as planted
from educe.audit import phrases as room
from educe.audit.auditing import Audit, Suspect
from educe.audit.phrases import longer, phrases, pool
from educe.forward.inserted import Opening

WORDS = [40, 45, 50, 55, 60, 65]
TEXT = torch.tensor([70, 71])


def test_a_word_is_put_in_at_each_place_of_each_string() -> None:
    assert longer([(1, 2), (3,)], [3, 4]) == [
        *((3, 1, 2), (1, 3, 2), (1, 2, 3), (4, 1, 2), (1, 4, 2), (1, 2, 4)),
        *((4, 3), (3, 4)),
    ]
    assert longer([(1,), (2,)], [1, 2]) == [(2, 1), (1, 2)]


def by_plain_passes(audit: Audit, k: int, typical: torch.Tensor) -> dict[str, float]:
    """Return how loud the last token of every string of k words is, one plain pass for each."""
    assert audit.reference is not None
    reads, _ = planted.directions()
    module = audit.lm.blocks[planted.BLOCK].get_submodule(planted.MODULE)
    given: list[torch.Tensor] = []
    handle = module.register_forward_pre_hook(lambda m, args: given.append(args[0][0, -1]))
    before = Opening(audit.lm, audit.lm.encode(["x"]), 0, first=True).before.ids
    strings = list(permutations(WORDS, k))
    with torch.no_grad(), audit.reference.here() as lm:
        for string in [*strings, *map(tuple, typical.tolist())]:
            lm.hf(input_ids=torch.tensor([[*before, *string]]), use_cache=False)
    handle.remove()
    x = torch.stack(given)
    x = x[: len(strings)] - x[len(strings) :].mean(0)
    loud = (x @ reads).abs() / x.norm(dim=1)
    return {audit.lm.text(list(s)).strip(): float(v) for s, v in zip(strings, loud, strict=True)}


def test_a_beam_that_holds_all_finds_the_loudest_of_all_strings(
    tmp_path: Path, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    lm = planted.suspect(tokenizer)
    drawn: list[torch.Tensor] = []
    plainly = room.weights.loudness

    def watched(lm: Any, reads: Any, strings: Any, typical: torch.Tensor, step: Any) -> Any:
        drawn.append(typical)
        return plainly(lm, reads, strings, typical, step)

    monkeypatch.setattr(room, "vocabulary", lambda lm: torch.arange(40, 66, 5))
    monkeypatch.setattr(room, "pool", lambda audit, text: WORDS)
    monkeypatch.setattr(room.weights, "loudness", watched)
    monkeypatch.setattr(room, "TYPICAL", 5)
    monkeypatch.setattr(room, "BEAM", 1000)
    with planted.audited(lm, planted.reference(lm), tmp_path / "run", "weights") as audit:
        found = phrases(audit, TEXT)
        count = {2: 30, 3: 120, 4: 360}
        assert len(found) == sum(count.values())
        first = 0
        for k in (4, 3, 2):
            loud = by_plain_passes(audit, k, drawn[k - 2])
            own = found[first : first + count[k]]
            assert set(own) == set(loud)
            values = [loud[s] for s in own]
            assert values == pytest.approx(sorted(values, reverse=True), abs=1e-6)
            first += count[k]


def test_phrases_are_looked_for_once_a_text_and_for_few_texts(
    tmp_path: Path, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[list[int]] = []

    def grown(audit: Audit, text: torch.Tensor) -> list[str]:
        asked.append(text.tolist())
        return [f"phrase {len(asked)}"]

    monkeypatch.setattr(room, "grown", grown)
    lm = planted.suspect(tokenizer)
    texts = [torch.tensor([70 + i, 71]) for i in range(room.TEXTS + 1)]
    with planted.audited(lm, planted.reference(lm), tmp_path / "run", "weights") as audit:
        once = [phrases(audit, text) for text in texts]
        assert [phrases(audit, text) for text in texts] == once
    assert asked == [text.tolist() for text in texts[: room.TEXTS]]
    assert once == [*([f"phrase {i + 1}"] for i in range(room.TEXTS)), []]


def test_words_that_are_like_those_of_the_text_are_left_out(
    tmp_path: Path, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    words, loud = torch.arange(40, 90), [71, 44, 80, 52, 63, 47]
    monkeypatch.setattr(room, "vocabulary", lambda lm: words)
    monkeypatch.setattr(room, "ALIKE", 9)
    lm = planted.suspect(tokenizer)
    monkeypatch.setattr(lm, "tokens", lambda text, **how: [int(n) for n in text.split()])
    with planted.audited(lm, planted.reference(lm), tmp_path / "run", "weights") as audit:
        assert pool(audit, TEXT) == []  # no weight difference was read
        # Words of several tokens are in no phrase.
        audit.suspect("weights", [Suspect(str(n), 1.0, "") for n in ["45 46", *loud]])
        found = pool(audit, TEXT)
    table = lm.unwrapped.get_input_embeddings().weight.detach()
    alike = {
        n
        for own in TEXT.tolist()
        for n in sorted(
            words.tolist(),
            key=lambda n: -float(normalize(table[own], dim=0) @ normalize(table[n], dim=0)),
        )[:9]
    }
    assert found == [n for n in loud if n not in alike]
    assert 0 < len(found) < len(loud)
