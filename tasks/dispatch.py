"""Keeps the window of every class full: chooses jobs in one transaction, then sends their slices.

One dispatcher at a time: choosing takes the ledger's write lock, and whoever waited for it looks again.  It runs
in whichever process submitted, finished work or swept, and on beat's tick.  A slice that could not be sent goes
straight back, so Redis being away costs nothing but time.
"""

from __future__ import annotations

import functools
import secrets
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, Protocol

from sqlalchemy import (
    BindParameter,
    Connection,
    Select,
    bindparam,
    exists,
    func,
    insert,
    literal_column,
    or_,
    select,
    update,
)
from sqlalchemy.engine import Row
from sqlalchemy.sql.elements import ColumnElement

from tasks.errors import BrokerDown
from tasks.ledger.claims import ALONE_CRASHES, put_back, requeue
from tasks.ledger.control import is_served
from tasks.ledger.database import DISPATCH_LOCK, Database, retried
from tasks.privacy import TIERS_OF, Reach
from tasks.settings import Times
from tasks.states import BatchState, JobState
from tasks.tables import IS_OUT, IS_TAKEN_BACK, Batch, Job, Slice, Worker
from tasks.turns import IDLE_WINDOW, LiveWorker, Waiting, next_turn, room, share, slice_size, suspect_slice

#: batches of one class that take turns in one look; more of them wait for the next look
BATCHES_A_LOOK = 64

batches = Batch.__table__  # type: ignore[attr-defined]
jobs = Job.__table__  # type: ignore[attr-defined]
slices = Slice.__table__  # type: ignore[attr-defined]
workers = Worker.__table__  # type: ignore[attr-defined]


class SliceSender(Protocol):
    """What sends a slice's message; tasks.app.Publisher is the one."""

    def send_slice(self, slice_id: str, batch_id: str, model_class: str, jobs: int) -> None:
        """Raises BrokerDown."""


@dataclass(frozen=True, slots=True)
class Sent:
    """A slice chosen and to be sent."""

    id: str
    batch_id: str
    model_class: str
    jobs: int


def fill(db: Database, sender: SliceSender, reaches: Mapping[str, Reach], times: Times) -> int:
    """Fill every window once; returns the jobs sent. Raises BrokerDown after giving back what was not sent.

    `reaches` are the classes of the configuration and how far each reaches: a job is sent to none beyond its tier.
    One that no live worker serves gets one small slice ahead.
    """
    chosen = _choose(db, reaches, times)
    for i, one in enumerate(chosen):
        try:
            sender.send_slice(one.id, one.batch_id, one.model_class, one.jobs)
        except BrokerDown:
            for unsent in chosen[i:]:
                put_back(db, unsent.id)
            raise
    return sum(one.jobs for one in chosen)


@retried
def _choose(db: Database, reaches: Mapping[str, Reach], times: Times) -> list[Sent]:
    with db.read() as c:  # most looks end here, without the write lock
        now = db.now(c)
        if not _due_classes(c, _named(reaches, _live_workers(c, now - times.worker_gone)), now):
            return []
    with db.write(durable=False) as c:
        db.alone(c, DISPATCH_LOCK)
        now = db.now(c)
        live = _live_workers(c, now - times.worker_gone)
        furthest = _named(reaches, live)
        queues = _queues(c, furthest, now)
        unclaimed, fresh = _unclaimed(c, 0.0), _unclaimed(c, now - times.slice_lost / 2)
        waiting = {name: _summary(found) for name, found in queues.items()}
        turns = {s.name: next_turn(s, waiting, unclaimed, now, times.turn) for s in live}
        _keep_turns(c, live, turns, now)
        out, held = _out(c), _held(c)
        sent: list[Sent] = []
        for name, found in queues.items():
            queue = _Queue(name, _tiers(furthest[name]), now)
            mine = out.get(name, Counter())
            if any(name in s.classes for s in live):
                free = room(name, turns, live, held, fresh.get(name, 0), unclaimed.get(name, 0))
            else:
                free = IDLE_WINDOW - mine.total()
            sent += _fill_class(c, queue, found, mine, free, _size(name, live))
    return sent


@dataclass(frozen=True, slots=True)
class _Queue:
    """What of a class may be sent now: its jobs of these tiers."""

    name: str
    tiers: tuple[str, ...]
    now: float


def _tiers(reach: Reach) -> tuple[str, ...]:
    return tuple(sorted(TIERS_OF[reach]))


