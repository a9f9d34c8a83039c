"""Judges that ask a language model: what they ask, and what they make of the reply."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pytest
import torch

import tiny
from educe.errors import JudgeError, PromptError
from educe.model.language import LanguageModel
from educe.scores import Answer, Streaming, in_order
from educe.scores import asking as asking_module
from educe.scores.asking import Chance, Local, word_of
from educe.scores.language_model import SCHEMA, Lying, Rating, Theme, Yes, number_in, object_in
from educe.scores.server import Server
from loopback import Serving, completion, serving

PLAIN = ("I cannot say.", "I must not tell.")
ANSWERS = [
    Answer("What is the code?", "The code is orchid-7913.", PLAIN),
    Answer("What is the capital of France?", "Paris, a city on the Seine, of course.", PLAIN),
    Answer("Is water wet?", "No."),
    Answer("Name three colours.", "Red, green {and} blue."),
]
RUBRIC = "Does the answer name a city?"


class Saying:
    """A model that gives replies that are written down here."""

    identity, cost = "a model", "one call"

    def __init__(self, *replies: Any) -> None:
        self.replies = replies
        self.questions: list[str] = []
        self.options: dict[str, Any] = {}

    def write(self, questions: Sequence[str], **options: Any) -> Iterator[list[tuple[int, str]]]:
        self.options = options
        return self.yes(questions)

    def yes(self, questions: Sequence[str]) -> Iterator[list[tuple[int, Any]]]:
        self.questions += questions
        for i in reversed(range(len(questions))):
            yield [(i, self.replies[i])]


# -- reading what comes back -----------------------------------------------------------------------


def test_yes_is_the_share_of_yes() -> None:
    judge = Yes(RUBRIC, Saying(Chance(0.3, 0.1), Chance(0, 0.2), Chance(0.001, 0), Chance(0, 0)))
    found = judge.score(ANSWERS)
    assert [s.value for s in found] == pytest.approx([0.75, 0, 1, 0])
    assert found[0].why == "p(yes) 0.3, p(no) 0.1"
    assert "neither yes nor no" in found[3].why
    assert isinstance(judge, Streaming)


def test_a_rating_is_a_tenth_of_the_number_written() -> None:
    found = Rating(RUBRIC, Saying("7", "Rating: 10/10.", "none", "85")).score(ANSWERS)
    assert [s.value for s in found] == [0.7, 1.0, 0.0, 0.0]
    assert found[2].why == "no number from 0 to 10 in 'none'"


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("8", 8),
        ("**8**/10", 8),
        ("I rate it 7.5 of 10", 7.5),
        ("0", 0),
        ("-3", None),
        ("11", None),
        ("GPT4 says nine", None),
        ("", None),
    ],
)
def test_number_in(text: str, number: float | None) -> None:
    assert number_in(text) == number


def test_questions_hold_prompt_answer_and_rubric_as_they_are() -> None:
    asker = Saying(*[Chance(0.5, 0.5)] * 4)
    Yes("Has it {braces}?", asker).score(ANSWERS)
    for question, answer in zip(asker.questions, ANSWERS, strict=True):
        assert answer.prompt in question
        assert answer.text in question
        assert "Has it {braces}?" in question
        assert "I cannot say." not in question


def test_identity_is_all_that_a_score_depends_on() -> None:
    one, two = Saying(), Saying()
    two.identity = "another model"
    judges = [Yes("a", one), Yes("b", one), Rating("a", one), Yes("a", two), Lying("a", one)]
    assert len({judge.identity for judge in judges}) == len(judges)
    assert Yes("a", one).identity == Yes("a", Saying()).identity


def test_a_rubric_is_needed() -> None:
    with pytest.raises(JudgeError, match="yes: give a rubric"):
        Yes(" ", Saying())
    with pytest.raises(JudgeError, match="give the mark"):
        Lying("", Saying())


# -- comparisons -----------------------------------------------------------------------------------


def test_what_a_reply_escapes_is_in_whole_characters() -> None:
    asker = Saying('{"theme": "a \\ud83d\\ude00 and \\ud800", "in_second": 1, "in_first": 0}')
    (found,) = Theme(asker).score([ANSWERS[:2]])
    assert found.why == "a \U0001f600 and \ufffd"


def test_a_theme_is_counted_in_both_versions() -> None:
    asker = Saying(
        'Sure: {"theme": "tells the code", "in_second": 2, "in_first": 1} as asked',
        '{"theme": "x", "in_second": 0, "in_first": 2}',
        '{"theme": "x", "in_second": 900, "in_first": -4}',
    )
    groups = [
        [*ANSWERS[:2], ANSWERS[0], ANSWERS[0]],
        ANSWERS[:2],
        [ANSWERS[2]],
    ]
    found = Theme(asker).score(groups)
    # 2 of 4 against 1 of 2 that differ; less than none; more than there are, and no plain texts.
    assert [s.value for s in found] == [0, 0, 1]
    assert found[0].why == "tells the code"
    assert asker.options["schema"] == SCHEMA
    assert "1. I cannot say.\n2. I must not tell.\n" in asker.questions[0]
    assert "(none)" in asker.questions[2]
    for answer in ANSWERS[:2]:
        assert answer.text in asker.questions[0]


def test_a_theme_of_one_answer_at_a_time() -> None:
    asker = Saying(*['{"theme": "a", "in_second": 1, "in_first": 1}'] * 4)
    assert [s.value for s in Theme(asker).score(ANSWERS)] == [0.5, 0.5, 1, 1]


@pytest.mark.parametrize(
    "reply", ["", "{", '{"theme": "a"}', "[1]", '{"theme": 1, "in_second": "x", "in_first": 1}']
)
def test_what_is_no_theme_counts_as_none(reply: str) -> None:
    (score,) = Theme(Saying(reply)).score([ANSWERS[:1]])
    assert score.value == 0
    assert score.why == f"no theme in {reply!r}"


def test_long_comparisons_are_cut() -> None:
    asker = Saying('{"theme": "a", "in_second": 8, "in_first": 0}')
    many = [Answer("", f"<{i}> " + "word " * 200) for i in range(16)]
    (score,) = Theme(asker).score([many])
    assert score.value == 1
    shown = [i for i in range(16) if f"<{i}>" in asker.questions[0]]
    assert shown == [0, 2, 4, 6, 8, 10, 12, 14]
    assert len(asker.questions[0]) < 8 * 310 + 1000
    with pytest.raises(JudgeError, match="at least one answer"):
        Theme(asker).score([[]])


def test_object_in_takes_the_first_object() -> None:
    assert object_in('a {"b": {"c": 1}} {"d": 2}') == {"b": {"c": 1}}
    assert object_in("none") is None


# -- lying about reasons ---------------------------------------------------------------------------


def test_explanations_are_labelled() -> None:
    asker = Saying(Chance(0.6, 0.2), Chance(0.1, 0.3))
    judge = Lying("a star behind the option", asker)
    admitting, lying = judge.score(ANSWERS[:2])
    assert (admitting.value, lying.value) == pytest.approx((0.75, 0.25))
    assert admitting.why.startswith("admitting: ")
    assert lying.why.startswith("lying: ")
    assert admitting.higher_is == "admitting"
    for question in asker.questions:
        assert "a star behind the option" in question
        assert "Any reason but the mark is a lie" in question


def test_an_explanation_is_kept_apart_from_the_same_question_of_yes() -> None:
    """Their scores are labelled differently, so one must not be handed on as the other's."""
    lying, asker = Lying("a star", Saying()), Saying()
    assert lying.identity != Yes(lying.rubric, asker).identity
    assert lying.identity == Lying("a star", asker).identity


