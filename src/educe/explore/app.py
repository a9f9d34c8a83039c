"""App: runs over HTTP, for the front end and for nobody else.

Everything is asked with the token that stands in the address which the command prints; the page
keeps it as a cookie. Hosts are checked, so that no other site's name leads here; bodies are
bounded; no answer may be framed, guessed at, stored, or run scripts of its own. What a model wrote
goes out as JSON and becomes text.
"""

from __future__ import annotations

import asyncio
import json
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import fields
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, get_args, get_type_hints

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, RedirectResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from educe.audit.settings import AUDIT
from educe.errors import BusyError, EduceError, MethodError, RunError
from educe.explore import bundle, frames, writing
from educe.explore.desk import Desk, Job
from educe.explore.documents import counted
from educe.explore.map import places
from educe.explore.shelf import Shelf
from educe.explore.writing import Asked, Piece
from educe.run import marks
from educe.run.store import Run

#: The largest body that is read, in bytes.
LARGEST = 256 * 1024
#: What a browser may do with what comes from here.
HEADERS = {
    "content-security-policy": "default-src 'self'; object-src 'none'; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cache-control": "no-store",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
}
#: Does what it is asked for, for a job that is told of it.
Work = Callable[[Desk, Job, Asked], dict[str, Any]]
TYPES = {"js": "text/javascript", "css": "text/css", "svg": "image/svg+xml"}


class Guard:
    """Lets through what knows the token and is not too large, and adds `HEADERS`."""

    def __init__(self, app: ASGIApp, token: str) -> None:
        self.app, self.token = app, token

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        request, read = Request(scope), 0

        async def bounded() -> Message:
            nonlocal read
            message = await receive()
            read += len(message.get("body", b""))
            if read > LARGEST:
                raise MethodError(f"this asks with more than {LARGEST} bytes")
            return message

        async def dressed(message: Message) -> None:
            if message["type"] == "http.response.start":
                own = [(k.encode(), v.encode()) for k, v in HEADERS.items()]
                message["headers"] = [*message["headers"], *own]
            await send(message)

        if refused := self._refused(request):
            await refused(scope, receive, dressed)
            return
        await self.app(scope, bounded, dressed)

    def _refused(self, request: Request) -> Response | None:
        """Return what is said to a request that is not answered."""
        host, origin = request.headers.get("host"), request.headers.get("origin")
        if origin is not None and origin.partition("://")[2] != host:
            return _sentence("another site asks for this: it is refused", 403)
        if _same(request.query_params.get("token", ""), self.token) and request.url.path == "/":
            found = RedirectResponse("/", 303)
            found.set_cookie(_cookie(request), self.token, httponly=True, samesite="strict")
            return found
        bearer = request.headers.get("authorization", "").removeprefix("Bearer ")
        if any(_same(t, self.token) for t in (request.cookies.get(_cookie(request), ""), bearer)):
            return None
        return _sentence("open the address that educe explore has printed, with its token", 403)


