"""The protocol that llama-swap, llama.cpp, vLLM, LM Studio and LiteLLM share.

/chat/completions and /completions as server-sent events, /embeddings as one object; the base URL is given
with its /v1.  What a call carries becomes, by name:

    Call            sent as
    schema, json    response_format json_schema, json_object
    think           chat_template_kwargs.enable_thinking, unless None (llama.cpp, vLLM; LM Studio ignores it)
    extras          as they are, but for NOT_OURS
    options         only those in SHARED_OPTIONS: the rest (num_ctx, num_gpu …) configures Ollama's runner
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from tasks.errors import Offline
from tasks.privacy import Reach, is_cloud_name
from workers.backends import Call, Delta, Health, Probe, Reply
from workers.backends.base import Answer, Http, Times
from workers.backends.border import LOOPBACK, Border
from workers.backends.locality import Locality
from workers.backends.recognise import recognise
from workers.backends.refusals import midstream, refusal
from workers.backends.streams import ServerSentEvents, ToolCalls, WholeBody, incomplete, malformed, parse, vectors
from workers.backends.unloading import unload

#: names of a class's options that OpenAI-compatible servers know as well
SHARED_OPTIONS = frozenset(
    {"temperature", "top_p", "top_k", "min_p", "seed", "stop"}
    | {"repeat_penalty", "presence_penalty", "frequency_penalty"}
)
#: what a caller may not set: a call is one answer, streamed
NOT_OURS = frozenset({"stream", "stream_options", "n", "best_of", "echo"})
#: seconds for each question of a probe
PROBE_TIMEOUT = 5.0


class OpenAI:
    """A provider of kind `openai` or `gguf`; url is the base with its /v1."""

    def __init__(self, url: str, name: str, api_key: str | None = None, border: Border = LOOPBACK) -> None:
        base = url.rstrip("/")
        root = base.removesuffix("/v1")
        self._http = Http(root, name, api_key, border)
        self._prefix = base[len(root) :]
        self._name = name
        self._is_cloud = border.reach is Reach.CLOUD
        self._is_ollama: bool | None = None  #: such a server may have models that run elsewhere; None: nobody knows yet
        self._locality = Locality(name, self._http.get)

    async def call(self, call: Call) -> Reply:
        """Send one request and read its whole reply; raises CallError."""
        if not self._is_cloud:
            await self._check_local(call.model, call.timeouts.connect)
        if call.kind == "embed":
            return await self._embed(call)
        answer = _Answer(self._name, call)
        path = self._prefix + ("/chat/completions" if call.kind == "chat" else "/completions")
        return answer.reply(await self._http.post(path, text_body(call), answer, call.timeouts, call.clearance))

    async def probe(self) -> Probe:
        """Recognise the server and ask it what it has loaded."""
        probe = await recognise(self._ask)
        self._is_ollama = probe.server == "ollama" if probe.server else None
        return probe

    async def unload(self, models: Collection[str]) -> bool:
        """Ask in the way of the server that answers; raises Offline when none does."""
        if self._is_cloud:
            return False
        probe = await self.probe()
        if probe.health is Health.OFFLINE:
            raise Offline("offline", probe.detail)
        return await unload(self._http, probe.server, models)

    async def aclose(self) -> None:
        """Close every connection."""
        await self._http.aclose()

    async def _check_local(self, model: str, seconds: float) -> None:
        """Pass where a model runs there; what answers is found out before the first call, where no probe has told."""
        if self._is_ollama is None and not is_cloud_name(model):
            self._is_ollama = await self._lists_as_ollama(seconds)
        if self._is_ollama or is_cloud_name(model):
            await self._locality.check(model, seconds)

    async def _lists_as_ollama(self, seconds: float) -> bool:
        """Whether an Ollama answers /api/tags; raises CallError where that cannot be told now."""
        tags = await self._http.get("/api/tags", seconds)
        if tags.status == 429 or tags.status >= 500:
            raise refusal(self._name, tags.status, {}, tags.body)
        if "models" not in tags.json():
            return False
        return (await self.probe()).server in ("ollama", "")  # llama.cpp lists its model there, too

    async def _ask(self, path: str) -> Answer:
        return await self._http.get(path, PROBE_TIMEOUT)

    async def _embed(self, call: Call) -> Reply:
        body = {**_extras(call), "model": call.model, "input": call.inputs, "encoding_format": "float"}
        whole = WholeBody(self._name)
        times = await self._http.post(f"{self._prefix}/embeddings", body, whole, call.timeouts, call.clearance)
        usage = whole.value.get("usage") or {}
        return Reply(
            call.model,
            vectors=self._rows(whole.value, len(call.inputs)),
            tokens_in=usage.get("prompt_tokens", 0),
            first_token_ms=times.first_token_ms,
            duration_ms=times.duration_ms,
        )

    def _rows(self, value: dict[str, Any], wanted: int) -> list[list[float]]:
        """The vectors in the order of their inputs, which servers need not keep."""
        if "error" in value:
            raise midstream(self._name, value["error"])
        try:
            rows = [row["embedding"] for row in sorted(value["data"], key=lambda row: row["index"])]
        except (KeyError, TypeError):
            raise malformed(self._name) from None
        return vectors(rows, wanted, self._name)


class _Answer:
    """Reads the events of one chat or completion; complete with [DONE], or with a finish_reason."""

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
        self._finish = "stop"
        stops = call.extras.get("stop") or ()
        self._stops = [stops] if isinstance(stops, str) else stops
        self._stop: str | None = None  #: the text of those at which it ended
        self._chosen = False  #: a choice has come, empty as it may be
        self._usage: dict[str, Any] = {}
        events = ServerSentEvents(self._take, name)
        self.feed = events.feed
        self._end = events.end

    def end(self) -> None:
        """The body is over: it may have been cut."""
        self._end()
        if not self.complete:
            raise incomplete(self._name)

    def _take(self, data: bytes) -> None:
        if data.strip() == b"[DONE]":
            self.complete = self._chosen  # an end without a beginning is no answer
            return
        event = parse(data, self._name)
        if event.get("error") or event.get("object") == "error":
            raise midstream(self._name, event.get("error") or event)
        try:
            if choices := event.get("choices"):
                self._choice(choices[0])
            if usage := event.get("usage"):
                self._usage = usage
            self._served = event.get("model") or self._served
        except (AttributeError, KeyError, TypeError):
            raise malformed(self._name) from None

    def _choice(self, choice: dict[str, Any]) -> None:
        self._chosen = True
        # `message` comes from a server that does not stream, `text` from /completions
        part = choice.get("delta") or choice.get("message") or {}
        text = part.get("content") or choice.get("text") or ""
        thought = part.get("reasoning_content") or part.get("reasoning") or ""
        tool_calls = self._tool_calls.take(part["tool_calls"]) if part.get("tool_calls") else ()
        if text:
            self._text.append(text)
        if thought:
            self._reasoning.append(thought)
        if text or thought or tool_calls:
            self.started = True
            if self._on_delta is not None:
                self._on_delta(Delta(text, thought, tool_calls))
        if finish := choice.get("finish_reason"):
            self._finish = finish
            self.complete = True
            met = choice.get("stop_reason") or choice.get("matched_stop")  # vLLM's, SGLang's; an id where it is a token
            self._stop = met if isinstance(met, str) and met in self._stops else None

    def reply(self, times: Times) -> Reply:
        """What was answered."""
        usage = self._usage
        try:
            return Reply(
                self._served if isinstance(self._served, str) else self._model,
                "".join(self._text),
                "".join(self._reasoning),
                tool_calls=self._tool_calls.whole(),
                finish_reason=self._finish,
                stop_sequence=self._stop,
                tokens_in=usage.get("prompt_tokens") or 0,
                tokens_out=usage.get("completion_tokens") or 0,
                tokens_thinking=(usage.get("completion_tokens_details") or {}).get("reasoning_tokens"),
                first_token_ms=times.first_token_ms,
                duration_ms=times.duration_ms,
            )
        except (AttributeError, TypeError):
            raise malformed(self._name) from None


def text_body(call: Call) -> dict[str, Any]:
    """The body of POST /chat/completions or /completions."""
    body = {name: value for name, value in call.options.items() if name in SHARED_OPTIONS}
    body |= _extras(call)
    body |= {"model": call.model, "stream": True, "stream_options": {"include_usage": True}}
    if call.kind == "chat":
        body["messages"] = call.messages
        if call.tools:
            body["tools"] = list(call.tools)
            if call.tool_choice is not None:
                body["tool_choice"] = call.tool_choice
        if call.think is not None:
            kwargs = body.get("chat_template_kwargs") or {}
            body["chat_template_kwargs"] = {**kwargs, "enable_thinking": call.think}
    else:
        body["prompt"] = call.prompt
    if call.temperature is not None:
        body["temperature"] = call.temperature
    if call.max_tokens is not None:
        body["max_tokens"] = call.max_tokens
    return body | _response_format(call)


def _extras(call: Call) -> dict[str, Any]:
    return {name: value for name, value in call.extras.items() if value is not None and name not in NOT_OURS}


def _response_format(call: Call) -> dict[str, Any]:
    if call.schema is not None:
        schema = {"name": "answer", "schema": call.schema, "strict": True}
        return {"response_format": {"type": "json_schema", "json_schema": schema}}
    return {"response_format": {"type": "json_object"}} if call.json else {}
