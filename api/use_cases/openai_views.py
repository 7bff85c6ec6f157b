"""Rows of the ledger as OpenAI's objects. Pure.

Source: shared/contracts/openai-batch.md, "Files", "Batches" and "Lines".
"""

from __future__ import annotations

import re
from typing import Any

import orjson
from sqlalchemy.engine import Row

from api.use_cases import openai_texts as texts
from tasks.ledger.api_batches import Phase, Seen
from tasks.states import ANSWERED, TERMINAL, BatchState, JobState

#: states of jobs that ran, or that the pool refused to run
FAILED = frozenset({JobState.FAILED, JobState.REFUSED})
#: states whose lines are in the error file
IN_ERROR_FILE = TERMINAL - ANSWERED
#: statuses that never change
OVER = frozenset({"completed", "failed", "expired", "cancelled"})
#: seconds a file of results can be had for, as an uploaded one
LIVES_S = 30 * 86_400

#: an error code -> the HTTP status that OpenAI would have answered with; 500 for the others
STATUS = {
    "refused": 403,
    "out_of_reach": 403,
    "context_exceeded": 400,
    "not_encodable": 400,
    "bad_request": 400,
    "model_not_found": 404,
    "kind_unsupported": 400,
}


def file_object(row: Any) -> dict[str, Any]:
    """An uploaded file."""
    return _file(row.id, row.bytes, row.created_at, row.expires_at, row.filename, "batch")


def result_file(file_id: str, seen: Seen, size: int) -> dict[str, Any]:
    """A batch's output or error file."""
    assert seen.row is not None
    at = seen.row.finished_at or seen.api.created_at
    kind = file_id.rpartition("-")[2]
    return _file(file_id, size, at, at + LIVES_S, f"{seen.api.id}_{kind}.jsonl", "batch_output")


def _file(file_id: str, size: int, at: float, until: float, name: str, purpose: str) -> dict[str, Any]:
    return {
        "id": file_id,
        "object": "file",
        "bytes": size,
        "created_at": int(at),
        "expires_at": int(until),
        "filename": name,
        "purpose": purpose,
        "status": "processed",
        "status_details": None,
    }


def result_file_ids(batch_id: str) -> tuple[str, str]:
    """What the output and the error file of a batch are called."""
    stem = f"file-{batch_id.removeprefix('batch_')}"
    return f"{stem}-output", f"{stem}-errors"


def batch_of(file_id: str) -> str | None:
    """The batch of which this is the output or the error file; None for an uploaded one."""
    found = re.fullmatch(r"file-([0-9a-f]{16})-(output|errors)", file_id)
    return f"batch_{found[1]}" if found else None


def status(seen: Seen) -> str:
    """A batch's status in OpenAI's words."""
    api, row = seen.api, seen.row
    if api.state == Phase.FAILED or api.state == Phase.CANCELLED:
        return str(api.state)
    if row is None or row.state == BatchState.LOADING:
        return "cancelling" if api.cancelling_at else "validating"
    if row.state == BatchState.OPEN:
        return "cancelling" if api.cancelling_at or row.cancelled_at else "in_progress"
    if row.state == BatchState.CANCELLED:
        return "cancelled"
    return "expired" if row.expired else "completed"


def batch_object(seen: Seen, tokens: tuple[int, int] = (0, 0)) -> dict[str, Any]:
    """A batch. tokens: in and out of its jobs."""
    api, row, now = seen.api, seen.row, status(seen)
    ended = row.finished_at if row is not None and now in OVER else api.cancelled_at
    output, errors = result_file_ids(api.id)
    done = 0 if row is None else row.done + row.escalated
    failed = 0 if row is None else row.failed + row.refused
    unanswered = 0 if row is None else failed + row.cancelled + row.expired
    shows = now in OVER
    return {
        "id": api.id,
        "object": "batch",
        "endpoint": api.endpoint,
        "model": api.model,
        "errors": None if api.errors is None else {"object": "list", "data": api.errors},
        "input_file_id": api.input_file_id,
        "completion_window": api.window,
        "status": now,
        "output_file_id": output if shows and done and output not in api.gone else None,
        "error_file_id": errors if shows and unanswered and errors not in api.gone else None,
        "created_at": int(api.created_at),
        "in_progress_at": _seconds(row.opened_at if row is not None else None),
        "expires_at": int(api.expires_at),
        "finalizing_at": _seconds(ended) if now in ("completed", "expired") else None,
        "completed_at": _seconds(ended) if now == "completed" else None,
        "failed_at": _seconds(api.failed_at),
        "expired_at": _seconds(ended) if now == "expired" else None,
        "cancelling_at": _seconds(api.cancelling_at) if now in ("cancelling", "cancelled") else None,
        "cancelled_at": _seconds(ended) if now == "cancelled" else None,
        "request_counts": {"total": 0 if row is None else row.total, "completed": done, "failed": failed},
        "usage": {
            "input_tokens": tokens[0],
            "input_tokens_details": {"cached_tokens": 0},
            "output_tokens": tokens[1],
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": sum(tokens),
        },
        "metadata": api.meta,
    }


