"""Status and results, read in pages so that no reader holds a snapshot for long."""

from __future__ import annotations

from array import array
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import orjson
from sqlalchemy import Connection, Select, func, select
from sqlalchemy.engine import Row

from tasks.errors import NotFound
from tasks.ledger.database import Database, parts
from tasks.ledger.retries import family, newest
from tasks.privacy import TIERS_OF, Reach, Tier
from tasks.states import ANSWERED, TERMINAL, BatchState, JobState
from tasks.tables import Audit, Batch, Job, Output, Worker

#: results one page holds, and outputs read at once; an output may be 16 MB
PAGE, OUTPUTS = 500, 20

audits = Audit.__table__  # type: ignore[attr-defined]
batches = Batch.__table__  # type: ignore[attr-defined]
jobs = Job.__table__  # type: ignore[attr-defined]
outputs = Output.__table__  # type: ignore[attr-defined]
workers = Worker.__table__  # type: ignore[attr-defined]


def batch(db: Database, batch_id: str) -> Row[Any]:
    """A batch's row; raises NotFound."""
    with db.read() as c:
        row = c.execute(select(batches).where(batches.c.id == batch_id)).first()
    if row is None:
        also = "offload fan-out status" if batch_id.startswith("fan_") else "offload batches"
        raise NotFound(f"there is no batch {batch_id[:80]!r}; see: {also}")
    return row


def recent_batches(db: Database, limit: int, *, own_too: bool = False) -> list[Row[Any]]:
    """The newest batches first; the pool's own, audits and merges, only when asked for."""
    kinds = ("jobs", "audit", "merge") if own_too else ("jobs",)
    query = select(batches).where(batches.c.kind.in_(kinds)).order_by(batches.c.created_at.desc()).limit(limit)
    with db.read() as c:
        return list(c.execute(query).all())


def open_batches(db: Database) -> list[Row[Any]]:
    """The batches with jobs to come, however old, the newest first; not the pool's own."""
    query = select(batches).where(batches.c.state == BatchState.OPEN, batches.c.kind == "jobs")
    with db.read() as c:
        return list(c.execute(query.order_by(batches.c.created_at.desc())).all())


@dataclass(frozen=True)
class CategorySummary:
    """One category of a batch. Times are milliseconds of the last call, of answered jobs; None where there are none."""

    category: str
    states: dict[str, int]
    tokens_in: int
    tokens_out: int
    median_ms: float | None
    p95_ms: float | None


def by_category(db: Database, batch_id: str) -> list[CategorySummary]:
    """A batch's categories: states, tokens, median and 95th percentile of the time."""
    with db.read() as c:
        query = (
            select(
                jobs.c.category,
                jobs.c.state,
                func.count().label("n"),
                func.sum(jobs.c.tokens_in).label("tin"),
                func.sum(jobs.c.tokens_out).label("tout"),
            )
            .where(jobs.c.batch_id == batch_id)
            .group_by(jobs.c.category, jobs.c.state)
        )
        rows = c.execute(query).all()
        return [_summary(c, batch_id, name, [r for r in rows if r.category == name]) for name in _names(rows)]


def _names(rows: Any) -> list[str]:
    return sorted({r.category for r in rows})


def _summary(c: Connection, batch_id: str, name: str, rows: list[Row[Any]]) -> CategorySummary:
    times = (
        select(jobs.c.duration_ms)
        .where(jobs.c.batch_id == batch_id, jobs.c.category == name, jobs.c.state.in_(ANSWERED))
        .order_by(jobs.c.duration_ms)
    )
    n = sum(r.n for r in rows if r.state in ANSWERED)

    def at(share: float) -> float | None:
        return c.execute(times.limit(1).offset(min(n - 1, int(share * n)))).scalar() if n else None

    return CategorySummary(
        category=name,
        states={r.state: r.n for r in rows},
        tokens_in=sum(r.tin or 0 for r in rows),
        tokens_out=sum(r.tout or 0 for r in rows),
        median_ms=at(0.5),
        p95_ms=at(0.95),
    )