def _named(reaches: Mapping[str, Reach], live: Sequence[LiveWorker]) -> dict[str, Reach]:
    """The classes of the configuration and those that only a worker's knows, each with the furthest reach of all."""
    furthest = dict(reaches)
    for worker in live:
        for name in worker.classes:
            furthest[name] = max(furthest.get(name, Reach.LOCAL), Reach(worker.reach), key=list(Reach).index)
    return furthest


def _queues(c: Connection, furthest: Mapping[str, Reach], now: float) -> dict[str, Sequence[Row[Any]]]:
    """The classes in which something is due, and their batches."""
    due = _due_classes(c, furthest, now)
    return {n: found for n in due if (found := _waiting_batches(c, _Queue(n, _tiers(furthest[n]), now)))}


def _due_classes(c: Connection, furthest: Mapping[str, Reach], now: float) -> list[str]:
    """The classes in which something is due."""
    classes = tuple((name, _tiers(reach)) for name, reach in sorted(furthest.items()))
    if not classes:
        return []
    row = c.execute(_due_query(classes), {"now": now}).one()
    return [name for (name, _), due in zip(classes, row, strict=True) if due]


def _live_workers(c: Connection, seen_since: float) -> list[LiveWorker]:
    return [
        LiveWorker(r.name, tuple(r.classes), r.capacity, r.turn_class, r.turn_since, r.reach)
        for r in c.execute(_LIVE, {"seen_since": seen_since}).all()
    ]


def _waiting_batches(c: Connection, queue: _Queue) -> Sequence[Row[Any]]:
    """Open batches with due jobs of a class, in the order they are served: priority, then fair turns.

    Where the look may be full of those whose suspects wait for each other, as many that have others come with them.
    """
    given = {"name": queue.name, "now": queue.now, "most": BATCHES_A_LOOK}
    found = c.execute(_waiting_query(queue.tiers), given).all()
    if len(found) < BATCHES_A_LOOK:
        return found
    crashes = _taken_back(c, queue, [row.id for row in found]).values()
    if max(crashes, default=0) < ALONE_CRASHES:
        return found
    others = c.execute(_waiting_query(queue.tiers, suspects=False), given).all()
    both = {row.id: row for row in (*found, *others)}.values()
    return sorted(both, key=lambda row: (-row.priority, row.served_at, row.opened_at))


# Every look asks these, and making a statement takes longer than asking it: each is made once.


@functools.cache
def _waiting_query(tiers: tuple[str, ...], *, suspects: bool = True) -> Select[Any]:
    which = () if suspects else (or_(jobs.c.taken_back_at.is_(None), jobs.c.crashes < ALONE_CRASHES),)
    return (
        select(batches.c.id, batches.c.priority, batches.c.opened_at, batches.c.served_at, batches.c.open)
        .where(*_waits(bindparam("name"), tiers, *which))
        .order_by(batches.c.priority.desc(), batches.c.served_at, batches.c.opened_at)
        .limit(bindparam("most"))
    )


@functools.lru_cache(maxsize=16)
def _due_query(classes: tuple[tuple[str, tuple[str, ...]], ...]) -> Select[*tuple[Any, ...]]:
    return select(*(exists().where(*_waits(name, tiers)) for name, tiers in classes))


def _waits(
    name: str | BindParameter[str], tiers: tuple[str, ...], *which: ColumnElement[bool]
) -> tuple[ColumnElement[bool], ...]:
    """That a batch may be served now, and has something of a class to send. which: conditions on its jobs."""
    may_be_sent = (*_may_be_sent(name, bindparam("now")), *which)
    # the first in the order of ix_jobs_queue: of EXISTS PostgreSQL may make a table of all queued jobs, at every look
    first = select(jobs.c.id).order_by(jobs.c.rank).limit(literal_column("1"))
    due = (first.where(jobs.c.batch_id == batches.c.id, *may_be_sent, jobs.c.tier == tier) for tier in tiers)
    waits = or_(*(found.scalar_subquery().is_not(None) for found in due))
    return batches.c.state == BatchState.OPEN, batches.c.cancelled_at.is_(None), is_served(), waits


def _may_be_sent(name: str | BindParameter[str], now: float | BindParameter[float]) -> tuple[ColumnElement[bool], ...]:
    return jobs.c.model_class == name, jobs.c.state == JobState.QUEUED, jobs.c.due_at <= now


_LIVE = (
    select(workers).where(workers.c.last_seen > bindparam("seen_since"), workers.c.consuming).order_by(workers.c.name)
)

