"""Claiming and holding: a slice's jobs become running under a new fence and a lease that is renewed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Float, case, cast, delete, exists, null, select, update
from sqlalchemy.engine import Row

from tasks.errors import StaleWorker
from tasks.ledger.database import Database, insert_new, locked, parts, retried
from tasks.ledger.schema import check, revision_in
from tasks.states import BatchState, JobState
from tasks.tables import AT_ONCE, IS_OUT, Batch, Body, Job, Slice, Worker
from tasks.validation import clean

batches = Batch.__table__  # type: ignore[attr-defined]
bodies = Body.__table__  # type: ignore[attr-defined]
jobs = Job.__table__  # type: ignore[attr-defined]
slices = Slice.__table__  # type: ignore[attr-defined]
workers = Worker.__table__  # type: ignore[attr-defined]


#: crashes from which on a job runs in no other slice's company (workers/line.py)
ALONE_CRASHES = 2


@dataclass(frozen=True)
class Identity:
    """A worker process: `run_id` is new with every start, so that an older one can be told apart."""

    node: str
    provider: str
    run_id: str
    pid: int

    @property
    def name(self) -> str:
        """How the ledger and Celery call it."""
        return f"{self.node}/{self.provider}"


@dataclass(frozen=True, slots=True)
class Claimed:
    """A job in a worker's hand, with all that is needed to run it.

    escalated: it was meant for another class. claimed_at, queued_at (since when it waits): by the ledger's clock.
    taken_back: from a dead worker. decision, reason, app: what telemetry says of its calls.
    """

    id: int
    fence: int
    batch_id: str
    category: str
    model_class: str
    model: str | None
    priority: int
    attempts: int
    crashes: int
    body: bytes
    tier: str = "lan_ok"
    verdict: bytes | None = None
    escalated: bool = False
    claimed_at: float = 0.0
    taken_back: bool = False
    queued_at: float = 0.0
    decision: str = "offload"
    reason: str | None = None
    app: str = ""


#: what a claim reads of a job
_OF_JOB = (
    jobs.c.id,
    jobs.c.fence,
    jobs.c.batch_id,
    jobs.c.category,
    jobs.c.model_class,
    jobs.c.model,
    jobs.c.priority,
    jobs.c.attempts,
    jobs.c.crashes,
    jobs.c.taken_back_at,
    jobs.c.tier,
    jobs.c.verdict,
    jobs.c.escalated_from,
    jobs.c.queued_at,
    jobs.c.decision,
    jobs.c.escalation,
    jobs.c.app,
    jobs.c.rank,
    jobs.c.line,
)


@retried
def claim(
    db: Database,
    slice_id: str,
    me: Identity,
    lease_s: float,
    *,
    started: bool,
    taken_back_started: bool = False,
) -> list[Claimed]:
    """Take the jobs of a slice: dispatched → running, fence + 1, in one transaction.

    A message that is lost, doubled, stale or forged names a slice with no dispatched job and takes nothing. Jobs that
    another transaction holds, a cancel say, are left out; should they stay dispatched, the sweep sends the slice again.
    `started` says that the jobs go to the loop at once, `taken_back_started` that those do which were taken back from a
    dead worker; suspects that must run alone never do.
    """
    with db.write(durable=False) as c:
        now = db.now(c)
        not_yet = cast(null(), Float)  # PostgreSQL takes a case of nulls alone for text
        ids = locked(c, jobs.c.id, jobs.c.slice_id == slice_id, jobs.c.state == JobState.DISPATCHED, skip=True)
        taken = c.execute(
            update(jobs)
            .where(jobs.c.id.in_(ids), jobs.c.state == JobState.DISPATCHED)
            .values(
                state=JobState.RUNNING,
                fence=jobs.c.fence + 1,
                lease_until=now + lease_s,
                worker=me.name,
                run_id=me.run_id,
                started_at=case(
                    (jobs.c.crashes >= ALONE_CRASHES, not_yet),
                    (jobs.c.taken_back_at.is_not(None), now if started or taken_back_started else not_yet),
                    else_=now if started else not_yet,
                ),
                in_company=False,
                slice_id=None,
            )
            .returning(*_OF_JOB)
        ).all()
        forget_slices(c, [slice_id])
        query = select(bodies.c.job_id, bodies.c.body).where(bodies.c.job_id.in_(ids))
        texts: dict[int, bytes] = {row.job_id: row.body for row in c.execute(query)}
    taken = sorted(taken, key=lambda row: (row.rank, row.line))
    return [_claimed(row, texts[row.id], now) for row in taken]


def forget_slices(c: Connection, ids: Sequence[str]) -> None:
    """Delete those of the slices that have no dispatched job left."""
    left = exists().where(jobs.c.slice_id == slices.c.id, jobs.c.state == JobState.DISPATCHED)
    c.execute(delete(slices).where(slices.c.id.in_(ids), ~left))


def _claimed(row: Row[Any], body: bytes, now: float) -> Claimed:
    return Claimed(
        id=row.id,
        fence=row.fence,
        batch_id=row.batch_id,
        category=row.category,
        model_class=row.model_class,
        model=row.model,
        priority=row.priority,
        attempts=row.attempts,
        crashes=row.crashes,
        body=body,
        tier=row.tier,
        verdict=row.verdict,
        escalated=row.escalated_from is not None,
        claimed_at=now,
        taken_back=row.taken_back_at is not None,
        queued_at=row.queued_at,
        decision=row.decision,
        reason=row.escalation,
        app=row.app,
    )


@retried
def disown(db: Database, me: Identity, held: Mapping[int, int]) -> int:
    """Give back what runs in this process's name and is not held (id -> fence); how many jobs.

    A claim whose connection broke in its commit may have taken jobs that nobody runs. No call was made, so it is no
    crash. No claim of this process may be under way.
    """
    with db.write(durable=False) as c:
        running = IS_OUT, jobs.c.state == JobState.RUNNING, jobs.c.run_id == me.run_id
        mine = c.execute(select(jobs.c.id, jobs.c.fence).where(*running).order_by(jobs.c.id).with_for_update()).all()
        lost = [row.id for row in mine if held.get(row.id) != row.fence]
        for some in parts(lost):
            c.execute(
                update(jobs)
                .where(jobs.c.id.in_(some))
                .values(state=JobState.QUEUED, lease_until=None, started_at=None, due_at=AT_ONCE)
            )
    return len(lost)


@retried
def mark_started(db: Database, held: Iterable[Claimed]) -> None:
    """The jobs go to the loop: from here on a crash of the worker counts against them."""
    by_id = {job.id: job.fence for job in held}
    with db.write(durable=False) as c:
        now = db.now(c)
        still = still_held(c, list(by_id))
        ids = [i for i, fence in by_id.items() if still.get(i) == fence]
        c.execute(update(jobs).where(jobs.c.id.in_(ids)).values(started_at=now))


def still_held(c: Connection, ids: Sequence[int]) -> dict[int, int]:
    """The fences of those jobs that are running, locked in id order."""
    found: dict[int, int] = {}
    for some in parts(sorted(ids)):
        query = (
            select(jobs.c.id, jobs.c.fence)
            .where(jobs.c.id.in_(some), jobs.c.state == JobState.RUNNING)
            .order_by(jobs.c.id)
            .with_for_update()
        )
        found.update(c.execute(query).all())
    return found


@retried
def renew(db: Database, held: dict[int, int], lease_s: float) -> set[int]:
    """Renew the leases of exactly these (id, fence) pairs; the ids that are still held."""
    if not held:
        return set()
    with db.write(durable=False) as c:
        until = db.now(c) + lease_s
        still = still_held(c, sorted(held))
        mine = [i for i, fence in held.items() if still.get(i) == fence]
        for some in parts(mine):
            c.execute(update(jobs).where(jobs.c.id.in_(some)).values(lease_until=until))
    return set(mine)


def ended_batches(db: Database, ids: Iterable[str]) -> set[str]:
    """Those of the batches whose jobs are to be dropped."""
    with db.read() as c:
        query = select(batches.c.id).where(
            batches.c.id.in_(list(ids)), (batches.c.state != BatchState.OPEN) | batches.c.cancelled_at.is_not(None)
        )
        return set(c.execute(query).scalars())


@retried
def register(db: Database, me: Identity, classes: Sequence[str], capacity: int, reach: str = "local") -> None:
    """Enter a worker, or take over the name of one that is gone.

    What a former process of that name still holds is over at once: if it lives after all, its fences are stale.
    """
    with db.write() as c:
        _check_tables(c, db)
        now = db.now(c)
        row = {
            "node": me.node,
            "provider": me.provider,
            "run_id": me.run_id,
            "pid": me.pid,
            "classes": list(classes),
            "reach": reach,
            "capacity": capacity,
            "in_flight": 0,
            "consuming": False,
            "health": "offline",
            "detail": "its provider was not asked yet",
            "started_at": now,
            "last_seen": now,
        }
        if c.execute(update(workers).where(workers.c.name == me.name).values(**row)).rowcount == 0:
            insert_new(c, workers, [{"name": me.name, "turn_since": 0, **row}])
        running = IS_OUT, jobs.c.worker == me.name, jobs.c.state == JobState.RUNNING
        for some in parts(locked(c, jobs.c.id, *running, jobs.c.run_id != me.run_id)):
            c.execute(
                update(jobs)
                .where(jobs.c.id.in_(some))
                .values(lease_until=case((jobs.c.lease_until > now, now), else_=jobs.c.lease_until))
            )


def _check_tables(c: Connection, db: Database) -> None:
    """A worker beside tables of another version stops before it writes to them."""
    made_by = revision_in(c)
    if made_by is not None:
        check(made_by, db.where)


@retried
def report(
    db: Database,
    me: Identity,
    *,
    in_flight: int,
    serving: Sequence[str],
    consuming: bool,
    health: str,
    detail: str,
) -> None:
    """A worker's heartbeat. serving: its classes now.

    Raises StaleWorker when another process has taken the name, PoolError when the tables are another version's by now.
    """
    with db.write(durable=False) as c:
        _check_tables(c, db)
        seen = c.execute(
            update(workers)
            .where(workers.c.name == me.name, workers.c.run_id == me.run_id)
            .values(
                last_seen=db.now(c),
                in_flight=in_flight,
                classes=list(serving),
                consuming=consuming,
                health=health,
                detail=clean(detail),  # it quotes the provider
            )
        )
        if seen.rowcount != 1:
            raise StaleWorker(f"another process has taken the name {me.name}; this one stops")


def leave(db: Database, me: Identity) -> None:
    """A worker that stops in order takes its row with it."""
    with db.write() as c:
        c.execute(delete(workers).where(workers.c.name == me.name, workers.c.run_id == me.run_id))


@retried
def put_back(db: Database, slice_id: str) -> None:
    """Give an unclaimed slice's jobs back: its message could not be sent, or its worker does not take it now."""
    with db.write(durable=False) as c:
        requeue(c, [slice_id])


def requeue(c: Connection, slice_ids: Sequence[str]) -> None:
    """The unclaimed jobs of these slices wait again, and the slices are no more."""
    for some in parts(locked(c, jobs.c.id, jobs.c.slice_id.in_(slice_ids), jobs.c.state == JobState.DISPATCHED)):
        c.execute(update(jobs).where(jobs.c.id.in_(some)).values(state=JobState.QUEUED, slice_id=null()))
    forget_slices(c, slice_ids)
