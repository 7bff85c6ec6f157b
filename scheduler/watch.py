"""What nobody writes down when it happens, and people should know: a provider is down or up again, a quota is nearly
or wholly used, jobs wait too long, Redis takes no messages or takes them again.

What was seen is kept beside the time of the look, and what differs from it is news.  Of two that look at once one
counts.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tasks.ledger import reading, standing, ticks, usage
from tasks.ledger.database import Database
from tasks.ledger.events import tell_changes
from tasks.ledger.nodes import Phase
from tasks.notices import Kind, News
from tasks.registry import Registry
from tasks.settings import Times

#: intervals without a look after which workers, which stood still with us perhaps, are looked at in the next one
AWAY = 3
#: what a worker's health is while its provider can do no work
DOWN = ("offline", "misconfigured")
#: seconds after which one without a row is forgotten: where machines get new names its own comes no more
FORGET_S = 30 * 24 * 3600.0
#: the part of a quota that is told of before it is used up
NEARLY = 0.8
#: the service whose look it is, as its row in `ticks` is called
TICK = "notify"


@dataclass(frozen=True)
class Seen:
    """What there is at one moment.

    down: worker -> why. gone: those of them without a row -> since when, unix seconds. quota: provider and unit -> [the
    window's start, 0, 80 or 100]. backlog: class -> a batch. broker: what is wrong with Redis, by the last sweep; empty
    when it is well.
    """

    down: Mapping[str, str]
    gone: Mapping[str, float]
    quota: Mapping[str, list[float]]
    backlog: Mapping[str, str]
    broker: str


def run_once(db: Database, registry: Registry, times: Times) -> int:
    """Look once; the count of news."""
    before_at = ticks.ticked_at(db, TICK)
    ago, kept = ticks.counted(db, TICK)
    before = Seen(
        down=kept.get("down", {}),
        gone=kept.get("gone", {}),
        quota=kept.get("quota", {}),
        backlog=kept.get("backlog", {}),
        broker=kept.get("broker", ""),
    )
    away = ago > AWAY * times.notify
    ups, down, gone = ([], before.down, before.gone) if away else _providers(db, times, before)
    quota, used = _quotas(db, registry, before.quota)
    backlog = _backlog(db, registry)
    broker = ticks.broker_trouble(db)
    bound = f"{registry.notify.backlog_s:g}" if registry.notify.backlog_s else ""
    news = [
        *(News(Kind.PROVIDER_DOWN, name, {"code": why}) for name, why in down.items() if name not in before.down),
        *(News(Kind.PROVIDER_UP, name) for name in ups),
        *used,
        *(
            News(Kind.BACKLOG, name, {"batch": batch_id, "bound": bound})
            for name, batch_id in backlog.items()
            if name not in before.backlog
        ),
        *_broker(before.broker, broker),
    ]
    state = {"down": down, "gone": gone, "quota": quota, "backlog": backlog, "broker": broker}
    return tell_changes(db, TICK, before_at, state, news)


def _providers(db: Database, times: Times, before: Seen) -> tuple[list[str], dict[str, str], dict[str, float]]:
    """Workers whose providers are up again, why those that are down are so, and since when which of these has no row.

    One that people drained or stopped is neither. A worker that has just started has not asked its provider yet, and
    one that has left, to come back perhaps, is what it was, for FORGET_S.
    """
    with db.read() as c:
        now = db.now(c)
    workers = {w.name: w for w in reading.all_workers(db)}
    without = {name: before.gone.get(name, now) for name in before.down if name not in workers}
    gone = {name: since for name, since in without.items() if now - since < FORGET_S}
    down, ups = {name: before.down[name] for name in gone}, []
    for name, w in workers.items():
        if w.phase != Phase.SERVING:
            continue
        fresh = now - w.started_at < times.heartbeat
        if w.last_seen <= now - times.worker_gone:
            down[name] = "its worker is gone"
        elif w.health in DOWN and not fresh:
            down[name] = w.health
        elif w.health in DOWN and name in before.down:
            down[name] = before.down[name]
        elif w.health not in DOWN and name in before.down:
            ups.append(name)
    return ups, down, gone


def _quotas(
    db: Database, registry: Registry, before: Mapping[str, list[float]]
) -> tuple[dict[str, list[float]], list[News]]:
    """How much of each day's limits is used, and those of which it is more than was told in their window.

    What a minute allows is no quota: a busy pool uses it up all the time, and waits for seconds.
    """
    quota: dict[str, list[float]] = {}
    news = []
    for provider in registry.providers.values():
        days = (
            [found for found in usage.standing(db, provider) if found[0].limit.per == "day"] if provider.limits else []
        )
        for window, used, full in days:
            subject = f"{provider.name} ({window.limit.unit})"
            began, told = before.get(subject, [window.began, 0])
            level = 100 if full else 80 if used >= NEARLY * window.limit.most else 0
            told = told if began == window.began else 0
            if level > told:
                detail = {"most": f"{window.limit.most:g} {window.limit.unit} a day"}
                news.append(News(Kind.QUOTA_100 if full else Kind.QUOTA_80, subject, detail))
            quota[subject] = [window.began, max(level, told)]
    return quota, news


def _backlog(db: Database, registry: Registry) -> dict[str, str]:
    bound = registry.notify.backlog_s
    if bound is None:
        return {}
    found: dict[str, Any] = {name: standing.waits_longer(db, name, bound) for name in registry.classes}
    return {name: batch_id for name, batch_id in found.items() if batch_id is not None}


def _broker(before: str, trouble: str) -> list[News]:
    """Redis's absence once, whatever is wrong with it meanwhile, and its return."""
    if bool(before) == bool(trouble):
        return []
    return [News(Kind.BROKER, "redis", {"trouble": trouble}) if trouble else News(Kind.BROKER_UP, "redis")]
