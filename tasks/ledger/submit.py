"""Loading a batch: bounded commits that dispatch does not see, then one commit that is the promise."""

from __future__ import annotations

import functools
import secrets
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import orjson
from sqlalchemy import ColumnElement, Connection, Update, delete, exists, insert, select, update
from sqlalchemy.exc import DBAPIError, IntegrityError, OperationalError

from tasks.errors import Conflict, GivenUp, NotFound, PoolError, UsageError
from tasks.ledger.database import Database, parts, retried
from tasks.ledger.endings import close_batches
from tasks.ledger.retries import begin_alone
from tasks.ledger.strata import add_samples, drop_samples
from tasks.ledger.unsent import note_unsent
from tasks.schemas import NewJob
from tasks.states import BatchState, JobState
from tasks.tables import AT_ONCE, Batch, Body, Dependency, Job

#: jobs and bytes of bodies a commit; half a million rows in one would hold SQLite's write lock for 13 s
COMMIT_JOBS, COMMIT_BYTES = 5_000, 8_000_000
#: shared prefixes remembered while loading; bounds the memory of a batch of any size
PREFIXES = 10_000
#: seconds a submit waits for a PostgreSQL that went away, and between two looks
RECONNECT_S, RECONNECT_POLL_S = 20.0, 0.5
SILENT = "this submit was silent for so long that it was given up; submit again"
#: seconds from submit after which unfinished jobs expire
DEFAULT_DEADLINE_S = 24 * 3600.0

batches = Batch.__table__  # type: ignore[attr-defined]
dependencies = Dependency.__table__  # type: ignore[attr-defined]
jobs = Job.__table__  # type: ignore[attr-defined]
bodies = Body.__table__  # type: ignore[attr-defined]


def new_batch_id() -> str:
    """An id nobody can guess and everybody can copy."""
    return f"batch_{secrets.token_hex(8)}"


def begin(
    db: Database,
    *,
    name: str | None,
    priority: int = 0,
    key: str | None = None,
    body_hash: str | None = None,
    deadline_s: float = DEFAULT_DEADLINE_S,
    kind: str = "jobs",
    needs: Sequence[str] = (),
    retry_of: str | None = None,
    notify: bool = False,
    batch_id: str | None = None,
) -> tuple[str, bool]:
    """Start loading a batch: (id, True), or (the id it already has, False) under a known idempotency key.

    deadline_s: seconds from now after which unfinished jobs expire. kind: `audit` or `merge` for the pool's own. needs:
    batches whose end its jobs wait for. retry_of: the batch whose lines these are again. notify: whether its end is
    told. body_hash: of all that the key is used for. batch_id: what it will be called; the key is then its alone.
    Raises Conflict when the key was used for something else, NotFound for a needed batch that is not there, UsageError
    for one that was cancelled, BeingRetried while another retry of the same lines is loading. A load that its process
    gave up is replaced.
    """
    while True:
        id_ = batch_id or new_batch_id()
        try:
            row = {"name": name, "priority": priority, "kind": kind, "idempotency_key": key, "body_hash": body_hash}
            row |= {"id": id_, "retry_of": retry_of, "notify": notify}
            write = functools.partial(_insert_batch, db, deadline_s, row, sorted(set(needs)))
            _surely(db, write, exists().where(batches.c.id == id_))
            return id_, True
        except IntegrityError:
            if key is None:  # then it was no key that was there
                raise
            known = _known(db, key, body_hash)
            if known is not None:
                return known, False


@retried
def _insert_batch(db: Database, deadline_s: float, row: Mapping[str, Any], needs: Sequence[str]) -> None:
    with db.write() as c:
        if row["retry_of"] is not None:
            begin_alone(c, row["retry_of"])
        now = db.now(c)
        times = {"created_at": now, "touched_at": now, "deadline_at": now + deadline_s}
        c.execute(insert(batches).values(state=BatchState.LOADING, **times, **row))  # a known key is found here first
        _check_needs(c, needs)
        if needs:
            c.execute(insert(dependencies), [{"batch_id": row["id"], "needs": needed} for needed in needs])


