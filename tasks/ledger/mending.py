"""Repairs of a damaged ledger, each one transaction that is right whatever others do meanwhile; see `invariants`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection

from sqlalchemy import exists, func, null, select, update

from tasks.ledger.database import Database, locked, parts, retried
from tasks.ledger.endings import close_batches
from tasks.states import LIVE, TERMINAL, BatchState, JobState
from tasks.tables import Batch, Job, Slice

batches = Batch.__table__  # type: ignore[attr-defined]
jobs = Job.__table__  # type: ignore[attr-defined]
slices = Slice.__table__  # type: ignore[attr-defined]


@retried
def recount(db: Database, batch_id: str) -> None:
    """Make a batch's counters and state what its jobs say; one that ended too early is opened again."""
    with db.write() as c:
        now = db.now(c)
        # whoever ends jobs meanwhile waits for this row, and changes what we write
        row = c.execute(select(batches.c.state).where(batches.c.id == batch_id).with_for_update()).first()
        if row is None:
            return
        query = select(jobs.c.state, func.count().label("n")).where(jobs.c.batch_id == batch_id).group_by(jobs.c.state)
        states = Counter({row.state: row.n for row in c.execute(query)})
        live = sum(states[s] for s in LIVE)
        values = {s.value: states[s] for s in TERMINAL} | {"total": states.total(), "open": live}
        c.execute(update(batches).where(batches.c.id == batch_id).values(values))
        over = batches.c.state.in_((BatchState.FINISHED, BatchState.CANCELLED))
        if live:
            again = update(batches).where(batches.c.id == batch_id, over)
            c.execute(again.values(state=BatchState.OPEN, finished_at=None))
        else:
            close_batches(c, [batch_id], now)
            timeless = update(batches).where(batches.c.id == batch_id, over, batches.c.finished_at.is_(None))
            c.execute(timeless.values(finished_at=now))
        timed = update(batches).where(batches.c.id == batch_id, ~over)
        c.execute(timed.values(finished_at=None))


def bring_back(db: Database, ids: Collection[int]) -> int:
    """Jobs that were sent in a slice that is not there wait again, leases that have no end are over; how many."""
    return sum(_bring_back(db, some) for some in parts(sorted(ids)))


@retried
def _bring_back(db: Database, ids: Collection[int]) -> int:
    with db.write() as c:
        mine = locked(c, jobs.c.id, jobs.c.id.in_(ids), jobs.c.state.in_(LIVE))
        these = jobs.c.id.in_(mine)
        there = exists().where(slices.c.id == jobs.c.slice_id)
        sent = update(jobs).where(these, jobs.c.state == JobState.DISPATCHED, ~there)
        back = c.execute(sent.values(state=JobState.QUEUED, slice_id=null())).rowcount
        kept = update(jobs).where(these, jobs.c.state != JobState.DISPATCHED, jobs.c.slice_id.is_not(None))
        back += c.execute(kept.values(slice_id=null())).rowcount
        leaseless = update(jobs).where(these, jobs.c.state == JobState.RUNNING, jobs.c.lease_until.is_(None))
        back += c.execute(leaseless.values(lease_until=db.now(c))).rowcount  # the sweep takes it back
        leased = update(jobs).where(these, jobs.c.state != JobState.RUNNING, jobs.c.lease_until.is_not(None))
        return back + c.execute(leased.values(lease_until=null())).rowcount
