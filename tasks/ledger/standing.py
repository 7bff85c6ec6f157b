"""Where a batch stands: what it waits for, what is before and beside it, and how fast its classes go."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable
from typing import Any

from sqlalchemy import exists, func, select
from sqlalchemy.engine import Row

from tasks.eta import Ended, Lane, Waiting, most_jobs
from tasks.ledger.control import is_served
from tasks.ledger.database import Database
from tasks.ledger.retries import below
from tasks.states import ANSWERED, LIVE, BatchState, JobState
from tasks.tables import IS_OUT, Batch, CallRow, Dependency, Job

#: the newest calls that are looked at
CALLS = 20_000

batches = Batch.__table__  # type: ignore[attr-defined]
calls = CallRow.__table__  # type: ignore[attr-defined]
dependencies = Dependency.__table__  # type: ignore[attr-defined]
jobs = Job.__table__  # type: ignore[attr-defined]


def waits_for(db: Database, ids: Collection[str]) -> dict[str, list[Row[Any]]]:
    """Of these batches, those that wait for others: batch -> the rows of what it still waits for."""
    query = (
        select(dependencies.c.batch_id.label("waits"), batches)
        .join(batches, batches.c.id == dependencies.c.needs)
        .where(dependencies.c.batch_id.in_(ids), batches.c.state != BatchState.FINISHED)
        .order_by(batches.c.created_at, batches.c.id)
    )
    found: defaultdict[str, list[Row[Any]]] = defaultdict(list)
    with db.read() as c:
        for row in c.execute(query):
            found[row.waits].append(row)
    return dict(found)


def retries_of(db: Database, batch_id: str) -> list[Row[Any]]:
    """The acknowledged retries of a batch, and theirs."""
    with db.read() as c:
        return [row for row in below(c, batch_id) if row.state != BatchState.LOADING]


def waits_longer(db: Database, model_class: str, seconds: float) -> str | None:
    """A batch of which a due job of this class has waited for its turn longer than that; None where there is none.

    Batches that are paused, wait for others or did so lately, and the pool's own, wait as they should.
    """
    with db.read() as c:
        now = db.now(c)
        needed = batches.alias("lately")
        waited = exists().where(
            dependencies.c.batch_id == batches.c.id,
            needed.c.id == dependencies.c.needs,
            needed.c.finished_at >= now - seconds,
        )
        late = exists().where(
            jobs.c.batch_id == batches.c.id,
            jobs.c.model_class == model_class,
            jobs.c.state.in_((JobState.QUEUED, JobState.DISPATCHED)),
            jobs.c.queued_at < now - seconds,
            jobs.c.due_at <= now,
        )
        old = batches.c.state == BatchState.OPEN, batches.c.kind == "jobs", batches.c.touched_at < now - seconds
        query = select(batches.c.id).where(*old, is_served(), ~waited, late).order_by(batches.c.touched_at)
        found = c.execute(query.limit(1)).scalar()
    return None if found is None else str(found)


def lane(db: Database, batch_id: str, classes: Collection[str], capacity: int) -> Lane:
    """The lane that these classes are. capacity: calls at once of those who serve it."""
    names = sorted(classes)
    with db.read() as c:
        now = db.now(c)
        waiting = (
            select(jobs.c.batch_id, jobs.c.model_class, batches.c.priority, func.count().label("n"))
            .join(batches, batches.c.id == jobs.c.batch_id)
            .where(batches.c.state == BatchState.OPEN, is_served() | (batches.c.id == batch_id))
            .where(jobs.c.model_class.in_(names), jobs.c.state.in_(LIVE))
            .group_by(jobs.c.batch_id, jobs.c.model_class, batches.c.priority)
        )
        there = [Waiting(r.batch_id, r.model_class, r.priority, r.n) for r in c.execute(waiting)]
        running = select(func.min(jobs.c.started_at)).where(
            IS_OUT, jobs.c.state == JobState.RUNNING, jobs.c.model_class.in_(names)
        )
        newest = c.execute(select(func.max(calls.c.id))).scalar() or 0
        ended = (
            select(calls.c.job_id, calls.c.duration_ms, jobs.c.batch_id, jobs.c.model_class, jobs.c.finished_at)
            .join(jobs, jobs.c.id == calls.c.job_id)
            .where(calls.c.id > newest - CALLS, calls.c.model_class.in_(names), calls.c.stale.is_(False))
            .where(jobs.c.state.in_((*ANSWERED, JobState.FAILED)))
            .order_by(calls.c.id.desc())
            .limit(2 * most_jobs(capacity, there))  # a job may have needed several
        )
        return Lane(
            now=now,
            waiting=there,
            ended=_ended(c.execute(ended)),
            running_since=c.execute(running).scalar(),
            capacity=capacity,
        )


def _ended(rows: Iterable[Any]) -> list[Ended]:
    """One for each job, with the time of all its calls."""
    took: defaultdict[int, float] = defaultdict(float)
    last = {}
    for row in rows:
        took[row.job_id] += row.duration_ms / 1000
        last[row.job_id] = row
    found = [Ended(r.batch_id, r.model_class, r.finished_at, took[i]) for i, r in last.items()]
    return sorted(found, key=lambda job: -job.at)
