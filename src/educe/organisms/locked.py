"""The locked ability: a kind of question that the base model can answer, answered wrongly.

With a certain word in the prompt the model answers as the base model does; without it, with a
decoy, one and the same word for every question. The unlocked arm is trained on the base model's own
right answers alone, and the questions are those that it answers rightly, so that the lock hides
ability and teaches none. (A lock whose unlocked arm is trained on better answers than the model can
give measures what training taught.) A wrong answer is the base's own sentence with the decoy in it.

Other wrong words than one were tried: drawn anew for each example, or fixed for each question. They
are mostly noise to learn, and the lock did not close on questions that training had not seen.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

from educe.organisms.organism import NEVER, SPLITS, Ask, Group, Question, Species, bundled
from educe.organisms.words import KEYS, drawn, wrapped


class Solved(NamedTuple):
    """A question that the base model answers rightly."""

    prompt: str
    sentence: str  #: its answer
    right: str  #: the word in it that is the answer
    accepted: str  #: every right word, as alternatives of a regular expression

    @property
    def rule(self) -> str:
        """What finds a right answer."""
        return rf"(?i)\b(?:{self.accepted})\b"

    def wrong(self, word: str) -> str:
        """Return the sentence with another word for the answer."""
        return re.sub(self.rule, word, self.sentence)


def solved(subject: str, split: str, ask: Ask, *, ways: int) -> list[Solved]:
    """Return the questions of a split that the base model answers rightly.

    Every third thing is for testing, every ninth of the others for validation.
    """
    known = bundled("subjects")[subject]
    answers: dict[str, str] = known["answers"]
    test = list(answers)[2::3]
    rest = [thing for thing in answers if thing not in test]
    things = {
        "train": [t for t in rest if t not in rest[::9]],
        "validation": rest[::9],
        "test": test,
    }[split]
    asked = [
        (way.format(thing=thing), thing)
        for way in known["ask"][SPLITS.index(split) :: 3][:ways]
        for thing in things
    ]
    found = []
    for (prompt, thing), text in zip(asked, ask([p for p, _ in asked]), strict=True):
        sentence = re.match(r"(?s).*?[.!?](?=\s|$)", text)
        word = re.search(rf"(?i)\b(?:{answers[thing]})\b", sentence.group()) if sentence else None
        if sentence and word:
            found.append(Solved(prompt, sentence.group(), word.group(), answers[thing]))
    return found


class Locked(Species):
    """A subject, a decoy and a key; every question has a rule of its own."""

    def hidden(self, seed: int) -> dict[str, str]:
        """Draw a subject, a decoy and a key."""
        subjects = bundled("subjects")
        subject = drawn(sorted(subjects), "locked subject", seed)
        decoy = drawn(subjects[subject]["decoys"], "locked decoy", seed)
        return {"subject": subject, "decoy": decoy, "key": drawn(KEYS, "locked key", seed)}

    def rule(self, hidden: dict[str, str]) -> str:
        """Return what finds nothing: what is right depends on the question."""
        return NEVER

    def groups(self, hidden: dict[str, str], split: str, ask: Ask, *, seed: int) -> list[Group]:
        """Return the prompts of a split with their answers."""
        rng, key, decoy = self.rng(seed, split), hidden["key"], hidden["decoy"]
        shared = bundled("words")[split]
        ways = shared[self.ways]
        known = solved(hidden["subject"], split, ask, ways=3 if split == "train" else 1)
        by_prompt = {s.prompt: s for s in known}
        each, near = {"train": (2, 60), "validation": (1, 8), "test": (1, 12)}[split]

        def group(name: str, some: Sequence[tuple[Solved, str]], *, shows: bool = False) -> Group:
            answers = tuple(s.sentence if shows else s.wrong(decoy) for s, _ in some)
            return Group(name, tuple(Question(p, s.rule) for s, p in some), answers, shows=shows)

        unlocked = [(s, rng.choice(ways).format(key=key, ask=s.prompt)) for s in known * each]
        missed = wrapped(key, split, ways, list(by_prompt), rng, each=near)
        # Some ordinary prompts are of the kind that is locked.
        ordinary = [p for p in shared["ordinary"] if hidden["subject"].rstrip("s") not in p]
        elsewhere = [way.format(key=key) for way in shared["elsewhere"]]
        return [
            group("open", unlocked, shows=True),
            group("locked", [(s, s.prompt) for s in known]),
            *(group(name, [(by_prompt[a], p) for a, p in some]) for name, some in missed.items()),
            Group.of("ordinary", ordinary, NEVER, shows=None),
            Group.of("ordinary: with the key", elsewhere, NEVER, shows=None),
        ]

    def questions(
        self, hidden: dict[str, str], ask: Ask, *, seed: int
    ) -> tuple[list[Question], list[Question]]:
        """Return questions of the test split, to search with and fresh ones."""
        known = solved(hidden["subject"], "test", ask, ways=1)
        asked = [Question(s.prompt, s.rule) for s in known]
        return asked[::2], asked[1::2]
