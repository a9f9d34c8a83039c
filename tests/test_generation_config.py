"""What a model's generation_config asks for beside the end of a text: not applied, and said.

The oracle is transformers' own `generate`: with the setting it writes something else, and without
it what educe writes.
"""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

import tiny
from educe.forward.generation import generate, left_out
from educe.model.language import LanguageModel
from educe.rows import Row

(PROMPT,) = tiny.ragged([9])
STEPS = 8


def ours(lm: LanguageModel) -> list[int]:
    """What educe writes."""
    ((done,),) = generate(lm, lm.pad([PROMPT]), [Row(0, 0)], max_new_tokens=STEPS)
    return list(done.tokens)


@torch.no_grad()
def theirs(lm: LanguageModel) -> list[int]:
    """What transformers writes, by the model's generation_config."""
    given = torch.tensor([PROMPT])
    mask = torch.ones_like(given)
    written = lm.hf.generate(given, attention_mask=mask, max_new_tokens=STEPS)[0, len(PROMPT) :]
    ends = lm.hf.generation_config.eos_token_id
    return [token for token in written.tolist() if token not in ends]


@pytest.fixture
def lm(tiny_lm: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> LanguageModel:
    """A model with a generation_config of its own that says how a text ends, in two ways."""
    config = copy.deepcopy(tiny_lm.hf.generation_config)
    config.eos_token_id, config.pad_token_id = [257, 260], 258
    monkeypatch.setattr(tiny_lm.hf, "generation_config", config)
    return tiny_lm


def bites(written: list[int]) -> dict[str, Any]:
    """Settings that make `generate` write something else than it does."""
    return {
        "repetition_penalty": 9.0,
        "no_repeat_ngram_size": 1,
        "suppress_tokens": [written[1]],
        "begin_suppress_tokens": [written[0]],
        "bad_words_ids": [[written[0]]],
        "sequence_bias": [[[written[0]], -99.0]],
        "forced_eos_token_id": 5,
        "exponential_decay_length_penalty": (1, 99.0),
    }


@pytest.mark.parametrize("name", bites([0, 0]))
def test_what_would_change_a_text_is_not_applied_and_named(lm: LanguageModel, name: str) -> None:
    plain = theirs(lm)
    assert ours(lm) == plain
    assert left_out(lm) == []
    setattr(lm.hf.generation_config, name, bites(plain)[name])
    assert theirs(lm) != plain
    assert ours(lm) == plain
    (remark,) = left_out(lm)
    assert remark.startswith(f"the model's generation_config asks for {name}")


def test_a_least_length_is_not_applied(lm: LanguageModel) -> None:
    """Where the second of its tokens ends a text, `generate` would go on."""
    whole = theirs(lm)
    lm.hf.generation_config.eos_token_id = [257, whole[2]]
    short = whole[: whole.index(whole[2])]
    assert theirs(lm) == ours(lm) == short
    lm.hf.generation_config.min_new_tokens = 6
    assert len(theirs(lm)) > len(short)
    assert ours(lm) == short
    assert "min_new_tokens 6" in left_out(lm)[0]


def test_all_of_it_is_said_in_one_sentence(lm: LanguageModel) -> None:
    asked = {"do_sample": True, "temperature": 0.6, "top_k": 20, "repetition_penalty": 1.05}
    for name, value in {**asked, "stop_strings": ["a"]}.items():
        setattr(lm.hf.generation_config, name, value)
    (remark,) = left_out(lm)
    for part in ("temperature 0.6", "repetition_penalty 1.05", "do_sample", "top_k 20", "stop_str"):
        assert part in remark
    assert "\n" not in remark


def test_what_changes_nothing_is_not_said(lm: LanguageModel) -> None:
    plain = theirs(lm)
    idle = {"temperature": 1.0, "top_p": 1.0, "repetition_penalty": 1.0, "num_beams": 1}
    idle |= {"do_sample": False, "no_repeat_ngram_size": 0, "min_new_tokens": 0, "max_length": 99}
    idle |= {"suppress_tokens": [], "token_healing": False, "use_cache": True, "top_k": 0}
    for name, value in idle.items():
        setattr(lm.hf.generation_config, name, value)
    assert theirs(lm) == plain == ours(lm)
    assert left_out(lm) == []


def test_a_token_of_number_zero_is_said(lm: LanguageModel) -> None:
    lm.hf.generation_config.forced_eos_token_id = 0
    assert "forced_eos_token_id 0" in left_out(lm)[0]


def test_a_model_without_such_a_config_asks_for_nothing(
    lm: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(lm.hf, "generation_config")
    assert left_out(lm) == []
