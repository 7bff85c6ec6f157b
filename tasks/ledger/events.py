"""What people should know: alerts, each said once in a while and not at every look."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import exists, insert, select
from sqlalchemy.engine import Row

from tasks.ledger.database import Database
from tasks.tables import Event

#: seconds in which the same alert is not repeated
QUIET_S = 300.0
#: an alert's kind: Redis takes no messages
BROKER = "broker"

events = Event.__table__  # type: ignore[attr-defined]


def alert(db: Database, kind: str, subject: str, detail: dict[str, Any]) -> bool:
    """Write an event, unless one of this kind and subject is younger than QUIET_S; whether it was written."""
    with db.write() as c:
        now = db.now(c)
        lately = exists().where(events.c.kind == kind, events.c.subject == subject, events.c.at > now - QUIET_S)
        if c.execute(select(lately)).scalar():
            return False
        c.execute(insert(events).values(at=now, kind=kind, subject=subject, detail=detail))
    return True


def lately(db: Database, kind: str, within_s: float) -> Sequence[Row[Any]]:
    """The events of a kind of the last `within_s` seconds, the newest first."""
    with db.read() as c:
        query = select(events).where(events.c.kind == kind, events.c.at > db.now(c) - within_s)
        return c.execute(query.order_by(events.c.id.desc())).all()
