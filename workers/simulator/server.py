"""The socket and the routes; starting, stopping and serving until a signal."""

from __future__ import annotations

import asyncio
import errno
import signal
import sys
from contextlib import suppress
from typing import Any

from aiohttp import web
from aiohttp.abc import AbstractStreamWriter
from aiohttp.http_parser import RawRequestMessage
from aiohttp.streams import StreamReader
from aiohttp.web_protocol import RequestHandler

from tasks.errors import UsageError
from workers.simulator import anthropic_routes, control_routes, ollama_routes, ollama_store, openai_routes
from workers.simulator.asks import Dialect, Refusal
from workers.simulator.config import SimulatorConfig
from workers.simulator.delivery import JSON, at_once
from workers.simulator.exchange import check_key, handle
from workers.simulator.state import PlainRoutes, Simulator

#: bytes of the largest request body
LARGEST_BODY = 1 << 28
#: seconds that requests under way get when the simulator stops
GRACE_S = 0.05
#: asked for without a key, as real servers answer their liveness
_OPEN = frozenset({"/", "/health"})
#: what each protocol adds: its dialects and its plain routes
_ROUTES: dict[str, tuple[tuple[Dialect, ...], PlainRoutes]] = {
    "ollama": (ollama_routes.DIALECTS, ollama_store.ROUTES),
    "openai": (openai_routes.DIALECTS, openai_routes.ROUTES),
    "anthropic": (anthropic_routes.DIALECTS, anthropic_routes.ROUTES),
}


class RunningSimulator:
    """A simulator that listens; `stop` it."""

    def __init__(self, sim: Simulator, runner: web.ServerRunner, host: str, port: int) -> None:
        self._sim, self._runner = sim, runner
        self.host, self.port = host, port

    @property
    def url(self) -> str:
        """Where it listens, without a slash at the end."""
        return f"http://{self.host}:{self.port}"

    @property
    def config(self) -> SimulatorConfig:
        """How it behaves now."""
        return self._sim.config

    def stats(self) -> dict[str, Any]:
        """What GET /sim/stats answers."""
        return self._sim.stats()

    def calls(self, limit: int = 100) -> list[dict[str, Any]]:
        """What GET /sim/calls answers."""
        return self._sim.log.latest(limit)

    def configure(self, **changes: Any) -> None:
        """Change fields of the configuration. Raises pydantic.ValidationError."""
        self._sim.apply(changes)

    def reset(self) -> None:
        """Back to how it started."""
        self._sim.reset()

    async def stop(self) -> None:
        """Close every connection, whatever it waits for, and the call log. May be called twice."""
        await self._runner.cleanup()
        self._sim.log.close()


class _Router:
    """Finds what answers a request; a dictionary, for web.Application costs as much as an answer."""

    def __init__(self, sim: Simulator) -> None:
        self._sim = sim
        self._dialects: dict[str, Dialect] = {}
        self._plain: PlainRoutes = dict(control_routes.ROUTES)
        for name in sim.config.protocols:
            dialects, plain = _ROUTES[name]
            self._plain = plain | self._plain  # of a route that two protocols have, the first one's, which knows both
            self._dialects |= {dialect.path: dialect for dialect in dialects}

    async def __call__(self, request: web.BaseRequest) -> web.StreamResponse:
        path = request.path
        if request.method == "POST" and (dialect := self._dialects.get(path)) is not None:
            return await handle(self._sim, dialect, request)
        route = self._plain.get((request.method, path))
        if route is None:
            return at_once(b"404 page not found", "text/plain", 404)
        try:
            if path not in _OPEN and not path.startswith("/sim/"):
                check_key(self._sim.config, request)
            return await route(self._sim, request)
        except Refusal as refusal:
            return at_once(_shape_of(path).refusal(refusal), JSON, refusal.status)


def _shape_of(path: str) -> Dialect:
    """Whose errors a plain route answers."""
    if path.startswith("/v1/messages"):
        return anthropic_routes.MESSAGES
    return openai_routes.DIALECTS[0] if path.startswith("/v1/") else ollama_routes.DIALECTS[0]


def _request(
    message: RawRequestMessage,
    payload: StreamReader,
    protocol: RequestHandler,
    writer: AbstractStreamWriter,
    task: asyncio.Task[None],
) -> web.BaseRequest:
    loop = asyncio.get_running_loop()
    return web.BaseRequest(message, payload, protocol, writer, task, loop, client_max_size=LARGEST_BODY)


async def start(config: SimulatorConfig | None = None, host: str = "127.0.0.1", port: int = 0) -> RunningSimulator:
    """Listen on `port`, or on a free one for 0. Raises UsageError when the port is in use."""
    sim = Simulator(config or SimulatorConfig())
    server = web.Server(_Router(sim), request_factory=_request, handler_cancellation=True, access_log=None)
    runner = web.ServerRunner(server, shutdown_timeout=GRACE_S)
    await runner.setup()
    try:
        await web.TCPSite(runner, host, port, backlog=4096).start()
    except OSError as error:
        await runner.cleanup()
        if error.errno != errno.EADDRINUSE:
            raise UsageError(f"cannot listen on {host}:{port}: {error.strerror or error}") from None
        raise UsageError(
            f"port {port} on {host} is in use: stop what listens there, or choose another --port"
        ) from None
    return RunningSimulator(sim, runner, host, int(runner.addresses[0][1]))


def serve(config: SimulatorConfig | None = None, host: str = "127.0.0.1", port: int = 0) -> None:
    """Serve until SIGTERM or SIGINT. Raises UsageError when the port is in use."""
    asyncio.run(_serve(config, host, port))


async def _serve(config: SimulatorConfig | None, host: str, port: int) -> None:
    loop, asked = asyncio.get_running_loop(), asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        with suppress(NotImplementedError):  # Windows: Ctrl-C still ends asyncio.run
            loop.add_signal_handler(number, asked.set)
    running = await start(config, host, port)
    print(f"simulator listening on {running.url}", file=sys.stderr, flush=True)
    try:
        await asked.wait()
    finally:
        await running.stop()
