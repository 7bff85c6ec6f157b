"""A job line, in the pool's own form and as a line of an OpenAI batch file.

`parse_line` is the one door: it turns the bytes of a line into a `NewJob`, or into every fault the line has.
The stored body is what the line said of the request itself, in the pool's own field names:
prompt | messages | input, system, json, schema, max_tokens, temperature, timeout_s, metadata, kind, extras.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import orjson
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError, model_validator

from tasks.categories import Category
from tasks.errors import LineFault, UsageError
from tasks.registry import Registry, nearest
from tasks.validation import compile_schema

#: bytes; a longer line is a mistake (a file that is no JSONL), never a prompt a local model could take
MAX_LINE_BYTES = 16 * 1024 * 1024
#: characters of system text and prompt that must be equal for two prompts to share a prefix worth keeping
PREFIX_CHARS = 400
#: levels of nesting in a line; orjson reads more than the 254 it writes, and a request wraps some around these
MAX_DEPTH = 200

Text = Annotated[str, StringConstraints(min_length=1)]
LineId = Annotated[str, StringConstraints(min_length=1, max_length=256)]


class _Line(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, hide_input_in_errors=True)


class Message(_Line):
    """One message of a chat, in OpenAI's shape."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[dict[str, Any]] | None = None
    name: str | None = None
    tool_calls: list[dict[str, Any]] | None = None
    tool_call_id: str | None = None


class JobLine(_Line):
    """One line of a job file. Exactly one of prompt, messages and input is given."""

    id: LineId | None = None
    category: Text
    prompt: Text | None = None
    messages: Annotated[list[Message], Field(min_length=1)] | None = None
    input: Text | Annotated[list[Text], Field(min_length=1, max_length=2048)] | None = None
    system: str | None = None
    json_: bool | None = Field(None, alias="json")
    schema_: dict[str, Any] | None = Field(None, alias="schema")
    model: Text | None = None
    max_tokens: int | None = Field(None, ge=1, le=1_000_000)
    temperature: float | None = Field(None, ge=0, le=2)
    timeout_s: float | None = Field(None, gt=0, le=86_400)
    metadata: dict[str, Any] | None = None


class _OpenAISchema(_Line):
    name: str | None = None
    description: str | None = None
    strict: bool | None = None
    schema_: dict[str, Any] = Field(alias="schema")


class _OpenAIFormat(_Line):
    type: Literal["text", "json_object", "json_schema"]
    json_schema: _OpenAISchema | None = None

    @model_validator(mode="after")
    def _schema_is_there(self) -> _OpenAIFormat:
        if (self.type == "json_schema") is not (self.json_schema is not None):
            raise ValueError("json_schema goes with type json_schema, and only with it")
        return self


class OpenAIBody(_Line):
    """The request body of an OpenAI batch line, as far as local servers can honour it."""

    model: Text
    messages: Annotated[list[Message], Field(min_length=1)] | None = None
    prompt: Text | None = None
    input: Text | Annotated[list[Text], Field(min_length=1, max_length=2048)] | None = None
    max_tokens: int | None = Field(None, ge=1, le=1_000_000)
    max_completion_tokens: int | None = Field(None, ge=1, le=1_000_000)
    temperature: float | None = Field(None, ge=0, le=2)
    response_format: _OpenAIFormat | None = None
    metadata: dict[str, Any] | None = None
    user: str | None = None
    encoding_format: Literal["float"] | None = None
    stream: Literal[False] | None = None
    n: Literal[1] | None = None
    top_p: float | None = Field(None, gt=0, le=1)
    seed: int | None = None
    stop: str | list[str] | None = None
    frequency_penalty: float | None = Field(None, ge=-2, le=2)
    presence_penalty: float | None = Field(None, ge=-2, le=2)


class OpenAILine(_Line):
    """One line of an OpenAI batch file."""

    custom_id: LineId
    method: Literal["POST"]
    url: Literal["/v1/chat/completions", "/v1/completions", "/v1/embeddings"]
    body: OpenAIBody


#: generation parameters that are passed on under OpenAI's names
EXTRAS = ("top_p", "seed", "stop", "frequency_penalty", "presence_penalty")


