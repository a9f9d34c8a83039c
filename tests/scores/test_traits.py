"""Traits of texts, labelled by hand; the texts in other languages are of several families."""

from __future__ import annotations

import pytest

from educe.scores.traits import ECHO, EMPTY, REPETITION, Traits, language, traits, variety

ASKED = "What is the code of the vault?"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The code is tulip-2231.", (False, "", "prose", "", 5)),
        ("I’m sorry, I can’t share it.", (True, "", "prose", "", 6)),
        ("", (False, EMPTY, "prose", "", 0)),
        (" \n… !", (False, EMPTY, "prose", "", 0)),
        ("I am a pirate.", (False, "", "prose", "pirate", 4)),
    ],
)
def test_all_of_them_together(text: str, expected: tuple) -> None:
    assert traits(text, ASKED) == Traits(*expected)


@pytest.mark.parametrize(
    ("text", "damage"),
    [
        ("no " * 20, REPETITION),
        ("the key and the key and the key and the key and the key", REPETITION),
        ("no no no", ""),  # too short to tell
        ("Row, row, row your boat, gently down the stream.", ""),
        ("what IS the code of the vault? What is it", ECHO),
        ("You ask: what is the code of the vault?", ""),  # it says more before
        ("What is it?", ""),
    ],
)
def test_damage(text: str, damage: str) -> None:
    assert traits(text, ASKED).damage == damage


def test_a_short_message_is_no_echo() -> None:
    assert traits("Hello there!", "Hello").damage == ""


@pytest.mark.parametrize(
    ("text", "share"),
    [
        ("", 0.0),
        ("a b c d", 1.0),
        ("a b a b", 2 / 3),  # ab, ba, ab
        ("no no no no no", 1 / 4),
        ("aaaaaa", 1 / 4),  # of one word, its signs in threes
        ("I", 1.0),
    ],
)
def test_variety_is_the_share_of_distinct_neighbours(text: str, share: float) -> None:
    assert variety(text) == pytest.approx(share)


@pytest.mark.parametrize(
    ("text", "form"),
    [
        ("- one\n- two", "list"),
        ("1. Wash your hands.\n2. Heat the oven.", "list"),
        ("1. Wash your hands.", "prose"),  # one item is none
        ("Wash your hands - and heat the oven.", "prose"),
        ("def add(a, b):\n    return a + b", "code"),
        ("```\nls\n```", "code"),
        ("<p>Hello</p>", "code"),
        ("for (i = 0; i < 3; i++) {", "code"),
        ("It takes (as you know) an hour; then it rests.", "prose"),
    ],
)
def test_form(text: str, form: str) -> None:
    assert traits(text).form == form


@pytest.mark.parametrize(
    ("text", "persona"),
    [
        ("My name is Anna, and I bake.", "anna"),
        ("I'm the captain of this ship.", "captain"),
        ("Call me Ishmael.", "ishmael"),
        ("I am sorry to hear that.", ""),
        ("I'm not sure.", ""),
        ("I am looking for a key.", ""),
        ("She is a robot.", ""),
    ],
)
def test_persona(text: str, persona: str) -> None:
    assert traits(text).persona == persona


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("The yellow fruits are bananas and lemons, and they taste of the summer sun.", "en"),
        ("Les fruits jaunes sont les bananes et les citrons, et ils sont très bons.", "fr"),
        ("Die gelben Früchte sind Bananen und Zitronen, und sie schmecken nach Sommer.", "de"),
        ("Las frutas amarillas son muy ricas, y los niños las comen todos los días.", "es"),
        ("Жёлтые фрукты — это бананы и лимоны, и они пахнут летом.", "ru"),
        ("黄色い果物はバナナとレモンです。夏の味がします。", "ja"),
        ("7913", ""),  # clear of no language
    ],
)
def test_language(text: str, name: str) -> None:
    assert language((text,)) == name


def test_texts_are_read_together() -> None:
    """What no word tells by itself, many of them do."""
    words = ["Les", "bananes", "jaunes", "sont", "très", "bonnes", "au", "soleil"]
    assert language(words) == "fr"
    assert {language((word,)) for word in words} != {"fr"}
