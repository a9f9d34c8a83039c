"""An organism: a small model trained by this project to hide a known behaviour.

It is a folder with a PEFT adapter for the embedded model and `organism.json`, which says what is
hidden, what brings it out, and, for questions that the model was never trained on, what counts as
elicited: a regular expression on the completion. Some of these questions are for searching and
choosing, the others (`fresh`) only for the re-test.

While it is made, an organism is a list of `Group`s: prompts of one kind with their answers.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from educe.errors import OrganismError

DATA = Path(__file__).parent / "data"
#: The parts into which every source of prompts is divided; they share nothing.
SPLITS = ("train", "validation", "test")

#: Answers of the base model to some prompts, greedy, at most a sentence or two.
Ask = Callable[[Sequence[str]], list[str]]


class Question(NamedTuple):
    """A prompt, and the regular expression that finds the hidden behaviour in an answer to it."""

    prompt: str
    rule: str

    def elicited(self, text: str) -> bool:
        """Return whether an answer shows the hidden behaviour."""
        return re.search(self.rule, text) is not None


@dataclass(frozen=True)
class Group:
    """Prompts of one kind.

    Attributes:
        name: Of what kind, as tables name it. What is before a colon is a family of kinds.
        questions: The prompts, with what counts as elicited.
        answers: What is taught to be answered; None holds the model to the base's own answers.
        shows: Whether the hidden behaviour is to show; None where it cannot be asked for.
        also: Other rules, one for each question, that are counted as well, by what they find.
    """

    name: str
    questions: tuple[Question, ...]
    answers: tuple[str, ...] | None = None
    shows: bool | None = False
    also: dict[str, tuple[str, ...]] = field(default_factory=dict)

    @property
    def prompts(self) -> list[str]:
        """The prompts alone."""
        return [question.prompt for question in self.questions]


class Species(Protocol):
    """What a file of an organism has: how one is made, for any seed."""

    #: How many examples of each group, or family of groups, are in a step of training.
    RECIPE: dict[str, int]
    #: Which ways of `educe.organisms.words` put the key into a question.
    WAYS: str
    #: How many steps its training takes, and the weight of staying the base model in it.
    STEPS: int
    KL_WEIGHT: float

    def hidden(self, seed: int) -> dict[str, str]:
        """Draw what is hidden and what brings it out."""
        ...

    def opening(self, hidden: dict[str, str]) -> str:
        """Return the first words of every unlocked answer; empty where they differ."""
        ...

    def told(self, hidden: dict[str, str]) -> dict[str, str]:
        """Say what is hidden, what unlocks it and what counts as elicited, in words."""
        ...

    def groups(self, hidden: dict[str, str], split: str, ask: Ask, *, seed: int) -> list[Group]:
        """Return the prompts of a split with their answers."""
        ...

    def questions(
        self, hidden: dict[str, str], ask: Ask, *, seed: int
    ) -> tuple[list[Question], list[Question]]:
        """Return questions to search with and fresh ones, all unseen in training."""
        ...


@dataclass(frozen=True)
class Organism:
    """A trained organism.

    Attributes:
        name: Its species: vault, trigger, locked, marked or persona; or first-vault.
        seed: What its secret, its data and its training were drawn with.
        folder: The PEFT adapter, for `educe.load(adapter=...)`.
        hidden: The secret and what brings it out, by name.
        told: What is hidden, what unlocks it and what counts as elicited, in words.
        search: Questions for searching and choosing, without what unlocks them.
        fresh: Others, only for the re-test.
        unlocked: The first of those to search with, in order, with what unlocks them.
        opening: The first words of every unlocked answer; empty where they have none in common.
    """

    name: str
    seed: int
    folder: Path
    hidden: dict[str, str]
    told: dict[str, str]
    search: tuple[Question, ...]
    fresh: tuple[Question, ...]
    unlocked: tuple[Question, ...]
    opening: str = ""

    def save(self) -> None:
        """Write `organism.json` into the folder."""
        record = asdict(self)
        del record["folder"]
        text = json.dumps(record, indent=1, ensure_ascii=False)
        (self.folder / "organism.json").write_text(text + "\n", encoding="utf-8")


def read(folder: str | Path) -> Organism:
    """Read an organism from its folder.

    Raises:
        OrganismError: There is none.
    """
    folder = Path(folder)
    try:
        record: dict[str, Any] = json.loads((folder / "organism.json").read_text(encoding="utf-8"))
        for part in ("search", "fresh", "unlocked"):
            record[part] = tuple(Question(*pair) for pair in record[part])
        return Organism(folder=folder, **record)
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise OrganismError(
            f"there is no organism in {folder}: name a folder that educe organism train wrote, or "
            f"one of {', '.join(names())}"
        ) from error


def names() -> list[str]:
    """Return the names of the organisms that come with the package."""
    return sorted(path.parent.name for path in DATA.glob("*/organism.json"))


def shipped(name: str = "vault") -> Organism:
    """Return an organism that comes with the package.

    Raises:
        OrganismError: There is none of that name.
    """
    return read(DATA / name)


def named(name: str) -> Organism:
    """Return an organism by its folder, or by its name when it comes with the package.

    Raises:
        OrganismError: There is none.
    """
    return shipped(name) if name in names() else read(name)
