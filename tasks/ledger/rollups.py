"""Summing hours: each as a whole from the calls that are there, in one transaction, as often as it takes.

An hour is due when a call of it was recorded since the last run, whatever the clock says by then: a late call, a missed
hour and the present one are found alike.  Ids are given out before their commits, so a run looks again at all that the
last one saw; only what that saw SETTLED_S ago or earlier is settled once this one is done.  Calls are only ever added
to an hour, so of two sums the one of more calls is newer, and an older one is not written over it: two beats may do the
same hour at once.

    calls arrive ──► due ──► summed ──► … ──► pruned: closed for good; what comes later is dropped with the next prune
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from sqlalchemy import (
    Boolean,
    Connection,
    Integer,
    and_,
    case,
    delete,
    func,
    insert,
    literal,
    or_,
    select,
    type_coerce,
    update,
)
from sqlalchemy.engine import Row
from sqlalchemy.sql.elements import ColumnElement

from tasks.auditing import Opinion
from tasks.cursors import SETTLED_S
from tasks.ledger import ticks
from tasks.ledger.database import Database, insert_new, retried
from tasks.rollups import FIGURES, HOUR_S, KEY, Summary, hour_of, summed
from tasks.routing import Decision
from tasks.tables import Audit, CallRow, Job, RolledHour, Rollup

#: rows fetched at once, and deleted in one transaction
PAGE, CHUNK = 10_000, 5_000
#: the name of its tick
TICK = "rollup"

audits = Audit.__table__  # type: ignore[attr-defined]
calls = CallRow.__table__  # type: ignore[attr-defined]
hours = RolledHour.__table__  # type: ignore[attr-defined]
jobs = Job.__table__  # type: ignore[attr-defined]
rollups = Rollup.__table__  # type: ignore[attr-defined]

#: a call's part of the key
_KEYS: dict[str, ColumnElement[Any]] = {
    **{name: calls.c[name] for name in KEY if name != "model"},
    "model": func.coalesce(calls.c.model_served, calls.c.model_asked),
    "hour": calls.c.hour,
}

#: when a call ended, unix seconds
_ended_at: ColumnElement[Any] = calls.c.started_at + calls.c.duration_ms / 1000

Sums = dict[tuple[Any, ...], Summary]


def sums(db: Database, by: Sequence[str], *which: ColumnElement[bool]) -> tuple[int, Sums]:
    """How many rows of `calls` there are, and their sums by parts of the key (or `hour`); one look at the table."""
    columns = [_KEYS[name] for name in by] + [_figure(name) for name in FIGURES]
    with db.read() as c:
        rows = c.execution_options(yield_per=PAGE).execute(select(*columns).where(*which))
        return summed(rows.partitions(), len(by))


def _figure(name: str) -> ColumnElement[Any]:
    """A column as it is read: a truth value of SQLite may stay the number that it is, which saves a tenth."""
    column: ColumnElement[Any] = calls.c[name]
    return type_coerce(column, Integer) if isinstance(column.type, Boolean) else column


def since(at: float) -> ColumnElement[bool]:
    """The condition that a call ended at a unix time or later."""
    return and_(calls.c.hour >= hour_of(at), or_(calls.c.hour > hour_of(at), _ended_at >= at))


def live(db: Database, since_at: float, until: float) -> Sums:
    """The sums by key of what ended between two unix times, audits included, as an hour's rollups would have them."""
    last = hour_of(until)
    end = or_(calls.c.hour < last, and_(calls.c.hour == last, _ended_at < until))
    _, found = sums(db, KEY, since(since_at), end)
    with db.read() as c:
        _add_audits(found, _judged(c, since_at, until))
    return found


def within(hour: int) -> ColumnElement[bool]:
    """The condition that a call is of an hour."""
    condition: ColumnElement[bool] = calls.c.hour == hour
    return condition


# --- summing ---------------------------------------------------------------------------------------------


def due(db: Database) -> tuple[list[int], dict[str, int]]:
    """The hours that are to be summed, the oldest first; and what `done` is to be told once they are."""
    ago, before = ticks.counted(db, TICK)
    settled = before.get("settled", 0)
    with db.read() as c:
        newest = c.execute(select(func.max(calls.c.id))).scalar() or 0
        found = set(c.execute(select(calls.c.hour).where(calls.c.id > settled).distinct()).scalars())
        found |= set(c.execute(select(hours.c.hour).where(hours.c.dirty)).scalars())
        closed = select(hours.c.hour).where(hours.c.closed_at.is_not(None), hours.c.hour.in_(found))
        seen = {"settled": before.get("newest", 0) if ago >= SETTLED_S else settled, "newest": newest}
        return sorted(found - set(c.execute(closed).scalars())), seen


def done(db: Database, seen: dict[str, int], counts: dict[str, int]) -> None:
    """Every hour that was due is summed."""
    ticks.tick(db, TICK, counts | seen)


def roll_up(db: Database, hour: int) -> bool:
    """Sum an hour; whether that changed anything. One that is closed stays as it is."""
    with db.read() as c:
        row = c.execute(select(hours).where(hours.c.hour == hour)).first()
        if row is not None and (row.closed_at is not None or _is_whole(c, row)):
            return False
    n, found = sums(db, KEY, within(hour))
    return _write(db, hour, n, found)


def _is_whole(c: Connection, row: Row[Any]) -> bool:
    """Whether an hour's sums are those of all its calls and audits."""
    there = c.execute(select(func.count()).select_from(calls).where(calls.c.hour == row.hour)).scalar()
    return row.rolled_at is not None and not row.dirty and row.calls == there


