"""The events of a streamed message, in Anthropic's shape. Pure."""

from __future__ import annotations

import secrets
from typing import Any

import orjson

from api.use_cases import anthropic_views as views
from tasks.errors import BadOutput
from workers.backends import Delta, Reply

#: shows that somebody is there
PING = b'event: ping\ndata: {"type":"ping"}\n\n'


def new_id() -> str:
    """An id for a message."""
    return f"msg_{secrets.token_hex(12)}"


class Events:
    """Makes the events of one message. model: that answers. tokens_in: an estimate, until the server has counted."""

    def __init__(self, model: str, tokens_in: int) -> None:
        self._model, self._tokens_in = model, tokens_in
        self._blocks = 0
        self._open: str | int | None = None  #: the kind of the last block, or the number of the tool's call
        self._called: set[int] = set()

    def first(self) -> bytes:
        """The beginning."""
        counts = views.usage(self._tokens_in, 0)
        return _event("message_start", message=views.message(new_id(), self._model, [], views.NOT_YET, counts)) + PING

    def piece(self, delta: Delta) -> bytes:
        """A piece of the answer; one of nothing is a sign of life. Raises BadOutput for calls that are mixed up."""
        parts = []
        if delta.reasoning:
            parts.append(self._opened("thinking", {"type": "thinking", "thinking": "", "signature": ""}))
            parts.append(self._delta({"type": "thinking_delta", "thinking": delta.reasoning}))
        if delta.text:
            parts.append(self._opened("text", {"type": "text", "text": ""}))
            parts.append(self._delta({"type": "text_delta", "text": delta.text}))
        parts += [self._call(call) for call in delta.tool_calls]
        return b"".join(parts) or PING

    def last(self, reply: Reply) -> bytes:
        """Why it ended, the counts, and the end."""
        counts = views.usage(reply.tokens_in, reply.tokens_out, reply.tokens_thinking)
        told = _event("message_delta", delta=views.stopped(reply), usage=counts)
        return self._closed() + told + _event("message_stop")

    def _call(self, call: dict[str, Any]) -> bytes:
        function, index = call.get("function") or {}, call["index"]
        if index != self._open and index in self._called:
            raise BadOutput("bad_tool_call", "the server mixed up the calls of several tools")
        self._called.add(index)
        head = {
            "id": call.get("id") or f"call_{secrets.token_hex(12)}",
            "function": {"name": function.get("name") or ""},
        }
        opened = self._opened(index, views.tool_use(head, {}))
        arguments = function.get("arguments")
        return opened + (self._delta({"type": "input_json_delta", "partial_json": arguments}) if arguments else b"")

    def _opened(self, kind: str | int, block: dict[str, Any]) -> bytes:
        """The end of the last block and the beginning of this one; nothing where it is the same."""
        if kind == self._open:
            return b""
        closed = self._closed()
        self._open = kind
        self._blocks += 1
        return closed + _event("content_block_start", index=self._blocks - 1, content_block=block)

    def _closed(self) -> bytes:
        if self._open is None:
            return b""
        self._open = None
        return _event("content_block_stop", index=self._blocks - 1)

    def _delta(self, delta: dict[str, Any]) -> bytes:
        return _event("content_block_delta", index=self._blocks - 1, delta=delta)


def _event(name: str, **data: Any) -> bytes:
    return b"event: " + name.encode() + b"\ndata: " + orjson.dumps({"type": name, **data}) + b"\n\n"


def broken(error: dict[str, Any]) -> bytes:
    """An error in the middle of a message, which ends it. error: as in a reply that is one."""
    return b"event: error\ndata: " + orjson.dumps(error) + b"\n\n"
