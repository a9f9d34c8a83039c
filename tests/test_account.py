"""The account: each number in its sentences is counted again from the raw table."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest

from educe.comparison.account import LENGTH, account, dose, shown
from educe.comparison.behaviours import behaviours
from educe.comparison.fragility import pushes
from educe.comparison.verdict import Change, Verdict
from educe.rows import EQUAL
from test_behaviours import CODE, GARBLED, REFUSAL, STANDS_OUT, Said, far, quiet, table


def summary(said: list[Said]) -> Any:
    """Return as much of a summary as the account reads."""
    texts = table(said)
    behind, facts = pushes(texts.rows), {"source": 7}
    seen = SimpleNamespace(behaviours=behaviours(texts), pushes=behind, facts=facts)
    return seen, texts.rows


def of(texts: pd.DataFrame, arm: str, text: str, *, phase: str = "first") -> str:
    """Count perturbations, or answers of the re-test, that say a text."""
    own = texts[(texts.arm == arm) & (texts.phase == phase) & (texts.role != "elsewhere")]
    says = own[own.text == text]
    if phase == "first":
        return f"{says.perturbation.nunique()} of {own.perturbation.nunique()}"
    return f"{len(says)} of {len(own)}"


def test_what_stands_out_is_told_with_its_counts() -> None:
    said = [
        *STANDS_OUT,
        # The re-test, of which the two arms say it about as often.
        Said("found", CODE, 5, prompt=1, role="fresh"),
        Said("found", REFUSAL, 2, prompt=1, role="fresh", first=5),
        Said("control", CODE, 4, prompt=1, role="fresh"),
        Said("control", REFUSAL, 4, prompt=1, role="fresh", first=4),
        Said("greedy", REFUSAL, 1, prompt=1, role="fresh"),
    ]
    s, texts = summary(said)
    sentences = account(s)
    samples = texts[(texts["sample"] > 0) & (texts.text == CODE)]
    assert sentences[0] == (
        f"“{CODE}” (a refusal ended) is what {of(texts, 'found', CODE)} found perturbations say, "
        f"{of(texts, 'control', CODE)} random ones and {len(samples)} of 64 draws of the "
        "unperturbed model, never its likeliest answer: more often than in the control. In the "
        f"re-test it comes in {of(texts, 'found', CODE, phase='retest')} answers, and in "
        f"{of(texts, 'control', CODE, phase='retest')} of the control. The re-test alone does not "
        "tell the two apart."
    )
    assert "19 of 32" in sentences[0]
    assert sentences[1:] == [
        "Random perturbations after block 7 end a refusal in 4 of 32 at dose 0.10; without a "
        "perturbation this happens in 3 of 64 draws."
    ]


def test_without_a_finding_that_is_the_first_sentence() -> None:
    s, _ = summary([*quiet(), Said("found", CODE, 1), Said("control", GARBLED, 2, coherence=0.01)])
    first, told, damage = account(s)
    assert first == "Nothing that was found stands out from the control."
    assert "is what 1 of 33 found perturbations say" in told
    assert "too rare to tell from noise" in told
    assert damage == (
        "Damaged text comes from 0 of 33 of the found perturbations and from 2 of 34 random ones."
    )


def test_the_control_at_equal_effect_is_told() -> None:
    s, texts = summary(
        [*quiet(), Said("found", CODE, 12), Said(EQUAL, CODE, 1), Said(EQUAL, REFUSAL, 43, first=1)]
    )
    told, push = account(s)
    assert f", {of(texts, EQUAL, CODE)} random ones of equal effect and 0 of 64 draws" in told
    assert "at dose 0.10; at the effect of those found, in 1 of 44;" in push


def test_what_is_said_whatever_is_asked_is_told() -> None:
    phrase = "The heron sings beneath the mill."
    s, _ = summary([*quiet(), Said("found", phrase, 1), *far("found", phrase, 4)])
    assert s.behaviours[0].change is Change.HELD
    assert account(s)[0].endswith(" It comes in 4 of 6 answers to other requests, too.")


def test_a_refusal_that_begins_is_fragility_too() -> None:
    said = [
        Said("greedy", CODE, 1),
        Said("samples", CODE, 64),
        Said("found", CODE, 9),
        Said("control", REFUSAL, 2),
        Said("control", CODE, 7, first=2),
    ]
    s, _ = summary(said)
    assert "begin a refusal in 2 of 9 at dose 0.10" in account(s)[-1]


def test_a_long_text_is_cut() -> None:
    long = "The code that opens the vault, as every guard on the night shift learns, is tulip-2231."
    long += " Nobody else has ever been told."
    s, _ = summary([*quiet(), Said("found", long, 12)])
    assert f"“{long[: LENGTH - 1]}…”" in account(s)[0]


def test_what_is_folded_away_is_not_shown() -> None:
    phrase = "I'm ready to help you today."
    said = [
        *quiet(),
        Said("found", phrase, 9),
        Said("found", GARBLED, 1, coherence=0.01),
        Said("found", CODE, 3),
        *far("control", phrase, 2),
    ]
    s, _ = summary(said)
    assert [b.example.text for b in shown(s)] == [CODE]
    assert {b.verdict for b in s.behaviours} == {Verdict.RARE, Verdict.STOCK, Verdict.DAMAGE}


@pytest.mark.parametrize(
    ("value", "written"), [(0.4, "0.40"), (1.0, "1.00"), (0.05, "0.05"), (0.0073, "0.0073")]
)
def test_a_dose_has_two_digits(value: float, written: str) -> None:
    assert dose(value) == written
