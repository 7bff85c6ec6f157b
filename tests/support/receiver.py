"""A webhook's server that remembers what it was told, and answers, redirects, dawdles or hangs as a test wants."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

#: the part of its address that nobody may show
SECRET = "T0SECRET/B0SECRET"


class Receiver:
    """status: what it answers. holds: while it is clear, whoever asks is held and gets no byte."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.status = 200
        self.says = b"ok"
        self.drips = False  #: answers a byte of a header now and then, without end
        self.holds = threading.Event()
        self.holds.set()
        self.holding = 0
        self.got: list[dict[str, Any]] = []
        self.headers: Mapping[str, str] = {}  #: of the last request

    @property
    def texts(self) -> list[str]:
        """What it was told."""
        return [body["text"] for body in self.got]

    def told(self, *words: str) -> str | None:
        """The first text in which all of these are."""
        return next((text for text in list(self.texts) if all(word in text for word in words)), None)


@contextmanager
def receiver() -> Iterator[Receiver]:
    """One for the length of a `with` block; nobody is held beyond it."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            made.got.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            made.headers = dict(self.headers)
            made.holding += 1
            made.holds.wait(60)
            made.holding -= 1
            while made.drips and not ended.wait(0.1):
                self.wfile.write(b"HTTP/1.1 200" if self.close_connection else b" ")
            self.send_response(made.status)
            self.send_header("Location", f"{made.url}/elsewhere")
            self.send_header("Content-Length", str(len(made.says)))
            self.end_headers()
            self.wfile.write(made.says)

        def handle(self) -> None:
            try:
                super().handle()
            except OSError:  # whoever asked has gone
                self.close_connection = True

        def log_message(self, *words: Any) -> None:
            """Nothing on stderr."""

    ended = threading.Event()
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    made = Receiver(f"http://127.0.0.1:{server.server_port}/services/{SECRET}")
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield made
    finally:
        ended.set()
        made.holds.set()
        server.shutdown()
        thread.join()
        server.server_close()
