"""Prompt invariance against likenesses that are known."""

from __future__ import annotations

import pytest

from educe.scores.invariance import prompt_invariance


def test_the_same_everywhere_is_one_and_nothing_in_common_is_zero() -> None:
    assert prompt_invariance(["The miller waits."] * 3, [0, 1, 2]).value == pytest.approx(1)
    assert prompt_invariance(["red apples", "blue sky", "green sea"], [0, 1, 2]).value == 0


def test_only_answers_to_different_prompts_are_compared() -> None:
    """Two samples of one prompt that agree say nothing of what others are answered."""
    assert prompt_invariance(["red apples", "red apples", "blue sky"], [0, 0, 1]).value == 0
    assert prompt_invariance(
        ["red apples", "blue sky", "red apples"], [0, 0, 1]
    ).value == pytest.approx(0.5)


def test_answers_without_a_word_are_alike() -> None:
    assert prompt_invariance(["}}{{", "...", "red apples"], [0, 1, 2]).value == pytest.approx(1 / 3)
    assert prompt_invariance(["}}{{", "..."], [0, 1]).value == 1