_UNCLAIMED = (
    select(jobs.c.model_class, func.count())
    .join(slices, slices.c.id == jobs.c.slice_id)
    .where(IS_OUT, jobs.c.state == JobState.DISPATCHED, slices.c.sent_at > bindparam("since"))
    .group_by(jobs.c.model_class)
)

_OUT = (
    select(jobs.c.model_class, jobs.c.batch_id, func.count())
    .where(IS_OUT)
    .group_by(jobs.c.model_class, jobs.c.batch_id)
)

_HELD = select(jobs.c.worker, func.count()).where(IS_OUT, jobs.c.state == JobState.RUNNING).group_by(jobs.c.worker)


def _unclaimed(c: Connection, since: float) -> dict[str, int]:
    """Jobs that are in nobody's hand, by class, of the slices that were sent since then (unix seconds)."""
    return dict(c.execute(_UNCLAIMED, {"since": since}).all())


def _summary(found: Sequence[Row[Any]]) -> Waiting:
    return Waiting(priority=max(r.priority for r in found), since=min(r.opened_at for r in found))


def _keep_turns(c: Connection, live: Sequence[LiveWorker], turns: Mapping[str, str | None], now: float) -> None:
    for worker in live:
        turn = turns[worker.name]
        if turn is not None and turn != worker.turn_class:
            c.execute(update(workers).where(workers.c.name == worker.name).values(turn_class=turn, turn_since=now))


def _out(c: Connection) -> dict[str, Counter[str]]:
    """Jobs dispatched or running, by class and batch."""
    found: dict[str, Counter[str]] = {}
    for name, batch_id, n in c.execute(_OUT):
        found.setdefault(name, Counter())[batch_id] = n
    return found


def _held(c: Connection) -> dict[str, int]:
    """Jobs in each worker's hand."""
    return dict(c.execute(_HELD).all())


def _size(name: str, live: Sequence[LiveWorker]) -> int:
    """Slices suit the smallest worker that may get them."""
    sizes = [slice_size(s.capacity) for s in live if name in s.classes]
    return min(sizes, default=IDLE_WINDOW)


def _fill_class(
    c: Connection, queue: _Queue, found: Sequence[Row[Any]], out: Counter[str], free: int, size: int
) -> list[Sent]:
    """Cut slices while there is room: the highest priority first; of equal batches the one furthest below its share."""
    if free < size:
        free += _take_back(c, queue.name, size - free, slices.c.priority < found[0].priority)
    back = _taken_back(c, queue, [row.id for row in found])
    urgent = [row.priority for row in found if back.get(row.id, ALONE_CRASHES) < ALONE_CRASHES]
    if urgent:  # they have waited a lease already: what nobody has taken up waits for them
        free += _take_back(c, queue.name, None, slices.c.priority <= max(urgent), ~slices.c.suspects)
    sent: list[Sent] = []
    for _, equal in groupby(found, key=lambda row: row.priority):
        left = list(equal)  # the one that was served longest ago is the first
        for batch in left:
            while batch.id in back and free >= size and (ids := _held_before(c, queue, batch.id, size)):
                sent.append(_cut(c, queue, batch, ids, suspects=True))
                out[batch.id] += len(ids)
                free -= len(ids)
        largest = max(row.open for row in left)
        shares = {row.id: share(row.open, largest) for row in left}
        while left and free >= size:  # a slice that would not be full waits for the next look, never far away
            batch = min(left, key=lambda row: out[row.id] / shares[row.id])
            ids = _due(c, queue, batch.id, size)
            if not ids:
                left.remove(batch)
                continue
            sent.append(_cut(c, queue, batch, ids, suspects=False))
            out[batch.id] += len(ids)
            free -= len(ids)
    return sent


#: taken back, of all batches: few, and read by their own index. With more conditions SQLite prefers another index, by
#: which it reads all the queued jobs of a batch, at every look
_BACK = (
    select(jobs.c.id, jobs.c.batch_id, jobs.c.model_class, jobs.c.tier, jobs.c.due_at, jobs.c.crashes)
    .where(IS_TAKEN_BACK)
    .cte("back")
    .prefix_with("MATERIALIZED")
)
_BACK_AND_DUE = (
    _BACK.c.model_class == bindparam("name"),
    _BACK.c.due_at <= bindparam("now"),
    _BACK.c.tier.in_(bindparam("tiers", expanding=True)),
)

_TAKEN_BACK = (
    select(_BACK.c.batch_id, func.min(_BACK.c.crashes))
    .where(_BACK.c.batch_id.in_(bindparam("found", expanding=True)), *_BACK_AND_DUE)
    .group_by(_BACK.c.batch_id)
)


