"""The requests of a message batch become jobs: all of them, or none.

They are read while they are loaded, and a batch that is loading is seen by nobody; the first fault drops it. Requests
are jobs as any: an answer that outgrows max_tokens has failed, and an answer that calls a tool is none, so tools are
not taken.
"""

from __future__ import annotations

import functools
import hashlib
import mmap
import os
import threading
from collections.abc import Iterator
from contextlib import nullcontext, suppress
from dataclasses import replace
from typing import IO, Any

import orjson
from sqlalchemy.exc import SQLAlchemyError

from api.use_cases import anthropic_bodies
from api.use_cases.anthropic_views import ENDPOINT
from api.use_cases.pool import Pool
from tasks.errors import BrokerDown, UsageError
from tasks.ledger import api_batches
from tasks.ledger import submit as loading
from tasks.registry import Registry
from tasks.routing import Said
from tasks.schemas import MAX_LINE_BYTES, NewJob, parse_line

#: requests of a batch, and characters of a custom_id
MOST_REQUESTS, MOST_ID = 100_000, 64
#: what a request of a batch may not have
CANNOT = ("stream", "tools")

#: bytes of a body beyond which there is one at a time: as objects it takes several times its size
LARGE = 16 * 1024 * 1024
_one_at_a_time = threading.Lock()


def submit(pool: Pool, body: IO[bytes], owner: str, said: Said, key: str | None = None) -> str:
    """Load what a file holds, the body of a request as it came; the batch's id. The return is the promise.

    Raises UsageError for the first fault, Conflict where the idempotency key was used for something else.
    """
    with _one_at_a_time if body.seek(0, os.SEEK_END) > LARGE else nullcontext():
        requests, digest = _requests(body)
        batch_id, new = loading.begin(pool.db, name=None, key=key, body_hash=digest)
        if new:
            try:
                added = loading.add(pool.db, batch_id, _jobs(requests, pool.registry, said))
                beside = functools.partial(api_batches.enter_in, batch_id=batch_id, owner=owner, endpoint=ENDPOINT)
                loading.open_batch(pool.db, batch_id, added, beside)
            except BaseException:
                with suppress(SQLAlchemyError):
                    loading.drop_loading(pool.db, batch_id)
                raise
    with suppress(BrokerDown, SQLAlchemyError):  # beat sends them later
        pool.dispatch()
    return batch_id


def _requests(body: IO[bytes]) -> tuple[list[Any], str]:
    """The requests, and a hash of all that was sent."""
    if not body.tell():
        raise UsageError("requests: a list is needed")
    body.flush()
    with mmap.mmap(body.fileno(), 0, access=mmap.ACCESS_READ) as mapped, memoryview(mapped) as view:
        digest = hashlib.blake2b(view, digest_size=16).hexdigest()
        try:
            found = orjson.loads(view)
        except orjson.JSONDecodeError:
            raise UsageError("The body is not JSON.") from None
    requests = found.get("requests") if isinstance(found, dict) else None
    if not isinstance(requests, list) or not requests:
        raise UsageError("requests: a list of at least one is needed")
    if len(requests) > MOST_REQUESTS:
        raise UsageError(f"requests: there are more than {MOST_REQUESTS:,}")
    return requests, digest


def _jobs(requests: list[Any], registry: Registry, said: Said) -> Iterator[NewJob]:
    used: set[str] = set()
    for i in range(len(requests)):
        request, requests[i] = requests[i], None  # its memory is another's from here on
        try:
            job = _job(request, i + 1, registry, said)
        except UsageError as error:
            raise UsageError(f"requests.{i}.{error}") from None
        if job.line_id in used:
            raise UsageError(f"requests.{i}.custom_id: is used before")
        used.add(job.line_id)
        yield job


def _job(request: Any, number: int, registry: Registry, said: Said) -> NewJob:
    """The job of one request; raises UsageError."""
    custom_id = request.get("custom_id") if isinstance(request, dict) else None
    if not isinstance(custom_id, str) or not 1 <= len(custom_id) <= MOST_ID:
        raise UsageError(f"custom_id: a text of 1 to {MOST_ID} characters is needed")
    params = request.get("params")
    if not isinstance(params, dict):
        raise UsageError("params: an object is needed")
    for name in CANNOT:
        if params.get(name):
            raise UsageError(f"params.{name}: is not supported in a batch")
    try:
        body = anthropic_bodies.chat(params, registry)
    except UsageError as error:
        raise UsageError(f"params.{error}") from None
    extras = {name: body.pop(name) for name in ("top_k",) if name in body}
    return _with_extras(_parsed(custom_id, body, number, registry, said), extras)


def _parsed(custom_id: str, body: dict[str, Any], number: int, registry: Registry, said: Said) -> NewJob:
    line = {"custom_id": custom_id, "method": "POST", "url": "/v1/chat/completions", "body": body}
    try:
        raw = orjson.dumps(line)
    except orjson.JSONEncodeError:
        raise UsageError("params: nests too deep") from None
    if len(raw) > MAX_LINE_BYTES:
        raise UsageError(f"params: is larger than {MAX_LINE_BYTES >> 20} MiB")
    found = parse_line(raw, number, registry, said)
    if isinstance(found, NewJob):
        return found
    field = ".".join(filter(None, ("params", found[0].field.removeprefix("body").removeprefix("."))))
    raise UsageError(f"{field}: {found[0].reason}")


def _with_extras(job: NewJob, extras: dict[str, Any]) -> NewJob:
    """The job with generation parameters that OpenAI's lines have no name for."""
    if not extras:
        return job
    body = orjson.loads(job.body)
    return replace(job, body=orjson.dumps(body | {"extras": body.get("extras", {}) | extras}))
