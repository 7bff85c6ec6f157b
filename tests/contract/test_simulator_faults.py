"""Every fault that a marker names happens, on every protocol, as bytes on the wire."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from workers.simulator import BackgroundSimulator, in_thread
from workers.simulator.faults import NAMES

MODELS = {"/api/chat": "gemma3:4b", "/v1/chat/completions": "gemma3:4b", "/v1/messages": "claude-x"}
CHATS = list(MODELS)
EMBEDS = ["/api/embed", "/v1/embeddings"]
BOTH = pytest.mark.parametrize("stream", [False, True])
EVERY = pytest.mark.parametrize("path", CHATS)
#: seconds after which a reply is taken to never come
SILENCE = 1.0


@pytest.fixture(scope="module")
def sim() -> Iterator[BackgroundSimulator]:
    """One simulator for all: faults of one request touch no other."""
    with in_thread() as running:
        yield running


def body(path: str, text: str, stream: bool = False, **fields: Any) -> dict[str, Any]:
    """A chat's body for any of the three protocols."""
    messages = [{"role": "user", "content": text}]
    return {"model": MODELS[path], "messages": messages, "max_tokens": 2000, "stream": stream, **fields}


def post(
    sim: BackgroundSimulator, path: str, text: str, stream: bool = False, timeout: float = 30.0, **fields: Any
) -> httpx.Response:
    """One chat with a fault."""
    return httpx.post(sim.url + path, json=body(path, text, stream, **fields), timeout=timeout)


def until(predicate: Callable[[], bool]) -> None:
    """Wait for a predicate, 30 s at most."""
    end = time.monotonic() + 30
    while not predicate():
        assert time.monotonic() < end, "it never came true"
        time.sleep(0.005)


def content(path: str, reply: httpx.Response) -> tuple[str, str, str]:
    """Text, thoughts and finish of a whole reply."""
    said = reply.json()
    if path == "/api/chat":
        return said["message"]["content"], said["message"].get("thinking", ""), said["done_reason"]
    if path == "/v1/messages":
        blocks = {block["type"]: block for block in said["content"]}
        text, thoughts = (
            blocks.get("text", {}).get("text", ""),
            blocks.get("thinking", {}).get("thinking", ""),
        )
        return text, thoughts, "length" if said["stop_reason"] == "max_tokens" else said["stop_reason"]
    choice = said["choices"][0]
    return (
        choice["message"]["content"],
        choice["message"].get("reasoning_content", ""),
        choice["finish_reason"],
    )


@EVERY
@pytest.mark.parametrize("status", [400, 401, 404, 429, 500, 502, 503])
def test_statuses(sim: BackgroundSimulator, path: str, status: int) -> None:
    """Each status comes with a JSON error."""
    reply = post(sim, path, f"[[sim:{status}]]")
    assert reply.status_code == status
    assert reply.json()["error"]


@EVERY
def test_retry_after(sim: BackgroundSimulator, path: str) -> None:
    """429 says when to come back, 503 only when told to."""
    assert post(sim, path, "[[sim:429]]").headers["retry-after"] == "1"
    assert post(sim, path, "[[sim:429=7]]").headers["retry-after"] == "7"
    assert post(sim, path, "[[sim:503=3]]").headers["retry-after"] == "3"
    assert "retry-after" not in post(sim, path, "[[sim:503]]").headers


@EVERY
def test_an_unknown_fault_is_a_400_that_helps(sim: BackgroundSimulator, path: str) -> None:
    """A misspelt marker is refused with the known names."""
    reply = post(sim, path, "[[sim:tuncated]]")
    assert reply.status_code == 400
    assert "truncated" in reply.text


@EVERY
@BOTH
def test_reset(sim: BackgroundSimulator, path: str, stream: bool) -> None:
    """The connection breaks before any byte."""
    with pytest.raises((httpx.ReadError, httpx.RemoteProtocolError)):
        post(sim, path, "[[sim:reset]]", stream)
    until(lambda: sim.calls()[-1]["fault"] == "reset")


@pytest.mark.slow
@EVERY
@BOTH
def test_hang_holds_its_slot_until_the_client_goes(sim: BackgroundSimulator, path: str, stream: bool) -> None:
    """Nothing ever comes; when the client goes the slot is free and the call logged as closed."""
    with pytest.raises(httpx.ReadTimeout):
        post(sim, path, "[[sim:hang]]", stream, timeout=SILENCE)
    until(lambda: sim.stats()["serving"] == 0)
    last = sim.calls()[-1]
    assert (last["fault"], last["closed"], last["status"]) == ("hang", True, 0)


@EVERY
@BOTH
def test_half(sim: BackgroundSimulator, path: str, stream: bool) -> None:
    """The reply begins and the connection closes before its end."""
    with pytest.raises(httpx.RemoteProtocolError):
        post(sim, path, "[[sim:half]]", stream)


@pytest.mark.slow
@EVERY
@BOTH
def test_stall(sim: BackgroundSimulator, path: str, stream: bool) -> None:
    """The reply begins, then silence; the slot is freed when the client goes."""
    sent = body(path, "[[sim:stall]]", stream)
    with httpx.stream("POST", sim.url + path, json=sent, timeout=SILENCE) as reply:
        parts = reply.iter_raw()
        assert next(parts)
        with pytest.raises(httpx.ReadTimeout):
            list(parts)
    until(lambda: sim.stats()["serving"] == 0)


@EVERY
@BOTH
def test_midstream_error(sim: BackgroundSimulator, path: str, stream: bool) -> None:
    """An error stands in a reply of status 200."""
    reply = post(sim, path, "[[sim:midstream-error]]", stream)
    assert reply.status_code == 200
    assert '"error"' in reply.text


