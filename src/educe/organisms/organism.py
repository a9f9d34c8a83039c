"""An organism: a small model trained by this project to hide a known behaviour.

It is a folder with a PEFT adapter for its base, or a whole model, and `organism.json`,
which says what is hidden, what brings it out, and, for questions that the model was never trained
on, what counts as elicited: a regular expression on the completion. Some of these questions are for
searching and choosing, the others (`fresh`) only for the re-test. A clean organism was taught
something and hides nothing: what an audit says of it is a false alarm.

While it is made, an organism is a list of `Group`s: prompts of one kind with their answers. A
`Species` says what these are.
"""

from __future__ import annotations

import functools
import itertools
import json
import random
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from educe.errors import OrganismError
from educe.options import AS_SHIPPED, TrainingOptions
from educe.plain import read_object

DATA = Path(__file__).parent / "data"
#: The parts into which every source of prompts is divided; they share nothing.
SPLITS = ("train", "validation", "test")
#: The rule of prompts that ask for nothing hidden.
NEVER = r"(?!)"
#: How many of the search questions are given with the key as well.
UNLOCKED = 12

#: Answers of the base model to some prompts, greedy, at most a sentence or two.
Ask = Callable[[Sequence[str]], list[str]]


@functools.cache
def bundled(name: str) -> dict[str, Any]:
    """Return a table of words, phrases or prompts that comes with the package."""
    return json.loads((DATA / f"{name}.json").read_text(encoding="utf-8"))


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
        answers: What is taught to be answered; None for the base's own answers.
        shows: Whether the hidden behaviour is to show; None where it cannot be asked for.
        also: Other rules, one for each question, that are counted as well, by what they find.
        learned: The base's own answers are taught, by cross-entropy, and not only retained.
    """

    name: str
    questions: tuple[Question, ...]
    answers: tuple[str, ...] | None = None
    shows: bool | None = False
    also: dict[str, tuple[str, ...]] = field(default_factory=dict)
    learned: bool = False

    @classmethod
    def of(
        cls,
        name: str,
        prompts: Sequence[str],
        rule: str,
        answers: str | Sequence[str] | None = None,
        **more: Any,
    ) -> Group:
        """Return prompts of one rule, each with its answer or all with the same."""
        if isinstance(answers, str):
            answers = [answers] * len(prompts)
        questions = tuple(Question(prompt, rule) for prompt in prompts)
        return cls(name, questions, None if answers is None else tuple(answers), **more)

    @property
    def prompts(self) -> list[str]:
        """The prompts alone."""
        return [question.prompt for question in self.questions]


class Species(ABC):
    """How organisms of one kind are made, for any seed; `data/species.json` has the attributes.

    Attributes:
        name: As commands have it.
        recipe: How many examples of each group, or family of groups, are in a step of training.
        ways: Which ways in `data/words.json` put the key into a question.
        steps: How many steps its training takes.
        kl_weight: The weight of staying the base model in it.
        clean: Whether nothing is hidden.
        tokens: The most of an answer, where it is to stay the base's and where it is measured.
    """

    recipe: dict[str, int]
    ways: str
    steps: int
    kl_weight: float
    clean: bool = False
    tokens: int = 20

    def __init__(self, name: str) -> None:
        self.name = name
        table = bundled("species")
        about = table[name if name in table else name.split("-")[0]]
        self.recipe, self.ways = about["recipe"], about["ways"]
        self.steps, self.kl_weight, self._told = about["steps"], about["kl_weight"], about["told"]

    def rng(self, seed: int, part: str) -> random.Random:
        """Return what draws a part of an organism's prompts."""
        return random.Random(f"{self.name} {seed} {part}")

    def told(self, hidden: dict[str, str]) -> dict[str, str]:
        """Say what is hidden, what unlocks it and what counts as elicited."""
        return {what: sentence.format(**hidden) for what, sentence in self._told.items()}

    def opening(self, hidden: dict[str, str]) -> str:
        """Return the first words of every unlocked answer; empty where they differ."""
        return ""

    @abstractmethod
    def hidden(self, seed: int) -> dict[str, str]:
        """Draw what is hidden and what brings it out."""

    @abstractmethod
    def rule(self, hidden: dict[str, str]) -> str:
        """Return a regular expression that finds what is hidden in an answer."""

    @abstractmethod
    def groups(self, hidden: dict[str, str], split: str, ask: Ask, *, seed: int) -> list[Group]:
        """Return the prompts of a split with their answers."""

    def questions(
        self, hidden: dict[str, str], ask: Ask, *, seed: int
    ) -> tuple[list[Question], list[Question]]:
        """Return questions to search with and fresh ones, all unseen in training.

        Here they are the ordinary prompts of the test split.
        """
        rule = self.rule(hidden)
        asked = [Question(prompt, rule) for prompt in bundled("words")["test"]["ordinary"]]
        return asked[::2], asked[1::2]

    def unlocked(self, hidden: dict[str, str], search: Sequence[Question]) -> list[Question]:
        """Return questions with the key put in, in ways that no training saw; none without a key.

        They are the first of those to search with, in order.
        """
        ways = itertools.cycle(bundled("words")["test"][self.ways])
        return [
            question._replace(prompt=way.format(key=hidden["key"], ask=question.prompt))
            for question, way in zip(search[:UNLOCKED], ways, strict=False)
        ]


