"""Claude, by Anthropic's own package (Messages API, version 2026-10-21; contracts/anthropic-batches.md).

What a call carries becomes, by name:

    Call            sent as
    schema          output_config.format json_schema
    json            nothing: the instructions in its system text ask for it
    think           thinking adaptive, where it is true
    tools           tools, their choice as any, none or tool
    max_tokens      as it is, or MAX_TOKENS: the protocol wants a number
    extras          `stop` as stop_sequences; the API rejects temperature, top_p and top_k, so they are left out
    options         nothing

The package retries nothing, follows no redirect, and takes neither proxies nor keys from the environment by itself:
every request is one call row, and goes to one address.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import time
from collections.abc import AsyncIterator, Collection, Iterator, Mapping
from typing import Any

import anthropic
import httpx2

from tasks.errors import CallError, ConfigError, Misconfigured, Offline, Permanent, Transient
from tasks.privacy import Reach
from workers.backends import Call, Delta, Health, Probe, Reply
from workers.backends.border import Border
from workers.backends.refusals import midstream, refusal
from workers.backends.streams import ToolCalls, incomplete, malformed

#: tokens of an answer where nobody says how many
MAX_TOKENS = 8_192
#: characters of one answer
MAX_ANSWER_CHARS = 16 * 1024 * 1024
#: seconds for the question of a probe
PROBE_TIMEOUT = 10.0
#: stop reasons that are no plain end, in OpenAI's words
_FINISH = {"max_tokens": "length", "model_context_window_exceeded": "length", "tool_use": "tool_calls"}


class Anthropic:
    """A provider of kind `anthropic`; url is the API's root."""

    def __init__(self, url: str, name: str, api_key: str | None, border: Border) -> None:
        if border.reach is not Reach.CLOUD:  # its sockets are the package's own, so nothing else would hold them
            raise ConfigError(f"{name}: a provider of kind anthropic has reach cloud")
        for logger in (
            "anthropic",
            "httpx2",
            "httpcore2",
        ):  # their debug lines hold prompts, whatever ANTHROPIC_LOG says
            logging.getLogger(logger).setLevel(logging.WARNING)
        os.environ.pop("ANTHROPIC_CUSTOM_HEADERS", None)  # the package would send them
        self._name = name
        self._border = border
        self._has_key = bool(api_key)
        transport = httpx2.AsyncHTTPTransport(trust_env=False, limits=httpx2.Limits(max_connections=None))
        self._client = anthropic.AsyncAnthropic(
            api_key=(api_key or "none").strip(),
            base_url=url,
            max_retries=0,
            http_client=httpx2.AsyncClient(transport=transport, trust_env=False, follow_redirects=False),
            open_telemetry=False,  # spans may carry what was said
        )

    async def call(self, call: Call) -> Reply:
        """Send one request, if it may leave, and read its whole reply; raises CallError."""
        body = message_body(call, self._name)
        await self._border.admitted(self._name, call.clearance, body)
        if not self._has_key:
            raise Misconfigured("unauthorized", f"{self._name}: its key is not set")
        answer = _Answer(self._name, call)
        with self._errors():
            async with asyncio.timeout(call.timeouts.total), await self._started(body, call) as stream:
                await answer.read(stream)
        return answer.reply()

    async def _started(self, body: dict[str, Any], call: Call) -> Any:
        timeout = httpx2.Timeout(call.timeouts.total, connect=call.timeouts.connect)
        try:
            async with asyncio.timeout(call.timeouts.first_token):
                return await self._client.messages.create(**body, stream=True, timeout=timeout)
        except TimeoutError:
            raise Transient("first_token_timeout", f"{self._name}: no first token in time") from None

    async def probe(self) -> Probe:
        """Ask for the list of models, which costs nothing; it says whether the key is good."""
        if not self._has_key:
            return Probe(Health.MISCONFIGURED, "its key is not set")
        try:
            with self._errors():
                await self._client.models.list(limit=1, timeout=PROBE_TIMEOUT)
        except Misconfigured as error:
            return Probe(Health.MISCONFIGURED, str(error))
        except (Offline, Transient) as error:
            return Probe(Health.OFFLINE, str(error))
        except Exception as error:
            return Probe(Health.BUSY, str(error) if isinstance(error, Permanent) else type(error).__name__)
        return Probe(Health.HEALTHY, server="anthropic")

    async def unload(self, models: Collection[str]) -> bool:
        """Its memory is its own."""
        return False

    async def aclose(self) -> None:
        """Close every connection."""
        await self._client.close()

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        """What the package raises becomes a CallError; its texts may quote what was sent, so they stay here."""
        try:
            yield
        except TimeoutError:
            raise Transient("total_timeout", f"{self._name}: the call took longer than it may") from None
        except anthropic.APIConnectionError as error:
            raise _unconnected(self._name, error.__cause__) from None
        except anthropic.APIStatusError as error:
            if error.status_code == 200:
                raise midstream(self._name, _error_in(error.body)) from None
            raise refusal(self._name, error.status_code, error.response.headers, error.response.content) from None
        except anthropic.APIError:
            raise Transient("malformed", f"{self._name}: the reply has an unexpected shape") from None
        except httpx2.HTTPError as error:
            raise _unconnected(self._name, error) from None
        except ValueError:  # an event that is no JSON, or no UTF-8
            raise malformed(self._name) from None


