"""One suite for every backend, against the simulator; faults are asked for in the prompt."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

import pytest

from tasks.errors import Busy, CallError, Misconfigured, Offline, Permanent, Transient
from workers.backends import Backend, Call, Delta, Health, Reply, Timeouts, base, connect
from workers.simulator import RunningSimulator

Opened = Callable[..., AbstractAsyncContextManager[tuple[RunningSimulator, Backend]]]

MODEL = "qwen3-coder:30b"
THINKER = "gemma4:26b"
EMBEDDER = "bge-m3"
SECRET = "the-prompt-nobody-may-see"
SCHEMA = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
#: for silence alone: whatever else a server does, a busy machine may be later with it
SHORT = Timeouts(connect=5.0, load=0.0, first_token=1.0, between_tokens=0.3, total=10.0)


def chat(prompt: str, **fields: Any) -> Call:
    """A chat of one message."""
    fields.setdefault("model", MODEL)
    return Call("chat", messages=[{"role": "user", "content": prompt}], **fields)


def answer(opened: Opened, call: Call, **config: Any) -> Reply:
    """The reply to one call of a fresh simulator."""

    async def run() -> Reply:
        async with opened(**config) as (_, backend):
            return await backend.call(call)

    return asyncio.run(run())


async def until(holds: Callable[[], bool]) -> None:
    """Wait until it holds; TimeoutError after half a minute."""
    async with asyncio.timeout(30):
        while not holds():
            await asyncio.sleep(0.005)


TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "weather",
            "description": "The weather of a city.",
            "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
        },
    }
]


def test_a_tool_is_called_and_its_result_read(opened: Opened) -> None:
    """A model with tools calls one, in OpenAI's shape whatever the server's; with its result it answers."""
    asked = chat("Is it raining in Rome?", tools=TOOLS)
    reply = answer(opened, asked)
    (called,) = reply.tool_calls
    assert (called["type"], called["function"]["name"]) == ("function", "weather")
    assert called["id"]
    assert set(json.loads(called["function"]["arguments"])) == {"city"}
    result = {"role": "tool", "tool_call_id": called["id"], "content": "It is."}
    messages = [*asked.messages, {"role": "assistant", "content": None, "tool_calls": [called]}, result]
    final = answer(opened, Call("chat", MODEL, messages=messages, tools=TOOLS))
    assert final.text
    assert not final.tool_calls


def test_an_answer_is_told_piece_by_piece(opened: Opened) -> None:
    """What `on_delta` is given adds up to the reply: text, thoughts, and calls of tools with their index."""
    pieces: list[Delta] = []
    reply = answer(opened, chat("Hello there.", model=THINKER, think=True, on_delta=pieces.append))
    assert "".join(one.text for one in pieces) == reply.text
    assert "".join(one.reasoning for one in pieces) == reply.reasoning != ""
    pieces.clear()
    reply = answer(opened, chat("Is it raining?", tools=TOOLS, on_delta=pieces.append))
    parts = [part for one in pieces for part in one.tool_calls]
    assert {part["index"] for part in parts} == {0}
    arguments = "".join(part["function"].get("arguments", "") for part in parts)
    assert arguments == reply.tool_calls[0]["function"]["arguments"]


def test_a_chat_is_answered(opened: Opened) -> None:
    """A plain chat gives text, token counts and times, and ends with stop."""
    reply = answer(opened, chat("Hello there."))
    assert reply.text
    assert not reply.reasoning
    assert reply.finish_reason == "stop"
    assert reply.tokens_in > 0
    assert reply.tokens_out > 0
    assert 0 < reply.first_token_ms <= reply.duration_ms


def test_a_completion_is_answered(opened: Opened) -> None:
    """A bare prompt is answered as a chat is."""
    reply = answer(opened, Call("complete", MODEL, prompt="Once upon a time"))
    assert reply.text
    assert reply.tokens_out > 0


def test_max_tokens_ends_with_length(opened: Opened) -> None:
    """An answer cut by max_tokens says so on every protocol."""
    reply = answer(opened, chat("Tell me everything.", max_tokens=1))
    assert reply.finish_reason == "length"


def test_json_is_json(opened: Opened) -> None:
    """JSON mode reaches the server."""
    assert isinstance(json.loads(answer(opened, chat("An object, please.", json=True)).text), dict)


def test_a_schema_is_kept(opened: Opened) -> None:
    """A JSON Schema reaches the server."""
    assert isinstance(json.loads(answer(opened, chat("A number.", schema=SCHEMA)).text)["n"], int)


def test_embeddings_come_one_for_each_input(opened: Opened) -> None:
    """Embedding three texts gives three vectors of one length, in the order of the texts."""
    texts = ["one", "two", "three"]
    reply = answer(opened, Call("embed", EMBEDDER, inputs=texts))
    alone = [answer(opened, Call("embed", EMBEDDER, inputs=[text])).vectors[0] for text in texts]
    assert [vector[:8] for vector in reply.vectors] == [vector[:8] for vector in alone]
    assert {len(vector) for vector in reply.vectors} == {1024}
    assert reply.tokens_in > 0


@pytest.mark.parametrize("fault", ["vectors-short", "vectors-nan"])
def test_bad_embeddings_are_refused(opened: Opened, fault: str) -> None:
    """Vectors that are missing, or hold what is no number, are a broken reply."""
    with pytest.raises(Transient) as raised:
        answer(opened, Call("embed", EMBEDDER, inputs=[f"[[sim:{fault}]]", "b"]))
    assert raised.value.code in ("malformed", "not_json")


def test_thoughts_come_apart(opened: Opened) -> None:
    """A thinking model's thoughts are in `reasoning`, not in the text."""
    reply = answer(opened, chat("[[sim:think]] Why?", model=THINKER, think=True))
    assert reply.reasoning
    assert reply.text
    assert reply.reasoning not in reply.text


