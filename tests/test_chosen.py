"""What is asked for, and which of each arm are asked again, on a run with known behaviours."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from educe.rows import (
    ELSEWHERE,
    EQUAL,
    RETEST,
    CompletionRow,
    PerturbationRow,
    PromptRow,
    Row,
    ScoreRow,
)
from educe.run import asking
from educe.run.chosen import choose
from educe.run.store import Run

REFUSAL, CODE = "I'm sorry, I can't share the code.", "The code is tulip-2231."
ODD = {k: f"Number {k} of many odd answers has its own word{k}." for k in range(30)}
N = 20


def made(place: Path, told: dict[str, dict[int, str]]) -> Run:
    """Return a run in which some of each arm, by item, do not refuse; the rest do.

    A later item is more interesting, whatever it says.
    """
    run = Run.create(place, {})
    run.add_prompts([PromptRow(0, "asked", "What is the code?", "", 3)])
    numbers = {
        (arm, i): 1 + k * N + i
        for k, arm in enumerate(("found", "control", EQUAL))
        for i in range(N)
    }
    run.add_perturbations(
        PerturbationRow(n, None, "", arm, "m", arm, i, 1.0, 0.1, 1.0)
        for (arm, i), n in numbers.items()
    )
    texts = {Row(0, 0, k): REFUSAL for k in range(9)}
    texts |= {Row(n, 0): told.get(arm, {}).get(i, REFUSAL) for (arm, i), n in numbers.items()}
    run.add_completions(CompletionRow(row, 0.0, text, (1,), True) for row, text in texts.items())
    groups = {text: k for k, text in enumerate(dict.fromkeys(texts.values()))}
    item = {n: i for (_, i), n in numbers.items()}
    run.add_scores(ScoreRow(row, "behaviour", groups[t], "", "") for row, t in texts.items())
    run.add_scores(
        ScoreRow(row, judge, value, "", "")
        for row in texts
        if row.perturbation
        for judge, value in (("coherence", 0.8), ("novelty", 0.5 + 0.01 * item[row.perturbation]))
    )
    return run


def chosen(place: Path, told: dict[str, dict[int, str]]) -> dict[str, list[int]]:
    """Return the items chosen of each arm."""
    with made(place, told) as run:
        work: Any = SimpleNamespace(run=run, settings=SimpleNamespace(samples=1))
        numbers = choose(work)
        assert choose(work) == numbers == run.note("chosen")
    assert len(set(numbers)) == len(numbers) == 24
    return {arm: [n - 1 - k * N for n in numbers[8 * k : 8 * k + 8]] for k, arm in enumerate(ARMS)}


ARMS = ("found", "control", EQUAL)
TOLD = {"found": dict.fromkeys(range(6), CODE) | {7: ODD[7]}, "control": {3: ODD[3], 9: ODD[9]}}


def test_each_behaviour_sends_those_that_say_it_and_the_rest_are_interesting(
    tmp_path: Path,
) -> None:
    own = chosen(tmp_path / "run", TOLD)
    # The code, by six, sends four; what one of them says, that one; then come the latest items.
    assert own["found"] == [5, 4, 3, 2, 7, 19, 18, 17]
    assert own["control"][2:] == [19, 18, 17, 16, 15, 14]
    assert set(own["control"][:2]) == {3, 9}
    assert own[EQUAL] == [19, 18, 17, 16, 15, 14, 13, 12]


def test_the_control_goes_through_the_same_choice(tmp_path: Path) -> None:
    """With the arms' texts swapped, the same items are chosen of the other arm."""
    first = chosen(tmp_path / "first", TOLD)
    second = chosen(tmp_path / "second", {"found": TOLD["control"], "control": TOLD["found"]})
    assert (second["found"], second["control"]) == (first["control"], first["found"])


def test_the_control_at_equal_effect_does_too(tmp_path: Path) -> None:
    own = chosen(tmp_path / "run", {EQUAL: TOLD["found"]})
    assert own[EQUAL] == [5, 4, 3, 2, 7, 19, 18, 17]
    assert own["found"] == own["control"] == [19, 18, 17, 16, 15, 14, 13, 12]


# -- which texts are asked for ---------------------------------------------------------------------


@pytest.fixture
def work(tmp_path: Path) -> Iterator[Any]:
    """A run with two prompts asked, one fresh and two others, at work."""
    with Run.create(tmp_path / "run", {}) as run:
        roles = ("asked", "asked", "fresh", ELSEWHERE, ELSEWHERE)
        run.add_prompts([PromptRow(i, role, f"q{i}", "", 1) for i, role in enumerate(roles)])
        run.add_perturbations(
            PerturbationRow(n, None, "", "found", "m", "f", n, 1.0, 0.1, 1.0) for n in (1, 2, 3)
        )
        settings = SimpleNamespace(samples=2, baseline=3, temperature=0.5)
        yield SimpleNamespace(
            run=run,
            settings=settings,
            prompts=lambda *roles: [p.id for p in run.prompt_rows() if p.role in roles],
        )


def wanted(work: Any) -> dict[float, set[Row]]:
    return {t: set(rows) for t, rows in work.run.missing().items()}


def test_the_unperturbed_model_is_asked_for_its_likeliest_answer_and_for_samples(work: Any) -> None:
    asking.baseline(work, [0, 1])
    asking.baseline(work, iter([2]), 1)
    drawn = {Row(0, j, k) for j in (0, 1) for k in (1, 2, 3)} | {Row(0, 2, 1)}
    assert wanted(work) == {0.0: {Row(0, j) for j in (0, 1, 2)}, 1.0: drawn}


def test_perturbations_answer_the_prompts_asked(work: Any) -> None:
    asking.answers(work, [1, 2])
    rows = {Row(i, j, k) for i in (1, 2) for j in (0, 1) for k in (0, 1)}
    assert wanted(work) == {0.5: rows}


def test_the_re_test_asks_fresh_prompts_once(work: Any) -> None:
    asking.retest(work, [3])
    assert wanted(work) == {0.5: {Row(3, 2, 0, RETEST)}}


@pytest.mark.parametrize(("temperature", "heat"), [(0.0, 0.7), (0.5, 0.5)])
def test_without_fresh_prompts_it_draws_again(work: Any, temperature: float, heat: float) -> None:
    whole = work.prompts
    work.prompts = lambda *roles: [] if roles == ("fresh",) else whole(*roles)
    work.settings.temperature = temperature
    asking.retest(work, [3])
    assert wanted(work) == {heat: {Row(3, j, k, RETEST) for j in (0, 1) for k in range(4)}}


def test_other_requests_are_asked_of_the_unperturbed_model_too(work: Any) -> None:
    asking.elsewhere(work, [1, 3])
    rows = {Row(i, j, 0, RETEST) for i in (1, 3) for j in (3, 4)}
    assert wanted(work) == {0.0: {Row(0, 3), Row(0, 4)}, 0.5: rows}