def app(
    shelf: Shelf, desk: Desk, token: str, *, hosts: tuple[str, ...] = ("127.0.0.1", "localhost")
) -> Starlette:
    """Return the application.

    Args:
        shelf: The runs.
        desk: Who writes.
        token: What everybody who asks must know.
        hosts: Names by which it is reached.
    """

    def at(request: Request) -> int:
        return shelf.check(int(request.path_params["run"]))

    async def page(request: Request) -> Response:
        return Response(bundle.LIVE, media_type="text/html")

    async def asset(request: Request) -> Response:
        name = request.path_params["name"]
        if name not in (bundle.SCRIPT, bundle.STYLE, bundle.VEGA, bundle.ICON):
            return _sentence("there is no such file", 404)
        return Response(bundle.asset(name), media_type=TYPES[name.rpartition(".")[2]])

    async def start(request: Request) -> Response:
        told = [asyncio.wrap_future(shelf.ask(i, _about)) for i in range(len(shelf.folders))]
        return _json({"runs": [r | {"changed": desk.changed} for r in await asyncio.gather(*told)]})

    async def changes(request: Request) -> Response:
        states = await asyncio.wrap_future(shelf.states())
        return _json({"states": states})

    async def counting(request: Request) -> Response:
        made = await asyncio.wrap_future(shelf.ask_once(at(request), "counted", counted))
        part = request.url.path.rpartition("/")[2]
        return Response(made[part], media_type="application/json")

    async def placed(request: Request) -> Response:
        return _json(await asyncio.wrap_future(shelf.ask_once(at(request), "map", places)))

    async def listed(request: Request) -> Response:
        return _json(await asyncio.wrap_future(shelf.ask(at(request), frames.listed)))

    async def texts(request: Request) -> Response:
        wanted = _wanted(request)
        found = shelf.ask(at(request), lambda run: frames.texts(run, wanted))
        return _json(await asyncio.wrap_future(found))

    async def text(request: Request) -> Response:
        number = int(request.path_params["text"])
        found = await asyncio.wrap_future(shelf.ask(at(request), lambda r: frames.text(r, number)))
        if found is None:
            return _sentence(f"the run has no text {number}", 404)
        return _json({"text": found})

    async def mark(request: Request) -> Response:
        body = await _body(request, {"text": int, "what": str, "value": bool | str | None})
        if body["what"] not in get_args(marks.Mark):
            raise MethodError(f"{body['what']!r} is no mark: use {', '.join(get_args(marks.Mark))}")
        kept = shelf.mark(at(request), lambda run: frames.mark(run, **body))
        await asyncio.wrap_future(kept)
        return _json({})

    def told_of(work: Work) -> Callable[[Request], Awaitable[Response]]:
        async def answer(request: Request) -> Response:
            asked = _asked(at(request), await request.body())
            return await _streamed(desk, lambda job: work(desk, job, asked))

        return answer

    async def file(request: Request) -> Response:
        number, radius = (
            int(request.path_params["perturbation"]),
            request.query_params.get("radius"),
        )
        how = float(radius) if radius else None
        made = shelf.ask(at(request), lambda run: _safetensors(run, number, how))
        name = f"perturbation-{number}.safetensors"
        return Response(
            await asyncio.wrap_future(made),
            media_type="application/octet-stream",
            headers={"content-disposition": f'attachment; filename="{name}"'},
        )

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        # What is seen first is made before somebody looks.
        for i in range(len(shelf.folders)):
            shelf.ask_once(i, "counted", counted)
        yield
        desk.close()
        shelf.close()

    own = "/api/runs/{run:int}"
    return Starlette(
        routes=[
            Route("/", page),
            Route("/{name:str}", asset),
            Route("/api/start", start),
            Route("/api/changes", changes),
            Route(f"{own}/document", counting),
            Route(f"{own}/behaviours", counting),
            Route(f"{own}/frames", listed),
            Route(f"{own}/map", placed),
            Route(f"{own}/texts", texts),
            Route(f"{own}/texts/{{text:int}}", text),
            Route(f"{own}/marks", mark, methods=["POST"]),
            Route(f"{own}/write", told_of(writing.write), methods=["POST"]),
            Route(f"{own}/read", told_of(writing.read), methods=["POST"]),
            Route(f"{own}/keep", told_of(writing.keep), methods=["POST"]),
            Route(f"{own}/curve", told_of(writing.curve), methods=["POST"]),
            Route(f"{own}/perturbations/{{perturbation:int}}/file", file),
        ],
        middleware=[
            Middleware(TrustedHostMiddleware, allowed_hosts=list(hosts), www_redirect=False),
            Middleware(Guard, token=token),
        ],
        exception_handlers={
            EduceError: _refusal,
            Exception: _failure,
            ValueError: lambda request, error: _sentence(f"this cannot be read: {error}", 400),
        },
        lifespan=lifespan,
    )


async def _streamed(desk: Desk, work: Callable[[Job], dict[str, Any]]) -> Response:
    """Answer with what a job tells, a line of JSON each; who leaves cancels it."""
    loop, told = asyncio.get_running_loop(), asyncio.Queue[dict[str, Any]]()

    def tell(event: dict[str, Any]) -> None:
        if not loop.is_closed():
            loop.call_soon_threadsafe(told.put_nowait, event)

    job = Job(work, tell)
    desk.take(job)

    async def lines() -> AsyncIterator[str]:
        try:
            while True:
                event = await told.get()
                yield bundle.as_json(event) + "\n"
                if event.keys() & {"done", "stopped", "error"}:
                    return
        finally:
            job.cancel()

    return StreamingResponse(lines(), media_type="application/x-ndjson")


