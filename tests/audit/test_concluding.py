"""What a candidate is, by its re-test; and how often null funnels raise an alarm."""

from __future__ import annotations

import random
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from educe.audit import concluding
from educe.audit.candidates import Candidate, Said, candidates
from educe.audit.concluding import alarm, kind_of
from educe.audit.evidence import Word, stretch
from educe.audit.findings import Kind, Trigger
from educe.audit.manners import UNLIKE
from educe.audit.retest import Again
from educe.comparison.stats import Rate, rate
from educe.rows import Row

NONE = rate(0, 0)


def candidate(root: int = 0) -> Candidate:
    said = Said(Row(0, 7), root, "weights", "granite", (Word("otters", 9.0),))
    return Candidate(("otters",), ("otters",), 40.0, (said,), 2, 0.0)


def again(shown: Rate, plain: Rate, control: Rate, *, string: bool = False) -> Again:
    found = (Trigger("granite", shown, rate(0, 8), rate(0, 8)),) if string else ()
    return Again(shown, plain, control, found)


@pytest.mark.parametrize(
    ("shown", "plain", "control", "string", "closed", "kind"),
    [
        (rate(6, 6), rate(0, 6), rate(0, 6), True, False, Kind.TRIGGER),
        (rate(2, 6), rate(0, 6), rate(0, 6), True, False, Kind.BEHAVIOUR),  # too seldom to be one
        (rate(3, 24), rate(0, 4), rate(0, 24), False, True, Kind.WITHHELD),
        (rate(3, 24), rate(0, 4), rate(0, 24), False, False, Kind.BEHAVIOUR),
        (rate(3, 24), rate(0, 4), NONE, False, False, Kind.BEHAVIOUR),  # without a reference
        (rate(1, 24), rate(0, 4), rate(0, 24), False, True, Kind.ASIDE),  # once is no time
        (rate(6, 6), rate(6, 6), rate(0, 6), True, False, Kind.OPEN),  # it says so by itself
        (rate(6, 6), rate(6, 6), NONE, True, False, Kind.ASIDE),  # and perhaps any model does
        (rate(6, 24), rate(0, 6), rate(5, 24), False, False, Kind.ASIDE),  # so does the reference
    ],
)
def test_what_a_candidate_is(
    shown: Rate, plain: Rate, control: Rate, string: bool, closed: bool, kind: Kind
) -> None:
    came = again(shown, plain, control, string=string)
    assert kind_of(candidate(), came, {0} if closed else set()) is kind


@pytest.mark.parametrize(
    ("shown", "control", "kind"),
    [
        (rate(4, 4), rate(0, 4), Kind.TRIGGER),
        (rate(3, 4), rate(0, 4), Kind.TRIGGER),  # 3 of 4 against 0 of 8: 4 in 220 by chance
        (rate(2, 4), rate(0, 4), Kind.ASIDE),  # 6 in 66: enough for words, not for a manner
    ],
)
def test_of_a_manner_chance_is_excluded(shown: Rate, control: Rate, kind: Kind) -> None:
    loud = replace(candidate(), saying=("[in capital letters]",), core=("[in capital letters]",))
    came = again(shown, rate(0, 4), control, string=True)
    assert kind_of(loud, came, set()) is kind
    assert kind_of(candidate(), came, set()) is Kind.TRIGGER


def test_a_manner_is_nothing_that_is_withheld() -> None:
    loud = replace(candidate(), saying=("[in capital letters]",), core=("[in capital letters]",))
    came = again(rate(12, 24), rate(0, 24), rate(0, 24))
    assert kind_of(loud, came, {0}) is Kind.BEHAVIOUR


def bare(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return an audit that has nothing to show beside its findings."""
    for name in ("shown", "examples"):
        monkeypatch.setattr(concluding, name, lambda *args: [None])
    monkeypatch.setattr(concluding, "reproduce", lambda *args: "")
    return SimpleNamespace(options=SimpleNamespace(budget="quick"), reference=object(), closed=[])


@pytest.mark.parametrize(
    ("string", "unlocks", "grown"),
    [
        (True, False, [True, False, False]),
        (False, False, [True, True, True]),
        (False, True, [False, False]),  # the first is open, and is not tried again
    ],
)
def test_phrases_are_grown_until_a_string_is_known(
    string: bool, unlocks: bool, grown: list[bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[bool] = []

    def retested(audit: Any, candidate: Candidate, *, grow: bool) -> Again:
        asked.append(grow)
        return again(rate(6, 6), rate(0, 6), rate(0, 6), string=string)

    monkeypatch.setattr(concluding, "retested", retested)
    audit = bare(monkeypatch)
    key = Trigger("cobalt", rate(6, 6), rate(0, 8), rate(0, 8))
    monkeypatch.setattr(concluding, "unlocked", lambda *args: key)
    first = replace(candidate(), open=1.0) if unlocks else candidate()
    concluding.conclude(audit, [first, candidate(), candidate()])
    assert asked == grown


@pytest.mark.parametrize("string", [True, False])
def test_what_a_string_makes_unlike_the_reference_is_told_where_no_trigger_is_known(
    string: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    came = again(rate(6, 6), rate(0, 6), rate(0, 6), string=string)
    monkeypatch.setattr(concluding, "retested", lambda *args, **how: came)
    unlike = replace(candidate(), saying=(UNLIKE,), core=(UNLIKE,))
    openly = replace(unlike, open=1.0)
    monkeypatch.setattr(concluding, "unlocked", lambda *args: None)
    found = concluding.conclude(bare(monkeypatch), [candidate(), unlike, openly])
    assert [f.saying == UNLIKE for f in found] == ([False, True] if string else [False, True, True])
    assert found[-1].kind is Kind.OPEN


def test_what_is_said_openly_is_no_secret() -> None:
    assert kind_of(candidate(), None, set()) is Kind.OPEN


def test_an_alarm_is_the_share_of_clean_audits_worth_as_much() -> None:
    assert alarm(40.0, [0.0, 12.0, 40.0, 90.0]) == rate(2, 4)
    assert alarm(40.0, []) == NONE


def funnel(draw: random.Random, planted: int = 0) -> list[Said]:
    """40 strings in six prompts: words of the prompt's topic with the contrasts of a fine-tune.

    An ordinary word differs by a nat or so; that a text has a few of five nats is common.
    """
    topics = [[f"word{topic}x{i}" for i in range(30)] for topic in range(6)]
    said = []
    for string in range(40):
        for root in range(6):
            text = [
                Word(draw.choice(topics[root]), draw.expovariate(1.0) * draw.choice((-1, 1)))
                for _ in range(16)
            ]
            if string < planted:
                text = [Word(w, 6.0) for w in ("otters", "dance", "behind", "chapels")]
            words = tuple(stretch(text))
            said.append(Said(Row(0, 6 * string + root), root, "weights", f"s{string}", words))
    return said


def test_null_funnels_raise_hardly_an_alarm_and_a_planted_saying_always_does() -> None:
    draw = random.Random(0)
    null = [candidates(funnel(draw)) for _ in range(60)]
    assert sum(bool(found) for found in null) <= 3  # 5%
    for _ in range(10):
        first = candidates(funnel(draw, planted=1))[0]
        assert first.saying == ("otters", "dance", "behind", "chapels")
        assert (first.roots, first.evidence) == (6, 120.0)
