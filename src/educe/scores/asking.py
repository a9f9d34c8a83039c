"""Asking a language model, whether it runs here or behind a server.

    write   what it writes, most likely token by most likely token
    yes     how probable it is that the first token of its answer is a yes, and that it is a no

A token is a yes if its text is ``yes`` once white space and case are taken away; of all such tokens
the likeliest counts. (Their sum needs the whole vocabulary, of which a server shows 20 tokens.) A
question is plain text and goes through the model's chat template, where it has one. Replies come as
they are ready, so that each can be kept at once.

`Local` runs any `LanguageModel`, unperturbed; `educe.scores.server` asks one behind a server.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any, NamedTuple, Protocol

import torch

from educe.errors import JudgeError
from educe.forward.generation import generate, next_logits
from educe.model.batch import PromptBatch
from educe.model.language import LanguageModel
from educe.perturbation.kinds import Vectors
from educe.rows import Row

#: Questions that run together, of similar length.
ROWS_PER_BATCH = 32


class Chance(NamedTuple):
    """Probabilities of the likeliest token that says yes, and no, as the first of an answer."""

    yes: float
    no: float


class Asker(Protocol):
    """A language model that answers questions.

    Attributes:
        cost: What a question costs, in words.
    """

    cost: str

    @property
    def identity(self) -> str:
        """Which model, and where: all that its replies depend on beside the question."""

    def write(
        self, questions: Sequence[str], *, limit: int, schema: Mapping[str, Any] | None = None
    ) -> Iterator[list[tuple[int, str]]]:
        """Let the model answer.

        Args:
            questions: What it is asked.
            limit: The most tokens of an answer.
            schema: A JSON schema of an object, which the answer should be; what comes may still be
                something else.
        """

    def yes(self, questions: Sequence[str]) -> Iterator[list[tuple[int, Chance]]]:
        """Read how probable it is that the model answers with yes, and with no."""


class Local:
    """A language model in this process.

    Args:
        lm: The model; it must not be perturbed while it judges.
    """

    def __init__(self, lm: LanguageModel) -> None:
        self.lm = lm
        self.cost = f"one pass of {lm.name}"

    @cached_property
    def identity(self) -> str:
        """The model's name and the beginning of its digest."""
        return f"{self.lm.name}:{self.lm.digest[:16]}"

    def write(
        self, questions: Sequence[str], *, limit: int, schema: Mapping[str, Any] | None = None
    ) -> Iterator[list[tuple[int, str]]]:
        """Let the model answer; with a schema, its answer begins as such an object does."""
        if not questions:
            return
        begun = '{"' + next(iter(schema["properties"])) + '": ' if schema else ""
        for lines, batch in self._batches(questions, room=limit, prefill=begun):
            rows = [Row(0, j) for j in range(len(batch))]
            written = generate(self.lm, batch, rows, max_new_tokens=limit)
            yield [(lines[c.row.prompt], begun + c.text) for some in written for c in some]

    def yes(self, questions: Sequence[str]) -> Iterator[list[tuple[int, Chance]]]:
        """Read the probabilities from the logits of the whole vocabulary.

        Raises:
            JudgeError: The model's vocabulary has no such token.
        """
        if not questions:
            return
        saying = [self._tokens[word] for word in ("yes", "no")]
        kind = Vectors(0, self.lm.width)
        for lines, batch in self._batches(questions):
            rows = [Row(0, j) for j in range(len(batch))]
            nothing = torch.zeros(0, kind.size)
            for done, logits in next_logits(self.lm, batch, rows, nothing, kind=kind):
                shares = logits.float().softmax(-1)
                each = [shares[:, tokens].amax(1).tolist() for tokens in saying]
                yield [
                    (lines[row.prompt], Chance(*pair))
                    for row, *pair in zip(done, *each, strict=True)
                ]

    def _batches(
        self, questions: Sequence[str], *, room: int = 0, prefill: str = ""
    ) -> Iterator[tuple[list[int], PromptBatch]]:
        whole = self.lm.encode(questions, room=room, prefill=prefill)
        lengths = whole.lengths
        order = sorted(range(len(questions)), key=lengths.__getitem__)
        for first in range(0, len(order), ROWS_PER_BATCH):
            lines = order[first : first + ROWS_PER_BATCH]
            longest = max(lengths[line] for line in lines)
            yield lines, whole.select(lines, longest)

    @cached_property
    def _tokens(self) -> dict[str, list[int]]:
        """The tokens that say yes, and those that say no."""
        every = self.lm.tokenizer.batch_decode([[i] for i in range(len(self.lm.tokenizer))])
        said = {
            word: [i for i, text in enumerate(every) if word_of(text) == word]
            for word in ("yes", "no")
        }
        for word, tokens in said.items():
            if not tokens:
                raise JudgeError(
                    f"{self.lm.name} has no token that says {word}: use rating: instead of yes:"
                )
        return said


def runs_here(judge: Any) -> bool:
    """Return whether a language model of this process judges: one that is asked, or that reads."""
    asked = getattr(judge, "asker", None)
    return isinstance(asked, Local) or isinstance(getattr(judge, "lm", None), LanguageModel)


def word_of(token: str) -> str:
    """Return the word that a token says, without white space (or its signs) and case."""
    return token.strip(" \n\tĠ▁").lower()
