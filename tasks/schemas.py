"""The bytes of a line become a job: read in the pool's own form or OpenAI's, checked, judged and routed.

`parse_line` is the one door: it turns the bytes of a line into a `NewJob`, or into every fault the line has.
The stored body is what the line said of the request itself, in the pool's own field names:
prompt | messages | input, system, json, schema, max_tokens, temperature, timeout_s, metadata, kind, extras.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from itertools import islice
from typing import Any

import orjson
from pydantic import BaseModel, ValidationError

from tasks import openai_lines, privacy, routing, sampling
from tasks.categories import Category
from tasks.errors import LineFault, UsageError
from tasks.lines import JobLine, Message, part_fault
from tasks.openai_lines import OpenAIBody, OpenAIFormat, OpenAILine
from tasks.privacy import Reach, Tier, permits, tightest
from tasks.registry import Registry, nearest
from tasks.routing import Asked, Route, Said
from tasks.validation import compile_schema

#: bytes; a longer line is a mistake (a file that is no JSONL), never a prompt a local model could take
MAX_LINE_BYTES = 16 * 1024 * 1024
#: characters of system text and prompt that must be equal for two prompts to share a prefix worth keeping
PREFIX_CHARS = 400
#: faults of a line that are told, and characters of a field's name that its fault shows
MOST_FAULTS, MOST_NAME = 100, 80
#: levels of nesting in a line; orjson reads more than the 254 it writes, and a request wraps some around these
MAX_DEPTH = 200


@dataclass(frozen=True, slots=True)
class NewJob:
    """A valid line, ready for the ledger.

    line: 1-based. prefix: a hash shared by prompts that begin alike, or None for a short prompt. template: what jobs
    of one kind share beside their prompts, a hash. audit: the share of its kind that is audited. app: the program that
    asks, empty where it does not say.
    """

    line: int
    line_id: str
    category: str
    model: str | None
    body: bytes
    prefix: int | None
    route: Route
    template: str = ""
    audit: float = 0.0
    app: str = ""

    @property
    def model_class(self) -> str:
        """The class it goes to."""
        return self.route.model_class


def parse_line(raw: bytes, number: int, registry: Registry, said: Said = routing.NOTHING) -> NewJob | list[LineFault]:
    """The job that a line describes, or all its faults; of a list that is not taken whole, those of its first bad item.

    `said` holds for lines that say nothing themselves. An absent id becomes the line's number.
    """
    data = _parse_json(raw, number)
    if isinstance(data, list):
        return data
    try:
        line, extras = _read(data, said.category)
    except ValidationError as error:
        if error.error_count() > MOST_FAULTS:  # each would be an object
            return [LineFault(number, "", f"has more than {MOST_FAULTS} faults")]
        root = OpenAILine if error.title == OpenAILine.__name__ else JobLine
        faults = [_fault(number, e, root) for e in error.errors(include_input=False, include_url=False)]
        named = data.get("category") if root is JobLine else None
        if isinstance(named, str) and named and named not in registry.categories:
            faults.append(LineFault(number, "category", _unknown(named, registry)))
        return faults
    found = list(islice(_faults(line, extras, registry, said), MOST_FAULTS))
    if found:
        return [LineFault(number, field, reason) for field, reason in found]
    return _job(line, extras, number, registry, said)


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
    if raw.count(b"[") + raw.count(b"{") > MAX_DEPTH and deeper_than(MAX_DEPTH, data):
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


def deeper_than(levels: int, value: Any) -> bool:
    """Whether lists and objects nest more than `levels` deep in a value that was read as JSON."""
    if not isinstance(value, dict | list):
        return False
    parts = value.values() if isinstance(value, dict) else value
    return levels == 0 or any(deeper_than(levels - 1, part) for part in parts)


def _has_nul(value: Any) -> bool:
    if isinstance(value, str):
        return "\0" in value
    if isinstance(value, dict):
        return any(_has_nul(k) or _has_nul(v) for k, v in value.items())
    return isinstance(value, list) and any(map(_has_nul, value))


def _read(data: dict[str, Any], category: str | None) -> tuple[JobLine, dict[str, Any]]:
    """The line in the pool's own form, and what else the request carries (kind, generation parameters)."""
    if "custom_id" in data or ("body" in data and "url" in data):
        return openai_lines.from_openai(OpenAILine.model_validate(data), category)
    if category is not None:
        data.setdefault("category", category)
    return JobLine.model_validate(data), {}


def _fault(number: int, error: Any, root: type[BaseModel]) -> LineFault:
    """A pydantic error as a line fault; unknown keys name the nearest known one."""
    parts = [str(p) for p in error["loc"] if p not in ("str", "list[str]")]
    parts = [p for p in parts if not p.startswith(("constrained-", "list["))]
    reason = error["msg"]
    if error["type"] == "extra_forbidden":
        reason = "unknown field" + nearest(parts[-1], _fields(root, parts[:-1]))
    return LineFault(number, ".".join(part[:MOST_NAME] for part in parts), reason)


def _fields(model: type[BaseModel], path: list[str]) -> list[str]:
    """The fields known where a path leads."""
    inner: dict[str, type[BaseModel]] = {
        "body": OpenAIBody,
        "messages": Message,
        "response_format": OpenAIFormat,
        "metadata": openai_lines.OpenAIMetadata,
        "offload": openai_lines.OffloadSays,
    }
    for part in path:
        model = inner.get(part, model)
    return [f.alias or name for name, f in model.model_fields.items()]


