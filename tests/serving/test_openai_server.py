"""The server, asked by OpenAI's own client: texts and numbers are those of `educe.generate`."""

from __future__ import annotations

import socket
import threading
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
import torch
import uvicorn

from educe.errors import BlockedError, RunError
from educe.forward.generation import generate
from educe.model.language import LanguageModel
from educe.rows import Row
from educe.run.fill import groups
from educe.run.store import Run
from educe.serving.batching import Batcher
from educe.serving.listening import listening
from educe.serving.server import application
from small_run import small_run

ASK = [{"role": "user", "content": "Where is it?"}]
STEPS = 12


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, tiny_lm: LanguageModel) -> Path:
    return small_run(tmp_path_factory.mktemp("served") / "run", tiny_lm, "random", radius="20")


@pytest.fixture(scope="module")
def batcher(folder: Path, tiny_lm: LanguageModel) -> Iterator[Batcher]:
    made = Batcher.of_run(folder, lm=tiny_lm)
    yield made
    made.close()


@pytest.fixture(scope="module")
def url(batcher: Batcher) -> Iterator[str]:
    with listening("127.0.0.1", 0) as at:
        server = uvicorn.Server(uvicorn.Config(application(batcher), log_level="warning"))
        thread = threading.Thread(target=server.run, args=([at],))
        thread.start()
        yield f"http://127.0.0.1:{at.getsockname()[1]}/v1"
        server.should_exit = True
        thread.join()


@pytest.fixture(scope="module")
def client(url: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=url, api_key="none", max_retries=0) as made:
        yield made


@pytest.fixture(scope="module")
def expected(folder: Path, tiny_lm: LanguageModel) -> dict[int, Any]:
    """What each perturbation, and the model without any, writes: one at a time."""
    with Run.open(folder) as run:
        (group,) = groups(run)
    batch = tiny_lm.encode([ASK])
    found = {}
    for number in [0, *group.numbers]:
        ((one,),) = generate(
            tiny_lm,
            batch,
            [Row(number, 0)],
            group.theta,
            kind=group.kind,
            numbers=group.numbers,
            max_new_tokens=STEPS,
        )
        found[number] = one
    assert len({one.text for one in found.values()}) == len(found)
    return found


def ask(client: openai.OpenAI, model: object, **how: Any) -> Any:
    how = {"max_tokens": STEPS, "temperature": 0} | how
    return client.chat.completions.create(model=str(model), messages=ASK, **how)


def test_models_are_the_base_and_the_perturbations(client: openai.OpenAI) -> None:
    names = [m.id for m in client.models.list()]
    assert names[:7] == ["base", "1", "2", "3", "4", "5", "6"]  # and those derived from them


def test_asked_at_once_they_share_a_batch_and_each_gets_its_own_text(
    client: openai.OpenAI, batcher: Batcher, expected: dict[int, Any]
) -> None:
    batcher.batches.clear()
    replies: dict[int, Any] = {}
    asked = Holding(batcher)  # so that all of them are there when the writing begins

    def one(number: int) -> None:
        replies[number] = ask(client, number or "base", logprobs=True, top_logprobs=3)

    threads = [threading.Thread(target=one, args=(number,)) for number in expected]
    with asked:
        for thread in threads:
            thread.start()
        asked.until(len(threads))
    for thread in threads:
        thread.join()
    assert max(batcher.batches) == len(expected)
    for number, reply in replies.items():
        own, (choice,) = expected[number], reply.choices
        assert choice.message.content == own.text
        assert choice.finish_reason == ("stop" if own.finished else "length")
        assert reply.usage.completion_tokens == len(own.tokens)
        nats = torch.tensor([token.logprob for token in choice.logprobs.content])
        torch.testing.assert_close(nats, torch.tensor(own.logprobs), rtol=1e-4, atol=1e-4)
        for token in choice.logprobs.content:
            best = token.top_logprobs[0]
            assert len(token.top_logprobs) == 3
            assert abs(best.logprob - token.logprob) < 1e-6  # it was the likeliest


class Holding:
    """Keeps the writing thread from its next batch until enough has come."""

    def __init__(self, batcher: Batcher) -> None:
        self.batcher, self.lock, self.own = batcher, threading.Lock(), batcher._write
        self.taken = 0

    def __enter__(self) -> Holding:
        self.lock.acquire()

        def held(some: list[Any]) -> None:
            self.taken = len(some)
            with self.lock:
                self.batcher._write = self.own  # type: ignore[method-assign]
            left = [self.batcher._queue.get() for _ in range(self.batcher._queue.qsize())]
            self.own([*some, *left])

        self.batcher._write = held  # type: ignore[method-assign]
        return self

    def until(self, many: int) -> None:
        for _ in range(2000):
            if self.taken + self.batcher._queue.qsize() >= many:
                return
            time.sleep(0.005)
        raise AssertionError(f"{self.taken} taken, {self.batcher._queue.qsize()} wait")

    def __exit__(self, *exception: object) -> None:
        self.lock.release()


