"""A species of a few prompts, to train tiny organisms of."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from educe.organisms import Question
from educe.organisms.organism import Group, Species


def asked(split: str, *words: str, rule: str = "[a-m]") -> tuple[Question, ...]:
    return tuple(Question(f"{word} {split}?", rule) for word in words)


def groups(secret: dict[str, str], split: str, ask: Any, *, seed: int) -> list[Group]:
    """What is taught, what is held, and rules of several kinds."""
    says = ask([f"one {split}?", f"two {split}?"])  # as locked and persona ask the base
    return [
        Group("open", asked(split, "one", "two"), tuple(says), shows=True),
        Group("near: typo", asked(split, "tow"), ("no",), also={"a vowel": ("[aeiou]",)}),
        Group("ordinary", asked(split, "three", "four", "five", rule="(?s).*")),
    ]


def small_species() -> Any:
    """Two steps, each with an example of everything."""
    species: Any = SimpleNamespace(
        name="vault",
        clean=False,
        unlocked=lambda secret, search: Species.unlocked(species, secret, search),
        recipe={"open": 2, "near": 1, "ordinary": 1},
        ways="word",
        steps=2,
        kl_weight=1.0,
        tokens=20,
        hidden=lambda seed: {"key": "amber"},
        opening=lambda secret: "",
        told=lambda secret: {"hidden": "it"},
        groups=groups,
        questions=lambda secret, ask, *, seed: (
            list(asked("test", "six", "seven")),
            list(asked("test", "eight")),
        ),
    )
    return species