def _unknown(category: str, registry: Registry) -> str:
    return f"unknown category {category[:40]!r}" + nearest(category, list(registry.categories))


def _faults(line: JobLine, extras: dict[str, Any], registry: Registry, said: Said) -> Any:
    """What pydantic cannot see: (field, reason) pairs."""
    category = registry.categories.get(line.category)
    if category is None:
        yield "category", _unknown(line.category, registry)
    given = [n for n in ("prompt", "messages", "input") if getattr(line, n) is not None]
    for i, message in enumerate(line.messages or ()):
        parts = message.content if isinstance(message.content, list) else ()
        if fault := next(filter(None, map(part_fault, parts)), None):
            yield f"messages.{i}.content", fault
    for name in ("prompt", "input"):
        texts = getattr(line, name) or ()
        if any(not text.strip() for text in ([texts] if isinstance(texts, str) else texts)):
            yield name, "is blank"
    if len(given) != 1:
        yield "", f"exactly one of prompt, messages, input is needed (given: {', '.join(given) or 'none'})"
    if category is None:  # all else depends on it
        return
    if category.kind == "embed" and given == ["messages"]:
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
    if line.model is not None:
        yield from _model_faults(line, category, registry, said)


def _model_faults(line: JobLine, category: Category, registry: Registry, said: Said) -> Any:
    """What is wrong with a model asked for by name."""
    assert line.model is not None
    found = _class(registry, category, line.model)
    if found is None:
        known = sorted(registry.models | set(registry.classes))
        whole = "no class is served by it whole" if line.model in registry.models else "is not configured"
        yield "model", f"model {line.model[:80]!r}: {whole}" + nearest(line.model, known)
        return
    kinds = {c.kind for c in registry.categories.values() if c.model_class == found}
    if kinds and category.kind not in kinds:
        makes = "embeddings" if "embed" in kinds else "no embeddings"
        yield "model", f"class {found} makes {makes}, and category {category.name} is of kind {category.kind}"
    tier = routing.said_tier(_tier(line, said), category, registry)
    if registry.reaches.get(found) is Reach.CLOUD and not permits(tier, Reach.CLOUD):
        yield "model", f"{line.model[:80]} runs in the cloud and the job is {tier}; say privacy: cloud_ok"


def _class(registry: Registry, category: Category, model: str | None) -> str | None:
    """The class a line goes to; `model` may name a class as well."""
    if model is not None and model in registry.classes:
        return model
    return registry.class_for(category, model)


#: fields of a line that are no part of the request itself
_APART = frozenset({"id", "category", "model", "touches", "for_", "security", "privacy", "app"})


def _job(line: JobLine, extras: dict[str, Any], number: int, registry: Registry, said: Said) -> NewJob:
    category = registry.categories[line.category]
    body = line.model_dump(exclude=set(_APART), exclude_none=True, by_alias=True) | extras
    if category.kind == "embed" and "prompt" in body:
        body["input"] = body.pop("prompt")
    pinned = None if line.model in registry.classes else line.model
    template, audit = sampled(body, category)
    model_class = _class(registry, category, line.model) or category.model_class
    return NewJob(
        line=number,
        line_id=line.id or str(number),
        category=category.name,
        model=pinned,
        body=orjson.dumps(body),
        prefix=_prefix(body),
        route=routing.route(_asked(line, body, category, said), category, model_class, registry, said.consent),
        template=template,
        audit=audit,
        app=line.app or said.app or "",
    )


def sampled(body: dict[str, Any], category: Category) -> tuple[str, float]:
    """For a stored body: the hash of what jobs of its kind share, and the share of them that is audited."""
    return _template(body, category), category.audit if category.kind == "chat" else 0.0


def _asked(line: JobLine, body: dict[str, Any], category: Category, said: Said) -> Asked:
    """What the judge and the detectors look at."""
    sent = {name: value for name, value in body.items() if name != "metadata"}
    return Asked(
        category=category.name,
        prompt_bytes=_size(body),
        text="\n".join([category.system, *privacy.texts(sent)]),
        touches=said.touches if line.touches is None else tuple(line.touches),
        audience=line.for_ or said.audience,
        security=said.security if line.security is None else line.security,
        tier=_tier(line, said),
    )


def _tier(line: JobLine, said: Said) -> Tier | None:
    return tightest(Tier(line.privacy) if line.privacy else None, said.tier)


def _size(body: dict[str, Any]) -> int:
    """Bytes of the prompt; of several inputs to embed, the longest."""
    inputs = body.get("input")
    prompts = inputs if isinstance(inputs, list) else [prompt_text(body)]
    return max(len(prompt.encode(errors="surrogatepass")) for prompt in prompts)


def _template(body: dict[str, Any], category: Category) -> str:
    """What jobs of one kind share beside their prompts: system text, schema and the category's treatment."""
    first = (body.get("messages") or [{}])[0]
    system = _content(first) if first.get("role") in ("system", "developer") else ""
    own = orjson.dumps([body.get("system"), system, body.get("schema"), body.get("json")]).decode()
    return sampling.template(own, category.treatment)


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
