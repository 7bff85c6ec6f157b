"""What straight.py sends and reads: Ollama's and OpenAI's bodies, whole instead of streamed.  Pure.

backends/ollama_api.py and openai_api.py say why each field is sent.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from tasks.errors import Transient

JSON_ONLY = "Answer with one JSON value and nothing else."
#: names of a class's options that OpenAI-compatible servers know as well
SHARED_OPTIONS = frozenset(
    {"temperature", "top_p", "top_k", "min_p", "seed", "stop"}
    | {"repeat_penalty", "presence_penalty", "frequency_penalty"}
)


@dataclass(frozen=True, slots=True)
class Question:
    """One prompt and how it is asked; connect_s and total_s are seconds."""

    kind: Literal["chat", "embed"]
    model: str
    prompt: str
    system: str = ""
    json: bool = False
    think: bool | None = None
    temperature: float | None = None
    max_tokens: int | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    connect_s: float = 5.0
    total_s: float = 900.0


@dataclass(slots=True)
class Reply:
    """A server's answer: text, or a vector. tokens: of the answer. cut: it ended at a limit."""

    text: str = ""
    vector: list[float] = field(default_factory=list)
    tokens: int = 0
    cut: bool = False
    duration_ms: float = 0.0


def text(kind: str, question: Question) -> tuple[str, dict[str, Any]]:
    """(path, body) of a chat."""
    if kind == "ollama":
        body = {
            "messages": _messages(question),
            "model": question.model,
            "stream": False,
            "think": bool(question.think),
            "truncate": False,
            "shift": False,
            "options": _options(question),
        }
        return "/api/chat", body | ({"format": "json"} if question.json else {})
    return "/chat/completions", _openai_text(question)


def embedding(kind: str, question: Question) -> tuple[str, dict[str, Any]]:
    """(path, body) of an embedding."""
    body: dict[str, Any] = {"model": question.model, "input": [question.prompt]}
    if kind == "ollama":
        return "/api/embed", body | {"truncate": False, "options": _options(question)}
    return "/embeddings", body | {"encoding_format": "float"}


def _openai_text(question: Question) -> dict[str, Any]:
    body = {name: value for name, value in question.options.items() if name in SHARED_OPTIONS}
    body |= {"model": question.model, "stream": False, "messages": _messages(question)}
    if question.think is not None:
        body["chat_template_kwargs"] = {"enable_thinking": question.think}
    if question.temperature is not None:
        body["temperature"] = question.temperature
    if question.max_tokens is not None:
        body["max_tokens"] = question.max_tokens
    return body | ({"response_format": {"type": "json_object"}} if question.json else {})


def _messages(question: Question) -> list[dict[str, str]]:
    system = _instructions(question.system, question.json)
    user = {"role": "user", "content": question.prompt}
    return [{"role": "system", "content": system}, user] if system else [user]


def _instructions(system: str, json: bool) -> str:
    """A category says how its text should look; for JSON only what the task is still holds."""
    if not json:
        return system
    task = system.partition(". ")[0]
    return f"{task}. {JSON_ONLY}" if task else JSON_ONLY


def _options(question: Question) -> dict[str, Any]:
    merged = dict(question.options)
    if isinstance(merged.get("stop"), str):
        merged["stop"] = [merged["stop"]]
    if question.temperature is not None:
        merged["temperature"] = question.temperature
    if question.max_tokens is not None:
        merged["num_predict"] = question.max_tokens
    return merged


def text_reply(kind: str, name: str, value: dict[str, Any]) -> Reply:
    """What a chat was answered; raises Transient."""
    try:
        if kind == "ollama":
            said, tokens = value["message"].get("content"), value.get("eval_count")
            ended, cut = value.get("done"), value.get("done_reason") == "length"
        else:
            choice = value["choices"][0]
            said, tokens = choice["message"].get("content"), (value.get("usage") or {}).get("completion_tokens")
            ended, cut = True, choice.get("finish_reason") == "length"
    except (AttributeError, IndexError, KeyError, TypeError):
        raise _malformed(name) from None
    if not ended:
        raise Transient("incomplete", f"{name}: the reply ended before the answer was complete")
    if not isinstance(said, str | None):
        raise _malformed(name)
    return Reply(said or "", tokens=tokens if isinstance(tokens, int) else 0, cut=cut)


def embedding_reply(kind: str, name: str, value: dict[str, Any]) -> Reply:
    """The one vector; raises Transient for what can be none."""
    try:
        rows = value["embeddings"] if kind == "ollama" else [row["embedding"] for row in value["data"]]
        (vector,) = rows
    except (KeyError, TypeError, ValueError):
        raise _malformed(name) from None
    if not isinstance(vector, list) or not vector or not {int, float}.issuperset(map(type, vector)):
        raise _malformed(name)
    if not all(abs(number) <= sys.float_info.max for number in vector) or not any(vector):
        raise Transient("wrong_vectors", f"{name}: the vector is zero, or holds NaN or Infinity")
    return Reply(vector=vector)


def _malformed(name: str) -> Transient:
    return Transient("malformed", f"{name}: the reply has an unexpected shape")
