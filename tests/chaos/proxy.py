"""A TCP proxy before Redis or PostgreSQL, one for each node, so that one node alone can be cut off.

    flow        what comes is passed on
    hole        nothing passes, new connections included; nobody is told
    cut         every connection is reset, new ones are refused
    heal        flow again: what was held up arrives late, or (`dead`) the connections of before stay silent
    delay       every piece of data takes so many seconds longer

A connection that stays silent is reset after KERNEL_S: a proxy acknowledges what a real hole would not, and the kernel
of a client that asked for it (tcp_user_timeout) would have closed it by then.

An ear listens to what a connection says and may end it (postgres_ear, redis_ear).
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
import threading
from collections.abc import Callable, Coroutine
from typing import Any, Protocol, TypeVar
from urllib.parse import urlsplit, urlunsplit

T = TypeVar("T")

#: seconds after which a client's kernel gives up a connection on which nothing is acknowledged
KERNEL_S = 15.0


class Ear(Protocol):
    """Listens to one connection. Each method returns what is passed on; None ends the connection with a reset."""

    def from_client(self, data: bytes) -> bytes | None:
        """What the client says."""

    def from_server(self, data: bytes) -> bytes | None:
        """What the server says."""


class Wire:
    """The thread on which every proxy of a pool runs."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever, name="wire", daemon=True)
        self._thread.start()

    def do(self, work: Coroutine[Any, Any, T]) -> T:
        """Run on the wire's thread and wait."""
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(timeout=30)

    def close(self) -> None:
        """End the thread, and what still runs on it."""
        self.do(self._end_all())
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join()
        self.loop.close()

    async def _end_all(self) -> None:
        running = asyncio.all_tasks() - {asyncio.current_task()}
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)


class Proxy:
    """One port before one server. ear: makes what listens to each connection. host: the address it has."""

    def __init__(self, wire: Wire, behind: str, ear: Callable[[], Ear] | None = None, host: str = "127.0.0.1") -> None:
        self._wire = wire
        self._host = host
        parts = urlsplit(behind)
        assert parts.hostname is not None
        assert parts.port is not None
        self._behind = parts.hostname, parts.port
        self._ear = ear
        self._flowing = asyncio.Event()
        self._flowing.set()
        self._delay_s = 0.0
        self._pairs: set[_Pair] = set()
        self._server: asyncio.Server | None = None
        self._port = 0
        wire.do(self._listen())
        user, at, _ = parts.netloc.rpartition("@")
        self.url = urlunsplit(parts._replace(netloc=f"{user}{at}{host}:{self._port}"))

    # --- faults, from any thread ---------------------------------------------------------------------------

    def hole(self) -> None:
        """Nothing passes any more."""
        self._wire.loop.call_soon_threadsafe(self._flowing.clear)

    def heal(self, *, dead: bool = False) -> None:
        """Flow again. dead: the connections of before stay silent."""
        self._wire.do(self._heal(dead))

    def cut(self) -> None:
        """Reset every connection and refuse new ones."""
        self._wire.do(self._cut())

    def half_open(self) -> None:
        """The connections there are stay silent; the server's ends are closed."""
        self._wire.do(self._half_open())

    def delay(self, seconds: float) -> None:
        """Every piece takes so much longer from now on."""
        self._delay_s = seconds

    def close(self) -> None:
        """End everything."""
        self._wire.do(self._cut())

    # --- on the wire's thread ------------------------------------------------------------------------------

    async def _listen(self) -> None:
        self._server = await asyncio.start_server(self._accept, self._host, self._port, backlog=512)
        self._port = self._server.sockets[0].getsockname()[1]

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        pair = _Pair(self, reader, writer, self._ear() if self._ear else None)
        self._pairs.add(pair)
        try:
            with contextlib.suppress(asyncio.CancelledError):  # the wire ends; asyncio's streams would print it
                await pair.run(*self._behind)
        finally:
            self._pairs.discard(pair)
            pair.reset()

    async def passes(self, pair: _Pair) -> None:
        """Wait until data may pass."""
        if self._delay_s:
            await asyncio.sleep(self._delay_s)
        await self._flowing.wait()
        if pair.dead:
            await asyncio.sleep(KERNEL_S)
            raise ConnectionResetError

    async def _heal(self, dead: bool) -> None:
        if dead:
            self._silence()
        self._delay_s = 0.0
        self._flowing.set()
        if self._server is None:
            await self._listen()

    async def _half_open(self) -> None:
        self._silence()

    def _silence(self) -> None:
        for pair in self._pairs:
            pair.dead = True
            pair.let_go_of_server()

    async def _cut(self) -> None:
        if self._server is not None:
            self._server.close()
            self._server = None
        for pair in list(self._pairs):
            pair.reset()


class _Pair:
    """One client's connection and ours to the server."""

    def __init__(
        self, proxy: Proxy, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, ear: Ear | None
    ) -> None:
        self.dead = False
        self._proxy = proxy
        self._reader, self._writer = reader, writer
        self._server: asyncio.StreamWriter | None = None
        self._ear = ear

    async def run(self, host: str, port: int) -> None:
        """Pass on both ways until one side ends."""
        with contextlib.suppress(OSError):
            await self._proxy.passes(self)
            reader, self._server = await asyncio.open_connection(host, port)
            hears = (self._ear.from_client, self._ear.from_server) if self._ear else (None, None)
            pumps = [
                asyncio.ensure_future(self._pump(self._reader, self._server, hears[0])),
                asyncio.ensure_future(self._pump(reader, self._writer, hears[1])),
            ]
            await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
            if self.dead:  # the server's end is gone, and nobody tells the client
                await asyncio.sleep(KERNEL_S)
            for pump in pumps:
                pump.cancel()
            await asyncio.gather(*pumps, return_exceptions=True)

    async def _pump(
        self, source: asyncio.StreamReader, sink: asyncio.StreamWriter, hear: Callable[[bytes], bytes | None] | None
    ) -> None:
        while data := await source.read(1 << 16):
            await self._proxy.passes(self)
            if hear is not None:
                heard = hear(data)
                if heard is None:
                    self.reset()
                    return
                data = heard
            sink.write(data)
            await sink.drain()

    def let_go_of_server(self) -> None:
        """The server sees its end closed."""
        if self._server is not None:
            self._server.transport.abort()

    def reset(self) -> None:
        """Reset both connections."""
        for writer in (self._writer, self._server):
            if writer is not None:
                _reset(writer)


def _reset(writer: asyncio.StreamWriter) -> None:
    raw = writer.get_extra_info("socket")
    with contextlib.suppress(OSError):
        if raw is not None:
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # close sends a reset
    writer.transport.abort()