def _unconnected(name: str, cause: BaseException | None) -> CallError:
    """The CallError for what the package's HTTP client could not do."""
    match cause:
        case httpx2.ConnectTimeout():
            return Offline("connect_timeout", f"{name}: no connection in time")
        case httpx2.ConnectError() | httpx2.UnsupportedProtocol():
            return Offline("no_route", f"{name}: its address cannot be reached")
        case httpx2.TimeoutException():
            return Transient("total_timeout", f"{name}: no answer in time")
        case httpx2.RemoteProtocolError():
            return incomplete(name)
    return Transient("reset", f"{name}: the connection broke")


def _error_in(body: object) -> Any:
    return body.get("error", body) if isinstance(body, Mapping) else body


class _Answer:
    """Gathers the events of one message."""

    def __init__(self, name: str, call: Call) -> None:
        self._name = name
        self._call = call
        self._began = time.monotonic()
        self._first = 0.0
        self._model = call.model
        self._tool_calls = ToolCalls()
        self._text: list[str] = []
        self._reasoning: list[str] = []
        self._stop: str | None = None
        self._stop_sequence: str | None = None
        self._in = self._out = self._size = 0

    async def read(self, stream: AsyncIterator[Any]) -> None:
        """Take every event; Transient where the stream stalls or ends before its message does."""
        limits = self._call.timeouts
        while True:
            wait = limits.between_tokens if self._first else limits.first_token
            try:
                async with asyncio.timeout(wait):
                    event = await anext(stream)
            except StopAsyncIteration:
                break
            except TimeoutError:
                code = "stalled" if self._first else "first_token_timeout"
                raise Transient(code, f"{self._name}: no token for {wait:g} s") from None
            try:
                self._take(event)
            except (AttributeError, TypeError):
                raise malformed(self._name) from None
        if self._stop is None:
            raise incomplete(self._name)

    def _take(self, event: Any) -> None:
        match event.type:
            case "message_start":
                self._model = event.message.model or self._model
                usage = event.message.usage
                cached = (usage.cache_read_input_tokens or 0) + (usage.cache_creation_input_tokens or 0)
                self._in = usage.input_tokens + cached
            case "content_block_delta":
                self._first = self._first or time.monotonic()
                self._check_size(event)
                if event.delta.type == "text_delta":
                    self._text.append(event.delta.text)
                    self._tell(Delta(event.delta.text))
                elif event.delta.type == "thinking_delta":
                    self._reasoning.append(event.delta.thinking)
                    self._tell(Delta(reasoning=event.delta.thinking))
                elif event.delta.type == "input_json_delta":
                    part = {"index": event.index, "function": {"arguments": event.delta.partial_json}}
                    self._tell(Delta(tool_calls=self._tool_calls.take([part])))
            case "content_block_start" if event.content_block.type == "tool_use":
                self._first = self._first or time.monotonic()
                block = event.content_block
                head = {"id": block.id, "type": "function", "function": {"name": block.name, "arguments": ""}}
                self._tell(Delta(tool_calls=self._tool_calls.take([{"index": event.index, **head}])))
            case "content_block_stop" if self._tool_calls.lacks_arguments(event.index):  # a tool that takes none
                part = {"index": event.index, "function": {"arguments": "{}"}}
                self._tell(Delta(tool_calls=self._tool_calls.take([part])))
            case "message_delta":
                self._stop = event.delta.stop_reason
                self._stop_sequence = event.delta.stop_sequence
                self._out = event.usage.output_tokens

    def _tell(self, delta: Delta) -> None:
        if self._call.on_delta is not None:
            self._call.on_delta(delta)

    def _check_size(self, event: Any) -> None:
        given = (getattr(event.delta, name, "") or "" for name in ("text", "thinking", "partial_json"))
        self._size += sum(map(len, given))
        if self._size > MAX_ANSWER_CHARS:
            large = f"{self._name}: the answer is over {MAX_ANSWER_CHARS >> 20} million characters"
            raise Permanent("output_too_large", large, "answer")

    def reply(self) -> Reply:
        """What was answered."""
        now = time.monotonic()
        return Reply(
            self._model,
            "".join(self._text),
            "".join(self._reasoning),
            tool_calls=self._tool_calls.whole(),
            finish_reason=_FINISH.get(self._stop or "", "stop"),
            stop_sequence=self._stop_sequence,
            tokens_in=self._in,
            tokens_out=self._out,
            first_token_ms=((self._first or now) - self._began) * 1000,
            duration_ms=(now - self._began) * 1000,
        )


