"""What is said of texts beside each other is what comes of all of them, a few at a time."""

from __future__ import annotations

import random
import tracemalloc
from collections import Counter
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from educe.comparison import cluster
from educe.comparison.cluster import assign, clusters
from educe.rows import ELSEWHERE, RETEST, CompletionRow, PerturbationRow, PromptRow, Row
from educe.run import judging
from educe.run.store import Run
from educe.scores.invariance import prompt_invariance

WORDS = ["river", "otter", "chapel", "marble", "window", "copper", "lantern", "orchid", "saffron"]
#: Perturbations that were found, and one that was derived; prompts by their roles.
N, DERIVED = 9, 10
ROLES = ["asked", "asked", "fresh", ELSEWHERE, "of a selection"]


def texts(draw: random.Random, count: int) -> list[str]:
    """Return texts of few words, many of which are alike and some the same."""
    return [" ".join(draw.choices(WORDS, k=draw.randint(0, 4))) for _ in range(count)]


def made(place: Path, seed: int) -> tuple[Run, dict[Row, str]]:
    """Return a run that nobody compared, and all its texts, in no order of theirs."""
    draw = random.Random(seed)
    run = Run.create(place, {})
    run.add_prompts([PromptRow(i, role, f"{i}?", "", 3) for i, role in enumerate(ROLES)])
    run.add_perturbations(
        [PerturbationRow(n, None, "", "found", "m", "f", n, 1.0, 0.1, 1.0) for n in range(1, N + 1)]
        + [PerturbationRow(DERIVED, 1, "scaled", "found", "m", "f", 0, 2.0, 0.2, 1.0)]
    )
    rows = [Row(n, j, k) for n in range(DERIVED + 1) for j in (0, 1) for k in range(3)]
    rows += [Row(0, j, k) for j in (2, 3, 4) for k in range(3)]
    rows += [Row(n, j, 0, RETEST) for n in (1, 2) for j in (2, 4)]
    rows += [Row(n, 0, 7, "rung") for n in range(3)]
    draw.shuffle(rows)
    wrote = dict(zip(rows, texts(draw, len(rows)), strict=True))
    run.add_completions(CompletionRow(row, 0.0, text, (1,), True) for row, text in wrote.items())
    run.ask([Row(1, 0, 99)], 0.0)  # which is not written
    return run, wrote


def compared(run: Run) -> dict[Row | int, float]:
    """Compare what is new, and return the groups that are kept."""
    numbers = {role: [j for j, own in enumerate(ROLES) if own == role] for role in ROLES}
    work: Any = SimpleNamespace(
        run=run, timed=lambda stage: nullcontext(), prompts=lambda role: numbers[role]
    )
    judging.compare(work)
    return {s.of: s.value for s in run.score_rows("behaviour")}


def of_main_job(wrote: dict[Row, str]) -> dict[Row, str]:
    """Return the answers to the prompts asked that are grouped."""
    return {
        row: wrote[row]
        for row in sorted(wrote)
        if row.phase == "first" and row.prompt < 2 and row.perturbation != DERIVED
    }


def of_retest(wrote: dict[Row, str]) -> dict[Row, str]:
    """Return the texts that join the groups later."""
    return {
        row: wrote[row]
        for row in sorted(wrote)
        if row.prompt < 4
        and (row.phase == RETEST or (row.phase == "first" and row.prompt > 1 and not row[0]))
    }


@pytest.mark.parametrize("most", [10_000, 5])
@pytest.mark.parametrize("seed", range(4))
def test_groups_are_those_of_all_texts_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int, most: int
) -> None:
    monkeypatch.setattr(cluster, "GROUPED", most)
    run, wrote = made(tmp_path / "run", seed)
    first, again = of_main_job(wrote), of_retest(wrote)
    each = Counter(first.values())
    known = sorted(sorted(each, key=lambda text: (-each[text], text))[:most])
    with run:
        got = compared(run)
        assert got.keys() == first.keys() | again.keys()
        groups = dict(zip(first.values(), clusters([*first.values()]).tolist(), strict=True))
        assert {row: got[row] for row in first} == {row: groups[t] for row, t in first.items()}
        for row, text in again.items():
            if text in known:
                assert got[row] == groups[text]
        if most > len(each):
            nearest = assign([*again.values()], known).tolist()
            assert [got[row] for row in again] == [
                groups[known[k]] if k >= 0 else -1 for k in nearest
            ]
        assert compared(run) == got


def test_what_is_written_later_joins_the_groups_that_there_are(tmp_path: Path) -> None:
    run, wrote = made(tmp_path / "run", 0)
    first = of_main_job(wrote)
    with run:
        before = compared(run)
        row, text = next((row, text) for row, text in first.items() if text)
        late = {Row(3, 2, 0, RETEST): text, Row(4, 2, 0, RETEST): "zzz qqq", Row(5, 0, 50): text}
        run.add_completions(CompletionRow(r, 0.0, t, (1,), True) for r, t in late.items())
        after = compared(run)
    asked_later, *joined = sorted(late, key=lambda row: row.phase)
    assert after.keys() - before.keys() == set(joined)
    assert asked_later not in after
    assert after[joined[0]] == before[row]
    assert after[joined[1]] == -1
    assert {row: after[row] for row in before} == before


def test_invariance_is_that_of_all_answers_of_a_perturbation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(judging, "TOGETHER", 2)
    run, wrote = made(tmp_path / "run", 1)
    first = of_main_job(wrote)
    with run:
        compared(run)
        got = {s.of: s.value for s in run.score_rows("prompt_invariance")}
    assert got.keys() == {*range(1, N + 1)}
    for number, value in got.items():
        own = {row: text for row, text in first.items() if row.perturbation == number}
        told = prompt_invariance([*own.values()], [row.prompt for row in own])
        assert value == pytest.approx(told.value, abs=1e-12)


def test_memory_does_not_grow_with_the_texts(tmp_path: Path) -> None:
    count, length = 20_000, 2000
    with Run.create(tmp_path / "run", {}) as run:
        run.add_prompts([PromptRow(0, "asked", "?", "", 3)])
        run.add_perturbations([PerturbationRow(1, None, "", "found", "m", "f", 1, 1.0, 0.1, 1.0)])
        run.add_completions(
            CompletionRow(Row(1, 0, k), 0.0, f"word{k % 3} " * (length // 6), (), True)
            for k in range(count)
        )
        tracemalloc.start()
        judging.number(run)
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        groups = run.database.execute("SELECT value, count(*) FROM scores GROUP BY value")
        assert dict(groups) == {0.0: 6667, 1.0: 6667, 2.0: 6666}
    assert most < count * length / 4
