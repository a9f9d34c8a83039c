"""The numbers of a run against the same numbers from its tables, by SQL and by hand."""

from __future__ import annotations

import math
import re
import sqlite3
from array import array
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest

from counted_run import AGAIN, DRAWS, GROUPS, MAIN, PATTERN, Ask, N, counted_run, judged, shown
from educe.comparison.summary import Item, Summary, counted, summarise
from educe.comparison.verdict import Change, Verdict
from educe.rows import (
    ELSEWHERE,
    FIRST,
    CompletionRow,
    PerturbationRow,
    PromptRow,
    Row,
    ScoreRow,
)
from educe.run.store import Run
from synthetic_run import texts_by_row


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return counted_run(tmp_path_factory.mktemp("summary") / "run")


@pytest.fixture(scope="module")
def summary(folder: Path) -> Iterator[Summary]:
    with Run.open(folder) as run:
        yield summarise(run)


@pytest.fixture(scope="module")
def ask(folder: Path) -> Ask:
    database = sqlite3.connect(folder / "run.sqlite")
    return lambda query: database.execute(query).fetchall()


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
    again = judged(ask, "co.value * no.value", AGAIN, "p.id")
    assert set(again) == {*range(1, 6), *range(N + 1, N + 6)}
    for item in (*summary.found, *summary.control):
        first = summary.texts.written(item.completions)
        assert {c.perturbation for c in first} == {item.row.id}
        assert all(c.prompt < 2 and c.phase == FIRST for c in first)
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
            assert not item.retest


def corrected(counts: list[tuple[int, int]], n: int, m: int) -> list[float]:
    """Fisher's test of each, Bonferroni over those that can be significant (Tarone 1990)."""
    least = []
    for hits, others in counts:
        inside = min(hits + others, n)
        least.append(fisher(inside, n, hits + others - inside, m))
    tests = min(k for k in range(1, 99) if sum(p <= 0.05 / k for p in least) <= k)
    return [min(1, tests * fisher(hits, n, others, m)) for hits, others in counts]


