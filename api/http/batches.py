"""/v1/batches: OpenAI's batches over the ledger."""

from __future__ import annotations

import asyncio
import hashlib
from typing import Annotated, Any, Literal

import orjson
from fastapi import APIRouter, Depends, Header, Query, Request
from fastapi.responses import StreamingResponse
from pydantic import ConfigDict, Field, StringConstraints

from api.http import bodies
from api.http.bodies import Body
from api.http.callers import Caller, needs
from api.http.errors import ApiError, not_found
from api.http.files import chunks, lines, listed
from api.use_cases import openai_texts as texts
from api.use_cases import openai_views as views
from api.use_cases.batch_checks import ENDPOINTS
from api.use_cases.pool import Pool
from tasks.ledger import api_batches, endings
from tasks.ledger.api_batches import Seen
from tasks.ledger.api_keys import Scope
from tasks.ledger.submit import DEFAULT_DEADLINE_S
from tasks.lines import App
from tasks.routing import Said
from tasks.states import BatchState

router = APIRouter(prefix="/v1/batches", tags=["batches"])

Reader = Annotated[Caller, Depends(needs(Scope.READ))]
Submitter = Annotated[Caller, Depends(needs(Scope.SUBMIT))]
#: pairs of metadata, at most
MOST_PAIRS = 16


class OutputExpiresAfter(Body):
    """When the files of results may go. They are views of the ledger, and stay at least as long."""

    anchor: Literal["created_at"]
    seconds: int = Field(ge=3_600, le=2_592_000)


class NewBatch(Body):
    """What a batch is made of."""

    model_config = ConfigDict(strict=True)

    input_file_id: Annotated[str, StringConstraints(min_length=1, max_length=200)]
    endpoint: str
    completion_window: str
    metadata: (
        Annotated[
            dict[
                Annotated[str, StringConstraints(max_length=64)],
                Annotated[str, StringConstraints(max_length=512)],
            ],
            Field(fail_fast=True),
        ]
        | None
    ) = None
    output_expires_after: OutputExpiresAfter | None = None


@router.post("", openapi_extra=bodies.described(NewBatch, "/v1/batches"))
async def create(
    request: Request,
    caller: Submitter,
    idempotency_key: Annotated[str | None, Header(max_length=200)] = None,
    x_offload_app: Annotated[App | None, Header()] = None,
) -> dict[str, Any]:
    """Make a batch of an uploaded file; its lines are checked after this has answered."""
    new = await bodies.read(request, NewBatch)
    _check(new)
    said, key = caller.said(app=x_offload_app), caller.key(idempotency_key)
    return await asyncio.to_thread(_created, request, caller, new, said, key)


def _created(request: Request, caller: Caller, new: NewBatch, said: Said, key: str | None) -> dict[str, Any]:
    request.app.state.callers.check_room(caller, key)
    values: dict[str, Any] = {
        "owner": caller.owner,
        "endpoint": new.endpoint,
        "input_file_id": new.input_file_id,
        "window": new.completion_window,
        "meta": new.metadata,
        "said": {"tier": said.tier, "app": said.app},
        "tell_at": 0.0 if _pool(request).registry.api.webhooks else None,
        "request_key": key,
        "request_hash": hashlib.blake2b(orjson.dumps(new.model_dump()), digest_size=16).hexdigest(),
    }
    seen, _ = api_batches.create(_pool(request).db, values, DEFAULT_DEADLINE_S)
    request.app.state.validator.wake()
    return views.batch_object(seen)


def _check(new: NewBatch) -> None:
    if new.endpoint not in ENDPOINTS:
        known = ", ".join(f"'{path}'" for path in ENDPOINTS)
        words = f"Invalid value: '{new.endpoint[:80]}'. Supported values are: {known}."
        raise ApiError(400, words, code="invalid_value", param="endpoint")
    if new.completion_window != "24h":
        words = f"Invalid value: '{new.completion_window[:80]}'. Supported values are: '24h'."
        raise ApiError(400, words, code="invalid_value", param="completion_window")
    if new.metadata is not None and len(new.metadata) > MOST_PAIRS:
        raise ApiError(400, f"metadata has {MOST_PAIRS} pairs at most.", code="invalid_value", param="metadata")


@router.get("")
def list_batches(
    request: Request,
    caller: Reader,
    after: str | None = None,
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
) -> dict[str, Any]:
    """The batches there are, the newest first."""
    found = api_batches.page(_pool(request).db, caller.whose, after, limit)
    if found is None:
        raise ApiError(400, "after names no batch of this list.", code="invalid_value", param="after")
    return listed([_shown(request, seen) for seen in found], limit)


@router.get("/{batch_id}")
def retrieve(request: Request, caller: Reader, batch_id: str) -> dict[str, Any]:
    """One batch."""
    return _shown(request, find(request, caller, batch_id))


@router.post("/{batch_id}/cancel")
def cancel(request: Request, caller: Submitter, batch_id: str) -> dict[str, Any]:
    """Cancel what a batch still has before it; what was answered is kept. Repeating it changes nothing."""
    seen = find(request, caller, batch_id)
    if (status := views.status(seen)) in views.OVER - {"cancelled"}:
        raise ApiError(409, texts.CANNOT_CANCEL.format(status), code="conflict")
    pool = _pool(request)
    api_batches.ask_to_cancel(pool.db, batch_id)
    seen = find(request, caller, batch_id)
    if seen.row is not None and seen.row.state == BatchState.OPEN:
        endings.cancel(pool.db, batch_id)
    request.app.state.validator.wake()
    return _shown(request, find(request, caller, batch_id))


@router.get("/{batch_id}/output")
def output(request: Request, caller: Reader, batch_id: str) -> StreamingResponse:
    """The output lines there are so far; this pool's own addition."""
    seen = find(request, caller, batch_id)
    file_id, _ = views.result_file_ids(batch_id)
    return StreamingResponse(chunks(lines(request, seen, file_id)), media_type="application/jsonl")


def find(request: Request, caller: Caller, batch_id: str) -> Seen:
    """A batch that the caller may see; raises ApiError."""
    seen = api_batches.seen(_pool(request).db, batch_id, caller.whose)
    if seen is None or not seen.api.input_file_id:  # one of /jobs has no line of this kind
        raise not_found("batch", batch_id)
    return seen


def _shown(request: Request, seen: Seen) -> dict[str, Any]:
    if views.status(seen) not in views.OVER or seen.row is None:
        return views.batch_object(seen)
    tokens: dict[str, tuple[int, int]] = request.app.state.tokens
    counted = tokens.get(seen.api.id)
    if counted is None:  # they never change
        counted = tokens[seen.api.id] = api_batches.tokens(_pool(request).db, seen.api.id)
    return views.batch_object(seen, counted)


def _pool(request: Request) -> Pool:
    pool: Pool = request.app.state.pool
    return pool
