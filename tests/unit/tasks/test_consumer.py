"""What the Celery consumer does about a connection that is gone."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from kombu.entity import Queue

from tasks.app import make_app
from tasks.consumer import Reconnecting
from tasks.queues import RUN_SLICE, class_queue
from tests.chaos.proxy import Proxy, Wire
from tests.support.pool import Redis


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Redis]:
    """A Redis of the test's own."""
    made = Redis(tmp_path / "redis")
    yield made
    made.close()


@pytest.fixture
def proxy(server: Redis) -> Iterator[Proxy]:
    """In front of it."""
    wire = Wire()
    made = Proxy(wire, server.url)
    yield made
    made.close()
    wire.close()


def test_a_message_of_a_lost_connection_is_acknowledged_once_there_is_redis_again(server: Redis, proxy: Proxy) -> None:
    """Losing a connection fails neither then nor at the late ack of a message that had come over it."""
    app, received, queue = make_app(proxy.url), list[Any](), class_queue("small")
    connection = app.connection_for_read()
    for _ in range(2):
        app.send_task(RUN_SLICE, kwargs={"slice": "x"}, queue=queue)
    consumed = connection.Consumer([Queue(queue)], on_message=received.append)  # type: ignore[no-untyped-call]
    connection.channel().basic_get(queue)  # this channel is closed first, and then the consumer's is not
    consumed.consume()
    connection.drain_events(timeout=10)
    with contextlib.suppress(TimeoutError):
        connection.drain_events(timeout=0.1)  # it waits for more
    assert server.client.hlen("unacked") == 2
    consumer = Reconnecting.__new__(Reconnecting)
    consumer.app, consumer.connection = app, connection

    proxy.cut()
    consumer.on_connection_error_after_connected(ConnectionError())
    proxy.heal()
    received[0].ack()

    assert consumer.connection is None
    assert server.client.hlen("unacked") == 1
