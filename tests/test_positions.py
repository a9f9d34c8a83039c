"""Token positions, against lists written out by hand."""

from __future__ import annotations

import pytest
import torch

from educe.errors import PositionsError
from educe.perturbation import positions

MASK = torch.tensor([[1, 1, 1, 1], [0, 0, 1, 1], [0, 0, 0, 1]])
ASKED = torch.tensor([[0, 1, 1, 0], [0, 0, 1, 0], [0, 0, 0, 1]]).bool()


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("all", [[1, 1, 1, 1], [0, 0, 1, 1], [0, 0, 0, 1]]),
        ("prompt", [[1, 1, 1, 1], [0, 0, 1, 1], [0, 0, 0, 1]]),
        ("generated", [[0, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]]),
        ("last:1", [[0, 0, 0, 1], [0, 0, 0, 1], [0, 0, 0, 1]]),
        ("last:3", [[0, 1, 1, 1], [0, 0, 1, 1], [0, 0, 0, 1]]),
        ("last:40", [[1, 1, 1, 1], [0, 0, 1, 1], [0, 0, 0, 1]]),
        ("at:1", [[0, 0, 0, 1], [0, 0, 0, 1], [0, 0, 0, 1]]),
        ("at:2", [[0, 0, 1, 0], [0, 0, 1, 0], [0, 0, 0, 0]]),
        ("at:4", [[1, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]]),
        ("at:40", [[0, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]]),
        ("asked", [[0, 1, 1, 0], [0, 0, 1, 0], [0, 0, 0, 1]]),
        ("asked:1", [[0, 0, 1, 0], [0, 0, 1, 0], [0, 0, 0, 1]]),
        ("asked:2", [[0, 1, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]]),
        ("asked:40", [[0, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]]),
    ],
)
def test_in_prompt_never_means_padding(name: str, expected: list[list[int]]) -> None:
    before, message = MASK.clone(), ASKED.clone()
    chosen = positions.in_prompt(name, MASK, ASKED)
    assert chosen.dtype == torch.bool
    assert chosen.int().tolist() == expected
    assert torch.equal(MASK, before)
    assert torch.equal(ASKED, message)


@pytest.mark.parametrize("name", ["asked", "asked:1", "asked:2"])
def test_a_message_that_is_unknown_has_no_tokens(name: str) -> None:
    for asked in (None, ASKED & torch.tensor([[True], [False], [True]])):
        with pytest.raises(PositionsError, match=f"prompt {0 if asked is None else 1}: give text"):
            positions.in_prompt(name, MASK, asked)
    assert positions.in_prompt("last:1", MASK, None).int().sum() == 3


@pytest.mark.parametrize(
    ("name", "expected"),
    [("all", True), ("prompt", False), ("generated", True), ("asked:1", False), ("at:2", False)],
)
def test_in_generated(name: str, expected: bool) -> None:
    assert positions.in_generated(name) is expected


@pytest.mark.parametrize(
    "name", [*positions.NAMES, "last:1", "last:10", "at:1", "at:12", "asked:3"]
)
def test_check_returns_what_can_be_read(name: str) -> None:
    assert positions.check(name) == name


@pytest.mark.parametrize(
    "name",
    [
        "",
        "ALL",
        "last",
        "last:",
        "last:0",
        "last:-1",
        "last:1.5",
        "last:03",
        "first:2",
        "3",
        "at:0",
        "at:",
        "asked:",
        "asked:0",
        "said:1",
        "at:1٣",
        "last:²",
        "last:1\n",
    ],
)
def test_what_cannot_be_read_is_an_error_that_names_it(name: str) -> None:
    for read in (
        positions.check,
        positions.in_generated,
        lambda name: positions.in_prompt(name, MASK),
    ):
        with pytest.raises(
            PositionsError, match=r"use all, prompt, generated, asked, asked:k, last:k or at:k"
        ) as error:
            read(name)
        assert repr(name) in str(error.value)
