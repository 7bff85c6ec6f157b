"""Ends a worker that lives and does nothing, so that its supervisor starts a whole one.

A worker is stuck when its event loop or its heartbeat stands still, and deaf when slices wait for it that its Celery
consumer does not receive although it has room: a connection may be dead in a way that neither side notices, and a
ping answered elsewhere proves nothing.  So a fresh connection looks at the lists.  While that one cannot be made,
Redis is away, and a restart would mend nothing.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Sequence
from typing import Any

import redis
import structlog
from celery import signals
from redis.backoff import NoBackoff
from redis.retry import Retry

from tasks.ledger.database import BUSY_TIMEOUT_MS, Database
from tasks.queues import class_queue
from tasks.settings import Times
from workers.heartbeat import Heartbeat
from workers.loop import Loop

#: looks in the time after which a worker is deaf
LOOKS = 12
#: seconds Celery may take to connect for the first time
START_S = 60.0
#: seconds that ending in order may take beyond the drain
END_S = 10.0
#: seconds for connecting to Redis, and for each answer
REDIS_S = 2.0
#: the status of a worker that was ended: a fault inside (sysexits.h)
EX_SOFTWARE = 70

log = structlog.get_logger(__name__)


class Still:
    """How long a value has stood still, seen by one who looks often; longer gaps between looks prove nothing."""

    def __init__(self, gap_s: float) -> None:
        self._gap_s = gap_s
        self._value: Any = None
        self._since = self._looked_at = float("-inf")

    def seconds(self, value: Any, now: float) -> float:
        """Look at it."""
        if value != self._value or now - self._looked_at > self._gap_s:
            self._value, self._since = value, now
        self._looked_at = now
        return now - self._since


class Watchdog(threading.Thread):
    """Looks at one worker. `tripped` says that it ended it."""

    def __init__(
        self,
        broker_url: str,
        db: Database,
        loop: Loop,
        heartbeat: Heartbeat,
        classes: Sequence[str],
        times: Times,
        drain_s: float,
    ) -> None:
        super().__init__(name="watchdog", daemon=True)
        self.tripped = False
        self._broker_url = broker_url
        self._loop = loop
        self._heartbeat = heartbeat
        self._classes = classes
        self._times = times
        self._drain_s = drain_s
        self._stop_asked = threading.Event()
        self._received = 0
        # a lock of SQLite's is waited for, and is no hang
        self._stuck_s = times.worker_gone + (0 if db.is_postgres else BUSY_TIMEOUT_MS / 1000)
        self._deaf_s = max(times.watchdog, START_S)
        gap = 3 * (times.watchdog / LOOKS + REDIS_S * (len(classes) + 1))
        self._hunger, self._beats, self._ticks = Still(gap), Still(gap), Still(gap)

    def start(self) -> None:
        """Start looking, and hear from Celery what it receives."""
        for received in (signals.task_received, signals.task_unknown, signals.task_rejected):
            received.connect(self._on_received, weak=False)
        signals.worker_ready.connect(self._on_ready, weak=False)
        super().start()

    def stop(self) -> None:
        """Look no more."""
        self._stop_asked.set()
        self.join()

    def run(self) -> None:
        while not self._stop_asked.wait(self._times.watchdog / LOOKS):
            if trouble := self._stuck(time.monotonic()):
                self._end_at_once(trouble)
            if self._deaf():
                self._end_in_order("slices wait, and Celery receives none")
                return

    def _on_received(self, **_: Any) -> None:
        self._received += 1

    def _on_ready(self, **_: Any) -> None:
        self._deaf_s = self._times.watchdog

    def _stuck(self, now: float) -> str:
        """What stands still, in words; empty while nothing does."""
        if self._beats.seconds(self._heartbeat.turns, now) > self._stuck_s:
            return "the heartbeat"
        return "the loop" if self._ticks.seconds(self._loop.ticked_at, now) > self._stuck_s else ""

    def _deaf(self) -> bool:
        seen = self._received if self._slices_wait() else object()  # nothing is like it: the time starts anew
        return self._hunger.seconds(seen, time.monotonic()) >= self._deaf_s

    def _slices_wait(self) -> bool:
        """Whether there is room here and something for it in Redis, by a connection made for this look."""
        served = [class_queue(name) for name in self._classes if self._loop.serves(name)]
        if not served or not self._loop.line.open():
            return False
        retry = Retry(NoBackoff(), 0)
        client = redis.Redis.from_url(
            self._broker_url, socket_timeout=REDIS_S, socket_connect_timeout=REDIS_S, retry=retry
        )
        try:
            return any(client.llen(queue) for queue in served)
        except redis.RedisError:
            return False
        finally:
            client.close()

    def _end_at_once(self, what: str) -> None:
        """Nothing in this process can be relied on any more; its leases run out."""
        log.critical("the worker is stuck and ends", stands_still=what)
        os._exit(EX_SOFTWARE)

    def _end_in_order(self, why: str) -> None:
        """Let calls in flight end, as on SIGTERM; whatever hangs on the way is not waited for."""
        log.critical("the worker is deaf and ends", why=why)
        self.tripped = True
        self._loop.stop_taking()
        os.kill(os.getpid(), signal.SIGTERM)
        if not self._stop_asked.wait(self._drain_s + self._times.lease + END_S):
            os._exit(EX_SOFTWARE)
