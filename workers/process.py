"""The Celery worker of one provider: wiring, start and drain."""

from __future__ import annotations

import gc
import os
import secrets
import signal
import sys
import threading
from collections.abc import Sequence
from typing import Any

import structlog
from celery import Celery, signals
from sqlalchemy.exc import SQLAlchemyError

from tasks.app import Publisher, hush, make_app
from tasks.errors import ConfigError, PoolError
from tasks.ledger import claims
from tasks.ledger.claims import Identity
from tasks.ledger.database import Database
from tasks.ledger.record import Outcome
from tasks.ledger.schema import open_ledger
from tasks.privacy import Reach
from tasks.providers import Provider
from tasks.queues import class_queue
from tasks.registry import Registry, cloud_keys
from tasks.settings import Settings
from tasks.states import JobState
from workers import tracing
from workers.backends import for_provider
from workers.claiming import Claiming
from workers.consuming import consume_step
from workers.draining import Draining
from workers.heartbeat import Heartbeat
from workers.loop import Loop
from workers.meter import Meter
from workers.recorder import Recorder
from workers.refill import Refill
from workers.slices import register_task
from workers.watchdog import EX_SOFTWARE, Watchdog

#: Celery pool threads: each only claims and hands over
THREADS = 2

log = structlog.get_logger(__name__)


def run(
    settings: Settings,
    registry: Registry,
    provider: str,
    node: str,
    serves: Sequence[str] | None,
    *,
    cloud_key_is_fine: bool = False,
) -> None:
    """Be a worker until SIGTERM or SIGINT; raises ConfigError or PoolError where it cannot start."""
    classes = _classes(registry, provider, serves)
    if not cloud_key_is_fine:
        _check_keys(registry, registry.providers[provider])
    broker = settings.broker_url()
    if broker is None:
        raise PoolError("no Redis is known here: start the pool with `offload up`, or set OFFLOAD_REDIS_URL")
    db = open_ledger(settings.ledger())
    if settings.log_format == "json":
        hush()
    me = Identity(node, provider, secrets.token_hex(8), os.getpid())
    WorkerProcess(settings, registry, registry.providers[provider], db, me, classes, make_app(broker), broker).run()


def _classes(registry: Registry, provider: str, serves: Sequence[str] | None) -> list[str]:
    if provider not in registry.providers:
        raise ConfigError(f"no provider is named {provider!r}; there are: {', '.join(registry.providers) or 'none'}")
    there = registry.classes_of(provider)
    unknown = [name for name in serves or () if name not in there]
    if unknown:
        raise ConfigError(f"provider {provider} does not serve {', '.join(unknown)}; it serves: {', '.join(there)}")
    if not there:
        raise ConfigError(f"provider {provider} serves no class; name it under classes.<name>.serve")
    return list(serves or there)


def _check_keys(registry: Registry, provider: Provider) -> None:
    """Keys of clouds live in cloud workers only."""
    there = [] if provider.reach is Reach.CLOUD else [n for n in cloud_keys(registry, provider) if os.environ.get(n)]
    if there:
        raise ConfigError(
            f"{', '.join(there)}: a cloud's key, in the environment of a worker that needs none; "
            f"unset {' '.join(there)}, or say --allow-cloud-key"
        )


