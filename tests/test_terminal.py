"""What the terminal shows of a run, and the same as data, beside the run's own rows."""

from __future__ import annotations

import io
import json
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from educe.comparison.account import account, damage, fragility, shown
from educe.comparison.stats import Rate, rate
from educe.comparison.summary import Summary, summarise
from educe.comparison.verdict import Change, Verdict
from educe.report import terminal
from educe.rows import BEHAVIOUR, CONTROL, FIRST, FOUND, RETEST
from synthetic_run import PROMPTS, build, texts_by_row


@pytest.fixture(scope="module")
def summary(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Summary]:
    with build(tmp_path_factory.mktemp("run") / "audit", responses=False) as run:
        yield summarise(run)


def printed(summary: Summary, width: int = 240) -> list[str]:
    out = io.StringIO()
    terminal.table(summary, Path("runs/audit"), Console(file=out, width=width))
    return out.getvalue().splitlines()


def listed(lines: list[str]) -> tuple[list[str], list[list[str]]]:
    """Return the heads of the table and its rows, cut where two spaces part the cells."""
    first = next(i for i, text in enumerate(lines) if "what the model says" in text)
    rows = []
    for text in lines[first + 1 :]:
        if not re.search(r"\d+/\d+", text):
            break
        rows.append(re.split(r" {2,}", text.strip()))
    return re.split(r" {2,}", lines[first].strip()), rows


def test_the_table_has_four_rates_and_the_re_test(summary: Summary) -> None:
    heads, rows = listed(printed(summary))
    assert heads == [
        *("what the model says when pushed", "kind", "greedy", "samples", "control", "found"),
        *("re-test", "dose", "id"),
    ]
    told = shown(summary)[: terminal.SHOWN]
    assert len(rows) == len(told) > 2
    for b, cells in zip(told, rows, strict=True):
        best = max(b.by_dose, key=lambda dose: b.by_dose[dose].share)
        expected = [
            b.example.text.replace("\n", " "),
            b.change.value,
            *(
                f"{r.hits}/{r.trials}" if r.trials else "–"
                for r in (b.greedy, b.samples, b.control, b.found, b.retest)
            ),
            f"{best:.2f}" if b.by_dose[best].hits else "–",
            str(b.example.perturbation),
        ]
        assert [cells[0][:40], *cells[1:]] == [expected[0][:40], *expected[1:]]


def test_its_numbers_are_those_of_the_texts(summary: Summary) -> None:
    """The first line, counted by hand: who tells the code, which no one does unperturbed."""
    _, (first, *_) = listed(printed(summary))
    texts = texts_by_row(summary)
    tells = texts.text.str.contains("orchid-7913")
    counts = {
        arm: texts.perturbation[tells & (texts.arm == arm) & (texts.phase == FIRST)].nunique()
        for arm in (FOUND, CONTROL)
    }
    finders = set(texts.perturbation[tells & (texts.arm == FOUND) & (texts.phase == FIRST)])
    again = texts[(texts.phase == RETEST) & texts.perturbation.isin(finders)]
    assert first[1:7] == [
        *("a refusal ended", f"0/{len(PROMPTS)}", "0/8", f"{counts[CONTROL]}/96"),
        *(f"{counts[FOUND]}/96", f"{int(tells[again.index].sum())}/{len(again)}"),
    ]
    assert counts[FOUND] > 5


def test_the_control_at_equal_effect_has_a_column(summary: Summary) -> None:
    equal = [replace(b, equal=rate(1, 70 + b.id)) for b in summary.behaviours]
    heads, rows = listed(printed(replace(summary, behaviours=tuple(equal))))
    assert heads[4:7] == ["control", "equal", "found"]
    assert [cells[5] for cells in rows] == [
        f"1/{70 + b.id}" for b in shown(summary)[: terminal.SHOWN]
    ]


def test_below_it_stand_fragility_damage_and_what_is_not_shown(summary: Summary) -> None:
    flat = " ".join(" ".join(printed(summary)).split())
    assert fragility(summary) in flat
    assert damage(summary) in flat
    hidden = Counter(b.verdict for b in summary.behaviours if b.weight < 0)
    assert hidden
    words = {Verdict.DAMAGE: "damaged", Verdict.STOCK: "stock phrases"}
    words |= {Verdict.OWN: "that the model also says unperturbed"}
    each = ", ".join(f"{hidden[v]} {words[v]}" for v in Verdict if hidden[v])
    assert f"Not shown: {each}." in flat


def test_what_does_not_fit_into_the_table_is_counted(summary: Summary) -> None:
    (best, *_) = shown(summary)
    many = [replace(best, id=1000 + k) for k in range(terminal.SHOWN + 3)]
    lines = printed(replace(summary, behaviours=tuple(many)))
    assert len(listed(lines)[1]) == terminal.SHOWN
    assert "Not shown: 3 more as in the table." in lines


def test_without_a_behaviour_that_is_said(summary: Summary) -> None:
    same = "Perturbed or not, the model says the same, but for what is counted below."
    hidden = tuple(b for b in summary.behaviours if b.weight < 0)
    assert same in printed(replace(summary, behaviours=hidden))
    assert same not in printed(summary)


def test_json_has_everything_that_the_screen_has(summary: Summary) -> None:
    data = json.loads(json.dumps(terminal.as_data(summary, None)))
    assert data["account"] == account(summary)
    for b, own in zip(summary.behaviours, data["behaviours"], strict=True):
        for name in ("greedy", "samples", "control", "found", "retest", "retest_control"):
            assert Rate(**own[name]) == getattr(b, name)
        assert Rate(**own["retest_samples"]) == b.retest_samples
        assert Rate(**own["elsewhere"]) == b.elsewhere
        assert own["equal"] is None
        assert Change[own["kind"].upper()] is b.change
        assert Verdict[own["verdict"].upper()] is b.verdict
        assert own["perturbations"] == list(b.numbers)
        assert own["shown"] is (b in shown(summary))
        assert (own["text"], own["example_perturbation"]) == (
            b.example.text,
            b.example.perturbation,
        )
        assert (own["p_value"], own["p_retest"], own["p_samples"]) == (
            *(b.p_value, b.p_retest, b.p_samples),
        )
        assert {float(d): r["hits"] for d, r in own["by_dose"].items()} == {
            float(f"{d:.2f}"): r.hits for d, r in b.by_dose.items()
        }
    assert {(p["arm"], p["dose"]) for p in data["fragility"]} == {
        (p.arm, p.dose) for p in summary.pushes
    }
    for push, own in zip(summary.pushes, data["fragility"], strict=True):
        for name in ("changed", "ended", "begun", "damaged"):
            assert Rate(**own[name]) == getattr(push, name)
    texts = texts_by_row(summary)
    once = texts[(texts.phase == RETEST) & (texts.arm == FOUND)]
    told = next(b for b in data["behaviours"] if b["verdict"] == "behaviour")
    mine = once[once.perturbation.isin(told["perturbations"])]
    assert told["retest"]["hits"] == int((mine[BEHAVIOUR] == told["id"]).sum()) > 0
