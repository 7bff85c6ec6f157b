"""Anthropic's Messages protocol (contracts/anthropic-batches.md): messages, streamed or not, and
count_tokens.

Any `claude-…` model is served, never loaded; local models are served here too.  temperature, top_p and top_k
are refused even at their defaults, as API version 2026-10-21 does.
"""

from __future__ import annotations

from typing import Any

import orjson
from aiohttp import web

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
    tokens,
)
from workers.simulator.config import HOSTED, ModelSpec, SimulatorConfig
from workers.simulator.delivery import JSON, at_once
from workers.simulator.models import NO_RUNNER_OPTIONS
from workers.simulator.state import PlainRoutes, Simulator

_TYPES = {
    "key": "authentication_error",
    "permission": "permission_error",
    "model": "not_found_error",
    "rate": "rate_limit_error",
    "loading": "overloaded_error",
    "busy": "overloaded_error",
    "server": "api_error",
}
_REFUSED = ("temperature", "top_p", "top_k")
_STOPS = {"length": "max_tokens", "stop_sequence": "stop_sequence"}


class AnthropicMessages:
    """POST /v1/messages."""

    path = "/v1/messages"
    stream_type = "text/event-stream"

    def read(self, body: Body, config: SimulatorConfig) -> Ask:
        ask = self._counted(body, config)
        for name in _REFUSED:
            if name in body:
                raise Refusal(400, f"{name}: Extra inputs are not permitted", "invalid")
        if not isinstance(body.get("max_tokens"), int) or body["max_tokens"] < 1:
            raise Refusal(400, "max_tokens: Field required", "invalid")
        if not fits(ask):
            size = context_tokens(ask.system + ask.prompt)
            raise Refusal(400, f"prompt is too long: {size} tokens > {ask.context} maximum", "invalid")
        return ask

    def _counted(self, body: Body, config: SimulatorConfig) -> Ask:
        asked, name, spec = _model(body, config)
        if not body.get("messages"):
            raise Refusal(400, "messages: Field required", "invalid")
        system, prompt = split_system(body["messages"])
        thinking = body.get("thinking")
        return Ask(
            tool=offered(body.get("tools"), body["messages"]),
            model=name, asked=asked, spec=spec, prompt=prompt, context=spec.context, shape=_shape(body),
            system=f"{plain(body.get('system'))}\n{system}".strip(),
            think=isinstance(thinking, dict) and thinking.get("type") in ("enabled", "adaptive"),
            max_tokens=int(body.get("max_tokens") or 0), stops=stop_texts(body.get("stop_sequences")),
            stream=body.get("stream") is True, runner=NO_RUNNER_OPTIONS,
        )  # fmt: skip

    def whole(self, ask: Ask, reply: Reply) -> bytes:
        content: list[dict[str, Any]] = []
        if reply.reasoning:
            content.append({"type": "thinking", "thinking": reply.reasoning, "signature": "simulated"})
        if reply.text:
            content.append({"type": "text", "text": reply.text})
        if reply.call:
            name, arguments = reply.call
            content.append({"type": "tool_use", "id": f"toolu_sim{reply.number}", "name": name, "input": arguments})
        usage = {"input_tokens": reply.tokens_in, "output_tokens": reply.tokens_out}
        return orjson.dumps({**_head(ask, reply), "content": content, **_stop(reply), "usage": usage})

    def frames(self, ask: Ask, reply: Reply) -> list[bytes]:
        start = {
            **_head(ask, reply), "content": [], "stop_reason": None, "stop_sequence": None,
            "usage": {"input_tokens": reply.tokens_in, "output_tokens": 1},
        }  # fmt: skip
        frames = [_event("message_start", message=start)]
        blocks = _blocks(reply)
        for index, (block, kind, field, text) in enumerate(blocks):
            frames.append(_event("content_block_start", index=index, content_block=block))
            frames += _deltas(index, kind, field, pieces(text, reply.piece))
            frames.append(_event("content_block_stop", index=index))
        usage = {"output_tokens": reply.tokens_out}
        return [*frames, _event("message_delta", delta=_stop(reply), usage=usage), _event("message_stop")]

    def refusal(self, refusal: Refusal) -> bytes:
        error = {"type": _TYPES.get(refusal.kind, "invalid_request_error"), "message": refusal.message}
        return orjson.dumps({"type": "error", "error": error, "request_id": "req_simulated"})

    def stream_error(self, message: str) -> bytes:
        return b"event: error\ndata: " + self.refusal(Refusal(500, message, "server")) + b"\n\n"

    def count(self, body: Body, config: SimulatorConfig) -> int:
        """The tokens of a request's prompt; raises Refusal."""
        ask = self._counted(body, config)
        return tokens(ask.system + ask.prompt)


