"""The outbox: events become notices, and each notice is sent by whoever holds its lease.

    waiting ──► sent
       └──────► failed      for a day nobody took it

A notice is sent outside any transaction and marked after it: who dies in between leaves a lease, and when that is over
the notice is sent again.  So it is sent at least once, and mostly once.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import ColumnElement, Connection, Table, and_, delete, func, insert, or_, select, update
from sqlalchemy.engine import Row

from tasks.ledger.database import NOTICE_LOCK, Database, locked, parts, retried
from tasks.notices import Kind, News, Told, placed
from tasks.tables import IS_NEWS, IS_WAITING, Event, Notice

#: events that one transaction makes notices of
CHUNK = 1_000
#: seconds that whoever sends a notice has for it, several times what a delivery may take
LEASE_S = 30.0
#: seconds before a notice's second try; doubles with each, up to the most
RETRY_FIRST_S, RETRY_MOST_S = 10.0, 3_600.0
#: seconds after the last news in it after which a notice that nobody takes is given up
GIVE_UP_S = 24 * 3600.0
#: seconds that notices which were sent or given up are kept, and the events that they are made of
KEPT_S = 30 * 24 * 3600.0

events = Event.__table__  # type: ignore[attr-defined]
notices = Notice.__table__  # type: ignore[attr-defined]

WAITING, SENT, FAILED = "waiting", "sent", "failed"


def make(db: Database, receivers: Sequence[str], quiet_s: float) -> int:
    """Make notices of all that is news, for each receiver; the count of events. Without receivers it is told nobody."""
    total = 0
    while done := _make_some(db, receivers, quiet_s):
        total += done
        if done < CHUNK:
            break
    return total


@retried
def _make_some(db: Database, receivers: Sequence[str], quiet_s: float) -> int:
    with db.write() as c:
        db.alone(c, NOTICE_LOCK)
        now = db.now(c)
        rows = c.execute(select(events).where(IS_NEWS).order_by(events.c.id).limit(CHUNK)).all()
        news = [News(r.kind, r.subject, r.detail, r.times, r.at, r.at) for r in rows]
        for receiver in receivers if news else ():
            _add(c, receiver, news, now, quiet_s)
        for some in parts([row.id for row in rows]):
            c.execute(update(events).where(events.c.id.in_(some)).values(noticed=True))
    return len(rows)


def _add(c: Connection, receiver: str, news: Sequence[News], now: float, quiet_s: float) -> None:
    for place in placed(news, _told(c, receiver, now, quiet_s), now, quiet_s):
        one = place.news
        values = {"detail": dict(one.detail), "last_at": one.last_at}
        if place.into is not None:
            more = {"times": notices.c.times + one.times}
            c.execute(update(notices).where(notices.c.id == place.into).values(**values, **more))
            continue
        values |= {"receiver": receiver, "kind": one.kind, "subject": one.subject, "times": one.times}
        times = {"first_at": one.first_at, "made_at": now, "due_at": place.due_at}
        c.execute(insert(notices).values(**values, **times))


def _told(c: Connection, receiver: str, now: float, quiet_s: float) -> list[Told]:
    """What a receiver is about to be told, or was within the quiet time."""
    mine = notices.c.receiver == receiver
    waiting = select(notices).where(mine, IS_WAITING).with_for_update()  # whoever claims one waits, or we do
    lately = select(notices).where(mine, notices.c.state == SENT, notices.c.sent_at > now - quiet_s)
    rows = sorted([*c.execute(waiting.order_by(notices.c.id)), *c.execute(lately)], key=lambda row: row.id)
    return [
        Told(
            row.id,
            row.kind,
            row.subject,
            row.made_at,
            open=row.state == WAITING and (row.lease_until is None or row.lease_until <= now),
            sent_at=row.sent_at,
        )
        for row in rows
    ]


@retried
def claim(db: Database, receiver: str) -> Row[Any] | None:
    """The next notice that is due for a receiver, leased to the caller for LEASE_S; None where there is none."""
    with db.write() as c:
        now = db.now(c)
        due = (
            select(notices.c.id)
            .where(notices.c.receiver == receiver, IS_WAITING, notices.c.due_at <= now)
            .where(or_(notices.c.lease_until.is_(None), notices.c.lease_until <= now))
            .order_by(notices.c.tries, notices.c.due_at, notices.c.id)  # one that is never taken stands in nobody's way
            .limit(1)
            .with_for_update(skip_locked=True)
        )
        found = c.execute(due).scalar()
        values = {"lease_until": now + LEASE_S, "tries": notices.c.tries + 1}
        claimed = update(notices).where(notices.c.id == found).values(**values).returning(notices)
        return None if found is None else c.execute(claimed).one()


@retried
def sent(db: Database, notice: Row[Any], answer: str) -> None:
    """A receiver took it."""
    with db.write() as c:
        values = {"state": SENT, "sent_at": db.now(c), "lease_until": None, "answer": answer}
        c.execute(update(notices).where(notices.c.id == notice.id).values(values))


@retried
def put_off(db: Database, notice: Row[Any], answer: str) -> None:
    """A receiver did not take it: it is due again later, each time twice as late, and nothing for it is due before."""
    delay = min(RETRY_MOST_S, RETRY_FIRST_S * 2 ** min(notice.tries - 1, 30))
    with db.write() as c:
        due_at = db.now(c) + delay
        mine = notices.c.id == notice.id, notices.c.state == WAITING, notices.c.tries == notice.tries
        c.execute(update(notices).where(*mine).values(due_at=due_at, lease_until=None, answer=answer))
        sooner = notices.c.receiver == notice.receiver, IS_WAITING, notices.c.due_at < due_at
        ids = locked(c, notices.c.id, *sooner, notices.c.lease_until.is_(None), skip=True)
        c.execute(update(notices).where(notices.c.id.in_(ids)).values(due_at=due_at))


@retried
def give_up(db: Database) -> int:
    """Give up what nobody took for a day; how many."""
    with db.write() as c:
        old = IS_WAITING, notices.c.last_at <= db.now(c) - GIVE_UP_S
        return c.execute(update(notices).where(*old).values(state=FAILED, lease_until=None)).rowcount


def prune(db: Database) -> int:
    """Delete old notices, and old events but for the audit's alarms, which its report shows; how many of both."""
    with db.read() as c:
        before = db.now(c) - KEPT_S
    over = notices.c.state != WAITING, notices.c.last_at < before
    old = events.c.noticed, events.c.at < before, events.c.kind != Kind.AUDIT_ALARM
    return _prune(db, notices, notices.c.made_at < before, over) + _prune(db, events, events.c.at < before, old)


