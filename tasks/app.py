"""The Celery app, with the settings that "never lost" needs, each with its reason.

Celery carries references; the ledger is the truth.  So messages are acknowledged early, have no result, and a
message that is lost, doubled or forged does no harm.
"""

from __future__ import annotations

import contextlib
import threading
import time
from typing import Any

from celery import Celery
from kombu.exceptions import KombuError
from kombu.messaging import Producer
from redis.exceptions import (
    AuthenticationError,
    NoPermissionError,
    OutOfMemoryError,
    ReadOnlyError,
    RedisError,
    ResponseError,
)

from tasks.errors import BrokerDown
from tasks.queues import RUN_SLICE, UNACKED_S, class_queue

#: seconds after a failed publish in which this process does not try again: a black-holed Redis costs 1 s a try
REST_AFTER_FAILURE_S = 2.0


def make_app(broker_url: str) -> Celery:
    """The pool's Celery app on a Redis."""
    app = Celery("offload", broker=_verified(broker_url), set_as_current=False)
    app.conf.update(
        task_acks_late=False,  # recovery is the ledger's lease; late acks only add copies
        task_ignore_result=True,
        result_backend=None,
        task_serializer="json",
        accept_content=["json"],  # pickle is code
        worker_prefetch_multiplier=1,
        worker_enable_prefetch_count_reduction=False,
        worker_send_task_events=True,  # Flower needs it, and it wakes the hub
        worker_cancel_long_running_tasks_on_connection_loss=False,  # a Redis blip must not stop GPU work
        worker_consumer="tasks.consumer:Reconnecting",
        worker_hijack_root_logger=False,
        worker_redirect_stdouts=False,
        broker_connection_max_retries=None,
        broker_connection_retry_on_startup=True,
        broker_channel_error_retry=True,  # READONLY after a failover is a channel error
        broker_transport_options={
            "visibility_timeout": UNACKED_S,  # only reserved messages live in `unacked`
            "unacked_restore_limit": 0,  # the sweep sends slices again; giving back others' takes rights no role has
            "socket_timeout": 15,
            "socket_connect_timeout": 5,
            "socket_keepalive": True,
            "health_check_interval": 10,
        },
        task_default_queue="offload.none",  # every message names its queue; nobody consumes this one
        enable_utc=True,
        timezone="UTC",
    )
    return app


def hush() -> None:
    """Keep Celery from writing of its end to stdout, past every formatter, where that is read by a machine."""
    from celery.apps import worker

    worker.safe_say = lambda *_: None


def _verified(broker_url: str) -> str:
    """The same address; by TLS, Redis must prove who it is unless the address says otherwise: kombu would not ask."""
    if not broker_url.startswith("rediss://") or "ssl_cert_reqs=" in broker_url:
        return broker_url
    return f"{broker_url}{'&' if '?' in broker_url else '?'}ssl_cert_reqs=required"


#: what Redis says -> what that means
_WORDS = {
    OutOfMemoryError: "Redis is out of memory and takes no messages; raise its maxmemory, or delete what is not ours",
    ReadOnlyError: "Redis is read-only (a replica?) and takes no messages; name the master in OFFLOAD_REDIS_URL",
    AuthenticationError: "Redis refuses the password of OFFLOAD_REDIS_URL",
    NoPermissionError: "Redis refuses this user of OFFLOAD_REDIS_URL its commands",
}


def broker_words(error: BaseException) -> str:
    """What a failed command says of Redis, for people."""
    cause = error.__cause__ or error  # Celery wraps what Redis said
    for kind, words in _WORDS.items():
        if isinstance(cause, kind):
            return words
    if isinstance(cause, ResponseError) and str(cause).startswith("MISCONF"):
        return "Redis cannot write its file and takes no messages; look at its disk"
    return f"Redis does not answer ({type(cause).__name__})"


class Publisher:
    """Sends slices on a connection of its own that never blocks a submit for more than about a second."""

    def __init__(self, app: Celery) -> None:
        self._app = app
        self._lock = threading.Lock()
        self._producer: Producer | None = None
        self._rest_until = 0.0
        self._trouble = ""  # what the last failure was, in words

    def send_slice(self, slice_id: str, batch_id: str, model_class: str, jobs: int) -> None:
        """Put a slice's message on its class's queue; raises BrokerDown."""
        shown = f"{{'slice': {slice_id!r}, 'batch': {batch_id!r}, 'class': {model_class!r}, 'jobs': {jobs}}}"
        self.send(RUN_SLICE, {"slice": slice_id}, class_queue(model_class), task_id=slice_id, kwargsrepr=shown)

    def send(self, task: str, kwargs: dict[str, Any], queue: str, **options: Any) -> None:
        """Send a task by name; raises BrokerDown at once while Redis is known to be away."""
        with self._lock:
            if time.monotonic() < self._rest_until:
                raise BrokerDown(self._trouble)
            try:
                producer = self._connected()
                self._app.send_task(task, kwargs=kwargs, queue=queue, producer=producer, retry=False, **options)
            except (KombuError, RedisError, OSError) as error:
                self._trouble = broker_words(error)
                self._rest_until = time.monotonic() + REST_AFTER_FAILURE_S
                self.close()
                raise BrokerDown(self._trouble) from None

    def _connected(self) -> Producer:
        if self._producer is None:
            connection = self._app.connection_for_write(
                transport_options={
                    "socket_timeout": 1,
                    "socket_connect_timeout": 1,
                    "max_retries": 0,
                    "connect_retries_timeout": 1,
                }
            )
            self._producer = Producer(connection)  # type: ignore[no-untyped-call]  # kombu has no types
        return self._producer

    def close(self) -> None:
        """Close the connection; the next send makes a new one."""
        if self._producer is not None:
            connection, self._producer = self._producer.connection, None
            with contextlib.suppress(KombuError, RedisError, OSError):
                connection.release()
