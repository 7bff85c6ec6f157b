"""/jobs and /batches: the pool's own words over HTTP, for batches however they were submitted."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from functools import partial
from typing import Annotated, Any, Literal

import orjson
from fastapi import APIRouter, Depends, Header, Query, Request
from fastapi.responses import StreamingResponse
from sqlalchemy.exc import SQLAlchemyError

from api.http.callers import Caller, needs
from api.http.errors import ApiError, not_found
from api.http.files import chunks
from api.use_cases import control
from api.use_cases.outlook import outlook
from api.use_cases.pool import Pool
from api.use_cases.submitting import Request as Submit
from api.use_cases.submitting import submit
from api.use_cases.watching import counts
from tasks.errors import BrokerDown, InputError, LineFault, NotFound
from tasks.ledger import api_batches, audits, endings, reading
from tasks.ledger.api_batches import Whose
from tasks.ledger.api_keys import Scope
from tasks.ledger.submit import DEFAULT_DEADLINE_S
from tasks.privacy import Tier
from tasks.states import BatchState

router = APIRouter(tags=["pool"])

Reader = Annotated[Caller, Depends(needs(Scope.READ))]
Submitter = Annotated[Caller, Depends(needs(Scope.SUBMIT))]
Priority = Annotated[int, Query(ge=-99, le=99)]
#: lines of a batch that may be counted over
MOST_LINES = 1 << 40
#: bytes of a body that are kept in memory
IN_MEMORY = 1 << 20
#: faults that are told
MOST_FAULTS = 100
#: seconds between two looks for an event, and between two signs of life
LOOK_S, ALIVE_S = 0.5, 15.0
#: how a batch that was submitted here is marked in api_batches
JOBS = "/jobs"


@router.post("/jobs")
async def submit_jobs(
    request: Request,
    caller: Submitter,
    name: Annotated[str | None, Query(max_length=200)] = None,
    category: Annotated[str | None, Query(max_length=64)] = None,
    priority: Priority = 0,
    deadline_s: Annotated[float, Query(gt=0, le=30 * 86_400)] = DEFAULT_DEADLINE_S,
    privacy: Tier | None = None,
    idempotency_key: Annotated[str | None, Header(max_length=200)] = None,
    x_offload_app: Annotated[str | None, Header(max_length=64)] = None,
) -> dict[str, Any]:
    """Submit lines of jobs, as `offload submit` reads them: one JSON object a line. All of them, or none."""
    key = caller.key(idempotency_key)
    await asyncio.to_thread(request.app.state.callers.check_room, caller, key)
    faults: list[LineFault] = []
    said = caller.said(privacy, x_offload_app)
    asked = Submit(
        said=said if category is None else type(said)(category=category, tier=said.tier, app=said.app),
        name=name,
        key=key,
        priority=priority,
        deadline=deadline_s,
        beside=lambda c, batch_id: api_batches.enter_in(c, batch_id, caller.owner, JOBS),
        on_fault=lambda fault: faults.append(fault) if len(faults) < MOST_FAULTS else None,
    )
    pool = _pool(request)
    with tempfile.SpooledTemporaryFile(max_size=IN_MEMORY) as spool:
        async for part in request.stream():
            spool.write(part)
        try:
            load = partial(submit, pool, spool, asked)  # type: ignore[arg-type]
            done = await asyncio.get_running_loop().run_in_executor(request.app.state.submits, load)
        except InputError as error:
            raise ApiError(400, "\n".join(map(str, [*faults, *error.faults])), code="invalid_lines") from None
    with suppress(BrokerDown, SQLAlchemyError):  # they are promised; beat sends them later
        await asyncio.to_thread(pool.dispatch)
    return {"id": done.batch_id, "jobs": done.jobs, "new": done.new}


@router.get("/batches/{batch_id}")
def status(request: Request, caller: Reader, batch_id: str) -> dict[str, Any]:
    """Where a batch stands, when it will be done, and why its jobs wait."""
    pool = _pool(request)
    row = _batch(request, caller, batch_id)
    if row.state != BatchState.OPEN:
        return _shown(row)
    ahead = outlook(pool, row)
    return _shown(row) | {"rate": ahead.rate, "left_s": ahead.left_s, "why": ahead.why, "waits": ahead.waiting}


@router.get("/batches/{batch_id}/results")
def results(
    request: Request,
    caller: Reader,
    batch_id: str,
    offset: Annotated[int, Query(ge=0, le=MOST_LINES)] = 0,
    limit: Annotated[int | None, Query(ge=1, le=MOST_LINES)] = None,
    state: Literal["done", "escalated", "failed", "refused", "cancelled", "expired"] | None = None,
) -> StreamingResponse:
    """The result lines there are so far, in the order in which they were recorded, which only grows.

    offset: lines that are left out; as many as were read before, to go on from there.
    """
    _batch(request, caller, batch_id)
    found = reading.recorded(_pool(request).db, batch_id, state, offset, limit)
    return StreamingResponse(chunks(_with_ends(found)), media_type="application/jsonl")


def _with_ends(lines: Iterator[bytes]) -> Iterator[bytes]:
    for line in lines:
        yield line + b"\n"


@router.get("/batches/{batch_id}/events")
async def events(request: Request, caller: Reader, batch_id: str) -> StreamingResponse:
    """Server-sent events: how the batch stands whenever that changes, the last one when it is over."""
    await asyncio.to_thread(_batch, request, caller, batch_id)
    return StreamingResponse(_changes(_pool(request), batch_id), media_type="text/event-stream")


async def _changes(pool: Pool, batch_id: str) -> AsyncIterator[bytes]:
    loop = asyncio.get_running_loop()
    last, told_at = b"", loop.time()
    while True:
        row = await asyncio.to_thread(reading.batch, pool.db, batch_id)
        now = orjson.dumps(_shown(row))
        if now != last:
            last, told_at = now, loop.time()
            yield b"event: batch\ndata: " + now + b"\n\n"
        if row.state in (BatchState.FINISHED, BatchState.CANCELLED):
            return
        if loop.time() - told_at > ALIVE_S:
            told_at = loop.time()
            yield b": still here\n\n"
        await asyncio.sleep(LOOK_S)


@router.post("/batches/{batch_id}/cancel")
def cancel(request: Request, caller: Submitter, batch_id: str) -> dict[str, Any]:
    """Cancel what a batch still has before it."""
    _batch(request, caller, batch_id)
    endings.cancel(_pool(request).db, batch_id)
    return _shown(_batch(request, caller, batch_id))


@router.post("/batches/{batch_id}/pause")
def pause(request: Request, caller: Submitter, batch_id: str) -> dict[str, Any]:
    """Send nothing more of a batch for now."""
    _batch(request, caller, batch_id)
    control.pause(_pool(request), batch_id)
    return _shown(_batch(request, caller, batch_id))


@router.post("/batches/{batch_id}/resume")
def resume(request: Request, caller: Submitter, batch_id: str) -> dict[str, Any]:
    """Go on with a paused batch."""
    _batch(request, caller, batch_id)
    pool = _pool(request)
    control.resume(pool, batch_id)
    with suppress(BrokerDown, SQLAlchemyError):
        pool.dispatch()
    return _shown(_batch(request, caller, batch_id))


@router.post("/batches/{batch_id}/retry")
def retry(request: Request, caller: Submitter, batch_id: str) -> dict[str, Any]:
    """Submit the lines that were not done again, as a batch of their own."""
    _batch(request, caller, batch_id)
    request.app.state.callers.check_room(caller)
    pool = _pool(request)
    mine = caller.owner
    again = control.retry(pool, batch_id, (), None, None, lambda c, again: api_batches.enter_in(c, again, mine, JOBS))
    with suppress(BrokerDown, SQLAlchemyError):
        pool.dispatch()
    return _shown(_batch(request, caller, again))


@router.get("/batches/{batch_id}/audits")
def audits_of(
    request: Request, caller: Reader, batch_id: str, limit: Annotated[int, Query(ge=1, le=1_000)] = 100
) -> dict[str, Any]:
    """Second opinions on the batch's jobs."""
    _batch(request, caller, batch_id)
    names = ("id", "line_id", "category", "model", "state", "verdict", "auditor", "probability")
    rows = audits.listed(_pool(request).db, state=None, batch_id=batch_id, limit=limit)
    return {"object": "list", "data": [{name: getattr(row, name) for name in names} for row in rows]}


def _batch(request: Request, caller: Caller, batch_id: str) -> Any:
    """A batch's row; a key that is no administrator's sees its own only."""
    db = _pool(request).db
    whose: Whose = caller.whose
    try:
        row = reading.batch(db, batch_id)
    except NotFound:
        raise not_found("batch", batch_id) from None
    if not whose.everybody and api_batches.seen(db, batch_id, whose) is None:
        raise not_found("batch", batch_id)
    return row


def _shown(row: Any) -> dict[str, Any]:
    return {
        "id": row.id,
        "name": row.name,
        "state": row.state,
        "total": row.total,
        "open": row.open,
        **counts(row),
        "priority": row.priority,
        "paused": row.paused_at is not None,
        "created_at": row.created_at,
        "finished_at": row.finished_at,
    }


def _pool(request: Request) -> Pool:
    pool: Pool = request.app.state.pool
    return pool
