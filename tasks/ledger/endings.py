"""How batches end: jobs cancelled or expired in bounded steps, counters, and the closing of a batch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from sqlalchemy import Connection, and_, case, select, update
from sqlalchemy.engine import Row

from tasks.ledger import ticks
from tasks.ledger.database import Database, parts, retried
from tasks.ledger.events import tell
from tasks.notices import Kind, News
from tasks.privacy import Tier
from tasks.states import LIVE, TERMINAL, BatchState, JobState
from tasks.tables import Batch, Dependency, Job

#: rows one transaction may end; it bounds how long others wait for the write lock
CHUNK = 5_000

#: the error of a private job that found nobody at home
NO_LOCAL_SERVER = "no_local_server"

batches = Batch.__table__  # type: ignore[attr-defined]
dependencies = Dependency.__table__  # type: ignore[attr-defined]
jobs = Job.__table__  # type: ignore[attr-defined]


def count_ended(c: Connection, ended: Mapping[str, Counter[JobState]], now: float) -> None:
    """Add ended jobs to their batches' counters, and close the batches that have none left."""
    for batch_id, states in sorted(ended.items()):
        changes = {s.value: batches.c[s.value] + n for s, n in states.items() if s in TERMINAL}
        changes["open"] = batches.c.open - sum(states.values())
        c.execute(update(batches).where(batches.c.id == batch_id).values(changes))
    close_batches(c, list(ended), now)


def close_batches(c: Connection, ids: list[str], now: float) -> None:
    """Close those of the batches that are open and have no job left; tell the end of those whose end is to be told."""
    final = case((batches.c.cancelled_at.is_(None), BatchState.FINISHED), else_=BatchState.CANCELLED)
    closed = c.execute(
        update(batches)
        .where(batches.c.id.in_(ids), batches.c.state == BatchState.OPEN, batches.c.open == 0)
        .values(state=final, finished_at=now)
        .returning(batches)
    )
    tell(c, now, *(_over(row) for row in closed.all() if row.notify))


def _over(row: Row[Any]) -> News:
    detail = {"state": row.state, "done": row.done + row.escalated, "total": row.total}
    return News(Kind.BATCH_DONE, row.id, detail)


@retried
def cancel(db: Database, batch_id: str) -> int:
    """Cancel every job of an open batch that is not terminal; the count of jobs cancelled.

    Jobs in flight are cancelled too: their workers see it within a second and close the calls.
    Repeating it, or cancelling a batch that has ended, changes nothing.
    """
    with db.write() as c:
        c.execute(
            update(batches)
            .where(batches.c.id == batch_id, batches.c.state == BatchState.OPEN, batches.c.cancelled_at.is_(None))
            .values(cancelled_at=db.now(c))
        )
    return end_all(db, batch_id, JobState.CANCELLED)


def end_all(db: Database, batch_id: str, state: JobState) -> int:
    """Bring every live job of an open batch to a terminal state, in steps of CHUNK; the count of jobs ended."""
    total, line = 0, 0
    while True:  # one way through the lines is enough: what is behind is terminal and stays so
        ended, line = _end_some(db, batch_id, state, line)
        total += ended
        if ended < CHUNK:
            return total


@retried
def _end_some(db: Database, batch_id: str, state: JobState, after: int) -> tuple[int, int]:
    """End the next live jobs behind a line; how many, and the last one's line."""
    with db.write() as c:
        now = db.now(c)
        if c.execute(select(batches.c.state).where(batches.c.id == batch_id)).scalar() != BatchState.OPEN:
            return 0, after
        next_ones = (
            select(jobs.c.id, jobs.c.line, jobs.c.model_class)
            .where(jobs.c.batch_id == batch_id, jobs.c.line > after, jobs.c.state.in_(LIVE))
            .order_by(jobs.c.line)
            .limit(CHUNK)
            .with_for_update()
        )
        rows = c.execute(next_ones).all()
        ids = [row.id for row in rows]
        code, reason = _why(c, batch_id, state)
        for some in parts(ids):
            c.execute(
                update(jobs)
                .where(jobs.c.id.in_(some), jobs.c.state.in_(LIVE))
                .values(
                    state=state,
                    finished_at=now,
                    slice_id=None,
                    lease_until=None,
                    error_code=code,
                    error_message=reason,
                )
            )
        count_ended(c, {batch_id: Counter({state: len(ids)})}, now)
        if rows:
            ticks.add(c, now, ticks.ENDED, Counter(f"{state} {row.model_class}" for row in rows))
        return len(ids), rows[-1].line if rows else after


def _why(c: Connection, batch_id: str, state: JobState) -> tuple[Any, Any]:
    """The error of a job that ends like this: code and message."""
    if state is JobState.CANCELLED:
        needed = (
            select(batches.c.id)
            .join(dependencies, dependencies.c.needs == batches.c.id)
            .where(dependencies.c.batch_id == batch_id, batches.c.cancelled_at.is_not(None))
            .order_by(batches.c.id)
        )
        lost = c.execute(needed.limit(1)).scalar()
        return state.value, f"batch {lost}, which it depends on, was cancelled" if lost else "the batch was cancelled"
    homeless = and_(jobs.c.tier == Tier.LOCAL_ONLY, jobs.c.fence == 0)  # nobody ever claimed it
    return (
        case((homeless, NO_LOCAL_SERVER), else_=state.value),
        case(
            (homeless, "it is local_only, and no local server took it before its deadline"),
            else_="its deadline passed before it was done",
        ),
    )
