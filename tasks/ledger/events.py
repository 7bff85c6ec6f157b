"""What happened that people should know, written in the commit that makes it true; notices are made of it later."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import Connection, insert, update

from tasks.ledger.database import NOTICE_LOCK, Database, insert_new, retried
from tasks.notices import News
from tasks.tables import Event, Tick

events = Event.__table__  # type: ignore[attr-defined]
ticks = Tick.__table__  # type: ignore[attr-defined]


def tell(c: Connection, now: float, *news: News) -> None:
    """Write what happens in this transaction."""
    if news:
        rows = [
            {"at": now, "kind": n.kind, "subject": n.subject, "detail": dict(n.detail), "times": n.times} for n in news
        ]
        c.execute(insert(events), rows)


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