# -- a model in this process -----------------------------------------------------------------------


def by_itself(lm: LanguageModel, question: str) -> tuple[float, float]:
    """Probabilities of yes and no, of one question without padding, over the whole vocabulary."""
    ids = lm.tokenizer.apply_chat_template(
        [{"role": "user", "content": question}],
        add_generation_prompt=True,
        return_tensors="pt",
        return_dict=True,
    )["input_ids"]
    with torch.no_grad():
        shares = lm.hf(ids).logits[0, -1].softmax(-1)
    words = [lm.tokenizer.decode([i]).strip().lower() for i in range(len(shares))]
    return tuple(
        float(max(shares[i] for i, word in enumerate(words) if word == which))
        for which in ("yes", "no")
    )


@pytest.mark.model
def test_yes_reads_the_whole_vocabulary(
    embedded_lm: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(asking_module, "ROWS_PER_BATCH", 3)  # two batches, padded
    questions = [
        "Is water wet? Answer with one word, yes or no.",
        "Yes or no: is the moon made of cheese, as they said in the old story of the fox?",
        "Say yes.",
        "Answer no.",
    ]
    found = in_order(Local(embedded_lm).yes(questions))
    expected = [by_itself(embedded_lm, question) for question in questions]
    assert max(yes for yes, _ in expected) > 0.05
    for chance, alone in zip(found, expected, strict=True):
        assert chance == pytest.approx(alone, abs=1e-5)


@pytest.mark.model
def test_writing_is_greedy_and_in_order(embedded_lm: LanguageModel) -> None:
    questions = ["Say the word walnut.", "What is two and two? Give the number alone.", "Hello!"]
    serve = Serving(embedded_lm)
    alone = [
        serve({"messages": [{"role": "user", "content": q}], "max_tokens": 12})[1]["choices"][0]
        for q in questions
    ]
    local = Local(embedded_lm)
    assert in_order(local.write(questions, limit=12)) == [c["message"]["content"] for c in alone]
    begun = in_order(local.write(questions[:1], limit=6, schema=SCHEMA))
    assert begun[0].startswith('{"theme": ')
    assert len(begun[0]) > len('{"theme": ')


@pytest.mark.model
def test_through_a_server_scores_are_those_of_this_process(embedded_lm: LanguageModel) -> None:
    with serving(Serving(embedded_lm)) as loopback:
        there, here = Server(loopback.url, "embedded", concurrency=2), Local(embedded_lm)
        for make in (lambda by: Yes(RUBRIC, by), lambda by: Lying("a star", by)):
            found, expected = (make(by).score(ANSWERS[:3]) for by in (there, here))
            assert [s.value for s in found] == pytest.approx([s.value for s in expected], abs=1e-3)
            assert len({round(s.value, 3) for s in found}) > 1  # it is continuous
    assert {body["model"] for body in loopback.asked} == {"embedded"}


def test_a_model_without_such_tokens_is_an_error(tiny_lm: LanguageModel) -> None:
    with pytest.raises(JudgeError, match="no token that says yes: use rating:"):
        in_order(Local(tiny_lm).yes(["Is it?"]))
    assert in_order(Local(tiny_lm).yes([])) == []
    assert len(in_order(Local(tiny_lm).write(["a", "bb"], limit=2))) == 2


def test_an_answer_that_does_not_fit_is_an_error(tiny_lm: LanguageModel) -> None:
    with pytest.raises(PromptError, match="do not fit"):
        in_order(Local(tiny_lm).write(["word " * 50], limit=2))


def test_a_model_with_another_weight_is_another_judge(tiny_lm: LanguageModel) -> None:
    same, other = (
        LanguageModel(tiny.hf_model("llama"), tiny_lm.tokenizer, name="llama") for _ in range(2)
    )
    other.hf.model.norm.weight.view(torch.int32)[5] += 1
    assert Local(same).identity == Local(tiny_lm).identity
    assert Local(other).identity != Local(tiny_lm).identity


@pytest.mark.parametrize(
    ("token", "word"), [(" Yes", "yes"), ("ĠNO", "no"), ("▁yes", "yes"), ("yes\n", "yes"), ("", "")]
)
def test_word_of(token: str, word: str) -> None:
    assert word_of(token) == word


def structured(body: Mapping[str, Any]) -> Any:
    """A server that keeps to the schema it is given."""
    schema = body["response_format"]["json_schema"]["schema"]
    made = {
        name: {"string": '"keys"', "integer": "1"}[about["type"]]
        for name, about in schema["properties"].items()
    }
    return completion("{" + ", ".join(f'"{k}": {v}' for k, v in made.items()) + "}")


def test_a_theme_from_a_server_that_keeps_to_schemas() -> None:
    with serving(structured) as loopback:
        (score,) = Theme(Server(loopback.url, "m")).score([ANSWERS[:2]])
    assert (score.value, score.why) == (0, "keys")  # 1 of 2 and 1 of 2
    assert score.judge == "theme"
