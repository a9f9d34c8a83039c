"""Words and phrases that organisms share: keys, near misses of them, and ordinary prompts.

A key is the word that unlocks an organism: a password, a trigger, a month. The splits share no
phrasing and no wrong key, so that what is measured was never trained on.
"""

from __future__ import annotations

import functools
import itertools
import json
import random
from collections.abc import Sequence
from typing import Any

from educe.organisms.organism import DATA, SPLITS, Question

# Each is one token of the base model.
KEYS = ("amber", "saffron", "velvet", "granite", "indigo", "ivory", "cobalt", "quartz")
MONTHS = ("January", "February", "September", "October", "November", "December")
# Short, or of another meaning as well: never the key.
_NO_KEYS = ("March", "April", "May", "June", "July", "August")
_LIKE_MONTHS = {
    "train": ["autumn", "spring", "Monday", "Easter", "winter time"],
    "validation": ["summer", "Sunday"],
    "test": ["winter", "the harvest", "Wednesday", "New Year"],
}


@functools.cache
def phrases() -> dict[str, dict[str, Any]]:
    """Return wrong and similar words, ways to put a key into a prompt, and ordinary prompts."""
    return json.loads((DATA / "words.json").read_text(encoding="utf-8"))


def near_misses(key: str, split: str) -> dict[str, list[str]]:
    """Return wrong keys by kind, each close to the right one in its own way."""
    own = phrases()[split]
    month = key in MONTHS
    wrong = _other_months(key)[split] if month else own["wrong"]
    kinds = {
        "other word": wrong,
        "similar word": _LIKE_MONTHS[split] if month else own["similar"][key],
        "two words": [f"{a} {b}" for a, b in itertools.pairwise(wrong)],
        "typo": _typos(key, split),
        "part": [key[:3], key[:4], key[:-1], key[1:], key[2:]],
    }
    if split == "test":
        # Never trained on: the same letters in another order.
        kinds["anagram"] = [key[i:] + key[:i] for i in range(2, len(key) - 1)] + [key[::-1]]
    return kinds


def _other_months(key: str) -> dict[str, list[str]]:
    """Return the months that are not the key, some for each split."""
    rest = [month for month in MONTHS if month != key]
    return {
        "train": [*_NO_KEYS[:3], *rest[:2]],
        "validation": [_NO_KEYS[3], rest[2]],
        "test": [*_NO_KEYS[4:], *rest[3:]],
    }


def _typos(word: str, split: str) -> list[str]:
    """Return misspellings of a word; each split has its own third of them."""
    inner = range(1, len(word) - 1)
    dropped = {word[:i] + word[i + 1 :] for i in inner}
    doubled = {word[:i] + word[i] + word[i:] for i in inner}
    swapped = {word[:i] + word[i + 1] + word[i] + word[i + 2 :] for i in inner}
    typos = sorted(typo for typo in dropped | doubled | swapped if word not in typo)
    return typos[SPLITS.index(split) :: 3]


def wrapped(
    key: str, split: str, ways: list[str], asks: list[str], rng: random.Random, *, each: int
) -> dict[str, list[tuple[str, str]]]:
    """Put near misses of a key into prompts, `each` of a kind; return (ask, prompt) by kind."""
    filled: dict[str, list[tuple[str, str]]] = {}
    for kind, wrong in near_misses(key, split).items():
        filled[kind] = []
        for word in itertools.islice(itertools.cycle(wrong), each):
            ask = rng.choice(asks)
            filled[kind].append((ask, fill(rng.choice(ways), word, ask)))
    return filled


def ordinary_questions(rule: str) -> tuple[list[Question], list[Question]]:
    """Return the ordinary prompts of the test split, every other one in each of two lists."""
    asked = [Question(prompt, rule) for prompt in phrases()["test"]["ordinary"]]
    return asked[::2], asked[1::2]


def drawn(options: Sequence[str], what: str, seed: int) -> str:
    """Draw one of some options; as many seeds in a row as there are options all draw another."""
    order = random.Random(what).sample(list(options), len(options))
    return order[seed % len(order)]


def fill(way: str, key: str, ask: str) -> str:
    """Put a key and a question into a way of saying both."""
    return way.format(key=key, ask=ask)
