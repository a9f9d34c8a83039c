"""What models wrote, as markup: isolated from the text around it, hidden signs as escapes.

Each text stands in a ``bdi`` element, so that one that runs from right to left turns nothing around
it. What no filter here has seen is still shown without hidden signs (`plainly`).
"""

from __future__ import annotations

import json
import re
from typing import Any

from markupsafe import Markup, escape

from educe.visible import runs, visible


def pieces(text: str, pattern: re.Pattern[str] | None) -> list[str]:
    """Cut a text at the matches of a pattern; every second piece is a match."""
    cut, at = [], 0
    for match in pattern.finditer(text) if pattern else ():
        if match.end() > match.start():
            cut += [text[at : match.start()], match.group()]
            at = match.end()
    return [*cut, text[at:]]


def cut(text: str, pattern: re.Pattern[str] | None) -> list[list[str]]:
    """Cut a text at its matches, and each piece at hidden signs: every second part is an escape."""
    return [runs(piece) for piece in pieces(text, pattern)]


def marked(text: str, pattern: re.Pattern[str] | None = None) -> Markup:
    """Return a text with its matches marked."""
    parts = [
        Markup("<mark>{}</mark>").format(_signed(piece)) if i % 2 else _signed(piece)
        for i, piece in enumerate(cut(text, pattern))
    ]
    return Markup("<bdi>{}</bdi>").format(Markup("").join(parts))


def plainly(value: Any) -> Any:
    """Return any value that a template prints, without hidden signs where it is text."""
    return visible(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def island(value: Any) -> Markup:
    """Return JSON without hidden signs, that can stand inside a script element."""
    text = json.dumps(_without(value), ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    for sign in "<>&":
        text = text.replace(sign, f"\\u{ord(sign):04x}")
    return Markup(text)


def _signed(piece: list[str]) -> Markup:
    return Markup("").join(
        Markup('<span class="sign">{}</span>').format(run) if i % 2 else escape(run)
        for i, run in enumerate(piece)
    )


def _without(value: Any) -> Any:
    if isinstance(value, dict):
        return {_without(key): _without(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_without(one) for one in value]
    return plainly(value)
