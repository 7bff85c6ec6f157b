"""/v1/files: uploaded files, and the output and error files of batches, which are views of the ledger."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import suppress
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, File, Form, Query, Request, UploadFile
from fastapi.responses import FileResponse, Response, StreamingResponse
from sqlalchemy.exc import SQLAlchemyError

from api.http.callers import Caller, needs
from api.http.errors import ApiError, not_found
from api.http.key_first import KeyFirst
from api.use_cases import openai_views as views
from api.use_cases import uploads
from api.use_cases.pool import Pool
from tasks.ledger import api_batches, reading
from tasks.ledger.api_batches import Seen
from tasks.ledger.api_keys import Scope
from tasks.states import ANSWERED

router = APIRouter(prefix="/v1/files", tags=["files"], route_class=KeyFirst)

Reader = Annotated[Caller, Depends(needs(Scope.READ))]
Submitter = Annotated[Caller, Depends(needs(Scope.SUBMIT))]
#: batches of which files are listed
MOST_LISTED = 10_000


@router.post("")
def upload(
    request: Request,
    caller: Submitter,
    file: Annotated[UploadFile, File()],
    purpose: Annotated[str, Form()],
    anchor: Annotated[str | None, Form(alias="expires_after[anchor]")] = None,
    seconds: Annotated[int | None, Form(alias="expires_after[seconds]")] = None,
) -> dict[str, Any]:
    """Keep a JSONL file for a batch."""
    if purpose != "batch":
        raise ApiError(400, "This server keeps files of purpose 'batch' only.", code="invalid_value", param="purpose")
    if (seconds is None) is not (anchor is None) or anchor not in (None, "created_at"):
        raise ApiError(400, "expires_after has anchor 'created_at' and seconds.", param="expires_after")
    if seconds is not None and not uploads.SHORTEST_S <= seconds <= uploads.LONGEST_S:
        words = f"expires_after.seconds is from {uploads.SHORTEST_S} to {uploads.LONGEST_S}."
        raise ApiError(400, words, code="invalid_value", param="expires_after.seconds")
    if not _is_text(file.filename or ""):
        raise ApiError(400, "The file's name holds half a character.", code="invalid_value", param="file")
    row = uploads.keep(_pool(request), file.file, file.filename or "", caller.owner, seconds or uploads.LIVES_S)
    return views.file_object(row)


def _is_text(name: str) -> bool:
    """Whether it can be kept; a form may name a charset in which halves of characters can be written."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


@router.get("")
def list_files(
    request: Request,
    caller: Reader,
    after: str | None = None,
    limit: Annotated[int, Query(ge=1, le=10_000)] = 10_000,
    order: Literal["asc", "desc"] = "desc",
    purpose: str | None = None,
) -> dict[str, Any]:
    """The files there are."""
    found = list(_listed(request, caller, purpose))
    found.sort(key=lambda one: (one[0]["created_at"], one[0]["id"]), reverse=order == "desc")
    if after is not None:
        at = next((i for i, (file, _) in enumerate(found) if file["id"] == after), None)
        if at is None:
            raise ApiError(400, "after names no file of this list.", code="invalid_value", param="after")
        found = found[at + 1 :]
    shown = [(seen, file["id"]) for file, seen in found[:limit] if seen is not None]
    sizes = _sizes(request, shown)
    for file, _ in found[:limit]:
        file["bytes"] = sizes.get(file["id"], file["bytes"])
    return listed([file for file, _ in found], limit)


def _listed(request: Request, caller: Caller, purpose: str | None) -> Iterator[tuple[dict[str, Any], Seen | None]]:
    """Every file, and the batch of one that is a view: its size is not counted yet."""
    pool = _pool(request)
    if purpose in (None, "batch"):
        for row in api_batches.list_files(pool.db, caller.whose):
            yield views.file_object(row), None
    if purpose in (None, "batch_output"):
        for seen in api_batches.page(pool.db, caller.whose, None, MOST_LISTED) or ():
            shown = views.batch_object(seen)
            for file_id in filter(None, (shown["output_file_id"], shown["error_file_id"])):
                yield views.result_file(file_id, seen, 0), seen


