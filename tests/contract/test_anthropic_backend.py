"""The cloud's backend, by the official package: what the other backends' suite asks, in this protocol's terms."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any

import pytest

from tasks.errors import Busy, CallError, Misconfigured, Offline, OutOfReach, Permanent, Transient
from tasks.privacy import Clearance, Reach, Tier
from workers.backends import Backend, Call, Delta, Health, Reply, Timeouts, connect
from workers.backends.border import Border
from workers.simulator import RunningSimulator, SimulatorConfig, start

CLOUD = Border(Reach.CLOUD)
LEAVES = Clearance(Tier.CLOUD_OK)
SECRET = "the-prompt-nobody-may-see"
SHORT = Timeouts(connect=5.0, load=0.0, first_token=1.0, between_tokens=1.0, total=10.0)
SCHEMA = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"], "additionalProperties": False}


@asynccontextmanager
async def opened(key: str | None = "k", **config: Any) -> AsyncIterator[tuple[RunningSimulator, Backend]]:
    """A simulated cloud and its backend."""
    simulator = await start(SimulatorConfig(**config))
    backend = connect("anthropic", simulator.url, "sim", key, CLOUD)
    try:
        yield simulator, backend
    finally:
        await backend.aclose()
        await simulator.stop()


def chat(prompt: str, **fields: Any) -> Call:
    """A chat of one message that may leave."""
    fields.setdefault("clearance", LEAVES)
    return Call("chat", "claude-sim", messages=[{"role": "user", "content": prompt}], **fields)


def answer(call: Call, **config: Any) -> Reply:
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


def test_a_chat_is_answered() -> None:
    """Text, model, token counts and times."""
    reply = answer(chat("Hello there."))
    assert reply.text
    assert (reply.model, reply.finish_reason) == ("claude-sim", "stop")
    assert reply.tokens_in > 0
    assert reply.tokens_out > 0
    assert 0 < reply.first_token_ms <= reply.duration_ms


def test_system_text_goes_apart_and_parameters_that_are_refused_stay_here() -> None:
    """System messages become `system`; temperature and top_p are not sent, and a stop text is."""
    from workers.backends import anthropic_api

    system = {"role": "system", "content": "Task: naming. x"}
    call = Call(
        "chat", "claude-sim", messages=[system, {"role": "user", "content": "x"}], temperature=0.5,
        extras={"top_p": 0.5, "stop": "END"}, options={"num_ctx": 8}, clearance=LEAVES,
    )  # fmt: skip
    assert answer(call).text.startswith("simulated_name_")
    body = anthropic_api.message_body(call, "sim")
    assert set(body) == {"model", "max_tokens", "messages", "system", "stop_sequences"}


def test_results_of_several_tools_are_one_message() -> None:
    """What the calls of one answer came to goes back together, and what the user says then apart."""
    from workers.backends import anthropic_api

    made = [{"id": i, "type": "function", "function": {"name": "now", "arguments": ""}} for i in ("a", "b")]
    results = [{"role": "tool", "tool_call_id": i, "content": "Noon."} for i in ("a", "b")]
    said = {"role": "assistant", "content": None, "tool_calls": made}
    call = Call("chat", "claude-sim", messages=[said, *results, {"role": "user", "content": "And?"}])
    _, told, last = anthropic_api.message_body(call, "sim")["messages"]
    assert [(one["type"], one["tool_use_id"]) for one in told["content"]] == [
        ("tool_result", "a"),
        ("tool_result", "b"),
    ]
    assert (told["role"], last) == ("user", {"role": "user", "content": "And?"})


def test_a_tool_that_takes_nothing_is_called_with_an_empty_object() -> None:
    """Its arguments, of which the protocol streams nothing, are JSON to whoever reads them, piece by piece too."""
    from workers.backends import anthropic_api

    pieces: list[Delta] = []
    reading = anthropic_api._Answer("sim", chat("What time is it?", on_delta=pieces.append))
    block = SimpleNamespace(type="tool_use", id="toolu_1", name="now")
    nothing = SimpleNamespace(type="input_json_delta", partial_json="")
    for event in ("content_block_start", "content_block_delta", "content_block_stop"):
        reading._take(SimpleNamespace(type=event, index=1, content_block=block, delta=nothing))
    (called,) = reading.reply().tool_calls
    assert called["function"] == {"name": "now", "arguments": "{}"}
    told = [part["function"].get("arguments", "") for piece in pieces for part in piece.tool_calls]
    assert "".join(told) == "{}"


def test_max_tokens_ends_with_length() -> None:
    """An answer cut by max_tokens says so."""
    assert answer(chat("Tell me everything.", max_tokens=1)).finish_reason == "length"


def test_a_stop_sequence_is_named() -> None:
    """The one at which an answer ended comes back."""
    whole = answer(chat("Hello there."))
    assert whole.stop_sequence is None
    word = whole.text.split()[1]
    assert answer(chat("Hello there.", extras={"stop": [word]})).stop_sequence == word


def test_a_schema_is_kept() -> None:
    """A JSON Schema reaches the cloud."""
    assert isinstance(json.loads(answer(chat("A number.", schema=SCHEMA)).text)["n"], int)


def test_thoughts_come_apart() -> None:
    """Thinking that was asked for is not in the text."""
    reply = answer(chat("Why?", think=True))
    assert reply.reasoning
    assert reply.reasoning not in reply.text


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
    ("notjson", Transient, "incomplete"),
    ("midstream-error", Transient, "midstream_error"),
]


@pytest.mark.parametrize(("fault", "error", "code"), FAULTS, ids=[fault for fault, *_ in FAULTS])
def test_each_fault_has_its_error(fault: str, error: type[CallError], code: str) -> None:
    """Every way a call can fail has its error and its code, and no message shows the prompt."""
    limits = SHORT if code in ("first_token_timeout", "stalled") else Timeouts()
    with pytest.raises(CallError) as raised:
        answer(chat(f"[[sim:{fault}]] {SECRET}", timeouts=limits))
    assert type(raised.value) is error
    assert raised.value.code == code
    assert SECRET not in str(raised.value)
    assert raised.value.__cause__ is None


def test_retry_after_is_kept() -> None:
    """What the cloud asks to wait is passed on, and the package does not wait and try again by itself."""

    async def run() -> None:
        async with opened() as (simulator, backend):
            with pytest.raises(Busy) as raised:
                await backend.call(chat("[[sim:429=7]]"))
            assert raised.value.retry_after == 7
            assert simulator.stats()["requests"] == 1

    asyncio.run(run())


def test_an_endless_answer_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    """An answer larger than the bound fails its own job, for ever."""
    monkeypatch.setattr("workers.backends.anthropic_api.MAX_ANSWER_CHARS", 1 << 20)
    with pytest.raises(Permanent) as raised:
        answer(chat("[[sim:huge=2]]"))
    assert (raised.value.code, raised.value.had) == ("output_too_large", "answer")


def test_cancelling_frees_the_slot() -> None:
    """A call that is cancelled closes its connection, and the cloud stops."""

    async def run() -> None:
        async with opened() as (simulator, backend):
            call = asyncio.create_task(backend.call(chat("[[sim:hang]]")))
            await until(lambda: simulator.stats()["serving"] == 1)
            call.cancel()
            await asyncio.gather(call, return_exceptions=True)
            await until(lambda: simulator.stats()["in_flight"] == 0)

    asyncio.run(run())


def test_many_calls_at_once() -> None:
    """More calls than the HTTP client's own limit run at the same time."""

    async def run() -> None:
        async with opened(slots=300) as (simulator, backend):
            calls = [asyncio.create_task(backend.call(chat(f"[[sim:hang]] {i}"))) for i in range(150)]
            await until(lambda: simulator.stats()["serving"] == 150)
            for task in calls:
                task.cancel()
            await asyncio.gather(*calls, return_exceptions=True)

    asyncio.run(run())


