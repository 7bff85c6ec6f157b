"""Keeps Redis's keys what Celery expects: a message it cannot decode ends a worker, a key of a wrong type stops all.

Messages are references, so anything that is no message of ours may go; slices that go with it are sent again.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable
from typing import Any

import redis

from tasks.queues import SCHEDULER_QUEUE, UNACKED_S, class_queue

#: kombu's own keys and their types
KOMBU = {"unacked": b"hash", "unacked_index": b"zset", "unacked_mutex": b"string"}
#: messages that a list may hold beyond its class's slices that are out: of slices sent twice, cancelled or taken back.
#: They claim nothing, and a worker eats some 900 of them a second
MOST_STALE = 1_000
#: entries of `unacked` beyond which they cannot be ours: each worker has received a few messages ahead
MOST_UNACKED = 5_000


def mend(broker: redis.Redis, classes: Iterable[str], out: Callable[[str], int]) -> int:
    """Delete keys of wrong types, lists too long to be ours, messages that are none or whose worker died.

    Returns how many of all.

    out: how many slices of a class are out; asked only about a long list, after its length was taken.
    """
    lists = {SCHEDULER_QUEUE: None} | {class_queue(name): name for name in classes}
    wanted = KOMBU | dict.fromkeys(lists, b"list")
    mended = 0
    for key, type_ in wanted.items():
        if broker.type(key) not in (type_, b"none"):
            mended += int(broker.delete(key))
    if int(broker.hlen("unacked")) > MOST_UNACKED:
        mended += int(broker.delete("unacked", "unacked_index"))
    mended += _drop_abandoned(broker)
    return mended + sum(_mend_list(broker, name, model_class, out) for name, model_class in lists.items())


def _drop_abandoned(broker: redis.Redis) -> int:
    """Forget what dead workers had received: kombu would keep it for ever, as the app lets it give nothing back."""
    tags: Any = broker.zrange("unacked_index", 0, int(time.time()) - UNACKED_S, byscore=True)  # by workers' clocks
    if tags:
        broker.hdel("unacked", *tags)
        broker.zrem("unacked_index", *tags)
    return len(tags)


def _mend_list(broker: redis.Redis, name: str, model_class: str | None, out: Callable[[str], int]) -> int:
    length = int(broker.llen(name))
    if length > MOST_STALE and length > MOST_STALE + (out(model_class) if model_class else 0):
        return int(broker.delete(name))
    junk = {raw for raw in broker.lrange(name, 0, -1) if not message_id(raw)}
    return sum(int(broker.lrem(name, 0, raw)) for raw in junk)  # type: ignore[arg-type, misc]  # bytes are fine


def message_id(raw: bytes | str) -> str:
    """A message's task id, which for a slice is the slice's; empty for what Celery could not even decode."""
    try:
        message = json.loads(raw)
        tag = message["properties"]["delivery_tag"]
        return str(message["headers"]["id"]) if isinstance(message["body"], str) and tag else ""
    except (ValueError, LookupError, TypeError, RecursionError):
        return ""
