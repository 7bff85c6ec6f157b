"""How the ledger stands now, in figures: read in transactions that wait for nobody and hold nobody up.

Every question about jobs goes along an index and touches no job that has ended:

    out       ix_jobs_out, which has the jobs that are dispatched or running and no others
    queued    the open batches; of each the entries of a class in ix_jobs_queue are counted: the one figure that takes
              longer the more there is (200,000: 30 ms; 250 ms in a PostgreSQL that has not been vacuumed since, which
              looks at the table as well), so it is asked for apart
    oldest    the open batches, oldest first; of each class and tier the first and the last due job by rank.  Jobs are
              sent by rank, so those behind have never been tried and wait since their submit; where all were tried, the
              least of the two is near the truth.
"""

from __future__ import annotations

import functools
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import Connection, Select, bindparam, func, select
from sqlalchemy.engine import Row
from sqlalchemy.sql.elements import ColumnElement

from tasks.budget import windows
from tasks.ledger.control import is_served
from tasks.ledger.database import Database
from tasks.ledger.ticks import all_ticks
from tasks.ledger.usage import taken
from tasks.privacy import Tier
from tasks.providers import Provider
from tasks.states import BatchState, JobState
from tasks.tables import IS_OUT, Batch, Job, Worker
from tasks.turns import LiveWorker, window

#: open batches in which the oldest due job is looked for; each began before those behind it
BATCHES = 500

batches = Batch.__table__  # type: ignore[attr-defined]
jobs = Job.__table__  # type: ignore[attr-defined]
workers = Worker.__table__  # type: ignore[attr-defined]

#: since when a job waits; none where nobody knows
_queued_at = func.nullif(jobs.c.queued_at, 0.0)


@dataclass(frozen=True)
class Gauges:
    """One look. Keys are names as their fields say; ages are seconds, times unix seconds of the ledger's clock."""

    out: dict[tuple[JobState, str], int] = field(default_factory=dict)  #: state, class: jobs dispatched, or running
    oldest: Mapping[str, float] = field(default_factory=dict)  #: class: since when its oldest due job waits
    workers: Sequence[tuple[Row[Any], bool]] = ()  #: each with whether its heartbeat is fresh
    windows: Mapping[str, int] = field(default_factory=dict)  #: class: jobs that may be out and unclaimed
    quotas: Mapping[tuple[str, str, str], float] = field(default_factory=dict)  #: provider, unit, per: share left
    ticks: Mapping[str, tuple[float, Mapping[str, int]]] = field(default_factory=dict)  #: service: when last, totals


def look(db: Database, classes: Collection[str], providers: Collection[Provider], gone_s: float) -> Gauges:
    """How the ledger stands. classes: those of the configuration; those that workers serve are looked at, too."""
    with db.read() as c:
        now = db.now(c)
        seen = [(row, now - row.last_seen <= gone_s) for row in c.execute(select(workers).order_by(workers.c.name))]
        live = [_live(row) for row, fresh in seen if fresh and row.consuming]
        names = _names(c, classes)
        out = {(state, name): 0 for state in (JobState.DISPATCHED, JobState.RUNNING) for name in names}
        since = _out(c, out)
        for name in names:
            since.setdefault(name, []).extend(_due_since(c, name, now))
        return Gauges(
            out=out,
            oldest={name: max(0.0, now - min(since[name], default=now)) for name in names},
            workers=seen,
            windows={name: window(name, live) for name in names},
            quotas=_quotas(c, providers, now),
            ticks=all_ticks(c),
        )


def queued(db: Database, classes: Collection[str]) -> dict[str, int]:
    """class -> jobs that wait in the ledger."""
    with db.read() as c:
        return {name: int(c.execute(_queued_query(), {"name": name}).scalar() or 0) for name in _names(c, classes)}


def _names(c: Connection, classes: Collection[str]) -> list[str]:
    served = c.execute(select(workers.c.classes)).scalars()
    return sorted({*classes, *(name for some in served for name in some)})


def _live(row: Row[Any]) -> LiveWorker:
    return LiveWorker(row.name, tuple(row.classes), row.capacity, row.turn_class, row.turn_since, row.reach)


def _out(c: Connection, found: dict[tuple[JobState, str], int]) -> dict[str, list[float]]:
    """Count what is dispatched or running; since when the oldest of those waits that nobody has claimed, by class."""
    of = jobs.c.state, jobs.c.model_class
    since: dict[str, list[float]] = {}
    query = select(*of, func.count(), func.min(_queued_at)).where(IS_OUT).group_by(*of)
    for state, name, n, oldest in c.execute(query):
        found[JobState(state), name] = n
        if state == JobState.DISPATCHED and oldest is not None:
            since[name] = [oldest]
    return since


@functools.cache
def _queued_query() -> Select[Any]:
    mine = select(func.count()).where(jobs.c.batch_id == batches.c.id, *_waits(bindparam("name"))).scalar_subquery()
    return select(func.sum(mine)).where(batches.c.state == BatchState.OPEN)


def _due_since(c: Connection, name: str, now: float) -> list[float]:
    """Since when the outermost due jobs of a class wait, of each batch that may be served."""
    rows = c.execute(_due_query(), {"name": name, "now": now}).all()
    return [since for row in rows for since in row if since is not None]


@functools.cache
def _due_query() -> Select[Any]:
    due = (*_waits(bindparam("name")), jobs.c.due_at <= bindparam("now"))
    ends = [
        select(_queued_at)
        .where(jobs.c.batch_id == batches.c.id, *due, jobs.c.tier == tier)
        .order_by(order)
        .limit(1)
        .scalar_subquery()
        for tier in Tier
        for order in (jobs.c.rank, jobs.c.rank.desc())
    ]
    return (
        select(*ends)
        .where(batches.c.state == BatchState.OPEN, batches.c.cancelled_at.is_(None), is_served())
        .order_by(batches.c.opened_at)
        .limit(BATCHES)
    )


def _waits(name: Any) -> tuple[ColumnElement[bool], ...]:
    return jobs.c.model_class == name, jobs.c.state == JobState.QUEUED


def _quotas(c: Connection, providers: Collection[Provider], now: float) -> dict[tuple[str, str, str], float]:
    """What is left of every limit's present window: 1 untouched, 0 used up."""
    found: dict[tuple[str, str, str], float] = {}
    for provider in providers:
        for there in windows(provider, now):
            left = 1 - taken(c, provider.name, there) / there.limit.most
            found[provider.name, there.limit.unit, there.limit.per] = min(1.0, max(0.0, left))
    return found
