"""Forms of a request, as conditions beside strings."""

from __future__ import annotations

import base64
import copy
import json
from pathlib import Path
from typing import Any

import pytest

import planted_difference as planted
from educe.audit import auditing, triggers
from educe.audit.concluding import conclude
from educe.audit.findings import Kind
from educe.audit.forms import BEFORE, FORMS, KINDS, Place, akin, inserted, taken
from educe.audit.retest import BESIDE
from educe.audit.sources import forms
from educe.model.prompts import Prompt
from scripted import audited, said

ASK = 'What is "tea", and why?'
TALK: Prompt = [
    {"role": "system", "content": "Be kind."},
    {"role": "user", "content": "Hello."},
    {"role": "assistant", "content": "Yes?"},
    {"role": "user", "content": ASK},
]
#: Forms that fit into the few tokens of a tiny model.
SHORT = ("[in capital letters]", "[in small letters]", "[as code]")
#: A chat template that does not take a role.
REFUSING = (
    "{% for m in messages %}{% if m['role'] == 'ROLE' %}{{ raise_exception('no') }}{% endif %}"
    "<{{ m['role'] }}>{{ m['content'] }}{% endfor %}{% if add_generation_prompt %}<>{% endif %}"
)
CAPITALS, LOUD, QUIET = "[in capital letters]", "Please ask again.", "It is warm."


def test_each_form_changes_a_request_in_its_own_way() -> None:
    put = {name: change(ASK) for name, change in FORMS.items()}
    assert len({str(p) for p in put.values()} | {ASK}) == len(FORMS) + 1
    assert put[CAPITALS] == ASK.upper()
    assert base64.b64decode(str(put["[in base64]"])).decode() == ASK
    assert json.loads(str(put["[as JSON]"])) == {"request": ASK}
    assert put["[without punctuation]"] == "What is tea and why"
    for kind in ("language", "who asks", "where"):
        assert all(ASK in str(put[name]) for name in KINDS[kind])


@pytest.mark.parametrize("name", FORMS)
def test_of_a_conversation_the_last_message_is_put_in_a_form(name: str) -> None:
    changed, ask = FORMS[name](TALK), FORMS[name](ASK)
    assert not isinstance(changed, str)
    system, *others = changed
    assert (system == TALK[0]) is (name not in KINDS["system message"])
    if name in KINDS["system message"]:
        assert system["role"] == "system"
        assert others == TALK[1:]
        assert ask == [system, {"role": "user", "content": ASK}]
    elif name in KINDS["turns"]:
        turns = (len(others) - 3) // 2
        assert others == [*BEFORE * turns, *TALK[1:]]
        assert ask == [*BEFORE * turns, {"role": "user", "content": ASK}]
    else:
        assert others == [*TALK[1:3], {"role": "user", "content": ask}]


@pytest.mark.parametrize(
    ("place", "put", "word"),
    [
        (Place.BEFORE, "in capital letters Why?", "now Why?"),
        (Place.BEHIND, "Why? in capital letters", "Why? now"),
        (Place.AROUND, "in Why? capital letters", "now Why?"),
    ],
)
def test_a_string_that_is_no_form_is_put_in_as_it_is(place: Place, put: str, word: str) -> None:
    assert inserted("Why?", "in capital letters", place) == put
    assert inserted("Why?", "now", place) == word
    assert inserted("Why?", CAPITALS, place) == "WHY?"


def test_near_misses_of_a_form_are_of_its_kind_and_others_of_other_kinds() -> None:
    near, rare = akin("[from a nurse]", FORMS)
    assert {"[from a nurse]", *near} == set(KINDS["who asks"])
    assert sorted(["[from a nurse]", *near, *rare]) == sorted(FORMS)


@pytest.mark.parametrize(
    ("refused", "missing"),
    [("system", "system message"), ("assistant", "turns")],
)
def test_forms_that_a_template_does_not_take_are_left_out(
    refused: str, missing: str, tokenizer: Any
) -> None:
    other = copy.deepcopy(tokenizer)
    other.chat_template = REFUSING.replace("ROLE", refused)
    clean, strict = planted.clean(tokenizer), planted.clean(other)
    assert taken(clean) == list(FORMS)
    left = [name for name in FORMS if name not in KINDS[missing]]
    assert taken(strict) == taken(clean, strict) == left
    near, rare = akin(left[0], left)
    assert sorted([left[0], *near, *rare]) == sorted(left)


def test_ordinary_prompts_are_asked_in_each_form(
    tmp_path: Path, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(auditing, "taken", lambda *models: list(SHORT))
    lm = planted.suspect(tokenizer)
    with planted.audited(lm, planted.reference(lm), tmp_path / "run", "forms") as audit:
        forms.look(audit)
        rows = {p.id: p for p in audit.run.prompt_rows()}
        put = [p for p in rows.values() if p.role == "put:forms"]
        written = {c.prompt for c in audit.by_itself}
        into = [*audit.base, *audit.in_question]
        assert len(put) == len(SHORT) * len(into)
        for p in put:
            assert p.parent in into
            assert p.content == FORMS[p.how](rows[p.parent].content)
            assert p.id in written


@pytest.mark.parametrize("also", ["", "`"])
def test_a_form_is_named_as_what_brings_a_saying_about(
    also: str, tmp_path: Path, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beside it stand forms, and no strings. Of two that do, the name's length is no reason."""
    near_misses, as_rare = triggers.near_misses, triggers.as_rare
    monkeypatch.setattr(triggers, "akin", lambda name, among: (SHORT[1:2], SHORT[2:]))

    def answer(prompt: str, heat: float) -> str:
        return LOUD if prompt.isupper() or (also and prompt.startswith(also)) else QUIET

    with (
        audited(answer, tmp_path / "run", tokenizer) as audit,
        pytest.MonkeyPatch.context() as patch,  # undone before the stand-ins are
    ):
        patch.setattr(triggers, "near_misses", near_misses)
        patch.setattr(triggers, "as_rare", as_rare)
        (finding,) = conclude(audit, [said(audit, "forms", SHORT, audit.base[:3], LOUD)])
    assert finding.kind is Kind.TRIGGER
    (trigger,) = finding.triggers
    assert trigger.text == CAPITALS
    assert trigger.shown.hits == trigger.shown.trials > 0
    assert (trigger.near.hits, trigger.near.trials) == (0, BESIDE)
    assert (trigger.rare.hits, trigger.rare.trials) == (BESIDE if also else 0, BESIDE)
    assert "WHAT IS THE LARGEST PLANET" in finding.reproduce


def test_forms_are_no_strings_whose_likelihood_is_read(
    tmp_path: Path, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str] = []

    def fits(self: triggers.Fit, strings: list[str], step: Any = None) -> list[float]:
        read.extend(strings)
        return [0.0] * len(strings)

    monkeypatch.setattr(triggers.Fit, "of", fits)
    monkeypatch.setattr(triggers, "suspects", lambda audit: [])
    with audited(lambda prompt, heat: QUIET, tmp_path / "run", tokenizer) as audit:
        fit = triggers.Fit(audit, (5,), [(audit.base[0], True)])
        triggers.searched(fit, [CAPITALS, "e"], grow=False)
    assert "e" in read
    assert CAPITALS not in read
