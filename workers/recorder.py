"""Outcomes become commits, in groups: every 100 ms, 200 rows or a megabyte; at once when nothing else is in flight."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable

import structlog
from sqlalchemy.exc import SQLAlchemyError

from tasks.ledger.database import Database
from tasks.ledger.record import Outcome, record
from tasks.validation import clean, clean_row
from workers.saying import named

#: seconds, rows and bytes of output that one group collects; the bytes bound a worker's memory
GROUP_S, GROUP_ROWS, GROUP_BYTES = 0.1, 200, 1_000_000
#: seconds between tries while the ledger cannot be written
LEDGER_RETRY_S = 0.25
#: bytes of results that wait for the ledger before nothing more is started, and what one counts beside its output
SPOOL_BYTES, OUTCOME_BYTES = 64_000_000, 2_000
#: the fields of an outcome that quote a server
SAID = ("served_model", "error_message")

log = structlog.get_logger(__name__)


class Recorder(threading.Thread):
    """The one thread of a worker that writes results.

    `idle` says that nothing else is in flight; `recorded` is called with each group after its commit.
    """

    def __init__(self, db: Database, idle: Callable[[], bool], recorded: Callable[[list[Outcome]], None]) -> None:
        super().__init__(name="recorder", daemon=True)
        self._db = db
        self._idle = idle
        self._recorded = recorded
        self._outcomes: queue.SimpleQueue[Outcome | None] = queue.SimpleQueue()
        self._give_up_at = float("inf")
        self._spooled = 0  # bytes
        self._away = False  # the ledger, at the last try
        self._counting = threading.Lock()

    @property
    def full(self) -> bool:
        """Whether as much waits for the ledger as may; calls in flight are recorded all the same."""
        return self._spooled >= SPOOL_BYTES

    def put(self, outcome: Outcome) -> None:
        """Record this with the next group."""
        _make_storable(outcome)
        self._count(_size(outcome))
        self._outcomes.put(outcome)

    def _count(self, size: int) -> None:
        with self._counting:
            self._spooled += size

    def stop(self, within_s: float) -> None:
        """Write what is left, then end; a ledger that cannot be written is given up then, and the leases run out."""
        self._give_up_at = time.monotonic() + within_s
        self._outcomes.put(None)
        self.join()

    def run(self) -> None:
        more = True
        while more:
            group, more = self._collect()
            if group:
                self._write(group)

    def _collect(self) -> tuple[list[Outcome], bool]:
        """The next group, and whether another may follow."""
        first = self._outcomes.get()
        if first is None:
            return [], False
        group, until = [first], time.monotonic() + GROUP_S
        size = len(first.output or b"")
        while len(group) < GROUP_ROWS and size < GROUP_BYTES:
            wait = 0.0 if self._idle() else until - time.monotonic()
            try:
                outcome = self._outcomes.get(timeout=wait) if wait > 0 else self._outcomes.get_nowait()
            except queue.Empty:
                break
            if outcome is None:
                return group, False
            group.append(outcome)
            size += len(outcome.output or b"")
        return group, True

    def _write(self, group: list[Outcome]) -> None:
        left, stale, size = list(group), 0, sum(map(_size, group))
        while left and time.monotonic() < self._give_up_at:
            try:
                stale += record(self._db, left)
            except SQLAlchemyError as error:  # results wait here; their leases end, the fences decide later
                if not self._away:
                    log.error(
                        "the ledger cannot be written",
                        error=type(error).__name__,
                        results=len(group),
                        batches=named(o.batch_id for o in group),
                    )
                self._away = True
                time.sleep(LEDGER_RETRY_S)
            else:
                self._away = False
        if stale:
            log.warning("stale results changed nothing", stale=stale, batches=named(o.batch_id for o in group))
        self._count(-size)
        self._recorded(group)


def _make_storable(outcome: Outcome) -> None:
    """Escape what a server said and no database takes as text: NUL and lone surrogates, in a model's name, say."""
    for name in SAID:
        if isinstance(value := getattr(outcome, name), str):
            setattr(outcome, name, clean(value))
    if outcome.call is not None:
        outcome.call = clean_row(outcome.call)


def _size(outcome: Outcome) -> int:
    return len(outcome.output or b"") + OUTCOME_BYTES
