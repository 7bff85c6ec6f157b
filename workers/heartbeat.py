"""Renews leases and says that the worker lives, from a thread that first checks that the loop does."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence

import structlog
from sqlalchemy.exc import SQLAlchemyError

from tasks.errors import StaleWorker
from tasks.ledger import claims
from tasks.ledger.claims import Identity
from tasks.ledger.database import Database
from tasks.settings import Times
from workers.claiming import Claiming
from workers.hand import clock
from workers.loop import Loop

log = structlog.get_logger(__name__)


class Heartbeat(threading.Thread):
    """Every `times.heartbeat`: renew and report. Every `times.cancel_check`: drop what was cancelled.

    `replaced` is called once when another process has taken this worker's name, `opened` when the ledger knows that
    this one takes work again.
    """

    def __init__(
        self,
        db: Database,
        loop: Loop,
        me: Identity,
        classes: Sequence[str],
        times: Times,
        claiming: Claiming,
        replaced: Callable[[], None],
        opened: Callable[[], None],
    ) -> None:
        super().__init__(name="heartbeat", daemon=True)
        self._db = db
        self._loop = loop
        self._me = me
        self._classes = classes
        self._times = times
        self._claiming = claiming
        self._replaced = replaced
        self._opened = opened
        self._stop_asked = threading.Event()
        self._away = False  # the ledger, at the last try
        self.turns = 0  #: grows as long as this thread is not stuck
        self._last_report: tuple[list[str], str] = ([], "")

    def stop(self) -> None:
        """End after the beat under way."""
        self._stop_asked.set()
        self.join()

    def run(self) -> None:
        next_beat = 0.0
        while not self._stop_asked.is_set():
            self.turns += 1
            try:
                self._settle()
                self._drop_cancelled()
                if time.monotonic() >= next_beat or self._state() != self._last_report:
                    self._beat()
                    next_beat = time.monotonic() + self._times.heartbeat
            except StaleWorker as error:
                log.error(str(error))
                self._replaced()
                return
            except SQLAlchemyError as error:  # the loop closes its calls by its own clock before leases end
                if not self._away:
                    log.error("the heartbeat cannot be written", error=type(error).__name__)
                self._away = True
            else:
                self._away = False
            self._stop_asked.wait(self._times.cancel_check)

    def _state(self) -> tuple[list[str], str]:
        """The classes served now, and the provider's health."""
        return [name for name in self._classes if self._loop.serves(name)], self._loop.gate.health.value

    def _beat(self) -> None:
        self._renew()
        before, self._last_report = self._last_report, self._state()
        serving, health = self._last_report
        claims.report(
            self._db,
            self._me,
            in_flight=self._loop.in_flight,
            serving=serving or list(self._classes),
            consuming=bool(serving),
            health=health,
            detail=self._loop.detail,
        )
        if set(serving) - set(before[0]):
            self._opened()

    def _renew(self) -> None:
        """A loop that does not tick keeps no lease: its jobs must be able to move."""
        if time.monotonic() - self._loop.ticked_at > self._times.loop_stuck:
            log.error("the loop does not tick; its leases are not renewed")
            return
        asked_at = clock()
        pairs = self._loop.hand.pairs()
        still = claims.renew(self._db, pairs, self._times.lease)
        lost = self._loop.hand.renewed(pairs, still, asked_at, self._times.lease)
        self._loop.drop(lost)

    def _settle(self) -> None:
        if given_back := self._claiming.settle():
            log.warning("a broken claim had taken jobs: they wait again", jobs=given_back)
            self._opened()

    def _drop_cancelled(self) -> None:
        batches = {held.job.batch_id for held in self._loop.hand.all()}
        if batches and (ended := claims.ended_batches(self._db, batches)):
            self._loop.drop(self._loop.hand.of_batches(ended))