MESSAGES = AnthropicMessages()
DIALECTS: tuple[Dialect, ...] = (MESSAGES,)


def _model(body: Body, config: SimulatorConfig) -> tuple[str, str, ModelSpec]:
    asked = body.get("model")
    if isinstance(asked, str) and asked.startswith("claude") and config.resolve(asked) is None:
        return asked, asked, HOSTED
    return find_model(body, config, "chat", "messages")


def _shape(body: Body) -> Any:
    """The schema of output_config.format."""
    wanted = body.get("output_config")
    form = wanted.get("format") if isinstance(wanted, dict) else None
    return form.get("schema") if isinstance(form, dict) and isinstance(form.get("schema"), dict) else None


def _head(ask: Ask, reply: Reply) -> dict[str, Any]:
    return {"id": f"msg_sim{reply.number}", "type": "message", "role": "assistant", "model": ask.asked}


def _stop(reply: Reply) -> dict[str, Any]:
    reason = "tool_use" if reply.call else _STOPS.get(reply.finish, "end_turn")
    return {"stop_reason": reason, "stop_sequence": reply.stopped_at if reason == "stop_sequence" else None}


def _blocks(reply: Reply) -> list[tuple[dict[str, Any], str, str, str]]:
    """(opening block, kind of its deltas, their field, text) of each content block."""
    blocks: list[tuple[dict[str, Any], str, str, str]] = []
    if reply.reasoning:
        opening = {"type": "thinking", "thinking": "", "signature": ""}
        blocks.append((opening, "thinking_delta", "thinking", reply.reasoning))
    if reply.text:
        blocks.append(({"type": "text", "text": ""}, "text_delta", "text", reply.text))
    if reply.call:
        name, arguments = reply.call
        called: dict[str, Any] = {"type": "tool_use", "id": f"toolu_sim{reply.number}", "name": name, "input": {}}
        blocks.append((called, "input_json_delta", "partial_json", orjson.dumps(arguments).decode()))
    return blocks


def _deltas(index: int, kind: str, field: str, parts: list[str]) -> list[bytes]:
    deltas = [_event("content_block_delta", index=index, delta={"type": kind, field: part}) for part in parts]
    if field == "thinking":
        signature = {"type": "signature_delta", "signature": "simulated"}
        deltas.append(_event("content_block_delta", index=index, delta=signature))
    return deltas


def _event(name: str, **data: object) -> bytes:
    return b"event: " + name.encode() + b"\ndata: " + orjson.dumps({"type": name, **data}) + b"\n\n"


async def count_tokens(sim: Simulator, request: web.BaseRequest) -> web.Response:
    """POST /v1/messages/count_tokens."""
    try:
        body = orjson.loads(await request.read())
    except ValueError:
        raise Refusal(400, "the body is not JSON", "invalid") from None
    return at_once(orjson.dumps({"input_tokens": MESSAGES.count(body, sim.config)}), JSON)


def models_page(sim: Simulator) -> web.Response:
    """The list of models, all on one page."""
    when = "2026-01-01T00:00:00Z"
    entries = [{"type": "model", "id": n, "display_name": n, "created_at": when} for n in sim.config.models]
    ends = {"first_id": entries[0]["id"], "last_id": entries[-1]["id"]} if entries else {}
    return at_once(orjson.dumps({"data": entries, "has_more": False, **ends}), JSON)


async def models(sim: Simulator, request: web.BaseRequest) -> web.Response:
    """GET /v1/models, where only this protocol is spoken."""
    return models_page(sim)


ROUTES: PlainRoutes = {("POST", "/v1/messages/count_tokens"): count_tokens, ("GET", "/v1/models"): models}
