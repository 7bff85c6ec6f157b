"""The heads of requests, bounded: uvicorn's protocol counts neither their bytes nor their time."""

from __future__ import annotations

import asyncio
import secrets

import orjson
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from api.http.errors import ApiError, inner
from api.http.limits import PATIENCE_S

#: bytes of a head, beyond its first piece; what comes before anything is known of who sends it
MOST_HEAD = 64 * 1024


class Heads(HttpToolsProtocol):
    """One connection. A head that is too long or too slow ends it; errors have OpenAI's shape and a request id."""

    _is_head = True  #: until a request's head is complete
    _size = 0
    _late: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """A client is there, and is to say something."""
        super().connection_made(transport)
        self._wait()

    def connection_lost(self, exc: Exception | None) -> None:
        """It has gone."""
        self._wait_no_more()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """What came is parsed; a piece that begins and ends within a head counts."""
        was_head = self._is_head
        super().data_received(data)
        if was_head and self._is_head and not self.transport.is_closing():
            self._size += len(data)
            if self._size > MOST_HEAD:
                self._refuse(ApiError(431, "The request's headers are too large."))

    def on_message_begin(self) -> None:
        """A head begins."""
        super().on_message_begin()
        self._is_head, self._size = True, 0
        if self._late is None:
            self._wait()

    def on_headers_complete(self) -> None:
        """It is over."""
        self._is_head = False
        self._wait_no_more()
        super().on_headers_complete()

    def send_400_response(self, msg: str) -> None:
        """What came is no HTTP."""
        self._refuse(ApiError(400, msg))

    def _wait(self) -> None:
        late = ApiError(408, "The request's headers came too slowly.")
        self._late = asyncio.get_running_loop().call_later(PATIENCE_S, self._refuse, late)

    def _wait_no_more(self) -> None:
        if self._late is not None:
            self._late.cancel()
            self._late = None

    def _refuse(self, error: ApiError) -> None:
        if self.transport.is_closing():
            return
        body = orjson.dumps({"error": inner(error)})
        head = (
            f"HTTP/1.1 {error.status} Refused\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n"
            f"x-request-id: req_{secrets.token_hex(12)}\r\nconnection: close\r\n\r\n"
        )
        self.transport.write(head.encode() + body)
        self.transport.close()
