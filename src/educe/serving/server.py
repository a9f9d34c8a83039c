"""Server: the protocol of OpenAI's chat completions, where ``model`` names a perturbation.

    GET  /v1/models                base, and the number of each perturbation
    POST /v1/chat/completions      streaming, log-probabilities, stop, seed

``base`` is the unperturbed model and ``17`` is perturbation 17 of the run. What it cannot do, as
``top_p`` or tools, it refuses instead of leaving it out. It listens on loopback, answers only to
names of loopback there, and takes JSON alone, so that no page in a browser can ask it anything.
"""

from __future__ import annotations

import asyncio
import json
import re
import time
import uuid
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from educe.errors import BusyError, EduceError, PositionsError, PromptError
from educe.serving.batching import Asked, Batcher

BASE = "base"
LOOPBACK = ("127.0.0.1", "localhost")
#: Seconds between two looks at whether a client that waits for a whole answer is still there.
LOOK = 0.2
#: The most likeliest tokens that the protocol gives.
TOP = 20

#: What is taken, and what is taken with a value that changes nothing.
TAKEN = {
    *("model", "messages", "max_tokens", "max_completion_tokens", "temperature", "seed", "stop"),
    *("stream", "stream_options", "logprobs", "top_logprobs", "user", "store", "metadata"),
}
IDLE: dict[str, Any] = {
    **dict.fromkeys(("top_p", "n"), 1),
    **dict.fromkeys(("presence_penalty", "frequency_penalty"), 0),
    "tools": [],
    "logit_bias": {},
    "response_format": {"type": "text"},
    "tool_choice": "none",
}


class BadRequestError(EduceError):
    """A request that is none of the protocol, or asks for what there is not."""


class UnknownModelError(EduceError):
    """There is no model of that name."""


STATUS: dict[type[EduceError], int] = {
    **dict.fromkeys((BadRequestError, PromptError, PositionsError), 400),
    UnknownModelError: 404,
    BusyError: 429,
}


def application(batcher: Batcher, *, anywhere: bool = False) -> Starlette:
    """Return the server as an ASGI application.

    Args:
        batcher: Who writes.
        anywhere: Answer to any name of this machine, not to those of loopback alone.
    """
    began = int(time.time())

    async def models(request: Request) -> Response:
        names = [BASE, *map(str, batcher.numbers)]
        about = {"object": "model", "created": began, "owned_by": "educe"}
        return JSONResponse({"object": "list", "data": [{"id": n, **about} for n in names]})

    async def chat(request: Request) -> Response:
        body = await _body(request)
        loop, news = asyncio.get_running_loop(), asyncio.Queue[None]()

        def heard() -> None:  # in the writing thread
            loop.call_soon_threadsafe(news.put_nowait, None)

        asked = _asked(body, batcher, heard)
        done = asyncio.wrap_future(batcher.ask(asked))
        done.add_done_callback(lambda _: news.put_nowait(None))
        reply = _Reply(batcher, asked, body)
        if body.get("stream"):
            return StreamingResponse(reply.events(done, news), media_type="text/event-stream")
        try:
            while not (await asyncio.wait([done], timeout=LOOK))[0]:
                if await request.is_disconnected():
                    return Response(status_code=499)
        finally:
            asked.gone = True
        done.result()
        return JSONResponse(reply.whole())

    hosts = ["*"] if anywhere else list(LOOPBACK)
    return Starlette(
        routes=[
            Route("/v1/models", models),
            Route("/v1/chat/completions", chat, methods=["POST"]),
        ],
        middleware=[Middleware(TrustedHostMiddleware, allowed_hosts=hosts)],
        exception_handlers={EduceError: _refused},
    )


async def _body(request: Request) -> dict[str, Any]:
    if request.headers.get("content-type", "").partition(";")[0].strip() != "application/json":
        raise BadRequestError("send the request as application/json")
    try:
        body = json.loads(await request.body())
    except ValueError as error:
        raise BadRequestError(f"the request is no JSON: {error}") from error
    if not isinstance(body, dict) or not isinstance(body.get("messages"), list):
        raise BadRequestError("the request has no messages: send an object with model and messages")
    for name, value in body.items():
        if name not in TAKEN and value is not None and value != IDLE.get(name):
            raise BadRequestError(f"{name} is not offered here: leave it out")
    return body


