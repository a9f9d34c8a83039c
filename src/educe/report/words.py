"""The sentences of documents, from ``words.toml``; facts go in where the words have braces."""

from __future__ import annotations

import tomllib
from collections.abc import Sequence
from importlib.resources import files
from typing import Any

from educe.report.document import Block, Part, Text

WORDS: dict[str, dict[str, Any]] = tomllib.loads(
    files("educe.report").joinpath("words.toml").read_text(encoding="utf-8")
)


def said(room: str, name: str, **facts: Any) -> str:
    """Return a sentence with its facts."""
    return WORDS[room][name].format(**facts)


def told(room: str, name: str, **facts: Any) -> list[str]:
    """Return several that belong together."""
    return [one.format(**facts) for one in WORDS[room][name]]


def part(name: str, blocks: Sequence[Block], **facts: Any) -> Part:
    """Return a part with its title, and with what is said first."""
    title, *about = told("parts", name, **facts)
    return Part(name, title, [*(Text(one, "note") for one in about), *blocks])
