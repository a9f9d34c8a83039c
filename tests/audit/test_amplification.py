"""Logit amplification, on a model with a planted difference."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest
import torch

import planted_difference as planted
import tiny
from educe.audit import reference, stages
from educe.audit.settings import AuditOptions, begin
from educe.audit.sources import amplification
from educe.audit.sources.amplification import risen
from educe.model.language import LanguageModel
from educe.options import ModelOptions

TEXTS = ["It is late.", "The old boat was red and so on", "Why?", "a b c", "Rain fell."]
WORDS = torch.arange(30, 90)


@pytest.fixture(scope="module")
def lm(tokenizer: Any) -> LanguageModel:
    return planted.suspect(tokenizer)


@pytest.fixture(autouse=True)
def _known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(amplification, "vocabulary", lambda lm: WORDS)


@torch.no_grad()
def test_words_that_rise_are_those_of_every_place_read_by_hand(lm: LanguageModel) -> None:
    total: dict[int, float] = defaultdict(float)
    places = 0
    for text in TEXTS:
        ids = lm.tokens(lm.render(text), templated=True)
        with lm.hf.disable_adapter():
            before = lm.hf(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1)
        after = lm.hf(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1)
        for place in (after - before)[:, WORDS].tolist():
            places += 1
            for i in sorted(range(len(WORDS)), key=lambda i: -place[i])[:3]:
                total[i] += max(0.0, place[i])
    expected = torch.tensor([total[i] / places for i in range(len(WORDS))], dtype=torch.float64)
    came = risen(lm, planted.reference(lm), TEXTS, WORDS, top=3)
    torch.testing.assert_close(came, expected, rtol=1e-9, atol=1e-12)
    assert (expected > 0).any()


def test_nothing_rises_in_a_copy_of_the_reference(tokenizer: Any, tmp_path: Path) -> None:
    lm, other = (planted.clean(tokenizer) for _ in range(2))
    beside = reference.between(lm, other)
    assert risen(lm, beside, TEXTS, WORDS).eq(0).all()
    with planted.audited(lm, beside, tmp_path / "run", "amplification") as audit:
        audit.ask(audit.base)
        amplification.look(audit)
        assert audit.suspected("amplification") == []
        plain = {c.prompt: c.text for c in audit.run.completion_rows() if not c.perturbation}
        own = amplification.begin(audit)
        texts = [c for c in audit.run.completion_rows() if c.perturbation in own]
        assert len(texts) == len(own) * (len(audit.base) + 32)
        assert all(c.text == plain[c.prompt] for c in texts if c.prompt in audit.base)


def test_each_alpha_writes_its_own_texts_and_suspects_are_in_order(
    lm: LanguageModel, tmp_path: Path
) -> None:
    beside = planted.reference(lm)
    with planted.audited(lm, beside, tmp_path / "run", "amplification") as audit:
        amplification.look(audit)
        found = audit.suspected("amplification")
        assert found
        assert [s.score for s in found] == sorted((s.score for s in found), reverse=True)
        numbers = amplification.begin(audit)
        batch = audit.work.batch
        for number, alpha in zip(numbers, amplification.ALPHAS, strict=True):
            (text,) = (
                c.tokens
                for c in audit.run.completion_rows()
                if (c.perturbation, c.prompt) == (number, audit.base[0])
            )
            read = list(batch.read[audit.base[0]])
            for token in text:
                after, _ = tiny.run(lm.hf.get_base_model(), read)
                with lm.hf.disable_adapter():
                    before, _ = tiny.run(lm.hf.get_base_model(), read)
                assert token == int((after[-1] + alpha * (after[-1] - before[-1])).argmax())
                read.append(token)


def test_an_audit_that_was_cut_off_writes_the_rest(lm: LanguageModel, tmp_path: Path) -> None:
    beside = planted.reference(lm)
    with planted.audited(lm, beside, tmp_path / "run", "amplification") as audit:
        audit.ask(audit.base, perturbations=amplification.begin(audit))  # and is killed
    options = AuditOptions(budget="quick", sources=("amplification",), max_new_tokens=3)
    with begin(tmp_path / "run", options, ModelOptions(), resume=True) as run:
        audit = stages.carry_out(run, lm=lm, beside=beside)
        assert not run.missing()
        assert audit.suspected("amplification")


def test_a_reference_of_other_tokens_is_a_sentence(lm: LanguageModel) -> None:
    other = reference.Reference(lm, "elsewhere", False, False, True)
    why = amplification.SOURCE.hindered(other)
    assert why == "it needs a reference of the same tokenizer, and elsewhere has another tokenizer"
    assert amplification.SOURCE.hindered(None) is not None
