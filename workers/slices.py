"""The Celery task: claim a slice, wait for room, hand it over, return.

A slot of the pool is never held for a slice's slowest job: that would cost more than half of the throughput.
"""

from __future__ import annotations

import time

import structlog
from celery import Celery
from sqlalchemy.exc import SQLAlchemyError

from tasks.ledger import claims
from tasks.ledger.claims import Identity
from tasks.ledger.database import Database
from tasks.queues import RUN_SLICE
from tasks.settings import Times
from workers.loop import Loop

log = structlog.get_logger(__name__)


def register_task(app: Celery, db: Database, loop: Loop, me: Identity, times: Times) -> None:
    """Give the app its one task that runs jobs."""

    @app.task(name=RUN_SLICE, ignore_result=True)  # type: ignore[untyped-decorator]  # celery has no types
    def run_slice(slice: str) -> None:
        try:
            take(slice)
        except SQLAlchemyError as error:  # unclaimed: the sweep sends it again; claimed: its lease runs out
            log.error("a slice could not be claimed", slice=slice[:64], error=type(error).__name__)

    def take(slice_id: str) -> None:
        if not loop.takes:
            claims.put_back(db, slice_id)
            return
        at_once = loop.has_room()
        claimed_at = time.monotonic()
        held = loop.hand.take(claims.claim(db, slice_id, me, times.lease, started=at_once), claimed_at, times.lease)
        if not held:
            return
        if at_once:
            loop.hand_over(held)
            return
        with loop.room() as takes:
            if takes:
                claims.mark_started(db, [h.job for h in held])
            loop.hand_over(held)
