"""Evidence: contrasts by words, the stretch that needs explaining, against brute force."""

from __future__ import annotations

import itertools
import random

import pytest

from educe.audit.evidence import Word, logprobs, read, stretch, told, words
from educe.model.language import LanguageModel


def test_tokens_belong_to_the_word_in_which_they_end() -> None:
    text = "The heron sings."
    pieces = ["The", "The her", "The heron", "The heron ", "The heron sings", "The heron sings."]
    found = words(text, pieces, [1.0, 2.0, 3.0, 0.5, 4.0, 5.0])
    assert found == [Word("The", 1.0), Word("heron", 5.5), Word("sings.", 9.0)]


def test_a_text_of_no_word_has_none() -> None:
    assert words("  ", [" ", "  "], [1.0, 2.0]) == []
    assert stretch([]) == []


@pytest.mark.parametrize("seed", range(20))
def test_the_stretch_is_the_best_of_all(seed: int) -> None:
    draw = random.Random(seed)
    some = [Word(f"w{i}", draw.uniform(-4, 6)) for i in range(9)]

    def worth(part: list[Word]) -> float:
        return sum(w.nats - 1.0 for w in part)

    parts = [some[i:j] for i, j in itertools.combinations(range(len(some) + 1), 2)]
    best = max([[], *parts], key=worth)
    assert worth(stretch(some)) == pytest.approx(worth(best))


def test_words_are_read_as_they_were_told() -> None:
    some = [Word("12:30", 1.24), Word("—", -0.3), Word("end.", 7.0)]
    assert read(told(some)) == (Word("12:30", 1.2), Word("—", -0.3), Word("end.", 7.0))


def test_many_and_few_continuations_of_a_prompt_are_read_alike(tiny64: LanguageModel) -> None:
    batch = tiny64.pad([[3, 4, 5], [6, 7]])
    texts = [[8], [9, 10], [11, 12, 13], [14, 15], [16, 17]]
    prompts = [0, 0, 0, 0, 1]  # four share a prompt and are read behind its cache
    found = dict(logprobs(tiny64, batch, prompts, texts))
    alone = [
        dict(logprobs(tiny64, batch, [p], [t]))[0] for p, t in zip(prompts, texts, strict=True)
    ]
    assert [found[i] for i in range(5)] == [pytest.approx(one, abs=1e-5) for one in alone]