def waiting_by_class(db: Database, batch_id: str) -> dict[str, dict[str, int]]:
    """Jobs of a batch that are not terminal: class -> state -> count."""
    with db.read() as c:
        live = [s for s in JobState if s not in TERMINAL]
        query = (
            select(jobs.c.model_class, jobs.c.state, func.count())
            .where(jobs.c.batch_id == batch_id, jobs.c.state.in_(live))
            .group_by(jobs.c.model_class, jobs.c.state)
        )
        found: dict[str, dict[str, int]] = {}
        for model_class, state, n in c.execute(query):
            found.setdefault(model_class, {})[state] = n
    return found


def all_held_back(db: Database, batch_id: str, model_class: str, reaches: Sequence[str]) -> bool:
    """Whether the batch's queued jobs of a class may go to none of these reaches."""
    if not reaches:
        return False
    tiers = {tier for reach in reaches for tier in TIERS_OF[Reach(reach)]}
    with db.read() as c:  # of all tiers at once each job would be read
        waiting = {tier for tier in Tier if c.execute(_first_queued(batch_id, model_class, tier, 1)).first()}
    return bool(waiting) and not waiting & tiers


def _first_queued(batch_id: str, model_class: str, tier: Tier, limit: int) -> Select[Any]:
    """Errors of a batch's first queued jobs of a class and tier, in the order in which they are sent."""
    mine = jobs.c.batch_id == batch_id, jobs.c.model_class == model_class, jobs.c.tier == tier
    queued = select(jobs.c.error_message).where(*mine, jobs.c.state == JobState.QUEUED)
    return queued.order_by(jobs.c.rank).limit(limit)


def last_error(db: Database, batch_id: str, model_class: str) -> str | None:
    """Why a waiting job of this class did not end at its last try; those that were tried are sent before others."""
    with db.read() as c:
        for tier in Tier:
            errors = c.execute(_first_queued(batch_id, model_class, tier, PAGE)).scalars()
            if found := next((error for error in errors if error is not None), None):
                return str(found)
    return None


def results(db: Database, batch_id: str, state: str | None = None) -> Iterator[bytes]:
    """The result lines of the jobs that are terminal, in input order, each JSON without a line end.

    Of a line that was retried it is the newest job that is terminal; while the retry runs, the one before.
    """
    last = 0
    wanted = [state] if state else list(TERMINAL)
    with db.read() as c:
        tries = [row.id for row in family(c, batch_id)]
    while True:
        with db.read() as c:
            query = (
                select(jobs)
                .where(jobs.c.batch_id == batch_id, jobs.c.line > last)
                .where(jobs.c.state.in_(wanted if len(tries) == 1 else TERMINAL))
                .order_by(jobs.c.line)
                .limit(PAGE)
            )
            page = c.execute(query).all()
            rows = page if len(tries) == 1 else _newest(c, tries, page, wanted)
        for start in range(0, len(rows), OUTPUTS):
            yield from _with_outputs(db, batch_id, rows[start : start + OUTPUTS])
        if len(page) < PAGE:
            return
        last = page[-1].line


def recorded(
    db: Database, batch_id: str, state: str | None = None, offset: int = 0, limit: int | None = None
) -> Iterator[bytes]:
    """The same lines in the order in which they were recorded, `limit` of them at most, after the first `offset`.

    While the batch runs that order only grows: lines are added behind those that are there. A line that is retried
    keeps its place.
    """
    with db.read() as c:
        tries = {row.id: row for row in family(c, batch_id)}
        settled = db.settled(c) if tries[batch_id].finished_at is None else None
        ids = _recorded_ids(c, batch_id, state if len(tries) == 1 else None, settled)
    if len(tries) == 1 or state is None:  # each is a line
        ids, offset = ids[offset:], 0
    found = _rows(db, list(tries), ids, [state] if state else list(TERMINAL))
    rows = islice(found, offset, None if limit is None else offset + limit)
    while some := list(islice(rows, OUTPUTS)):
        yield from _with_outputs(db, batch_id, some)


def _recorded_ids(c: Connection, batch_id: str, state: str | None, settled: float | None) -> array[int]:
    """Ids of a batch's terminal jobs, or those in a state, by the times of their ends; 8 bytes each."""
    which = [jobs.c.batch_id == batch_id, jobs.c.state.in_([state] if state else TERMINAL)]
    if settled is not None:
        which.append(jobs.c.finished_at < settled)
    return array("q", c.execute(select(jobs.c.id).where(*which).order_by(jobs.c.finished_at, jobs.c.id)).scalars())


