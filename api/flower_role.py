"""The role `flower`: the real Flower on this pool's Celery app, for people who watch.

It shows what Celery sees: workers, queues, and slices by name with batch, class and number of jobs.  Messages carry
ids, so that is all there is to show.  It listens to events and keeps the newest in memory.  Nothing of the pool waits
for it: Redis forgets a listener that is dead, and drops one that is frozen once 32 MiB are held up for it.

A slice `succeeds` here once a worker has taken its jobs in hand; how jobs end is in the ledger.
"""

from __future__ import annotations

import contextlib
import ipaddress
import os
import re
import secrets
import signal
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import structlog
from celery.events import EventReceiver
from flower.app import Flower, rewrite_handler
from flower.command import extract_settings
from flower.events import Events
from flower.options import options
from flower.urls import settings as flower_settings
from flower.views.broker import BrokerView
from flower.views.monitor import Metrics
from tornado.ioloop import IOLoop, PeriodicCallback
from tornado.web import authenticated

from api.embedded.ports import FLOWER_PORT
from tasks.app import make_app
from tasks.errors import PoolError, UsageError
from tasks.queues import SCHEDULER_QUEUE, class_queue
from tasks.registry import Registry
from tasks.settings import USER_AND_PASSWORD, Settings

#: the user of a password that was made here
USER = "offload"
#: tasks that Flower remembers, some 5 KiB each
MOST_TASKS = 10_000
#: seconds a worker may take to answer what Flower asks it
ANSWER_S = 1.0
#: seconds between two tries to listen while Redis is away
AGAIN_S = 2.0
#: milliseconds between two signs of life
SIGN_MS = 1_000

#: a slice's arguments as a message shows them (tasks/app.py)
SLICE = re.compile(r"'batch': '([^']+)', 'class': '([^']+)', 'jobs': (\d+)")

log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class Door:
    """Where Flower listens, and what may be done there.

    address: an IP address or a name. port: 0 for any free one. prefix: the path that all pages are under, or "".
    """

    address: str = "127.0.0.1"
    port: int = FLOWER_PORT
    prefix: str = ""
    writable: bool = False

    def url(self, port: int) -> str:
        """The address of the first page."""
        host = f"[{self.address}]" if ":" in self.address else self.address
        return f"http://{host}:{port}/{self.prefix + '/' if self.prefix else ''}"


def run(settings: Settings, registry: Registry, door: Door) -> None:
    """Be Flower until SIGTERM or SIGINT; raises UsageError or PoolError where it cannot start."""
    broker = settings.broker_url()
    if broker is None:
        raise PoolError("no Redis is known here: start the pool with `offload up`, or set OFFLOAD_REDIS_URL")
    check_door(door, settings)
    pages = _pages(broker, registry, door, auth(settings))
    try:
        port = pages.start_http_server()
    except OSError as error:
        raise PoolError(f"Flower cannot listen at {door.address}:{door.port}: {error.strerror}; see --port") from None
    for wanted in (signal.SIGINT, signal.SIGTERM):
        signal.signal(wanted, lambda *_: pages.io_loop.add_callback_from_signal(pages.stop))
    PeriodicCallback(partial(_give_sign, settings.flower_sign), SIGN_MS).start()
    log.info(
        "flower started", address=door.url(port), user_and_password=settings.flower_auth_place, writable=door.writable
    )
    pages.start()
    os._exit(0)  # nothing is kept, and threads that wait for a Redis that is away would be waited for


def _give_sign(file: Path) -> None:
    with contextlib.suppress(OSError):  # alone it may have no run folder, and then nobody looks
        file.touch(mode=0o600)


def check_door(door: Door, settings: Settings) -> None:
    """Raises UsageError where strangers could reach pages whose password nobody chose."""
    if not is_loopback(door.address) and settings.flower_auth is None:
        raise UsageError(f"--address {door.address} is reached from elsewhere: set OFFLOAD_FLOWER_AUTH=user:password")


def is_loopback(address: str) -> bool:
    """Whether only this machine reaches the address; a name other than localhost counts as reached."""
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:
        return address == "localhost"


def auth(settings: Settings) -> str:
    """user:password, as it was set, or as it was made when Flower first ran here."""
    if settings.flower_auth is not None:
        return settings.flower_auth.get_secret_value()
    file = settings.flower_auth_file
    try:
        settings.home.mkdir(parents=True, exist_ok=True, mode=0o700)
        settings.run_dir.mkdir(exist_ok=True, mode=0o700)
        kept = file.read_text().strip() if file.exists() else ""
        if re.fullmatch(USER_AND_PASSWORD, kept):
            file.chmod(0o600)
            return kept
        made = f"{USER}:{secrets.token_urlsafe(24)}"
        partial = file.with_suffix(".new")
        partial.unlink(missing_ok=True)
        partial.touch(mode=0o600)
        partial.write_text(made + "\n")
        partial.replace(file)
    except OSError as error:
        raise PoolError(f"Flower's password cannot be kept in {file}: {error.strerror}") from None
    return made


def shown(kwargs: str) -> str:
    """A task's arguments as the pages show them: a slice's in one short line, for the slice is the task's id."""
    found = SLICE.search(kwargs)
    return f"{found[2]}, {found[3]} jobs, {found[1]}" if found else kwargs


def _format(task: Any) -> Any:
    task.kwargs = shown(task.kwargs or "")
    return task


class _Events(Events):  # type: ignore[misc]  # flower has no types
    """Listens again soon after Redis was away, however long that was; Flower's own pauses double without end."""

    def run(self) -> None:
        while True:
            try:
                with self.capp.connection() as connection:
                    receiver = EventReceiver(connection, handlers={"*": self.on_event}, app=self.capp)
                    receiver.capture(limit=None, timeout=None, wakeup=True)
            except Exception as error:
                log.warning("Redis is away", error=type(error).__name__, again_s=AGAIN_S)
                time.sleep(AGAIN_S)


class _Queues(BrokerView):  # type: ignore[misc]  # flower has no types
    """The Broker page with every class's queue, those too that no worker serves now."""

    def get_active_queue_names(self) -> list[str]:
        served = set(super().get_active_queue_names()) - {self.capp.conf.task_default_queue}
        return sorted(served | set(self.application.settings["queues"]))


class _Metrics(Metrics):  # type: ignore[misc]  # flower has no types
    """Flower's own metrics, which it would show to anybody."""

    @authenticated
    async def get(self) -> None:
        await super().get()


def _pages(broker_url: str, registry: Registry, door: Door, user_and_password: str) -> Any:
    """Flower, not yet listening; it takes its options from one object of its own, not from argv or environment."""
    options.address, options.port, options.url_prefix = door.address, door.port, door.prefix
    options.basic_auth = [user_and_password]
    options.read_only = not door.writable
    options.inspect_timeout = ANSWER_S * 1000
    options.format_task = _format
    options.tasks_columns = "name,kwargs,state,received,worker,uuid"
    extract_settings()
    queues = [SCHEDULER_QUEUE, *map(class_queue, registry.classes)]
    app, loop = make_app(broker_url), IOLoop.current()
    events = _Events(
        app, loop, enable_events=False, max_tasks_in_memory=MOST_TASKS
    )  # workers of this pool send them always
    pages = Flower(capp=app, io_loop=loop, options=options, events=events, **flower_settings, queues=queues)
    ours = [("/broker", _Queues), ("/metrics", _Metrics)]
    pages.add_handlers(".*", [rewrite_handler(h, door.prefix) if door.prefix else h for h in ours])
    return pages
