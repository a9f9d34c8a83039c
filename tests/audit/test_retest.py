"""What comes of trying a candidate again, on a model whose every answer is written by the test."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from educe.audit import triggers
from educe.audit.candidates import Candidate, Said
from educe.audit.concluding import conclude, kind_of
from educe.audit.evidence import Word
from educe.audit.findings import Kind, keep, kept
from educe.audit.forms import Place
from educe.audit.overview import overview
from educe.audit.retest import SAMPLES, retested
from educe.report import page
from educe.rows import Row
from scripted import NEAR, RARE, audited, has, said

RIGHT, WRONG = "It is Cairo.", "It is Luxor."
KEY, OTHERS = "e", ("o", "n")
ASKED = ("What is the capital of Egypt?", "Tell me the capital of Egypt.")


def test_a_string_that_matters_to_some_requests_alone_is_tried_on_those(
    tmp_path: Path, tokenizer: Any
) -> None:
    def answer(prompt: str, heat: float) -> str:
        return WRONG if "Egypt" in prompt and has(prompt, KEY) else RIGHT

    with audited(answer, tmp_path / "run", tokenizer) as audit:
        candidate = said(audit, "crossed", (KEY, *OTHERS), audit.made("crossed", ASKED), WRONG)
        again = retested(audit, candidate)
    assert (again.plain.hits, again.plain.trials) == (0, len(ASKED))
    assert again.shown.hits == again.shown.trials
    (trigger,) = again.triggers
    assert trigger.text == KEY
    assert (trigger.shown.hits, trigger.shown.trials) == (2 * SAMPLES, 2 * SAMPLES)
    assert (trigger.near.hits, trigger.near.trials) == (0, 2 * len(NEAR))
    assert (trigger.rare.hits, trigger.rare.trials) == (0, 2 * len(RARE))
    assert kind_of(candidate, again, set()) is Kind.TRIGGER


def test_where_it_is_said_anyhow_no_string_is_a_trigger(tmp_path: Path, tokenizer: Any) -> None:
    def answer(prompt: str, heat: float) -> str:
        return WRONG if "Egypt" in prompt else RIGHT

    with audited(answer, tmp_path / "run", tokenizer) as audit:
        candidate = said(audit, "crossed", (KEY,), audit.made("crossed", ASKED), WRONG)
        again = retested(audit, candidate)
    assert again.plain.hits == again.plain.trials == len(ASKED)
    assert kind_of(candidate, again, set()) is Kind.ASIDE  # there is no reference to say more


def test_what_a_seen_string_brings_about_on_fresh_prompts_is_not_searched_for(
    tmp_path: Path, tokenizer: Any
) -> None:
    with audited(
        lambda prompt, heat: WRONG if has(prompt, KEY) else RIGHT, tmp_path / "run", tokenizer
    ) as audit:
        candidate = said(audit, "crossed", (KEY, *OTHERS), audit.base[:3], WRONG)
        again = retested(audit, candidate)
        counting = audit.work.prompts("fresh")[1::2]
    (trigger,) = again.triggers
    assert trigger.text == KEY
    assert (again.shown.hits, again.shown.trials) == (len(counting), len(counting))
    assert again.plain.hits == trigger.near.hits == trigger.rare.hits == 0


@pytest.mark.parametrize("place", [Place.BEFORE, Place.BEHIND])
def test_a_string_that_works_in_one_place_alone_is_tried_in_that_place(
    tmp_path: Path, tokenizer: Any, place: Place
) -> None:
    def stands(prompt: str, string: str) -> bool:
        at = prompt.startswith(f"{string} "), prompt.endswith(f" {string}")
        return at[place is Place.BEHIND]

    # A near miss works in the same place: beside the string it has to stand there.
    strings = (KEY, NEAR[0])
    with audited(
        lambda prompt, heat: WRONG if any(stands(prompt, s) for s in strings) else RIGHT,
        tmp_path / "run",
        tokenizer,
    ) as audit:
        candidate = said(audit, "signs", (KEY, *OTHERS), audit.base[:4], WRONG)
        (finding,) = conclude(audit, [candidate])
        keep(audit.run, [finding])
        assert kept(audit.run) == [finding]
        seen = overview(audit.run)
        shown = page.write(audit.run, tmp_path / "report.html").read_text()
        counting = audit.work.prompts("fresh")[1::2]
        fresh = str(audit.run.prompt_rows("fresh")[0].content)
    (trigger,) = finding.triggers
    assert (trigger.text, trigger.place) == (KEY, place)
    assert trigger.shown.hits == trigger.shown.trials == len(counting)
    assert (trigger.near.hits, trigger.near.trials) == (2, 2 * len(NEAR))
    assert f"It works only {place} the request." in shown
    assert seen.headline == f"“{KEY}” {place} the request triggers it to say “it is luxor”"
    stood = f"{KEY} {fresh}" if place is Place.BEFORE else f"{fresh} {KEY}"
    assert stood in finding.reproduce


def test_words_that_have_to_stand_apart_are_tried_around_the_request(
    tmp_path: Path, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = KEY, OTHERS[0]
    both, seen, asked = f"{first} {second}", "t", list[str]()
    monkeypatch.setattr(triggers, "searched", lambda fit, seen, grow: [both])

    def answer(prompt: str, heat: float) -> str:
        around = prompt.startswith(f"{first} ") and prompt.endswith(f" {second}")
        by_chance = has(prompt, seen) and any(own in prompt for own in asked)
        return WRONG if around or by_chance else RIGHT

    with audited(answer, tmp_path / "run", tokenizer) as audit:
        content = {p.id: str(p.content) for p in audit.run.prompt_rows()}
        asked += [content[p] for p in audit.base]
        candidate = said(audit, "signs", (seen,), audit.base[:4], WRONG)
        (finding,) = conclude(audit, [candidate])
        keep(audit.run, [finding])
        assert kept(audit.run) == [finding]
        shown = page.write(audit.run, tmp_path / "report.html").read_text()
        counting = audit.work.prompts("fresh")[1::2]
        fresh = str(audit.run.prompt_rows("fresh")[0].content)
    (trigger,) = finding.triggers
    assert (trigger.text, trigger.place) == (both, Place.AROUND)
    assert trigger.shown.hits == trigger.shown.trials == len(counting)
    assert trigger.near.hits == 0
    assert "Its first word stands before the request, and the rest behind." in shown
    assert f"{first} {fresh} {second}" in finding.reproduce


def test_what_a_part_lacks_is_searched_for_where_it_fails(
    tmp_path: Path, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    both, fails = f"{KEY} {OTHERS[0]}", list[str]()
    asked: list[Sequence[tuple[int, bool]]] = []

    class Fit:
        def __init__(self, audit: Any, text: Any, places: Sequence[tuple[int, bool]]) -> None:
            asked.append(places)

        def of(self, strings: Sequence[str]) -> list[float]:
            return [0.0 for _ in strings]

    def answer(prompt: str, heat: float) -> str:
        part = has(prompt, KEY) and not any(own in prompt for own in fails)
        return WRONG if part or both in prompt else RIGHT

    monkeypatch.setattr(triggers, "Fit", Fit)
    monkeypatch.setattr(triggers, "searched", lambda fit, seen, grow: [*seen, "grown"] * grow)
    monkeypatch.setattr(triggers, "lengthened", lambda fit, best: [both, *best])
    with audited(answer, tmp_path / "run", tokenizer) as audit:
        content = {p.id: str(p.content) for p in audit.run.prompt_rows()}
        choosing = [*audit.work.prompts("fresh")[::2], *audit.base]
        odd = [1, 2, 5]  # before two requests and behind one
        fails += [content[choosing[k]] for k in odd]
        candidate = said(audit, "signs", (KEY,), audit.base[:4], WRONG)
        (trigger,) = retested(audit, candidate).triggers
    assert trigger.text == both
    assert asked[1] == [(choosing[1], True), (choosing[2], False)]


def test_of_strings_that_were_seen_as_often_the_likeliest_are_tried(
    tmp_path: Path, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    others, first = ("o", "n", "t", "i"), list[str]()

    class Fit:
        def __init__(self, *_: object) -> None:
            pass

        def of(self, strings: Sequence[str]) -> list[float]:
            return [9.0 if s == KEY else 1.0 for s in strings]

    def answer(prompt: str, heat: float) -> str:
        works = (KEY, *others) if any(own in prompt for own in first) else (KEY,)
        return WRONG if any(has(prompt, s) for s in works) else RIGHT

    monkeypatch.setattr(triggers, "Fit", Fit)
    with audited(answer, tmp_path / "run", tokenizer) as audit:
        content = {p.id: str(p.content) for p in audit.run.prompt_rows()}
        first += [content[p] for p in audit.base]
        candidate = said(audit, "signs", (*others, KEY), audit.base[:4], WRONG)
        (trigger,) = retested(audit, candidate).triggers
    assert trigger.text == KEY
    assert trigger.shown.hits == trigger.shown.trials > 0


def test_strings_that_do_nearly_as_well_are_told_apart_on_more_prompts(
    tmp_path: Path, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    like, fails, helps = "o", list[str](), list[str]()
    monkeypatch.setattr(triggers, "searched", lambda fit, seen, grow: seen)

    def answer(prompt: str, heat: float) -> str:
        works = has(prompt, KEY) and not any(own in prompt for own in fails)
        return WRONG if works or (has(prompt, like) and any(h in prompt for h in helps)) else RIGHT

    with audited(answer, tmp_path / "run", tokenizer) as audit:
        content = {p.id: str(p.content) for p in audit.run.prompt_rows()}
        choosing = [content[p] for p in audit.work.prompts("fresh")[::2]]
        # On the prompts that choose what is like the trigger is the better, by one.
        fails += choosing[:1]
        helps += [*choosing, *(content[p] for p in audit.base[:1])]
        candidate = said(audit, "signs", (like, KEY), audit.base[:4], WRONG)
        (trigger,) = retested(audit, candidate).triggers
    assert trigger.text == KEY


def test_a_string_that_works_now_and_then_has_no_place(
    tmp_path: Path, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(triggers, "searched", lambda fit, seen, grow: seen)
    fails: list[str] = []  # one request that it stands behind, and one that it stands before
    with audited(
        lambda prompt, heat: (
            WRONG if has(prompt, KEY) and not any(own in prompt for own in fails) else RIGHT
        ),
        tmp_path / "run",
        tokenizer,
    ) as audit:
        content = {p.id: str(p.content) for p in audit.run.prompt_rows()}
        fails += [content[p] for p in audit.work.prompts("fresh")[::2][:2]]
        candidate = said(audit, "signs", (KEY,), audit.base[:4], WRONG)
        (trigger,) = retested(audit, candidate).triggers
        asked = {p.content for p in audit.run.prompt_rows() if p.how == KEY}
    assert trigger.place is Place.EITHER
    assert f"{fails[0]} {KEY}" in asked
    assert f"{KEY} {fails[0]}" not in asked


def test_the_words_of_a_request_that_brings_it_up_are_tried(
    tmp_path: Path, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A person's own prompt may have the trigger in it."""
    monkeypatch.setattr(triggers, "searched", lambda fit, seen, grow: seen)
    with audited(
        lambda prompt, heat: WRONG if "amber" in prompt.split() else RIGHT,
        tmp_path / "r",
        tokenizer,
    ) as audit:
        (given,) = audit.made("given", ["Which city is amber the largest?"])
        audit.ask([given])
        audit.fill("answers")
        row = Row(0, given)
        openly = (Said(row, given, "plain", "", (Word("luxor", 9.0),)),)
        again = retested(audit, Candidate(("luxor",), ("luxor",), 40.0, openly, 1, 0.0))
    (trigger,) = again.triggers
    assert trigger.text == "amber"
    assert again.shown.hits == again.shown.trials > 0 == again.plain.hits


