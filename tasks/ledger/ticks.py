"""When each periodic service last ran, and totals that only grow, for whoever watches the difference."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sqlalchemy import Connection, select, update

from tasks.ledger.database import Database, insert_new, retried
from tasks.tables import Tick

#: intervals without a sweep after which beat counts as gone
LATE_SWEEPS = 4
#: among the counts of a sweep: what is wrong with Redis
TROUBLE = "trouble"
#: among the counts: name -> total since the ledger was made
TOTALS = "totals"
#: the row whose totals are jobs that ended without a call row, as `state class`; no service, it is never late
ENDED = "ended"

ticks = Tick.__table__  # type: ignore[attr-defined]


@retried
def tick(db: Database, name: str, counts: dict[str, Any], more: Mapping[str, int] | None = None) -> None:
    """A periodic service ran just now. more: is added to its totals, which are kept from tick to tick."""
    with db.write() as c:
        row = {"at": db.now(c), "counts": counts | {TOTALS: _grown(c, name, more)} if more else counts}
        if c.execute(update(ticks).where(ticks.c.name == name).values(**row)).rowcount == 0:
            insert_new(c, ticks, [{"name": name, **row}])


def add(c: Connection, now: float, name: str, more: Mapping[str, int]) -> None:
    """Add to totals in a transaction that does other things, as the last of them: others wait for the row."""
    counts = {TOTALS: _grown(c, name, more)}
    c.execute(update(ticks).where(ticks.c.name == name).values(at=now, counts=counts))


def _grown(c: Connection, name: str, more: Mapping[str, int]) -> dict[str, int]:
    """The totals with these added; their row is there, and locked."""
    insert_new(c, ticks, [{"name": name, "at": 0.0, "counts": {}}])
    counts = c.execute(select(ticks.c.counts).where(ticks.c.name == name).with_for_update()).scalar_one()
    before: dict[str, int] = counts.get(TOTALS, {})
    return before | {key: before.get(key, 0) + n for key, n in more.items()}


def all_ticks(c: Connection) -> dict[str, tuple[float, dict[str, int]]]:
    """Of every service: when it last ran, in the database's unix seconds, and its totals."""
    rows = c.execute(select(ticks.c.name, ticks.c.at, ticks.c.counts)).all()
    return {row.name: (row.at, row.counts.get(TOTALS, {})) for row in rows}


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