@router.get("/{file_id}")
def retrieve(request: Request, caller: Reader, file_id: str) -> dict[str, Any]:
    """One file."""
    if seen := _view(request, caller, file_id):
        return views.result_file(file_id, seen, _sizes(request, [(seen, file_id)])[file_id])
    row = api_batches.file(_pool(request).db, file_id, caller.whose)
    if row is None:
        raise not_found("File object", file_id)
    return views.file_object(row)


@router.get("/{file_id}/content")
def content(request: Request, caller: Reader, file_id: str) -> Response:
    """Its bytes."""
    if seen := _view(request, caller, file_id):
        return StreamingResponse(chunks(lines(request, seen, file_id)), media_type="application/jsonl")
    pool = _pool(request)
    path = uploads.path_of(pool, file_id)
    if api_batches.file(pool.db, file_id, caller.whose) is None or not path.is_file():
        raise not_found("File object", file_id)
    return FileResponse(path, media_type="application/jsonl")


@router.delete("/{file_id}")
def delete(request: Request, caller: Submitter, file_id: str) -> dict[str, Any]:
    """Forget a file; batches that were made of it go on, and one that is still validating keeps it (409)."""
    pool = _pool(request)
    if seen := _view(request, caller, file_id):
        api_batches.delete_view(pool.db, seen.api.id, file_id)
    elif api_batches.file(pool.db, file_id, caller.whose) is None:
        raise not_found("File object", file_id)
    else:
        uploads.drop(pool, file_id)
    return {"id": file_id, "object": "file", "deleted": True}


def _view(request: Request, caller: Caller, file_id: str) -> Seen | None:
    """The ended batch of which this is a file; None for an uploaded one."""
    batch_id = views.batch_of(file_id)
    if batch_id is None:
        return None
    seen = api_batches.seen(_pool(request).db, batch_id, caller.whose)
    shown = views.batch_object(seen) if seen is not None else {}
    if file_id not in (shown.get("output_file_id"), shown.get("error_file_id")):
        raise not_found("File object", file_id)
    return seen


def lines(request: Request, seen: Seen, file_id: str) -> Iterator[bytes]:
    """The lines of a batch's file, each with its end."""
    states = ANSWERED if file_id.endswith("-output") else views.IN_ERROR_FILE
    for row, output in reading.ended(_pool(request).db, seen.api.id, states):
        yield views.line(row, output, seen.api.endpoint) + b"\n"


def chunks(parts: Iterable[bytes], size: int = 1 << 16) -> Iterator[bytes]:
    """The same bytes in pieces of about a size: each piece is a hop between threads."""
    buffer = bytearray()
    for part in parts:
        buffer += part
        if len(buffer) >= size:
            yield bytes(buffer)
            buffer.clear()
    yield bytes(buffer)


def listed(found: list[dict[str, Any]], limit: int) -> dict[str, Any]:
    """A page of a list. found: what is left of it, or one more than the page."""
    page = found[:limit]
    return {
        "object": "list",
        "data": page,
        "first_id": page[0]["id"] if page else None,
        "last_id": page[-1]["id"] if page else None,
        "has_more": len(found) > limit,
    }


def _sizes(request: Request, wanted: Iterable[tuple[Seen, str]]) -> dict[str, int]:
    """Bytes of batches' files; they are counted once, and then in the ledger."""
    found: dict[str, int] = {}
    counted: defaultdict[str, dict[str, int]] = defaultdict(dict)
    for seen, file_id in wanted:
        size = api_batches.size(seen, file_id)
        if size is None:
            size = counted[seen.api.id][file_id] = sum(map(len, lines(request, seen, file_id)))
        found[file_id] = size
    if counted:
        with suppress(SQLAlchemyError):  # whoever asks next counts them again
            api_batches.keep_sizes(_pool(request).db, counted)
    return found


def _pool(request: Request) -> Pool:
    pool: Pool = request.app.state.pool
    return pool
