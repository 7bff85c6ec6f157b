"""What came since somebody last looked, each row once: calls by their ids, audits by when they were judged."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from sqlalchemy import Connection, func, or_, select
from sqlalchemy.engine import Row
from sqlalchemy.sql.elements import ColumnElement

from tasks.cursors import LOOK_BACK, Cursor, Recent, beginning
from tasks.ledger.database import Database
from tasks.tables import Audit, CallRow

#: rows read at once
PAGE = 5_000
#: gaps one statement names
GAPS = 100

audits = Audit.__table__  # type: ignore[attr-defined]
calls = CallRow.__table__  # type: ignore[attr-defined]

#: what telemetry counts of a call
COLUMNS = (
    calls.c.id,
    calls.c.job_id,
    calls.c.category,
    calls.c.model_class,
    calls.c.provider,
    calls.c.model_asked,
    calls.c.decision,
    calls.c.sent,
    calls.c.stale,
    calls.c.ended,
    calls.c.error_code,
    calls.c.tokens_in,
    calls.c.tokens_out,
    calls.c.tokens_thinking,
    calls.c.cost_usd,
    calls.c.avoided_usd,
    calls.c.queue_ms,
    calls.c.first_token_ms,
    calls.c.duration_ms,
)


def begin(db: Database, now: float) -> Cursor:
    """A cursor behind the calls that are there. now: seconds of a clock that only grows."""
    with db.read() as c:
        newest = _newest(c)
        there = select(calls.c.id).where(calls.c.id > newest - LOOK_BACK, calls.c.id <= newest).order_by(calls.c.id)
        return beginning(newest, c.execute(there).scalars(), now)


def new_calls(db: Database, cursor: Cursor, now: float) -> Iterator[tuple[Sequence[Row[Any]], Cursor]]:
    """Pages of calls that the cursor has not seen, each with the cursor behind it.

    A ledger whose ids begin again, restored from a backup, say, is read from where it stands.
    """
    with db.read() as c:
        if _newest(c) < cursor.newest:
            yield [], begin(db, now)
            return
    gaps = cursor.gaps
    for start in range(0, len(gaps), GAPS):
        in_gaps = or_(*(calls.c.id.between(gap.first, gap.last) for gap in gaps[start : start + GAPS]))
        for rows in _pages(db, in_gaps, 0):
            cursor = cursor.moved([row.id for row in rows], now)
            yield rows, cursor
    for rows in _pages(db, calls.c.id > cursor.newest, cursor.newest):
        cursor = cursor.moved([row.id for row in rows], now)
        yield rows, cursor


def _pages(db: Database, which: ColumnElement[bool], after: int) -> Iterator[Sequence[Row[Any]]]:
    while True:
        with db.read() as c:
            query: Any = select(*COLUMNS).where(which, calls.c.id > after).order_by(calls.c.id).limit(PAGE)
            rows: Sequence[Row[Any]] = c.execute(query).all()
        if rows:
            yield rows
            after = rows[-1].id
        if len(rows) < PAGE:
            return


def _newest(c: Connection) -> int:
    return c.execute(select(func.max(calls.c.id))).scalar() or 0


def begin_judged(db: Database) -> Recent:
    """Behind the audits that are judged."""
    with db.read() as c:
        now = db.now(c)
        first = Recent(now)
        return first.moved(_judged(c, first.since(now)), now)[1]


def newly_judged(db: Database, seen: Recent) -> tuple[list[Row[Any]], Recent]:
    """Audits judged for the first time since then: id, category, verdict, time."""
    with db.read() as c:
        now = db.now(c)
        return seen.moved(_judged(c, seen.since(now)), now)


def _judged(c: Connection, since: float) -> Sequence[Row[Any]]:
    query = select(audits.c.id, audits.c.category, audits.c.verdict, audits.c.judged_at)
    return c.execute(query.where(audits.c.judged_at >= since, audits.c.verdict.is_not(None))).all()