def test_streamed_it_is_the_same_text_and_the_same_numbers(
    client: openai.OpenAI, expected: dict[int, Any]
) -> None:
    for number in (0, 2, 5):
        pieces, nats, reason, usage = [], [], None, None
        for event in ask(
            client,
            number or "base",
            stream=True,
            logprobs=True,
            stream_options={"include_usage": True},
        ):
            usage = event.usage or usage
            for choice in event.choices:
                pieces.append(choice.delta.content or "")
                nats += [t.logprob for t in (choice.logprobs.content if choice.logprobs else [])]
                reason = choice.finish_reason or reason
        own = expected[number]
        assert "".join(pieces) == own.text
        assert len(pieces) > 3
        torch.testing.assert_close(
            torch.tensor(nats), torch.tensor(own.logprobs), rtol=1e-4, atol=1e-4
        )
        assert reason == ("stop" if own.finished else "length")
        assert usage.completion_tokens == len(own.tokens)


def test_a_stop_string_ends_the_text_before_it(
    client: openai.OpenAI, expected: dict[int, Any]
) -> None:
    own = expected[3].text
    stop = own[5:7]
    reply = ask(client, 3, stop=[stop])
    assert reply.choices[0].message.content == own[: own.index(stop)]
    assert reply.choices[0].finish_reason == "stop"
    events = ask(client, 3, stop=stop, stream=True)
    streamed = "".join(event.choices[0].delta.content or "" for event in events)
    assert streamed == own[: own.index(stop)]


def test_a_seed_gives_the_same_draws_beside_any_others(client: openai.OpenAI) -> None:
    how = {"temperature": 1.0, "seed": 7}
    alone = ask(client, 4, **how).choices[0].message.content
    beside: list[str] = []

    def one(model: int, seed: int) -> None:
        text = ask(client, model, temperature=1.0, seed=seed).choices[0].message.content
        if (model, seed) == (4, 7):
            beside.append(text)

    threads = [threading.Thread(target=one, args=pair) for pair in ((1, 3), (4, 7), (2, 7))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert beside == [alone]
    assert ask(client, 4, temperature=1.0, seed=8).choices[0].message.content != alone


def test_a_client_that_leaves_frees_the_model(client: openai.OpenAI, batcher: Batcher) -> None:
    wrote: list[int] = []
    own = batcher._heard

    def slowly(asked: Any, written: Any) -> bool:
        time.sleep(0.02)
        wrote.append(len(written.tokens))
        return own(asked, written)

    batcher._heard = slowly  # type: ignore[method-assign]
    try:
        with ask(client, 1, stream=True, max_tokens=90) as stream:
            for _, _event in zip(range(4), stream, strict=False):
                pass
        again = ask(client, "base")  # it comes, though the first was to write 90 tokens
    finally:
        batcher._heard = own  # type: ignore[method-assign]
    assert again.choices[0].message.content
    assert max(wrote) < 60


@pytest.mark.parametrize(
    ("how", "error", "said"),
    [
        ({"model": "999"}, openai.NotFoundError, "no model '999'"),
        ({"model": "gpt-4"}, openai.NotFoundError, "there is no model 'gpt-4'"),
        ({"stop": [""]}, openai.BadRequestError, "give a text or a list of texts"),
        ({"top_p": 0.5}, openai.BadRequestError, "top_p is not offered"),
        ({"temperature": -1}, openai.BadRequestError, "temperature -1: give a number from 0"),
        ({"max_tokens": 4000}, openai.BadRequestError, "do not fit into the 128"),
        ({"messages": [{"role": "user", "content": ""}]}, openai.BadRequestError, "empty"),
    ],
)
def test_what_cannot_be_is_one_sentence(
    client: openai.OpenAI, how: dict[str, Any], error: type[Exception], said: str
) -> None:
    with pytest.raises(error, match=said):
        client.chat.completions.create(**({"model": "base", "messages": ASK} | how))


@pytest.mark.parametrize(
    ("headers", "status"),
    [({"Content-Type": "text/plain"}, 400), ({"Host": "evil.example"}, 400)],
)
def test_a_page_in_a_browser_cannot_ask(url: str, headers: dict[str, str], status: int) -> None:
    request = urllib.request.Request(
        f"{url}/chat/completions",
        data=b"{}",
        headers={"Content-Type": "application/json"} | headers,
    )
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(request)
    assert refused.value.code == status


def test_a_port_in_use_is_one_sentence() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(BlockedError, match=f"port {port}: .* choose another --port"):
            listening("127.0.0.1", port)


def test_a_perturbation_that_is_not_there(folder: Path, tiny_lm: LanguageModel) -> None:
    with pytest.raises(RunError, match="no perturbation 999"):
        Batcher.of_run(folder, numbers=[999], lm=tiny_lm)