def test_thinking_is_off_unless_asked_for(opened: Opened) -> None:
    """A thinking model that is not to think answers JSON at once."""
    reply = answer(opened, chat("An object.", model=THINKER, think=False, json=True))
    assert not reply.reasoning
    assert json.loads(reply.text)


def test_leaked_thoughts_come_through_raw(opened: Opened) -> None:
    """What a model leaks into its answer is left there, for the checks to find."""
    assert "<think>" in answer(opened, chat("[[sim:leak]] Why?")).text


def test_an_empty_answer_is_a_reply(opened: Opened) -> None:
    """An answer without text is no error of the exchange."""
    assert answer(opened, chat("[[sim:empty]]")).text == ""


def test_a_truncated_answer_says_length(opened: Opened) -> None:
    """A server that stops early is believed."""
    assert answer(opened, chat("[[sim:truncated]]", json=True)).finish_reason == "length"


def test_nul_bytes_come_through(opened: Opened) -> None:
    """A NUL in the answer harms nothing on the way."""
    assert "\0" in answer(opened, chat("[[sim:nul]]")).text


FAULTS: list[tuple[str, type[CallError], str]] = [
    ("400", Permanent, "bad_request"),
    ("401", Misconfigured, "unauthorized"),
    ("403", Misconfigured, "unauthorized"),
    ("404", Misconfigured, "model_not_found"),
    ("408", Transient, "http_408"),
    ("422", Permanent, "http_422"),
    ("429", Busy, "rate_limited"),
    ("500", Transient, "http_500"),
    ("502", Transient, "http_502"),
    ("503", Busy, "loading"),
    ("504", Transient, "http_504"),
    ("reset", Transient, "reset"),
    ("hang", Transient, "first_token_timeout"),
    ("slow=5", Transient, "first_token_timeout"),
    ("stall", Transient, "stalled"),
    ("half", Transient, "incomplete"),
    ("notjson", Transient, "not_json"),
    ("midstream-error", Transient, "midstream_error"),
]


def limits(code: str) -> Timeouts:
    """Those of a call that is to fail with this code."""
    return SHORT if code in ("first_token_timeout", "stalled") else Timeouts()


@pytest.mark.parametrize(("fault", "error", "code"), FAULTS, ids=[fault for fault, *_ in FAULTS])
def test_each_fault_has_its_error(opened: Opened, fault: str, error: type[CallError], code: str) -> None:
    """Every fault becomes the one error that tells the loop what to do, and never quotes the prompt."""
    with pytest.raises(CallError) as raised:
        answer(opened, chat(f"[[sim:{fault}]] {SECRET}", timeouts=limits(code)))
    assert type(raised.value) is error
    assert raised.value.code == code
    assert SECRET not in str(raised.value)
    assert "sim" in str(raised.value)
    assert raised.value.__cause__ is None


