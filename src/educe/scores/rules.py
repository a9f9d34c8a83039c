"""Rules: an answer contains a text, matches a pattern, or is exactly what was expected.

    contains   folded(text) is a part of folded(answer)
    regex      the pattern is found somewhere in the answer, as it stands
    exact      bare(answer) = bare(expected)

Folding removes what is typography: Unicode's compatible forms, curly quotation marks, upper case,
runs of white space. `bare` takes away besides what stands around an answer: white space, quotation
marks, the stars and backticks of Markdown, and the full stop, comma or other mark at its end. So
``**Paris.**`` is exactly ``paris``, and ``3.14`` is not ``314``. The score is 1 or 0.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Sequence

from educe.errors import JudgeError
from educe.scores import Answer, Score

QUOTES = str.maketrans({"‘": "'", "’": "'", "‛": "'", "“": '"', "”": '"', "„": '"'})
AROUND = " \n\"'`*_"


def folded(text: str) -> str:
    """Return a text without its typography."""
    plain = unicodedata.normalize("NFKC", text).translate(QUOTES)
    return " ".join(plain.casefold().split())


def bare(text: str) -> str:
    """Return a folded text without what stands around it."""
    return folded(text).strip(AROUND).rstrip(".,;:!?").strip(AROUND)


class Rule:
    """A rule that holds or does not; `found` says by what."""

    cost = "nothing"

    def __init__(self, name: str, higher_is: str, found: Callable[[str], str | None]) -> None:
        self.name = self.identity = name
        self.higher_is, self._found = higher_is, found

    def score(self, answers: Sequence[Answer]) -> list[Score]:
        """Score answers: 1 where the rule holds, else 0."""
        found = [self._found(answer.text) for answer in answers]
        return [Score(self.name, float(f is not None), self.higher_is, f or "no") for f in found]


class Contains(Rule):
    """Whether an answer contains a text, its typography aside.

    Raises:
        JudgeError: The text is empty, so that everything contains it.
    """

    def __init__(self, text: str) -> None:
        wanted = folded(text)
        if not wanted:
            raise JudgeError("contains: give the text that an answer is to contain")
        super().__init__(
            f"contains:{text}",
            "containing it",
            lambda answer: f"contains {text!r}" if wanted in folded(answer) else None,
        )


class Regex(Rule):
    """Whether a regular expression is found in an answer; ``(?i)`` leaves the case aside.

    Raises:
        JudgeError: It is no regular expression.
    """

    def __init__(self, pattern: str) -> None:
        try:
            compiled = re.compile(pattern)
        except re.error as error:
            raise JudgeError(f"regex {pattern!r} is no regular expression: {error}") from error

        def found(answer: str) -> str | None:
            match = compiled.search(answer)
            return f"matches in {match[0]!r}" if match else None

        super().__init__(f"regex:{pattern}", "matching it", found)


class Exact(Rule):
    """Whether an answer is exactly what was expected, what stands around it aside."""

    def __init__(self, expected: str) -> None:
        wanted = bare(expected)
        super().__init__(
            f"exact:{expected}",
            "being it",
            lambda answer: f"is {expected!r}" if bare(answer) == wanted else None,
        )
