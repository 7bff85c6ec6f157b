"""One HTTP exchange with a model server: the client, its timeouts, and the shape of every request.

Every request goes straight through httpx's aiohttp transport: measured at 128 connections, `client.post`
costs 307 µs a request, the transport 200 µs, aiohttp itself 110 µs.  Replies are streamed, so that a timeout
between tokens can hold, and a call that is cancelled or late closes its connection at once: that is how a
model server learns to free its slot.
"""

from __future__ import annotations

import asyncio
import functools
import ssl
import weakref
from collections.abc import AsyncIterator, Mapping
from contextlib import aclosing, suppress
from dataclasses import dataclass
from typing import Any, ClassVar, cast

import aiohttp
import httpx
import orjson
from httpx_aiohttp import AiohttpTransport

from tasks.errors import CallError, Permanent, Transient
from tasks.privacy import Clearance, Reach
from workers.backends import Timeouts
from workers.backends.border import LOOPBACK, Border, ReachResolver, socket_maker
from workers.backends.foreign import foreign_errors
from workers.backends.refusals import refusal
from workers.backends.streams import Reader, parse

#: bytes of one reply as it comes over the wire; JSON around every token makes it several times the text
MAX_REPLY_BYTES = 64 * 1024 * 1024
#: bytes of an error reply that are read
MAX_REFUSAL_BYTES = 64 * 1024
#: seconds to wait for the end of a reply whose answer is complete, so that its connection can be kept
DRAIN = 2.0
#: seconds a connection is kept unused; below the 5 s after which uvicorn (vLLM) and llama.cpp close theirs,
#: because a request sent into that moment is lost
KEEP_ALIVE = 3.0


@dataclass(frozen=True, slots=True)
class Times:
    """Milliseconds from the start of a call to its first token and to its end."""

    first_token_ms: float
    duration_ms: float


@dataclass(frozen=True, slots=True)
class Answer:
    """The reply to a short question."""

    status: int
    server: str  #: the Server header
    body: bytes

    def json(self) -> dict[str, Any]:
        """The body's JSON object; empty for anything else, and for a status other than 200."""
        with suppress(Transient):
            return parse(self.body, "") if self.status == 200 else {}
        return {}


