"""Fills the windows after finished work, from a thread of its own; any number of requests while it runs are one."""

from __future__ import annotations

import heapq
import threading
import time
from collections.abc import Iterable, Mapping

import structlog

from tasks.app import Publisher
from tasks.dispatch import fill
from tasks.errors import BrokerDown
from tasks.ledger.database import Database
from tasks.privacy import Reach
from tasks.settings import Times

#: due times kept; beat's tick looks for the others
MOST_DUE = 1_000

log = structlog.get_logger(__name__)


class Refill(threading.Thread):
    """One worker's dispatcher."""

    def __init__(self, db: Database, publisher: Publisher, reaches: Mapping[str, Reach], times: Times) -> None:
        super().__init__(name="refill", daemon=True)
        self._db = db
        self._publisher = publisher
        self._reaches = dict(reaches)
        self._times = times
        self._changed = threading.Condition()
        self._asked = False
        self._due: list[float] = []  # heap: monotonic; when jobs that wait for their next attempt are due
        self._stopping = False

    def ask(self, delays: Iterable[float] = ()) -> None:
        """There may be room now; jobs will be due in so many seconds."""
        with self._changed:
            self._asked = True
            for at in {round(time.monotonic() + delay, 1) for delay in delays}:
                if len(self._due) < MOST_DUE:
                    heapq.heappush(self._due, at)
            self._changed.notify()

    def stop(self) -> None:
        """End the thread."""
        with self._changed:
            self._stopping = True
            self._changed.notify()
        self.join()
        self._publisher.close()

    def run(self) -> None:
        while self._wait():
            try:
                fill(self._db, self._publisher, self._reaches, self._times)
            except BrokerDown as error:
                log.warning(str(error))
            except Exception as error:  # beat's tick looks again
                log.error("dispatch failed", error=type(error).__name__)

    def _wait(self) -> bool:
        """Until somebody asks or a job is due; False when the thread is to end."""
        with self._changed:
            while not self._stopping and not self._asked and not self._is_due():
                self._changed.wait(timeout=self._due[0] - time.monotonic() if self._due else None)
            self._asked = False
            return not self._stopping

    def _is_due(self) -> bool:
        due = False
        while self._due and self._due[0] <= time.monotonic():
            heapq.heappop(self._due)
            due = True
        return due
