"""Models of an Ollama that run on somebody else's machine count as cloud, by whichever protocol they are asked."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from tasks.errors import Busy, ConfigError, Misconfigured, Permanent
from tasks.privacy import Reach
from workers import straight
from workers.backends import Backend, Call, connect, locality
from workers.straight import Server
from workers.straight_bodies import Question


class FakeOllama:
    """What an Ollama says over the wire, with models that can move away; it keeps what it was sent.

    The simulator has no remote models, and a real one would need an account.
    """

    def __init__(self) -> None:
        self.listed: tuple[str, ...] = ("m:1", "n:1")
        self.remote: set[str] = set()
        self.status: dict[str, int] = {}  #: by path, where it is not 200
        self.asked: list[str] = []  #: calls
        self.questions: list[str] = []  #: about itself
        self.url = ""

    def reply(self, path: str) -> dict[str, Any] | bytes:
        rows = [{"name": n} | ({"remote_host": "https://ollama.com"} if n in self.remote else {}) for n in self.listed]
        if path in ("/api/tags", "/api/ps", "/v1/models"):
            self.questions.append(path)
        if path == "/api/tags":
            return {"models": rows}
        if path == "/api/ps":
            return {"models": []}
        if path == "/v1/models":
            return {"object": "list", "data": [{"id": row["name"], "owned_by": "library"} for row in rows]}
        self.asked.append(path)
        remote = {"remote_host": "https://ollama.com"} if self.remote else {}
        if path.startswith("/v1"):
            return b'data: {"choices":[{"delta":{"content":"hi"},"finish_reason":"stop"}]}\n\ndata: [DONE]\n\n'
        return {"message": {"content": "hi"}, "done": True, "embeddings": [[1.0]], **remote}

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        length = head.lower().partition(b"content-length:")[2].split(b"\r\n")[0]
        await reader.readexactly(int(length or 0))
        path = head.split(b" ")[1].decode()
        found = b"Ollama is running" if path == "/" else self.reply(path)
        body = found if isinstance(found, bytes) else json.dumps(found).encode() + b"\n"
        begin = b"HTTP/1.1 %d So\r\nConnection: close" % self.status.get(path, 200)
        writer.write(begin + b"\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
        writer.close()


@asynccontextmanager
async def ollama(
    kind: str, *, probed: bool = True, status: dict[str, int] | None = None
) -> AsyncIterator[tuple[FakeOllama, Backend]]:
    """One, and the backend that a local provider of this kind gives; a worker probes first, the API does not."""
    fake = FakeOllama()
    fake.status = status or {}
    server = await asyncio.start_server(fake.serve, "127.0.0.1", 0)
    fake.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    backend = connect(kind, fake.url if kind == "ollama" else f"{fake.url}/v1", "p")
    if probed:
        await backend.probe()
    try:
        yield fake, backend
    finally:
        await backend.aclose()
        server.close()


def chat(model: str = "m:1") -> Call:
    return Call("chat", model, messages=[{"role": "user", "content": "hello"}])


@pytest.mark.parametrize("kind", ["ollama", "openai"])
@pytest.mark.parametrize("call", [chat(), Call("embed", "m:1", inputs=["x"])], ids=["chat", "embed"])
def test_a_model_that_moved_away_is_sent_nothing_more(kind: str, call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    """What /api/tags said is believed for a moment only: then a remote model is found out before anything is sent."""
    monkeypatch.setattr(locality, "BELIEVED_S", 0.0)

    async def run() -> None:
        async with ollama(kind) as (fake, backend):
            fake.remote = {"m:1"}
            for _ in range(3):
                with pytest.raises(Permanent) as raised:
                    await backend.call(call)
                assert raised.value.code == "not_local"
            assert fake.asked == []

    asyncio.run(run())


@pytest.mark.parametrize("probed", [False, True])
def test_a_server_that_no_probe_has_recognised_is_asked_first(probed: bool) -> None:
    """Behind kind openai may be an Ollama: where no probe was made, or it was turned away, no call goes unasked."""

    async def run() -> None:
        async with ollama("openai", probed=probed, status={"/v1/models": 429} if probed else {}) as (fake, backend):
            fake.remote = {"m:1"}
            for _ in range(2):
                with pytest.raises(Permanent) as raised:
                    await backend.call(chat())
                assert raised.value.code == "not_local"
            assert fake.asked == []
            assert (await backend.call(chat("n:1"))).text == "hi"

    asyncio.run(run())


def test_a_server_that_cannot_say_what_it_is_is_sent_nothing() -> None:
    """While it turns that question away, the job waits; it goes out once the question is answered."""

    async def run() -> None:
        async with ollama("openai", probed=False, status={"/api/tags": 503}) as (fake, backend):
            with pytest.raises(Busy):
                await backend.call(chat())
            assert fake.asked == []
            fake.status.clear()
            assert (await backend.call(chat())).text == "hi"

    asyncio.run(run())


def test_another_server_is_asked_once() -> None:
    """One that knows no /api/tags is no Ollama: its second call is one exchange."""

    async def run() -> None:
        async with ollama("openai", probed=False, status={"/api/tags": 404}) as (fake, backend):
            for _ in range(2):
                await backend.call(chat())
            assert fake.questions == ["/api/tags"]
            assert fake.asked == ["/v1/chat/completions"] * 2

    asyncio.run(run())


def test_a_reply_that_came_from_elsewhere_is_the_last() -> None:
    """Within that moment a reply gives it away; it is no answer, and nothing follows it."""

    async def run() -> None:
        async with ollama("ollama") as (fake, backend):
            fake.remote = {"m:1"}
            for _ in range(3):
                with pytest.raises(Permanent):
                    await backend.call(chat())
            assert fake.asked == ["/api/chat"]

    asyncio.run(run())


SPELT = [
    ("Assistant:latest", "assistant"),
    ("assistant:latest", "ASSISTANT:Latest"),
    ("assistant:latest", "library/assistant"),
    ("assistant:latest", "registry.ollama.ai/library/assistant:latest"),
    ("assistant:latest", "https://registry.ollama.ai/library/assistant"),
    ("Me/x:1", "registry.ollama.ai/me/X:1"),
]


@pytest.mark.parametrize("kind", ["ollama", "openai"])
@pytest.mark.parametrize(("listed", "asked"), SPELT)
def test_a_model_is_known_by_every_spelling_that_ollama_takes(
    kind: str, listed: str, asked: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Case, its registry, its own namespace and `latest` aside: a remote one gets nothing, a local one its call."""

    async def run() -> None:
        async with ollama(kind) as (fake, backend):
            fake.listed = (listed,)
            fake.remote = {listed}
            await backend.probe()
            url = fake.url if kind == "ollama" else f"{fake.url}/v1"
            server, question = Server("p", kind, url, Reach.LOCAL), Question("chat", asked, "hello", connect_s=5.0)
            for ask in (lambda: backend.call(chat(asked)), lambda: asyncio.to_thread(straight.ask, server, question)):
                with pytest.raises(Permanent) as raised:
                    await ask()
                assert raised.value.code == "not_local"
            assert fake.asked == []
            fake.remote.clear()
            await backend.probe()
            monkeypatch.setattr(locality, "BELIEVED_S", 0.0)
            assert (await backend.call(chat(asked))).text == "hi"

    asyncio.run(run())


