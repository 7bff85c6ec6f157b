"""Classes that nobody serves any more: their jobs go on to the cloud where category and privacy say they may.

A class is dead when every sweep of `times.class_dead` saw no worker that lives and takes its work.  A busy or loading
server is alive, and so is one that was drained or stopped on purpose.  After a pause of the sweep itself the watch
begins anew, so that a pool that starts escalates nothing.
"""

from __future__ import annotations

from tasks.categories import Category
from tasks.ledger import reading, sweeping, ticks
from tasks.ledger.database import Database
from tasks.ledger.nodes import Phase
from tasks.privacy import Reach, Tier, permits, tightest
from tasks.registry import CLOUD, Registry
from tasks.settings import Times

#: what a worker's health may be while it takes nothing for a moment
ALIVE = ("busy", "warming")


def run_once(db: Database, registry: Registry, times: Times) -> int:
    """Send on what waits for dead classes; the count of jobs."""
    wanted = _wanted(registry)
    if not wanted:
        return 0
    dead = _dead(db, registry, times)
    return sum(sweeping.escalate_class(db, name, wanted) for name in dead)


def _wanted(registry: Registry) -> list[str]:
    """The categories that go on, where there is a cloud to go to."""
    if not registry.has_cloud:
        return []
    return [c.name for c in registry.categories.values() if c.on_failure == "escalate" and _may(c, registry)]


def _may(category: Category, registry: Registry) -> bool:
    """Whether the configuration, as it is by now, lets its jobs go to the cloud at all."""
    tier = tightest(category.privacy, registry.privacy.default) or Tier.CLOUD_OK
    return permits(tier, Reach.CLOUD) and (category.kind != "embed" or registry.embeds(CLOUD))


def _dead(db: Database, registry: Registry, times: Times) -> list[str]:
    ago, since = ticks.counted(db, "unserved")
    with db.read() as c:
        now = db.now(c)
    watched = ago < times.class_dead / 2
    served = _served(db, now - times.worker_gone)
    local = [name for name in registry.classes if registry.reaches.get(name) is not Reach.CLOUD]
    unserved = {name: since.get(name, now) if watched else now for name in local if name not in served}
    ticks.tick(db, "unserved", unserved)
    return [name for name, at in unserved.items() if now - at >= times.class_dead]


def _served(db: Database, seen_since: float) -> set[str]:
    live = [w for w in reading.all_workers(db) if w.last_seen > seen_since]
    return {n for w in live if w.consuming or w.health in ALIVE or w.phase != Phase.SERVING for n in w.classes}