EMBED_FAULTS = [row for row in FAULTS if row[0] not in ("slow=5", "midstream-error", "stall")]


@pytest.mark.parametrize(("fault", "error", "code"), EMBED_FAULTS, ids=[fault for fault, *_ in EMBED_FAULTS])
def test_each_fault_of_an_embedding_has_its_error(
    opened: Opened, fault: str, error: type[CallError], code: str
) -> None:
    """Embeddings fail by the same table."""
    with pytest.raises(CallError) as raised:
        answer(opened, Call("embed", EMBEDDER, inputs=[f"[[sim:{fault}]]"], timeouts=limits(code)))
    assert (type(raised.value), raised.value.code) == (error, code)


def test_retry_after_is_kept(opened: Opened) -> None:
    """The wait that a busy server asks for reaches the loop."""
    with pytest.raises(Busy) as raised:
        answer(opened, chat("[[sim:429=7]]"))
    assert raised.value.retry_after == 7.0


def test_a_full_queue_is_busy(opened: Opened) -> None:
    """A server whose queue is full is busy, not broken."""

    async def run() -> None:
        async with opened(slots=1, queue_limit=0) as (simulator, backend):
            blocker = asyncio.create_task(backend.call(chat("[[sim:hang]]")))
            await until(lambda: simulator.stats()["in_flight"] == 1)
            with pytest.raises(Busy) as raised:
                await backend.call(chat("Hello."))
            assert raised.value.code == "busy"
            blocker.cancel()

    asyncio.run(run())


def test_an_unknown_model_is_not_found(opened: Opened) -> None:
    """A name that the server does not have is permanent, and named nowhere else."""
    with pytest.raises(Misconfigured) as raised:
        answer(opened, chat("Hello.", model="nobody-has-this"))
    assert raised.value.code == "model_not_found"


def test_too_long_an_input_is_not_cut(opened: Opened) -> None:
    """An embedding's input longer than the context is an error, never cut in silence."""
    with pytest.raises(Permanent) as raised:
        answer(opened, Call("embed", EMBEDDER, inputs=["word " * 60_000]))
    assert raised.value.code == "context_exceeded"


def test_a_key_is_sent(opened: Opened) -> None:
    """The provider's key opens a server that asks for one; another key does not."""
    assert answer(opened, chat("Hello."), api_key="right").text

    async def run() -> Health:
        async with opened(api_key="right") as (simulator, backend):
            simulator.configure(api_key="changed")
            with pytest.raises(Misconfigured) as raised:
                await backend.call(chat("Hello."))
            assert raised.value.code == "unauthorized"
            return (await backend.probe()).health

    assert asyncio.run(run()) is Health.MISCONFIGURED


def test_cancelling_frees_the_slot(opened: Opened) -> None:
    """A cancelled call closes its connection, so that the server stops working for it."""

    async def run(prompt: str) -> None:
        async with opened() as (simulator, backend):
            task = asyncio.create_task(backend.call(chat(prompt)))
            await until(lambda: simulator.stats()["in_flight"] == 1)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            await until(lambda: simulator.stats()["in_flight"] == 0)

    asyncio.run(run("[[sim:hang]]"))
    asyncio.run(run("[[sim:stall]]"))


def test_a_late_call_frees_the_slot(opened: Opened) -> None:
    """A call past its deadline closes its connection too."""

    async def run() -> None:
        async with opened() as (simulator, backend):
            with pytest.raises(Transient):
                await backend.call(chat("[[sim:hang]]", timeouts=SHORT))
            await until(lambda: simulator.stats()["in_flight"] == 0)

    asyncio.run(run())


def test_the_whole_call_has_a_deadline(opened: Opened) -> None:
    """Tokens that keep coming do not keep a call alive past its total."""
    late = Timeouts(total=0.5)
    with pytest.raises(Transient) as raised:
        answer(opened, chat("Tell me a long story.", timeouts=late), tokens_per_s=1.0)
    assert raised.value.code == "total_timeout"


def test_an_endless_answer_is_cut_off(opened: Opened, monkeypatch: pytest.MonkeyPatch) -> None:
    """A reply larger than the bound fails its own job, for ever."""
    monkeypatch.setattr(base, "MAX_REPLY_BYTES", 1 << 20)
    with pytest.raises(Permanent) as raised:
        answer(opened, chat("[[sim:huge=2]]"))
    assert (raised.value.code, raised.value.had) == ("output_too_large", "answer")


