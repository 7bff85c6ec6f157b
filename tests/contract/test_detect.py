"""Servers are told apart by their replies, and asked nothing that costs anything."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from aiohttp import web

from tasks.errors import Permanent
from workers.backends import Call, Health, Probe, connect
from workers.detect import Found, detect
from workers.simulator import SimulatorConfig, start

Pages = dict[str, Any]


def listing(owner: str, **fields: Any) -> Pages:
    """A /v1/models of one model."""
    return {"object": "list", "data": [{"id": "m", "object": "model", "owned_by": owner, **fields}]}


#: what each server answers to GET, by path; texts are text/plain
SERVERS: dict[str, Pages] = {
    "llama.cpp": {
        "/v1/models": listing("llamacpp"),
        "/health": {"status": "ok"},
        "/props": {"total_slots": 4, "default_generation_settings": {"n_ctx": 2048}},
    },
    "llama-swap": {
        "/v1/models": listing("llama-swap"),
        "/health": "OK",
        "/running": {"running": [{"model": "m", "state": "ready"}]},
    },
    "vllm": {"/v1/models": listing("vllm", max_model_len=4096), "/health": "", "/version": {"version": "1"}},
    "lm-studio": {
        "/v1/models": listing("organization_owner"),
        "/api/v1/models": {"models": [{"key": "m", "loaded_instances": [{"id": "m"}]}]},
        "*": {"error": "Unexpected endpoint or method. (GET /somewhere)"},
    },
    "litellm": {
        "/v1/models": listing("openai"),
        "/health": "calls every model",
        "/health/liveliness": "I'm alive!",
    },
    "ollama": {
        "/": "Ollama is running",
        "/v1/models": listing("library"),
        "/api/tags": {
            "models": [
                {"name": "m"},
                {"name": "copy:latest", "remote_host": "https://ollama.com:443", "remote_model": "big"},
                {"name": "big:120b-cloud"},
            ]
        },
        "/api/ps": {"models": [{"name": "m", "context_length": 8192}]},
    },
    "openai": {"/v1/models": listing("somebody")},
}


@asynccontextmanager
async def served(pages: Pages) -> AsyncIterator[tuple[int, list[str]]]:
    """A server with these pages: its port, and what it was asked."""
    asked: list[str] = []

    async def handle(request: web.BaseRequest) -> web.Response:
        asked.append(f"{request.method} {request.path}")
        page = pages.get(request.path, pages.get("*"))
        if page is None or request.method != "GET":
            return web.json_response({"error": "not here"}, status=404)
        return web.Response(text=page) if isinstance(page, str) else web.json_response(page)

    runner = web.ServerRunner(web.Server(handle))
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        yield int(runner.addresses[0][1]), asked
    finally:
        await runner.cleanup()


def probed(pages: Pages) -> tuple[Probe, list[Found], list[str]]:
    """What a probe and a search find at such a server, and what they asked."""

    async def run() -> tuple[Probe, list[Found], list[str]]:
        async with served(pages) as (port, asked):
            backend = connect("openai", f"http://127.0.0.1:{port}/v1", "p")
            try:
                return await backend.probe(), await detect([port]), asked
            finally:
                await backend.aclose()

    return asyncio.run(run())


@pytest.mark.parametrize("server", SERVERS)
def test_each_server_is_recognised(server: str) -> None:
    """Every server is known by its replies; only GETs are sent."""
    probe, _, asked = probed(SERVERS[server])
    assert (probe.server, probe.health, probe.models) == (server, Health.HEALTHY, ("m",))
    assert all(line.startswith("GET ") for line in asked)


def test_what_is_loaded_is_known() -> None:
    """Servers that say what they have in memory are believed."""
    loaded = {server: probed(pages)[0].loaded for server, pages in SERVERS.items()}
    unknown = {"litellm", "openai"}
    assert loaded == {server: () if server in unknown else ("m",) for server in SERVERS}


def test_the_context_of_a_slot_is_known() -> None:
    """So is the context, from whoever tells it."""
    contexts = {server: probed(pages)[0].context for server, pages in SERVERS.items()}
    assert {server: size for server, size in contexts.items() if size} == {
        "llama.cpp": 2048,
        "vllm": 4096,
        "ollama": 8192,
    }


def test_a_litellm_proxy_is_left_alone() -> None:
    """Its /health would call every model; and since it may forward to anybody, it is not found."""
    _, found, asked = probed(SERVERS["litellm"])
    assert "GET /health" not in asked
    assert found == []


def test_a_loading_server_is_warming() -> None:
    """llama-swap says which model it starts."""
    pages = SERVERS["llama-swap"] | {"/running": {"running": [{"model": "m", "state": "starting"}]}}
    assert probed(pages)[0].health is Health.WARMING


@pytest.mark.parametrize("pages", [{}, {"*": "hello"}, {"*": {"error": "x"}}, {"*": []}])
def test_another_program_is_not_found(pages: Pages) -> None:
    """Whatever else listens on a known port is no model server."""
    probe, found, _ = probed(pages)
    assert probe.health is Health.MISCONFIGURED
    assert found == []


def test_ollama_models_that_run_elsewhere_are_not_local() -> None:
    """They are not listed, and a call to one opens no conversation, whatever its name is."""

    async def run() -> None:
        async with served(SERVERS["ollama"]) as (port, asked):
            backend = connect("ollama", f"http://127.0.0.1:{port}", "p")
            try:
                for model in ("copy", "copy:latest", "big:120b-cloud"):
                    with pytest.raises(Permanent) as raised:
                        await backend.call(Call("chat", model))
                    assert raised.value.code == "not_local"
                assert not [line for line in asked if line.startswith("POST")]
                probe = await backend.probe()
                assert (probe.models, probe.loaded) == (("m",), ("m",))
            finally:
                await backend.aclose()

    asyncio.run(run())


def test_two_servers_have_two_names() -> None:
    """Several servers of one kind are told apart by their ports, and Ollama keeps its own protocol."""

    async def run() -> tuple[list[Found], int, int, int]:
        simulator = await start(SimulatorConfig(protocols=("ollama",)))
        try:
            async with served(SERVERS["vllm"]) as (first, _), served(SERVERS["vllm"]) as (second, _):
                ports = simulator.port, first, second
                return await detect(ports), *ports
        finally:
            await simulator.stop()

    found, ollama, first, second = asyncio.run(run())
    assert [(one.name, one.kind, one.url) for one in found] == [
        ("ollama", "ollama", f"http://127.0.0.1:{ollama}"),
        ("vllm", "openai", f"http://127.0.0.1:{first}/v1"),
        (f"vllm-{second}", "openai", f"http://127.0.0.1:{second}/v1"),
    ]


def test_a_silent_port_takes_a_second() -> None:
    """A port that accepts and says nothing holds nobody up."""

    async def run() -> list[Found]:
        silent = await asyncio.start_server(lambda *_: None, "127.0.0.1", 0)
        async with silent, served(SERVERS["vllm"]) as (port, _):
            return await detect([silent.sockets[0].getsockname()[1], port])

    began = time.monotonic()
    assert [one.server for one in asyncio.run(run())] == ["vllm"]
    assert time.monotonic() - began < 15  # on a machine that is busy; a silent port is waited for a second
