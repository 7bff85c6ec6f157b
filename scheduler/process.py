"""The role `beat`: Celery beat, which only sends, and the worker of queue `scheduler`, in one process."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import Any

import redis
import structlog
from celery import Celery, signals
from celery.beat import EmbeddedService
from redis.backoff import NoBackoff
from redis.retry import Retry

from scheduler import audit, fanning, notify, rollups, sweep
from scheduler.beat import schedule
from scheduler.redis_keys import mend
from scheduler.service import Service
from tasks.app import Publisher, hush, make_app
from tasks.dispatch import fill
from tasks.errors import PoolError
from tasks.ledger import notices, sweeping
from tasks.ledger.database import Database
from tasks.ledger.schema import open_ledger
from tasks.queues import RUN_AUDIT, RUN_FAN_OUTS, RUN_NOTIFY, RUN_PRUNE, RUN_ROLLUP, SCHEDULER_QUEUE, SWEEP
from tasks.registry import Registry
from tasks.settings import Settings

#: seconds a sweep waits for Redis: what needs none must not wait for it
REDIS_S = 2.0

log = structlog.get_logger(__name__)


def run(settings: Settings, registry: Registry) -> None:
    """Be beat until SIGTERM or SIGINT; raises PoolError where it cannot start."""
    url = settings.broker_url()
    if url is None:
        raise PoolError("no Redis is known here: start the pool with `offload up`, or set OFFLOAD_REDIS_URL")
    db = open_ledger(settings.ledger())
    if settings.log_format == "json":
        hush()
    app = make_app(url)
    app.conf.beat_schedule = schedule(settings.times)
    app.conf.beat_max_loop_interval = min(5.0, settings.times.sweep)
    broker = redis.Redis.from_url(
        url, socket_timeout=REDIS_S, socket_connect_timeout=REDIS_S, retry=Retry(NoBackoff(), 0)
    )
    services = _services(app, db, broker, registry, settings)
    with contextlib.suppress(redis.RedisError):  # junk in beat's own queue would end it before its first sweep
        mend(broker, registry.classes, partial(sweeping.slices_out, db))
    beat = EmbeddedService(app, thread=True, scheduler_cls="celery.beat.Scheduler")

    def start_beat(**_: Any) -> None:
        beat.start()
        for task in (SWEEP, RUN_ROLLUP):  # beat's own first ticks come an interval late
            app.send_task(task, queue=SCHEDULER_QUEUE, ignore_result=True)
        log.info("beat started")

    signals.worker_ready.connect(start_beat, weak=False)
    worker = app.Worker(
        hostname=f"scheduler@{settings.node}",
        pool="threads",
        concurrency=len(services),  # no two ticks of one run at once, so none waits for another's
        queues=[SCHEDULER_QUEUE],
        loglevel=settings.log_level.upper(),
        without_gossip=True,
        without_mingle=True,
        quiet=True,
    )
    for service in services:
        service.start()
    worker.start()
    for service in services:
        service.stop()
    if beat.is_alive():  # one that never started would be waited for without end
        beat.stop()
    db.close()


def _services(app: Celery, db: Database, broker: redis.Redis, registry: Registry, settings: Settings) -> list[Service]:
    """What beat's ticks run, each a task of the app."""
    publisher, times = Publisher(app), settings.times
    send = partial(fill, db, Publisher(app), registry.reaches, times)  # of its own: services run side by side
    services = {
        SWEEP: Service("sweep", lambda: sweep.run_once(db, broker, publisher, registry, times), times.sweep),
        RUN_AUDIT: Service("audit", lambda: audit.run_once(db, registry), times.audit),
        RUN_FAN_OUTS: Service("fan-outs", lambda: fanning.run_once(db, registry, send), times.fan_out),
        RUN_ROLLUP: Service("rollup", lambda: rollups.run_once(db, settings), times.rollup),
        RUN_PRUNE: Service("prune", lambda: _prune(db, registry), times.rollup),
        RUN_NOTIFY: Service("notify", lambda: notify.run_once(db, registry, times), times.notify),
    }
    for task, service in services.items():
        app.task(name=task, ignore_result=True)(_runs(service))
    return list(services.values())


def _prune(db: Database, registry: Registry) -> Counter[str]:
    return rollups.prune(db, registry) + Counter(notices=notices.prune(db))


def _runs(service: Service) -> Callable[[], None]:
    """A task of its own for Celery, which names a task by its function."""

    def run() -> None:
        service.run_now()

    return run