def test_many_calls_at_once(opened: Opened) -> None:
    """More calls than aiohttp's own limit of 100 connections run at the same time."""

    async def run() -> int:
        async with opened(slots=300) as (simulator, backend):
            calls = [asyncio.create_task(backend.call(chat(f"[[sim:hang]] {i}"))) for i in range(150)]
            await until(lambda: simulator.stats()["serving"] == 150)
            for task in calls:
                task.cancel()
            await asyncio.gather(*calls, return_exceptions=True)
            return len(calls)

    assert asyncio.run(run()) == 150


def test_a_probe_says_what_is_served(opened: Opened) -> None:
    """A probe lists the models and generates nothing."""

    async def run() -> None:
        async with opened() as (simulator, backend):
            probe = await backend.probe()
            assert probe.health is Health.HEALTHY
            assert {MODEL, EMBEDDER} <= {name.removesuffix(":latest") for name in probe.models}
            assert simulator.stats()["requests"] == 0

    asyncio.run(run())


def test_nobody_listens(kind: str) -> None:
    """A refused connection is offline, for calls and for probes."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}"
        assert asyncio.run(failure(kind, url)) == (Offline, "refused", Health.OFFLINE)


def test_nobody_answers(kind: str) -> None:
    """A connection that is never accepted is given up after its own timeout, and is offline."""
    with socket.socket() as full:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        address = full.getsockname()
        with socket.create_connection(address):
            url = f"http://127.0.0.1:{address[1]}"
            assert asyncio.run(failure(kind, url, probe=False, connect_s=0.3)) == (Offline, "connect_timeout", None)


def test_a_name_without_address(kind: str) -> None:
    """A host that no one knows is offline."""
    found = asyncio.run(failure(kind, "http://nobody.invalid", probe=False))
    assert found == (Offline, "no_address", None)


@pytest.mark.parametrize("url", ["localhost:11434", "ftp://localhost", "http://[::1", "http://", ""])
def test_what_is_no_url(kind: str, url: str) -> None:
    """A url that cannot be one is a fault of the configuration, and never raises anything else."""
    assert asyncio.run(failure(kind, url)) == (Permanent, "bad_url", Health.MISCONFIGURED)


async def failure(
    kind: str, url: str, probe: bool = True, connect_s: float = 30.0
) -> tuple[type[CallError], str, Health | None]:
    """How a call to this address fails, and what a probe says."""
    backend = connect(kind, url, "nobody")
    try:
        with pytest.raises(CallError) as raised:
            await backend.call(Call("chat", MODEL, timeouts=Timeouts(connect=connect_s)))
        health = (await backend.probe()).health if probe else None
        return type(raised.value), raised.value.code, health
    finally:
        await backend.aclose()


@asynccontextmanager
async def raw_server(reply: bytes) -> AsyncIterator[str]:
    """A server that answers every request with these bytes and closes."""

    async def answer_all(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        length = head.lower().partition(b"content-length:")[2].split(b"\r\n")[0]
        await reader.readexactly(int(length or 0))  # closing before would be a reset
        writer.write(reply)
        writer.close()

    server = await asyncio.start_server(answer_all, "127.0.0.1", 0)
    async with server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"


CLOSING = b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: "


@pytest.mark.parametrize(
    ("reply", "error", "code"),
    [
        (b"HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:9/\r\n\r\n", Permanent, "redirect"),
        (b"SSH-2.0-OpenSSH_9.2\r\n", Transient, "not_http"),
        (b"", Transient, "reset"),
        (CLOSING + b"0\r\n\r\n", Transient, "incomplete"),
        (CLOSING + b'9\r\n\r\n{"a": [}\n', Transient, "not_json"),
        (CLOSING + b"9\r\n\r\n{", Transient, "incomplete"),
    ],
    ids=["redirect", "ssh", "closed", "empty", "bad-json", "cut"],
)
def test_what_is_no_model_server(kind: str, reply: bytes, error: type[CallError], code: str) -> None:
    """Whatever else may listen on the port gives an error with a name, and no redirect is followed."""

    async def run() -> tuple[type[CallError], str, Health | None]:
        async with raw_server(reply) as url:
            return await failure(kind, url)

    found = asyncio.run(run())
    assert found[:2] == (error, code)
    assert found[2] in (Health.OFFLINE, Health.MISCONFIGURED)
