"""Around everything: a request id, no body beyond its limit, no client that is slower than patience."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Mapping
from typing import Any

from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.http.errors import ApiError, reply
from api.use_cases.uploads import MOST_BYTES

#: bytes of a request's body, unless its path has more
MOST_BODY = 16 * 1024 * 1024
#: path -> bytes of its bodies; an upload is a form around the file
MOST_OF = {"/v1/files": MOST_BYTES + (1 << 20), "/v1/messages/batches": 256 * 1024 * 1024}
#: seconds between two pieces of a body
PATIENCE_S = 30.0


class Limits:
    """ASGI middleware; the outermost."""

    def __init__(self, app: ASGIApp, patience_s: float = PATIENCE_S, most: Mapping[str, int] | None = None) -> None:
        self._app, self._patience_s, self._most = app, patience_s, MOST_OF if most is None else most

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id = f"req_{secrets.token_hex(12)}"
        scope.setdefault("state", {})["request_id"] = request_id
        body = _Body(receive, self._most.get(scope["path"], MOST_BODY), self._patience_s)
        began = False

        async def answer(message: Message) -> None:
            nonlocal began
            if message["type"] == "http.response.start":
                began = True
                named = [(name, request_id.encode()) for name in (b"x-request-id", b"request-id")]
                message["headers"] = [*message.get("headers", ()), *named]
            await send(message)

        try:
            _check_address(scope)
            body.check_length(scope)
            await self._app(scope, body.receive, answer)
        except _Refused as refused:
            if not began:
                await reply(Request(scope), refused.error)(scope, receive, answer)


def _check_address(scope: Scope) -> None:
    """Refuse an address with a NUL character, which no id has and PostgreSQL cannot keep."""
    if "\0" in scope["path"] or b"%00" in scope["query_string"]:
        raise _Refused(ApiError(400, "The address holds a NUL character."))


class _Refused(BaseException):
    """Goes through every handler of the application: the rest of the body will not come."""

    def __init__(self, error: ApiError) -> None:
        self.error = error


class _Body:
    """A request's body, piece by piece."""

    def __init__(self, receive: Receive, most: int, patience_s: float) -> None:
        self._receive, self._most, self._patience_s = receive, most, patience_s
        self._size = 0
        self._is_over = False

    def check_length(self, scope: Scope) -> None:
        """Refuse what says of itself that it is too large."""
        said = dict(scope["headers"]).get(b"content-length", b"")
        if said.isdigit() and int(said) > self._most:
            raise self._too_large()

    async def receive(self) -> Message:
        """The next message; after the body it is only waited for the client's end."""
        if self._is_over:
            return await self._receive()
        try:
            async with asyncio.timeout(self._patience_s):  # `wait_for` would make a task of it
                message = await self._receive()
        except TimeoutError:
            raise _Refused(ApiError(408, "The request's body came too slowly.", headers=_CLOSE)) from None
        if message["type"] == "http.request":
            self._size += len(message.get("body", b""))
            self._is_over = not message.get("more_body", False)
            if self._size > self._most:
                raise self._too_large()
        return message

    def _too_large(self) -> _Refused:
        words = f"The request's body is larger than {self._most >> 20} MiB."
        return _Refused(ApiError(413, words, code="request_too_large", headers=_CLOSE))


#: nothing more is read from a connection whose body was not read
_CLOSE: dict[str, Any] = {"connection": "close"}