class Http:
    """One provider's way to its server: where it is, and the header it wants."""

    def __init__(self, url: str, name: str, api_key: str | None = None, border: Border = LOOPBACK) -> None:
        self.name = name
        self._border = border
        self._base = url.rstrip("/")
        self._headers = httpx.Headers(
            {"content-type": "application/json", "accept-encoding": "identity", "connection": "close"}
        )
        self._keeps_connections = False
        if api_key:
            self._headers["authorization"] = f"Bearer {api_key.strip()}"  # a newline would split the header
        self._urls: dict[str, httpx.URL] = {}
        self._shared: Shared | None = None

    async def post(
        self, path: str, body: Mapping[str, Any], reader: Reader, limits: Timeouts, clearance: Clearance
    ) -> Times:
        """Send one request, if it may go there, and feed its whole reply to the reader; raises CallError."""
        await self._border.admitted(self.name, clearance, body)
        return await self._exchange(self._request("POST", path, self._encode(body), limits), reader, limits)

    async def get(self, path: str, seconds: float) -> Answer:
        """Ask a short question; any status is an answer.  Raises CallError where none came in time.

        seconds: to connect, and as long again for the answer.
        """
        return await self._short("GET", path, b"", seconds)

    async def tell(self, path: str, body: Mapping[str, Any], seconds: float) -> Answer:
        """Tell the server something about itself, never anything of a job (POST); otherwise as `get`."""
        return await self._short("POST", path, self._encode(body), seconds)

    async def _short(self, method: str, path: str, content: bytes, seconds: float) -> Answer:
        limits = Timeouts(connect=seconds, load=0.0, first_token=2 * seconds, total=2 * seconds)
        asked = _Asked()
        await self._exchange(self._request(method, path, content, limits), asked, limits)
        return Answer(asked.status, asked.server, bytes(asked.body))

    async def aclose(self) -> None:
        """Close the connections, where no other backend of this process uses them."""
        if self._shared is not None:
            shared, self._shared = self._shared, None
            await shared.leave()

    def _encode(self, body: Mapping[str, Any]) -> bytes:
        try:
            return orjson.dumps(body)
        except orjson.JSONEncodeError:
            raise Permanent("not_encodable", f"{self.name}: the request is no valid JSON") from None

    def _request(self, method: str, path: str, content: bytes, limits: Timeouts) -> httpx.Request:
        url = self._urls.get(path) or self._urls.setdefault(path, self._url(path))
        # the pool is unlimited, so its timeout is the one for the whole way to a connection, DNS and TLS too
        extensions = {"timeout": {"pool": limits.connect}}
        # given as a stream, httpx works out no headers: aiohttp adds host and length, once and faster
        stream = httpx.ByteStream(content)
        request = httpx.Request(method, url, headers=self._headers, stream=stream, extensions=extensions)
        request.read()
        return request

    def _url(self, path: str) -> httpx.URL:
        with suppress(httpx.InvalidURL):
            url = httpx.URL(self._base + path)
            if url.scheme in ("http", "https") and url.host:
                return url
        raise Permanent("bad_url", f"{self.name}: the provider's url is none of http or https")

    async def _exchange(self, request: httpx.Request, reader: Reader, limits: Timeouts) -> Times:
        if self._shared is None:
            self._shared = Shared.enter(self._border.reach)
        clock = _Clock(limits)
        try:
            with foreign_errors(self.name):
                await self._run(self._shared.transport, request, reader, clock)
        except CallError:
            if not reader.complete:
                raise
        return clock.times()

    async def _run(self, transport: AiohttpTransport, request: httpx.Request, reader: Reader, clock: _Clock) -> None:
        try:
            async with clock.scope:
                response = await transport.handle_async_request(request)
                self._learn(response)
                stream = cast(httpx.AsyncByteStream, response.stream)
                try:
                    if isinstance(reader, _Asked):
                        reader.begin(response)
                    elif response.status_code != 200:
                        raise await self._refusal(response, stream)
                    await self._read(stream, reader, clock)
                finally:
                    await stream.aclose()
        except TimeoutError:
            if not clock.scope.expired():
                raise
            raise clock.late(self.name) from None

    def _learn(self, response: httpx.Response) -> None:
        """Ask for connections to be kept from a server that does what it says.

        llama.cpp's closes after every stream although it has announced `Keep-Alive`, and the next request on
        that connection is lost (obsidian-local-llm-hub#32; seen with xllamacpp 2026.10).
        """
        keeps = all(value != b"llama.cpp" for _, value in response.headers.raw)
        if keeps is not self._keeps_connections:
            self._keeps_connections = keeps
            self._headers["connection"] = "keep-alive" if keeps else "close"

    async def _read(self, stream: httpx.AsyncByteStream, reader: Reader, clock: _Clock) -> None:
        size = 0
        async with aclosing(cast("_Chunks", aiter(stream))) as chunks:
            async for chunk in chunks:
                size += len(chunk)
                if size > MAX_REPLY_BYTES:
                    large = f"{self.name}: the reply is larger than {MAX_REPLY_BYTES >> 20} MiB"
                    raise Permanent("output_too_large", large, "answer")
                reader.feed(chunk)
                clock.progress(reader)
        reader.end()

    async def _refusal(self, response: httpx.Response, stream: httpx.AsyncByteStream) -> CallError:
        body = bytearray()
        with suppress(httpx.HTTPError, aiohttp.ClientError, OSError):
            async with asyncio.timeout(DRAIN):
                async for chunk in stream:
                    body += chunk
                    if len(body) > MAX_REFUSAL_BYTES:
                        break
        return refusal(self.name, response.status_code, response.headers, bytes(body))


