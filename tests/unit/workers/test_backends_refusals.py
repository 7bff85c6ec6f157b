"""What statuses and headers mean, and what is asked of a server."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.errors import Busy, CallError, ConfigError, Misconfigured, Permanent, PoolError, Transient
from workers.backends import Call, connect, ollama_api, openai_api
from workers.backends.gguf_server import GgufServer
from workers.backends.refusals import MAX_RETRY_AFTER, midstream, refusal, retry_after

NOW = datetime(2026, 11, 20, 12, 0, 0, tzinfo=UTC)


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (None, None),
        ("", None),
        ("soon", None),
        ("nan", None),
        ("7", 7.0),
        ("0.5", 0.5),
        ("-3", 0.0),
        ("86400", MAX_RETRY_AFTER),
        ("inf", MAX_RETRY_AFTER),
        ("Fri, 20 Nov 2026 12:00:30 GMT", 30.0),
        ("Fri, 20 Nov 2026 12:00:30", 30.0),
        ("Fri, 20 Nov 2026 11:00:00 GMT", 0.0),
        ("Sat, 21 Nov 2026 12:00:00 GMT", MAX_RETRY_AFTER),
    ],
)
def test_retry_after(value: str | None, seconds: float | None) -> None:
    """Seconds or a date, bounded on both sides; nonsense is nothing."""
    assert retry_after(value, NOW) == seconds


@given(st.text())
def test_retry_after_takes_anything(value: str) -> None:
    """No header breaks a call."""
    seconds = retry_after(value)
    assert seconds is None or 0.0 <= seconds <= MAX_RETRY_AFTER


@pytest.mark.parametrize(
    ("status", "body", "kind", "code"),
    [
        (400, b'{"error":"\\"m\\" does not support thinking"}', Permanent, "think_unsupported"),
        (400, b"could not find suitable inference handler for m", Misconfigured, "model_not_found"),
        (400, b'{"error":{"message":"maximum context length is 4096"}}', Permanent, "context_exceeded"),
        (500, b'{"error":"the input length exceeds the context length"}', Permanent, "context_exceeded"),
        (500, b"<html>", Transient, "http_500"),
        (503, b'{"error":"server busy, please try again."}', Busy, "busy"),
        (503, b"", Busy, "busy"),
        (529, b"", Busy, "busy"),
        (307, b"", Permanent, "redirect"),
    ],
)
def test_a_status_and_its_text(status: int, body: bytes, kind: type[CallError], code: str) -> None:
    """What servers put into words is told apart."""
    error = refusal("p", status, {}, body)
    assert (type(error), error.code) == (kind, code)
    assert not isinstance(error, Permanent) or error.had == "request"


@given(st.integers(201, 599), st.text(min_size=9), st.sampled_from(["message", "param", "detail"]))
def test_a_server_may_quote_the_prompt(status: int, prompt: str, field: str) -> None:
    """The server's free text is in no message."""
    quoted = f"<<{prompt}>>"
    body = orjson.dumps({"error": {"type": f"bad {quoted}", field: quoted}})
    for error in (refusal("p", status, {}, body), refusal("p", status, {}, quoted.encode())):
        assert quoted not in str(error)
    assert quoted not in str(midstream("p", quoted))


def test_the_servers_own_word_is_kept() -> None:
    """A type of one short word helps the person who reads the message."""
    assert "(server_error)" in str(refusal("gpu1", 500, {}, b'{"error":{"type":"server_error"}}'))


CALL = Call(
    "chat",
    "m",
    messages=[{"role": "user", "content": "hi"}],
    max_tokens=9,
    temperature=0.5,
    extras={"top_p": 0.9, "seed": 1, "stop": "END", "user": "u", "n": 3, "stream": False, "top_k": None},
    options={"num_ctx": 8192, "temperature": 0.1, "top_k": 20, "repeat_penalty": 1.1},
)


def test_options_for_ollama() -> None:
    """The class's options are all sent, and the caller's win under Ollama's names."""
    assert ollama_api.chat_body(CALL)["options"] == {
        "num_ctx": 8192,
        "top_k": 20,
        "repeat_penalty": 1.1,
        "temperature": 0.5,
        "num_predict": 9,
        "top_p": 0.9,
        "seed": 1,
        "stop": ["END"],
    }


def test_ollama_never_thinks_or_cuts_by_default() -> None:
    """`think`, `truncate` and `shift` have bad defaults, so they are always sent; keep_alive never is."""
    body = ollama_api.chat_body(CALL)
    assert [body[name] for name in ("stream", "think", "truncate", "shift")] == [True, False, False, False]
    assert "keep_alive" not in body


