"""A server on loopback that answers by a table of paths, and remembers what it was asked."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Answer = Callable[[str, bytes, str], Any]


class Stub:
    """Answers a path by what ends it, with ``answer(path, body, url)`` as JSON, or with 404.

    Attributes:
        url: Where it is.
        asked: Path, headers and body of each request.
    """

    def __init__(self, answers: Mapping[str, Answer]) -> None:
        self.asked: list[tuple[str, dict[str, str], bytes]] = []
        seen = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                seen.asked.append((self.path, dict(self.headers), body))
                own = [a for end, a in answers.items() if self.path.split("?")[0].endswith(end)]
                raw = json.dumps(own[0](self.path, body, seen.url) if own else {}).encode()
                self.send_response(200 if own else 404)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(raw)))
                self.end_headers()
                self.wfile.write(raw)

            do_GET = do_POST  # noqa: N815

            def log_message(self, *arguments: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"

    def __enter__(self) -> Stub:
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True)
        self.thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()