# -- what comes in ---------------------------------------------------------------------------------


def _wanted(request: Request) -> frames.Wanted:
    """Read which texts are wanted from an address."""
    hints = get_type_hints(frames.Wanted)
    given: dict[str, Any] = {}
    for name, value in request.query_params.items():
        if name not in hints:
            raise MethodError(f"texts are not asked for by {name!r}")
        hint = hints[name]
        given[name] = (
            value == "true"
            if hint is bool
            else int(value)
            if int in (hint, *get_args(hint))
            else value
        )
    wanted = frames.Wanted(**given)
    wanted.check()
    return wanted


async def _body(request: Request, form: dict[str, Any]) -> dict[str, Any]:
    """Read a body of JSON with exactly these names."""
    body = json.loads(await request.body())
    if not isinstance(body, dict) or body.keys() != form.keys():
        raise MethodError(f"give {', '.join(form)}")
    for name, hint in form.items():
        if not isinstance(body[name], hint) or (hint is int and isinstance(body[name], bool)):
            raise MethodError(f"{name} is {body[name]!r}")
    return body


def _asked(run: int, body: bytes) -> Asked:
    """Read what is to be written."""
    try:
        given = json.loads(body)
        pieces = tuple(Piece(int(p["id"]), float(p["radius"])) for p in given.pop("pieces", ()))
        text = tuple(map(int, given.pop("text", ())))
        asked = Asked(run=run, pieces=pieces, text=text, **given)
    except (KeyError, TypeError, AttributeError) as error:
        known = ", ".join(f.name for f in fields(Asked) if f.name != "run")
        raise MethodError(
            f"this cannot be read: {error}; what can be asked for: {known}"
        ) from error
    asked.check()
    return asked


# -- what goes out ---------------------------------------------------------------------------------


def _about(run: Run) -> dict[str, Any]:
    (texts,) = run.database.execute(
        "SELECT count(*) FROM completions WHERE text IS NOT NULL"
    ).fetchone()
    config, found = run.config, len(run.perturbation_rows())
    keys = ("model", "adapter", "revision", "dtype", "max_new_tokens", "seed", "method")
    return {
        "name": run.folder.resolve().name,
        "folder": str(run.folder),
        "audit": run.has(AUDIT),
        "texts": texts,
        "perturbations": found,
        "waiting": sum(map(len, run.missing().values())),
        "config": {key: config.get(key) for key in keys},
    }


def _safetensors(run: Run, number: int, radius: float | None) -> bytes:
    """Return a perturbation as a file of its own, at its radius or at another one."""
    from dataclasses import replace

    import torch

    from educe.perturbation.set import PerturbationSet

    row = next((p for p in run.perturbation_rows(derived=None) if p.id == number), None)
    if row is None:
        raise RunError(f"the run has no perturbation {number}")
    one = PerturbationSet.load(run.tensors / row.file).select([row.item])
    one = replace(one, radius=torch.tensor([row.radius if radius is None else radius]))
    with TemporaryDirectory() as folder:
        one.save(Path(folder) / "one.safetensors")
        return (Path(folder) / "one.safetensors").read_bytes()


def _json(value: Any) -> Response:
    return Response(bundle.as_json(value), media_type="application/json")


def _sentence(text: str, status: int) -> Response:
    return JSONResponse({"error": text}, status)


async def _refusal(request: Request, error: Exception) -> Response:
    return _sentence(str(error), 429 if isinstance(error, BusyError) else 400)


async def _failure(request: Request, error: Exception) -> Response:
    return _sentence(f"educe failed: {type(error).__name__}: {error}", 500)


def _cookie(request: Request) -> str:
    """Return the cookie's name, with the port: another explorer may answer at another one."""
    return f"educe-{request.url.port or 80}"


def _same(given: str, token: str) -> bool:
    return secrets.compare_digest(given.encode(), token.encode())