def _asked(body: Mapping[str, Any], batcher: Batcher, heard: Callable[[], None]) -> Asked:
    """Read what a request asks for."""
    model = str(body.get("model"))
    number = 0 if model == BASE else int(model) if re.fullmatch("[0-9]{1,9}", model) else -1
    if not batcher.has(number):
        raise UnknownModelError(f"there is no model {model!r}: use base, or one of the numbers")
    stop = body.get("stop") or []
    stop = [stop] if isinstance(stop, str) else stop
    if not isinstance(stop, list) or not all(isinstance(one, str) and one for one in stop):
        raise BadRequestError(f"stop {stop!r}: give a text or a list of texts")
    limit = "max_completion_tokens" if body.get("max_completion_tokens") else "max_tokens"
    return Asked(
        number,
        body["messages"],
        limit=_number(body, limit, None, 1, 2**20, whole=True),
        temperature=_number(body, "temperature", 1, 0, 100),
        seed=_number(body, "seed", None, -(2**63), 2**63, whole=True),
        stop=stop,
        top=_number(body, "top_logprobs", 0, 0, TOP, whole=True),
        heard=heard,
    )


def _number(
    body: Mapping[str, Any], name: str, usual: Any, low: int, high: int, *, whole: bool = False
) -> Any:
    if (value := body.get(name)) is None:
        return usual
    kinds = int if whole else (int, float)
    if isinstance(value, bool) or not isinstance(value, kinds) or not low <= value <= high:
        what = "a whole number" if whole else "a number"
        raise BadRequestError(f"{name} {value!r}: give {what} from {low} to {high}")
    return value


async def _refused(request: Request, error: Exception) -> Response:
    status = next((code for kind, code in STATUS.items() if isinstance(error, kind)), 500)
    return JSONResponse({"error": _said(error)}, status)


def _said(error: BaseException) -> dict[str, Any]:
    return {"message": str(error), "type": type(error).__name__, "param": None, "code": None}


class _Reply:
    """What is sent of one request."""

    def __init__(self, batcher: Batcher, asked: Asked, body: Mapping[str, Any]) -> None:
        self.batcher, self.asked, self.body = batcher, asked, body
        self.about = {
            "id": f"chatcmpl-{uuid.uuid4().hex}",
            "created": int(time.time()),
            "model": str(body["model"]),
        }

    def whole(self) -> dict[str, Any]:
        """Return the answer in one piece."""
        message = {"role": "assistant", "content": self.asked.text, "refusal": None}
        choice = {"index": 0, "message": message, "finish_reason": self._reason()}
        choice["logprobs"] = self._logprobs(0)
        kind = {"object": "chat.completion"}
        return self.about | kind | {"choices": [choice], "usage": self._usage()}

    async def events(
        self, done: asyncio.Future[Any], news: asyncio.Queue[None]
    ) -> AsyncIterator[str]:
        """Yield the answer as it is written; a client that leaves ends it."""
        sent = told = 0
        try:
            yield self._event({"role": "assistant", "content": ""}, None)
            while True:
                ended = done.done()
                text = self.asked.text if ended else self.asked.sure
                now = len(self.asked.written.tokens)
                if len(text) > sent:
                    piece = {"content": text[sent:]}
                    yield self._event(piece, None, self._logprobs(told, now))
                    sent, told = len(text), now
                if ended:
                    break
                await news.get()
            if error := done.exception():
                yield f"data: {json.dumps({'error': _said(error)})}\n\n"
                return
            yield self._event({}, self._reason(), self._logprobs(told))
            if (self.body.get("stream_options") or {}).get("include_usage"):
                kind = {"object": "chat.completion.chunk", "choices": []}
                yield f"data: {json.dumps(self.about | kind | {'usage': self._usage()})}\n\n"
            yield "data: [DONE]\n\n"
        finally:
            self.asked.gone = True

    def _event(
        self, delta: dict[str, Any], reason: str | None, logprobs: dict[str, Any] | None = None
    ) -> str:
        choice = {"index": 0, "delta": delta, "logprobs": logprobs, "finish_reason": reason}
        kind = {"object": "chat.completion.chunk"}
        return f"data: {json.dumps(self.about | kind | {'choices': [choice]})}\n\n"

    def _reason(self) -> str:
        came = self.asked.done.result()
        return "stop" if came.finished or self.asked.stopped else "length"

    def _usage(self) -> dict[str, int]:
        assert self.asked.read is not None
        read, wrote = self.asked.read.lengths[0], len(self.asked.written.tokens)
        return {"prompt_tokens": read, "completion_tokens": wrote, "total_tokens": read + wrote}

    def _logprobs(self, first: int, last: int | None = None) -> dict[str, Any] | None:
        if not self.body.get("logprobs"):
            return None
        written, tops = self.asked.written, self.asked.top
        content = []
        for at in range(first, len(written.tokens) if last is None else last):
            best = list(written.top[at].items())[:tops] if tops else []
            content.append(
                self._token(written.tokens[at], written.logprobs[at])
                | {"top_logprobs": [self._token(*pair) for pair in best]}
            )
        return {"content": content, "refusal": None}

    def _token(self, number: int, nats: float) -> dict[str, Any]:
        text = self.batcher.lm.text([number])
        return {"token": text, "logprob": nats, "bytes": list(text.encode())}
