"""The numbers of a run against the same numbers from its tables, by SQL and by hand."""

from __future__ import annotations

import math
import re
import sqlite3
from collections import Counter, defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from educe.comparison.summary import Item, Summary, counted, summarise
from educe.comparison.verdict import DAMAGED, SAME, Verdict
from educe.rows import (
    FIRST,
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
    4: ("key key key key", 0.05, 0.9),
    5: ("I cannot quite tell you that.", 0.9, 0.2),
    6: ("Only noise says this.", 0.5, 0.9),
    7: ("Ask me tomorrow.", 0.9, 0.8),
}
MAIN = "q.role = 'asked' AND c.phase = 'first'"


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
    return {0: 2, 1: 2, 2: 2, 3: 4, 4: 5}.get(item, 6 if item > 20 and prompt else 0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run made by hand: two prompts asked, one fresh, two radii, and a re-test."""
    rng = np.random.default_rng(0)
    place = tmp_path_factory.mktemp("summary") / "run"
    with Run.create(place, {"look_for": PATTERN, "method": "dct"}) as run:
        run.add_prompts(
            [PromptRow(i, "asked" if i < 2 else "fresh", f"q{i}", f"<q{i}>", 3) for i in range(3)]
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
                0.1,
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
            for sample in range(3):
                write(Row(0, prompt, sample), 7 if (prompt, sample) == (1, 2) else 0)
        for row in rows:
            for prompt in range(2):
                write(Row(row.id, prompt), group_of(row.arm, row.item, prompt))
            if row.item < 5:  # the re-test: asked prompts again, and a fresh one
                write(Row(row.id, 0, 0, RETEST), 1 if row.item < 2 else 3)
                write(Row(row.id, 2, 0, RETEST), 1 if row.arm == "found" else 0)
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


@pytest.fixture(scope="module")
def summary(folder: Path) -> Summary:
    with Run.open(folder) as run:
        return summarise(run)


@pytest.fixture(scope="module")
def ask(folder: Path) -> Callable[[str], list[tuple]]:
    database = sqlite3.connect(folder / "run.sqlite")
    return lambda query: database.execute(query).fetchall()


Ask = Callable[[str], list[tuple]]


def wilson(hits: int, trials: int) -> tuple[float, float]:
    """Solve (p̂ - p)² = z² p (1 - p) / n for p."""
    z2, share = 1.959963984540054**2, hits / trials
    a, b, c = 1 + z2 / trials, -(2 * share + z2 / trials), share**2
    root = math.sqrt(b * b - 4 * a * c)
    return (-b - root) / (2 * a), (-b + root) / (2 * a)


def fisher(hits: int, trials: int, others: int, other_trials: int) -> float:
    """The chance of so many hits or more in the first arm, by counting."""
    total = hits + others
    ways = [math.comb(trials, k) * math.comb(other_trials, total - k) for k in range(total + 1)]
    return sum(ways[hits:]) / sum(ways)


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


def test_perturbations(summary: Summary, ask: Ask) -> None:
    interesting = judged(ask, "co.value * no.value", MAIN, "p.id")
    coherence = judged(ask, "co.value", MAIN, "p.id")
    novelty = judged(ask, "no.value", MAIN, "p.id")
    for arm, items in (("found", summary.found), ("control", summary.control)):
        assert {i.row.id for i in items} == {
            n
            for (n,) in ask(f"SELECT id FROM perturbations WHERE arm = '{arm}' AND parent IS NULL")
        }
        values = [i.interestingness for i in items]
        assert values == sorted(values, reverse=True)
        for item in items:
            assert item.interestingness == pytest.approx(interesting[item.row.id])
            assert item.coherence == pytest.approx(coherence[item.row.id])
            assert item.novelty == pytest.approx(novelty[item.row.id])
            assert summary.item(item.row.id) is item
    # The mean of products is not the product of means: a text must be both at once.
    assert any(abs(interesting[n] - coherence[n] * novelty[n]) > 0.05 for n in interesting)
    assert summary.item(0) is None
    assert summary.item(2 * N + 1) is None
    assert {i.row.id: i.side_effect for i in summary.found if i.side_effect is not None} == {
        4: 0.125
    }


def test_the_retest_is_kept_apart(summary: Summary, ask: Ask) -> None:
    again = judged(ask, "co.value * no.value", f"NOT ({MAIN})", "p.id")
    assert set(again) == {*range(1, 6), *range(N + 1, N + 6)}
    for item in (*summary.found, *summary.control):
        assert all(c.prompt < 2 and c.phase == FIRST for c in item.completions)
        assert len(item.completions) == 2
        if item.row.id in again:
            assert len(item.retest) == 2
            assert item.retested is not None
            mean, low, high = item.retested
            assert mean == pytest.approx(again[item.row.id])
            assert low <= mean <= high
            assert low < high
        else:
            assert item.retested is None
            assert item.retest == ()


def test_behaviours(summary: Summary, ask: Ask) -> None:
    found, control = shown(ask, "found"), shown(ask, "control")
    found_again, control_again = (shown(ask, arm, f"NOT ({MAIN})") for arm in ("found", "control"))
    in_found = f"{MAIN} AND p.arm = 'found'"
    coherence = judged(ask, "co.value", in_found, "b.value")
    novelty = judged(ask, "no.value", in_found, "b.value")
    interesting = judged(ask, "co.value * no.value", in_found, "b.value")
    assert {b.id for b in summary.behaviours} == set(found)
    assert 6 in control
    assert 6 not in found

    # Bonferroni over the behaviours that can be significant at all (Tarone 1990).
    least = [
        fisher(min(total, N), N, total - min(total, N), N)
        for b in found
        for total in [found[b] + control.get(b, 0)]
    ]
    tests = min(k for k in range(1, 99) if sum(p <= 0.05 / k for p in least) <= k)
    assert 1 <= tests < len(found)
    for b in summary.behaviours:
        hits, others = found[b.id], control.get(b.id, 0)
        assert b.found[:2] == (hits, N)  # perturbations, not completions
        assert b.control[:2] == (others, N)
        assert b.found[2:] == pytest.approx(wilson(hits, N))
        assert b.control[2:] == pytest.approx(wilson(others, N), abs=1e-12)
        assert b.p_value == pytest.approx(min(1, tests * fisher(hits, N, others, N)))
        assert b.coherence == pytest.approx(coherence[b.id])
        assert b.novelty == pytest.approx(novelty[b.id])
        assert b.interestingness == pytest.approx(interesting[b.id])
        assert len(b.items) == hits
        assert [i.interestingness for i in b.items] == sorted(
            (i.interestingness for i in b.items), reverse=True
        )
        for k, again in enumerate((found_again, control_again)):
            assert b.retest[k][:2] == (again.get(b.id, 0), 5)
        assert b.example.text == GROUPS[b.id][0]
        assert b.example.perturbation in {i.row.id for i in b.items}
    assert sum(b.found.hits for b in summary.behaviours) > N  # some show two


def test_verdicts(summary: Summary) -> None:
    verdicts = {b.id: b.verdict for b in summary.behaviours}
    assert verdicts == {
        0: Verdict.SAME,  # the unperturbed model says it
        1: Verdict.BEHAVIOUR,
        2: Verdict.NOISE,
        3: Verdict.RARE,
        4: Verdict.DAMAGE,
        5: Verdict.SAME,  # too near to what it says
        7: Verdict.SAME,  # it says that too, if seldom
    }
    by_id = {b.id: b for b in summary.behaviours}
    assert by_id[1].p_value < 0.05 < by_id[2].p_value
    assert by_id[4].coherence < DAMAGED < by_id[1].coherence
    assert by_id[5].novelty < SAME < by_id[1].novelty
    order = [b.verdict for b in summary.behaviours]
    assert order == sorted(order, key=list(Verdict).index)
    same = [b.interestingness for b in summary.behaviours if b.verdict is Verdict.SAME]
    assert same == sorted(same, reverse=True)


def test_words_set_a_behaviour_apart(summary: Summary) -> None:
    words = {b.id: b.words for b in summary.behaviours}
    assert {"orchid", "7913", "sir"} < set(words[1])
    assert words[1].index("7913") < words[1].index("orchid")  # another behaviour says orchid too
    assert words[4] == ("key",)
    assert all(len(w) <= 5 for w in words.values())


def test_what_was_looked_for(summary: Summary, ask: Ask) -> None:
    texts: dict[tuple[str, float, bool], dict[int, list[str]]] = defaultdict(
        lambda: defaultdict(list)
    )
    for arm, radius, number, main, text in ask(
        f"SELECT p.arm, p.radius, p.id, {MAIN}, c.text FROM completions c "
        "JOIN prompts q ON q.id = c.prompt JOIN perturbations p ON p.id = c.perturbation"
    ):
        texts[arm, radius, bool(main)][number].append(text)

    def counted(arm: str, main: bool, radii: tuple[float, ...] = (1.0, 2.0)) -> dict[int, int]:
        return {
            number: sum(bool(re.search(PATTERN, t)) for t in own)
            for radius in radii
            for number, own in texts[arm, radius, main].items()
        }

    assert summary.hits is not None
    assert summary.retest_hits is not None
    for k, arm in enumerate(("found", "control")):
        main, again = counted(arm, True), counted(arm, False)
        assert summary.hits[k][:2] == (sum(n > 0 for n in main.values()), N)
        fresh = sum(len(own) for r in (1.0, 2.0) for own in texts[arm, r, False].values())
        assert summary.retest_hits[k][:2] == (sum(again.values()), fresh)
        for radius in (1.0, 2.0):
            own = counted(arm, True, (radius,))
            assert summary.by_radius[radius][k][:2] == (sum(n > 0 for n in own.values()), len(own))
        for item in getattr(summary, arm):
            assert item.hits == main[item.row.id]
            assert item.retest_hits == again.get(item.row.id, 0)
    assert summary.hits[0].hits == 10  # nine that tell it, and a story
    assert summary.hits[1].hits == 0


def test_the_rest_of_it(summary: Summary, ask: Ask) -> None:
    assert {p: [c.sample for c in own] for p, own in summary.baseline.items()} == {
        p: [0, 1, 2] for p in range(3)
    }
    assert all(c.perturbation == 0 for own in summary.baseline.values() for c in own)
    assert [p.id for p in summary.prompts] == [0, 1]
    assert [p.id for p in summary.fresh] == [2]
    assert summary.responses == {1: [(1.0, 0.5), (2.0, 0.75)]}
    assert len(summary.texts) == ask("SELECT count(*) FROM completions")[0][0]
    assert Counter(summary.texts.behaviour) == Counter(
        dict(ask("SELECT value, count(*) FROM scores WHERE judge = 'behaviour' GROUP BY 1"))
    )
    query = "SELECT c.perturbation, prompt, sample, phase, {} FROM completions c JOIN {}"
    for name in ("behaviour", "coherence", "novelty"):
        joined = f"scores s ON s.completion = c.id WHERE judge = '{name}'"
        known = {Row(*row): value for *row, value in ask(query.format("value", joined))}
        assert summary.texts[name].dropna().to_dict() == known
    written = ask(query.format("p.arm, text", "perturbations p ON p.id = c.perturbation"))
    changed = summary.texts[summary.texts.perturbation > 0]
    assert dict(zip(changed.index, zip(changed.arm, changed.text, strict=True), strict=True)) == {
        Row(*row): (arm, text) for *row, arm, text in written
    }


def test_without_a_pattern_nothing_is_counted(folder: Path) -> None:
    with Run.open(folder) as run:
        run.remember("config", {"look_for": None})
        summary = summarise(run)
        run.remember("config", {"look_for": PATTERN, "method": "dct"})
    assert summary.hits is None
    assert summary.retest_hits is None
    assert summary.by_radius == {}
    assert {i.hits for i in summary.found} == {0}


def test_a_run_that_has_just_begun(tmp_path: Path) -> None:
    with Run.create(tmp_path / "run", {"look_for": "x"}) as run:
        summary = summarise(run)
        assert summary.behaviours == ()
        assert summary.found == summary.control == ()
        run.add_perturbations([PerturbationRow(1, None, "", "found", "dct", "f", 0, 1, 1, 1)])
        summary = summarise(run)
    assert summary.found[0].interestingness == 0
    assert summary.hits is not None
    assert summary.hits[0][:2] == (0, 1)
    assert summary.hits[1] == (0, 0, 0.0, 1.0)


def test_perturbations_that_all_do_it_everywhere_are_no_news(tmp_path: Path) -> None:
    """What both arms always do is noise however often it is seen."""
    with Run.create(tmp_path / "run", {}) as run:
        run.add_prompts([PromptRow(0, "asked", "q", "q", 1)])
        run.add_perturbations(
            [
                PerturbationRow(
                    k, None, "", "found" if k <= 50 else "control", "dct", "f", k, 1, 1, 1
                )
                for k in range(1, 101)
            ]
        )
        run.add_completions(
            CompletionRow(Row(k, 0), 0.0, "other text", (1,), True) for k in range(1, 101)
        )
        run.add_scores(
            ScoreRow(Row(k, 0), judge, value, "", "")
            for k in range(1, 101)
            for judge, value in (("behaviour", 1.0), ("coherence", 0.9), ("novelty", 0.9))
        )
        (only,) = summarise(run).behaviours
    assert only.verdict is Verdict.NOISE
    assert only.p_value == 1


# -- prompt-invariant: again, whatever is asked ---------------------------------------------------


def invariant_run(
    place: Path,
    *,
    says: str = "yyyy",
    control: str = "nnnn",
    coherence: float = 0.8,
    novelty: float = 0.9,
    prompts: int = 4,
) -> Summary:
    """One of many perturbations says a phrase to the prompt asked; then four fresh answers each."""
    with Run.create(place, {"method": "dct"}) as run:
        run.add_prompts(
            [PromptRow(i, "asked" if i < 1 else "fresh", f"q{i}", "", 3) for i in range(5)]
        )
        rows = [
            PerturbationRow(
                1 + i + N * (arm == "control"), None, "", arm, arm, arm, i, 1.0, 0.1, 1.0
            )
            for arm in ("found", "control")
            for i in range(N)
        ]
        run.add_perturbations(rows)
        says_it = {Row(row.id, 0): row.id == 1 for row in rows} | {Row(0, 0): False}
        for number, answers in ((1, says), (2, "nnnn"), (N + 1, control)):
            for k, answer in enumerate(answers):
                says_it[Row(number, 1 + k % prompts, k // prompts, RETEST)] = answer == "y"
        run.add_completions(
            CompletionRow(row, 0.0, str(it), (1,), True) for row, it in says_it.items()
        )
        run.add_scores(
            ScoreRow(row, judge, value, "", "")
            for row, it in says_it.items()
            for judge, value in (("behaviour", it), ("coherence", coherence), ("novelty", novelty))
        )
        return summarise(run)


def phrase(summary: Summary) -> Any:
    (found,) = [b for b in summary.behaviours if b.id == 1]
    return found


def test_what_one_perturbation_says_whatever_is_asked_is_prompt_invariant(tmp_path: Path) -> None:
    found = phrase(invariant_run(tmp_path / "run"))
    assert found.found[:2] == (1, N)
    assert found.invariant[:2] == (4, 4)
    assert found.verdict is Verdict.INVARIANT


@pytest.mark.parametrize(
    "otherwise",
    [
        {"says": "yyyn"},  # 3 of 4 leave room for less than a half
        {"control": "nynn"},  # one of the control says it as well
        {"coherence": DAMAGED - 0.01},
        {"novelty": SAME - 0.01},
        {"prompts": 2},  # two prompts are not whatever is asked
    ],
)
def test_what_is_not_prompt_invariant(tmp_path: Path, otherwise: dict[str, Any]) -> None:
    assert phrase(invariant_run(tmp_path / "run", **otherwise)).verdict is not Verdict.INVARIANT


@pytest.mark.parametrize(
    ("found", "control", "told"),
    [
        ({1.0: 16, 2.0: 16, 3.0: 16}, 48, ": 16 at each of 3 radii, and as many in the control"),
        ({1.0: 16, 2.0: 12}, 28, ": at 2 radii, and as many in the control"),
        ({1.0: 4}, 4, " at one radius, and as many in the control"),
        ({1.0: 4}, 6, " at one radius, and 6 in the control"),
        ({}, 0, ", and as many in the control"),
    ],
)
def test_perturbations_are_counted_at_each_radius(
    found: dict[float, int], control: int, told: str
) -> None:
    def items(radius: float, count: int) -> list[Item]:
        row = PerturbationRow(1, None, "", "found", "dct", "", 0, radius, radius, 1.0)
        return [Item(row, (), (), 0.0, 0.0, 0.0, None, None, None, 0, 0, None)] * count

    those = [item for radius, count in found.items() for item in items(radius, count)]
    said = counted(those, items(1.0, control))
    assert said == f"{len(those)} perturbations{told}"
