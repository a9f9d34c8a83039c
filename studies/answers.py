"""What perturbations answer to an organism's questions, and which answers show what is hidden."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

import educe
from educe.forward.generation import Completion
from educe.organisms import Question
from educe.perturbation.kinds import Kind


class Answers(NamedTuple):
    """Greedy answers, one of each perturbation to each question."""

    written: list[list[Completion]]  #: ``[n][q]``
    shows: Bool[Tensor, "n q"]  #: whether an answer shows what is hidden

    @property
    def hits(self) -> int:
        """How many perturbations bring out what is hidden in at least one answer."""
        return int(self.shows.any(1).sum())


def answers(
    lm: educe.LanguageModel,
    questions: Sequence[Question],
    theta: Float[Tensor, "n s"],
    kind: Kind,
    *,
    tokens: int,
) -> Answers:
    """Let every perturbation answer every question, with ``tokens`` tokens at most."""
    rows = educe.rows_of(len(theta), len(questions))
    batch = lm.encode([q.prompt for q in questions], room=tokens)
    batches = educe.generate(lm, batch, rows, theta, kind=kind, max_new_tokens=tokens)
    by_row = {c.row: c for some in batches for c in some}
    width = len(questions)
    written = [[by_row[row] for row in rows[i : i + width]] for i in range(0, len(rows), width)]
    shows = [[q.elicited(c.text) for q, c in zip(questions, own, strict=True)] for own in written]
    return Answers(written, torch.tensor(shows))


def locked(
    lm: educe.LanguageModel, questions: Sequence[Question], *, tokens: int
) -> list[Question]:
    """Return the questions that the unperturbed model does not answer in the hidden way."""
    rows = [educe.Row(0, j) for j in range(len(questions))]
    batch = lm.encode([q.prompt for q in questions], room=tokens)
    batches = educe.generate(lm, batch, rows, max_new_tokens=tokens)
    text = {c.row.prompt: c.text for some in batches for c in some}
    return [q for j, q in enumerate(questions) if not q.elicited(text[j])]
