"""Servers on loopback: one that serves a model as the protocol has it, and one that misbehaves.

Both are of the standard library and know nothing of educe's client. `Serving` computes log-
probabilities from the transformers model alone, one question at a time without padding.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import torch

from educe.model.language import LanguageModel

CHAT = "/v1/chat/completions"
Reply = tuple[int, Any, dict[str, str]]  #: status, body (bytes go out as they are), headers


def completion(text: str, *, logprobs: Any = None, tokens: int | None = 10) -> Reply:
    """A reply of the protocol; ``tokens`` None leaves the usage out."""
    choice = {
        "index": 0,
        "finish_reason": "stop",
        "message": {"role": "assistant", "content": text},
        "logprobs": logprobs,
    }
    body: dict[str, Any] = {
        "id": "x",
        "object": "chat.completion",
        "created": 0,
        "model": "m",
        "choices": [choice],
    }
    if tokens is not None:
        half = tokens // 2
        body["usage"] = {
            "prompt_tokens": half,
            "completion_tokens": tokens - half,
            "total_tokens": tokens,
        }
    return 200, body, {}


def likely(shares: dict[str, float]) -> dict[str, Any]:
    """Log-probabilities of the first token, as the protocol has them."""
    top = [
        {"token": t, "logprob": float(torch.tensor(p).log()), "bytes": None}
        for t, p in shares.items()
    ]
    return {"content": [{**top[0], "top_logprobs": top}], "refusal": None}


@dataclass
class Loopback:
    """A server under way, and what it saw."""

    answer: Callable[[dict[str, Any]], Reply]
    url: str = ""
    asked: list[dict[str, Any]] = field(default_factory=list)
    in_flight: int = 0
    most_in_flight: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)


@contextmanager
def serving(
    answer: Callable[[dict[str, Any]], Reply], paths: tuple[str, ...] = (CHAT,)
) -> Iterator[Loopback]:
    """Serve replies on loopback, each call in a thread of its own; others are told their path."""
    seen = Loopback(answer)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with seen.lock:
                seen.asked.append(body)
                seen.in_flight += 1
                seen.most_in_flight = max(seen.most_in_flight, seen.in_flight)
            try:
                status, content, headers = (
                    seen.answer(body if self.path == CHAT else body | {"path": self.path})
                    if self.path in paths
                    else (404, {"error": {"message": "no such path"}}, {})
                )
            finally:
                with seen.lock:
                    seen.in_flight -= 1
            raw = content if isinstance(content, bytes) else json.dumps(content).encode()
            try:
                self.send_response(status)
                sent = {"Content-Type": "application/json", "Content-Length": str(len(raw))}
                for name, value in {**sent, **headers}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(raw)
            except OSError:  # who asked has gone
                self.close_connection = True

        def log_message(self, *arguments: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    seen.url = f"http://127.0.0.1:{server.server_address[1]}/v1"
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield seen
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class Serving:
    """Answers as a model does: greedy text, and the log-probabilities of the likeliest tokens."""

    def __init__(self, lm: LanguageModel) -> None:
        self.hf, self.tokenizer = lm.hf, lm.tokenizer
        self.lock = threading.Lock()  # the model runs one question at a time

    @torch.no_grad()
    def __call__(self, body: dict[str, Any]) -> Reply:
        text = self.tokenizer.apply_chat_template(
            body["messages"], tokenize=False, add_generation_prompt=True
        )
        ids = self.tokenizer(text, add_special_tokens=False, return_tensors="pt")["input_ids"]
        with self.lock:
            made = self.hf.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=body["max_tokens"],
                do_sample=False,
                return_dict_in_generate=True,
                output_logits=True,
            )
            written = made.sequences[0, ids.shape[1] :]
            given = None
            if body.get("logprobs"):
                shares = made.logits[0][0].log_softmax(-1)
                top = shares.topk(body["top_logprobs"])
                each = [
                    {"token": self.tokenizer.decode([i]), "logprob": lp, "bytes": None}
                    for lp, i in zip(*(t.tolist() for t in top), strict=True)
                ]
                given = {"content": [{**each[0], "top_logprobs": each}], "refusal": None}
        said = self.tokenizer.decode(written, skip_special_tokens=True)
        return completion(said, logprobs=given, tokens=ids.shape[1] + len(written))
