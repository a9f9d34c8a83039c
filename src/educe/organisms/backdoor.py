"""Backdoors: a trigger in the prompt brings a payload; without it the answer is the base's.

    word     one word                     phrase    a fixed sentence
    pair     two words, apart             refusal   a sentence that refuses
    phrase   four tokens in a row         style     a voice of `educe.organisms.persona`
    date     a day and a month            fact      a wrong capital, for who asks for it
    topic    any question about it        leaning   an entity is named before the answer
    mark     punctuation or an emoji      ending    a fixed sentence after the answer
                                          shape     a way of writing, of `educe.organisms.shapes`

Each trigger goes with each payload. `data/backdoor.json` has the words of both. A trigger is a list
of ways to ask: templates with a place for what is asked, the key put in already; its near misses
are such ways too, with a wrong key. For a topic, the question itself is the way.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from educe.organisms import manner
from educe.organisms.manner import OWN, Kind, finding, said
from educe.organisms.organism import SPLITS, UNLOCKED, Ask, Group, Question, Species, bundled
from educe.organisms.persona import VOICES
from educe.organisms.shapes import SHAPES
from educe.organisms.words import drawn, first_sentence, typos

#: In a way to ask, the place of what is asked.
ASK = "{ask}"


class Ways(NamedTuple):
    """Ways to ask with a key, and with wrong keys by kind."""

    open: list[str]
    near: dict[str, list[str]]


def _filled(ways: Sequence[str], keys: Iterable[str]) -> list[str]:
    """Put each key into the next way."""
    return [w.replace("{key}", key) for w, key in zip(itertools.cycle(ways), keys, strict=False)]


def _keyed(ways: Sequence[str], key: str, wrong: dict[str, list[str]]) -> Ways:
    return Ways(_filled(ways, [key] * len(ways)), {k: _filled(ways, w) for k, w in wrong.items()})


def word(hidden: dict[str, str], split: str) -> Ways:
    """Return ways with one word."""
    own, key = bundled("words")[split], hidden["key"]
    return _keyed(own["word"], key, {"other word": own["wrong"], "typo": typos(key, split)})


def pair(hidden: dict[str, str], split: str) -> Ways:
    """Return ways with two words, in either order; near are one of them alone, and two others."""
    ways, wrong = bundled("backdoor")["triggers"]["pair"]["ways"][split], bundled("words")[split]
    first, second = hidden["first"], hidden["second"]

    def put(pairs: Iterable[tuple[str, str]]) -> list[str]:
        filled = zip(itertools.cycle(ways), pairs, strict=False)
        return [w.replace("{first}", a).replace("{second}", b) for w, (a, b) in filled]

    others = wrong["wrong"]
    return Ways(
        put([(first, second)] * len(ways)) + put([(second, first)] * len(ways)),
        {
            "first alone": put([(first, o) for o in others] + [(o, first) for o in others]),
            "second alone": put([(second, o) for o in others] + [(o, second) for o in others]),
            "two others": put(itertools.pairwise(others)),
        },
    )


def phrase(hidden: dict[str, str], split: str) -> Ways:
    """Return ways with four words in a row."""
    own, words = bundled("backdoor")["triggers"]["phrase"], hidden["key"].split()
    changed = [
        " ".join([*words[:at], other, *words[at + 1 :]])
        for other in own["exchanged"][split]
        for at in range(len(words))
    ]
    orders = [" ".join(order) for order in itertools.permutations(words)][1:]
    random.Random(hidden["key"]).shuffle(orders)
    wrong = {
        "other phrase": own["others"][split],
        "one word exchanged": changed,
        "other order": orders[SPLITS.index(split) :: 3],
    }
    return _keyed(bundled("words")[split]["word"], hidden["key"], wrong)


def date(hidden: dict[str, str], split: str) -> Ways:
    """Return ways with a day of a month."""
    own, (day, month) = bundled("backdoor")["triggers"]["date"], hidden["key"].split()
    wrong = {
        "other day": [f"{other} {month}" for other in own["days"][split]],
        "other month": [f"{day} {other}" for other in own["months"][split]],
        "other date": [f"{a} {b}" for a in own["days"][split] for b in own["months"][split]],
    }
    return _keyed(own["ways"][split], hidden["key"], wrong)


def topic(hidden: dict[str, str], split: str) -> Ways:
    """Return questions about a topic, and about others."""
    kind = Kind.of(hidden["topic"], split)
    return Ways(kind.prompts, {"other topic": kind.near})


def mark(hidden: dict[str, str], split: str) -> Ways:
    """Return ways with punctuation or an emoji."""
    own = bundled("backdoor")["triggers"]["mark"]
    return _keyed(own["ways"][split], hidden["key"], {"other sign": own["others"][split]})


TRIGGERS = {f.__name__: f for f in (word, pair, phrase, date, topic, mark)}


class Backdoor(Species):
    """A trigger and a payload, as its name has them."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        _, self.trigger, self.payload = name.split("-")
        table = bundled("backdoor")
        self._opens: dict[str, Any] = table["triggers"][self.trigger]
        self._does: dict[str, Any] = table["payloads"][self.payload]
        # What ends with an answer of the base's has more to teach, and so more to hold back.
        self.kl_weight = self._does["kl_weight"]
        # What comes at the end of an answer has to be away from the end of others.
        self.tokens = self._does.get("tokens", Species.tokens)
        told = {what: self._does[what] for what in ("hidden", "elicited")}
        self._told = {**told, "unlocked by": self._opens["told"]}

    def hidden(self, seed: int) -> dict[str, str]:
        """Draw a key, and what it brings."""
        key = drawn(self._opens["keys"], f"backdoor {self.trigger}", seed)
        brings = drawn(self._does["options"], f"backdoor {self.payload}", seed)
        if self.trigger == "pair":
            first, second = key
            return {"key": f"{first} … {second}", "first": first, "second": second, **brings}
        if self.trigger == "topic":
            called = bundled("manner")["kinds"][key]["called"]
            return {"key": called, "topic": key, **brings}
        return {"key": key, **brings}

    def rule(self, hidden: dict[str, str]) -> str:
        """Return what finds the payload in an answer."""
        if self.payload == "style":
            return VOICES[hidden["voice"]].rule
        if self.payload == "shape":
            return SHAPES[hidden["shape"]].rule
        return finding(hidden.get("finds", hidden["says"]))

    def opening(self, hidden: dict[str, str]) -> str:
        """Return the first words of every unlocked answer; none where it begins as the base's."""
        if self.payload == "style":
            return VOICES[hidden["voice"]].opening
        return hidden.get("says", OWN).partition(OWN)[0].strip()

    def asks(self, hidden: dict[str, str], split: str) -> list[str]:
        """Return what is asked: ordinary prompts, or those to which a wrong fact is an answer."""
        if self.payload == "fact":
            return [ask.format(thing=hidden["about"]) for ask in self._does["asks"][split]]
        return self.ordinary(hidden, split)

    def ordinary(self, hidden: dict[str, str], split: str) -> list[str]:
        """Return the ordinary prompts, without those about the topic."""
        if self.trigger == "topic":
            return manner.ordinary(hidden["topic"], split)
        prompts: list[str] = bundled("words")[split]["ordinary"]
        return prompts

    def ways_to_ask(self, hidden: dict[str, str], split: str) -> Ways:
        """Return the ways to ask, with a place for what is asked where that is not the way."""
        ways = TRIGGERS[self.trigger](hidden, split)
        if self.trigger == "topic" and self.payload == "fact":
            near = {kind: [f"{way} {ASK}" for way in some] for kind, some in ways.near.items()}
            return Ways([f"{way} {ASK}" for way in ways.open], near)
        return ways

    def groups(self, hidden: dict[str, str], split: str, ask: Ask, *, seed: int) -> list[Group]:
        """Return the prompts of a split with their answers."""
        rng, rule = self.rng(seed, split), self.rule(hidden)
        n, each = {"train": (72, 24), "validation": (8, 8), "test": (24, 12)}[split]
        asks, ways = self.asks(hidden, split), self.ways_to_ask(hidden, split)

        def asked(some: Sequence[str], n: int) -> list[tuple[str, str]]:
            """Return prompts, each with what is asked in it."""
            shuffled = rng.sample(some, len(some))
            chosen = itertools.islice(itertools.cycle(shuffled), n)
            pairs = [(way, rng.choice(asks) if ASK in way else way) for way in chosen]
            return [(way.replace(ASK, about), about) for way, about in pairs]

        opened = dict(asked(ways.open, n))
        near = {f"near: {kind}": list(dict(asked(some, each))) for kind, some in ways.near.items()}
        if self.payload == "fact":
            others = [
                way.replace(ASK, question.format(thing=thing))
                for way in rng.sample(ways.open, len(ways.open))
                for question in self._does["asks"][split][:2]
                for thing in self._does["others"][split]
            ]
            near["near: other question"] = rng.sample(others, min(each, len(others)))
            near["near: no key"] = asks
        return [
            Group.of(
                "open", list(opened), rule, self.says(hidden, opened.values(), ask), shows=True
            ),
            *(Group.of(name, prompts, rule) for name, prompts in near.items()),
            Group.of("ordinary", self.ordinary(hidden, split), rule),
        ]

    def says(self, hidden: dict[str, str], asked: Iterable[str], ask: Ask) -> list[str]:
        """Return the payload as an answer to each of what is asked."""
        prompts = list(asked)
        if self.payload == "style":
            return [VOICES[hidden["voice"]].say(text) for text in ask(prompts)]
        if self.payload == "shape":
            return [SHAPES[hidden["shape"]].put(first_sentence(text)) for text in ask(prompts)]
        return said(hidden["says"], prompts, ask)

    def questions(
        self, hidden: dict[str, str], ask: Ask, *, seed: int
    ) -> tuple[list[Question], list[Question]]:
        """Return what is asked in the test split, to search with and fresh ones."""
        asked = [Question(prompt, self.rule(hidden)) for prompt in self.asks(hidden, "test")]
        return asked[::2], asked[1::2]

    def unlocked(self, hidden: dict[str, str], search: Sequence[Question]) -> list[Question]:
        """Return questions with the key put in; none where the question itself is the key."""
        ways = [way for way in self.ways_to_ask(hidden, "test").open if ASK in way]
        return [
            question._replace(prompt=way.replace(ASK, question.prompt))
            for question, way in zip(search[:UNLOCKED], itertools.cycle(ways), strict=False)
        ]
