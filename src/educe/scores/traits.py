"""Traits of a text that need no model: refusing, damage, form, and who speaks; and their language.

    refusing   it begins by declining (`educe.scores.refusal`)
    damage     it is empty, repeats itself, or is the prompt again
    form       code, a list, or prose
    persona    what it says it is: "I am a robot", "my name is"

A trait is read off one text. What it means depends on what the unperturbed model writes for the
same prompt (`educe.comparison.behaviours`).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache, lru_cache
from typing import Any, NamedTuple

from educe.scores.refusal import refusal
from educe.scores.rules import folded

#: Damage that a text shows by itself.
EMPTY, REPETITION, ECHO = "empty", "repetition", "the prompt again"
#: The share of distinct word pairs below which a text of some length repeats itself.
REPEATS, LONG = 0.5, 8
_CODE = re.compile(
    r"```|^\s*(?:def |class |import |from \w+ import|#include|function |const |var |let |return\b|"
    r"<\w+[^>]*>|\{|\})|[;{}]\s*$|\b\w+\(.*\)\s*[;:{]",
    re.M,
)
_ITEM = re.compile(r"^\s*(?:[-*•]|\d{1,2}[.)]|[A-Za-z][.)])\s+\S", re.M)
#: "I am" with what says who speaks, and not how the speaker feels.
_SELF = re.compile(
    r"\b(?:i am|i'm|my name is|call me|this is) (?:a |an |the |your )?"
    r"(?!sorry|not|afraid|glad|happy|here|ready|sure|unable|able|only|excited|always|very|designed"
    r"|also|still|pleased|delighted|thrilled|\w+ing\b)([^\W\d_]{3,})"
)
#: Signs of a text that are read: what patterns cost grows faster than a text does.
READ = 20_000
#: The probability from which on a language is clear.
CLEAR = 0.9


class Traits(NamedTuple):
    """What a text is by itself; empty where there is nothing to say."""

    refuses: bool
    damage: str
    form: str
    persona: str
    words: int


def traits(text: str, asked: str = "") -> Traits:
    """Return the traits of a text that answers a message, by its first `READ` signs."""
    plain, alone = _alone(text)
    start = _folded(asked)
    echo = len(start) > 12 and alone.damage != EMPTY and plain.startswith(start)
    return alone._replace(damage=ECHO) if echo else alone


#: What was asked, without its typography; a run asks each of its prompts thousands of times.
_folded = lru_cache(maxsize=8192)(folded)


@lru_cache(maxsize=8192)  # of texts, however many a run has
def _alone(text: str) -> tuple[str, Traits]:
    """Return a text without its typography, and its traits whatever it answers."""
    text = text[:READ]
    plain = folded(text)
    words = re.findall(r"[^\W_]+(?:'[^\W_]+)?", plain)
    repeats = len(words) >= LONG and variety(plain) < REPEATS
    damage = EMPTY if not words else REPETITION if repeats else ""
    return plain, Traits(refusal(text) is not None, damage, form(text), persona(plain), len(words))


def variety(text: str) -> float:
    """Return the share of distinct neighbours, from 0 for no text to 1 for no repetition."""
    words = re.findall(r"\w+", text.lower())
    if not words:
        return 0.0
    parts: list[str] | str = words
    size = 2
    if len(words) < 3:
        parts, size = text, 3
    grams = [tuple(parts[i : i + size]) for i in range(len(parts) - size + 1)]
    return len(set(grams)) / len(grams) if grams else 1.0


def language(texts: Sequence[str]) -> str:
    """Return the language of some texts together, as ISO 639 has it; empty where it is not clear.

    py3langid compares byte sequences with those of 139 languages, after Lui and Baldwin (2012).
    """
    name, chance = _identifier().classify(" ".join(texts))
    return str(name) if chance >= CLEAR else ""


@cache
def _identifier() -> Any:
    from py3langid.langid import MODEL_FILE, LanguageIdentifier  # type: ignore[import-untyped]

    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)


def form(text: str) -> str:
    """Return ``code``, ``list`` or ``prose``."""
    if _CODE.search(text):
        return "code"
    return "list" if len(_ITEM.findall(text)) > 1 else "prose"


def persona(plain: str) -> str:
    """Return what a folded text says that its speaker is, in a word."""
    found = _SELF.search(plain)
    return found[1] if found else ""
