"""When each periodic service last ran."""

from __future__ import annotations

from typing import Any

from sqlalchemy import select, update

from tasks.ledger.database import Database, insert_new, retried
from tasks.tables import Tick

#: intervals without a sweep after which beat counts as gone
LATE_SWEEPS = 4
#: among the counts of a sweep: what is wrong with Redis
TROUBLE = "trouble"

ticks = Tick.__table__  # type: ignore[attr-defined]


@retried
def tick(db: Database, name: str, counts: dict[str, Any]) -> None:
    """A periodic service ran just now."""
    with db.write() as c:
        row = {"at": db.now(c), "counts": counts}
        if c.execute(update(ticks).where(ticks.c.name == name).values(**row)).rowcount == 0:
            insert_new(c, ticks, [{"name": name, **row}])


def ticked_at(db: Database, name: str) -> float | None:
    """When a periodic service last ran, in the database's unix seconds."""
    with db.read() as c:
        return c.execute(select(ticks.c.at).where(ticks.c.name == name)).scalar()


def broker_trouble(db: Database) -> str:
    """What the last sweep found wrong with Redis, in words; empty when it was well, or nobody swept."""
    return str(counted(db, "sweep")[1].get(TROUBLE, ""))


def last_tick(db: Database, name: str) -> float | None:
    """Seconds since a periodic service last ran, or None."""
    with db.read() as c:
        at = c.execute(select(ticks.c.at).where(ticks.c.name == name)).scalar()
        return None if at is None else db.now(c) - at


def counted(db: Database, name: str) -> tuple[float, dict[str, Any]]:
    """Seconds since a periodic service last ran, and what it counted; infinity and nothing where it never did."""
    with db.read() as c:
        row = c.execute(select(ticks).where(ticks.c.name == name)).first()
        return (float("inf"), {}) if row is None else (db.now(c) - row.at, row.counts)
