"""Requests of many kinds, and words crossed with them, against each pair run by hand."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch

import planted_difference as planted
from educe.audit import lexicon, reference
from educe.audit.auditing import Suspect
from educe.audit.roles import LOOKED
from educe.audit.settings import SIZES, bundled
from educe.audit.sources import crossed, requests, weights
from educe.audit.sources.kl import Screen
from educe.model.language import LanguageModel

ASKED = ["Why?", "It is a long day", "Tell me more"]
STRINGS = ["river", "lake", "a"]


@pytest.fixture(scope="module")
def lm(tokenizer: Any) -> LanguageModel:
    return planted.suspect(tokenizer)


@pytest.fixture(autouse=True)
def _few_words(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (weights, lexicon):
        monkeypatch.setattr(module, "vocabulary", lambda lm: torch.arange(30, 50))


def test_no_request_is_an_ordinary_prompt_or_stands_twice() -> None:
    table, bank = bundled("prompts"), bundled("requests")
    known = [*table["asked"], *table["fresh"], table["neutral"], *bank]
    assert max(Counter(map(str, known)).values()) == 1
    assert max(size.requests for size in SIZES.values()) >= len(bank)


def test_requests_are_asked_as_they_are(lm: LanguageModel, tmp_path: Path) -> None:
    with planted.audited(lm, planted.reference(lm), tmp_path / "run", "requests") as audit:
        requests.look(audit)
        asked = [p for p in audit.run.prompt_rows() if p.role == "made:requests"]
        assert [p.content for p in asked] == bundled("requests")[: audit.size.requests]
        assert {p.parent for p in asked} == {None}
        written = {c.prompt for c in audit.run.completion_rows() if c.perturbation == 0}
        assert {p.id for p in asked} <= written


@pytest.mark.parametrize("answers", [None, [(5, 9, 30), (), (7,)]])
def test_a_table_has_every_request_with_every_string(
    lm: LanguageModel, answers: list[tuple[int, ...]] | None
) -> None:
    reference = planted.reference(lm)
    screen = Screen(lm, reference, lm.encode(ASKED), [0, 1, 2], answers=answers)
    table = screen.table(["", *STRINGS])
    for x, ask in enumerate(ASKED):
        answer = list(answers[x]) if answers else []
        for s, string in enumerate(["", *STRINGS]):
            ids = lm.tokens(lm.render(f"{ask} {string}".rstrip()), templated=True) + answer[:-1]
            places = max(1, len(answer))  # each token of the answer, or the first of any
            with torch.no_grad():
                p = lm.hf(input_ids=torch.tensor([ids])).logits[0, -places:].log_softmax(-1)
                with lm.hf.disable_adapter():
                    q = lm.hf(input_ids=torch.tensor([ids])).logits[0, -places:].log_softmax(-1)
            expected = float((p.exp() * (p - q)).sum())
            assert float(table[x, s]) == pytest.approx(expected, rel=1e-4)


def test_what_one_pair_does_alone_is_found_among_louder_words_and_requests() -> None:
    draw = torch.Generator().manual_seed(0)
    request, word = torch.rand(12, 1, generator=draw), torch.rand(1, 9, generator=draw)
    table = torch.cat([request, request + 10 * word], dim=1)
    assert crossed.joint(table).abs().max() < 1e-5
    table[4, 1 + 7] += 0.5
    assert crossed.chosen(crossed.joint(table), 3)[0] == (4, 7)


def test_no_word_and_no_request_takes_all_places() -> None:
    more = torch.rand(10, 8, generator=torch.Generator().manual_seed(0))
    more[3] += 5
    more[:, 2] += 5
    found = crossed.chosen(more, 30)
    assert len(set(found)) == 30
    for side in zip(*found, strict=True):
        assert max(Counter(side).values()) == crossed.EACH
    assert all(more[pair] > 0 for pair in found)


def test_the_best_pairs_are_asked_in_several_forms(lm: LanguageModel, tmp_path: Path) -> None:
    forms = ["{ask}", *bundled("prompts")["forms"]]
    with planted.audited(lm, planted.reference(lm), tmp_path / "run", "crossed") as audit:
        audit.suspect("topics", [Suspect(w, 1.0, "") for w in ("river", "lake", "a")])
        audit.run.remember(LOOKED, ["topics"])
        crossed.look(audit)
        rows = {p.id: p for p in audit.run.prompt_rows()}
        put = [p for p in rows.values() if p.role == "put:crossed"]
        suspected = audit.suspected("crossed") or []
        tried = set(crossed.strings(audit))
    assert 0 < len(suspected) <= audit.size.words // crossed.SHARE
    assert {s.text for s in suspected} <= tried
    made = Counter((p.how, str(p.content)) for p in put)
    expected: Counter[tuple[str, str]] = Counter()
    for pair in suspected:
        (ask,) = [r for r in bundled("requests") if isinstance(r, str) and repr(r) in pair.why]
        for k, form in enumerate(forms):
            text = form.format(ask=ask)
            expected[pair.text, f"{pair.text} {text}" if k % 2 else f"{text} {pair.text}"] += 1
    assert made == expected


def test_nothing_is_crossed_with_a_copy_of_the_reference(tokenizer: Any, tmp_path: Path) -> None:
    copy, other = (planted.clean(tokenizer) for _ in range(2))
    beside = reference.between(copy, other)
    with planted.audited(copy, beside, tmp_path / "run", "crossed") as audit:
        crossed.look(audit)
        assert audit.suspected("crossed") == []
