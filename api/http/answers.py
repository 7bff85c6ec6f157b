"""Answers of chat, completions and embeddings in OpenAI's shapes, whole and piece by piece. Pure."""

from __future__ import annotations

import secrets
import time
from array import array
from base64 import b64encode
from typing import Any

import orjson

from api.use_cases.openai_views import text_of
from tasks.errors import BadOutput
from tasks.leaks import normalise
from workers.backends import Delta, Reply
from workers.direct import Given

#: the end of a stream
DONE = b"data: [DONE]\n\n"


def finish_of(reply: Reply) -> str:
    """Why it ended, in OpenAI's words."""
    if reply.tool_calls:
        return "tool_calls"
    return "length" if reply.finish_reason == "length" else "stop"


def text(given: Given) -> str:
    """What was answered: as it was checked, else without the thoughts that leaked into it."""
    if given.output is not None:
        return text_of(given.output)
    try:
        return normalise(given.reply.text, given.reply.reasoning).text
    except BadOutput:  # cut off in the middle of a thought
        return ""


def usage(reply: Reply) -> dict[str, Any]:
    """Tokens."""
    return {
        "prompt_tokens": reply.tokens_in,
        "completion_tokens": reply.tokens_out,
        "total_tokens": reply.tokens_in + reply.tokens_out,
        "completion_tokens_details": {"reasoning_tokens": reply.tokens_thinking or 0},
    }


def whole(given: Given, path: str) -> dict[str, Any]:
    """The answer of a request that does not stream."""
    reply = given.reply
    if path == "/v1/completions":
        choice: dict[str, Any] = {"index": 0, "text": text(given), "logprobs": None}
    else:
        message: dict[str, Any] = {"role": "assistant", "content": text(given) or None, "refusal": None}
        if reply.reasoning:
            message["reasoning_content"] = reply.reasoning
        if reply.tool_calls:
            message["tool_calls"] = reply.tool_calls
        choice = {"index": 0, "message": message, "logprobs": None}
    choice["finish_reason"] = finish_of(reply)
    kind = "text_completion" if path == "/v1/completions" else "chat.completion"
    return {**_head(path, kind), "model": reply.model, "choices": [choice], "usage": usage(reply)}


def embeddings(given: Given, base64: bool) -> dict[str, Any]:
    """Vectors; in base64 as little-endian 32-bit floats, as the official client asks for by itself."""
    rows = given.reply.vectors
    data = [{"object": "embedding", "index": i, "embedding": _packed(v) if base64 else v} for i, v in enumerate(rows)]
    tokens = given.reply.tokens_in
    counts = {"prompt_tokens": tokens, "total_tokens": tokens}
    return {"object": "list", "data": data, "model": given.reply.model, "usage": counts}


def _packed(vector: list[float]) -> str:
    return b64encode(array("f", vector).tobytes()).decode()


def _head(path: str, kind: str) -> dict[str, Any]:
    stem = "cmpl" if path == "/v1/completions" else "chatcmpl"
    return {"id": f"{stem}-{secrets.token_hex(12)}", "object": kind, "created": int(time.time())}


class Stream:
    """Makes the events of one stream. model: that was asked for, until the server says which it was."""

    def __init__(self, path: str, model: str, *, with_usage: bool) -> None:
        kind = "text_completion" if path == "/v1/completions" else "chat.completion.chunk"
        self._head = {**_head(path, kind), "model": model}
        self._is_chat = path != "/v1/completions"
        self._with_usage = with_usage

    def first(self) -> bytes:
        """The event that opens a chat."""
        return self._event({"role": "assistant", "content": ""}, None) if self._is_chat else b""

    def piece(self, delta: Delta) -> bytes:
        """A piece of the answer."""
        if not self._is_chat:
            return self._event(delta.text, None)
        part: dict[str, Any] = {}
        if delta.text:
            part["content"] = delta.text
        if delta.reasoning:
            part["reasoning_content"] = delta.reasoning
        if delta.tool_calls:
            part["tool_calls"] = list(delta.tool_calls)
        return self._event(part, None)

    def last(self, reply: Reply) -> bytes:
        """Why it ended, the counts where they were asked for, and the end."""
        self._head["model"] = reply.model
        end = self._event({} if self._is_chat else "", finish_of(reply))
        if self._with_usage:
            end += _data({**self._head, "choices": [], "usage": usage(reply)})
        return end + DONE

    def _event(self, part: dict[str, Any] | str, finish: str | None) -> bytes:
        what = {"delta": part} if self._is_chat else {"text": part}
        choice = {"index": 0, **what, "logprobs": None, "finish_reason": finish}
        more = {"usage": None} if self._with_usage else {}
        return _data({**self._head, "choices": [choice], **more})


def broken(error: dict[str, Any]) -> bytes:
    """An error in the middle of a stream, which ends it."""
    return _data({"error": error})


def _data(event: dict[str, Any]) -> bytes:
    return b"data: " + orjson.dumps(event) + b"\n\n"
