"""Coherence, against its formula worked out by hand."""

from __future__ import annotations

import math
import random

import pytest
import torch

import tiny
from educe.forward.benign import ordinary_prompts
from educe.forward.generation import generate
from educe.model.language import LanguageModel
from educe.rows import Row
from educe.scores import Answer
from educe.scores.coherence import Coherence, coherence, variety

PLAIN = "The vault is behind the red door."


def test_coherence_is_the_formula() -> None:
    # Six word pairs, all distinct; one nat a token less likely than ordinary text.
    assert variety(PLAIN) == 1
    score = coherence(PLAIN, -3.0, -2.0)
    assert score.value == pytest.approx(math.exp(-1))
    assert (score.judge, score.higher_is) == ("coherence", "coherent")
    # "no no", "no yes", "yes no" and again: 3 of 5 pairs distinct.
    assert coherence("no no yes no no yes", -2.5, -2.0).value == pytest.approx(
        math.exp(-0.5) * 3 / 5
    )


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("one two three four", 1.0),
        ("no no no no no", 1 / 4),
        ("No no. NO, no! no", 1 / 4),
        ("a b a b a b", 2 / 5),
        ("aaaaaaaa", 1 / 6),
        ("hahahahaha", 2 / 8),
        ("ok", 1.0),
        ("x", 1.0),
        ("", 0.0),
        (" \n\t", 0.0),
        ("... !? --", 0.0),
        ("日本語日本語日本語", 3 / 7),
    ],
)
def test_variety_is_the_share_of_distinct_neighbours(text: str, expected: float) -> None:
    assert variety(text) == pytest.approx(expected)


def test_ordinary_text_scores_one_and_likelier_text_no_more() -> None:
    assert coherence(PLAIN, -2.0, -2.0).value == 1
    assert coherence(PLAIN, -0.1, -2.0).value == 1


def test_text_of_no_word_scores_zero_however_likely() -> None:
    for text in ("", "!!!", "\n\n"):
        assert coherence(text, 0.0, -2.0).value == 0


def test_less_likely_text_scores_less() -> None:
    values = [coherence(PLAIN, -2.0 - step / 4, -2.0).value for step in range(40)]
    assert values == sorted(values, reverse=True)
    assert len(set(values)) == len(values)
    assert values[-1] < 1e-4


def test_the_more_a_text_repeats_itself_the_less_it_scores() -> None:
    values = [coherence(" ".join([PLAIN] * times), -2.0, -2.0).value for times in range(1, 9)]
    assert values == sorted(values, reverse=True)
    assert values[0] == 1
    assert values[-1] < 0.2


def test_scores_lie_between_zero_and_one() -> None:
    draw = random.Random(0)
    for _ in range(500):
        text = "".join(draw.choice("ab .é") for _ in range(draw.randrange(30)))
        assert 0 <= coherence(text, draw.uniform(-900, 0), draw.uniform(-9, 0)).value <= 1


def test_the_reason_has_the_numbers() -> None:
    assert coherence("no no no no no", -3.21, -2.0).why == (
        "-3.2 nats a token against -2.0; 25% of word pairs distinct"
    )


@torch.no_grad()
def logprob(lm: LanguageModel, prompt: str, text: str) -> float:
    """Mean log-likelihood a token, from the whole sequence, one at a time."""
    before = lm.encode([prompt]).ids[0].tolist()
    written = lm.tokenizer(text, add_special_tokens=False)["input_ids"]
    logits, _ = tiny.run(lm.hf, [*before, *written])
    shares = logits[len(before) - 1 : -1].log_softmax(-1)
    return float(shares.gather(1, torch.tensor(written)[:, None]).mean())


def test_as_a_judge_it_reads_the_answers_itself(tiny_lm: LanguageModel) -> None:
    answers = [
        Answer("Where?", "In the red room."),
        Answer("Who is it then?", "no no no no"),
        Answer("Where?", "so"),
        Answer("Where?", ""),
    ]
    prompts = ordinary_prompts()
    written = generate(tiny_lm, tiny_lm.encode(prompts), [Row(0, j) for j in range(len(prompts))])
    # What was written, token by token; its text may be read in other tokens.
    ordinary = []
    for completion in (c for some in written for c in some if c.tokens):
        before = tiny_lm.encode([prompts[completion.row.prompt]]).ids[0].tolist()
        shares = tiny.run(tiny_lm.hf, [*before, *completion.tokens])[0][len(before) - 1 : -1]
        said = shares.log_softmax(-1).gather(1, torch.tensor(completion.tokens)[:, None])
        ordinary.append(float(said.mean()))
    level = sum(ordinary) / len(ordinary)
    judge = Coherence(tiny_lm)
    found = judge.score(answers)
    for answer, score in zip(answers[:3], found, strict=False):
        expected = coherence(answer.text, logprob(tiny_lm, answer.prompt, answer.text), level)
        assert score.value == pytest.approx(expected.value, rel=1e-3)
    assert len({round(score.value, 4) for score in found[:3]}) == 3
    assert found[3].value == 0
    assert judge.score([]) == []
    assert judge.identity.startswith("coherence:")
