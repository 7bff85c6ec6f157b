"""/fan-outs: many at once and their answers merged, as `offload fan-out` does it. Beat moves them on."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import suppress
from typing import Annotated, Any, Literal

import orjson
from fastapi import APIRouter, Depends, Header, Request
from fastapi.responses import StreamingResponse
from pydantic import BeforeValidator, ConfigDict, Field, StringConstraints
from sqlalchemy.exc import SQLAlchemyError

from api.http import bodies
from api.http.bodies import Body
from api.http.callers import Caller, needs
from api.http.errors import ApiError, not_found
from api.http.files import chunks
from api.use_cases import fan_views, fanning
from api.use_cases.pool import Pool
from tasks.errors import BrokerDown, InputError, LineFault, NotFound
from tasks.fanning import Agent, Item
from tasks.ledger import fan_outs
from tasks.ledger.api_keys import Scope
from tasks.ledger.fan_outs import Stage
from tasks.ledger.submit import DEFAULT_DEADLINE_S
from tasks.lines import TouchedPath, few_fields
from tasks.privacy import Tier
from tasks.routing import Said

router = APIRouter(tags=["fan-outs"])

Reader = Annotated[Caller, Depends(needs(Scope.READ))]
Submitter = Annotated[Caller, Depends(needs(Scope.SUBMIT))]
#: faults that are told
MOST_FAULTS = 100
#: bytes of a result that are part of the object; a longer one has a path of its own
MOST_RESULT = 1024 * 1024

Word = Annotated[str, StringConstraints(min_length=1, max_length=64)]
Text = Annotated[str, StringConstraints(min_length=1, pattern=r"\S")]


#: placeholder -> text
Values = Annotated[dict[str, str], Field(fail_fast=True)]
AnAgent = Annotated[Agent, BeforeValidator(few_fields)]


class FanOutBody(Body):
    """What to fan out: inputs and what each is asked, or agents and what all of them are asked.

    An input's keys are its placeholders: `path` is what it touches, `content` may be cut into pieces.
    """

    model_config = ConfigDict(extra="forbid")

    inputs: Annotated[list[Values], Field(min_length=1, max_length=100_000, fail_fast=True)] | None = None
    each: Text | None = None
    agents: Annotated[list[AnAgent], Field(min_length=1, max_length=1_000, fail_fast=True)] | None = None
    prompt: Text | None = None
    file: Annotated[dict[Literal["path", "content"], str], Field(fail_fast=True)] | None = None
    category: Word = "chat"
    system: str | None = None
    json_schema: dict[str, Any] | None = Field(None, alias="schema")
    merge: Text
    merge_category: Word | None = None
    quorum: float | None = Field(None, gt=0, le=1)
    name: Annotated[str, StringConstraints(max_length=200)] | None = None
    priority: int = Field(0, ge=-99, le=99)
    deadline_s: float = Field(DEFAULT_DEADLINE_S, gt=0, le=30 * 86_400)
    touches: Annotated[list[TouchedPath], Field(fail_fast=True)] = Field(default_factory=list, max_length=1_000)
    audience: Word | None = Field(None, alias="for")
    security: bool = False
    privacy: Tier | None = None


@router.post("/fan-outs", openapi_extra=bodies.described(FanOutBody, "/fan-outs"))
async def create(
    request: Request,
    caller: Submitter,
    idempotency_key: Annotated[str | None, Header(max_length=200)] = None,
    x_offload_app: Annotated[str | None, Header(max_length=64)] = None,
) -> dict[str, Any]:
    """Start a fan-out: all of its jobs are submitted, or none."""
    key = caller.key(idempotency_key)
    await asyncio.to_thread(request.app.state.callers.check_room, caller, key)
    body = await bodies.read(request, FanOutBody)
    pool: Pool = request.app.state.pool
    faults: list[LineFault] = []

    def start() -> fanning.Started:
        said = caller.said(body.privacy, x_offload_app)
        wanted = _wanted(body, said, caller.owner, key)
        return fanning.start(pool, wanted, lambda f: faults.append(f) if len(faults) < MOST_FAULTS else None)

    try:
        started = await asyncio.get_running_loop().run_in_executor(request.app.state.submits, start)
    except InputError as error:
        raise ApiError(400, "\n".join(map(str, [*faults, *error.faults])), code="invalid_inputs") from None
    with suppress(BrokerDown, SQLAlchemyError):  # beat sends them later
        await asyncio.to_thread(pool.dispatch)
    counted = {"inputs": started.inputs, "jobs": started.jobs, "new": started.new}
    return {"id": started.fan_out_id, "batch": started.batch_id, "state": Stage.RUNNING, **counted}


@router.get("/fan-outs/{fan_out_id}")
def show(request: Request, caller: Reader, fan_out_id: str, tree: bool = False) -> dict[str, Any]:
    """How it stands; its result once it is done, unless that is long. tree: what is merged with what, too."""
    pool, row = _row(request, caller, fan_out_id)
    found = fan_views.summary(pool, row)
    if tree:
        found["tree"] = fan_views.tree(pool, row)
    if (picked := fan_views.picked(pool, row)) is not None:
        found["best"] = picked
    if row.state == Stage.DONE:
        whole = _short(fan_views.result(pool, row))
        found["result"] = whole if whole is None or not fan_views.is_json(row) else orjson.loads(whole)
    return found


@router.get("/fan-outs/{fan_out_id}/result")
def result(request: Request, caller: Reader, fan_out_id: str) -> StreamingResponse:
    """The result, however long."""
    pool, row = _row(request, caller, fan_out_id)
    if row.state != Stage.DONE:
        raise ApiError(409, f"The fan-out is {row.state} and has no result.", code="no_result")
    kind = "application/json" if fan_views.is_json(row) else "text/plain; charset=utf-8"
    return StreamingResponse(chunks(fan_views.result(pool, row)), media_type=kind)


@router.post("/fan-outs/{fan_out_id}/cancel")
def cancel(request: Request, caller: Submitter, fan_out_id: str) -> dict[str, Any]:
    """Cancel what a fan-out still has before it."""
    pool, row = _row(request, caller, fan_out_id)
    fanning.cancel(pool, row.id)
    return fan_views.summary(*_row(request, caller, fan_out_id))


def _short(parts: Iterator[bytes]) -> str | None:
    """A result in one piece; None where it is longer than MOST_RESULT."""
    whole = bytearray()
    for part in parts:
        whole += part
        if len(whole) > MOST_RESULT:
            return None
    return whole.decode()


def _row(request: Request, caller: Caller, fan_out_id: str) -> tuple[Pool, Any]:
    """A fan-out's row; a key that is no administrator's sees its own only."""
    pool: Pool = request.app.state.pool
    try:
        return pool, fan_outs.one(pool.db, fan_out_id, caller.whose)
    except NotFound:
        raise not_found("fan-out", fan_out_id) from None


def _wanted(body: FanOutBody, said: Said, owner: str, key: str | None) -> fanning.FanOut:
    """What is to be started; raises InputError where inputs and agents are mixed up."""
    asked, placeholders, items = _of_agents(body) if body.agents is not None else _of_inputs(body)
    return fanning.FanOut(
        asked=asked,
        items=items,
        placeholders=placeholders,
        merge=body.merge,
        merge_category=body.merge_category,
        schema=body.json_schema,
        quorum=body.quorum,
        said=Said(None, tuple(body.touches), body.audience, body.security, said.tier, None, said.app),
        name=body.name,
        key=key,
        priority=body.priority,
        deadline=body.deadline_s,
        owner=owner,
    )


Wanted = tuple[list[fanning.Asked], list[str], Iterator[tuple[Item, int]]]


def _of_inputs(body: FanOutBody) -> Wanted:
    if body.inputs is None or body.each is None or body.prompt is not None or body.file is not None:
        raise _fault("inputs", "are needed with `each`, or agents with `prompt` and maybe `file`")
    first = body.inputs[0].keys()
    for number, found in enumerate(body.inputs):
        if found.keys() != first:
            raise _fault(f"inputs.{number}", "has other keys than the first input")
    items = (
        (Item(found.get("path") or str(number), found, _touched(found)), 0)
        for number, found in enumerate(body.inputs, 1)
    )
    return [fanning.Asked(body.each, body.category, body.system)], list(first), items


def _of_agents(body: FanOutBody) -> Wanted:
    agents, prompt = body.agents or [], body.prompt
    if prompt is None or body.inputs is not None or body.each is not None:
        raise _fault("agents", "are needed with `prompt`, and no inputs")
    about: dict[str, str] = {str(k): v for k, v in (body.file or {}).items()}
    if body.file is not None and "content" not in about:
        raise _fault("file.content", "is needed")
    return fanning.of_agents(agents, prompt, body.category, body.system, Item("file", about, _touched(about)))


def _touched(values: dict[str, str]) -> tuple[str, ...]:
    path = values.get("path", "")
    return (path,) if path.strip() else ()


def _fault(field: str, reason: str) -> InputError:
    return InputError([LineFault(0, field, reason)])
