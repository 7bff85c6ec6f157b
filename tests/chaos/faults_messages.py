"""What befalls messages: lost, doubled, stale, forged, too many."""

from __future__ import annotations

import functools
import json
import time
from collections.abc import Iterable
from typing import Any

from sqlalchemy import select

from tasks.app import make_app
from tasks.queues import RUN_SLICE, class_queue
from tasks.tables import IN_SLICE
from tests.chaos.strike import Strike, jobs

QUEUE = class_queue("small")


def lost(s: Strike) -> None:
    """4: a message was popped and never arrived."""
    victim, resets = s.victim(), s.random.random() < 0.5
    s.note = f"to {victim.name}, {'connection reset' if resets else 'in silence'}"
    s.busy(s.site.nodes)
    victim.popped.arm(lambda: None, resets=resets)
    s.later(victim.popped.disarm)
    s.eventually(victim.popped.sprung.is_set, "a message is lost", 15)
    s.struck_all()


def slices(s: Strike) -> list[str]:
    """The slices that were sent and not claimed."""
    with s.site.db.read() as c:
        return list(c.execute(select(jobs.c.slice_id).where(IN_SLICE).distinct()).scalars())


def send_again(s: Strike, ids: Iterable[str]) -> None:
    """Send slices' messages once more."""
    for slice_id in ids:
        _app(s).send_task(RUN_SLICE, kwargs={"slice": slice_id}, queue=QUEUE, task_id=slice_id)


def doubled(s: Strike) -> None:
    """24: stale and duplicate messages, some thousands or a million of them, claim nothing."""
    s.busy(s.site.nodes)
    n = s.random.choice([300, 3_000, 30_000] * 16 + [1_000_000])
    s.note = f"{n} messages"
    ids = [*slices(s), "0" * 24]
    s.struck_all()
    broker = s.site.redis.client
    send_again(s, ids)
    model = json.dumps(_message(s, ids[0])).encode()
    push = broker.register_script("for i = 1, ARGV[2] do redis.call('LPUSH', KEYS[1], ARGV[1]) end")
    for start in range(0, n, 5_000):
        push(keys=[QUEUE], args=[model, min(5_000, n - start)])


@functools.cache
def _app_on(url: str) -> Any:
    return make_app(url)


def _app(s: Strike) -> Any:
    """Celery, as a forger has it."""
    return _app_on(s.site.redis.url)


def _message(s: Strike, slice_id: str) -> dict[str, object]:
    """A message as Celery sends it, made by Celery itself in a queue that nobody reads."""
    _app(s).send_task(RUN_SLICE, kwargs={"slice": slice_id}, queue="offload.none", task_id=slice_id)
    raw = s.site.redis.client.rpop("offload.none")
    assert isinstance(raw, bytes)
    found: dict[str, object] = json.loads(raw)
    return found


def forged(s: Strike) -> None:
    """27: messages that are none of ours, in each way that there is."""
    s.busy(s.site.nodes)
    message = _message(s, "f" * 24)
    kinds = {
        "unknown task": lambda: _app(s).send_task("os.system", args=["true"], queue=QUEUE),
        "other argument": lambda: _app(s).send_task(RUN_SLICE, kwargs={"other": 1}, queue=QUEUE),
        "wrong argument": lambda: _app(s).send_task(RUN_SLICE, args=[["x"]], queue=QUEUE),
        "no such slice": lambda: _app(s).send_task(RUN_SLICE, kwargs={"slice": "' OR 1=1 --"}, queue=QUEUE),
        "pickle": lambda: _push(s, message | {"body": "gASVBQ==", "content-type": "application/x-python-serialize"}),
        "no JSON": lambda: s.site.redis.client.lpush(QUEUE, b"\x80\x04not json"),
        "a body that is no JSON": lambda: _push(s, message | {"body": "bm90IGpzb24="}),
        "no message": lambda: s.site.redis.client.lpush(QUEUE, b"[1, 2]"),
        "no properties": lambda: _push(s, {"body": "e30="}),
    }
    names = s.random.sample(sorted(kinds), s.random.randint(1, 3))
    s.note = ", ".join(names)
    s.struck_all()
    for name in names:
        kinds[name]()  # type: ignore[no-untyped-call]
    time.sleep(0.3)  # what ends a worker does it now
    s.healed()


def _push(s: Strike, message: dict[str, object]) -> None:
    s.site.redis.client.lpush(QUEUE, json.dumps(message).encode())
