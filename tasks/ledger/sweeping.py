"""What nobody reports: leases that ran out, slices that got lost, deadlines, loads given up."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import Any

from sqlalchemy import ColumnElement, Connection, delete, exists, func, insert, select, text, update
from sqlalchemy.engine import Row

from tasks.ledger import submit
from tasks.ledger.control import is_served
from tasks.ledger.database import IN_LIST, STANDS_STILL_S, STATEMENT_S, Database, locked, parts, retried
from tasks.ledger.endings import count_ended, end_all
from tasks.ledger.events import tell
from tasks.ledger.fallbacks import fell_back
from tasks.ledger.record import escalate
from tasks.notices import Kind, News, gathered
from tasks.privacy import Tier
from tasks.registry import CLOUD, Registry
from tasks.rollups import hour_of, waited_ms
from tasks.routing import considered, tier_now
from tasks.states import BatchState, JobState
from tasks.tables import AT_ONCE, IS_OUT, Batch, CallRow, Job, Slice, Worker

#: leases one transaction takes back
CHUNK = 1_000
#: crashes with nothing else in the worker's hand after which a job is poison
POISON_CRASHES = 3

batches = Batch.__table__  # type: ignore[attr-defined]
calls = CallRow.__table__  # type: ignore[attr-defined]
jobs = Job.__table__  # type: ignore[attr-defined]
slices = Slice.__table__  # type: ignore[attr-defined]
workers = Worker.__table__  # type: ignore[attr-defined]


def end_frozen(db: Database) -> int:
    """End transactions of processes that froze in them, and hold locks; how many.

    PostgreSQL does so itself after as long (database.STANDS_STILL_S), but its timer does not run while it waits for
    the rest of a statement for many rows, nor after one: psycopg sends those in a pipeline, and a Flush after the Sync
    stops it. Nor does it end a statement that took too long while nobody reads what it sends.
    """
    if not db.is_postgres:
        return 0
    query = text(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() "
        "AND usename = current_user AND application_name = 'offload' AND CASE "
        "WHEN state LIKE 'idle in transaction%' OR state = 'active' AND wait_event = 'ClientRead' "
        "THEN state_change < clock_timestamp() - make_interval(secs => :still) "
        "WHEN state = 'active' AND wait_event = 'ClientWrite' "
        "THEN state_change < clock_timestamp() - make_interval(secs => :statement) ELSE false END"
    )
    with db.read() as c:
        return len(c.execute(query, {"still": STANDS_STILL_S, "statement": STATEMENT_S}).all())


def take_back_expired(db: Database, registry: Registry) -> Counter[str]:
    """Jobs whose lease is over go back to the queue; counts `leases` and `poison`.

    A job whose call had started gets a crash, and the call row that its worker could not write. A job that was
    the only one started in that process crashed it alone; three of those are poison.
    """
    counts: Counter[str] = Counter()
    while True:
        leases, poison = _take_back_some(db, registry)
        counts["leases"] += leases
        counts["poison"] += poison
        if leases < CHUNK:
            return counts


@retried
def _take_back_some(db: Database, registry: Registry) -> tuple[int, int]:
    """Take back up to CHUNK leases; how many, and how many of the jobs were poison."""
    with db.write() as c:
        now = db.now(c)
        rows = _expired(c, now)
        alone = _alone(c, rows)
        ended: defaultdict[str, Counter[JobState]] = defaultdict(Counter)
        poisoned = set()
        for row in rows:
            poison = row.started_at is not None and row.id in alone and row.crashes_alone + 1 >= POISON_CRASHES
            _take_back(c, row, now, alone=row.id in alone, poison=poison)
            if poison:
                poisoned.add(row.id)
                ended[row.batch_id][JobState.FAILED] += 1
        if dead := [row for row in rows if row.started_at is not None]:
            c.execute(insert(calls), [_dead_call(row, now, row.id in poisoned, registry) for row in dead])
        tell(c, now, *gathered([_poison(row) for row in rows if row.id in poisoned]))
        count_ended(c, ended, now)
    return len(rows), sum(n.total() for n in ended.values())


def _expired(c: Connection, now: float) -> Sequence[Row[Any]]:
    query = (
        select(jobs)
        .where(IS_OUT, jobs.c.state == JobState.RUNNING, jobs.c.lease_until <= now)
        .order_by(jobs.c.id)
        .limit(CHUNK)
        .with_for_update(skip_locked=True)  # what a worker just now renews or records is none of ours
    )
    return c.execute(query).all()


def _alone(c: Connection, rows: Sequence[Row[Any]]) -> set[int]:
    """Those of the jobs that were the only started one of their process; its others, still leased, are told."""
    runs = {row.run_id for row in rows if row.started_at is not None}
    started = (
        IS_OUT,
        jobs.c.state == JobState.RUNNING,
        jobs.c.run_id.in_(runs),
        jobs.c.started_at.is_not(None),
    )
    query = select(jobs.c.run_id).where(*started).group_by(jobs.c.run_id).having(func.count() > 1)
    shared = set(c.execute(query).scalars()) if runs else set()
    if shared:
        for some in parts(locked(c, jobs.c.id, *started, jobs.c.run_id.in_(shared))):
            c.execute(update(jobs).where(jobs.c.id.in_(some)).values(in_company=True))
    return {r.id for r in rows if r.run_id in runs - shared and r.started_at is not None and not r.in_company}


def _take_back(c: Connection, row: Row[Any], now: float, *, alone: bool, poison: bool) -> None:
    crashed = row.started_at is not None
    values: dict[str, Any] = {
        "state": JobState.FAILED if poison else JobState.QUEUED,
        "lease_until": None,
        "started_at": None,
        "due_at": AT_ONCE,
        "queued_at": now,
        "taken_back_at": now,
        "crashes": row.crashes + crashed,
        "crashes_alone": row.crashes_alone + (crashed and alone),
    }
    if poison:
        values |= {
            "finished_at": now,
            "error_code": "poison",
            "error_message": f"its worker died {POISON_CRASHES} times while running nothing else",
        }
    c.execute(
        update(jobs)
        .where(jobs.c.id == row.id, jobs.c.fence == row.fence, jobs.c.state == JobState.RUNNING)
        .values(values)
    )


def _poison(row: Row[Any]) -> News:
    return News(Kind.POISON, row.model_class, {"job": row.id, "batch": row.batch_id})


def _dead_call(row: Row[Any], now: float, poisoned: bool, registry: Registry) -> dict[str, Any]:
    node, _, provider = (row.worker or "/").partition("/")
    tier = tier_now(Tier(row.tier), registry.category(row.category), registry)
    escalated = row.escalated_from is not None
    return {
        "job_id": row.id,
        "batch_id": row.batch_id,
        "fence": row.fence,
        "category": row.category,
        "model_class": row.model_class,
        "provider": provider,
        "node": node,
        "model_asked": row.model or "",
        "started_at": row.started_at,
        "duration_ms": (now - row.started_at) * 1000,
        "error_code": "worker_died",
        "hour": hour_of(now),
        "app": row.app,
        "decision": row.decision,
        "reason": row.escalation,
        "considered": considered(registry, provider, row.model_class, tier, row.model, escalated=escalated),
        "attempt": row.attempts + 1,
        "queue_ms": waited_ms(row.queued_at, row.started_at),
        "ended": JobState.FAILED.value if poisoned else None,
    }


def unclaimed_slices(db: Database, older_than_s: float) -> list[Row[Any]]:
    """Slices sent so long ago that somebody should have claimed them."""
    with db.read() as c:
        query = select(slices).where(slices.c.sent_at <= db.now(c) - older_than_s).order_by(slices.c.sent_at)
        return list(c.execute(query).all())


def slices_out(db: Database, model_class: str) -> int:
    """How many slices of a class are sent and not claimed."""
    with db.read() as c:
        return int(c.execute(select(func.count()).where(slices.c.model_class == model_class)).scalar_one())


@retried
def touch_slices(db: Database, ids: Sequence[str]) -> None:
    """The slices were sent again just now."""
    with db.write() as c:
        now = db.now(c)
        for start in range(0, len(ids), IN_LIST):
            c.execute(update(slices).where(slices.c.id.in_(ids[start : start + IN_LIST])).values(sent_at=now))


@retried
def drop_empty_slices(db: Database) -> int:
    """Forget slices none of whose jobs is dispatched any more (cancelled, expired)."""
    with db.write() as c:
        left = exists().where(jobs.c.slice_id == slices.c.id, jobs.c.state == JobState.DISPATCHED)
        return c.execute(delete(slices).where(~left)).rowcount


def expire_batches(db: Database) -> int:
    """End the jobs of open batches whose deadline has passed; also finishes cancels that were cut short."""
    with db.read() as c:
        now = db.now(c)
        query = select(batches.c.id, batches.c.cancelled_at).where(
            batches.c.state == BatchState.OPEN,
            (batches.c.deadline_at <= now) | batches.c.cancelled_at.is_not(None),
        )
        found = c.execute(query).all()
    return sum(end_all(db, r.id, JobState.CANCELLED if r.cancelled_at else JobState.EXPIRED) for r in found)


def escalate_class(db: Database, model_class: str, categories: Sequence[str]) -> int:
    """Send on to class `cloud` what waits for a class and may leave, of these categories; the count of jobs."""
    with db.read() as c:
        served = select(batches.c.id).where(batches.c.state == BatchState.OPEN, is_served())
        opened = list(c.execute(served).scalars())
    return sum(_escalate_batch(db, batch_id, model_class, categories) for batch_id in opened)


def _escalate_batch(db: Database, batch_id: str, model_class: str, categories: Sequence[str]) -> int:
    leaving = (
        jobs.c.batch_id == batch_id,
        jobs.c.model_class == model_class,
        jobs.c.state.in_((JobState.QUEUED, JobState.DISPATCHED)),
        jobs.c.tier == Tier.CLOUD_OK,
        jobs.c.category.in_(categories),
    )
    total = 0
    while found := _some(db, leaving):
        sent = _escalate_some(db, found, leaving, model_class)
        total += sent
        if not sent:  # others hold them all: the next sweep finds them
            break
    return total


def _some(db: Database, which: Sequence[ColumnElement[bool]]) -> list[int]:
    """Up to CHUNK of these jobs, looked for without holding up who writes."""
    with db.read() as c:
        return list(c.execute(select(jobs.c.id).where(*which).order_by(jobs.c.id).limit(CHUNK)).scalars())


@retried
def _escalate_some(db: Database, ids: list[int], leaving: Sequence[ColumnElement[bool]], model_class: str) -> int:
    """Send those of a dead class's jobs on that may still leave and that nobody holds; the count of jobs."""
    total = 0
    why = f"nobody served class {model_class} any more"
    with db.write() as c:
        for some in parts(ids):
            mine = jobs.c.id.in_(locked(c, jobs.c.id, jobs.c.id.in_(some), *leaving, skip=True))
            sent = (mine, jobs.c.state == JobState.DISPATCHED)
            c.execute(update(jobs).where(*sent).values(state=JobState.QUEUED, slice_id=None))
            total += escalate(c, mine, why)
        if total:
            tell(c, db.now(c), fell_back(f"class {model_class}", f"class {CLOUD}", "unserved", total))
    return total


def drop_abandoned_loads(db: Database, silent_s: float) -> int:
    """Forget batches whose submit died before its promise."""
    with db.read() as c:
        query = select(batches.c.id).where(
            batches.c.state == BatchState.LOADING, batches.c.touched_at <= db.now(c) - silent_s
        )
        found = list(c.execute(query).scalars())
    for batch_id in found:
        submit.drop_loading(db, batch_id)
    return len(found)


@retried
def drop_gone_workers(db: Database, silent_s: float) -> int:
    """Forget workers that have not been seen for long."""
    with db.write() as c:
        return c.execute(delete(workers).where(workers.c.last_seen <= db.now(c) - silent_s)).rowcount
