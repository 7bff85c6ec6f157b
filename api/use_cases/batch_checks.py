"""Is this a line of an OpenAI batch? Pure; the job that it describes, or its faults in OpenAI's words.

Source: shared/contracts/openai-batch.md, "Validation".
"""

from __future__ import annotations

from typing import Any

import orjson

from api.use_cases import openai_texts as texts
from tasks.errors import LineFault
from tasks.registry import Registry
from tasks.routing import Said
from tasks.schemas import MAX_LINE_BYTES, NewJob, parse_line

#: paths a batch may be for -> the field of a body that asks
ENDPOINTS = {
    "/v1/chat/completions": "messages",
    "/v1/completions": "prompt",
    "/v1/embeddings": "input",
    "/v1/responses": "input",
}
#: requests of a batch, and embedding inputs of all its requests
MOST_LINES, MOST_INPUTS = 50_000, 50_000
#: characters of a custom_id; unconfirmed
MOST_ID = 64

#: a fault as the API shows it: code, line (1-based or None), message, param
Error = dict[str, Any]


def error(code: str, message: str, param: str | None, line: int | None = None) -> Error:
    """A fault in OpenAI's shape."""
    return {"code": code, "line": line, "message": message, "param": param}


def check(raw: bytes, number: int, endpoint: str, registry: Registry, said: Said) -> NewJob | list[Error]:
    """The job of a line, or all that is wrong with it."""
    if len(raw) > MAX_LINE_BYTES:
        return [error("invalid_request", f"The line is longer than {MAX_LINE_BYTES >> 20} MiB.", None, number)]
    try:
        line = orjson.loads(raw)
    except orjson.JSONDecodeError:
        line = None
    if not isinstance(line, dict):
        return [error("invalid_json_line", texts.JSON_LINE, None, number)]
    if errors := [error(code, message, param, number) for code, message, param in _shape(line, endpoint)]:
        return errors
    job = parse_line(raw, number, registry, said)
    return job if isinstance(job, NewJob) else [_translated(fault, line, number) for fault in job]


def inputs(raw: bytes) -> int:
    """Texts that a valid line has embedded."""
    found = orjson.loads(raw)["body"].get("input")
    return len(found) if isinstance(found, list) else 1


def model(raw: bytes) -> str:
    """The model that a valid line asks for."""
    return str(orjson.loads(raw)["body"]["model"])


def _shape(line: dict[str, Any], endpoint: str) -> Any:
    """What is wrong before the body is read closely, as (code, message, param)."""
    for name in ("custom_id", "method", "url", "body"):
        if name not in line:
            yield "missing_required_parameter", texts.MISSING.format(name), name
    if "url" in line and line["url"] != endpoint:
        yield "invalid_url", texts.URL, "url"
        return  # its body is another endpoint's
    if isinstance(line.get("custom_id"), str) and len(line["custom_id"]) > MOST_ID:
        yield "invalid_request", f"The custom_id has more than {MOST_ID} characters.", "custom_id"
    body = line.get("body")
    if not isinstance(body, dict):
        if "body" in line:
            yield "invalid_request", "The body must be an object.", "body"
        return
    if body.get("stream"):
        yield "streaming_unsupported", texts.STREAMING, "body.stream"
    if not body.get("model"):
        yield "invalid_request", texts.REQUIRED.format("Model"), "body.model"
    asks = ENDPOINTS[endpoint]
    if body.get(asks) in (None, []):
        yield "invalid_request", texts.REQUIRED.format(asks.capitalize()), f"body.{asks}"


def _translated(fault: LineFault, line: dict[str, Any], number: int) -> Error:
    """A fault of the pool's own, in OpenAI's shape."""
    if fault.field in ("model", "category"):
        asked = str(line["body"]["model"])[:80]
        return error("model_not_found", f"{texts.MODEL.format(asked)} ({fault.reason})", "body.model", number)
    is_lines = not fault.field or fault.field.partition(".")[0] in line
    param = fault.field if is_lines else f"body.{fault.field}"
    return error("invalid_request", f"{param}: {fault.reason}" if param else fault.reason, param or None, number)
