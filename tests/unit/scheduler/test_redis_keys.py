"""Junk in Redis goes; what is ours stays."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from scheduler.redis_keys import MOST_STALE, MOST_UNACKED, mend
from tasks.app import Publisher, make_app
from tasks.queues import UNACKED_S
from tests.support.pool import Redis

QUEUE = "offload.small"
JUNK = [b"[]", b"null", b"{}", b"not json", b"\xff\xfe", b'{"headers": {"id": "x"}}', b"[" * 100_000, b"1"]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Redis]:
    """One real server for the module."""
    made = Redis(tmp_path_factory.mktemp("redis"))
    yield made
    made.close()


@pytest.fixture
def broker(server: Redis) -> redis.Redis:
    """It, empty, with one message of ours."""
    server.client.flushall()
    publisher = Publisher(make_app(server.url))
    publisher.send_slice("s1", "b1", "small", 3)
    publisher.close()
    return server.client


def test_messages_that_nobody_can_decode_go(broker: redis.Redis) -> None:
    """Each of them would end a worker; ours stays."""
    broker.lpush(QUEUE, *JUNK)
    broker.rpush(QUEUE, *JUNK)
    assert mend(broker, ["small"], lambda _: 0) == 2 * len(JUNK)
    assert broker.llen(QUEUE) == 1
    assert mend(broker, ["small"], lambda _: 0) == 0


@pytest.mark.parametrize("key", [QUEUE, "scheduler", "unacked", "unacked_index"])
def test_a_key_of_a_wrong_type_goes(broker: redis.Redis, key: str) -> None:
    """Celery would stop for good at it."""
    broker.delete(key)
    broker.set(key, "x")
    assert mend(broker, ["small"], lambda _: 0) == 1
    assert not broker.exists(key)


def test_a_list_that_is_too_long_to_be_ours_goes(broker: redis.Redis) -> None:
    """A worker would eat no-ops for minutes; the slices in it are sent again."""
    broker.lpush(QUEUE, *[b"junk"] * (MOST_STALE + 1))
    mend(broker, ["small"], lambda _: 0)
    assert not broker.exists(QUEUE)


def test_as_many_messages_as_slices_are_ours(broker: redis.Redis) -> None:
    """A class of thousands of calls may have thousands of slices of one job each; what is beyond them is stale."""
    (message,) = broker.lrange(QUEUE, 0, -1)
    asked: list[str] = []

    def out(model_class: str) -> int:
        asked.append(model_class)
        return 500

    broker.rpush(QUEUE, *[message] * (MOST_STALE + 499))
    assert mend(broker, ["small", "coder"], out) == 0
    assert asked == ["small"], "nothing is counted for lists that are short"
    broker.rpush(QUEUE, message)
    assert mend(broker, ["small", "coder"], out) == 1
    assert not broker.exists(QUEUE)


def test_unacked_that_cannot_be_ours_goes(broker: redis.Redis) -> None:
    """Every sweep would read all of it."""
    broker.hset("unacked", mapping={str(i): "x" for i in range(MOST_UNACKED)})
    broker.zadd("unacked_index", {"0": time.time()})
    assert mend(broker, ["small"], lambda _: 0) == 0
    broker.hset("unacked", "one more", "x")
    assert mend(broker, ["small"], lambda _: 0) == 2
    assert not broker.exists("unacked", "unacked_index")


def test_what_a_dead_worker_had_received_goes(broker: redis.Redis) -> None:
    """Nobody gives it back or takes it up; what was received lately stays."""
    for tag, age_s in (("dead", UNACKED_S + 60), ("alive", UNACKED_S - 60)):
        broker.hset("unacked", tag, "x")
        broker.zadd("unacked_index", {tag: time.time() - age_s})
    assert mend(broker, ["small"], lambda _: 0) == 1
    assert broker.hkeys("unacked") == broker.zrange("unacked_index", 0, -1) == [b"alive"]


def test_nothing_of_others_is_touched(broker: redis.Redis, tmp_path: Path) -> None:
    """Only the keys that Celery reads for this pool are looked at."""
    broker.set("somebody.else", "x")
    assert mend(broker, ["small"], lambda _: 0) == 0
    assert broker.get("somebody.else") == b"x"
