"""Progress of a batch, and whether a pool is there to make any."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

from sqlalchemy.exc import OperationalError

from api.embedded.state import running_pid
from api.use_cases.pool import Pool
from tasks.ledger import reading
from tasks.states import TERMINAL, BatchState, JobState

T = TypeVar("T")

#: seconds the rate is taken over
RATE_WINDOW_S = 30.0
#: seconds a database that went away is waited for, and between two looks
AWAY_S, AWAY_POLL_S = 60.0, 0.5


@dataclass(frozen=True)
class Progress:
    """A batch at one moment. rate: jobs per second lately; left_s: seconds to go at that rate, None while unknown."""

    batch_id: str
    state: str
    total: int
    counts: dict[str, int]
    rate: float
    left_s: float | None

    @property
    def ended(self) -> int:
        """Jobs that are terminal."""
        return sum(self.counts.values())

    @property
    def over(self) -> bool:
        """Whether every job is terminal."""
        return self.state in (BatchState.FINISHED, BatchState.CANCELLED)

    @property
    def all_done(self) -> bool:
        """Whether every job was answered."""
        return self.over and self.counts["done"] + self.counts["escalated"] == self.total


def counts(row: Any) -> dict[str, int]:
    """A batch's terminal counters."""
    return {s.value: getattr(row, s.value) for s in JobState if s in TERMINAL}


def watch(pool: Pool, batch_id: str, timeout_s: float | None, every_s: float = 0.2) -> Iterator[Progress]:
    """The batch's progress until it is over or the time has passed; the last one yielded is the end.

    A database that restarts is waited for; raises what it says when it stays away for AWAY_S.
    """
    until = None if timeout_s is None else time.monotonic() + timeout_s
    seen: deque[tuple[float, int]] = deque()
    while True:
        row = patiently(lambda: reading.batch(pool.db, batch_id))
        progress = _progress(row, seen)
        yield progress
        now = time.monotonic()
        if progress.over or (until is not None and now >= until):
            return
        time.sleep(every_s if until is None else max(0.0, min(every_s, until - now)))


def patiently(read: Callable[[], T]) -> T:
    """What is read, once the database answers; raises what it says when it stays away for AWAY_S."""
    until = time.monotonic() + AWAY_S
    while True:
        try:
            return read()
        except OperationalError:
            if time.monotonic() > until:
                raise
        time.sleep(AWAY_POLL_S)


def _progress(row: Any, seen: deque[tuple[float, int]]) -> Progress:
    now, ended = time.monotonic(), sum(counts(row).values())
    seen.append((now, ended))
    while seen[0][0] < now - RATE_WINDOW_S:
        seen.popleft()
    began, before = seen[0]
    rate = (ended - before) / (now - began) if now > began else 0.0
    return Progress(
        batch_id=row.id,
        state=row.state,
        total=row.total,
        counts=counts(row),
        rate=rate,
        left_s=(row.total - ended) / rate if rate else None,
    )


def is_running(pool: Pool) -> bool:
    """Whether a pool runs here: its supervisor's lock is held, or with a Redis elsewhere, a worker lives."""
    if running_pid(pool.settings) is not None:
        return True
    return pool.settings.redis_url is not None and bool(live_workers(pool, reading.all_workers(pool.db)))


def live_workers(pool: Pool, workers: list[Any]) -> list[Any]:
    """The workers seen lately."""
    since = now(pool) - pool.settings.times.worker_gone
    return [w for w in workers if w.last_seen > since]


def now(pool: Pool) -> float:
    """Unix seconds by the ledger's clock."""
    with pool.db.read() as c:
        return pool.db.now(c)
