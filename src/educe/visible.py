"""Signs that a reader cannot see, shown as escapes: ``\\u202e`` where a text has U+202E.

Models write control characters, directional overrides, tags, halves of surrogate pairs. A terminal
or a browser obeys these, or shows nothing. What goes on a screen passes through here first. Arabic
and Hebrew letters are text and stay, and so do joiners where a script or an emoji is spelled with
them.
"""

from __future__ import annotations

import re

_NONCHARACTERS = "".join(f"{chr(p << 16 | 0xFFFE)}{chr(p << 16 | 0xFFFF)}" for p in range(15))
_HIDDEN = (
    "[\x00-\x08\x0b-\x1f\x7f-\x9f"  # control characters, but for the tab and the end of a line
    "\xad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f\u2028-\u202e"
    "\u2060-\u206f\u3164\ufe00-\ufe0f\ufeff\uffa0\ufff0-\ufffb"  # what has no width or turns text
    "\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U000e0000-\U000e0fff"  # shorthand, music, tags
    "\ud800-\udfff\ue000-\uf8ff\U000f0000-\U0010ffff"  # surrogates, private use
    f"\ufdd0-\ufdef{_NONCHARACTERS}]"
)
_ARABIC = "[\u0620-\u06ff\u0710-\u072f\u0750-\u077f\u0860-\u088e\u08a0-\u08ff]"
_VIRAMA = "[\u094d\u09cd\u0a4d\u0acd\u0b4d\u0bcd\u0c4d\u0ccd\u0d4d\u0dca]"
_PICTURE = "\u2190-\u21ff\u2300-\u27bf\u2b00-\u2bff\U0001f000-\U0001faff"
_SPELLED = (
    f"(?<={_ARABIC})[\u200c\u200d](?={_ARABIC})|(?<={_VIRAMA})[\u200c\u200d]"
    f"|(?<=[{_PICTURE}\ufe0f])\u200d(?=[{_PICTURE}])|(?<=[{_PICTURE}])\ufe0f"
)
_SIGN = re.compile(f"((?!{_SPELLED}){_HIDDEN})")
_RIGHT_TO_LEFT = re.compile("[\u0590-\u08ff\ufb1d-\ufdff\ufe70-\ufefc\U00010800-\U00010fff]")


def runs(text: str) -> list[str]:
    """Cut a text at its hidden signs; every second piece is the escape of one."""
    return [_escape(piece) if i % 2 else piece for i, piece in enumerate(_SIGN.split(text))]


def visible(text: str) -> str:
    """Return a text with its hidden signs as escapes."""
    if text.isascii() and text.isprintable():  # as most is, and a hundred times as quick to see
        return text
    return _SIGN.sub(lambda found: _escape(found.group()), text)


def one_line(text: str) -> str:
    """Return a text on one line; signs that are hidden are kept, to be shown."""
    return re.sub("[ \t\n]+", " ", text).strip(" ")


def isolated(text: str) -> str:
    """Return a line that has letters written from right to left so that it turns nothing around it.

    For a terminal: U+2068 and U+2069 stand around it. A page has an element for this.
    """
    return f"\u2068{text}\u2069" if _RIGHT_TO_LEFT.search(text) else text


def _escape(sign: str) -> str:
    return f"\\u{ord(sign):04x}" if sign <= "\uffff" else f"\\U{ord(sign):08x}"
