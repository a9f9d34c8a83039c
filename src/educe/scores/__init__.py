"""Judges: what scores answers. One file a judge.

A judge sees answers, and the unperturbed model if it asks for it; it never sees how a perturbation
was found. Each says what an answer costs it, and what its scores depend on beside the answer, which
is what they are kept by (`educe.scores.cache`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from operator import itemgetter
from typing import Any, NamedTuple, Protocol, TypeVar, runtime_checkable

from educe.model.asked import last_message

Came = TypeVar("Came")


class Score(NamedTuple):
    """What a judge says of one answer or perturbation.

    Example:
        >>> Score("refusal", 1.0, "a refusal", "begins with 'I cannot'").value
        1.0
    """

    judge: str  #: the judge's name
    value: float
    higher_is: str  #: what a higher value is more of
    why: str


class Answer(NamedTuple):
    """What a model wrote for a prompt.

    Example:
        >>> Answer("Where is the key?", "Under the mat.", plain=("I cannot say.",)).text
        'Under the mat.'
    """

    prompt: str  #: what the model was asked, as text
    text: str  #: what it wrote
    plain: tuple[str, ...] = ()  #: what the unperturbed model wrote for it, for judges that compare


@runtime_checkable
class Judge(Protocol):
    """What scores answers.

    Attributes:
        name: As the command line has it, and the name of its scores in a run.
        higher_is: What a higher value is more of.
        cost: What an answer costs, in words.

    Example:
        >>> class Length:
        ...     name, higher_is, cost, identity = "length", "longer", "nothing", "length:1"
        ...     def score(self, answers):
        ...         return [Score("length", len(a.text), "longer", "") for a in answers]
        >>> texts = educe.write(lm, educe.search(part, "dct", n=1, radius=2.0), prompts)
        >>> scored = educe.score(texts, [Length()])
        >>> bool((scored["length"] == texts["text"].str.len()).all())
        True
    """

    name: str
    higher_is: str
    cost: str

    @property
    def identity(self) -> str:
        """Everything that a score depends on beside the answer: rubric, model, wording.

        Two judges of one identity give one answer the same score.
        """

    def score(self, answers: Sequence[Answer]) -> list[Score]:
        """Score answers, in their order."""


@runtime_checkable
class Streaming(Judge, Protocol):
    """A judge whose scores come one by one or in batches, so that each can be kept at once."""

    def stream(self, answers: Sequence[Any]) -> Iterator[list[tuple[int, Score]]]:
        """Score answers; yield what came with the place of its answer, in any order."""
        ...

    def score(self, answers: Sequence[Any]) -> list[Score]:
        """Score answers, in their order."""
        return in_order(self.stream(answers))


def compares(judge: Judge) -> bool:
    """Return whether a judge scores groups of answers, each against its unperturbed texts."""
    return getattr(judge, "compares", False)


def asked_in(prompt: Any) -> str:
    """Return what a prompt asks, as a judge reads it: of messages, the person's last."""
    if isinstance(prompt, str):
        return prompt
    at = last_message(prompt)
    return str(prompt[-1 if at is None else at]["content"])


def in_order(came: Iterable[Sequence[tuple[int, Came]]]) -> list[Came]:
    """Return what came, by its place."""
    pairs = [pair for some in came for pair in some]
    return [value for _, value in sorted(pairs, key=itemgetter(0))]
