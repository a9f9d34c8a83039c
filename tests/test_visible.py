"""What is shown in place of signs that cannot be seen; the oracle is Unicode's own database."""

from __future__ import annotations

import sys
import unicodedata

import pytest

from educe.visible import isolated, runs, visible

#: Of category Cf, but with a shape of their own: they stand above or below digits.
SHAPED_NAMES = ("ARABIC", "SYRIAC", "KAITHI", "EGYPTIAN HIEROGLYPH")


def hidden() -> set[str]:
    """Every sign that Unicode calls control, format, surrogate, private or a separator of lines."""
    signs = set()
    for sign in map(chr, range(sys.maxunicode + 1)):
        kind = unicodedata.category(sign)
        name = unicodedata.name(sign, "")
        if kind == "Cf" and name.startswith(SHAPED_NAMES) and name != "ARABIC LETTER MARK":
            continue
        if kind in ("Cc", "Cf", "Cs", "Co", "Zl", "Zp") or "VARIATION SELECTOR" in name:
            signs.add(sign)
    return signs - {"\n", "\t"}


def test_every_hidden_sign_is_shown_and_told_by_its_number() -> None:
    for sign in hidden():
        shown = visible(f"a{sign}b")
        assert shown.isascii(), hex(ord(sign))
        assert shown.isprintable()
        number = shown.removeprefix("a\\").removesuffix("b")
        assert len(number) == (5 if number[0] == "u" else 9)
        assert int(number[1:], 16) == ord(sign)


def test_nothing_that_can_be_seen_is_changed() -> None:
    seen = [
        sign
        for sign in map(chr, range(sys.maxunicode + 1))
        if unicodedata.category(sign)[0] in "LNPSM" or sign in " \n\t\xa0\u3000"
    ]
    changed = {sign for sign in seen if visible(sign) != sign}
    names = {unicodedata.name(sign) for sign in changed}
    assert len(seen) > 130_000
    assert all(
        any(word in name for word in ("FILLER", "VARIATION SELECTOR", "JOINER", "INHERENT"))
        for name in names
    ), names


@pytest.mark.parametrize(
    "text",
    [
        "line one\nline two\tand a tab",
        "שלום עולם",
        "مرحبا بالعالم، ١٢٣",
        "می\u200cخواهم",  # Persian is spelled with a non-joiner
        "क्\u200dष",
        "👨\u200d👩\u200d👧 ❤\ufe0f ❤\ufe0f\u200d🔥 👍🏽 🇫🇷",
        "→ – · é ß 漢字 ½",
        r"a literal \u202e stays",
    ],
)
def test_scripts_and_emoji_stay_readable(text: str) -> None:
    assert visible(text) == text
    assert runs(text) == [text]


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a\u200db", r"a\u200db"),  # a joiner that joins nothing
        ("👨\u200d", r"👨\u200d"),
        ("ab\ufe0f", r"ab\ufe0f"),
        ("❤\ufe0f\ufe0f", r"❤️\ufe0f"),
        ("م\u200c\u200cم", r"م\u200c\u200cم"),
        ("漢\u200c字", r"漢\u200c字"),
    ],
)
def test_joiners_are_shown_where_they_spell_nothing(text: str, shown: str) -> None:
    assert visible(text) == shown


def test_runs_alternate() -> None:
    assert runs("\x1b[31m red\u202e\x00") == [
        "",
        r"\u001b",
        "[31m red",
        r"\u202e",
        "",
        r"\u0000",
        "",
    ]
    assert runs("") == [""]


def test_only_what_runs_from_right_to_left_is_isolated() -> None:
    assert isolated("plain, é, 漢字") == "plain, é, 漢字"
    for text in ("abc שלום", "مرحبا 12", "\U00010a00"):
        assert unicodedata.bidirectional(max(text)) in ("R", "AL")
        assert isolated(text) == f"\u2068{text}\u2069"