def _prune(db: Database, table: Table, aged: ColumnElement[bool], over: Sequence[ColumnElement[bool]]) -> int:
    """Delete what is `over`, CHUNK rows a transaction, from the oldest on to the first CHUNK of which none has aged."""
    total, after = 0, 0
    while True:
        with db.read() as c:
            some = select(table.c.id, aged.label("aged")).where(table.c.id > after).order_by(table.c.id).limit(CHUNK)
            rows = c.execute(some).all()
        if not any(row.aged for row in rows):
            return total
        total += _delete(db, table, after, rows[-1].id, over)
        after = rows[-1].id


@retried
def _delete(db: Database, table: Table, after: int, to: int, over: Sequence[ColumnElement[bool]]) -> int:
    with db.write(durable=False) as c:
        return c.execute(delete(table).where(table.c.id > after, table.c.id <= to, *over)).rowcount


# --- reading ---------------------------------------------------------------------------------------------


def listed(db: Database, limit: int) -> list[Row[Any]]:
    """The newest notices first."""
    with db.read() as c:
        return list(c.execute(select(notices).order_by(notices.c.id.desc()).limit(limit)).all())


def troubles(db: Database) -> dict[str, tuple[int, str]]:
    """receiver -> how many notices of the last day it did not take, and its newest answer."""
    refused = or_(notices.c.state == FAILED, and_(notices.c.state == WAITING, notices.c.answer.is_not(None)))
    with db.read() as c:
        query = select(notices).where(refused, notices.c.last_at > db.now(c) - 2 * GIVE_UP_S).order_by(notices.c.id)
        found: dict[str, tuple[int, str]] = {}
        for row in c.execute(query):
            found[row.receiver] = (found.get(row.receiver, (0, ""))[0] + 1, row.answer or "nobody sent it")
        return found


def last_sent(db: Database) -> dict[str, float]:
    """receiver -> seconds since it took a notice."""
    with db.read() as c:
        now = db.now(c)
        query = select(notices.c.receiver, func.max(notices.c.sent_at)).group_by(notices.c.receiver)
        return {receiver: now - at for receiver, at in c.execute(query).all() if at is not None}