class _Chunks(AsyncIterator[bytes]):
    """What the transport's stream really is: an async generator, which can be closed."""

    async def aclose(self) -> None: ...


class _Asked:
    """Reads the reply to a short question, whatever its status."""

    def __init__(self) -> None:
        self.status = 0
        self.server = ""
        self.body = bytearray()
        self.started = False
        self.complete = False

    def begin(self, response: httpx.Response) -> None:
        self.status = response.status_code
        self.server = response.headers.get("server", "")

    def feed(self, chunk: bytes) -> None:
        self.body += chunk

    def end(self) -> None:
        self.complete = True


class _Clock:
    """The deadlines of one call: one asyncio timeout, moved as the call proceeds."""

    __slots__ = ("_between", "_first", "_loop", "_start", "_total", "scope")

    def __init__(self, limits: Timeouts) -> None:
        self._loop = asyncio.get_running_loop()
        self._start = self._loop.time()
        self._first = 0.0
        self._between = limits.between_tokens
        self._total = self._start + limits.total
        self.scope = asyncio.timeout_at(min(self._total, self._start + limits.load + limits.first_token))

    def progress(self, reader: Reader) -> None:
        """Bytes came; before the first token they prove nothing: servers send keep-alives meanwhile."""
        if not reader.started:
            return
        now = self._loop.time()
        if not self._first:
            self._first = now
        self.scope.reschedule(min(now + (DRAIN if reader.complete else self._between), self._total))

    def late(self, name: str) -> Transient:
        """The error for the deadline that has passed."""
        if self._loop.time() >= self._total:
            return Transient("total_timeout", f"{name}: the call took longer than it may")
        if not self._first:
            return Transient("first_token_timeout", f"{name}: no first token in time")
        return Transient("stalled", f"{name}: no token for {self._between:g} s")

    def times(self) -> Times:
        """What the call took until now."""
        end = self._loop.time()
        return Times(((self._first or end) - self._start) * 1000.0, (end - self._start) * 1000.0)


@functools.cache
def _trust() -> ssl.SSLContext:
    """Whom TLS trusts, by the machine's certificates; reading them takes 20 ms, so a process does it once."""
    return ssl.create_default_context()


class Shared:
    """The one HTTP client of an event loop and a reach, closed by the last backend that leaves it.

    A process has one loop (tests have one each), so this is one client a worker.
    """

    _of_loop: ClassVar[weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, dict[Reach, Shared]]] = (
        weakref.WeakKeyDictionary()
    )

    def __init__(self, reach: Reach) -> None:
        self.users = 0
        self._reach = reach
        context = _trust()
        # a session of our own: from httpx.Limits the transport would take aiohttp's 100 connections for
        # "unlimited"
        connector = aiohttp.TCPConnector(
            limit=0,
            keepalive_timeout=KEEP_ALIVE,
            ssl=context,
            resolver=ReachResolver(reach),
            socket_factory=socket_maker(reach),
        )
        session = aiohttp.ClientSession(connector=connector, cookie_jar=aiohttp.DummyCookieJar(), trust_env=False)
        self.transport = AiohttpTransport(verify=context, trust_env=False, client=session)

    @classmethod
    def enter(cls, reach: Reach) -> Shared:
        """The running loop's client for a reach, for one more user."""
        of_reach = cls._of_loop.setdefault(asyncio.get_running_loop(), {})
        shared = of_reach.get(reach)
        if shared is None:
            shared = of_reach[reach] = cls(reach)
        shared.users += 1
        return shared

    async def leave(self) -> None:
        """One user less; the last one closes every connection."""
        self.users -= 1
        if not self.users:
            self._of_loop.get(asyncio.get_running_loop(), {}).pop(self._reach, None)
            await self.transport.aclose()
