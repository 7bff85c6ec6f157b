"""Answers, and rows of the ledger, as Anthropic's objects. Pure.

Source: shared/contracts/anthropic-batches.md. A stop sequence that was met is told where the server says which it was
(vLLM, SGLang and Anthropic do); from others, Ollama and llama.cpp, it is an `end_turn`: they end all answers alike.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import Any

import orjson
from sqlalchemy.engine import Row

from api.use_cases.openai_views import FAILED, STATUS, text_of
from tasks.errors import BadOutput
from tasks.ledger.api_batches import Seen
from tasks.states import ANSWERED, BatchState, JobState
from workers.backends import Reply

#: how these batches are marked in api_batches
ENDPOINT = "/v1/messages"
#: HTTP status -> Anthropic's type of error; api_error for the others
KINDS = {400: "invalid_request_error", 403: "permission_error", 404: "not_found_error"}

Object = dict[str, Any]


#: of a message that has begun, and of one whose job says no more than that it was answered
NOT_YET: Object = {"stop_reason": None, "stop_sequence": None}
ENDED: Object = {"stop_reason": "end_turn", "stop_sequence": None}


def stopped(reply: Reply) -> Object:
    """Why an answer ended, and at which stop sequence."""
    if reply.tool_calls:
        return ENDED | {"stop_reason": "tool_use"}
    if reply.finish_reason == "length":
        return ENDED | {"stop_reason": "max_tokens"}
    if reply.stop_sequence is not None:
        return {"stop_reason": "stop_sequence", "stop_sequence": reply.stop_sequence}
    return ENDED


def usage(tokens_in: int, tokens_out: int, thinking: int | None = None) -> Object:
    """Tokens; a pool has no cache that it could count."""
    counted = {"input_tokens": tokens_in, "cache_creation_input_tokens": 0, "cache_read_input_tokens": 0}
    details = {} if thinking is None else {"output_tokens_details": {"thinking_tokens": thinking}}
    return counted | {"output_tokens": tokens_out} | details


def message(id_: str, model: str, content: list[Object], stop: Object, counts: Object) -> Object:
    """A message of the assistant's. stop: why it ended."""
    return {
        "id": id_,
        "type": "message",
        "role": "assistant",
        "model": model,
        "content": content,
        **stop,
        "usage": counts,
    }


def content(text: str, reply: Reply) -> list[Object]:
    """The blocks of a whole answer. text: as it was checked. Raises BadOutput for tools called with nonsense."""
    blocks: list[Object] = []
    if reply.reasoning:
        blocks.append({"type": "thinking", "thinking": reply.reasoning, "signature": ""})
    if text:
        blocks.append({"type": "text", "text": text})
    return blocks + [tool_use(call, _input(call["function"]["arguments"])) for call in reply.tool_calls]


def tool_use(call: Object, given: Object) -> Object:
    """A block that calls a tool. call: in OpenAI's shape. given: with what it is called."""
    return {"type": "tool_use", "id": call["id"], "name": call["function"]["name"], "input": given}


def _input(arguments: str) -> Object:
    try:
        given = orjson.loads(arguments or "{}")
    except orjson.JSONDecodeError:
        given = None
    if not isinstance(given, dict):
        raise BadOutput("bad_tool_call", "the model called a tool with something that is no JSON object")
    return given


# --- batches --------------------------------------------------------------------------------------------------


def shown_id(batch_id: str) -> str:
    """What a batch of the ledger is called here."""
    return f"msg{batch_id}"


def ledger_id(message_batch_id: str) -> str | None:
    """The other way round; None for what is no id."""
    found = re.fullmatch(r"msg(batch_[0-9a-f]{16})", message_batch_id)
    return found[1] if found else None


def is_over(seen: Seen) -> bool:
    """Whether a batch changes no more."""
    return seen.row is not None and seen.row.state in (BatchState.FINISHED, BatchState.CANCELLED)


def batch_object(seen: Seen) -> Object:
    """A batch that was loaded.

    Its results_url is a path, which the official clients join with the address they were given: what reached this
    server may be a proxy's plain HTTP, and to another address they would send their key as well.
    """
    api, row = seen.api, seen.row
    assert row is not None
    over, cancelling = is_over(seen), api.cancelling_at or row.cancelled_at
    counts = {
        "processing": 0 if over else row.total,
        "succeeded": row.done + row.escalated if over else 0,
        "errored": row.failed + row.refused if over else 0,
        "canceled": row.cancelled if over else 0,
        "expired": row.expired if over else 0,
    }
    id_ = shown_id(api.id)
    return {
        "id": id_,
        "type": "message_batch",
        "processing_status": "ended" if over else "canceling" if cancelling else "in_progress",
        "request_counts": counts,
        "created_at": _moment(api.created_at),
        "expires_at": _moment(api.expires_at),
        "ended_at": _moment(row.finished_at) if over else None,
        "cancel_initiated_at": _moment(cancelling),
        "archived_at": None,
        "results_url": f"/v1/messages/batches/{id_}/results" if over else None,
    }


def _moment(at: float | None) -> str | None:
    """Unix seconds as RFC 3339."""
    return None if at is None else datetime.fromtimestamp(at, UTC).isoformat(timespec="microseconds")


def result_line(row: Row[Any], output: bytes | None) -> bytes:
    """What came of a request, as a line without its end."""
    return orjson.dumps({"custom_id": row.line_id, "result": _result(row, output)})


def _result(row: Row[Any], output: bytes | None) -> Object:
    if row.state in ANSWERED:
        assert output is not None
        model = row.served_model or row.model_class
        blocks = [{"type": "text", "text": text_of(output)}]
        counts = usage(row.tokens_in, row.tokens_out)
        return {"type": "succeeded", "message": message(f"msg_{row.id}", model, blocks, ENDED, counts)}
    if row.state in FAILED:
        kind = KINDS.get(STATUS.get(row.error_code or "", 500), "api_error")
        error = {"type": kind, "message": row.error_message or "It failed."}
        return {"type": "errored", "error": {"type": "error", "error": error, "request_id": f"req_{row.id}"}}
    return {"type": "expired" if row.state == JobState.EXPIRED else "canceled"}
