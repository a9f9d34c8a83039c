"""Measuring judges: against hand counts, planted scores and how often intervals hold the truth."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import norm

from educe.comparison.stats import rate
from educe.errors import JudgeError, PromptError
from educe.scores import Answer, Score
from educe.scores.cache import Cached
from educe.scores.calibration import Labelled, area, check_judge, read_labelled
from educe.scores.language_model import Theme
from educe.scores.rules import Contains


class Planted:
    """A judge that reads its score from the answer."""

    name, higher_is, identity, cost = "planted", "more", "planted", "nothing"

    def score(self, answers: Sequence[Answer]) -> list[Score]:
        return [Score("planted", float(answer.text), "more", "") for answer in answers]


def planted(shown: Sequence[float], not_shown: Sequence[float]) -> list[Labelled]:
    rows = [Labelled(Answer("", str(v)), True) for v in shown]
    return rows + [Labelled(Answer("", str(v)), False) for v in not_shown]


def test_counts_are_those_by_hand() -> None:
    checked = check_judge(Planted(), planted([0.9, 0.5, 0.4, 0.6], [0.1, 0.5, 0.3, 0.2, 0.45, 0.0]))
    # Right: 0.9, 0.5 and 0.6 of the first, all but 0.5 of the second.
    assert checked.agreement == rate(8, 10)
    assert checked.false_alarms == rate(1, 6)
    assert checked.detected == rate(3, 4)
    # Of 24 pairs, 0.9 and 0.6 win 6, 0.5 wins 5 and ties one, 0.4 wins 4.
    assert checked.auc.value == pytest.approx(21.5 / 24)
    # By chance: 0.4 of both true, 0.6 · 0.6 of both false.
    assert checked.kappa == pytest.approx((0.8 - 0.52) / 0.48)
    assert not checked.near_chance


def test_the_threshold_moves_all_but_the_area() -> None:
    rows = planted([0.9, 0.8], [0.7, 0.6])
    low, high = (check_judge(Planted(), rows, threshold=t) for t in (0.5, 0.75))
    assert low.agreement == rate(2, 4)
    assert low.false_alarms == rate(2, 2)
    assert low.kappa == 0
    assert high.agreement == rate(4, 4)
    assert high.kappa == 1
    assert low.auc == high.auc


def test_a_rule_on_labels_by_that_rule_is_perfect_and_has_an_interval() -> None:
    texts = ["The code is orchid.", "No.", "ORCHID", "I cannot.", "orchids", "Ask me."]
    rows = [Labelled(Answer("", t), "orchid" in t.lower()) for t in texts]
    checked = check_judge(Contains("orchid"), rows)
    assert checked.agreement == rate(6, 6)
    assert checked.auc.value == checked.auc.high == checked.kappa == 1
    assert 0.4 < checked.auc.low < 0.9  # three of each say little


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_a_judge_that_always_says_the_same_is_chance(value: float) -> None:
    checked = check_judge(Planted(), planted([value] * 20, [value] * 20))
    assert checked.auc.value == 0.5
    assert checked.kappa == 0
    assert checked.near_chance
    assert checked.agreement == rate(20, 40)


def test_a_judge_that_is_wrong_every_time() -> None:
    found = area([True] * 10 + [False] * 10, [0.0] * 10 + [1.0] * 10)
    assert (found.value, found.low) == (0, 0)
    # As the perfect one, turned round.
    right = area([True] * 10 + [False] * 10, [1.0] * 10 + [0.0] * 10)
    assert found.high == pytest.approx(1 - right.low)


@pytest.mark.parametrize(("m", "n", "truth"), [(10, 10, 0.75), (25, 40, 0.9), (50, 20, 0.5)])
def test_intervals_hold_the_truth_as_often_as_they_say(m: int, n: int, truth: float) -> None:
    """Scores of two normal distributions at such a distance that the area is known."""
    apart = math.sqrt(2) * norm.ppf(truth)
    rng = np.random.default_rng(0)
    labels = [True] * m + [False] * n
    held = 0
    for _ in range(400):
        scores = np.concatenate([rng.normal(apart, 1, m), rng.normal(0, 1, n)])
        found = area(labels, scores.tolist())
        held += found.low <= truth <= found.high
    assert rate(held, 400).high >= 0.94
    assert held / 400 >= 0.92


def test_interval_is_about_that_of_a_bootstrap() -> None:
    rng = np.random.default_rng(1)
    shown, other = rng.normal(1, 1, 60), rng.normal(0, 1, 60)
    found = area([True] * 60 + [False] * 60, [*shown, *other])
    draws = [
        np.greater.outer(rng.choice(shown, 60), rng.choice(other, 60)).mean() for _ in range(2000)
    ]
    low, high = np.quantile(draws, [0.025, 0.975])
    assert found.value == pytest.approx(np.greater.outer(shown, other).mean())
    assert found.low == pytest.approx(low, abs=0.03)
    assert found.high == pytest.approx(high, abs=0.03)


@pytest.mark.parametrize("label", [True, False])
def test_one_kind_of_answer_is_not_enough(label: bool) -> None:
    with pytest.raises(JudgeError, match="both kinds"):
        check_judge(Planted(), [Labelled(Answer("", "1"), label)] * 3)


class Counting:
    """A model that counts, among the answers that it is shown, those that say orchid."""

    identity, cost = "a model", "one call"

    def write(self, questions: Sequence[str], **options: Any) -> Iterator[list[tuple[int, str]]]:
        for line, question in enumerate(questions):
            first, second = question.split("second version:")
            counts = {"in_second": second.count("orchid"), "in_first": first.count("orchid")}
            yield [(line, json.dumps({"theme": "orchids"} | counts))]


@pytest.mark.parametrize("kept", [False, True])
def test_a_judge_that_compares_is_measured_on_groups(kept: bool, tmp_path: Path) -> None:
    """One group shows it in two of three answers, one in one of three; one answer is alone."""
    said = {"a": ["orchid", "an orchid", "no"], "b": ["never orchid", "no", "not"], None: ["no"]}
    rows = [
        Labelled(Answer("", text, ("a rose",)), "no" not in text and "never" not in text, group)
        for group, texts in said.items()
        for text in texts
    ]
    theme: Any = Theme(Counting())
    judge = Cached(theme, tmp_path / "kept.sqlite") if kept else theme
    checked = check_judge(judge, [rows[3], *rows[:3], *rows[4:]], threshold=0.3)
    # Scores are 2/3 for a, 1/3 for b, a false alarm, and 0.
    assert checked.detected == rate(1, 1)
    assert checked.false_alarms == rate(1, 2)
    assert checked.auc.value == 1
    with pytest.raises(JudgeError, match="1 of 1 groups of answers are labelled true"):
        check_judge(judge, rows[:3])


def test_labelled_answers_are_read(tmp_path: Path) -> None:
    rows = [
        {"prompt": "Say it.", "text": "It.\u2028So.", "label": True, "plain": ["No.", "Never."]},
        {"prompt": "", "text": "", "label": False, "group": "a", "more": 1},
    ]
    file = tmp_path / "labelled.jsonl"
    file.write_text("\n\n".join(json.dumps(row, ensure_ascii=False) for row in rows) + "\n")
    assert read_labelled(file) == [
        Labelled(Answer("Say it.", "It.\u2028So.", ("No.", "Never.")), True),
        Labelled(Answer("", ""), False, "a"),
    ]


@pytest.mark.parametrize(
    "row",
    [
        "{",
        [],
        {"prompt": "a", "text": "b"},
        {"prompt": "a", "text": "b", "label": "yes"},
        {"prompt": "a", "text": "b", "label": 1},
        {"prompt": "a", "label": True},
        {"prompt": 1, "text": "b", "label": True},
        {"prompt": "a", "text": "b", "label": True, "plain": "c"},
        {"prompt": "a", "text": "b", "label": True, "plain": [1]},
        {"prompt": "a", "text": "b", "label": True, "group": 1},
    ],
)
def test_a_line_of_something_else_is_named(tmp_path: Path, row: Any) -> None:
    file = tmp_path / "labelled.jsonl"
    good = {"prompt": "a", "text": "b", "label": True}
    file.write_text(json.dumps(good) + "\n" + (row if isinstance(row, str) else json.dumps(row)))
    with pytest.raises(JudgeError, match="line 2"):
        read_labelled(file)


def test_files_without_answers_are_errors(tmp_path: Path) -> None:
    with pytest.raises(JudgeError, match="cannot read"):
        read_labelled(tmp_path / "missing.jsonl")
    (tmp_path / "empty.jsonl").write_text("\n")
    with pytest.raises(JudgeError, match="holds no labelled answer"):
        read_labelled(tmp_path / "empty.jsonl")


def test_lines_that_say_the_same_count_once(tmp_path: Path) -> None:
    row = {"prompt": "a", "text": "b", "label": True}
    others = [row | {"label": False}, row | {"plain": ["c"]}, row | {"group": "g"}]
    lines = [row, others[0], row, *others[1:], others[0], row]
    (tmp_path / "labelled.jsonl").write_text("\n".join(map(json.dumps, lines)))
    (tmp_path / "once.jsonl").write_text("\n".join(map(json.dumps, [row, *others])))
    said: list[str] = []
    found = read_labelled(tmp_path / "labelled.jsonl", said.append)
    assert found == read_labelled(tmp_path / "once.jsonl", said.append)
    assert said == ["3 of the 7 labelled answers are as one before: counted once"]


@pytest.mark.parametrize("field", ["prompt", "text", "plain", "group"])
def test_half_a_character_in_a_labelled_answer_is_an_error(tmp_path: Path, field: str) -> None:
    row = {"prompt": "a", "text": "b", "label": True, "plain": ["c"], "group": "g"}
    row[field] = ["\ud800"] if field == "plain" else "\ud800"
    (tmp_path / "labelled.jsonl").write_text(json.dumps(row))
    with pytest.raises(PromptError, match=r"line 1 has '\\ud800' at character 1"):
        read_labelled(tmp_path / "labelled.jsonl")