def _check_needs(c: Connection, needs: Sequence[str]) -> None:
    found = {r.id: r for r in c.execute(select(batches).where(batches.c.id.in_(needs)))} if needs else {}
    for needed in needs:
        if needed not in found or found[needed].state == BatchState.LOADING:
            raise NotFound(f"there is no batch {needed[:80]!r} to wait for; `offload batches` lists them")
        if found[needed].cancelled_at is not None:
            raise UsageError(f"batch {needed} was cancelled, and with it would be what depends on it")


def _surely(db: Database, write: Callable[[], None], written: ColumnElement[bool]) -> None:
    """Write; where the connection breaks, maybe in the commit, look whether it is `written` before writing again.

    Raises what the database says when it is not back after RECONNECT_S.
    """
    until = time.monotonic() + RECONNECT_S
    unsure = False
    while True:
        try:
            return write()
        except OperationalError as error:
            if not error.connection_invalidated:
                raise
            unsure = True
            if _is_there(db, written, until):
                return None
        except (IntegrityError, PoolError):  # what we looked for was still being committed, and now is there
            if unsure and _is_there(db, written, until):
                return None
            raise


def _is_there(db: Database, written: ColumnElement[bool], until: float) -> bool:
    while True:
        try:
            with db.read() as c:
                return bool(c.execute(select(written)).scalar())
        except DBAPIError:
            if time.monotonic() > until:
                raise
        time.sleep(RECONNECT_POLL_S)


#: seconds a load under the same key may be silent before a repeated submit replaces it
LOADING_SILENT_S = 15.0


def _known(db: Database, key: str, body_hash: str | None) -> str | None:
    """The batch a key belongs to; None when its load was given up and is now out of the way."""
    while True:
        with db.read() as c:
            row = c.execute(select(batches).where(batches.c.idempotency_key == key)).first()
            now = db.now(c)
        if row is None:
            return None
        if row.body_hash != body_hash:
            raise Conflict(
                "the idempotency key was used for another body, or another priority, deadline or dependency, "
                f"in batch {row.id}; use a new key"
            )
        if row.state != BatchState.LOADING:
            return str(row.id)
        if now - row.touched_at > LOADING_SILENT_S:
            drop_loading(db, row.id)
            return None
        time.sleep(0.2)  # the same submit is under way in another process: wait for its end


def add(db: Database, batch_id: str, lines: Iterable[NewJob], priority: int = 0, *, drawn_as: str | None = None) -> int:
    """Insert jobs in commits of COMMIT_JOBS; returns how many. drawn_as: the batch that draws audits for them.

    Each commit is for exactly the lines that this loader has added before: where another has begun the same batch anew,
    or it was given up, nothing is added and GivenUp is raised.
    """
    ranks: dict[int, int] = {}
    total = 0
    for chunk in _chunks(lines):
        ranked = [(job, _rank(ranks, job)) for job in chunk]
        first = exists().where(jobs.c.batch_id == batch_id, jobs.c.line == chunk[0].line)
        _surely(db, functools.partial(_add_chunk, db, batch_id, total, ranked, priority, drawn_as or batch_id), first)
        total += len(chunk)
    return total


@retried
def _add_chunk(
    db: Database, batch_id: str, before: int, ranked: Sequence[tuple[NewJob, int]], priority: int, drawn_as: str
) -> None:
    chunk = [job for job, _ in ranked]
    with db.write() as c:
        now = db.now(c)
        refused = sum(job.route.state is JobState.REFUSED for job in chunk)
        touched = c.execute(
            _still_loading(batch_id, before).values(
                touched_at=now,
                total=batches.c.total + len(chunk),
                open=batches.c.open + len(chunk) - refused,
                refused=batches.c.refused + refused,
            )
        )
        if touched.rowcount != 1:
            raise GivenUp(SILENT)
        rows = [_row(batch_id, job, rank, priority, now) for job, rank in ranked]
        ids = c.execute(insert(jobs).returning(jobs.c.id, sort_by_parameter_order=True), rows).scalars().all()
        c.execute(insert(bodies), [{"job_id": i, "body": j.body} for i, j in zip(ids, chunk, strict=True)])
        add_samples(c, drawn_as, list(zip(ids, chunk, strict=True)))


def _chunks(lines: Iterable[NewJob]) -> Iterator[list[NewJob]]:
    chunk: list[NewJob] = []
    size = 0
    for job in lines:
        chunk.append(job)
        size += len(job.body)
        if len(chunk) >= COMMIT_JOBS or size >= COMMIT_BYTES:
            yield chunk
            chunk, size = [], 0
    if chunk:
        yield chunk


