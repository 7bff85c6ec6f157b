"""Batches under control: pausing, resuming, retrying lines, and cancelling what depends on a cancelled batch."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from types import MappingProxyType
from typing import Any, NoReturn

import orjson
from sqlalchemy import Connection, and_, exists, func, select, update
from sqlalchemy.engine import Row
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.sql.elements import ColumnElement

from tasks.categories import Category
from tasks.errors import PoolError, UsageError
from tasks.ledger import reading, submit
from tasks.ledger.claims import requeue
from tasks.ledger.database import DISPATCH_LOCK, Database, retried
from tasks.ledger.endings import cancel
from tasks.ledger.retries import BeingRetried, family, newest
from tasks.ledger.submit import DEFAULT_DEADLINE_S, LOADING_SILENT_S
from tasks.policy import Action
from tasks.privacy import Tier
from tasks.routing import Decision, Route
from tasks.schemas import NewJob, sampled
from tasks.states import BatchState, JobState
from tasks.tables import Batch, Body, Dependency, Job, Slice

#: what a retry takes unless told otherwise; a refused line is refused for good: its verdict would be the same
RETRIED = (JobState.FAILED, JobState.EXPIRED, JobState.CANCELLED)
#: lines looked at, and bodies read, at once; a body may be 16 MB
PAGE, BODIES = 500, 20
NO_CATEGORIES: Mapping[str, Category] = MappingProxyType({})

batches = Batch.__table__  # type: ignore[attr-defined]
bodies = Body.__table__  # type: ignore[attr-defined]
dependencies = Dependency.__table__  # type: ignore[attr-defined]
jobs = Job.__table__  # type: ignore[attr-defined]
slices = Slice.__table__  # type: ignore[attr-defined]


@functools.cache  # dispatch asks at every look, and making it takes longer than asking it
def is_served() -> ColumnElement[bool]:
    """The condition that a row of `batches` is neither paused nor waits for another batch's good end."""
    needed = batches.alias("needed")
    waits = exists().where(
        dependencies.c.batch_id == batches.c.id,
        needed.c.id == dependencies.c.needs,
        needed.c.state != BatchState.FINISHED,  # one that was cancelled takes this one with it
    )
    return and_(batches.c.paused_at.is_(None), ~waits)


@retried
def pause(db: Database, batch_id: str) -> None:
    """Send nothing more of an open batch; what was sent and is not claimed waits again, what runs goes on.

    Its deadline goes on as well. Repeating it changes nothing. Raises NotFound, and UsageError when the batch is over.
    """
    with db.write() as c:
        db.alone(c, DISPATCH_LOCK)  # whoever chooses jobs now has sent them before we look
        sent = select(slices.c.id).where(slices.c.batch_id == batch_id)
        requeue(c, list(c.execute(sent).scalars()))
        paused = (
            update(batches)
            .where(batches.c.id == batch_id, batches.c.state == BatchState.OPEN, batches.c.cancelled_at.is_(None))
            .values(paused_at=func.coalesce(batches.c.paused_at, db.now(c)))
        )
        if c.execute(paused).rowcount == 1:
            return
    _refuse(reading.batch(db, batch_id), "pause")


@retried
def resume(db: Database, batch_id: str) -> None:
    """A paused batch is served again. Repeating it changes nothing; raises as `pause` does."""
    with db.write() as c:
        now = db.now(c)
        mine = batches.c.id == batch_id, batches.c.state == BatchState.OPEN, batches.c.cancelled_at.is_(None)
        paused = update(batches).where(*mine, batches.c.paused_at.is_not(None))
        if c.execute(paused.values(paused_at=None, touched_at=now)).rowcount == 1:
            return
        if c.execute(select(batches.c.id).where(*mine)).first() is not None:
            return
    _refuse(reading.batch(db, batch_id), "resume")


def _refuse(row: Row[Any], what: str) -> NoReturn:
    """Why nothing can be done to a batch that is not open."""
    if row.state == BatchState.LOADING:
        raise PoolError(f"batch {row.id} is being submitted; look again after it")
    if row.state == BatchState.OPEN:
        raise UsageError(f"batch {row.id} is being cancelled: there is nothing to {what}")
    raise UsageError(f"batch {row.id} is {row.state}: there is nothing to {what}")


def cancel_dependents(db: Database) -> dict[str, int]:
    """Cancel open batches that need a cancelled one, and what needs those: batch -> jobs cancelled."""
    needed = batches.alias("needed")
    query = (
        select(batches.c.id)
        .join(dependencies, dependencies.c.batch_id == batches.c.id)
        .join(needed, needed.c.id == dependencies.c.needs)
        .where(batches.c.state == BatchState.OPEN, batches.c.cancelled_at.is_(None))
        .where(needed.c.cancelled_at.is_not(None))
        .distinct()
    )
    done: dict[str, int] = {}
    while True:
        with db.read() as c:
            found = list(c.execute(query).scalars())
        if not found:
            return done
        done |= {batch_id: cancel(db, batch_id) for batch_id in found}


def cancelled_with(db: Database, batch_id: str) -> dict[str, int]:
    """What was cancelled because it needs a cancelled batch, directly or not, beat's doing too: batch -> jobs of it.

    Call it after `cancel_dependents`; what another has begun to cancel is cancelled here to its end.
    """
    needed = batches.alias("needed")
    query = (
        select(batches.c.id)
        .join(dependencies, dependencies.c.batch_id == batches.c.id)
        .join(needed, needed.c.id == dependencies.c.needs)
        .where(batches.c.cancelled_at.is_not(None), needed.c.cancelled_at.is_not(None))
        .order_by(batches.c.id)
        .distinct()
    )
    found: dict[str, int] = {}
    next_ones = [batch_id]
    while next_ones:
        with db.read() as c:
            ids = c.execute(query.where(needed.c.id.in_(next_ones))).scalars().all()
        next_ones = [one for one in ids if one not in found]
        for one in next_ones:
            cancel(db, one)
            with db.read() as c:
                found[one] = c.execute(select(batches.c.cancelled).where(batches.c.id == one)).scalar_one()
    return found