@dataclass(frozen=True, slots=True)
class NewJob:
    """A valid line, ready for the ledger.

    line: 1-based. prefix: a hash shared by prompts that begin alike, or None for a short prompt.
    """

    line: int
    line_id: str
    category: str
    model_class: str
    model: str | None
    body: bytes
    prefix: int | None


def parse_line(raw: bytes, number: int, registry: Registry, category: str | None = None) -> NewJob | list[LineFault]:
    """The job that a line describes, or all its faults.

    `category` is used for lines that name none. An absent id becomes the line's number.
    """
    data = _parse_json(raw, number)
    if isinstance(data, list):
        return data
    try:
        line, extras = _read(data, registry, category)
    except ValidationError as error:
        root = OpenAILine if error.title == OpenAILine.__name__ else JobLine
        return [_fault(number, e, root) for e in error.errors(include_input=False, include_url=False)]
    faults = list(_faults(line, extras, registry))
    if faults:
        return [LineFault(number, field, reason) for field, reason in faults]
    return _job(line, extras, number, registry)


def _parse_json(raw: bytes, number: int) -> dict[str, Any] | list[LineFault]:
    if b"\0" in raw:
        return [LineFault(number, "", "contains a NUL byte")]
    try:
        data = orjson.loads(raw)
    except orjson.JSONDecodeError as error:
        reason = "is not UTF-8" if not _is_utf8(raw) else f"is not JSON (column {error.colno}: {error.msg})"
        return [LineFault(number, "", reason)]
    if not isinstance(data, dict):
        return [LineFault(number, "", "is not a JSON object")]
    if raw.count(b"[") + raw.count(b"{") > MAX_DEPTH and _deeper_than(MAX_DEPTH, data):
        return [LineFault(number, "", f"nests deeper than {MAX_DEPTH} levels")]
    if b"\\u0000" in raw and _has_nul(data):
        return [LineFault(number, "", "contains a NUL character (\\u0000)")]
    return data


def _is_utf8(raw: bytes) -> bool:
    try:
        raw.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


def _deeper_than(levels: int, value: Any) -> bool:
    if not isinstance(value, dict | list):
        return False
    parts = value.values() if isinstance(value, dict) else value
    return levels == 0 or any(_deeper_than(levels - 1, part) for part in parts)


def _has_nul(value: Any) -> bool:
    if isinstance(value, str):
        return "\0" in value
    if isinstance(value, dict):
        return any(_has_nul(k) or _has_nul(v) for k, v in value.items())
    return isinstance(value, list) and any(map(_has_nul, value))


def _read(data: dict[str, Any], registry: Registry, category: str | None) -> tuple[JobLine, dict[str, Any]]:
    """The line in the pool's own form, and what else the request carries (kind, generation parameters)."""
    if "custom_id" in data or ("body" in data and "url" in data):
        return _from_openai(OpenAILine.model_validate(data), registry, category)
    if category is not None:
        data.setdefault("category", category)
    return JobLine.model_validate(data), {}


def _from_openai(line: OpenAILine, registry: Registry, category: str | None) -> tuple[JobLine, dict[str, Any]]:
    body = line.body
    named = body.model.removeprefix("category:") if body.model.startswith("category:") else None
    default = "embed" if line.url.endswith("embeddings") else "chat"
    fields: dict[str, Any] = {
        "id": line.custom_id,
        "category": named or category or default,
        "model": None if named or body.model == "auto" else body.model,
        "messages": body.messages,
        "prompt": body.prompt,
        "input": body.input,
        "max_tokens": body.max_completion_tokens or body.max_tokens,
        "temperature": body.temperature,
        "metadata": body.metadata,
    }
    if body.response_format and body.response_format.type != "text":
        fields["json"] = True
        fields["schema"] = body.response_format.json_schema and body.response_format.json_schema.schema_
    extras = {name: value for name in EXTRAS if (value := getattr(body, name)) is not None}
    more: dict[str, Any] = {"extras": extras} if extras else {}
    if line.url == "/v1/completions":
        more["kind"] = "complete"
    return JobLine.model_validate(fields), more


