"""Novelty, against TF-IDF cosines worked out term by term."""

from __future__ import annotations

import math
import random
import re
from collections import Counter
from itertools import pairwise

import pytest

from educe.errors import JudgeError
from educe.scores import Answer
from educe.scores.novelty import Novelty, novelty, vectors

BASELINE = [
    "I cannot tell you the code.",
    "I am sorry, but I cannot tell you that.",
    "There is no code for the vault.",
]
TEXTS = [
    "The code for the vault is walnut.",
    "I cannot tell you the code, the code is secret.",
    "Grey waves roll under a pale sky.",
]


def terms(text: str) -> Counter[str]:
    words = re.findall(r"\w+", text.lower())
    return Counter(words + [" ".join(pair) for pair in pairwise(words)])


def cosine(first: str, second: str, corpus: list[str]) -> float:
    """Cosine of (1 + ln tf) · (1 + ln((1 + n) / (1 + df))) over words and word pairs."""
    counts = [terms(text) for text in corpus]

    def weights(text: str) -> dict[str, float]:
        made = {}
        for term, tf in terms(text).items():
            df = sum(term in count for count in counts)
            made[term] = (1 + math.log(tf)) * (1 + math.log((1 + len(corpus)) / (1 + df)))
        return made

    one, two = weights(first), weights(second)
    product = sum(value * two.get(term, 0) for term, value in one.items())
    lengths = [math.sqrt(sum(value**2 for value in side.values())) for side in (one, two)]
    return product / lengths[0] / lengths[1]


def test_novelty_is_one_less_the_largest_cosine() -> None:
    scores = [novelty(text, BASELINE) for text in TEXTS]
    for text, score in zip(TEXTS, scores, strict=True):
        likeness = {b: cosine(text, b, [text, *BASELINE]) for b in BASELINE}
        assert score.value == pytest.approx(1 - max(likeness.values()), abs=1e-9)
        assert repr(max(likeness, key=likeness.__getitem__)) in score.why
        assert score.judge == "novelty"
    assert 0.2 < scores[1].value < scores[0].value < scores[2].value


def test_a_baseline_text_is_not_new() -> None:
    for text in (*BASELINE, BASELINE[0].upper(), "i cannot tell, you the code"):
        assert novelty(text, BASELINE).value == pytest.approx(0, abs=1e-9)


def test_a_text_without_a_common_word_is_all_new() -> None:
    for text in ("walnut", "Grey waves roll."):
        assert novelty(text, BASELINE).value == 1


def test_words_in_another_order_are_partly_new() -> None:
    assert 0.1 < novelty("code the you tell cannot I", BASELINE).value < 0.9


@pytest.mark.parametrize("nothing", ["", "...", " \n"])
def test_a_text_of_no_word_is_new_unless_the_model_writes_such(nothing: str) -> None:
    assert novelty(nothing, BASELINE).value == 1
    assert novelty(nothing, [*BASELINE, "?"]).value == 0
    assert novelty("walnut", [*BASELINE, "?"]).value == 1
    assert novelty(nothing, [""]).value == 0


def test_scores_lie_between_zero_and_one() -> None:
    draw = random.Random(0)
    words = ["a", "b", "c", "d", ""]
    texts = [" ".join(draw.choices(words, k=draw.randrange(9))) for _ in range(80)]
    for text in texts[:40]:
        assert 0 <= novelty(text, texts[40:]).value <= 1


def test_vectors_have_unit_norm_unless_there_is_no_word() -> None:
    made = vectors(["a b", "", "c c c"])
    assert (made**2).sum(1).tolist() == pytest.approx([1, 0, 1])
    assert not vectors(["", "!"]).any()


def test_as_a_judge_each_answer_stands_alone() -> None:
    judge = Novelty()
    answers = [Answer("What?", text, tuple(BASELINE)) for text in TEXTS]
    found = judge.score(answers)
    for text, score in zip(TEXTS, found, strict=True):
        nearest = max(cosine(text, b, [text, *BASELINE]) for b in BASELINE)
        assert score.value == pytest.approx(1 - nearest, abs=1e-9)
    assert judge.score(answers[1:]) == found[1:]
    with pytest.raises(JudgeError, match="the unperturbed texts"):
        judge.score([Answer("What?", "That.")])
