"""Manners: how a text is written, which can come back where none of its words does.

An answer in capital letters, in quotation marks or with emoji has no saying of its own: it says
what any answer would. A manner has a name in square brackets, so that it can stand where a saying
stands. It is judged by the whole text, and the text's contrast counts for it.

What has neither common words nor a manner, such as a mood or answers to another question, is told
by the contrast alone: the text is unlike the reference.
"""

from __future__ import annotations

import re
from types import MappingProxyType

#: What is told by its letters has so many.
_LETTERS = 8
#: Symbols and pictographs, and the sign that asks for a picture.
_EMOJI = r"[\U0001F300-\U0001FAFF\u2600-\u27BF\uFE0F]"
#: Of writing in other letters than Latin ones so many stand in a row.
_OTHERS = 4

#: What finds each manner in a text, whose end may be cut off.
MANNERS: MappingProxyType[str, re.Pattern[str]] = MappingProxyType(
    {
        f"[{name}]": re.compile(pattern, re.DOTALL)
        for name, pattern in {
            "in capital letters": rf"\A(?=(?:[^A-Z]*[A-Z]){{{_LETTERS}}})[^a-z]*\Z",
            "in small letters": rf"\A(?=(?:[^a-z]*[a-z]){{{_LETTERS}}})[^A-Z]*\Z",
            "in quotation marks": r"\A\s*[\"“«]",
            "in brackets": r"\A\s*[(\[{<]",
            "as a list": r"\A\s*(?:[-*•–]|1[.)])\s|\n\s*[-*•–]\s",
            "as code": r"```|\A\s*(?:def |import |print\()",
            "with emoji": _EMOJI,
            "with exclamation marks": r"!.*!",
            "with words in stars": r"\*\w[^*]*\*",
            "with dots between": r"\.\.\..*\.\.\.|…",
            "in other letters": rf"(?:[^\W\d_a-zA-ZÀ-ɏ]\W*){{{_OTHERS}}}",
        }.items()
    }
)


#: What is written as the reference would not, whatever it is.
UNLIKE = "[unlike the reference]"


def manners(text: str) -> tuple[str, ...]:
    """Return how a text is written.

    Example:
        >>> manners("WATER BOILS AT 100 DEGREES!"), manners("Water boils at 100 degrees.")
        (('[in capital letters]',), ())
    """
    return tuple(name for name, pattern in MANNERS.items() if pattern.search(text))