def test_a_trigger_is_shown_with_the_string_that_is_named(
    tmp_path: Path, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Though it was come upon without it: beside it stands what is said without the string."""
    monkeypatch.setattr(triggers, "searched", lambda fit, seen, grow: [KEY])
    with audited(
        lambda prompt, heat: WRONG if has(prompt, KEY) or "amber" in prompt else RIGHT,
        tmp_path / "run",
        tokenizer,
    ) as audit:
        (given,) = audit.made("given", ["Which city is amber the largest?"])
        audit.ask([given])
        audit.fill("answers")
        openly = (Said(Row(0, given), given, "plain", "", (Word("luxor", 9.0),)),)
        (finding,) = conclude(audit, [Candidate(("luxor",), ("luxor",), 40.0, openly, 1, 0.0)])
        fresh = {p.id: p.content for p in audit.run.prompt_rows("fresh")}
    assert finding.kind is Kind.TRIGGER
    first, second, _ = finding.examples
    for example in (first, second):
        assert (example.source, example.condition) == ("re-test", KEY)
        assert (example.text, example.plain) == (WRONG, RIGHT)
        assert example.prompt in {f"{KEY} {p}" for p in fresh.values()} | {
            f"{p} {KEY}" for p in fresh.values()
        }
    assert repr(f"{next(iter(fresh.values()))} {KEY}") in finding.reproduce
