"""Asking a server, against servers on loopback that behave and that do not."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from educe.errors import BudgetError, JudgeError, ServerError
from educe.scores import in_order
from educe.scores.asking import Chance
from educe.scores.language_model import SCHEMA
from educe.scores.server import Budget, Server
from loopback import Reply, completion, likely, serving

SOON = {"retry-after-ms": "1"}  # the client waits as long as it is told
BUSY: Reply = (429, {"error": {"message": "slow down"}}, SOON)
BROKEN: Reply = (500, {"error": {"message": "it broke"}}, SOON)


def asked(server: Server, *questions: str, **options: Any) -> list[str]:
    return in_order(server.write(questions, **{"limit": 8, **options}))


def collected(server: Server, n: int, came: list[tuple[int, str]]) -> None:
    """Ask as many questions, and keep what comes before an error."""
    for some in server.write([str(i) for i in range(n)], limit=8):
        came += some


def echo(body: dict[str, Any]) -> Reply:
    return completion(body["messages"][0]["content"].upper())


def in_turn(*replies: Reply) -> Callable[[dict[str, Any]], Reply]:
    """Answer with one reply after the other, the last for ever."""
    left = list(replies)
    return lambda body: left.pop(0) if len(left) > 1 else left[0]


# -- what is asked and what comes back -------------------------------------------------------------


def test_each_reply_belongs_to_its_question() -> None:
    questions = [f"question {i}" for i in range(40)]
    with serving(echo) as loopback:
        server = Server(loopback.url, "m", concurrency=5)
        assert asked(server, *questions) == [q.upper() for q in questions]
    assert len(loopback.asked) == 40
    assert {body["model"] for body in loopback.asked} == {"m"}
    assert {body["max_tokens"] for body in loopback.asked} == {8}
    assert {body["temperature"] for body in loopback.asked} == {0}


def test_replies_are_in_whole_characters() -> None:
    with serving(lambda body: completion("a \ud800, b \U0001f600")) as at:
        assert asked(Server(at.url, "m"), "?") == ["a \ufffd, b \U0001f600"]


def test_no_question_is_no_call() -> None:
    with serving(echo) as loopback:
        assert asked(Server(loopback.url, "m")) == []
    assert loopback.asked == []


def test_yes_is_the_likeliest_token_that_says_so() -> None:
    shares = {" yes": 0.125, "Yes": 0.5, "ĠNo": 0.25, "Maybe": 0.0625, "yesterday": 0.03125}
    with serving(lambda body: completion("Yes", logprobs=likely(shares))) as loopback:
        (chance,) = in_order(Server(loopback.url, "m").yes(["Is it?"]))
    assert chance == pytest.approx(Chance(0.5, 0.25))
    (body,) = loopback.asked
    assert (body["logprobs"], body["top_logprobs"], body["max_tokens"]) == (True, 20, 1)


def test_yes_without_logprobs_is_an_error_that_names_the_remedy() -> None:
    with serving(echo) as loopback, pytest.raises(ServerError, match="use rating:"):
        in_order(Server(loopback.url, "m").yes(["Is it?"]))


def test_an_empty_answer_says_neither_yes_nor_no() -> None:
    nothing = {"content": [], "refusal": None}
    with serving(lambda body: completion("", logprobs=nothing)) as loopback:
        assert in_order(Server(loopback.url, "m").yes(["Is it?"])) == [Chance(0, 0)]


# -- structured output -----------------------------------------------------------------------------


def test_a_schema_goes_along() -> None:
    with serving(echo) as loopback:
        asked(Server(loopback.url, "m"), "Count.", schema=SCHEMA)
    form = loopback.asked[0]["response_format"]
    assert form["type"] == "json_schema"
    assert form["json_schema"]["schema"] == SCHEMA


@pytest.mark.parametrize("status", [400, 422])
def test_a_server_that_refuses_schemas_is_asked_without(status: int) -> None:
    def refusing(body: dict[str, Any]) -> Reply:
        if "response_format" in body:
            return status, {"error": {"message": "response_format is unknown"}}, {}
        return echo(body)

    with serving(refusing) as loopback:
        server = Server(loopback.url, "m", concurrency=1)
        assert asked(server, "a", "b", "c", schema=SCHEMA) == ["A", "B", "C"]
    # Once with it, and from then on without.
    assert ["response_format" in body for body in loopback.asked] == [True, False, False, False]


def test_a_question_refused_for_itself_is_an_error() -> None:
    too_long: Reply = (400, {"error": {"message": "the prompt is too long"}}, {})
    with serving(lambda body: too_long) as loopback:
        server = Server(loopback.url, "m")
        with pytest.raises(ServerError, match="the prompt is too long"):
            asked(server, "a", schema=SCHEMA)
        with pytest.raises(ServerError, match="the prompt is too long"):
            asked(server, "a")


# -- what goes wrong -------------------------------------------------------------------------------


@pytest.mark.parametrize("trouble", [BUSY, BROKEN, (503, b"", SOON), (408, {}, SOON)])
def test_what_passes_is_tried_again(trouble: Reply) -> None:
    with serving(in_turn(trouble, trouble, completion("at last"))) as loopback:
        assert asked(Server(loopback.url, "m", retries=2), "a") == ["at last"]
    assert len(loopback.asked) == 3


def test_what_lasts_is_an_error_after_as_many_tries() -> None:
    with serving(lambda body: BROKEN) as loopback:
        with pytest.raises(ServerError, match="it broke"):
            asked(Server(loopback.url, "m", retries=3), "a")
        assert len(loopback.asked) == 4


def test_pauses_grow(monkeypatch: pytest.MonkeyPatch) -> None:
    pauses: list[float] = []
    with serving(lambda body: (500, {}, {})) as loopback:
        server = Server(loopback.url, "m", retries=4)
        monkeypatch.setattr(time, "sleep", pauses.append)
        with pytest.raises(ServerError):
            asked(server, "a")
    # Half a second, doubled each time, less up to a quarter by lot.
    assert len(pauses) == 4
    for i, pause in enumerate(pauses):
        assert 0.75 * 0.5 * 2**i <= pause <= 0.5 * 2**i


def test_a_server_that_hangs_is_given_up() -> None:
    release = threading.Event()

    def hang(body: dict[str, Any]) -> Reply:
        release.wait(20)
        return echo(body)

    try:
        with serving(hang) as loopback:
            server = Server(loopback.url, "m", timeout=0.1, retries=0)
            with pytest.raises(ServerError, match=r"no answer within 0\.1 s"):
                asked(server, "a")
            release.set()
    finally:
        release.set()


def test_a_reply_that_is_late_once_is_asked_for_again(monkeypatch: pytest.MonkeyPatch) -> None:
    release = threading.Event()
    calls: list[int] = []

    def late(body: dict[str, Any]) -> Reply:
        calls.append(1)
        if len(calls) == 1:
            release.wait(20)
        return echo(body)

    try:
        with serving(late) as loopback:
            server = Server(loopback.url, "m", timeout=0.5, retries=5)
            monkeypatch.setattr(time, "sleep", lambda seconds: None)
            assert asked(server, "a") == ["A"]
            release.set()
    finally:
        release.set()
    assert len(calls) >= 2  # more, if the machine makes another reply late


@pytest.mark.parametrize(
    "content", [b"{oops", b"", b"[]", {}, {"choices": []}, {"choices": None}, b'"hello"']
)
def test_a_reply_that_is_none_is_an_error(content: Any) -> None:
    with (
        serving(lambda body: (200, content, {})) as loopback,
        pytest.raises(ServerError, match=r"does not answer (as|with)"),
    ):
        asked(Server(loopback.url, "m"), "a")


def test_no_server_is_an_error() -> None:
    with serving(echo) as loopback:
        pass
    with pytest.raises(ServerError, match="there is no server at http://127"):
        asked(Server(loopback.url, "m", retries=0), "a")


def test_a_wrong_path_is_an_error() -> None:
    with serving(echo) as loopback, pytest.raises(ServerError, match="no such path"):
        asked(Server(loopback.url + "/x", "m"), "a")


@pytest.mark.parametrize("option", [{"concurrency": 0}, {"timeout": 0}, {"retries": -1}])
def test_numbers_that_make_no_sense_are_errors(option: dict[str, Any]) -> None:
    with pytest.raises(JudgeError, match="above 0"):
        Server("http://127.0.0.1:1/v1", "m", **option)


def test_the_key_is_that_of_the_client(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "open sesame")
    assert Server("http://127.0.0.1:1/v1", "m")._client.api_key == "open sesame"
    monkeypatch.delenv("OPENAI_API_KEY")
    assert Server("http://127.0.0.1:1/v1", "m")._client.api_key  # a server at home needs none


# -- how much at once, and how much at all ---------------------------------------------------------


@pytest.mark.parametrize("limit", [1, 3])
def test_no_more_calls_are_in_flight_than_allowed(limit: int) -> None:
    # Each call waits until as many as are allowed are there; more would show in the count.
    meeting = threading.Barrier(limit)

    def meet(body: dict[str, Any]) -> Reply:
        meeting.wait(20)
        return echo(body)

    with serving(meet) as loopback:
        asked(Server(loopback.url, "m", concurrency=limit), *"abcdef")
    assert loopback.most_in_flight == limit


def test_a_budget_in_calls_is_kept_and_what_was_paid_comes() -> None:
    came: list[tuple[int, str]] = []
    with serving(echo) as loopback:
        server = Server(loopback.url, "m", concurrency=4, budget=Budget(calls=6))
        with pytest.raises(BudgetError, match="6 of 6 calls"):
            collected(server, 20, came)
    assert len(loopback.asked) == 6
    assert sorted(came) == [(i, str(i)) for i in range(6)]


def test_a_budget_in_tokens_stops_the_calling() -> None:
    came: list[tuple[int, str]] = []
    with serving(echo) as loopback:  # ten tokens a call
        server = Server(loopback.url, "m", concurrency=1, budget=Budget(tokens=35))
        with pytest.raises(BudgetError, match="40 of 35 tokens"):
            collected(server, 20, came)
    assert len(loopback.asked) == len(came) == 4
    assert server.budget.tokens_used == 40


def test_a_budget_that_suffices_is_no_error() -> None:
    with serving(echo) as loopback:
        server = Server(loopback.url, "m", budget=Budget(calls=3, tokens=1000))
        assert len(asked(server, "a", "b", "c")) == 3
    assert server.budget.calls_made == 3
    assert server.budget.tokens_used == 30


def test_tokens_that_nobody_counts_cannot_be_limited() -> None:
    with serving(lambda body: completion("a", tokens=None)) as loopback:
        assert asked(Server(loopback.url, "m"), "a") == ["a"]
        with pytest.raises(ServerError, match="limit the calls instead"):
            asked(Server(loopback.url, "m", budget=Budget(tokens=5)), "a")


def test_replies_that_are_paid_for_come_before_the_failure() -> None:
    both = threading.Barrier(2)

    def one_fails(body: dict[str, Any]) -> Reply:
        both.wait(20)
        if body["messages"][0]["content"] == "0":
            return 400, {"error": {"message": "never"}}, {}
        time.sleep(0.2)  # so that the failure is there first
        return echo(body)

    came: list[tuple[int, str]] = []
    with serving(one_fails) as loopback:
        server = Server(loopback.url, "m", concurrency=2)
        with pytest.raises(ServerError, match="never"):
            collected(server, 2, came)
    assert came == [(1, "1")]


def test_after_a_failure_nothing_more_is_asked() -> None:
    bad: Reply = (400, {"error": {"message": "never"}}, {})
    with serving(in_turn(completion("a"), bad, completion("b"))) as loopback:
        server = Server(loopback.url, "m", concurrency=1)
        with pytest.raises(ServerError, match="never"):
            asked(server, *"abcdef")
    assert len(loopback.asked) == 2