@pytest.mark.parametrize(("given", "health"), [("k", Health.HEALTHY), ("x", Health.MISCONFIGURED)])
def test_a_probe_says_whether_the_key_is_good_and_spends_nothing(given: str, health: Health) -> None:
    """The list of models is asked for, and nothing is generated."""

    async def run() -> None:
        async with opened(given, api_key="k") as (simulator, backend):
            assert (await backend.probe()).health is health
            assert simulator.stats()["requests"] == 0

    asyncio.run(run())


def test_a_server_of_this_protocol_alone_is_probed_too() -> None:
    """The list of models is part of the protocol."""

    async def run() -> None:
        async with opened(protocols=("anthropic",)) as (_, backend):
            assert (await backend.probe()).health is Health.HEALTHY

    asyncio.run(run())


def test_without_a_key_nothing_is_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    """A key that is not set is said; none is taken from elsewhere in the environment."""
    monkeypatch.setenv("ANTHROPIC_API_KEY", "another")

    async def run() -> None:
        async with opened(None) as (simulator, backend):
            with pytest.raises(Misconfigured):
                await backend.call(chat("Hello."))
            assert (await backend.probe()).health is Health.MISCONFIGURED
            assert simulator.stats()["requests"] == 0

    asyncio.run(run())


def test_what_may_not_leave_is_not_sent() -> None:
    """A call that nobody cleared for a cloud, or that holds what a detector finds, opens no connection."""

    async def run() -> None:
        async with opened() as (simulator, backend):
            for call in (
                chat("Hello.", clearance=Clearance(Tier.LAN_OK)),
                chat("To jo.doe@acme-corp.com."),
                Call("chat", "claude-sim", messages=[{"role": "user", "content": "Hello."}]),
            ):
                with pytest.raises(OutOfReach):
                    await backend.call(call)
            assert simulator.stats()["requests"] == 0

    asyncio.run(run())


