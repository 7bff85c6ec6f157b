"""The role `beat`: Celery beat, which only sends, and the worker of queue `scheduler`, in one process."""

from __future__ import annotations

import contextlib
from typing import Any

import redis
import structlog
from celery import Celery, signals
from celery.beat import EmbeddedService

from scheduler import audit, sweep
from scheduler.beat import schedule
from scheduler.redis_keys import mend
from tasks.app import Publisher, make_app
from tasks.errors import PoolError
from tasks.ledger.database import Database
from tasks.ledger.schema import open_ledger
from tasks.queues import RUN_AUDIT, SCHEDULER_QUEUE, SWEEP
from tasks.registry import Registry
from tasks.settings import Settings

#: threads of the scheduler queue's worker
THREADS = 2

log = structlog.get_logger(__name__)


def run(settings: Settings, registry: Registry) -> None:
    """Be beat until SIGTERM or SIGINT; raises PoolError where it cannot start."""
    url = settings.broker_url()
    if url is None:
        raise PoolError("no Redis is known here: start the pool with `offload up`, or set OFFLOAD_REDIS_URL")
    db = open_ledger(settings.ledger())
    app = make_app(url)
    app.conf.beat_schedule = schedule(settings.times)
    app.conf.beat_max_loop_interval = min(5.0, settings.times.sweep)
    broker = redis.Redis.from_url(url, socket_timeout=5, socket_connect_timeout=5)
    _register(app, db, broker, settings, registry)
    with contextlib.suppress(redis.RedisError):  # junk in beat's own queue would end it before its first sweep
        mend(broker, registry.classes)
    service = EmbeddedService(app, thread=True, scheduler_cls="celery.beat.Scheduler")

    def start_beat(**_: Any) -> None:
        service.start()
        app.send_task(SWEEP, queue=SCHEDULER_QUEUE, ignore_result=True)  # beat's own first tick comes an interval late
        log.info("beat started")

    signals.worker_ready.connect(start_beat, weak=False)
    worker = app.Worker(
        hostname=f"scheduler@{settings.node}",
        pool="threads",
        concurrency=THREADS,
        queues=[SCHEDULER_QUEUE],
        loglevel=settings.log_level.upper(),
        without_gossip=True,
        without_mingle=True,
        quiet=True,
    )
    worker.start()
    if service.is_alive():  # one that never started would be waited for without end
        service.stop()
    db.close()


def _register(app: Celery, db: Database, broker: redis.Redis, settings: Settings, registry: Registry) -> None:
    publisher = Publisher(app)

    @app.task(name=SWEEP, ignore_result=True)  # type: ignore[untyped-decorator]  # celery has no types
    def run_sweep() -> None:
        counts = sweep.run_once(db, broker, publisher, registry, settings.times)
        found = {name: n for name, n in counts.items() if n and name != "sent"}
        if found:
            log.info("sweep", **found)

    @app.task(name=RUN_AUDIT, ignore_result=True)  # type: ignore[untyped-decorator]  # celery has no types
    def run_audit() -> None:
        counts = audit.run_once(db, registry)
        if any(counts.values()):
            log.info("audit", **counts)
