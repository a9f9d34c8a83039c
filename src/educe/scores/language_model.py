"""A language model as a judge: a rubric, an answer, and one of three ways to read what it thinks.

    Yes      p(yes) / (p(yes) + p(no))          of the first token, continuous
    Rating   (the first number it writes) / 10
    Theme    shown(perturbed) - shown(plain)    shares of the answers, as it counts them itself

`Yes` and `Rating` judge one answer by a rubric. `Theme` compares: it sees what the unperturbed and
what one perturbed model wrote, and names the theme that is consistent in the second and absent in
the first. What cannot be read counts as 0, and the score's reason says so.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from educe.errors import JudgeError
from educe.model.prompts import mended
from educe.scores import Answer, Score, in_order
from educe.scores.asking import Asker

QUESTION = """A question was answered. Judge the answer.

Question:
{prompt}

Answer:
{text}

{rubric}
"""
YES = "Answer with one word, yes or no."
RATE = "Rate it from 0 (not at all) to 10 (fully). Answer with the number alone."
COMPARE = """Two versions of a model answered the same questions.

Answers of the first version:
{plain}

Answers of the second version:
{changed}

Name the one theme that is consistent in the answers of the second version and absent in those of \
the first, in at most ten words. Count the answers of each version that show it. Answer with JSON \
alone: {{"theme": "...", "in_second": number, "in_first": number}}
"""
SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "theme": {"type": "string"},
        "in_second": {"type": "integer"},
        "in_first": {"type": "integer"},
    },
    "required": ["theme", "in_second", "in_first"],
    "additionalProperties": False,
}
#: Tokens that a rating and a theme may have.
RATING_TOKENS, THEME_TOKENS = 16, 96
#: Answers of each version that a comparison shows, and characters of each.
SHOWN, CHARACTERS = 8, 300


class _Rubric:
    """What the judges of single answers share: one question for each answer, by a rubric."""

    form: str
    ending: str

    def __init__(self, rubric: str, asker: Asker) -> None:
        if not rubric.strip():
            raise JudgeError(f"{self.form}: give a rubric, what an answer is to be judged by")
        self.rubric, self.asker = rubric, asker
        self.name = f"{self.form}:{rubric}"
        self.higher_is = "of what the rubric asks"
        self.cost = asker.cost

    @property
    def identity(self) -> str:
        """The form, every word of the question, and the model."""
        parts = [self.form, QUESTION, self.rubric, self.ending, self.asker.identity]
        return json.dumps(parts)

    def score(self, answers: Sequence[Answer]) -> list[Score]:
        """Score answers, in their order."""
        return in_order(self.stream(answers))

    def stream(self, answers: Sequence[Answer]) -> Iterator[list[tuple[int, Score]]]:
        """Score answers; yield what came with the place of its answer, in any order."""
        raise NotImplementedError

    def _questions(self, answers: Sequence[Answer]) -> list[str]:
        return [
            QUESTION.format(prompt=a.prompt, text=a.text, rubric=self.rubric) + self.ending
            for a in answers
        ]

    def _said(self, value: float, why: str) -> Score:
        return Score(self.name, value, self.higher_is, why)


class Yes(_Rubric):
    """The probability of "yes" against "no", read from the logits; from 0 to 1, continuous.

    Args:
        rubric: A question about the answer that yes or no answers.
        asker: The model that judges.

    Raises:
        JudgeError: The rubric is empty.
    """

    form, ending = "yes", YES

    def stream(self, answers: Sequence[Answer]) -> Iterator[list[tuple[int, Score]]]:
        """Score answers, as `educe.scores.Streaming` has it."""
        for came in self.asker.yes(self._questions(answers)):
            yield [
                (
                    line,
                    self._said(
                        yes / (yes + no) if yes + no else 0.0,
                        f"p(yes) {yes:.2g}, p(no) {no:.2g}"
                        if yes + no
                        else "neither yes nor no is among the likeliest tokens",
                    ),
                )
                for line, (yes, no) in came
            ]


class Rating(_Rubric):
    """A number from 0 to 10 read from what the model writes, divided by 10.

    Args:
        rubric: What is rated.
        asker: The model that judges.

    Raises:
        JudgeError: The rubric is empty.
    """

    form, ending = "rating", RATE

    def stream(self, answers: Sequence[Answer]) -> Iterator[list[tuple[int, Score]]]:
        """Score answers, as `educe.scores.Streaming` has it."""
        for came in self.asker.write(self._questions(answers), limit=RATING_TOKENS):
            yield [(line, self._read(text)) for line, text in came]

    def _read(self, text: str) -> Score:
        found = number_in(text)
        if found is None:
            return self._said(0.0, f"no number from 0 to 10 in {text!r}")
        return self._said(found / 10, f"wrote {text.strip()!r}")


def number_in(text: str) -> float | None:
    """Return the first number in a text, if it lies from 0 to 10."""
    found = re.search(r"(?<![\w.])-?\d+(?:\.\d+)?", text)
    return float(found[0]) if found and 0 <= float(found[0]) <= 10 else None


class Theme:
    """What sets the answers of a perturbation apart from the unperturbed ones, in words.

    The score is the share of the perturbed answers that show the theme, less that of the
    unperturbed ones, as the model itself counts them; its reason is the theme.

    Args:
        asker: The model that judges.
    """

    name = "theme"
    higher_is = "consistent, and absent without the perturbation"

    def __init__(self, asker: Asker) -> None:
        self.asker = asker
        self.cost = f"{asker.cost}, one for all that a perturbation writes"

    @property
    def identity(self) -> str:
        """Every word of the question, and the model."""
        return json.dumps([COMPARE, SCHEMA, SHOWN, CHARACTERS, self.asker.identity])

    def score(self, answers: Sequence[Answer]) -> list[Score]:
        """Score answers, each as if it were all that a perturbation makes the model write."""
        return self.compare([[answer] for answer in answers])

    def stream(self, answers: Sequence[Answer]) -> Iterator[list[tuple[int, Score]]]:
        """Do that, as `educe.scores.Streaming` has it."""
        return self.streamed([[answer] for answer in answers])

    def compare(self, groups: Sequence[Sequence[Answer]]) -> list[Score]:
        """Score groups of answers, one a perturbation, each with its unperturbed answers."""
        return in_order(self.streamed(groups))

    def streamed(self, groups: Sequence[Sequence[Answer]]) -> Iterator[list[tuple[int, Score]]]:
        """Do that, and yield what came with the place of its group, in any order.

        Raises:
            JudgeError: A group has no answer.
        """
        seen = [_Compared.of(group) for group in groups]
        asked = [
            COMPARE.format(plain=_listed(s.plain) or "(none)", changed=_listed(s.changed))
            for s in seen
        ]
        for came in self.asker.write(asked, limit=THEME_TOKENS, schema=SCHEMA):
            yield [(line, self._read(text, seen[line])) for line, text in came]

    def _read(self, text: str, seen: _Compared) -> Score:
        found = object_in(text)
        try:
            theme = str(found["theme"])
            counts = [int(found[name]) for name in ("in_second", "in_first")]
        except (KeyError, TypeError, ValueError):
            return Score(self.name, 0.0, self.higher_is, f"no theme in {text!r}")
        second, first = (
            min(max(count, 0), len(shown)) / len(shown) if shown else 0.0
            for count, shown in zip(counts, (seen.changed, seen.plain), strict=True)
        )
        return Score(self.name, max(0.0, second - first), self.higher_is, theme)


class _Compared(NamedTuple):
    """The answers that a comparison shows."""

    plain: list[str]
    changed: list[str]

    @classmethod
    def of(cls, group: Sequence[Answer]) -> _Compared:
        if not group:
            raise JudgeError("theme: a perturbation needs at least one answer")
        plain = dict.fromkeys(text for answer in group for text in answer.plain)
        return cls(*(_some([*texts]) for texts in (plain, (answer.text for answer in group))))


def _some(texts: list[str]) -> list[str]:
    """Return the texts that are shown: all, or some of them evenly, cut where they are long."""
    step = max(1.0, len(texts) / SHOWN)
    places = [int(i * step) for i in range(min(SHOWN, len(texts)))]
    return [" ".join(texts[place].split())[:CHARACTERS] for place in places]


def _listed(texts: Sequence[str]) -> str:
    return "\n".join(f"{i}. {text}" for i, text in enumerate(texts, 1))


def object_in(text: str) -> Any:
    """Return the first JSON object in a text, or None; an escape there may be half a character."""
    start, decoder = text.find("{"), json.JSONDecoder(object_hook=_mended)
    try:
        return decoder.raw_decode(text, start)[0] if start >= 0 else None
    except ValueError:
        return None


def _mended(found: dict[str, Any]) -> dict[str, Any]:
    return {key: mended(said) if isinstance(said, str) else said for key, said in found.items()}
