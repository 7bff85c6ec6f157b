"""How bytes become replies, whatever the network does to them."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.errors import Busy, CallError, Permanent, Transient
from workers.backends import Call, Reply, ollama_api, openai_api
from workers.backends.base import Times
from workers.backends.streams import JsonLines, ServerSentEvents, vectors

TIMES = Times(1.0, 2.0)


def cut(body: bytes, at: list[int]) -> list[bytes]:
    """The body in pieces, cut at these places (modulo its length)."""
    places = sorted({0, len(body), *(place % (len(body) + 1) for place in at)})
    return [body[start:end] for start, end in pairwise(places)]


def events(*chunks: bytes) -> list[bytes]:
    """The data of each event in a stream that comes in these chunks."""
    found: list[bytes] = []
    reader = ServerSentEvents(found.append, "p")
    for chunk in chunks:
        reader.feed(chunk)
    reader.end()
    return found


def openai_reply(*chunks: bytes, stop: list[str] | None = None) -> Reply:
    """What the OpenAI backend makes of these chunks. stop: of the request."""
    reader = openai_api._Answer("p", Call("chat", "m", extras={"stop": stop}))
    for chunk in chunks:
        reader.feed(chunk)
    reader.end()
    return reader.reply(TIMES)


def ollama_reply(*chunks: bytes) -> Reply:
    """What the Ollama backend makes of these chunks."""
    reader = ollama_api._Answer("p", Call("chat", "m"))
    for chunk in chunks:
        reader.feed(chunk)
    reader.end()
    return reader.reply(TIMES)


def delta(**fields: Any) -> bytes:
    """One event of a chat."""
    return b"data: " + orjson.dumps({"choices": [{"index": 0, "delta": fields}]}) + b"\n\n"


FINISH = b'data: {"choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}\n\n'
USAGE = (
    b'data: {"choices":[],"usage":{"prompt_tokens":3,"completion_tokens":5,'
    b'"completion_tokens_details":{"reasoning_tokens":2}}}\n\n'
)
DONE = b"data: [DONE]\n\n"

#: what a model may say: no lone surrogates, which no UTF-8 can carry
words = st.text(st.characters(codec="utf-8"))


@pytest.mark.parametrize(
    ("told", "met"),
    [
        ({"stop_reason": "END"}, "END"),  # vLLM
        ({"matched_stop": "END"}, "END"),  # SGLang
        ({"stop_reason": 128009}, None),  # the token that ends every answer
        ({"stop_reason": "stop"}, None),
        ({}, None),
    ],
)
def test_a_stop_sequence_that_was_met(told: dict[str, Any], met: str | None) -> None:
    """It is known where the server names one of the request's own."""
    last = {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop", **told}]}
    reply = openai_reply(delta(content="x"), b"data: " + orjson.dumps(last) + b"\n\n", DONE, stop=["END", "."])
    assert (reply.finish_reason, reply.stop_sequence) == ("stop", met)


@given(st.lists(words, max_size=8), words, st.lists(st.integers(0, 10_000)), st.booleans())
def test_an_event_stream_may_be_cut_anywhere(texts: list[str], thought: str, at: list[int], crlf: bool) -> None:
    """The same reply comes out wherever the network cut it, with LF or CRLF."""
    body = delta(role="assistant", content=None) + delta(reasoning_content=thought)
    body += b": keep-alive\n\n" + b"".join(delta(content=text) for text in texts) + FINISH + USAGE + DONE
    if crlf:
        body = body.replace(b"\n", b"\r\n")  # orjson escapes newlines inside of strings
    reply = openai_reply(*cut(body, at))
    assert (reply.text, reply.reasoning) == ("".join(texts), thought)
    assert (reply.tokens_in, reply.tokens_out, reply.tokens_thinking) == (3, 5, 2)


@given(st.lists(words, max_size=8), words, st.lists(st.integers(0, 10_000)))
def test_json_lines_may_be_cut_anywhere(texts: list[str], thought: str, at: list[int]) -> None:
    """The same reply comes out wherever the network cut it."""
    parts: list[dict[str, Any]] = [{"message": {"content": "", "thinking": thought}, "done": False}]
    parts += [{"message": {"content": text}, "done": False} for text in texts]
    parts += [{"done": True, "done_reason": "length", "eval_count": 7, "load_duration": 2_500_000}]
    reply = ollama_reply(*cut(b"\n".join(map(orjson.dumps, parts)), at))
    assert (reply.text, reply.reasoning) == ("".join(texts), thought)
    assert (reply.finish_reason, reply.tokens_in, reply.tokens_out) == ("length", 0, 7)
    assert reply.load_ms == 2.5


@given(st.binary(max_size=300), st.lists(st.integers(0, 300)))
def test_noise_is_a_call_error(noise: bytes, at: list[int]) -> None:
    """Bytes without meaning raise a CallError and nothing else."""
    for read in (openai_reply, ollama_reply):
        with pytest.raises(CallError):
            read(*cut(noise, at))


def test_an_end_alone_is_no_answer() -> None:
    """[DONE] without a choice before it is a reply that was cut."""
    with pytest.raises(Transient) as raised:
        openai_reply(b"data: [DONE]\n\n")
    assert raised.value.code == "incomplete"


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 5) | st.text(max_size=3),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["choices", "delta", "content", "message", "done", "error", "usage", "text"]),
            inner,
        )
    ),
    max_leaves=12,
)