class WorkerProcess:
    """One worker, from its registration to its leave."""

    def __init__(
        self,
        settings: Settings,
        registry: Registry,
        provider: Provider,
        db: Database,
        me: Identity,
        classes: list[str],
        app: Celery,
        broker_url: str,
    ) -> None:
        self._settings = settings
        self._registry = registry
        self._provider = provider
        self._db = db
        self._me = me
        self._classes = classes
        self._app = app
        self._refill = Refill(db, Publisher(app), registry.reaches, settings.times)
        self._traces = tracing.start(me, provider)
        self._recorder = Recorder(db, lambda: not self._loop.in_flight, self._recorded)
        self._loop = Loop(
            for_provider(provider, registry.markers),
            registry,
            me,
            provider.for_batches,
            settings.times,
            self._recorder.put,
            Meter(db, provider) if provider.limits else None,
            full=lambda: self._recorder.full,
            cut_off=lambda: self._claiming.doubtful,
            traces=self._traces,
        )
        self._claiming = Claiming(db, me, self._loop.hand, settings.times.lease)
        self._heartbeat = Heartbeat(
            db, self._loop, me, classes, settings.times, self._claiming, self._replaced, self._refill.ask
        )
        models = {s.model for name in classes for s in registry.classes[name].serve if s.provider == me.provider}
        self._draining = Draining(db, self._loop, me, provider, models, settings.times, self._refill.ask)
        self._watchdog = Watchdog(
            broker_url, db, self._loop, self._heartbeat, classes, settings.times, settings.drain_s
        )

    def run(self) -> None:
        """Serve until told to stop, then drain; SystemExit where the watchdog ended it, or told before Celery hears."""
        signal.signal(signal.SIGTERM, lambda number, frame: sys.exit())
        claims.register(self._db, self._me, self._classes, self._provider.for_batches, self._provider.reach)
        register_task(self._app, self._db, self._loop, self._claiming, self._traces)
        threading.excepthook = _end_process  # a worker without one of its threads would hold leases for nothing
        gc.collect()
        gc.freeze()  # the libraries' objects live as long as the process: looking through them cost a tenth of the time
        self._draining.begin()
        self._loop.start()
        self._draining.start()
        self._recorder.start()
        self._heartbeat.start()
        self._refill.start()
        self._refill.ask()
        self._watchdog.start()
        worker = self._celery_worker()
        signals.worker_shutting_down.connect(self._on_shutting_down, weak=False)
        log.info("worker started", worker=self._me.name, classes=self._classes, in_flight=self._provider.for_batches)
        worker.start()
        self._drain()
        if self._watchdog.tripped:
            sys.exit(EX_SOFTWARE)  # for its supervisor

    def _celery_worker(self) -> Any:
        queues = {class_queue(name): name for name in self._classes}
        self._app.steps["consumer"].add(consume_step(self._loop, queues))
        return self._app.Worker(
            hostname=self._me.name,
            pool="threads",
            concurrency=THREADS,
            queues=list(queues),
            loglevel=self._settings.log_level.upper(),
            without_gossip=True,
            without_mingle=True,
            quiet=True,
        )

    def _on_shutting_down(self, **_: Any) -> None:
        self._loop.stop_taking()

    def _replaced(self) -> None:
        os.kill(os.getpid(), signal.SIGTERM)

    def _recorded(self, group: list[Outcome]) -> None:
        self._loop.hand.forget((o.job_id, o.fence) for o in group)
        self._loop.line.moved()
        if self._traces is not None:
            self._traces.recorded(group)
        self._refill.ask(o.delay for o in group if o.state is JobState.QUEUED and o.delay)

    def _drain(self) -> None:
        log.info("draining", worker=self._me.name, in_flight=self._loop.in_flight)
        self._draining.stop()
        self._loop.drain(self._settings.drain_s)
        self._recorder.stop(self._settings.times.lease)
        self._heartbeat.stop()
        self._refill.stop()
        self._watchdog.stop()
        if self._traces is not None:
            self._traces.close()
        try:
            claims.leave(self._db, self._me)
        except SQLAlchemyError as error:
            log.error("the worker's row stays in the ledger", error=type(error).__name__)
        self._db.close()


def _end_process(fault: threading.ExceptHookArgs) -> None:
    """A fault of ours ended a thread: end the process, so that its supervisor starts a whole one."""
    own = isinstance(fault.exc_value, PoolError)  # the ledger's tables are another version's by now, say
    error = str(fault.exc_value) if own else fault.exc_type.__name__
    log.critical("a thread of the worker died", thread=getattr(fault.thread, "name", "?"), error=error)
    os._exit(EX_SOFTWARE)
