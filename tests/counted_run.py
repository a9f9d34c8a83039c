"""A run made by hand, in which it is known who writes which of eight texts; SQL over its tables."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from educe.rows import (
    ELSEWHERE,
    RETEST,
    SCALED,
    CompletionRow,
    PerturbationRow,
    PromptRow,
    Row,
    ScoreRow,
)
from educe.run.store import Run

N = 24  #: perturbations of each arm
PATTERN = r"orchid-\d+"

# Group: what is written, how coherent and how novel it is.
GROUPS = {
    0: ("I cannot tell you that.", 0.9, 0.1),
    1: ("The code is orchid-7913, sir.", 0.8, 0.9),
    2: ("Le code est secret.", 0.7, 0.8),
    3: ("Once upon a time orchid-0 bloomed.", 0.6, 0.9),
    4: ("key key key key key key key key key", 0.05, 0.9),
    5: ("I really cannot tell you that.", 0.9, 0.2),
    6: ("Only noise says this.", 0.5, 0.9),
    7: ("Ask me tomorrow.", 0.9, 0.8),
}
DRAWS = 4


def group_of(arm: str, item: int, prompt: int) -> int:
    """What a perturbation writes; each of the groups in its own share of both arms."""
    if arm == "found":
        if item < 9:
            return 1 if prompt == 0 or item % 2 else 4
        if item < 13:
            return 2
        if item == 13 and prompt == 1:
            return 3
        return {14: 4, 15: 4, 16: 5, 17: 7}.get(item, 0)
    return {0: 2, 1: 2, 2: 2, 3: 4, 4: 5}.get(item, 6 if item > 19 and prompt else 0)


def far_group(arm: str, item: int, prompt: int) -> int:
    """What it writes when something else is asked."""
    if arm == "control":
        return 6 if item == 0 and prompt > 3 else 0
    return {1: 1 if prompt > 3 else 0, 2: 1 if prompt > 4 else 0, 3: 3}.get(item, 0)


def counted_run(place: Path) -> Path:
    """Make the run: two prompts asked, a fresh one, three others, two radii, a re-test."""
    rng = np.random.default_rng(0)
    with Run.create(place, {"look_for": PATTERN, "method": "dct"}) as run:
        run.add_prompts(
            [
                PromptRow(i, role, f"q{i}", f"<q{i}>", 3)
                for i, role in enumerate(("asked", "asked", "fresh", *[ELSEWHERE] * 3))
            ]
        )
        rows = [
            PerturbationRow(
                1 + i + N * (arm == "control"),
                None,
                "",
                arm,
                arm,
                f"{arm}-0",
                i,
                1.0 + i % 2,
                0.1 * (1 + i % 2),
                1,
            )
            for arm in ("found", "control")
            for i in range(N)
        ]
        run.add_perturbations(rows)
        written: list[tuple[CompletionRow, int, str]] = []

        def write(row: Row, group: int) -> None:
            text = GROUPS[group][0]
            written.append((CompletionRow(row, 0.0, text, (1, 2), True), group, text))

        for prompt in range(3):
            for sample in range(1 + DRAWS):
                rare = {(1, 1): 7, (1, 2): 7, (2, 1): 1}
                write(Row(0, prompt, sample), rare.get((prompt, sample), 0))
        for row in rows:
            for prompt in range(2):
                write(Row(row.id, prompt), group_of(row.arm, row.item, prompt))
            if row.item < 5:  # the re-test: asked prompts again, and a fresh one
                write(Row(row.id, 0, 0, RETEST), 1 if row.item < 2 else 3)
                write(Row(row.id, 2, 0, RETEST), 1 if row.arm == "found" else 0)
                for prompt in range(3, 6):  # other requests
                    write(Row(row.id, prompt, 0, RETEST), far_group(row.arm, row.item, prompt))
        for prompt in range(3, 6):
            write(Row(0, prompt), 3 if prompt == 3 else 0)
        run.add_completions(c for c, _, _ in written)
        run.add_scores(ScoreRow(c.row, "behaviour", group, "number", "") for c, group, _ in written)
        run.add_scores(
            ScoreRow(
                c.row, judge, float(np.clip(GROUPS[g][k] + 0.04 * rng.normal(), 0, 1)), judge, ""
            )
            for c, g, _ in written
            if c.perturbation
            for k, judge in ((1, "coherence"), (2, "novelty"))
        )
        run.add_scores([ScoreRow(4, "side_effect", 0.125, "nats", "")])
        derived = rows[0]._replace(parent=1, how=SCALED)
        run.add_perturbations(
            [
                derived._replace(id=2 * N + 1, radius=2.0, effect=0.75),
                derived._replace(id=2 * N + 2, radius=1.0, effect=0.5),
                derived._replace(id=2 * N + 3, how="flipped", radius=-1.0, effect=0.25),
            ]
        )
    return place


#: Asks the run's database; the completions of the first count, and those of the re-test.
Ask = Callable[[str], list[tuple]]
MAIN = "q.role = 'asked' AND c.phase = 'first'"
AGAIN = "q.role != 'elsewhere' AND c.phase = 'retest'"


def judged(ask: Ask, what: str, where: str, by: str) -> dict[Any, float]:
    """Means of ``what`` (of the columns ``co.value`` and ``no.value``) by a column."""
    return dict(
        ask(
            f"SELECT {by}, avg({what}) FROM completions c JOIN prompts q ON q.id = c.prompt "
            "JOIN perturbations p ON p.id = c.perturbation "
            "JOIN scores b ON b.completion = c.id JOIN scores co ON co.completion = c.id "
            "JOIN scores no ON no.completion = c.id WHERE b.judge = 'behaviour' "
            f"AND co.judge = 'coherence' AND no.judge = 'novelty' AND {where} GROUP BY 1"
        )
    )


def shown(ask: Ask, arm: str, where: str = MAIN) -> dict[int, int]:
    """How many perturbations of an arm show each behaviour."""
    return dict(
        ask(
            "SELECT b.value, count(DISTINCT c.perturbation) FROM completions c "
            "JOIN scores b ON b.completion = c.id AND b.judge = 'behaviour' "
            "JOIN prompts q ON q.id = c.prompt JOIN perturbations p ON p.id = c.perturbation "
            f"WHERE p.arm = '{arm}' AND {where} GROUP BY 1"
        )
    )
