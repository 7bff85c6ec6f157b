"""OpenAI's protocol as llama.cpp and vLLM serve it: chat, completions and embeddings, /v1/models, /health.

Too long a prompt is llama.cpp's 400 `exceed_context_size_error`; a loading model its 503.  Thoughts are in
`reasoning_content` (or `reasoning`), and are switched off by `reasoning_effort: "none"` or
`chat_template_kwargs: {"enable_thinking": false}`.
"""

from __future__ import annotations

import time
from array import array
from base64 import b64encode
from typing import Any

import orjson
from aiohttp import web

from workers.simulator import anthropic_routes
from workers.simulator.answers import fits
from workers.simulator.asks import (
    Ask,
    Body,
    Dialect,
    Refusal,
    Reply,
    context_tokens,
    find_model,
    offered,
    pieces,
    plain,
    split_system,
    stop_texts,
    texts,
)
from workers.simulator.config import SimulatorConfig
from workers.simulator.delivery import JSON, at_once
from workers.simulator.models import NO_RUNNER_OPTIONS
from workers.simulator.state import PlainRoutes, Simulator
from workers.simulator.vectors import Vector

_TYPES = {
    "key": ("authentication_error", "invalid_api_key"),
    "permission": ("permission_error", None),
    "model": ("invalid_request_error", "model_not_found"),
    "rate": ("rate_limit_error", "rate_limit_exceeded"),
    "loading": ("unavailable_error", 503),
    "busy": ("unavailable_error", 503),
    "server": ("server_error", None),
    "context": ("exceed_context_size_error", 400),
}
DONE = b"data: [DONE]\n\n"


class _OpenAI:
    """What the three routes share."""

    stream_type = "text/event-stream"

    def refusal(self, refusal: Refusal) -> bytes:
        kind, code = _TYPES.get(refusal.kind, ("invalid_request_error", None))
        error = {"message": refusal.message, "type": kind, "param": None, "code": code, **refusal.facts}
        return orjson.dumps({"error": error})

    def stream_error(self, message: str) -> bytes:
        return b"data: " + self.refusal(Refusal(500, message, "server")) + b"\n\n"

    def _ask(self, body: Body, config: SimulatorConfig, system: str, prompt: str) -> Ask:
        asked, name, spec = find_model(body, config, "chat", "chat")
        usage = body.get("stream_options")
        return Ask(
            model=name, asked=asked, spec=spec, prompt=prompt, system=system, context=spec.context,
            shape=_shape(body.get("response_format")),
            max_tokens=int(body.get("max_completion_tokens") or body.get("max_tokens") or 0),
            stops=stop_texts(body.get("stop")),
            stream=body.get("stream") is True, runner=NO_RUNNER_OPTIONS,
            usage=isinstance(usage, dict) and usage.get("include_usage") is True,
        )  # fmt: skip