def _taken_back(c: Connection, queue: _Queue, found: Sequence[str]) -> dict[str, int]:
    """Those of the batches with due jobs that were in hand when a worker died, and the fewest crashes of one."""
    given = {"found": list(found), "name": queue.name, "now": queue.now, "tiers": list(queue.tiers)}
    return dict(c.execute(_TAKEN_BACK, given).all())


def _take_back(c: Connection, name: str, wanted: int | None, *which: ColumnElement[bool]) -> int:
    """Unclaimed slices make room for so many more urgent jobs, or all of them do; their messages will claim nothing."""
    found = (
        select(slices.c.id, slices.c.jobs)
        .where(slices.c.model_class == name, *which)
        .order_by(slices.c.priority, slices.c.sent_at.desc())
    )
    freed, ids = 0, []
    for row in c.execute(found).all():
        if wanted is not None and freed >= wanted:
            break
        ids.append(row.id)
        freed += row.jobs
    if ids:
        requeue(c, ids)
    return freed


_SEND = (
    update(jobs)
    .where(jobs.c.id.in_(bindparam("ids", expanding=True)), jobs.c.state == JobState.QUEUED)
    .values(state=JobState.DISPATCHED, slice_id=bindparam("slice"))
)

_SERVED = update(batches).where(batches.c.id == bindparam("batch")).values(served_at=bindparam("now"))


def _cut(c: Connection, queue: _Queue, batch: Row[Any], ids: Sequence[int], *, suspects: bool) -> Sent:
    """Make a slice of these jobs of a batch."""
    slice_id = secrets.token_hex(12)
    c.execute(_SEND, {"ids": list(ids), "slice": slice_id})
    made = {
        "id": slice_id,
        "batch_id": batch.id,
        "model_class": queue.name,
        "priority": batch.priority,
        "jobs": len(ids),
        "suspects": suspects,
        "sent_at": queue.now,
    }
    c.execute(insert(slices), made)
    c.execute(_SERVED, {"batch": batch.id, "now": queue.now})
    return Sent(slice_id, batch.id, queue.name, len(ids))


_DUE = (
    select(jobs.c.id, jobs.c.rank)
    .where(jobs.c.batch_id == bindparam("batch"), *_may_be_sent(bindparam("name"), bindparam("now")))
    .where(jobs.c.tier == bindparam("tier"), jobs.c.taken_back_at.is_(None))
    .order_by(jobs.c.rank, jobs.c.id)
    .limit(bindparam("size"))
    .with_for_update(skip_locked=True)
)

_HELD_BEFORE = (
    select(jobs.c.id, jobs.c.crashes)
    .where(
        jobs.c.id.in_(select(_BACK.c.id).where(_BACK.c.batch_id == bindparam("batch"), *_BACK_AND_DUE)),
        jobs.c.state == JobState.QUEUED,
    )
    .order_by(jobs.c.crashes, jobs.c.id)
    .limit(bindparam("size"))
    .with_for_update(skip_locked=True)
)


def _due(c: Connection, queue: _Queue, batch_id: str, size: int) -> list[int]:
    """The next jobs by rank. One query a tier, each along the index: jobs that are held back cost nothing."""
    found: list[tuple[int, int]] = []
    given = {"batch": batch_id, "name": queue.name, "now": queue.now, "size": size}
    for tier in queue.tiers:
        found += [(row.rank, row.id) for row in c.execute(_DUE, given | {"tier": tier})]
    return [job_id for _, job_id in sorted(found)[:size]]


def _held_before(c: Connection, queue: _Queue, batch_id: str, size: int) -> list[int]:
    """Jobs that were in hand when a worker died, those of one count of crashes: fewer together after each.

    Up to the first crash any number of such slices is out, for most workers die of something else. From the second on
    a slice runs in no other's company (workers/line.py), and one of a class is out at a time.
    """
    given = {"batch": batch_id, "name": queue.name, "now": queue.now, "size": size, "tiers": list(queue.tiers)}
    rows = c.execute(_HELD_BEFORE, given).all()
    if not rows or (rows[0].crashes >= ALONE_CRASHES and _one_is_alone(c, queue.name)):
        return []
    alike = [row.id for row in rows if row.crashes == rows[0].crashes]
    return alike[: suspect_slice(rows[0].crashes, size)]


def _one_is_alone(c: Connection, name: str) -> bool:
    out = exists().where(IS_OUT, jobs.c.model_class == name, jobs.c.crashes >= ALONE_CRASHES)
    return bool(c.execute(select(out)).scalar())
