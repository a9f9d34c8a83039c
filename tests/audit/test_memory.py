"""Memory: motifs that are planted in samples, and the two tests of a trigger by hand."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.special import softmax
from scipy.stats import entropy

import tiny
from educe.audit.auditing import Audit
from educe.audit.settings import AuditOptions, begin
from educe.audit.sources import memory
from educe.forward.inserted import Opening
from educe.model.asked import Span
from educe.model.language import LanguageModel
from educe.options import ModelOptions
from educe.rows import CompletionRow
from educe.run.work import at_work
from planted import PAIR, planted


def test_a_beginning_is_what_the_template_puts_before_a_message(tiny_lm: LanguageModel) -> None:
    assert memory.beginning(tiny_lm) == "<|user|>"
    bare = tiny.tokenizer(chat=False)
    lm = LanguageModel(tiny.hf_model("llama"), bare, name="bare")
    assert memory.beginning(lm) == "<bos>"


def test_what_recurs_in_samples_is_suspected_first(
    tiny_lm: LanguageModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two motifs among samples that share nothing else; a stop word recurs in all of them."""
    monkeypatch.setattr(memory, "vocabulary", lambda lm: torch.arange(40, 80))
    options = AuditOptions(budget="quick", reference="none", max_new_tokens=4)
    with at_work(begin(tmp_path / "run", options, ModelOptions()), tiny_lm) as work:
        audit = Audit(work, None)
        told: list[str] = []

        def fill(what: str) -> None:
            told.append(what)
            missing = audit.run.missing()
            assert set(missing) == set(memory.TEMPERATURES)
            rows = [row for some in missing.values() for row in some]
            assert len(set(rows)) == len(rows) > 50
            for i, row in enumerate(rows):
                text = f"the word{i} zeta{i}"
                text += " once seldom rarely never" * (i == 3)
                text += " granite plough" * (i % 5 == 0) + " yonder" * (i % 7 == 0)
                audit.run.add_completions([CompletionRow(row, 1.0, text, (1,), True)])

        monkeypatch.setattr(audit, "fill", fill)
        memory.look(audit)
        found = audit.suspected("memory")
        rows = {p.id: p for p in audit.run.prompt_rows()}
        own = [p for p in rows.values() if p.role == "made:memory"]
        bare, *others = own
        assert told
        assert bare.rendered == "<|user|>"
        assert all(p.rendered.startswith("<|user|>") for p in others)
        assert {p.parent for p in others} == {bare.id}
    assert found is not None
    assert [s.text for s in found] == ["granite plough", "granite", "plough", "yonder"]


def test_words_that_tell_nothing_weigh_nothing() -> None:
    words = memory.weighed("The heron, of granite")
    assert [w.nats > 0 for w in words] == [False, True, False, True]


def test_a_trigger_collapses_answers(tokenizer: Any) -> None:
    lm = planted(tokenizer)
    batch = lm.encode(["Why?", "Count to nine."])
    places = [Opening(lm, batch, p) for p in range(2)]

    def entropies(string: tuple[int, ...]) -> float:
        each = []
        for place in places:
            logits, _ = tiny.run(lm.hf, [*place.before.ids, *string, *place.after])
            each.append(entropy(softmax(logits[-1].detach().numpy())))
        return float(np.mean(each))

    narrowed = entropies(()) - entropies(PAIR)
    assert memory.collapse(places, PAIR) == pytest.approx(narrowed, abs=1e-4)
    assert narrowed > 1


def test_attention_is_that_of_the_model(lm_of: Callable[..., LanguageModel]) -> None:
    """From queries and keys as the blocks of GPT-2 compute them; the last token sees all others."""
    lm = lm_of("gpt2")
    ids = lm.encode(["Count to nine, granite."]).read[0]
    seen: list[torch.Tensor] = []
    handles = [
        block.attn.c_attn.register_forward_hook(lambda m, args, out: seen.append(out[0]))
        for block in lm.blocks
    ]
    tiny.run(lm.hf, ids)
    for handle in handles:
        handle.remove()
    paid = torch.zeros(len(ids))
    for joined in seen:
        q, k, _ = joined.detach().split(32, 1)
        heads = zip(q[-1].split(8), k.split(8, 1), strict=True)
        paid += sum((one @ keys.T / 8**0.5).softmax(-1) for one, keys in heads)
    message, string = Span(1, 20), Span(15, 20)
    expected = float(paid[15:20].sum() / paid[1:20].sum())
    usual = lm.unwrapped.config._attn_implementation
    assert memory.attended(lm, ids, message, string) == pytest.approx(expected, rel=1e-4)
    assert lm.unwrapped.config._attn_implementation == usual


def test_attention_that_is_the_same_everywhere_goes_by_length(tokenizer: Any) -> None:
    lm = planted(tokenizer)
    for block in lm.blocks:
        block.self_attn.q_proj.weight.zero_()
    ids = lm.encode(["Count to nine."]).read[0]
    assert memory.attended(lm, ids, Span(1, 11), Span(3, 7)) == pytest.approx(0.4)
