"""Chunks of bytes, cut anywhere, into lines, server-sent events and JSON.

A `Reader` eats the raw body of one reply as it arrives.  These run once per token of every call in flight,
so they use bytes methods and one orjson.loads per event.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable
from typing import Any, Protocol

import orjson

from tasks.errors import Transient


class Reader(Protocol):
    """What the HTTP exchange feeds one reply's body to; all of it raises CallError."""

    started: bool  #: a first token (or a first byte of embeddings) has come
    complete: bool  #: the answer is whole; what follows may be lost

    def feed(self, chunk: bytes) -> None:
        """Take the next bytes."""

    def end(self) -> None:
        """The body is over."""


def parse(payload: bytes, name: str) -> dict[str, Any]:
    """One JSON object; Transient `not_json` for anything else."""
    try:
        value = orjson.loads(payload)
    except orjson.JSONDecodeError:
        raise Transient("not_json", f"{name}: the reply is not JSON") from None
    if not isinstance(value, dict):
        raise malformed(name)
    return value


def malformed(name: str) -> Transient:
    """JSON, but not of the shape that the protocol promises."""
    return Transient("malformed", f"{name}: the reply has an unexpected shape")


def incomplete(name: str) -> Transient:
    """The body is over and the answer is not."""
    return Transient("incomplete", f"{name}: the reply ended before the answer was complete")


class ToolCalls:
    """Puts the calls of a stream together, piece by piece, in OpenAI's shape."""

    def __init__(self) -> None:
        self._calls: dict[int, dict[str, Any]] = {}
        self._place: dict[int, int] = {}  #: the server's number of a call -> ours, from 0

    def take(self, parts: list[dict[str, Any]]) -> tuple[dict[str, Any], ...]:
        """Take the pieces of one event and return them, each with its index; raises TypeError for nonsense."""
        taken = []
        for part in parts:
            number = part.get("index")
            number = number if isinstance(number, int) else len(self._place)  # whole calls, not numbered
            index = self._place.setdefault(number, len(self._place))
            function = part.get("function") or {}
            new = {"id": "", "type": "function", "function": {"name": "", "arguments": ""}}
            kept = self._calls.setdefault(index, new)
            kept["id"] = part.get("id") or kept["id"]
            kept["function"]["name"] += function.get("name") or ""
            kept["function"]["arguments"] += function.get("arguments") or ""
            taken.append({**part, "index": index})
        return tuple(taken)

    def lacks_arguments(self, number: int) -> bool:
        """Whether the call that the server numbers so has none yet."""
        index = self._place.get(number)
        return index is not None and not self._calls[index]["function"]["arguments"]

    def next_id(self) -> str:
        """For a call of a server that gives none."""
        return f"call_{secrets.token_hex(12)}"

    def whole(self) -> list[dict[str, Any]]:
        """The calls, in order; arguments that never came are an object of none, as clients read JSON there."""
        for call in self._calls.values():
            call["function"]["arguments"] = call["function"]["arguments"] or "{}"
        return [self._calls[index] for index in sorted(self._calls)]


class Lines:
    """Cuts chunks at newlines; the bytes after the last one wait for the next chunk."""

    __slots__ = ("_held",)

    def __init__(self) -> None:
        self._held: list[bytes] = []

    def cut(self, chunk: bytes) -> list[bytes]:
        """The lines that this chunk completes, without their newline; a CR stays."""
        lines = chunk.split(b"\n")
        if len(lines) == 1:
            self._held.append(chunk)  # joined once, or a line of megabytes would cost its square
            return []
        if self._held:
            lines[0] = b"".join((*self._held, lines[0]))
        last = lines.pop()
        self._held = [last] if last else []
        return lines

    def rest(self) -> bytes:
        """What came after the last newline."""
        return b"".join(self._held)


class JsonLines:
    """NDJSON: one object a line, each given to `take`."""

    __slots__ = ("_lines", "_name", "_take")

    def __init__(self, take: Callable[[dict[str, Any]], None], name: str) -> None:
        self._take = take
        self._name = name
        self._lines = Lines()

    def feed(self, chunk: bytes) -> None:
        """Take the next bytes."""
        for line in self._lines.cut(chunk):
            if line and line != b"\r":
                self._take(parse(line, self._name))

    def end(self) -> None:
        """A last line may lack its newline; half a line means a cut connection."""
        if rest := self._lines.rest().strip():
            self._take(parse_tail(rest, self._name))


class ServerSentEvents:
    """text/event-stream: the data of each event, given to `take`.

    https://html.spec.whatwg.org/multipage/server-sent-events.html, with LF or CRLF, not a CR alone.  Fields
    other than `data` say nothing here, but for `error:`, in which older llama.cpp servers send theirs.
    """

    __slots__ = ("_data", "_lines", "_name", "_take")

    def __init__(self, take: Callable[[bytes], None], name: str) -> None:
        self._take = take
        self._name = name
        self._lines = Lines()
        self._data: list[bytes] = []

    def feed(self, chunk: bytes) -> None:
        """Take the next bytes."""
        for line in self._lines.cut(chunk):
            self._line(line)

    def end(self) -> None:
        """A last event may lack its blank line; half of one means a cut connection."""
        rest = self._lines.rest()
        if rest.startswith(b"{"):
            self._data.append(rest)  # one JSON object instead of a stream: a server that does not stream
        elif rest:
            self._line(rest)
        if self._data:
            payload = b"\n".join(self._data)
            if payload.strip() != b"[DONE]":
                parse_tail(payload, self._name)
            self._dispatch()

    def _line(self, line: bytes) -> None:
        if line.endswith(b"\r"):
            line = line[:-1]
        if line.startswith(b"data:"):
            self._data.append(line[5:])  # a space after the colon is white space to JSON
        elif not line:
            if self._data:
                self._dispatch()
        elif line.startswith(b"error:"):
            self._take(b'{"error":' + line[6:] + b"}")
        elif not line.startswith((b":", b"event", b"id", b"retry")):
            raise Transient("not_json", f"{self._name}: the reply is no event stream")

    def _dispatch(self) -> None:
        data = self._data
        payload = data[0] if len(data) == 1 else b"\n".join(data)
        data.clear()
        self._take(payload)


def parse_tail(payload: bytes, name: str) -> dict[str, Any]:
    """The last object of a body: one that does not parse was cut, where it could be JSON at all."""
    try:
        return parse(payload, name)
    except Transient:
        if payload.lstrip().startswith(b"{"):
            raise incomplete(name) from None
        raise


class WholeBody:
    """One JSON object as the whole body (embeddings); `value` is it."""

    def __init__(self, name: str) -> None:
        self.started = False
        self.complete = False
        self.value: dict[str, Any] = {}
        self._name = name
        self._chunks: list[bytes] = []

    def feed(self, chunk: bytes) -> None:
        """Take the next bytes."""
        self.started = True
        self._chunks.append(chunk)

    def end(self) -> None:
        """Parse the body."""
        self.value = parse(b"".join(self._chunks), self._name)
        self.complete = True


def vectors(rows: Any, wanted: int, name: str) -> list[list[float]]:
    """Embeddings as a server listed them; Transient `malformed` unless there is one for each input."""
    if not isinstance(rows, list) or len(rows) != wanted:
        raise malformed(name)
    for row in rows:
        # a server that computed NaN writes null
        if not isinstance(row, list) or not row or None in row:
            raise malformed(name)
    return rows