def _seconds(at: float | None) -> int | None:
    return None if at is None else int(at)


# --- lines ----------------------------------------------------------------------------------------------------


def line(row: Row[Any], output: bytes | None, endpoint: str) -> bytes:
    """A line of the output file, or of the error file, without a line end."""
    response: dict[str, Any] | None = None
    error = None
    if row.state in ANSWERED:
        assert output is not None
        response = _response(row, 200, answer(row, output, endpoint))
    elif row.state in FAILED:
        code = row.error_code or "failed"
        kind = "invalid_request_error" if STATUS.get(code, 500) < 500 else "server_error"
        body = {"message": row.error_message or "", "type": kind, "param": None, "code": code}
        response = _response(row, STATUS.get(code, 500), {"error": body})
    else:
        expired = row.state == JobState.EXPIRED
        error = {
            "code": "batch_expired" if expired else "batch_cancelled",
            "message": texts.EXPIRED if expired else texts.CANCELLED,
        }
    return orjson.dumps({"id": f"batch_req_{row.id}", "custom_id": row.line_id, "response": response, "error": error})


def _response(row: Row[Any], code: int, body: dict[str, Any]) -> dict[str, Any]:
    return {"status_code": code, "request_id": f"req_{row.id}", "body": body}


def answer(row: Row[Any], output: bytes, endpoint: str) -> dict[str, Any]:
    """What the endpoint would have answered."""
    made = {"created": int(row.finished_at), "model": row.served_model or row.model_class}
    usage = {
        "prompt_tokens": row.tokens_in,
        "completion_tokens": row.tokens_out,
        "total_tokens": row.tokens_in + row.tokens_out,
    }
    match endpoint:
        case "/v1/embeddings":
            return _embeddings(row, output)
        case "/v1/responses":
            return _responses(row, text_of(output))
        case "/v1/completions":
            choice = {"index": 0, "text": text_of(output), "logprobs": None, "finish_reason": "stop"}
            kind, stem = "text_completion", "cmpl"
        case _:
            message = {"role": "assistant", "content": text_of(output), "refusal": None}
            choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": "stop"}
            kind, stem = "chat.completion", "chatcmpl"
    return {"id": f"{stem}-{row.id}", "object": kind, **made, "choices": [choice], "usage": usage}


def text_of(output: bytes) -> str:
    """Text as it is, anything else as JSON."""
    value = orjson.loads(output)
    return value if isinstance(value, str) else output.decode()


def _embeddings(row: Row[Any], output: bytes) -> dict[str, Any]:
    value = orjson.loads(output)
    vectors = value if value and isinstance(value[0], list) else [value]
    return {
        "object": "list",
        "data": [{"object": "embedding", "index": i, "embedding": vector} for i, vector in enumerate(vectors)],
        "model": row.served_model or row.model_class,
        "usage": {"prompt_tokens": row.tokens_in, "total_tokens": row.tokens_in},
    }


def _responses(row: Row[Any], text: str) -> dict[str, Any]:
    part = {"type": "output_text", "text": text, "annotations": [], "logprobs": []}
    message = {
        "id": f"msg_{row.id}",
        "type": "message",
        "status": "completed",
        "role": "assistant",
        "content": [part],
    }
    return {
        "id": f"resp_{row.id}",
        "object": "response",
        "created_at": int(row.finished_at),
        "status": "completed",
        "error": None,
        "incomplete_details": None,
        "instructions": None,
        "metadata": {},
        "model": row.served_model or row.model_class,
        "output": [message],
        "parallel_tool_calls": False,
        "temperature": None,
        "tool_choice": "none",
        "tools": [],
        "top_p": None,
        "usage": {
            "input_tokens": row.tokens_in,
            "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
            "output_tokens": row.tokens_out,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": row.tokens_in + row.tokens_out,
        },
    }
