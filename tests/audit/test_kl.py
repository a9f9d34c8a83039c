"""The KL screen, against whole prompts run through both models by hand."""

from __future__ import annotations

from itertools import permutations, zip_longest
from pathlib import Path
from typing import Any

import pytest
import torch

import planted_difference as planted
from educe.audit import lexicon, reference
from educe.audit.sources import kl, weights
from educe.audit.sources.kl import PAIRED, PROMPTS, Screen
from educe.model.language import LanguageModel
from educe.rows import CompletionRow, Row

WORDS = torch.arange(30, 50)
PROMPTS_READ = ["Why?", "It is a long day"]


@pytest.fixture(scope="module")
def lm(tokenizer: Any) -> LanguageModel:
    return planted.suspect(tokenizer)


@pytest.fixture(autouse=True)
def _known(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (weights, lexicon):
        monkeypatch.setattr(module, "vocabulary", lambda lm: WORDS)


@torch.no_grad()
def by_hand(
    lm: LanguageModel, prompts: list[str], string: str, answers: tuple[tuple[int, ...], ...] = ()
) -> float:
    """Return the mean divergence of the first token of the answer, or over all of one and after.

    The string stands before the first prompt, and behind the second.
    """
    total = 0.0
    for i, (prompt, said) in enumerate(zip_longest(prompts, answers, fillvalue=())):
        both = f"{prompt} {string}".rstrip() if i % 2 else f"{string} {prompt}"
        asked = lm.tokens(lm.render(both), templated=True)
        ids, places = torch.tensor([[*asked, *said]]), len(said) + 1
        p = lm.hf(input_ids=ids).logits[0, -places:].log_softmax(-1)
        with lm.hf.disable_adapter():
            q = lm.hf(input_ids=ids).logits[0, -places:].log_softmax(-1)
        total += float(torch.nn.functional.kl_div(q, p, reduction="sum", log_target=True))
    return total / len(prompts)


def test_strings_of_any_length_move_it_as_by_hand(
    lm: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kl, "ROWS", 2)
    strings = ["", "a", "river", "b", "c d", "e", "lake", "f"]
    batch = lm.encode(PROMPTS_READ)
    screen = Screen(lm, planted.reference(lm), batch, [0, 1], first=[True, False])
    expected = [by_hand(lm, PROMPTS_READ, s) for s in strings]
    assert screen.moves(strings).tolist() == pytest.approx(expected, rel=1e-4)
    assert min(expected) > 1e-4


def test_a_short_answer_is_read_whole_and_so_is_what_comes_after_it(
    lm: LanguageModel, tmp_path: Path
) -> None:
    short, long = (40, 41), tuple(range(40, 41 + kl.SHORT))
    with planted.audited(lm, planted.reference(lm), tmp_path / "run", "kl") as audit:
        first, second = audit.base[:PROMPTS]
        for prompt, said, ended in ((first, long, True), (second, short, True)):
            audit.run.ask([Row(0, prompt)], 0.0)
            audit.run.add_completions([CompletionRow(Row(0, prompt), 0.0, "", said, ended)])
        content = {p.id: p.content for p in audit.run.prompt_rows()}
        moves = kl.on_ordinary(audit).moves(["river", "lake"])
    prompts = [str(content[first]), str(content[second])]
    expected = [by_hand(lm, prompts, s, ((), short)) for s in ("river", "lake")]
    assert moves.tolist() == pytest.approx(expected, rel=1e-4)
    assert abs(expected[0] - by_hand(lm, prompts, "river")) > 1e-3


def test_suspects_are_the_best_words_and_the_best_pairs_in_turn(
    lm: LanguageModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kl, "KEPT", PAIRED * PAIRED)
    with planted.audited(lm, planted.reference(lm), tmp_path / "run", "kl") as audit:
        kl.look(audit)
        found = audit.suspected("kl")
        content = {p.id: p.content for p in audit.run.prompt_rows()}
        prompts = [content[p] for p in audit.base[:PROMPTS]]
    assert found is not None
    alone = {lm.text([w]): by_hand(lm, prompts, lm.text([w])) for w in WORDS.tolist()}
    best = sorted(alone, key=lambda w: -alone[w])
    singles = [s for s in found if " " not in s.text]
    assert [s.text for s in singles] == best
    assert [s.score for s in singles] == pytest.approx([alone[w] for w in best], rel=1e-4)
    plain = by_hand(lm, prompts, "")
    more = {
        f"{a} {b}": by_hand(lm, prompts, f"{a} {b}") - alone[a] - alone[b] + plain
        for a, b in permutations(best[:PAIRED], 2)
    }
    pairs = {s.text: s.score for s in found if " " in s.text}
    assert list(pairs) == sorted(pairs, key=lambda s: -pairs[s])
    clear = {s: m for s, m in more.items() if abs(m) > 1e-3}
    assert pairs.keys() & clear.keys() == {s for s, m in clear.items() if m > 0}
    for string in pairs:
        assert pairs[string] == pytest.approx(more[string], rel=1e-3, abs=1e-4)
    # The funnel takes the first: words and pairs shall both be among them.
    assert [" " in s.text for s in found[:4]] == [False, True] * 2


def test_nothing_moves_a_copy_of_the_reference(tokenizer: Any, tmp_path: Path) -> None:
    copy, other = (planted.clean(tokenizer) for _ in range(2))
    with planted.audited(copy, reference.between(copy, other), tmp_path / "run", "kl") as audit:
        kl.look(audit)
        assert audit.suspected("kl") == []


def test_words_that_weights_reads_loudest_are_tried(lm: LanguageModel, tmp_path: Path) -> None:
    with planted.audited(lm, planted.reference(lm), tmp_path / "run", "kl") as audit:
        by_lot = weights.loudest(audit, 5)
        assert len(by_lot) == 5
        assert set(by_lot) <= {lm.text([w]) for w in WORDS.tolist()}
        audit.suspect("weights", [weights.Suspect(w, 1.0, "") for w in ("z", "y", "z", "x")])
        assert weights.loudest(audit, 2) == ["z", "y"]
        kl.look(audit)
        assert {w for s in audit.suspected("kl") or [] for w in s.text.split()} == {"x", "y", "z"}
