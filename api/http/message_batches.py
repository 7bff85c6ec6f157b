"""/v1/messages/batches: Anthropic's batches over the ledger (shared/contracts/anthropic-batches.md)."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Iterator
from functools import partial
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Header, Query, Request
from fastapi.responses import StreamingResponse

from api.http.callers import Caller, needs
from api.http.errors import ApiError, not_found
from api.http.files import chunks
from api.use_cases import anthropic_views as views
from api.use_cases import message_batches
from api.use_cases.pool import Pool
from tasks.ledger import api_batches, endings, reading
from tasks.ledger.api_batches import Seen
from tasks.ledger.api_keys import Scope
from tasks.lines import App
from tasks.states import TERMINAL

router = APIRouter(prefix="/v1/messages/batches", tags=["message batches"])

Reader = Annotated[Caller, Depends(needs(Scope.READ))]
Submitter = Annotated[Caller, Depends(needs(Scope.SUBMIT))]


@router.post("")
async def create(
    request: Request,
    caller: Submitter,
    idempotency_key: Annotated[str | None, Header(max_length=200)] = None,
    x_offload_app: Annotated[App | None, Header()] = None,
) -> dict[str, Any]:
    """Make a batch of the requests in the body: all of them, or the first fault."""
    key = caller.key(idempotency_key)
    await asyncio.to_thread(request.app.state.callers.check_room, caller, key)
    said = caller.said(app=x_offload_app)
    with tempfile.TemporaryFile() as spool:
        async for part in request.stream():
            spool.write(part)
        load = partial(message_batches.submit, _pool(request), spool, caller.owner, said, key)
        batch_id = await asyncio.get_running_loop().run_in_executor(request.app.state.submits, load)
    return await asyncio.to_thread(retrieve, request, caller, views.shown_id(batch_id))


@router.get("")
def list_batches(
    request: Request,
    caller: Reader,
    after_id: str | None = None,
    before_id: str | None = None,
    limit: Annotated[int, Query(ge=1, le=1000)] = 20,
) -> dict[str, Any]:
    """The batches there are, the newest first."""
    after, before = _cursor("after_id", after_id), _cursor("before_id", before_id)
    if after and before:
        raise ApiError(400, "before_id: goes without after_id")
    given = (_pool(request).db, caller.whose, views.ENDPOINT, limit)
    found = api_batches.of_endpoint(*given, after=after, before=before)
    if found is None:
        raise ApiError(400, f"{'before_id' if before else 'after_id'}: names no batch of this list")
    page = found[-limit:] if before else found[:limit]
    data = [views.batch_object(seen) for seen in page]
    ends = {"first_id": data[0]["id"] if data else None, "last_id": data[-1]["id"] if data else None}
    return {"data": data, "has_more": len(found) > limit, **ends}


def _cursor(name: str, value: str | None) -> str | None:
    """The batch that a page is next to."""
    if value is None:
        return None
    found = views.ledger_id(value)
    if found is None:
        raise ApiError(400, f"{name}: names no batch of this list")
    return found


@router.get("/{message_batch_id}")
def retrieve(request: Request, caller: Reader, message_batch_id: str) -> dict[str, Any]:
    """One batch."""
    return views.batch_object(_find(request, caller, message_batch_id))


@router.post("/{message_batch_id}/cancel")
def cancel(request: Request, caller: Submitter, message_batch_id: str) -> dict[str, Any]:
    """Cancel what a batch still has before it; what was answered is kept. Repeating it changes nothing."""
    pool, seen = _pool(request), _find(request, caller, message_batch_id)
    if not views.is_over(seen):
        api_batches.ask_to_cancel(pool.db, seen.api.id)
        endings.cancel(pool.db, seen.api.id)
    return views.batch_object(_find(request, caller, message_batch_id))


@router.delete("/{message_batch_id}")
def delete(request: Request, caller: Submitter, message_batch_id: str) -> dict[str, Any]:
    """Forget a batch that has ended."""
    seen = _find(request, caller, message_batch_id)
    if not views.is_over(seen):
        raise ApiError(400, "This batch is still processed: cancel it first.")
    api_batches.forget(_pool(request).db, seen.api.id)
    return {"id": message_batch_id, "type": "message_batch_deleted"}


@router.get("/{message_batch_id}/results")
def results(request: Request, caller: Reader, message_batch_id: str) -> StreamingResponse:
    """What came of each request, one line each, once the batch has ended."""
    seen = _find(request, caller, message_batch_id)
    if not views.is_over(seen):
        raise ApiError(404, "This batch is still processed: it has no results yet.")
    return StreamingResponse(chunks(_lines(_pool(request), seen.api.id)), media_type="application/x-jsonl")


def _lines(pool: Pool, batch_id: str) -> Iterator[bytes]:
    for row, output in reading.ended(pool.db, batch_id, TERMINAL):
        yield views.result_line(row, output) + b"\n"


def _find(request: Request, caller: Caller, message_batch_id: str) -> Seen:
    """A batch that the caller may see; raises ApiError."""
    batch_id = views.ledger_id(message_batch_id)
    seen = api_batches.seen(_pool(request).db, batch_id, caller.whose) if batch_id is not None else None
    if seen is None or seen.row is None or seen.api.endpoint != views.ENDPOINT:
        raise not_found("message batch", message_batch_id)
    return seen


def _pool(request: Request) -> Pool:
    pool: Pool = request.app.state.pool
    return pool
