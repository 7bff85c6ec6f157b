"""Which roles are frozen: alive as processes, and doing nothing (SIGSTOP, a hung disk, a deadlock).

A sign is a value that a living role changes: a worker's heartbeat, beat's tick, Redis's answer, a file that a role
touches.  A role whose sign has stood still for longer than workers may be silent is frozen.  Only changes count, by
the monotonic clock, so a clock that jumps freezes nobody; and where nobody can write the ledger, on a full disk say,
what stands still in it says nothing: a worker that is ended then loses the results that it keeps for it.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

import redis
from sqlalchemy.exc import SQLAlchemyError

from tasks.ledger import reading, ticks
from tasks.ledger.database import Database

#: looks in the time that a role may be silent
LOOKS = 10
#: bytes that a disk with room takes
SOME = 1 << 20


class VitalSigns:
    """The signs of one machine's roles, by role name; other nodes' workers are in the ledger, too.

    files: role -> what it touches while it lives.
    """

    def __init__(
        self, db: Database, redis_url: str, node: str, silent_s: float, files: Mapping[str, Path] | None = None
    ) -> None:
        self._db = db
        self._files = dict(files or {})
        self._node = node
        self._redis = redis.Redis.from_url(redis_url, socket_timeout=2, socket_connect_timeout=2)
        self._silent_s = silent_s
        self._seen: dict[str, tuple[object, float]] = {}
        self._next_look = 0.0

    def frozen(self, started: Mapping[str, float]) -> list[str]:
        """Those of the roles that are frozen. started: role -> monotonic time of its start."""
        now = time.monotonic()
        if now < self._next_look:
            return []
        self._next_look = now + self._silent_s / LOOKS
        signs = self._signs()
        for name, sign in signs.items():
            if name not in self._seen or self._seen[name][0] != sign:
                self._seen[name] = (sign, now)
        still_s = {name: now - max(since, self._seen[name][1]) for name, since in started.items() if name in signs}
        written = [name for name in still_s if name not in self._files and name != "redis"]
        # looked at early: once there is room again, heartbeats have the other half of the time to come
        if any(still_s[name] > self._silent_s / 2 for name in written) and not self._can_write():
            for name in written:
                self._seen[name], still_s[name] = (signs[name], now), 0.0
        return [name for name, seconds in still_s.items() if seconds > self._silent_s]

    def _can_write(self) -> bool:
        """Whether the ledger's disk has room; of SQLite's lock this asks nothing, which a frozen role may hold."""
        try:
            if self._db.path is None:
                ticks.tick(self._db, "doctor", {})  # as `offload doctor` looks
            else:
                _write_some(self._db.path.parent)
        except (SQLAlchemyError, OSError):
            return False
        return True

    def _signs(self) -> dict[str, object]:
        signs: dict[str, object] = {name: _touched(file) for name, file in self._files.items()}
        try:
            here = [w for w in reading.all_workers(self._db) if w.node == self._node]
            signs |= {f"worker {w.provider}": w.last_seen for w in here}
            signs["beat"] = ticks.ticked_at(self._db, "sweep")
        except SQLAlchemyError:
            return signs  # a ledger that cannot be read says nothing of the roles
        try:
            self._redis.ping()
            signs["redis"] = time.monotonic()
        except redis.RedisError as error:
            refused = isinstance(error, redis.ResponseError)  # with a full disk, say: it lives, and answers so
            signs["redis"] = time.monotonic() if refused else self._seen.get("redis", (None, 0.0))[0]
            signs["beat"] = time.monotonic()  # beat cannot tick without it, nor at once when it is back
        return signs


def _write_some(folder: Path) -> None:
    with tempfile.TemporaryFile(dir=folder) as file:
        file.write(bytes(SOME))
        file.flush()
        os.fsync(file.fileno())


def _touched(file: Path) -> int | None:
    try:
        return file.stat().st_mtime_ns
    except OSError:
        return None
