"""Which HTTP status, and which error inside a stream, is which CallError.

    status                     becomes        code
    3xx                        Permanent      redirect
    400, 413, 500 by its text  Permanent      context_exceeded
    500 by its text            Permanent      bad_request: images, or sounds, for a model of texts
    400                        Permanent      bad_request; think_unsupported by its text
    400 by its text, 404       Misconfigured  model_not_found
    401, 402, 403              Misconfigured  unauthorized
    408, 5xx                   Transient      http_408, http_500, …
    429                        Busy           rate_limited
    503, 529                   Busy           loading, busy
    other 4xx                  Permanent      http_422, …
    in a 200 stream            Transient      midstream_error; Busy and context_exceeded by its text

A server's free text may echo the prompt: it is read here to tell errors apart and never passed on.  Messages
carry the server's own type or code, where that is one short word.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

import orjson

from tasks.errors import Busy, CallError, Misconfigured, Permanent, Transient

#: seconds; a server that asks for more is looked at again after this
MAX_RETRY_AFTER = 600.0

#: llama.cpp, vLLM and OpenAI, Ollama, LM Studio
_TOO_LONG = (
    "exceed_context_size",
    "context_length_exceeded",
    "maximum context length",
    "exceeds the available context",
    "exceeds the context length",
    "exceeds maximum context",
    "greater than the context length",
    "too large to process",
)
#: llama.cpp, for a model that was loaded without its projector
_TEXT_ONLY = ("image input is not supported", "audio input is not supported")
#: llama-swap (two versions), vLLM, Ollama and LM Studio
_NO_MODEL = (
    "could not find suitable inference handler",
    "could not find real modelid",
    "model_not_found",
)
_BUSY = ("server busy", "overloaded", "too many requests", "maximum pending requests")
_LOADING = ("loading model", "model is loading", "still loading")

_ADVICE = {
    401: "check the provider's API key",
    402: "its account has no credit left",
    403: "check the provider's API key",
    404: "it does not have this model, or the provider's url is wrong",
}
_CODES = {400: "bad_request", 401: "unauthorized", 402: "unauthorized", 403: "unauthorized", 404: "model_not_found"}

#: what the provider's configuration has to mend, rather than the job
_MISCONFIGURED = frozenset({"unauthorized", "model_not_found"})


def refusal(name: str, status: int, headers: Mapping[str, str], body: bytes) -> CallError:
    """The error for a reply whose status is not 200."""
    error = _error_of(body)
    label, text = _label(error), _text(error)
    message = f"{name} answered {status}{f' ({label})' if label else ''}"
    if advice := _ADVICE.get(status):
        message += f": {advice}"
    if status in (429, 503, 529):  # 529: Anthropic's `overloaded_error`
        return Busy(_busy_code(status, text), message, retry_after(headers.get("retry-after")))
    if status in (400, 413, 500) and _has(text, _TOO_LONG):
        return Permanent("context_exceeded", f"{message}: the prompt is longer than the model's context", "request")
    if status == 500 and _has(text, _TEXT_ONLY):
        return Permanent("bad_request", f"{message}: its model takes texts only", "request")
    if status == 408 or status >= 500:
        return Transient(f"http_{status}", message)
    code = _permanent_code(status, text)
    return Misconfigured(code, message) if code in _MISCONFIGURED else Permanent(code, message, "request")


def midstream(name: str, error: Any) -> CallError:
    """The error for `{"error": …}` inside a stream that began with 200."""
    label, text = _label(error), _text(error)
    message = f"{name} broke off its answer{f' ({label})' if label else ''}"
    if _has(text, _TOO_LONG):
        return Permanent("context_exceeded", f"{message}: the prompt is longer than the model's context", "request")
    if _has(text, _LOADING):
        return Busy("loading", message)
    if _has(text, _BUSY) or label in ("429", "503"):
        return Busy("busy", message)
    return Transient("midstream_error", message)


def retry_after(value: str | None, now: datetime | None = None) -> float | None:
    """Seconds that a Retry-After header asks for (RFC 9110: a number, or an HTTP date); None for nonsense."""
    if not value:
        return None
    try:
        seconds = float(value)
    except ValueError:
        try:
            when = parsedate_to_datetime(value)
        except ValueError:
            return None
        aware = when if when.tzinfo else when.replace(tzinfo=UTC)
        seconds = (aware - (now or datetime.now(UTC))).total_seconds()
    return min(max(seconds, 0.0), MAX_RETRY_AFTER) if seconds == seconds else None


def _busy_code(status: int, text: str) -> str:
    if status == 429:
        return "rate_limited"
    return "loading" if "loading" in text else "busy"


def _permanent_code(status: int, text: str) -> str:
    if 300 <= status < 400:
        return "redirect"
    if status == 400 and "does not support thinking" in text:
        return "think_unsupported"
    if status == 400 and _has(text, _NO_MODEL):
        return "model_not_found"
    return _CODES.get(status, f"http_{status}")


def _has(text: str, phrases: tuple[str, ...]) -> bool:
    return any(phrase in text for phrase in phrases)


def _error_of(body: bytes) -> Any:
    """The error in a body: `{"error": text or object}`, a bare object (older vLLM), or plain text."""
    try:
        value = orjson.loads(body)
    except orjson.JSONDecodeError:
        return body.decode("utf-8", "replace")
    return value.get("error", value) if isinstance(value, dict) else value


def _text(error: Any) -> str:
    """Everything the server said, in lower case, only to look phrases up in."""
    if isinstance(error, dict):
        return " ".join(str(error.get(key, "")) for key in ("type", "code", "message")).lower()
    return str(error).lower()


def _label(error: Any) -> str:
    """The server's type, else its code, where it is one short word."""
    if not isinstance(error, dict):
        return ""
    for value in (error.get("type"), error.get("code")):
        word = str(value) if isinstance(value, str | int) else ""
        if word.isascii() and len(word) <= 40 and word.replace("_", "").replace("-", "").isalnum():
            return word
    return ""
