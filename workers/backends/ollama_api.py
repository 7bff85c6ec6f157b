"""Ollama's native protocol: /api/chat, /api/generate, /api/embed (docs/api.md and api/types.go, v0.33).

Read on the wire, not in the documents:

- `think` unset means on for a model that can; with `format` its answer is then empty.  So it is always sent.
- a prompt longer than the context loses its beginning in silence, unless `truncate` is false; `shift` false
  does the same for an answer that outgrows it (done_reason `length`).  So both are always sent.
- any change of a runner option reloads the model.  So the class's options are always sent, and `keep_alive`,
  which would overrule the user's own setting, never.
- timings are nanoseconds, in the last object only, and absent when 0.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping
from typing import Any

import orjson

from tasks.errors import Permanent
from tasks.privacy import Reach
from workers.backends import Call, Delta, Probe, Reply, recognise
from workers.backends.base import Answer, Http, Times
from workers.backends.border import LOOPBACK, Border
from workers.backends.locality import Locality
from workers.backends.refusals import midstream
from workers.backends.streams import JsonLines, ToolCalls, WholeBody, incomplete, malformed, vectors
from workers.backends.unloading import unload

#: OpenAI's name of a generation parameter → Ollama's option; what is not here Ollama does not have
OPTION_OF_EXTRA = {
    "top_p": "top_p",
    "top_k": "top_k",
    "min_p": "min_p",
    "seed": "seed",
    "stop": "stop",
    "presence_penalty": "presence_penalty",
    "frequency_penalty": "frequency_penalty",
    "repeat_penalty": "repeat_penalty",
    "max_completion_tokens": "num_predict",
    "max_tokens": "num_predict",
    "temperature": "temperature",
}
#: seconds for each question of a probe
PROBE_TIMEOUT = 5.0


class Ollama:
    """A provider of kind `ollama`; url is the server's root."""

    def __init__(self, url: str, name: str, api_key: str | None = None, border: Border = LOOPBACK) -> None:
        self._http = Http(url, name, api_key, border)
        self._name = name
        self._is_cloud = border.reach is Reach.CLOUD
        self._locality = Locality(name, self._http.get)

    async def call(self, call: Call) -> Reply:
        """Send one request; Permanent `not_local` for a model on somebody else's machine."""
        if not self._is_cloud:
            await self._locality.check(call.model, call.timeouts.connect)
        if call.kind == "embed":
            return await self._embed(call)
        answer = _Answer(self._name, call)
        chat = call.kind == "chat"
        path, body = ("/api/chat", chat_body(call)) if chat else ("/api/generate", text_body(call))
        times = await self._http.post(path, body, answer, call.timeouts, call.clearance)
        self._check_served(call.model, answer.last)
        return answer.reply(times)

    async def probe(self) -> Probe:
        """Ask /api/tags and /api/ps; models that run elsewhere are left out."""
        probe = await recognise.ollama(self._ask)
        return dataclasses.replace(probe, models=()) if self._is_cloud else probe

    async def unload(self, models: Collection[str]) -> bool:
        """Let Ollama forget those of the models that it holds; a cloud's memory is its own."""
        return not self._is_cloud and await unload(self._http, "ollama", models)

    async def aclose(self) -> None:
        """Close every connection."""
        await self._http.aclose()

    async def _ask(self, path: str) -> Answer:
        answer = await self._http.get(path, PROBE_TIMEOUT)
        if path == "/api/tags" and answer.status == 200:
            self._locality.remember(answer)
        return answer

    def _check_served(self, model: str, last: Mapping[str, Any]) -> None:
        """A reply may say that another machine gave it; what was sent is gone, and nothing more follows it."""
        if last.get("remote_host") and not self._is_cloud:
            raise self._locality.elsewhere(model)

    async def _embed(self, call: Call) -> Reply:
        body = {"model": call.model, "input": call.inputs, "truncate": False, "options": options(call)}
        whole = WholeBody(self._name)
        times = await self._http.post("/api/embed", body, whole, call.timeouts, call.clearance)
        self._check_served(call.model, whole.value)
        rows = vectors(whole.value.get("embeddings"), len(call.inputs), self._name)
        return Reply(call.model, vectors=rows, **_measures(whole.value, times))


class _Answer:
    """Reads the NDJSON of one chat or completion."""

    def __init__(self, name: str, call: Call) -> None:
        self.started = False
        self.complete = False
        self._name = name
        self._model = call.model
        self._on_delta = call.on_delta
        self._tool_calls = ToolCalls()
        self._served: Any = None  #: what the server says it was
        self._text: list[str] = []
        self._reasoning: list[str] = []
        self.last: dict[str, Any] = {}
        lines = JsonLines(self._take, name)
        self.feed = lines.feed
        self._end = lines.end

    def end(self) -> None:
        """The body is over: without `done: true` it was cut."""
        self._end()
        if not self.complete:
            raise incomplete(self._name)

    def _take(self, part: dict[str, Any]) -> None:
        if "error" in part:
            raise midstream(self._name, part["error"])
        message = part.get("message")
        tool_calls: tuple[dict[str, Any], ...] = ()
        if message is None:
            text, thought = part.get("response"), part.get("thinking")
        elif isinstance(message, dict):
            text, thought = message.get("content"), message.get("thinking")
            if message.get("tool_calls"):
                tool_calls = self._called(message["tool_calls"])
        else:
            raise malformed(self._name)
        if text:
            self._text.append(text)
        if thought:
            self._reasoning.append(thought)
        if text or thought or tool_calls:
            self.started = True
            if self._on_delta is not None:
                self._on_delta(Delta(text or "", thought or "", tool_calls))
        if part.get("done"):
            self.last = part
            self._served = part.get("model")
            self.complete = True

    def _called(self, made: Any) -> tuple[dict[str, Any], ...]:
        """Ollama's calls in OpenAI's shape: arguments as text, and ids, which it does not give."""
        try:
            return self._tool_calls.take([_tool_call(one["function"], self._tool_calls.next_id()) for one in made])
        except (KeyError, TypeError, AttributeError):
            raise malformed(self._name) from None

    def reply(self, times: Times) -> Reply:
        """What was answered."""
        try:
            text, reasoning = "".join(self._text), "".join(self._reasoning)
        except TypeError:
            raise malformed(self._name) from None
        return Reply(
            self._served if isinstance(self._served, str) and self._served else self._model,
            text,
            reasoning,
            tool_calls=self._tool_calls.whole(),
            finish_reason=str(self.last.get("done_reason") or "stop"),
            **_measures(self.last, times),
        )


