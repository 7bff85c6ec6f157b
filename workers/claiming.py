"""Claims slices: tries again while the ledger is away, and gives back what a broken claim may have taken.

Until the ledger has answered again nothing more is taken from the queues: others may reach it.
"""

from __future__ import annotations

import threading
import time

import structlog
from sqlalchemy.exc import SQLAlchemyError

from tasks.ledger import claims
from tasks.ledger.claims import Identity
from tasks.ledger.database import Database
from workers.hand import Hand, Held, clock

#: seconds before each further try; after the last one the sweep sends the slice again
WAITS_S = (0.25, 0.5, 1.0, 2.0)

log = structlog.get_logger(__name__)


class Claiming:
    """One process's claims; its threads share it."""

    def __init__(self, db: Database, me: Identity, hand: Hand, lease_s: float) -> None:
        self._db = db
        self._me = me
        self._hand = hand
        self._lease_s = lease_s
        self._lock = threading.Lock()
        self._under_way = 0
        self.doubtful = False  #: a claim broke, and the ledger has not answered since

    def claim(self, slice_id: str, *, started: bool, taken_back_started: bool = False) -> list[Held]:
        """Take a slice's jobs into the hand; raises SQLAlchemyError when the ledger stays away."""
        for wait in WAITS_S:
            try:
                return self._claim(slice_id, started=started, taken_back_started=taken_back_started)
            except SQLAlchemyError as error:
                log.warning("a slice could not be claimed yet", slice=slice_id[:64], error=type(error).__name__)
            time.sleep(wait)
        return self._claim(slice_id, started=started, taken_back_started=taken_back_started)

    def _claim(self, slice_id: str, *, started: bool, taken_back_started: bool = False) -> list[Held]:
        with self._lock:
            self._under_way += 1
        try:
            began = clock()
            taken = claims.claim(
                self._db, slice_id, self._me, self._lease_s, started=started, taken_back_started=taken_back_started
            )
            return self._hand.take(taken, began, self._lease_s)
        except SQLAlchemyError:  # it may have broken in its commit: then they run in our name, and nobody has them
            self.doubtful = True
            raise
        finally:
            with self._lock:
                self._under_way -= 1

    def settle(self) -> int:
        """Give back what a broken claim took, once no claim is under way; how many jobs. Raises SQLAlchemyError."""
        with self._lock:
            if not self.doubtful or self._under_way:
                return 0
            given_back = claims.disown(self._db, self._me, self._hand.pairs())
            self.doubtful = False
        return given_back
