"""The Celery task: claim a slice, wait for room, hand it over, return.

A slot of the pool is never held for a slice's slowest job: that would cost more than half of the throughput.
"""

from __future__ import annotations

import structlog
from celery import Celery
from sqlalchemy.exc import SQLAlchemyError
from structlog.contextvars import bound_contextvars

from tasks.ledger import claims
from tasks.ledger.claims import ALONE_CRASHES
from tasks.ledger.database import Database
from tasks.queues import RUN_SLICE
from workers.claiming import Claiming
from workers.hand import Held
from workers.loop import Loop
from workers.tracing import Traces

log = structlog.get_logger(__name__)


def register_task(app: Celery, db: Database, loop: Loop, claiming: Claiming, traces: Traces | None = None) -> None:
    """Give the app its one task that runs jobs."""

    @app.task(name=RUN_SLICE, ignore_result=True)  # type: ignore[untyped-decorator]  # celery has no types
    def run_slice(slice: str) -> None:
        with bound_contextvars(slice=slice[:64]):
            try:
                take(slice)
            except SQLAlchemyError as error:  # the sweep sends the slice again
                log.error("a slice could not be claimed", error=type(error).__name__)

    def take(slice_id: str) -> None:
        if not loop.takes:
            claims.put_back(db, slice_id)
            return
        with loop.line.entering() as free:
            at_once = free and loop.line.open()
            held = claiming.claim(slice_id, started=at_once, taken_back_started=free)
            if not held:
                return
            if traces is not None:
                traces.claimed(slice_id, held)
            alone = any(h.job.crashes >= ALONE_CRASHES for h in held)
            if not alone and (at_once or (free and held[0].job.taken_back)):  # that has waited for a lease already
                loop.hand_over(held)
                return
        with loop.line.turn(held[0].job.priority, alone=alone) as takes:
            if takes:
                mark_started(held)
            loop.hand_over(held)

    def mark_started(held: list[Held]) -> None:
        try:
            claims.mark_started(db, [h.job for h in held])
        except SQLAlchemyError as error:  # they run unmarked: a crash would not be counted, nothing else is lost
            batch = held[0].job.batch_id
            log.error("jobs could not be marked as started", batch=batch, jobs=len(held), error=type(error).__name__)
