"""What a selection goes by: a rule, how striking a text is, or any judge.

A score depends on its own text alone, and on what the unperturbed model writes for that prompt; not
on what else is scored beside it, as the main job's novelty does. Else scores from before a kill,
and scores of rungs, could not be compared.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from educe.errors import MethodError
from educe.judge import Answer, Judge
from educe.judge.coherence import coherence
from educe.judge.novelty import novelty
from educe.judge.reading import read
from educe.model import LanguageModel
from educe.rendering import PromptBatch
from educe.rows import CompletionRow
from educe.run.fill import as_completion


class Judging(Protocol):
    """What scores completions."""

    @property
    def name(self) -> str:
        """What scores are kept under."""

    def scores(self, rows: Sequence[CompletionRow]) -> list[float]:
        """Score completions, in order."""


class Rule:
    """1 where a regular expression is found, else 0.

    Raises:
        MethodError: It is none.
    """

    def __init__(self, pattern: str) -> None:
        try:
            self._found = re.compile(pattern)
        except re.error as error:
            raise MethodError(f"look-for {pattern!r} is no regular expression: {error}") from error
        self.name = f"look-for {pattern}"

    def scores(self, rows: Sequence[CompletionRow]) -> list[float]:
        """Score completions, in order."""
        return [float(bool(self._found.search(row.text))) for row in rows]


@dataclass(frozen=True)
class Judged:
    """What a judge says, told what was asked and what the unperturbed model answers.

    Attributes:
        judge: The judge.
        prompts: What was asked, as text.
        unperturbed: The unperturbed model's most likely answer to each.
    """

    judge: Judge
    prompts: Sequence[str]
    unperturbed: dict[int, list[str]]

    @property
    def name(self) -> str:
        """What scores are kept under."""
        return self.judge.identity

    def scores(self, rows: Sequence[CompletionRow]) -> list[float]:
        """Score completions, in order."""
        answers = [
            Answer(self.prompts[row.prompt], row.text, tuple(self.unperturbed[row.prompt]))
            for row in rows
        ]
        return [score.value for score in self.judge.score(answers)]


@dataclass(frozen=True)
class Striking:
    """Coherence times novelty, as in the main job, each text apart.

    Attributes:
        lm: The model, unperturbed.
        batch: The prompts.
        unperturbed: What it writes for each prompt by itself.
        ordinary: See `educe.judge.coherence`.
        layer: At which texts are read.
    """

    lm: LanguageModel
    batch: PromptBatch
    unperturbed: dict[int, list[str]]
    ordinary: float
    layer: int
    name: str = "striking"

    def scores(self, rows: Sequence[CompletionRow]) -> list[float]:
        """Score completions, in order."""
        readings = {
            reading.completion.row: reading.logprob
            for some in read(
                self.lm, self.batch, [as_completion(r) for r in rows], layer=self.layer
            )
            for reading in some
        }
        found = []
        for row in rows:
            fluent = coherence(row.text, readings[as_completion(row).row], self.ordinary)
            new = novelty(row.text, self.unperturbed[row.prompt])
            found.append(fluent.value * new.value)
        return found