def message_body(call: Call, name: str) -> dict[str, Any]:
    """The arguments of messages.create; Permanent for what the protocol cannot say."""
    if call.kind == "embed":
        raise Permanent("kind_unsupported", f"{name}: makes no embeddings")
    conversation = call.messages or [{"role": "user", "content": call.prompt}]
    system = [_text(m.get("content")) for m in conversation if m.get("role") in ("system", "developer")]
    body: dict[str, Any] = {
        "model": call.model,
        "max_tokens": call.max_tokens or MAX_TOKENS,
        "messages": _messages(conversation, name),
    }
    if any(system):
        body["system"] = "\n".join(filter(None, system))
    if call.schema is not None:
        body["output_config"] = {"format": {"type": "json_schema", "schema": call.schema}}
    if call.think:
        body["thinking"] = {"type": "adaptive"}
    if call.tools:
        body |= _tools(call, name)
    if stop := call.extras.get("stop"):
        body["stop_sequences"] = [stop] if isinstance(stop, str) else stop
    return body


def _tools(call: Call, name: str) -> dict[str, Any]:
    """OpenAI's functions as Anthropic's tools, and which of them must be used."""
    try:
        functions = [tool["function"] for tool in call.tools]
        tools = [
            {
                "name": one["name"],
                "description": one.get("description") or "",
                "input_schema": one.get("parameters") or {"type": "object"},
            }
            for one in functions
        ]
    except (KeyError, TypeError):
        raise Permanent("bad_request", f"{name}: a tool is no function with a name") from None
    match call.tool_choice:
        case "required":
            return {"tools": tools, "tool_choice": {"type": "any"}}
        case "none":
            return {"tools": tools, "tool_choice": {"type": "none"}}
        case {"function": {"name": str(wanted)}}:
            return {"tools": tools, "tool_choice": {"type": "tool", "name": wanted}}
    return {"tools": tools}


def _messages(conversation: list[dict[str, Any]], name: str) -> list[dict[str, Any]]:
    """The conversation without system texts; results of tools that follow each other are one message."""
    made: list[dict[str, Any]] = []
    role_before: Any = None
    for message in conversation:
        if (role := message.get("role")) in ("system", "developer"):
            continue
        translated = _message(message, name)
        if role == role_before == "tool":
            made[-1]["content"] += translated["content"]
        else:
            made.append(translated)
        role_before = role
    return made


def _message(message: Mapping[str, Any], name: str) -> dict[str, Any]:
    """A message of OpenAI's shape in Anthropic's."""
    role, content = message.get("role"), message.get("content")
    if role == "tool":
        result = {"type": "tool_result", "tool_use_id": message.get("tool_call_id"), "content": _text(content)}
        return {"role": "user", "content": [result]}
    if made := message.get("tool_calls"):
        text = [{"type": "text", "text": _text(content)}] if content else []
        return {"role": "assistant", "content": [*text, *(_tool_use(one, name) for one in made)]}
    if not isinstance(content, list):
        return {"role": role, "content": content or ""}
    return {"role": role, "content": [_part(part, name) for part in content]}


def _tool_use(call: Mapping[str, Any], name: str) -> dict[str, Any]:
    try:
        function = call["function"]
        given = json.loads(function.get("arguments") or "{}")
        return {"type": "tool_use", "id": call["id"], "name": function["name"], "input": given}
    except (KeyError, TypeError, ValueError):
        raise Permanent("bad_request", f"{name}: a tool call of the conversation is no function's") from None


def _part(part: Mapping[str, Any], name: str) -> dict[str, Any]:
    if part.get("type") == "text" and isinstance(part.get("text"), str):
        return {"type": "text", "text": part["text"]}
    source = part.get("image_url")
    url = source.get("url") if isinstance(source, dict) else source
    if part.get("type") != "image_url" or not isinstance(url, str) or not url.startswith("data:"):
        raise Permanent("bad_request", f"{name}: takes text and images given as data: URLs, nothing else")
    media, _, data = url.removeprefix("data:").partition(";base64,")
    return {"type": "image", "source": {"type": "base64", "media_type": media, "data": data}}


def _text(content: object) -> str:
    if isinstance(content, list):
        return "\n".join(str(part.get("text", "")) for part in content if isinstance(part, dict))
    return str(content or "")