@retried
def _write(db: Database, hour: int, n: int, found: Sums) -> bool:
    with _held(db, hour) as (c, row):
        if row.closed_at is not None or row.calls > n:  # somebody summed more of it, or the last there is
            return False
        _add_audits(found, _judged(c, hour * HOUR_S, (hour + 1) * HOUR_S))
        c.execute(delete(rollups).where(rollups.c.hour == hour))
        rows = [{"hour": hour, **dict(zip(KEY, key, strict=True)), **s.columns()} for key, s in sorted(found.items())]
        for start in range(0, len(rows), CHUNK):
            c.execute(insert(rollups), rows[start : start + CHUNK])
        values = {"calls": n, "dirty": False, "rolled_at": db.now(c)}
        c.execute(update(hours).where(hours.c.hour == hour).values(values))
    return True


@contextmanager
def _held(db: Database, hour: int) -> Iterator[tuple[Connection, Row[Any]]]:
    """A transaction that holds an hour's row."""
    with db.write() as c:
        insert_new(c, hours, [{"hour": hour, "calls": 0, "dirty": True}])
        yield c, c.execute(select(hours).where(hours.c.hour == hour).with_for_update()).one()


def _add_audits(found: Sums, judged: dict[tuple[Any, ...], tuple[int, int]]) -> None:
    for key, (n, agreed) in judged.items():
        summary = found.setdefault(key, Summary())
        summary.audits, summary.audits_agreed = n, agreed


def _judged(c: Connection, since_at: float, until: float) -> dict[tuple[Any, ...], tuple[int, int]]:
    """Of the audits first judged in a time, by the key of the jobs they are of: how many, and how many agree."""
    agrees = case((audits.c.verdict == Opinion.AGREE.value, 1), else_=0)
    key: dict[str, ColumnElement[Any]] = {
        **{name: audits.c[name] for name in ("category", "model_class", "model")},
        **{name: func.coalesce(jobs.c[name], "") for name in ("provider", "node", "app")},
        "decision": literal(Decision.OFFLOAD.value),  # only what local models did is audited
    }
    columns = [key[name] for name in KEY]
    query: Any = (
        select(*columns, func.count(), func.sum(agrees))
        .join(jobs, jobs.c.id == audits.c.job_id)
        .where(audits.c.verdict.in_((Opinion.AGREE.value, Opinion.DISAGREE.value)))
        .where(audits.c.judged_at >= since_at, audits.c.judged_at < until)
        .group_by(*columns)
    )
    return {tuple(row[:-2]): (int(row[-2]), int(row[-1])) for row in c.execute(query)}


def audit_judged(c: Connection, at: float) -> None:
    """An audit was judged at a unix time, or again: that hour's sums are no longer right."""
    hour = hour_of(at)
    insert_new(c, hours, [{"hour": hour, "calls": 0, "dirty": True}])
    c.execute(update(hours).where(hours.c.hour == hour, hours.c.closed_at.is_(None)).values(dirty=True))


# --- reading ---------------------------------------------------------------------------------------------


def of_hour(db: Database, hour: int) -> list[Row[Any]]:
    """An hour's rollups, the key with the most calls first."""
    with db.read() as c:
        query = select(rollups).where(rollups.c.hour == hour).order_by(rollups.c.calls.desc(), *rollups.primary_key)
        return list(c.execute(query).all())


def newest_hour(db: Database) -> int | None:
    """The newest hour that is summed and has something in it."""
    with db.read() as c:
        return c.execute(select(func.max(rollups.c.hour))).scalar()


def ended_by_hour(db: Database, first: int) -> dict[int, int]:
    """How many jobs ended in each hour from `first` on, by the calls that are there."""
    with db.read() as c:
        ended = calls.c.hour >= first, calls.c.ended.is_not(None)
        query = select(calls.c.hour, func.count()).where(*ended).group_by(calls.c.hour)
        return dict(c.execute(query).all())


# --- pruning ---------------------------------------------------------------------------------------------


def prune(db: Database, days: float) -> dict[str, int]:
    """Delete the calls of whole hours that ended `days` ago or earlier; counts `hours` closed, and `calls`.

    Each hour is summed a last time and closed before its first call goes, so a prune that was cut short goes on. The
    newest row stays: SQLite would give its id out again.
    """
    counts = {"hours": 0, "calls": 0}
    with db.read() as c:
        newest = c.execute(select(func.max(calls.c.id))).scalar() or 0
        old = calls.c.hour < hour_of(db.now(c) - days * 24 * HOUR_S), calls.c.id < newest
        found = sorted(c.execute(select(calls.c.hour).where(*old).distinct()).scalars())
    for hour in found:
        counts["hours"] += close(db, hour)
        while deleted := _delete_some(db, hour, newest):
            counts["calls"] += deleted
    return counts


def close(db: Database, hour: int) -> bool:
    """Sum an hour a last time, and close it; False where it was closed before."""
    while True:
        roll_up(db, hour)
        with _held(db, hour) as (c, row):
            if row.closed_at is not None:
                return False
            if _is_whole(c, row):
                c.execute(update(hours).where(hours.c.hour == hour).values(closed_at=db.now(c)))
                return True


@retried
def _delete_some(db: Database, hour: int, newest: int) -> int:
    with db.write(durable=False) as c:
        some = select(calls.c.id).where(calls.c.hour == hour, calls.c.id < newest).limit(CHUNK)
        return c.execute(delete(calls).where(calls.c.id.in_(some))).rowcount