def chat_body(call: Call) -> dict[str, Any]:
    """The body of POST /api/chat; raises Permanent where the answer would not be what was asked for."""
    forced = call.tools and call.tool_choice not in (None, "auto", "none")
    for what, asked in (("tool_choice", forced), ("logit_bias", call.extras.get("logit_bias"))):
        if asked:
            raise Permanent(
                "bad_request", f"Ollama does not know {what}; leave it out, or ask a class of another server"
            )
    names = _names_of_calls(call.messages)
    body = {"messages": [_message(message, names) for message in call.messages], **_common(call)}
    return {**body, "tools": list(call.tools)} if call.tools and call.tool_choice != "none" else body


def text_body(call: Call) -> dict[str, Any]:
    """The body of POST /api/generate; the model's own template still frames the prompt."""
    return {"prompt": call.prompt, **_common(call)}


def _common(call: Call) -> dict[str, Any]:
    body: dict[str, Any] = {
        "model": call.model,
        "stream": True,
        "think": bool(call.think),
        "truncate": False,
        "shift": False,
        "options": options(call),
    }
    if call.schema is not None:
        body["format"] = call.schema
    elif call.json:
        body["format"] = "json"
    return body


def options(call: Call) -> dict[str, Any]:
    """The class's options, overlaid with the caller's parameters under Ollama's names."""
    merged = dict(call.options)
    for extra, value in call.extras.items():
        if value is not None and extra in OPTION_OF_EXTRA:
            merged[OPTION_OF_EXTRA[extra]] = value
    if isinstance(merged.get("stop"), str):
        merged["stop"] = [merged["stop"]]
    if call.temperature is not None:
        merged["temperature"] = call.temperature
    if call.max_tokens is not None:
        merged["num_predict"] = call.max_tokens
    return merged


def _names_of_calls(messages: Collection[Mapping[str, Any]]) -> dict[str, Any]:
    """id of a call that the model made before -> its function's name; many a template names a result by it."""
    made = [one for message in messages for one in message.get("tool_calls") or ()]
    return {str(one.get("id")): one["function"].get("name") for one in made if isinstance(one.get("function"), dict)}


def _message(message: Mapping[str, Any], names: Mapping[str, Any]) -> dict[str, Any]:
    """A message of OpenAI's shape in Ollama's: one text, and the images apart. names: of the calls made before it."""
    role = "system" if message.get("role") == "developer" else message.get("role", "user")
    content = message.get("content") or ""
    parts = content if isinstance(content, list) else [{"type": "text", "text": content}]
    texts = [part["text"] for part in parts if part.get("type") == "text"]
    translated: dict[str, Any] = {"role": role, "content": "\n".join(texts)}
    if images := [_image(part) for part in parts if part.get("type") != "text"]:
        translated["images"] = images
    if made := message.get("tool_calls"):
        translated["tool_calls"] = [_made_call(one) for one in made]
    if answered := message.get("tool_call_id"):
        translated["tool_call_id"] = answered
        if name := message.get("name") or names.get(answered):
            translated["tool_name"] = name
    return translated


def _made_call(call: Mapping[str, Any]) -> dict[str, Any]:
    """A call that the model made before, with its arguments as an object."""
    try:
        function = call["function"]
        made = {"function": {"name": function["name"], "arguments": orjson.loads(function.get("arguments") or "{}")}}
    except (KeyError, TypeError, orjson.JSONDecodeError):
        raise Permanent("bad_request", "a tool call of the conversation has no name, or no JSON arguments") from None
    return {"id": call["id"], **made} if isinstance(call.get("id"), str) else made


def _tool_call(function: Mapping[str, Any], call_id: str) -> dict[str, Any]:
    arguments = orjson.dumps(function.get("arguments") or {}).decode()
    return {"id": call_id, "type": "function", "function": {"name": function["name"], "arguments": arguments}}


def _image(part: Mapping[str, Any]) -> str:
    """The base64 of a data: URL; an address would make the pool fetch what a stranger names."""
    source = part.get("image_url")
    url = source.get("url") if isinstance(source, dict) else source
    if part.get("type") != "image_url" or not isinstance(url, str) or not url.startswith("data:"):
        raise Permanent("bad_request", "Ollama takes text and images given as data: URLs, nothing else")
    return url.partition(",")[2]


def _measures(last: Mapping[str, Any], times: Times) -> dict[str, Any]:
    """Token counts, and times in milliseconds."""
    return {
        "tokens_in": last.get("prompt_eval_count") or 0,
        "tokens_out": last.get("eval_count") or 0,
        "load_ms": (last.get("load_duration") or 0) / 1e6,
        "first_token_ms": times.first_token_ms,
        "duration_ms": times.duration_ms,
    }
