"""Ollama's generate, chat and embed (contracts/model-servers.md) as dialects; ollama_store.py has the rest.

Timings are nanoseconds, in the last chunk only, and absent when 0.  An error is `{"error": text}`, also in
the middle of a stream of status 200.
"""

from __future__ import annotations

import re
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import orjson

from workers.simulator.answers import fits
from workers.simulator.asks import (
    Ask,
    Body,
    Dialect,
    Refusal,
    Reply,
    find_model,
    offered,
    pieces,
    split_system,
    stop_texts,
    texts,
)
from workers.simulator.config import SimulatorConfig
from workers.simulator.models import NO_RUNNER_OPTIONS, RUNNER_OPTIONS

NDJSON = "application/x-ndjson"
_UNITS = {"": 1.0, "ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}
_DURATION = re.compile(r"(-?\d+(?:\.\d+)?)(ms|s|m|h|)")


class _Ollama:
    """What the three generating routes share."""

    stream_type = NDJSON

    def refusal(self, refusal: Refusal) -> bytes:
        return orjson.dumps({"error": refusal.message})

    def stream_error(self, message: str) -> bytes:
        return orjson.dumps({"error": message}) + b"\n"

    def _ask(self, body: Body, config: SimulatorConfig, system: str, prompt: str) -> Ask:
        asked, name, spec = find_model(body, config, "chat", "chat")
        options = _options(body)
        think, shape = body.get("think"), body.get("format") or None
        if think and not spec.thinking:
            raise Refusal(400, f'"{asked}" does not support thinking', "invalid")
        thinks = spec.thinking if think is None else bool(think)
        return Ask(
            model=name, asked=asked, spec=spec, prompt=prompt, system=system, shape=shape,
            think=thinks, swallowed=bool(shape) and spec.thinking and think is None,
            max_tokens=max(0, int(options.get("num_predict") or 0)), stops=stop_texts(options.get("stop")),
            stream=body.get("stream") is not False, context=int(options.get("num_ctx") or spec.context),
            runner=runner(options), keep_alive=keep_alive(body.get("keep_alive")),
        )  # fmt: skip

    def _head(self, ask: Ask) -> bytes:
        return b'{"model":' + orjson.dumps(ask.asked) + b',"created_at":"' + _now().encode() + b'",'

    def whole(self, ask: Ask, reply: Reply) -> bytes:
        raise NotImplementedError

    def _lines(self, ask: Ask, reply: Reply, thought: bytes, content: bytes, end: bytes) -> list[bytes]:
        """One line a piece, then the last; `thought` and `content` are the JSON before a piece, `end` that
        after.
        """
        head, close = self._head(ask), end + b',"done":false}\n'
        lines = [head + thought + orjson.dumps(piece) + close for piece in pieces(reply.reasoning, reply.piece)]
        lines += [head + content + orjson.dumps(piece) + close for piece in pieces(reply.text, reply.piece)]
        return [*lines, self.whole(ask, replace(reply, text="", reasoning="")) + b"\n"]


class OllamaChat(_Ollama):
    """POST /api/chat."""

    path = "/api/chat"

    def read(self, body: Body, config: SimulatorConfig) -> Ask:
        messages = body.get("messages") or []
        ask = self._ask(body, config, *split_system(messages))
        ask.tool = offered(body.get("tools"), messages)
        if not messages:
            ask.only = "unload" if ask.keep_alive == 0 else "load"
        return ask

    def whole(self, ask: Ask, reply: Reply) -> bytes:
        message: dict[str, Any] = {"role": "assistant", "content": reply.text}
        if reply.reasoning:
            message["thinking"] = reply.reasoning
        if reply.call:
            name, arguments = reply.call
            message["tool_calls"] = [{"function": {"name": name, "arguments": arguments}}]
        return orjson.dumps({"model": ask.asked, "created_at": _now(), "message": message, **_last(reply)})

    def frames(self, ask: Ask, reply: Reply) -> list[bytes]:
        role = b'"message":{"role":"assistant","content":'
        return self._lines(ask, reply, role + b'"","thinking":', role, b"}")


class OllamaGenerate(_Ollama):
    """POST /api/generate."""

    path = "/api/generate"

    def read(self, body: Body, config: SimulatorConfig) -> Ask:
        prompt = str(body.get("prompt") or "")
        asked = str(body.get("model"))
        if not prompt and body.get("keep_alive") == 0 and (found := config.resolve(asked)):  # one that embeds, too
            stream = body.get("stream") is not False
            return Ask(found[0], asked, found[1], "", stream=stream, keep_alive=0.0, only="unload")
        ask = self._ask(body, config, str(body.get("system") or ""), prompt)
        if not prompt:
            ask.only = "unload" if ask.keep_alive == 0 else "load"
        return ask

    def whole(self, ask: Ask, reply: Reply) -> bytes:
        body = {"model": ask.asked, "created_at": _now(), "response": reply.text}
        if reply.reasoning:
            body["thinking"] = reply.reasoning
        return orjson.dumps({**body, **_last(reply)})

    def frames(self, ask: Ask, reply: Reply) -> list[bytes]:
        return self._lines(ask, reply, b'"response":"","thinking":', b'"response":', b"")


class OllamaEmbed(_Ollama):
    """POST /api/embed."""

    path = "/api/embed"

    def read(self, body: Body, config: SimulatorConfig) -> Ask:
        asked, name, spec = find_model(body, config, "embed", "embeddings")
        inputs, options = texts(body.get("input")), _options(body)
        ask = Ask(
            model=name, asked=asked, spec=spec, prompt="\n".join(inputs), inputs=inputs,
            context=int(options.get("num_ctx") or spec.context), runner=runner(options),
            keep_alive=keep_alive(body.get("keep_alive")), dimensions=int(body.get("dimensions") or 0),
        )  # fmt: skip
        if body.get("truncate") is False and not fits(ask):
            raise Refusal(400, "the input length exceeds the context length", "invalid")
        if not inputs:
            ask.only = "load"
        return ask

    def whole(self, ask: Ask, reply: Reply) -> bytes:
        counts = {
            "total_duration": reply.total_ns,
            "load_duration": reply.load_ns,
            "prompt_eval_count": reply.tokens_in,
        }
        present = {key: n for key, n in counts.items() if n}
        return orjson.dumps({"model": ask.asked, "embeddings": reply.vectors, **present})

    def frames(self, ask: Ask, reply: Reply) -> list[bytes]:
        return [self.whole(ask, reply)]


DIALECTS: tuple[Dialect, ...] = (OllamaChat(), OllamaGenerate(), OllamaEmbed())


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")


def _options(body: Body) -> dict[str, Any]:
    options = body.get("options")
    return options if isinstance(options, dict) else {}


def runner(options: dict[str, Any]) -> tuple[Any, ...]:
    """The options that a loaded model is bound to."""
    return tuple([options.get(name) for name in RUNNER_OPTIONS]) if options else NO_RUNNER_OPTIONS


def keep_alive(value: object) -> float:
    """Seconds from a number or a text like "5m"; negative is for ever; raises Refusal."""
    if value is None:
        return 300.0
    if isinstance(value, (int, float)):
        return float(value)
    if (match := _DURATION.fullmatch(str(value))) is None:
        raise Refusal(400, f'time: invalid duration "{value}"', "invalid")
    return float(match[1]) * _UNITS[match[2]]


def _last(reply: Reply) -> dict[str, Any]:
    """The part of a reply that only its end has."""
    timings = {
        "total_duration": reply.total_ns,
        "load_duration": reply.load_ns,
        "prompt_eval_count": reply.tokens_in,
        "prompt_eval_duration": max(0, reply.first_ns - reply.load_ns),
        "eval_count": reply.tokens_out,
        "eval_duration": max(0, reply.total_ns - reply.first_ns),
    }
    finish = "stop" if reply.finish == "stop_sequence" else reply.finish
    return {"done": True, "done_reason": finish, **{key: n for key, n in timings.items() if n}}