def _rank(ranks: dict[int, int], job: NewJob) -> int:
    if job.prefix is None:
        return job.line
    if job.prefix not in ranks and len(ranks) >= PREFIXES:
        ranks.clear()
    return ranks.setdefault(job.prefix, job.line)


def _row(batch_id: str, job: NewJob, rank: int, priority: int, now: float) -> dict[str, object]:
    refused = job.route.state is JobState.REFUSED
    return {
        "batch_id": batch_id,
        "line": job.line,
        "line_id": job.line_id,
        "category": job.category,
        "model_class": job.model_class,
        "model": job.model,
        "tier": job.route.tier.value,
        "verdict": orjson.dumps(job.route.verdict) if job.route.verdict else None,
        "escalated_from": job.route.escalated_from,
        "escalation": job.route.words if job.route.escalated_from else None,
        "decision": job.route.decision.value,
        "app": job.app,
        "state": job.route.state,
        "priority": priority,
        "rank": rank,
        "due_at": AT_ONCE,
        "queued_at": now,
        "finished_at": now if refused else None,
        "error_code": "refused" if refused else None,
        "error_message": job.route.words if refused else None,
    }


def open_batch(db: Database, batch_id: str, total: int, beside: Callable[[Connection], None] = lambda c: None) -> None:
    """The promise: from this commit on, every job of the batch reaches one terminal state.

    total: of the jobs that were added; GivenUp is raised where the batch has others. beside: what else the commit
    writes; what it raises leaves the batch unopened.
    """
    opened = exists().where(batches.c.id == batch_id, batches.c.opened_at.is_not(None))
    _surely(db, lambda: _open(db, batch_id, total, beside), opened)


@retried
def _open(db: Database, batch_id: str, total: int, beside: Callable[[Connection], None]) -> None:
    with db.write() as c:
        now = db.now(c)
        opened = c.execute(_still_loading(batch_id, total).values(state=BatchState.OPEN, opened_at=now, touched_at=now))
        if opened.rowcount != 1:
            raise GivenUp(SILENT)
        _note_refused(c, batch_id, now)
        close_batches(c, [batch_id], now)
        beside(c)


def _note_refused(c: Connection, batch_id: str, now: float) -> None:
    """COMMIT_JOBS a statement, for PostgreSQL ends one that takes long; all of them are of one commit."""
    refused = jobs.c.batch_id == batch_id, jobs.c.state == JobState.REFUSED
    lines = sorted(c.execute(select(jobs.c.line).where(*refused)).scalars())
    for start in range(0, len(lines), COMMIT_JOBS):
        some = lines[start : start + COMMIT_JOBS]
        note_unsent(c, now, *refused, jobs.c.line.between(some[0], some[-1]))


def _still_loading(batch_id: str, total: int) -> Update:
    """A change of a batch that is loading, is not being dropped, and has so many jobs."""
    mine = batches.c.id == batch_id, batches.c.state == BatchState.LOADING, batches.c.cancelled_at.is_(None)
    return update(batches).where(*mine, batches.c.total == total)


def drop_loading(db: Database, batch_id: str) -> None:
    """Forget a batch that was never opened, in bounded steps."""
    while _drop_some(db, batch_id):
        pass


@retried
def _drop_some(db: Database, batch_id: str) -> bool:
    """One step; False when there is nothing left to forget."""
    with db.write() as c:
        loading = select(batches.c.id).where(batches.c.id == batch_id, batches.c.state == BatchState.LOADING)
        if c.execute(loading.with_for_update()).first() is None:  # it was opened, or dropped by another
            return False
        c.execute(update(batches).where(batches.c.id == batch_id).values(cancelled_at=db.now(c)))  # its loader stops
        ids = list(c.execute(select(jobs.c.id).where(jobs.c.batch_id == batch_id).limit(COMMIT_JOBS)).scalars())
        for part in parts(ids):
            drop_samples(c, part)
            c.execute(delete(bodies).where(bodies.c.job_id.in_(part)))
            c.execute(delete(jobs).where(jobs.c.id.in_(part)))
        if not ids:
            c.execute(delete(dependencies).where(dependencies.c.batch_id == batch_id))
            c.execute(delete(batches).where(batches.c.id == batch_id, batches.c.state == BatchState.LOADING))
        return bool(ids)