def test_behaviours(summary: Summary, ask: Ask) -> None:
    found, control = shown(ask, "found"), shown(ask, "control")
    draws = dict(
        ask(
            "SELECT b.value, count(DISTINCT c.sample) FROM completions c JOIN scores b ON "
            "b.completion = c.id JOIN prompts q ON q.id = c.prompt WHERE b.judge = 'behaviour' "
            f"AND c.perturbation = 0 AND c.sample > 0 AND {MAIN} GROUP BY 1"
        )
    )
    # All but the likeliest answer: what some found perturbation says, or random ones twice.
    assert {b.id for b in summary.behaviours} == {1, 2, 3, 4, 5, 6, 7}
    assert 6 not in found
    assert control[6] == 4
    for b in summary.behaviours:
        assert b.found[:2] == (found.get(b.id, 0), N)  # perturbations, not completions
        assert b.control[:2] == (control.get(b.id, 0), N)
        assert b.samples[:2] == (draws.get(b.id, 0), DRAWS)
        assert b.greedy[:2] == (0, 2)
        assert b.equal is None
        for rate in (b.found, b.control, b.samples):
            assert rate[2:] == pytest.approx(wilson(*rate[:2]), abs=1e-12)
        own = f"{MAIN} AND p.arm = '{'found' if b.id in found else 'control'}'"
        for name, what in (
            ("coherence", "co.value"),
            ("novelty", "no.value"),
            ("interestingness", "co.value * no.value"),
        ):
            assert getattr(b, name) == pytest.approx(judged(ask, what, own, "b.value")[b.id])
        assert b.example.text == GROUPS[b.id][0]
        assert b.example.perturbation in b.numbers
        says = "SELECT DISTINCT p.id FROM completions c JOIN scores b ON b.completion = c.id "
        says += "JOIN prompts q ON q.id = c.prompt JOIN perturbations p ON p.id = c.perturbation "
        says += f"WHERE b.judge = 'behaviour' AND b.value = {b.id} AND {MAIN}"
        assert set(b.numbers) == {n for (n,) in ask(says)}
        assert list(b.numbers) == sorted(b.numbers, key=lambda n: n > N)  # found ones first
        assert sum(r.hits for r in b.by_dose.values()) == b.found.hits
        assert {d: r.trials for d, r in b.by_dose.items()} == {0.1: N // 2, 0.2: N // 2}
    assert sum(b.found.hits for b in summary.behaviours) > 18  # some show two


def test_tests_are_those_of_the_counts(summary: Summary, ask: Ask) -> None:
    told = summary.behaviours
    again = {arm: shown(ask, arm, AGAIN) for arm in ("found", "control")}
    first = [(b.found.hits, b.control.hits) for b in told]
    second = [(again["found"].get(b.id, 0), again["control"].get(b.id, 0)) for b in told]
    pushed = [(b.found.hits + b.control.hits, b.samples.hits) for b in told]
    assert max(map(sum, second)) > 5
    for counts, n, m, name in (
        (first, N, N, "p_value"),
        (second, 5, 5, "p_retest"),
        (pushed, 2 * N, DRAWS, "p_samples"),
    ):
        expected = corrected(counts, n, m)
        assert [getattr(b, name) for b in told] == pytest.approx(expected)
        assert min(expected) < max(expected)


def test_the_retest_of_a_behaviour_is_that_of_those_that_say_it(summary: Summary, ask: Ask) -> None:
    answers = ask(
        "SELECT p.arm, p.id, c.prompt, q.role, b.value FROM completions c JOIN scores b ON "
        "b.completion = c.id JOIN prompts q ON q.id = c.prompt JOIN perturbations p ON "
        "p.id = c.perturbation WHERE b.judge = 'behaviour' AND c.phase = 'retest'"
    )
    for b in summary.behaviours:
        again = [a for a in answers if a[3] != ELSEWHERE]
        mine = [a[4] == b.id for a in again if a[0] == "found" and a[1] in b.numbers]
        theirs = [a[4] == b.id for a in again if a[0] == "control"]
        assert b.retest[:2] == (sum(mine), len(mine))
        assert b.retest_control[:2] == (sum(theirs), len(theirs) or 0)
        # Samples of the two prompts of the re-test; one of the fresh prompt's tells.
        assert b.retest_samples[:2] == ((int(b.id == 1), 2 * DRAWS) if mine else (0, 0))
        far: dict[int, list[bool]] = defaultdict(list)
        for arm, number, prompt, role, group in answers:
            if role == ELSEWHERE and arm == "found" and number in b.numbers:
                # Where the likeliest answer to that request says it as well, it is no sign.
                far[number].append(group == b.id and not (prompt == 3 and b.id == 3))
        most = max(far.values(), key=sum, default=[])
        assert b.elsewhere[:2] == (sum(most), len(most))
    by_id = {b.id: b for b in summary.behaviours}
    assert by_id[1].retest[:2] == (7, 10)
    assert by_id[1].retest_control[:2] == (2, 10)
    assert by_id[1].elsewhere[:2] == (2, 3)


def test_verdicts(summary: Summary) -> None:
    assert {b.id: b.verdict for b in summary.behaviours} == {
        1: Verdict.BEHAVIOUR,
        2: Verdict.FRAGILE,
        3: Verdict.RARE,
        4: Verdict.DAMAGE,
        5: Verdict.FRAGILE,
        6: Verdict.STOCK,  # random ones say it when something else is asked, too
        7: Verdict.OWN,  # two draws of four
    }
    assert {b.id: b.change for b in summary.behaviours} == {
        **dict.fromkeys((1, 2, 3, 6, 7), Change.ENDED),
        4: Change.REPETITION,
        5: Change.NEW,  # it declines, as before
    }


def test_the_order_is_by_weight(summary: Summary) -> None:
    """As docs/behaviours.md has it."""
    sure = {
        Verdict.INVARIANT: 4,
        Verdict.BEHAVIOUR: 2,
        Verdict.FRAGILE: 1,
        Verdict.OWN: 1,
        Verdict.RARE: 0.7,
    }
    for b in summary.behaviours:
        if b.verdict not in sure:
            assert b.weight < 0
            continue
        ended = b.change is Change.ENDED
        share = max(b.found.share, b.control.share, b.samples.share if ended else 0)
        expected = sure[b.verdict] * share * math.sqrt(b.coherence) * (1 + ended)
        assert b.weight == pytest.approx(expected)
    weights = [b.weight for b in summary.behaviours]
    assert weights == sorted(weights, reverse=True)
    assert [b.id for b in summary.behaviours][:2] == [1, 7]
    assert {b.id for b in summary.behaviours[-2:]} == {4, 6}


def test_pushes_are_counted_by_arm_and_dose(summary: Summary, ask: Ask) -> None:
    answers = ask(
        "SELECT coalesce(p.arm, 'samples'), coalesce(p.dose, 0), coalesce(p.id, -c.sample), "
        "b.value FROM completions c JOIN prompts q ON q.id = c.prompt JOIN scores b ON "
        "b.completion = c.id LEFT JOIN perturbations p ON p.id = c.perturbation "
        f"WHERE b.judge = 'behaviour' AND {MAIN} AND (p.id OR c.sample > 0)"
    )
    units: dict[tuple[str, float], dict[int, set[int]]] = defaultdict(lambda: defaultdict(set))
    for arm, dose, unit, group in answers:
        units[arm, dose][unit].add(int(group))
    assert set(units) == {(p.arm, p.dose) for p in summary.pushes}
    assert len(units) == 5
    refusing, damaged = {0, 5}, {4}
    for push in summary.pushes:
        own = units[push.arm, push.dose].values()
        for rate, of in (
            (push.changed, {*GROUPS} - damaged - {0}),
            (push.ended, {*GROUPS} - damaged - refusing),
            (push.begun, set()),
            (push.damaged, damaged),
        ):
            assert rate[:2] == (sum(bool(u & of) for u in own), len(own))


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
        "JOIN prompts q ON q.id = c.prompt JOIN perturbations p ON p.id = c.perturbation "
        "WHERE q.role != 'elsewhere'"
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
        p: [*range(1 + DRAWS)] for p in range(3)
    }
    assert all(c.perturbation == 0 for own in summary.baseline.values() for c in own)
    assert [p.id for p in summary.prompts] == [0, 1]
    assert [p.id for p in summary.fresh] == [2]
    assert summary.responses == {1: [(1.0, 0.5), (2.0, 0.75)]}
    texts = texts_by_row(summary)
    assert len(texts) == ask("SELECT count(*) FROM completions")[0][0]
    assert Counter(texts.behaviour) == Counter(
        dict(ask("SELECT value, count(*) FROM scores WHERE judge = 'behaviour' GROUP BY 1"))
    )
    query = "SELECT c.perturbation, prompt, sample, phase, {} FROM completions c JOIN {}"
    for name in ("behaviour", "coherence", "novelty"):
        joined = f"scores s ON s.completion = c.id WHERE judge = '{name}'"
        known = {Row(*row): value for *row, value in ask(query.format("value", joined))}
        assert texts[name].dropna().to_dict() == known
    written = ask(query.format("p.arm, text", "perturbations p ON p.id = c.perturbation"))
    changed = texts[texts.perturbation > 0]
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
    """What both arms always do says nothing of the search, however often it is seen."""
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
            CompletionRow(Row(k, 0), 0.0, "other text" if k else "text", (1,), True)
            for k in range(101)
        )
        run.add_scores(
            ScoreRow(Row(k, 0), judge, value, "", "")
            for k in range(101)
            for judge, value in (("behaviour", k > 0), ("coherence", 0.9), ("novelty", 0.9))
        )
        (only,) = summarise(run).behaviours
    assert only.verdict is Verdict.FRAGILE
    assert only.p_value == 1


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
        return [
            Item(row, array("q"), array("q"), 0.0, 0.0, 0.0, None, None, None, 0, 0, None)
        ] * count

    those = [item for radius, count in found.items() for item in items(radius, count)]
    said = counted(those, items(1.0, control))
    assert said == f"{len(those)} perturbations{told}"
