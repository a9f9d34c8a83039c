"""The page of a run that is too large to be looked at whole; `WHOLE` is set small here."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from educe.comparison.summary import Summary, summarise
from educe.explore import frames
from educe.report import page, size
from educe.run.store import Run
from read_document import blocks, charts, count, part, text
from synthetic_run import build

WHOLE = 200
FEW = size.Most(items=3, cards=2, asked=1, points=5)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    with build(tmp_path_factory.mktemp("run") / "audit", n=16) as run:
        yield run


@pytest.fixture(scope="module")
def summary(run: Run) -> Summary:
    return summarise(run)


@pytest.fixture
def large(monkeypatch: pytest.MonkeyPatch) -> None:
    for room in (size, frames):
        monkeypatch.setattr(room, "WHOLE", WHOLE)
    monkeypatch.setattr(size, "FEW", FEW)


def rates(seen: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the rates of the first table, without the text that it begins with."""
    (table,) = [b for b in blocks(part(seen, "result"), "table") if "greedy" in str(b["columns"])]
    return [{k: v for k, v in row.items() if k != "what"} for row in table["rows"]]


def test_its_numbers_are_those_of_the_whole_run(run: Run, summary: Summary, large: None) -> None:
    few = page.document(run, summary)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(size, "WHOLE", 10**6)
        whole = page.document(run, summary)
    assert few["title"] == whole["title"]
    assert rates(few) == rates(whole)
    assert text(part(few, "result")).startswith(text(part(whole, "result"))[:300])
    headings = [re.findall(r"\w[\w ]+: \d+", text(part(one, "behaviours"))) for one in (few, whole)]
    assert headings[0]
    assert set(headings[0]) <= set(headings[1])


def test_it_says_what_it_leaves_out(run: Run, summary: Summary, large: None) -> None:
    seen = page.document(run, summary)
    said = text(part(seen, "result"))
    assert f"This run has {len(summary.texts.rows)} texts" in said
    assert "educe explore audit" in said
    several = [b for b in summary.behaviours if len(b.numbers) > FEW.items]
    assert several, "no table would be cut: what is tested?"
    cards = list(blocks(part(seen, "behaviours"), "card"))
    each = [c["badges"][0] for c in cards]
    assert each
    assert max(map(each.count, each)) == FEW.cards
    tables = [b for c in cards for b in blocks(c, "table") if b["columns"][0]["key"] == "id"]
    assert max(len(t["rows"]) for t in tables) == FEW.items
    specs = charts(seen)
    assert len(specs["map"]["data"]["values"]) == FEW.points
    steps = specs["interestingness"]["data"]["values"]
    for arm in ("found", "control"):
        shares = [s["share"] for s in steps if s["arm"] == arm]
        assert len(shares) == FEW.points
        assert max(shares) == 1


def test_the_commonest_texts_are_on_the_map(run: Run, summary: Summary, large: None) -> None:
    few = charts(page.document(run, summary))["map"]["data"]["values"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(size, "WHOLE", 10**6)
        every = charts(page.document(run, summary))["map"]["data"]["values"]
    sizes = sorted((p["completions"] for p in every), reverse=True)
    assert sorted((p["completions"] for p in few), reverse=True) == sizes[: FEW.points]


def test_it_has_whole_perturbations_and_those_that_it_names(
    run: Run, summary: Summary, large: None
) -> None:
    texts = frames.texts_of_each(run)
    chosen = size.chosen(summary, texts)
    assert chosen is not None
    has = frames.frames(run, summary, chosen)
    shown = has["completions"]["perturbation"]
    assert WHOLE / 2 < len(shown) <= WHOLE < sum(texts.values())
    assert {n: shown.count(n) for n in set(shown)} == {n: texts[n] for n in chosen}
    assert has["perturbations"]["id"] == sorted(set(chosen) - {0})
    assert set(has["scores"]["perturbation"]) <= set(chosen)
    assert all(set(own) <= set(chosen) for own in has["behaviours"]["perturbations"])
    best = [b.example.perturbation for b in summary.behaviours[:5]]
    assert set(best) <= set(chosen)
    assert {arm[0].row.id for arm in (summary.found, summary.control)} <= set(chosen)


def test_the_unperturbed_model_alone_can_be_too_much(
    run: Run, summary: Summary, monkeypatch: pytest.MonkeyPatch
) -> None:
    for room in (size, frames):
        monkeypatch.setattr(room, "WHOLE", 10)
    chosen = size.chosen(summary, frames.texts_of_each(run))
    assert chosen == [0]
    assert len(frames.frames(run, summary, chosen)["completions"]["id"]) == 10


def test_a_run_of_usual_size_is_drawn_whole(run: Run, summary: Summary, tmp_path: Path) -> None:
    texts = frames.texts_of_each(run)
    assert size.chosen(summary, texts) is None
    assert size.most(summary) == size.ALL
    assert not size.note(summary)
    has = frames.frames(run, summary)
    assert len(has["completions"]["id"]) == sum(texts.values())
    assert count(summary.behaviours[0].found)