def test_nobody_listens() -> None:
    """A refused connection is offline, for calls and for probes."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}"

        async def run() -> None:
            backend = connect("anthropic", url, "nobody", "k", CLOUD)
            with pytest.raises(Offline):
                await backend.call(chat("Hello."))
            assert (await backend.probe()).health is Health.OFFLINE
            await backend.aclose()

        asyncio.run(run())


def test_a_tool_is_called_and_its_result_read() -> None:
    """Tools, calls and results are sent in Anthropic's shape and come back in OpenAI's."""
    parameters = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
    tools = [{"type": "function", "function": {"name": "weather", "parameters": parameters}}]
    asked: list[dict[str, Any]] = [{"role": "user", "content": "Is it raining in Rome?"}]
    pieces: list[Delta] = []
    call = Call("chat", "claude-sim", messages=asked, tools=tools, on_delta=pieces.append, clearance=LEAVES)
    reply = answer(call)
    (called,) = reply.tool_calls
    assert (reply.finish_reason, called["function"]["name"]) == ("tool_calls", "weather")
    told = "".join(part["function"]["arguments"] for one in pieces for part in one.tool_calls)
    assert json.loads(told) == json.loads(called["function"]["arguments"])
    result = {"role": "tool", "tool_call_id": called["id"], "content": "It is."}
    messages = [*asked, {"role": "assistant", "content": None, "tool_calls": [called]}, result]
    assert answer(Call("chat", "claude-sim", messages=messages, tools=tools, clearance=LEAVES)).text


@pytest.mark.parametrize(
    "messages",
    [
        [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://elsewhere/x.png"}}]}],
        [{"role": "assistant", "content": None, "tool_calls": [{}]}],
    ],
)
def test_what_the_protocol_cannot_say_fails_that_job(messages: list[dict[str, Any]]) -> None:
    """Broken tool calls and images given as addresses are a permanent error, before anything is sent."""
    with pytest.raises(Permanent):
        answer(Call("chat", "claude-sim", messages=messages, clearance=LEAVES))
    with pytest.raises(Permanent):
        answer(Call("embed", "claude-sim", inputs=["x"], clearance=LEAVES))


@pytest.mark.slow
def test_the_packages_own_logging_shows_no_prompt() -> None:
    """With ANTHROPIC_LOG=debug, and a root logger that writes everything, nothing of a prompt is shown."""
    code = (
        "import logging, sys; logging.basicConfig(level=logging.DEBUG, stream=sys.stdout)\n"
        "import asyncio\n"
        "from tests.contract import test_anthropic_backend as t\n"
        f"print(asyncio.run(t._one({SECRET!r})))\n"
    )
    environment = os.environ | {"ANTHROPIC_LOG": "debug", "ANTHROPIC_CUSTOM_HEADERS": "x-leak: yes"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert SECRET not in done.stdout + done.stderr
    assert "x-leak" not in done.stdout


async def _one(prompt: str) -> int:
    async with opened() as (_, backend):
        return len((await backend.call(chat(prompt))).text)
