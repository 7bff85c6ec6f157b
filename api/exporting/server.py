"""`/metrics` and `/healthz` by HTTP: the role `metrics`."""

from __future__ import annotations

import signal
import socket
import threading
from collections.abc import Callable, Iterable
from socketserver import TCPServer
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

import structlog
from prometheus_client import CollectorRegistry, make_wsgi_app
from prometheus_client.exposition import ThreadingWSGIServer

from api.exporting.exporter import Exporter, exporter
from tasks.errors import PoolError
from tasks.registry import Registry
from tasks.settings import Settings

#: seconds a client may be silent in the middle of its request
SILENT_S = 10

log = structlog.get_logger(__name__)

WsgiApp = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]


def serve(settings: Settings, registry: Registry, address: str, port: int) -> None:
    """Serve until SIGTERM or SIGINT; raises PoolError where it cannot listen."""
    collector = exporter(settings, registry)
    server = listening(collector, address, port)
    for wanted in (signal.SIGINT, signal.SIGTERM):
        signal.signal(wanted, lambda *_: threading.Thread(target=server.shutdown).start())
    collector.begin()
    log.info("metrics are served", url=f"http://{_in_url(address)}:{server.server_port}/metrics")
    try:
        server.serve_forever()
    finally:
        server.server_close()
        collector.close()


def listening(collector: Exporter, address: str, port: int) -> WSGIServer:
    """A server that listens and does not serve yet. port: 0 takes a free one. Raises PoolError."""
    try:
        found = socket.getaddrinfo(address, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        server = _server(found[0])((address, port), _Handler)
    except (OSError, OverflowError, UnicodeError) as error:
        words = error.strerror if isinstance(error, OSError) else type(error).__name__
        raise PoolError(f"metrics cannot be served at {address} port {port}: {words}; see --address, --port") from None
    server.set_app(application(collector))
    return server


def application(collector: Exporter) -> WsgiApp:
    """What it answers, as WSGI."""
    registry = CollectorRegistry()
    registry.register(collector)
    metrics = make_wsgi_app(registry)

    def answer(environ: dict[str, Any], start: Callable[..., Any]) -> Iterable[bytes]:
        path = environ.get("PATH_INFO", "")
        if path == "/metrics":
            found: Iterable[bytes] = metrics(environ, start)
            return found
        status, body = ("200 OK", b"ok\n") if path == "/healthz" else ("404 Not Found", b"there is /metrics\n")
        start(status, [("Content-Type", "text/plain; charset=utf-8"), ("Content-Length", str(len(body)))])
        return [body]

    return answer


def _in_url(address: str) -> str:
    return f"[{address}]" if ":" in address else address


class _Handler(WSGIRequestHandler):
    """Says nothing of requests, and waits for none without end."""

    timeout = SILENT_S

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing."""


def _server(family: int) -> type[WSGIServer]:
    class Server(ThreadingWSGIServer):
        address_family = family

        def server_bind(self) -> None:
            """Without asking a name server who we are."""
            TCPServer.server_bind(self)
            self.server_name, self.server_port = str(self.server_address[0]), int(self.server_address[1])
            self.setup_environ()

        def handle_error(self, request: Any, client_address: Any) -> None:
            """A client that went away is nobody's fault."""
            log.debug("a scrape was broken off")

    return Server