class OpenAIChat(_OpenAI):
    """POST /v1/chat/completions."""

    path = "/v1/chat/completions"

    def read(self, body: Body, config: SimulatorConfig) -> Ask:
        if not body.get("messages"):
            raise Refusal(400, "messages is required", "invalid")
        ask = self._ask(body, config, *split_system(body["messages"]))
        ask.tool = None if body.get("tool_choice") == "none" else offered(body.get("tools"), body["messages"])
        ask.thoughts_in = config.reasoning_field
        ask.think = ask.spec.thinking and not _thinking_off(body)
        return checked(ask)

    def whole(self, ask: Ask, reply: Reply) -> bytes:
        message: dict[str, Any] = {"role": "assistant", "content": reply.text}
        if reply.reasoning:
            message[ask.thoughts_in] = reply.reasoning
        if reply.call:
            message |= {"content": None, "tool_calls": [_tool_call(reply)]}
        choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": _finish(reply)}
        return orjson.dumps({**_head(ask, reply, "chat.completion"), "choices": [choice], "usage": _usage(reply)})

    def frames(self, ask: Ask, reply: Reply) -> list[bytes]:
        head = b"data: " + orjson.dumps(_head(ask, reply, "chat.completion.chunk"))[:-1]
        head += b',"choices":[{"index":0,"delta":{'
        end = b'},"logprobs":null,"finish_reason":null}]}\n\n'
        thought, content = head + f'"{ask.thoughts_in}":'.encode(), head + b'"content":'
        frames = [head + b'"role":"assistant","content":""' + end]
        frames += [thought + orjson.dumps(piece) + end for piece in pieces(reply.reasoning, reply.piece)]
        frames += [content + orjson.dumps(piece) + end for piece in pieces(reply.text, reply.piece)]
        if reply.call:
            frames += [head + b'"tool_calls":' + orjson.dumps([part]) + end for part in _tool_call_parts(reply)]
        last = head + b'},"logprobs":null,"finish_reason":"' + _finish(reply).encode() + b'"}]}\n\n'
        return [*frames, last, *_ending(ask, reply, "chat.completion.chunk")]


class OpenAICompletions(_OpenAI):
    """POST /v1/completions; several prompts are answered as one."""

    path = "/v1/completions"

    def read(self, body: Body, config: SimulatorConfig) -> Ask:
        prompt = body.get("prompt")
        if not isinstance(prompt, (str, list)):
            raise Refusal(400, "prompt is required", "invalid")
        text = prompt if isinstance(prompt, str) else "\n".join(plain(part) or str(part) for part in prompt)
        return checked(self._ask(body, config, "", text))

    def whole(self, ask: Ask, reply: Reply) -> bytes:
        choice = {"index": 0, "text": reply.text, "logprobs": None, "finish_reason": _finish(reply)}
        return orjson.dumps({**_head(ask, reply, "text_completion"), "choices": [choice], "usage": _usage(reply)})

    def frames(self, ask: Ask, reply: Reply) -> list[bytes]:
        head = b"data: " + orjson.dumps(_head(ask, reply, "text_completion"))[:-1] + b',"choices":[{"index":0,"text":'
        end = b',"logprobs":null,"finish_reason":null}]}\n\n'
        frames = [head + orjson.dumps(piece) + end for piece in pieces(reply.text, reply.piece)]
        last = head + b'"","logprobs":null,"finish_reason":"' + _finish(reply).encode() + b'"}]}\n\n'
        return [*frames, last, *_ending(ask, reply, "text_completion")]


class OpenAIEmbeddings(_OpenAI):
    """POST /v1/embeddings."""

    path = "/v1/embeddings"

    def read(self, body: Body, config: SimulatorConfig) -> Ask:
        asked, name, spec = find_model(body, config, "embed", "embeddings")
        inputs = texts(body.get("input"))
        if not inputs:
            raise Refusal(400, "input must not be empty", "invalid")
        return checked(Ask(
            model=name, asked=asked, spec=spec, prompt="\n".join(inputs), inputs=inputs, context=spec.context,
            runner=NO_RUNNER_OPTIONS, dimensions=int(body.get("dimensions") or 0),
            base64=body.get("encoding_format") == "base64",
        ))  # fmt: skip

    def whole(self, ask: Ask, reply: Reply) -> bytes:
        data = [
            {"object": "embedding", "index": index, "embedding": _packed(vector) if ask.base64 else vector}
            for index, vector in enumerate(reply.vectors)
        ]
        usage = {"prompt_tokens": reply.tokens_in, "total_tokens": reply.tokens_in}
        return orjson.dumps({"object": "list", "data": data, "model": ask.asked, "usage": usage})

    def frames(self, ask: Ask, reply: Reply) -> list[bytes]:
        return [self.whole(ask, reply)]


DIALECTS: tuple[Dialect, ...] = (OpenAIChat(), OpenAICompletions(), OpenAIEmbeddings())


