"""Takes back what nobody reports and sends again what got lost; then fills the windows."""

from __future__ import annotations

import json
from collections import Counter
from functools import partial

import redis
import structlog

from scheduler import dead_classes
from scheduler.redis_keys import mend, message_id
from tasks.app import broker_words
from tasks.dispatch import SliceSender, fill
from tasks.errors import BrokerDown
from tasks.ledger import sweeping
from tasks.ledger.control import cancel_dependents
from tasks.ledger.database import Database
from tasks.ledger.schema import check_still
from tasks.ledger.ticks import TROUBLE, broker_trouble, counted, tick
from tasks.queues import SWEPT_KEY, class_queue
from tasks.registry import Registry
from tasks.settings import Times

#: slices sent again in one sweep
SLICES_A_SWEEP = 1_000
#: times the age of a lost slice after which one that a worker has received, and not taken up, counts as lost too
TRUSTED = 2
#: silent workers are forgotten after this many times the time after which they are no longer live
FORGET_WORKERS = 80
#: intervals without any sweep after which the first one takes no leases back
AWAY = 3

log = structlog.get_logger(__name__)


def run_once(db: Database, broker: redis.Redis, sender: SliceSender, registry: Registry, times: Times) -> Counter[str]:
    """One sweep; the counts say what it found. Raises OtherTables where the ledger was upgraded meanwhile."""
    check_still(db)
    frozen = sweeping.end_frozen(db)
    counts = Counter(held_off=1) if _was_away(db, times) else sweeping.take_back_expired(db, registry)
    counts["frozen"] = frozen
    trouble = broker_trouble(db)  # until it is looked at again
    try:
        _look_after_ledger(db, registry, times, counts)
        trouble = _look_after_broker(db, broker, sender, registry, times, counts)
    finally:  # whatever failed: leases were looked at, and the next sweep takes nobody for away
        totals = {"sweeps": 1, "leases": counts["leases"], "slices": counts["slices"]}
        tick(db, "sweep", dict(counts) | {TROUBLE: trouble}, totals)
    return counts


def _look_after_ledger(db: Database, registry: Registry, times: Times, counts: Counter[str]) -> None:
    counts["expired"] = sweeping.expire_batches(db)
    counts["dependents"] = sum(cancel_dependents(db).values())
    counts["loads"] = sweeping.drop_abandoned_loads(db, times.loading_abandoned)
    counts["workers"] = sweeping.drop_gone_workers(db, times.worker_gone * FORGET_WORKERS)
    counts["escalated"] = dead_classes.run_once(db, registry, times)
    sweeping.drop_empty_slices(db)


def _look_after_broker(
    db: Database, broker: redis.Redis, sender: SliceSender, registry: Registry, times: Times, counts: Counter[str]
) -> str:
    """Send what got lost and fill the windows; what is wrong with Redis, in words."""
    try:
        broker.set(SWEPT_KEY, "1", ex=60)  # a Redis that takes no writes is known before there is work for it
        counts["mended"] = mend(broker, registry.classes, partial(sweeping.slices_out, db))
        counts["slices"] = resend_lost(db, broker, sender, times.slice_lost)
        counts["sent"] = fill(db, sender, registry.reaches, times)
    except (BrokerDown, redis.RedisError) as error:
        counts["broker_down"] = 1
        return str(error) if isinstance(error, BrokerDown) else broker_words(error)
    return ""


def _was_away(db: Database, times: Times) -> bool:
    """Whether the ledger, or beat, was away until just now.

    Then leases are over whose workers live: they first have a sweep's time to record, renew and give back.
    """
    ago, before = counted(db, "sweep")
    return AWAY * times.sweep < ago < float("inf") and not before.get("held_off")


def resend_lost(db: Database, broker: redis.Redis, sender: SliceSender, older_than_s: float) -> int:
    """Send unclaimed slices again, under the same id, that Redis holds nowhere."""
    late = sweeping.unclaimed_slices(db, older_than_s)  # all of them: those that wait in a list may be the oldest
    if not late:
        return 0
    # what a worker had received stays in `unacked` for 900 s if it was killed, or cut off from Redis and back
    held = _unacked(broker) - {row.id for row in sweeping.unclaimed_slices(db, TRUSTED * older_than_s)}
    classes = {row.model_class for row in late}
    there = {name: held | _listed(broker, class_queue(name)) for name in classes}
    lost = [row for row in late if row.id not in there[row.model_class]][:SLICES_A_SWEEP]
    for row in lost:
        log.info("a lost slice is sent again", slice=row.id, batch=row.batch_id, jobs=row.jobs)
        sender.send_slice(row.id, row.batch_id, row.model_class, row.jobs)
    sweeping.touch_slices(db, [row.id for row in lost])
    return len(lost)


def _listed(broker: redis.Redis, queue: str) -> set[str]:
    """The ids in a class's list."""
    return {found for raw in broker.lrange(queue, 0, -1) if (found := message_id(raw))}


def _unacked(broker: redis.Redis) -> set[str]:
    """The ids that workers have received and not yet taken up; kombu keeps [message, exchange, key] there."""
    found = set()
    for raw in broker.hvals("unacked"):
        try:
            found.add(message_id(json.dumps(json.loads(raw)[0])))
        except (ValueError, LookupError, TypeError):
            continue
    return found - {""}
