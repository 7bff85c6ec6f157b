"""The good paths again, against llama.cpp's own server: what the simulator only imitates."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, TypeVar

import pytest

from tasks.errors import Misconfigured, Permanent, PoolError
from workers.backends import Backend, Call, Health, Probe, Reply, connect
from workers.backends.gguf_server import GgufServer
from workers.detect import detect

T = TypeVar("T")
SCHEMA = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}


def using(server: GgufServer, act: Callable[[Backend], Awaitable[T]], api_key: str | None = None) -> T:
    """What `act` returns with a backend for this server."""

    async def run() -> T:
        backend = connect("gguf", server.url, "tiny", api_key or server.api_key)
        try:
            return await act(backend)
        finally:
            await backend.aclose()

    return asyncio.run(run())


def chat(prompt: str, **fields: Any) -> Call:
    """A chat of one message."""
    return Call("chat", "tiny", messages=[{"role": "user", "content": prompt}], **fields)


def test_a_chat_is_answered(llama: GgufServer) -> None:
    """A real stream of tokens becomes one text, counted."""
    reply = using(llama, lambda backend: backend.call(chat("Hello there.", think=False)))
    assert reply.text
    assert reply.finish_reason == "stop"
    assert reply.tokens_out > 0
    assert 0 < reply.first_token_ms <= reply.duration_ms


def test_calls_follow_each_other(llama: GgufServer) -> None:
    """Twenty calls in a row, two at a time, all succeed, though the server closes after each stream."""

    async def act(backend: Backend) -> list[Reply]:
        replies: list[Reply] = []
        for _ in range(10):
            pair = (backend.call(chat("Hi.", max_tokens=4)) for _ in range(2))
            replies += await asyncio.gather(*pair)
        return replies

    assert len(using(llama, act)) == 20


def test_a_completion_is_answered(llama: GgufServer) -> None:
    """The completions route is served."""
    call = Call("complete", "tiny", prompt="Once upon a time", max_tokens=8)
    assert using(llama, lambda backend: backend.call(call)).finish_reason in ("stop", "length")


def test_max_tokens_ends_with_length(llama: GgufServer) -> None:
    """An answer cut by max_tokens says so."""
    reply = using(llama, lambda backend: backend.call(chat("Hello.", max_tokens=2)))
    assert reply.finish_reason == "length"


def test_json_is_json(llama: GgufServer) -> None:
    """JSON mode constrains a model of random weights."""
    assert isinstance(json.loads(using(llama, lambda b: b.call(chat("Hi.", json=True))).text), dict)


def test_a_schema_is_kept(llama: GgufServer) -> None:
    """A schema constrains a model of random weights."""
    reply = using(llama, lambda backend: backend.call(chat("Hi.", schema=SCHEMA)))
    assert isinstance(json.loads(reply.text)["n"], int)


def test_one_model_embeds_as_well(llama: GgufServer) -> None:
    """The same server embeds, one vector a text."""
    call = Call("embed", "tiny", inputs=["one", "two"])
    vectors = using(llama, lambda backend: backend.call(call)).vectors
    assert [len(vector) for vector in vectors] == [64, 64]
    assert vectors[0] != vectors[1]


@pytest.mark.parametrize(
    "call", [chat("word " * 2000), Call("embed", "tiny", inputs=["word " * 2000])], ids=["chat", "embed"]
)
def test_too_long_a_prompt_is_refused(llama: GgufServer, call: Call) -> None:
    """A prompt longer than a slot's context is permanent and has its own code."""
    with pytest.raises(Permanent) as raised:
        using(llama, lambda backend: backend.call(call))
    assert raised.value.code == "context_exceeded"


def test_an_image_for_a_model_of_texts_is_refused(llama: GgufServer) -> None:
    """It is no error of the server's, which would be tried again, but one of the request."""
    pixel = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
    part = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{pixel}"}}
    call = Call("chat", "tiny", messages=[{"role": "user", "content": [part]}])
    with pytest.raises(Permanent) as raised:
        using(llama, lambda backend: backend.call(call))
    assert raised.value.code == "bad_request"


def test_another_key_is_refused(llama: GgufServer) -> None:
    """Nobody else on this machine can use the server."""
    with pytest.raises(Misconfigured) as raised:
        using(llama, lambda backend: backend.call(chat("Hello.")), api_key="wrong")
    assert raised.value.code == "unauthorized"


def test_a_probe_recognises_it(llama: GgufServer) -> None:
    """The probe names the server, its model and the context of one slot."""
    probe: Probe = using(llama, lambda backend: backend.probe())
    assert (probe.health, probe.server) == (Health.HEALTHY, "llama.cpp")
    assert (probe.models, probe.loaded, probe.context) == (("tiny",), ("tiny",), 1024)


def test_a_server_with_a_key_is_not_detected(llama: GgufServer) -> None:
    """What needs a key nobody gave cannot be used, so it is not found."""
    port = int(llama.url.split(":")[2].removesuffix("/v1"))
    assert asyncio.run(detect([port])) == []


def test_a_damaged_file_is_a_clear_error(llama: GgufServer, tmp_path: Path) -> None:
    """Half a model is refused with the file's name, and leaves no process behind."""
    half = tmp_path / "half.gguf"
    half.write_bytes(llama.path.read_bytes()[:2000])
    server = GgufServer(half)
    with pytest.raises(PoolError, match=r"half\.gguf.*damaged"):
        asyncio.run(server.start())
    assert not server.alive


PARENT = """
import asyncio, sys
from workers.backends.gguf_server import GgufServer
server = GgufServer(sys.argv[1], slots=1, context=256)
asyncio.run(server.start())
print(server._process.pid, flush=True)
sys.stdin.read()
"""


def test_the_child_dies_with_its_parent(llama: GgufServer) -> None:
    """A worker that is killed leaves no server behind."""
    root = Path(__file__).resolve().parents[2]
    command = [sys.executable, "-c", PARENT, str(llama.path)]
    environment = os.environ | {"PYTHONPATH": str(root)}
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        parent.send_signal(signal.SIGKILL)
    deadline = time.monotonic() + 5
    while _runs(child):
        assert time.monotonic() < deadline, "the child outlived its parent"
        time.sleep(0.01)


def _runs(pid: int) -> bool:
    """Whether the process is alive; one that nobody has waited for is not."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    status = Path(f"/proc/{pid}/stat")
    return not (status.exists() and status.read_text().rpartition(")")[2].split()[0] == "Z")