def test_options_for_openai() -> None:
    """Ollama's runner options stay home, and a call is one answer, streamed, whatever the caller says."""
    body = openai_api.text_body(CALL)
    assert body == {
        "model": "m",
        "messages": CALL.messages,
        "stream": True,
        "stream_options": {"include_usage": True},
        "temperature": 0.5,
        "max_tokens": 9,
        "top_p": 0.9,
        "seed": 1,
        "stop": "END",
        "user": "u",
        "top_k": 20,
        "repeat_penalty": 1.1,
    }


def test_thinking_for_openai() -> None:
    """Only a call that says whether to think sends it, beside the caller's own template arguments."""
    call = Call("chat", "m", think=False, extras={"chat_template_kwargs": {"a": 1}})
    assert openai_api.text_body(call)["chat_template_kwargs"] == {"a": 1, "enable_thinking": False}


def test_content_parts_for_ollama() -> None:
    """Text parts are joined; images go apart, as bare base64."""
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
    parts = [{"type": "text", "text": "a"}, image, {"type": "text", "text": "b"}]
    call = Call("chat", "m", messages=[{"role": "developer", "content": parts}])
    assert ollama_api.chat_body(call)["messages"] == [{"role": "system", "content": "a\nb", "images": ["AAAA"]}]


def test_ollama_is_told_which_call_a_result_answers() -> None:
    """The parts of an answer with calls become one text, and each result names its call and its function."""
    made = [
        {"id": f"c{i}", "type": "function", "function": {"name": name, "arguments": arguments}}
        for i, (name, arguments) in enumerate([("weather", '{"city":"Rome"}'), ("now", "")])
    ]
    said = {"role": "assistant", "content": [{"type": "text", "text": "Let me look."}], "tool_calls": made}
    told = [{"role": "tool", "tool_call_id": f"c{i}", "content": text} for i, text in enumerate(["Sun.", "Noon."])]
    answer, *results = ollama_api.chat_body(Call("chat", "m", messages=[said, *told]))["messages"]
    assert answer["content"] == "Let me look."
    assert answer["tool_calls"] == [
        {"id": "c0", "function": {"name": "weather", "arguments": {"city": "Rome"}}},
        {"id": "c1", "function": {"name": "now", "arguments": {}}},
    ]
    assert results == [
        {"role": "tool", "content": "Sun.", "tool_call_id": "c0", "tool_name": "weather"},
        {"role": "tool", "content": "Noon.", "tool_call_id": "c1", "tool_name": "now"},
    ]


@pytest.mark.parametrize(
    "part", [{"type": "image_url", "image_url": {"url": "http://a/b.png"}}, {"type": "input_audio"}]
)
def test_what_ollama_cannot_take(part: dict[str, object]) -> None:
    """An image at an address would make the pool fetch it, so it is refused."""
    with pytest.raises(Permanent):
        ollama_api.chat_body(Call("chat", "m", messages=[{"role": "user", "content": [part]}]))


@pytest.mark.parametrize(
    "asked",
    [{"tools": ({},), "tool_choice": "required"}, {"extras": {"logit_bias": {"7": -100}}}],
    ids=["a tool", "bias"],
)
def test_what_ollama_cannot_be_asked_is_refused_by_name(asked: dict[str, Any]) -> None:
    """A tool that must be called, and words that must not come: without them it would be another answer."""
    with pytest.raises(Permanent, match=r"Ollama does not know (tool_choice|logit_bias)"):
        ollama_api.chat_body(Call("chat", "m", messages=[{"role": "user", "content": "Hello."}], **asked))


def test_kinds_are_a_closed_set() -> None:
    """An unknown kind is a fault of the configuration, and the known ones are named."""
    with pytest.raises(ConfigError, match="ollama, openai, gguf"):
        connect("carrier-pigeon", "http://a", "p")


@pytest.mark.parametrize("model", ["gpt-oss:120b-cloud", "x:cloud", "X:CLOUD"])
def test_a_cloud_name_opens_no_connection(model: str) -> None:
    """Ollama's cloud names are refused before anything is sent."""
    with pytest.raises(Permanent) as raised:
        asyncio.run(connect("ollama", "http://127.0.0.1:9", "p").call(Call("chat", model)))
    assert raised.value.code == "not_local"


def test_a_gguf_that_is_none() -> None:
    """A missing file, and one that is no GGUF, are clear errors before anything is started."""
    with pytest.raises(PoolError, match="cannot be read"):
        asyncio.run(GgufServer("/nowhere/model.gguf").start())
    with pytest.raises(PoolError, match="no GGUF"):
        asyncio.run(GgufServer(__file__).start())