def _rows(db: Database, tries: Sequence[str], ids: array[int], wanted: Sequence[str]) -> Iterator[Row[Any]]:
    """These jobs in this order; of lines that were retried the newest job that is terminal, where it is wanted."""
    for some in parts(ids):
        with db.read() as c:
            found = {row.id: row for row in c.execute(select(jobs).where(jobs.c.id.in_(some)))}
            page = [found[id_] for id_ in some]
            rows = page if len(tries) == 1 else _newest(c, tries, page, wanted)
        yield from rows


def _newest(c: Connection, tries: Sequence[str], page: Sequence[Row[Any]], wanted: Sequence[str]) -> list[Row[Any]]:
    found = newest(c, tries, [row.line for row in page], ended=True)
    return [found[row.line] for row in page if found[row.line].state in wanted]


def _with_outputs(db: Database, batch_id: str, page: Sequence[Row[Any]]) -> Iterator[bytes]:
    with db.read() as c:
        ids = [row.id for row in page]
        found = {row.job_id: row.output for row in c.execute(select(outputs).where(outputs.c.job_id.in_(ids)))}
        audited = {row.job_id: row for row in c.execute(select(audits).where(audits.c.job_id.in_(ids)))}
    for row in page:
        retry = None if row.batch_id == batch_id else row.batch_id
        yield result_line(row, found.pop(row.id, None), audited.get(row.id), retry)


def ended(
    db: Database, batch_id: str, states: Collection[str], after: int = 0
) -> Iterator[tuple[Row[Any], bytes | None]]:
    """The batch's own jobs in these states behind a line, in input order, each with its output where it has one."""
    while True:
        with db.read() as c:
            query = select(jobs).where(jobs.c.batch_id == batch_id, jobs.c.line > after, jobs.c.state.in_(states))
            page = c.execute(query.order_by(jobs.c.line).limit(PAGE)).all()
        for start in range(0, len(page), OUTPUTS):
            some = page[start : start + OUTPUTS]
            with db.read() as c:
                query = select(outputs).where(outputs.c.job_id.in_([row.id for row in some]))
                found = {row.job_id: row.output for row in c.execute(query)}
            for row in some:
                yield row, found.pop(row.id, None)
        if len(page) < PAGE:
            return
        after = page[-1].line


def one_job(db: Database, batch_id: str) -> Row[Any]:
    """The first job of a batch, with its output; what `run` waits for."""
    with db.read() as c:
        query = (
            select(jobs, outputs.c.output)
            .outerjoin(outputs, outputs.c.job_id == jobs.c.id)
            .where(jobs.c.batch_id == batch_id)
            .order_by(jobs.c.line)
            .limit(1)
        )
        return c.execute(query).one()


def result_line(row: Row[Any], output: bytes | None, audit: Row[Any] | None = None, retry: str | None = None) -> bytes:
    """A result as the README shows it. audit: its row, where the job was chosen for one. retry: whose it is."""
    line: dict[str, Any] = {
        "id": row.line_id,
        "category": row.category,
        "state": row.state,
        "privacy": row.tier,
        "output": None if output is None else orjson.Fragment(output),
        "model": row.served_model,
        "provider": row.provider,
        "node": row.node,
        "attempts": row.attempts,
        "tokens": {"in": row.tokens_in, "out": row.tokens_out},
        "duration_ms": None if row.duration_ms is None else round(row.duration_ms, 1),
    }
    if row.error_code and output is None:
        line["error"] = {"code": row.error_code, "message": row.error_message}
    if retry is not None:
        line["retry"] = retry
    if row.escalated_from is not None:
        line["escalated"] = {"from": row.escalated_from, "why": row.escalation}
    if row.verdict is not None:
        line["verdict"] = orjson.Fragment(row.verdict)
    if audit is not None:
        line["audit"] = {"verdict": audit.verdict, "auditor": audit.auditor, "state": audit.state}
    return orjson.dumps(line)


def all_workers(db: Database) -> list[Row[Any]]:
    """Every worker row."""
    with db.read() as c:
        return list(c.execute(select(workers).order_by(workers.c.name)).all())