@EVERY
def test_notjson(sim: BackgroundSimulator, path: str) -> None:
    """HTML comes with status 200."""
    reply = post(sim, path, "[[sim:notjson]]")
    assert (reply.status_code, reply.headers["content-type"]) == (200, "text/html")


@EVERY
def test_thinking_faults(sim: BackgroundSimulator, path: str) -> None:
    """Thoughts go where the fault puts them."""
    text, thoughts, _ = content(path, post(sim, path, "[[sim:think]]"))
    assert text
    assert thoughts
    text, thoughts, _ = content(path, post(sim, path, "[[sim:empty]]"))
    assert (text, bool(thoughts)) == ("", True)
    assert content(path, post(sim, path, "[[sim:leak]]"))[0].startswith("<think>")
    assert content(path, post(sim, path, "[[sim:leak=kimi]]"))[0].startswith("◁think▷")
    opened = content(path, post(sim, path, "[[sim:leak-open]]"))[0]
    assert opened.startswith("<think>")
    assert "</think>" not in opened


@EVERY
def test_bad_answers(sim: BackgroundSimulator, path: str) -> None:
    """The text itself is cut, broken or dirty."""
    assert content(path, post(sim, path, "[[sim:truncated]]"))[2] == "length"
    with pytest.raises(json.JSONDecodeError):
        json.loads(content(path, post(sim, path, "[[sim:badjson]]"))[0])
    assert "\0" in content(path, post(sim, path, "[[sim:nul]]"))[0]
    assert "not" not in content(path, post(sim, path, "Labels: a, b [[sim:wronglabel]]"))[0]


@EVERY
def test_wrongschema(sim: BackgroundSimulator, path: str) -> None:
    """The JSON is whole and lacks what the schema requires."""
    schema = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
    wanted: dict[str, dict[str, Any]] = {
        "/api/chat": {"format": schema},
        "/v1/chat/completions": {"response_format": {"type": "json_schema", "json_schema": {"schema": schema}}},
        "/v1/messages": {"output_config": {"format": {"type": "json_schema", "schema": schema}}},
    }
    for marker, obeyed in (("", True), ("[[sim:wrongschema]]", False)):
        text, _, _ = content(path, post(sim, path, f"x {marker}", **wanted[path]))
        assert ("n" in json.loads(text)) is obeyed


@EVERY
@BOTH
def test_huge(sim: BackgroundSimulator, path: str, stream: bool) -> None:
    """The output is as many MB as asked for."""
    reply = httpx.post(sim.url + path, json=body(path, "[[sim:huge=3]]", stream), timeout=30)
    assert len(reply.content) > 3_000_000


@EVERY
@BOTH
def test_slow_and_delay(sim: BackgroundSimulator, path: str, stream: bool) -> None:
    """Both keep the answer back for as long as they say."""
    for marker in ("[[sim:slow=0.2]]", "[[sim:delay=0.2]]"):
        start = time.monotonic()
        reply = httpx.post(sim.url + path, json=body(path, marker, stream), timeout=30)
        # a stream's last part leaves before the delay is quite over
        assert time.monotonic() - start > (0.1 if stream else 0.2)
        assert reply.status_code == 200


@EVERY
def test_a_retry_succeeds(sim: BackgroundSimulator, path: str) -> None:
    """A counted fault happens N times for this prompt and then no more."""
    text = f"{path} [[sim:500*2]]"
    assert [post(sim, path, text).status_code for _ in range(4)] == [500, 500, 200, 200]


def embed(sim: BackgroundSimulator, path: str, fault: str) -> str:
    """The raw reply of two embeddings."""
    inputs = ["a", f"b [[sim:{fault}]]"]
    return httpx.post(sim.url + path, json={"model": "nomic-embed-text", "input": inputs}, timeout=30).text


def vectors(path: str, text: str) -> list[list[float]]:
    """The vectors of a reply."""
    said = json.loads(text)
    return said["embeddings"] if path == "/api/embed" else [entry["embedding"] for entry in said["data"]]


@pytest.mark.parametrize("path", EMBEDS)
def test_vector_faults(sim: BackgroundSimulator, path: str) -> None:
    """Each vector fault spoils the vectors as its name says."""
    assert len(vectors(path, embed(sim, path, "delay=0"))) == 2
    assert len(vectors(path, embed(sim, path, "vectors-short"))) == 1
    assert {len(vector) for vector in vectors(path, embed(sim, path, "vectors-dims"))} == {767}
    assert not any(map(any, vectors(path, embed(sim, path, "vectors-zero"))))
    assert "[NaN," in embed(sim, path, "vectors-nan")


@pytest.mark.parametrize("path", EMBEDS)
def test_embeddings_meet_the_wire_faults(sim: BackgroundSimulator, path: str) -> None:
    """Statuses and broken connections happen to embeddings too."""
    assert "error" in json.loads(embed(sim, path, "500"))
    with pytest.raises(httpx.RemoteProtocolError):
        embed(sim, path, "half")


def test_rates_play_every_fault(sim: BackgroundSimulator) -> None:
    """A rate of 1 makes every request meet the fault, and the counters name it."""
    sim.reset()
    sim.configure(faults={"429=9": 1.0})
    assert post(sim, CHATS[0], "hello").headers["retry-after"] == "9"
    assert sim.stats()["faults"] == {"429=9": 1}
    sim.reset()
    assert post(sim, CHATS[0], "hello").status_code == 200


def test_every_name_is_tried_here() -> None:
    """No fault is without a test in this file."""
    source = Path(__file__).read_text(encoding="utf-8")
    assert [name for name in NAMES if not re.search(rf"[:\"]{name}[\]\"=]", source)] == []