@pytest.mark.parametrize("kind", ["ollama", "openai"])
def test_what_ollama_does_not_list_is_not_sent(kind: str) -> None:
    """It may know it by a name that is not understood here; the straight way holds it so with Ollama's own protocol."""

    async def run() -> None:
        async with ollama(kind) as (fake, backend):
            with pytest.raises(Misconfigured) as raised:
                await backend.call(chat("m:2"))
            assert raised.value.code == "model_not_found"
            if kind == "ollama":
                server = Server("p", kind, fake.url, Reach.LOCAL)
                with pytest.raises(Misconfigured) as raised:
                    await asyncio.to_thread(straight.ask, server, Question("chat", "m:2", "hello"))
                assert raised.value.code == "model_not_found"
            assert fake.asked == []

    asyncio.run(run())


@pytest.mark.parametrize("kind", ["ollama", "openai"])
@pytest.mark.parametrize("name", ["m:cloud", "gpt-oss:120b-cloud"])
def test_a_cloud_name_is_never_sent(kind: str, name: str) -> None:
    """Names that Ollama sends to its cloud whatever it lists are refused before anything is asked."""

    async def run() -> None:
        async with ollama(kind) as (fake, backend):
            with pytest.raises(Permanent):
                await backend.call(chat(name))
            assert fake.asked == []

    asyncio.run(run())


@pytest.mark.parametrize("kind", ["ollama", "openai"])
@pytest.mark.parametrize("model", ["m:1", "x-cloud"])
def test_the_helpers_way_looks_too(kind: str, model: str) -> None:
    """The straight way finds out both, by both protocols."""

    async def run() -> None:
        async with ollama(kind) as (fake, _):
            fake.remote = {"m:1"}
            url = fake.url if kind == "ollama" else f"{fake.url}/v1"
            asked = Question(kind="chat", model=model, prompt="hello", connect_s=5.0, total_s=5.0)
            with pytest.raises(Permanent) as raised:
                await asyncio.to_thread(straight.ask, Server("p", kind, url, Reach.LOCAL), asked)
            assert raised.value.code == "not_local"
            assert fake.asked == []

    asyncio.run(run())


@pytest.mark.slow
def test_a_cloud_backend_is_made_for_reach_cloud_only() -> None:
    """Without a border of reach cloud there is no backend for Anthropic at all."""
    with pytest.raises(ConfigError):
        connect("anthropic", "http://127.0.0.1:9", "p", "k")