@given(json_values)
def test_any_json_is_a_reply_or_a_call_error(value: Any) -> None:
    """JSON of any shape gives a reply or a CallError, never another exception."""
    body = orjson.dumps(value)
    for read, chunk in ((openai_reply, b"data: " + body + b"\n\n"), (ollama_reply, body + b"\n")):
        try:
            reply = read(chunk)
        except CallError:
            continue
        assert isinstance(reply.text, str)
        assert isinstance(reply.finish_reason, str)
        assert isinstance(reply.tokens_out, int)


def test_several_data_lines_are_one_event() -> None:
    """Data lines join with a newline, with or without a space after the colon."""
    assert events(b'event: x\nid: 7\ndata:{"a":\ndata: 1}\n\n') == [b'{"a":\n 1}']


def test_a_last_event_may_lack_its_blank_line() -> None:
    """[DONE] at the very end counts without a newline."""
    assert events(b"data: 1\n\ndata: [DONE]")[-1].strip() == b"[DONE]"


@pytest.mark.parametrize("end", [DONE, FINISH, FINISH + DONE])
def test_either_ending_is_an_ending(end: bytes) -> None:
    """[DONE] or a finish_reason makes an answer complete."""
    assert openai_reply(delta(content="hi"), end).text == "hi"


def test_no_ending_is_incomplete() -> None:
    """Without [DONE], finish_reason or done the connection was cut."""
    for read, part in ((openai_reply, delta(content="hi")), (ollama_reply, b'{"response":"hi"}\n')):
        with pytest.raises(Transient) as raised:
            read(part)
        assert raised.value.code == "incomplete"


def test_a_server_that_does_not_stream_is_understood() -> None:
    """One whole completion instead of a stream is read as well."""
    body = b'{"choices":[{"message":{"content":"hi"},"finish_reason":"length"}]}'
    reply = openai_reply(body)
    assert (reply.text, reply.finish_reason) == ("hi", "length")


def test_reasoning_has_two_names() -> None:
    """Newer vLLM says `reasoning` for what others call `reasoning_content`."""
    assert openai_reply(delta(reasoning="hm"), delta(content="hi"), DONE).reasoning == "hm"


@pytest.mark.parametrize(
    ("error", "kind", "code"),
    [
        (b'{"error":"model runner has stopped"}', Transient, "midstream_error"),
        (b'{"error":"server busy, please try again.  maximum pending requests exceeded"}', Busy, "busy"),
        (b'{"error":{"code":503,"message":"Loading model","type":"unavailable_error"}}', Busy, "loading"),
        (b'{"error":{"type":"exceed_context_size_error"}}', Permanent, "context_exceeded"),
    ],
)
def test_an_error_inside_a_stream(error: bytes, kind: type[CallError], code: str) -> None:
    """An error under status 200 is told apart by its text, in both protocols."""
    for read, chunk in (
        (openai_reply, b"data: " + error + b"\n\n"),
        (openai_reply, error),
        (ollama_reply, error + b"\n"),
    ):
        with pytest.raises(CallError) as raised:
            read(chunk)
        assert (type(raised.value), raised.value.code) == (kind, code)


def test_an_older_llama_cpp_names_its_field_error() -> None:
    """An `error:` field is an error, not a field to ignore."""
    with pytest.raises(Transient) as raised:
        openai_reply(delta(content="hi"), b'error: {"code":500,"message":"x","type":"server_error"}\n\n')
    assert raised.value.code == "midstream_error"


def test_a_line_of_many_chunks_costs_no_square() -> None:
    """A megabyte without a newline, a byte at a time, is held in pieces and joined once."""
    found: list[dict[str, Any]] = []
    reader = JsonLines(found.append, "p")
    body = orjson.dumps({"response": "x" * 1_000_000}) + b"\n"
    for start in range(len(body)):
        reader.feed(body[start : start + 1])
    assert len(found[0]["response"]) == 1_000_000


@pytest.mark.parametrize("rows", [None, [], [[1.0]], [[1.0], []], [[1.0], [None]], [[1.0], 3]])
def test_vectors_must_be_all_there(rows: Any) -> None:
    """Two inputs want two vectors of numbers."""
    with pytest.raises(Transient) as raised:
        vectors(rows, 2, "p")
    assert raised.value.code == "malformed"
