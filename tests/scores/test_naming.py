"""Judges by name, and the model that they ask."""

from __future__ import annotations

import subprocess
import sys

import pytest

from educe.errors import JudgeError, ModelError
from educe.model.language import LanguageModel
from educe.scores import Answer, Judge
from educe.scores.asking import Local
from educe.scores.naming import FORMS, as_asker, asks, judge_named
from educe.scores.server import Budget, Server
from loopback import completion, serving


def test_every_form_can_be_named(tiny_lm: LanguageModel) -> None:
    names = {form: f"{form}:a word" if about.needs else form for form, about in FORMS.items()}
    for form, name in names.items():
        judge: Judge = judge_named(name, tiny_lm)
        assert judge.name == name
        assert judge.identity
        assert judge.cost
        assert asks(name) == FORMS[form].asks
        # Where a form says it asks no model, none is loaded.
        if not FORMS[form].asks:
            assert judge_named(name, "./no/such/model").identity == judge.identity


def test_what_stands_after_the_colon_is_kept_as_it_is() -> None:
    (score,) = judge_named(r"regex:a: \d").score([Answer("", "a: 1")])
    assert score.value == 1
    assert judge_named("exact: Paris ").score([Answer("", "paris")])[0].value == 1


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("", "there is no judge ''"),
        ("vibes", "use one of contains, regex"),
        ("contains", "write it as contains:TEXT"),
        ("yes: ", "write it as yes:RUBRIC"),
        ("lying:", "write it as lying:MARK"),
        ("refusal:please", "takes nothing after its name"),
        ("regex:(", "no regular expression"),
    ],
)
def test_what_is_no_judge_is_an_error(spec: str, message: str) -> None:
    with pytest.raises(JudgeError, match=message.replace("(", r"\(")):
        judge_named(spec, "./no/such/model")


def test_models_are_loaded_or_taken_as_they_are(tiny_lm: LanguageModel) -> None:
    asker = as_asker(tiny_lm)
    assert isinstance(asker, Local)
    assert asker.lm is tiny_lm
    assert as_asker(asker) is asker
    with pytest.raises(ModelError, match="no file or folder"):
        judge_named("yes:Is it?", "./no/such/model")


def test_an_address_is_a_server() -> None:
    with serving(lambda body: completion("9")) as loopback:
        asker = as_asker(loopback.url, name="m", budget=Budget(calls=1), concurrency=3)
        assert isinstance(asker, Server)
        assert judge_named("rating:Is it?", asker).score([Answer("", "so")])[0].value == 0.9
        assert asker.concurrency == 3
        assert asker.budget.calls_made == 1
        with pytest.raises(JudgeError, match="name a model, no server"):
            judge_named("coherence", asker)
    assert [body["model"] for body in loopback.asked] == ["m"]
    with pytest.raises(JudgeError, match="--judge-name"):
        as_asker("https://127.0.0.1/v1")


def test_judges_load_no_client_until_there_is_a_server() -> None:
    code = "import educe.scores.naming, sys; print('openai' in sys.modules)"
    message = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert message.stdout.strip() == "False"
