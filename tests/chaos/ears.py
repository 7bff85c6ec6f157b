"""What listens on a node's connections, so that one can be ended at the worst moment."""

from __future__ import annotations

import struct
import threading
from collections.abc import Callable

from tests.chaos.inside.sitecustomize import CLAIM, RECORD

#: what PostgreSQL's clients send before the start: requests for encryption
_SSL, _GSS = 80877103, 80877104
#: the SQL that tells what a transaction writes
_TELLS = {b"INSERT INTO outputs": RECORD, b"fence=(jobs.fence +": CLAIM}


class Snare:
    """Waits on all connections of one node for a moment, and acts once.

    on: which commits, RECORD or CLAIM or both; forwarded: whether the commit reaches the server. `act` is called when
    it is caught, before the connection is reset.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._armed = False
        self.on = 0
        self.forwarded = False
        self.resets = True
        self._act: Callable[[], object] = lambda: None
        self.sprung = threading.Event()

    def arm(self, act: Callable[[], object], *, on: int = 0, forwarded: bool = True, resets: bool = True) -> None:
        """Catch the next one."""
        with self._lock:
            self.on, self.forwarded, self.resets, self._act = on, forwarded, resets, act
            self.sprung.clear()
            self._armed = True

    def disarm(self) -> None:
        """Catch nothing any more."""
        with self._lock:
            self._armed = False

    @property
    def armed(self) -> bool:
        """Whether it waits."""
        return self._armed

    def catch(self) -> bool:
        """Whether this is the one; it acts then."""
        with self._lock:
            if not self._armed:
                return False
            self._armed = False
        self._act()
        self.sprung.set()
        return True


class RedisEar:
    """Hears a class's message on its way to a worker: between BRPOP and everything else it exists nowhere."""

    def __init__(self, snare: Snare) -> None:
        self._snare = snare

    def from_client(self, data: bytes) -> bytes | None:
        """Passed on."""
        return data

    def from_server(self, data: bytes) -> bytes | None:
        """A message is swallowed: the connection ends, or the worker is told that there was none."""
        if self._snare.armed and data.startswith(b"*2\r\n$") and b"\r\noffload." in data[:40] and self._snare.catch():
            return None if self._snare.resets else b"*-1\r\n"
        return data


class PostgresEar:
    """Hears a COMMIT: it is caught on its way there, or its answer on the way back."""

    def __init__(self, snare: Snare) -> None:
        self._snare = snare
        self._buffer = b""
        self._started = False
        self._prepared: dict[bytes, int] = {}
        self._wrote = 0
        self._swallows_answer = False

    def from_client(self, data: bytes) -> bytes | None:
        """Look for the end of a transaction that wrote what is waited for."""
        self._buffer += data
        ended = False
        while (message := self._next()) is not None:
            ended = self._hear(*message) or ended
        if not ended or not self._snare.armed or not self._wrote & self._snare.on:
            self._wrote = 0 if ended else self._wrote
            return data
        self._wrote = 0
        if self._snare.forwarded:
            self._swallows_answer = True
            return data
        return None if self._snare.catch() else data

    def from_server(self, data: bytes) -> bytes | None:
        """The first words after a caught COMMIT say that it is done; nobody hears them."""
        if self._swallows_answer:
            self._swallows_answer = False
            if self._snare.catch():
                return None
        return data

    def _next(self) -> tuple[bytes, bytes] | None:
        """The next whole message: its type and what it holds."""
        head = 1 if self._started else 0
        if len(self._buffer) < head + 4:
            return None
        (length,) = struct.unpack_from(">i", self._buffer, head)
        if len(self._buffer) < head + length:
            return None
        type_, body = self._buffer[:head], self._buffer[head + 4 : head + length]
        self._buffer = self._buffer[head + length :]
        if not self._started:
            self._started = struct.unpack_from(">i", body)[0] not in (_SSL, _GSS)
        return type_, body

    def _hear(self, type_: bytes, body: bytes) -> bool:
        """Whether this message ends a transaction."""
        if type_ == b"Q":
            self._wrote |= _tells(body)
            return body.startswith(b"COMMIT")
        if type_ == b"P":
            name, query, _ = body.split(b"\0", 2)
            self._prepared[name] = _tells(query) | (-1 if query.startswith(b"COMMIT") else 0)
        if type_ == b"B":
            wrote = self._prepared.get(body.split(b"\0", 2)[1], 0)
            if wrote == -1:
                return True
            self._wrote |= wrote
        return False


def _tells(query: bytes) -> int:
    return sum(wrote for words, wrote in _TELLS.items() if words in query)
