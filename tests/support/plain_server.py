"""A small HTTP server that remembers every request, probes too, and answers what a test wants."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

#: what an Ollama says of itself, and a chat's answer
OLLAMA: dict[str, Any] = {
    "/api/version": {"version": "0.33.0"},
    "/api/tags": {"models": [{"name": "gemma3:4b"}]},
    "/api/chat": {"model": "gemma3:4b", "message": {"content": "hello"}, "done": True, "eval_count": 5},
}


class PlainServer:
    """Its answers by path, a number for a bare status; requests as (method, path, body)."""

    def __init__(self, url: str, answers: dict[str, Any]) -> None:
        self.url = url
        self.answers = answers
        self.requests: list[tuple[str, str, Any]] = []
        self.headers: list[Mapping[str, str]] = []

    def count(self, path: str) -> int:
        """How often a path was asked for."""
        return sum(asked == path for _, asked, _ in self.requests)

    def says(self, text: str, **more: Any) -> None:
        """The next chats are answered so."""
        self.answers["/api/chat"] = {"message": {"content": text}, "done": True, **more}


@contextmanager
def plain_server(answers: Mapping[str, Any] = OLLAMA) -> Iterator[PlainServer]:
    """A server for the length of a `with` block."""

    class Handler(BaseHTTPRequestHandler):
        def _answer(self) -> None:
            raw = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            server.requests.append((self.command, self.path, json.loads(raw) if raw else None))
            server.headers.append(dict(self.headers))
            answer = server.answers.get(self.path, 404)
            status, body = (answer, {}) if isinstance(answer, int) else (200, answer)
            content = body if isinstance(body, bytes) else json.dumps(body).encode()
            self.send_response(status)
            if 300 <= status < 400:
                self.send_header("Location", server.answers["location"])
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        do_GET = do_POST = _answer

        def log_message(self, *words: Any) -> None:
            """Nothing on stderr."""

    listening = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server = PlainServer(f"http://127.0.0.1:{listening.server_port}", dict(answers))
    thread = threading.Thread(target=listening.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        listening.shutdown()
        listening.server_close()
        thread.join()
