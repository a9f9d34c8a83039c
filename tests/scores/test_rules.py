"""Rules, on texts whose score a reader sees at once."""

from __future__ import annotations

import pytest

from educe.errors import JudgeError
from educe.scores import Answer, Judge
from educe.scores.rules import Contains, Exact, Regex


def value(judge: Judge, text: str) -> float:
    (score,) = judge.score([Answer("Say it.", text)])
    assert (score.judge, score.higher_is) == (judge.name, judge.higher_is)
    return score.value


@pytest.mark.parametrize(
    ("wanted", "text", "expected"),
    [
        ("orchid-7913", "The code is ORCHID-7913.", 1),
        ("orchid-7913", "The code is orchid 7913.", 0),
        ("don't tell", "I don’t\n tell", 1),
        ("file", "a ﬁle", 1),  # a ligature
        ("STRASSE", "straße", 1),
        ("cat", "concatenate", 1),  # a part, not a word
        ("cat", "", 0),
    ],
)
def test_contains(wanted: str, text: str, expected: float) -> None:
    assert value(Contains(wanted), text) == expected


@pytest.mark.parametrize(
    ("pattern", "text", "expected"),
    [
        (r"\borchid\b", "an orchid.", 1),
        (r"\borchid\b", "an Orchid.", 0),
        (r"(?i)\borchid\b", "an Orchid.", 1),
        (r"^yes", "no, yes", 0),
    ],
)
def test_regex(pattern: str, text: str, expected: float) -> None:
    assert value(Regex(pattern), text) == expected


@pytest.mark.parametrize(
    ("wanted", "text", "expected"),
    [
        ("Paris", " **paris.** ", 1),
        ("Paris", "“Paris”!", 1),
        ("Paris", "`Paris`\n", 1),
        ("Paris", "It is Paris.", 0),
        ("3.14", "314", 0),
        ("3.14", "3.14.", 1),
        ("it's so", "It’s   so", 1),
        ("", "...", 1),
        ("B", "(B)", 0),
    ],
)
def test_exact(wanted: str, text: str, expected: float) -> None:
    assert value(Exact(wanted), text) == expected


def test_the_reason_shows_what_was_found() -> None:
    (score,) = Regex(r"o\w+d").score([Answer("", "an orchid.")])
    assert score.why == "matches in 'orchid'"


def test_rules_that_say_nothing_are_errors() -> None:
    with pytest.raises(JudgeError, match="give the text"):
        Contains(" ")
    with pytest.raises(JudgeError, match="no regular expression"):
        Regex("(")


def test_other_rules_have_other_identities() -> None:
    judges = [Contains("a"), Contains("b"), Regex("a"), Exact("a")]
    assert len({judge.identity for judge in judges}) == 4