def checked(ask: Ask) -> Ask:
    """The ask, if its prompt fits the context; llama.cpp's refusal otherwise."""
    if fits(ask):
        return ask
    size = max(map(context_tokens, ask.inputs)) if ask.inputs else context_tokens(ask.system + ask.prompt)
    message = f"request ({size} tokens) exceeds the available context size ({ask.context} tokens)"
    raise Refusal(400, message, "context", n_prompt_tokens=size, n_ctx=ask.context)


def _shape(wanted: object) -> Any:
    """What `response_format` asks for."""
    if not isinstance(wanted, dict):
        return None
    if wanted.get("type") == "json_schema":
        schema = (wanted.get("json_schema") or {}).get("schema")
        return schema if isinstance(schema, dict) else "json"
    if wanted.get("type") == "json_object":
        return wanted.get("schema") or "json"
    return None


def _thinking_off(body: Body) -> bool:
    template = body.get("chat_template_kwargs")
    switched = isinstance(template, dict) and template.get("enable_thinking") is False
    return switched or body.get("reasoning_effort") == "none" or body.get("think") is False


def _tool_call(reply: Reply) -> dict[str, Any]:
    assert reply.call is not None
    name, arguments = reply.call
    function = {"name": name, "arguments": orjson.dumps(arguments).decode()}
    return {"id": f"call_sim{reply.number}", "type": "function", "function": function}


def _tool_call_parts(reply: Reply) -> list[dict[str, Any]]:
    """A call as it is streamed: its head, then its arguments piece by piece."""
    whole = _tool_call(reply)
    arguments = whole["function"]["arguments"]
    head = {"index": 0, **whole, "function": {"name": whole["function"]["name"], "arguments": ""}}
    return [head, *({"index": 0, "function": {"arguments": piece}} for piece in pieces(arguments, 8))]


def _finish(reply: Reply) -> str:
    if reply.call:
        return "tool_calls"
    return "length" if reply.finish == "length" else "stop"


def _head(ask: Ask, reply: Reply, kind: str) -> dict[str, Any]:
    prefix = "cmpl" if kind == "text_completion" else "chatcmpl"
    return {
        "id": f"{prefix}-sim{reply.number}",
        "object": kind,
        "created": int(time.time()),
        "model": ask.asked,
    }


def _usage(reply: Reply) -> dict[str, Any]:
    return {
        "prompt_tokens": reply.tokens_in,
        "completion_tokens": reply.tokens_out,
        "total_tokens": reply.tokens_in + reply.tokens_out,
        "completion_tokens_details": {"reasoning_tokens": reply.tokens_thinking},
    }


def _ending(ask: Ask, reply: Reply, kind: str) -> list[bytes]:
    if not ask.usage:
        return [DONE]
    usage = {**_head(ask, reply, kind), "choices": [], "usage": _usage(reply)}
    return [b"data: " + orjson.dumps(usage) + b"\n\n", DONE]


def _packed(vector: Vector) -> str:
    """Base64 of little-endian 32-bit floats, what OpenAI's client asks for by itself."""
    numbers = array("f", [float("nan") if x is None else x for x in vector])
    return b64encode(numbers.tobytes()).decode()


async def models(sim: Simulator, request: web.BaseRequest) -> web.Response:
    """GET /v1/models, in Anthropic's shape for its clients."""
    if "anthropic-version" in request.headers:
        return anthropic_routes.models_page(sim)
    data = [
        {"id": name, "object": "model", "created": 1767225600, "owned_by": "simulator"} for name in sim.config.models
    ]
    return at_once(orjson.dumps({"object": "list", "data": data}), JSON)


async def health(sim: Simulator, request: web.BaseRequest) -> web.Response:
    """GET /health, llama.cpp's."""
    return at_once(b'{"status":"ok"}', JSON)


ROUTES: PlainRoutes = {("GET", "/v1/models"): models, ("GET", "/health"): health}