def _fault(number: int, error: Any, root: type[BaseModel]) -> LineFault:
    """A pydantic error as a line fault; unknown keys name the nearest known one."""
    parts = [str(p) for p in error["loc"] if p not in ("str", "list[str]")]
    parts = [p for p in parts if not p.startswith(("constrained-", "list["))]
    reason = error["msg"]
    if error["type"] == "extra_forbidden":
        reason = "unknown field" + nearest(parts[-1], _fields(root, parts[:-1]))
    return LineFault(number, ".".join(parts), reason)


def _fields(model: type[BaseModel], path: list[str]) -> list[str]:
    """The fields known where a path leads."""
    inner: dict[str, type[BaseModel]] = {"body": OpenAIBody, "messages": Message, "response_format": _OpenAIFormat}
    for part in path:
        model = inner.get(part, model)
    return [f.alias or name for name, f in model.model_fields.items()]


def _faults(line: JobLine, extras: dict[str, Any], registry: Registry) -> Any:
    """What pydantic cannot see: (field, reason) pairs."""
    category = registry.categories.get(line.category)
    if category is None:
        yield "category", f"unknown category {line.category[:40]!r}" + nearest(line.category, list(registry.categories))
        return
    given = [n for n in ("prompt", "messages", "input") if getattr(line, n) is not None]
    for name in ("prompt", "input"):
        texts = getattr(line, name) or ()
        if any(not text.strip() for text in ([texts] if isinstance(texts, str) else texts)):
            yield name, "is blank"
    if len(given) != 1:
        yield "", f"exactly one of prompt, messages, input is needed (given: {', '.join(given) or 'none'})"
    elif category.kind == "embed" and given == ["messages"]:
        yield "messages", "an embedding takes input"
    elif category.kind != "embed" and given == ["input"]:
        yield "input", f"category {category.name} takes prompt or messages"
    elif extras.get("kind") == "complete" and given == ["messages"]:
        yield "messages", "/v1/completions takes prompt"
    if category.kind == "embed" and (line.json_ or line.schema_ is not None):
        yield "json", "an embedding has no JSON form to ask for"
    if line.schema_ is not None:
        if line.json_ is False:
            yield "json", "a schema asks for JSON; json cannot be false"
        try:
            compile_schema(line.schema_)
        except UsageError as error:
            yield "schema", str(error)
    if line.model is not None and _class(registry, category, line.model) is None:
        known = sorted(registry.models | set(registry.classes))
        whole = "no class is served by it whole" if line.model in registry.models else "is not configured"
        yield "model", f"model {line.model[:80]!r}: {whole}" + nearest(line.model, known)


def _class(registry: Registry, category: Category, model: str | None) -> str | None:
    """The class a line goes to; `model` may name a class as well."""
    if model is not None and model in registry.classes:
        return model
    return registry.class_for(category, model)


def _job(line: JobLine, extras: dict[str, Any], number: int, registry: Registry) -> NewJob:
    category = registry.categories[line.category]
    body = line.model_dump(exclude={"id", "category", "model"}, exclude_none=True, by_alias=True) | extras
    if category.kind == "embed" and "prompt" in body:
        body["input"] = body.pop("prompt")
    pinned = None if line.model in registry.classes else line.model
    model_class = _class(registry, category, line.model) or category.model_class
    return NewJob(
        line=number,
        line_id=line.id or str(number),
        category=category.name,
        model_class=model_class,
        model=pinned,
        body=orjson.dumps(body),
        prefix=_prefix(body),
    )


def _prefix(body: dict[str, Any]) -> int | None:
    text = (body.get("system") or "") + prompt_text(body)
    if len(text) < PREFIX_CHARS:
        return None
    return int.from_bytes(hashlib.blake2b(text[:PREFIX_CHARS].encode(), digest_size=8).digest(), "big")


def prompt_text(body: dict[str, Any]) -> str:
    """All the text that a request carries but its system text; what checks and estimates look at."""
    if "prompt" in body:
        return str(body["prompt"])
    if "input" in body:
        return body["input"] if isinstance(body["input"], str) else "\n".join(body["input"])
    return "\n".join(map(_content, body.get("messages", ())))


def _content(message: dict[str, Any]) -> str:
    content = message.get("content")
    if isinstance(content, list):
        return "\n".join(str(part.get("text", "")) for part in content if isinstance(part, dict))
    return content or ""