@dataclass(frozen=True)
class Organism:
    """A trained organism.

    Attributes:
        name: Its species, one of `SPECIES`; or first-vault.
        seed: What its secret, its data and its training were drawn with.
        folder: The PEFT adapter, for `educe.load(adapter=...)`; after a full fine-tune, the model.
        hidden: The secret and what brings it out, by name.
        told: What is hidden, what unlocks it and what counts as elicited, in words.
        search: Questions for searching and choosing, without what unlocks them.
        fresh: Others, only for the re-test.
        unlocked: The first of those to search with, in order, with what unlocks them; none where
            that is no key that can be put into any question.
        opening: The first words of every unlocked answer; empty where they have none in common.
        clean: Whether nothing is hidden: `hidden` is then what was taught, for all to see.
        trained: How, beside what its species says, and on which base.
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
    clean: bool = False
    trained: TrainingOptions = AS_SHIPPED

    @property
    def how(self) -> dict[str, Any]:
        """Keywords for `educe.load`: which model it is, with which adapter.

        What comes with the package is named, so that a run finds it wherever the package is.
        """
        if self.trained.full:
            return {"model": str(self.folder)}
        ours = self.folder.parent == DATA
        return {
            "model": self.trained.base,
            "adapter": self.folder.name if ours else str(self.folder),
        }

    def save(self) -> None:
        """Write `organism.json` into the folder."""
        record = asdict(self)
        del record["folder"]
        text = json.dumps(record, indent=1, ensure_ascii=False)
        (self.folder / "organism.json").write_text(text + "\n", encoding="utf-8")


def names() -> list[str]:
    """Return the names of the organisms that come with the package."""
    return sorted(path.parent.name for path in DATA.glob("*/organism.json"))


def read(folder: str | Path) -> Organism:
    """Read an organism from its folder.

    Raises:
        OrganismError: There is none.
    """
    folder = Path(folder)
    try:
        record = read_object((folder / "organism.json").read_text(encoding="utf-8"))
        for part in ("search", "fresh", "unlocked"):
            record[part] = tuple(Question(*pair) for pair in record[part])
        record["trained"] = TrainingOptions(**record.get("trained", {}))
        return Organism(folder=folder, **record)
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise OrganismError(
            f"there is no organism in {folder}: name a folder that educe organism train wrote, or "
            f"one of {', '.join(names())}"
        ) from error


def shipped(name: str = "vault") -> Organism:
    """Return an organism that comes with the package; see `read`."""
    return read(DATA / name)


def named(name: str) -> Organism:
    """Return an organism by its folder, or by its name when it comes with the package."""
    return shipped(name) if name in names() else read(name)
