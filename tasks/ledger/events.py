"""What happened that people should know, written in the commit that makes it true; notices are made of it later."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import Connection, exists, insert, select, update
from sqlalchemy.engine import Row

from tasks.ledger.database import NOTICE_LOCK, Database, insert_new, retried
from tasks.notices import Kind, News
from tasks.tables import Event, Tick

#: seconds in which the same alert is not repeated
QUIET_S = 300.0
#: an alert's kind: Redis takes no messages
BROKER = Kind.BROKER.value

events = Event.__table__  # type: ignore[attr-defined]
ticks = Tick.__table__  # type: ignore[attr-defined]


def tell(c: Connection, now: float, *news: News) -> None:
    """Write what happens in this transaction."""
    if news:
        rows = [
            {"at": now, "kind": n.kind, "subject": n.subject, "detail": dict(n.detail), "times": n.times} for n in news
        ]
        c.execute(insert(events), rows)


def alert(db: Database, kind: str, subject: str, detail: dict[str, Any]) -> bool:
    """Write an event, unless one of this kind and subject is younger than QUIET_S; whether it was written."""
    with db.write() as c:
        now = db.now(c)
        lately = exists().where(events.c.kind == kind, events.c.subject == subject, events.c.at > now - QUIET_S)
        if c.execute(select(lately)).scalar():
            return False
        tell(c, now, News(kind, subject, detail))
    return True


def lately(db: Database, kind: str, within_s: float) -> Sequence[Row[Any]]:
    """The events of a kind of the last `within_s` seconds, the newest first."""
    with db.read() as c:
        query = select(events).where(events.c.kind == kind, events.c.at > db.now(c) - within_s)
        return c.execute(query.order_by(events.c.id.desc())).all()


@retried
def tell_changes(db: Database, watch: str, before_at: float | None, state: dict[str, Any], news: Sequence[News]) -> int:
    """Write what changed since a watch looked at `before_at`, and what it sees now; the count of news.

    0 where another process has looked since then: what it saw is newer.
    """
    with db.write() as c:
        db.alone(c, NOTICE_LOCK)
        now = db.now(c)
        insert_new(c, ticks, [{"name": watch, "at": now, "counts": {}}] if before_at is None else [])
        mine = ticks.c.name == watch, ticks.c.at == (now if before_at is None else before_at)
        if c.execute(update(ticks).where(*mine).values(at=now, counts=state)).rowcount == 0:
            return 0
        tell(c, now, *news)
    return len(news)
