"""A body of Anthropic's Messages API becomes the body of a chat in OpenAI's shape. Pure.

    Anthropic                         OpenAI
    model                             the same, or what the aliases in offload.yaml say that it means
    system, messages of role system   one first message of role system: local templates take no other
    messages of one role in a row     one message
    text, document (text), search_result   text
    image (base64)                    image_url, a data: URL
    tool_use                          tool_calls of the assistant's message
    tool_result                       a message of role tool; its images go before the user's next words
    thinking, redacted_thinking       nothing: they are another model's
    tools, tool_choice                functions; `any` is `required`
    disable_parallel_tool_use         parallel_tool_calls: false
    stop_sequences                    stop
    output_config.format              response_format
    metadata.offload                  metadata.offload

Clients send fields that say nothing to a local model, new ones with every version (cache_control, thinking, effort,
context_management, betas, user_id): those are accepted and left out; a class says itself whether its model thinks. What
asks Anthropic's servers to do something, CANNOT and tools without a schema of their own, is a fault. Faults are
UsageErrors that begin with the field.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NoReturn

import orjson

from tasks.errors import UsageError
from tasks.registry import Registry
from tasks.validation import compile_schema

#: fields that would have Anthropic's servers do more than answer
CANNOT = ("container", "mcp_servers")
#: fields of the same name and meaning; OpenAI's checks hold for them
SAME = ("max_tokens", "stream", "temperature", "top_p")
#: what is put before the result of a tool that failed; OpenAI's shape has no mark for it
FAILED = "The tool failed: "

Body = dict[str, Any]
#: a block of a content, and its field
Block = tuple[Body, str]


def chat(body: Mapping[str, Any], registry: Registry, *, limited: bool = True) -> Body:
    """The chat that a body asks for. limited: whether max_tokens must be there. Raises UsageError."""
    model = body.get("model")
    if not isinstance(model, str) or not model:
        _fault("model", "a text is needed")
    if limited and (type(body.get("max_tokens")) is not int or body["max_tokens"] < 1):
        _fault("max_tokens", "a whole number of at least 1 is needed")
    for name in CANNOT:
        if body.get(name):
            _fault(name, "is not supported by this server")
    made: Body = {name: body[name] for name in SAME if body.get(name) is not None}
    made |= {"model": registry.meant(model), "messages": list(_messages(body))}
    return made | _sampling(body) | _tools(body) | _format(body) | _metadata(body)


def _fault(field: str, reason: str) -> NoReturn:
    raise UsageError(f"{field}: {reason}")


def _object(value: Any, field: str) -> Body:
    if not isinstance(value, dict):
        _fault(field, "an object is needed")
    return value


def _text(value: Any, field: str) -> str:
    if not isinstance(value, str):
        _fault(field, "a text is needed")
    return value


def _list(value: Any, field: str) -> list[Any]:
    if not isinstance(value, list):
        _fault(field, "a list is needed")
    return value


def _blocks(value: Any, field: str) -> Iterator[Block]:
    """The blocks of a content; a text is a block of text."""
    if isinstance(value, str):
        yield {"type": "text", "text": value}, field
        return
    if not isinstance(value, list):
        _fault(field, "a text or a list of blocks is needed")
    for i, block in enumerate(value):
        yield _object(block, f"{field}.{i}"), f"{field}.{i}"


def _sampling(body: Mapping[str, Any]) -> Body:
    made: Body = {}
    if (stops := body.get("stop_sequences")) is not None:
        found = [_text(stop, f"stop_sequences.{i}") for i, stop in enumerate(_list(stops, "stop_sequences"))]
        made |= {"stop": found} if found else {}
    if (top_k := body.get("top_k")) is not None:
        if type(top_k) is not int or top_k < 0:
            _fault("top_k", "a whole number is needed")
        made["top_k"] = top_k
    return made


def _format(body: Mapping[str, Any]) -> Body:
    wanted = _object(body.get("output_config") or {}, "output_config").get("format")
    if wanted is None:
        return {}
    field = "output_config.format"
    if _object(wanted, field).get("type") != "json_schema":
        _fault(f"{field}.type", "only json_schema is supported")
    schema = _object(wanted.get("schema"), f"{field}.schema")
    try:
        compile_schema(schema)
    except UsageError as error:
        _fault(f"{field}.schema", str(error))
    return {"response_format": {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema}}}


def _metadata(body: Mapping[str, Any]) -> Body:
    said = _object(body.get("metadata") or {}, "metadata").get("offload")
    return {} if said is None else {"metadata": {"offload": said}}


# --- tools ----------------------------------------------------------------------------------------------------


def _tools(body: Mapping[str, Any]) -> Body:
    offered = [_tool(tool, f"tools.{i}") for i, tool in enumerate(_list(body.get("tools") or [], "tools"))]
    choice = _object(body.get("tool_choice") or {}, "tool_choice")
    if not offered:
        if choice.get("type") in ("any", "tool"):
            _fault("tool_choice", "there are no tools to choose from")
        return {}
    made: Body = {"tools": offered} | _choice(choice, [tool["function"]["name"] for tool in offered])
    return made | ({"parallel_tool_calls": False} if choice.get("disable_parallel_tool_use") else {})


def _tool(value: Any, field: str) -> Body:
    tool = _object(value, field)
    if tool.get("type") not in (None, "custom"):
        _fault(f"{field}.type", "only tools with an input_schema of their own are supported")
    function = {
        "name": _text(tool.get("name"), f"{field}.name"),
        "description": _text(tool.get("description") or "", f"{field}.description"),
        "parameters": _object(tool.get("input_schema"), f"{field}.input_schema"),
    }
    return {"type": "function", "function": function}


def _choice(choice: Body, names: list[str]) -> Body:
    match choice:
        case {"type": "any"}:
            return {"tool_choice": "required"}
        case {"type": "none"}:
            return {"tool_choice": "none"}
        case {"type": "tool", "name": name}:
            if name not in names:
                _fault("tool_choice.name", "is none of the tools")
            return {"tool_choice": {"type": "function", "function": {"name": name}}}
    if choice.get("type") not in (None, "auto"):
        _fault("tool_choice", "is none of auto, any, tool (with its name) and none")
    return {}


# --- the conversation -----------------------------------------------------------------------------------------


def _messages(body: Mapping[str, Any]) -> Iterator[Body]:
    system, turns = list(_blocks(body.get("system") or "", "system")), list[tuple[str, list[Block]]]()
    for role, blocks in _turns(body):
        if role == "system":
            system += blocks
        elif turns and turns[-1][0] == role:
            turns[-1][1].extend(blocks)
        else:
            turns.append((role, blocks))
    if text := "\n".join(filter(None, (_words(*block) for block in system))):
        yield {"role": "system", "content": text}
    for role, blocks in turns:
        yield from _users(blocks) if role == "user" else [_assistants(blocks)]


def _turns(body: Mapping[str, Any]) -> Iterator[tuple[str, list[Block]]]:
    given = _list(body.get("messages"), "messages")
    if not given:
        _fault("messages", "at least one is needed")
    for i, value in enumerate(given):
        field = f"messages.{i}"
        message = _object(value, field)
        if message.get("role") not in ("user", "assistant", "system"):
            _fault(f"{field}.role", "is none of user, assistant and system")
        yield message["role"], list(_blocks(message.get("content"), f"{field}.content"))


def _users(blocks: list[Block]) -> Iterator[Body]:
    """The results of tools, which must follow their calls, and then what the user says."""
    parts: list[Body] = []
    for block, field in blocks:
        if block.get("type") == "tool_result":
            found = [_part(*inner) for inner in _blocks(block.get("content") or "", f"{field}.content")]
            text = "\n".join(part["text"] for part in found if part["type"] == "text")
            name = _text(block.get("tool_use_id"), f"{field}.tool_use_id")
            yield {"role": "tool", "tool_call_id": name, "content": FAILED + text if block.get("is_error") else text}
            parts += [part for part in found if part["type"] != "text"]
    parts += [_part(block, field) for block, field in blocks if block.get("type") != "tool_result"]
    if parts or not blocks:
        yield {"role": "user", "content": _content(parts)}


def _content(parts: list[Body]) -> str | list[Body]:
    """A text where all parts are: some templates take nothing else."""
    if all(part["type"] == "text" for part in parts):
        return "\n".join(part["text"] for part in parts)
    return parts


def _assistants(blocks: list[Block]) -> Body:
    texts, calls = [], []
    for block, field in blocks:
        match block.get("type"):
            case "tool_use":
                calls.append(_made_call(block, field))
            case "thinking" | "redacted_thinking":
                pass
            case _:
                texts.append(_words(block, field))
    message: Body = {"role": "assistant", "content": "\n".join(texts)}
    return message | ({"tool_calls": calls} if calls else {})


def _made_call(block: Body, field: str) -> Body:
    given = _object(block.get("input") or {}, f"{field}.input")
    try:
        arguments = orjson.dumps(given).decode()
    except orjson.JSONEncodeError:
        _fault(f"{field}.input", "nests too deep")
    function = {"name": _text(block.get("name"), f"{field}.name"), "arguments": arguments}
    return {"id": _text(block.get("id"), f"{field}.id"), "type": "function", "function": function}


def _words(block: Body, field: str) -> str:
    """The text of a block that is one."""
    if block.get("type") != "text":
        _fault(f"{field}.type", "only text is supported here")
    return _text(block.get("text"), f"{field}.text")


def _part(block: Body, field: str) -> Body:
    """A block of the user's, or of a tool's result."""
    match block.get("type"):
        case "image":
            return {"type": "image_url", "image_url": {"url": _image(block.get("source"), f"{field}.source")}}
        case "document":
            return {"type": "text", "text": _document(block.get("source"), f"{field}.source")}
        case "search_result":
            texts = [_words(*inner) for inner in _blocks(block.get("content"), f"{field}.content")]
            return {"type": "text", "text": "\n".join([_text(block.get("title"), f"{field}.title"), *texts])}
        case "tool_reference":
            return {"type": "text", "text": _text(block.get("tool_name"), f"{field}.tool_name")}
    if block.get("type") != "text":
        _fault(f"{field}.type", "this kind of block is not supported")
    return {"type": "text", "text": _words(block, field)}


def _image(value: Any, field: str) -> str:
    source = _object(value, field)
    if source.get("type") != "base64":  # an address would make the pool fetch what a stranger names
        _fault(f"{field}.type", "images are given in base64")
    media = _text(source.get("media_type"), f"{field}.media_type")
    return f"data:{media};base64,{_text(source.get('data'), f'{field}.data')}"


def _document(value: Any, field: str) -> str:
    source = _object(value, field)
    match source.get("type"):
        case "text":
            return _text(source.get("data"), f"{field}.data")
        case "content":
            return "\n".join(_words(*inner) for inner in _blocks(source.get("content"), f"{field}.content"))
    _fault(f"{field}.type", "documents are given as text")