# --- retries ---------------------------------------------------------------------------------------------


def retry(
    db: Database,
    batch_id: str,
    states: Collection[JobState] = RETRIED,
    *,
    priority: int | None = None,
    deadline_s: float = DEFAULT_DEADLINE_S,
    categories: Mapping[str, Category] = NO_CATEGORIES,
    beside: Callable[[Connection, str], None] = lambda c, batch_id: None,
) -> str:
    """Submit those lines of a batch again whose newest job ended in one of `states`; the new batch's id.

    Body, category, model, tier and verdict are those of before, and so is the class; a job that had gone on to the
    cloud because it failed at home starts at home again. priority: the batch's own where None. deadline_s: seconds
    from now. categories: of the configuration, so that the answers may be audited. beside: what the commit that makes
    the promise writes as well, given the new batch's id. Raises NotFound, and UsageError
    where there is nothing to retry or another retry has those lines.
    """
    row = reading.batch(db, batch_id)
    if row.state == BatchState.LOADING:
        _refuse(row, "retry")
    if row.kind != "jobs":
        raise UsageError(f"batch {batch_id} is the pool's own ({row.kind}), which is not retried")
    priority = int(row.priority) if priority is None else priority
    again, first = _begin(db, batch_id, name=row.name, priority=priority, deadline_s=deadline_s, notify=row.notify)
    try:
        lines = _lines(db, batch_id, again, states, categories)
        if not (added := submit.add(db, again, lines, priority, drawn_as=first)):
            raise UsageError(_why_nothing(db, batch_id, again, states))
        submit.open_batch(db, again, added, lambda c: beside(c, again))
    except BaseException:  # Ctrl-C too: half a retry never stays
        with suppress(SQLAlchemyError):
            submit.drop_loading(db, again)
        raise
    return again


def _begin(db: Database, batch_id: str, **what: Any) -> tuple[str, str]:
    """Begin a retry once no other one of the family is loading: its id, and that of the family's first batch."""
    until = time.monotonic() + LOADING_SILENT_S
    while True:
        with db.read() as c:
            rows, now = family(c, batch_id), db.now(c)
        for row in rows:
            if row.state == BatchState.LOADING and now - row.touched_at > LOADING_SILENT_S:
                submit.drop_loading(db, row.id)
        try:
            return submit.begin(db, retry_of=batch_id, **what)[0], str(rows[0].id)
        except BeingRetried:
            if time.monotonic() > until:
                raise
        time.sleep(0.1)


def _lines(
    db: Database, batch_id: str, again: str, states: Collection[JobState], categories: Mapping[str, Category]
) -> Iterator[NewJob]:
    last = 0
    while True:
        with db.read() as c:
            ids = [row.id for row in family(c, batch_id) if row.id != again]
            mine = jobs.c.batch_id == batch_id, jobs.c.line > last, jobs.c.state.in_(RETRIED)
            page = list(c.execute(select(jobs.c.line).where(*mine).order_by(jobs.c.line).limit(PAGE)).scalars())
            found = newest(c, ids, page)
        wanted = [found[line] for line in page if found[line].state in states]
        for start in range(0, len(wanted), BODIES):
            some = wanted[start : start + BODIES]
            texts = _bodies(db, [row.id for row in some])
            yield from (_new_job(row, texts[row.id], categories.get(row.category)) for row in some)
        if len(page) < PAGE:
            return
        last = page[-1]


def _bodies(db: Database, ids: Sequence[int]) -> dict[int, bytes]:
    with db.read() as c:
        query = select(bodies.c.job_id, bodies.c.body).where(bodies.c.job_id.in_(ids))
        return {row.job_id: row.body for row in c.execute(query)}


def _new_job(row: Row[Any], body: bytes, category: Category | None) -> NewJob:
    verdict = orjson.loads(row.verdict) if row.verdict else None
    by_policy = verdict is not None and verdict.get("action") == Action.ESCALATE
    at_home = row.escalated_from is not None and not by_policy
    template, share = sampled(orjson.loads(body), category) if category else ("", 0.0)
    return NewJob(
        line=row.line,
        line_id=row.line_id,
        category=row.category,
        model=row.model,
        body=body,
        prefix=row.rank,  # equal where the prefixes were
        route=Route(
            model_class=row.escalated_from if at_home else row.model_class,
            tier=Tier(row.tier),
            escalated_from=None if at_home else row.escalated_from,
            verdict=verdict,
            decision=Decision.OFFLOAD if at_home else Decision(row.decision),
        ),
        template=template,
        audit=share,
        app=row.app,
    )


def _why_nothing(db: Database, batch_id: str, again: str, states: Collection[JobState]) -> str:
    with db.read() as c:
        others = [row.id for row in family(c, batch_id) if row.id not in (batch_id, again) and row.open]
    words = " or ".join(sorted(state.value for state in states))
    if others:
        return f"nothing to retry: no line of {batch_id} is {words} and without a retry; {', '.join(others)} runs"
    return f"nothing to retry: no line of {batch_id} is {words} (a refused line is refused for good: submit it changed)"
