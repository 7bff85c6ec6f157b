"""Every server that can be asked to free its memory is asked in its own way, and for the pool's models only."""

from __future__ import annotations

import asyncio
from collections.abc import Collection
from typing import Any

import pytest

from tasks.errors import Busy, Offline
from tests.support.plain_server import plain_server
from workers.backends import Call, connect, unloading
from workers.simulator import SimulatorConfig, start

OURS, OTHERS = "team/model:8b", "somebody-elses"


class Holding(dict[str, Any]):
    """What a server says of its memory, which POSTs to its unload route change. stuck: it never lets go."""

    def __init__(self, kind: str, stuck: bool = False) -> None:
        super().__init__()
        self.kind, self.stuck = kind, stuck
        self.loaded = [OURS, OTHERS]

    def get(self, path: str, default: Any = None) -> Any:
        """The answer to a request for a path."""
        if "unload" in path and self.kind != "vllm":
            return self._unload(path)
        return self._says().get(path, default)

    def _unload(self, path: str) -> Any:
        old = self.kind == "old llama-swap"
        if old and path != "/api/models/unload":
            return 404
        if not self.stuck:
            self.loaded = [] if old else [OTHERS]
        return {"success": True}

    def _says(self) -> dict[str, Any]:
        names = [{"id": name} for name in (OURS, OTHERS)]
        match self.kind:
            case "llama-swap" | "old llama-swap":
                running = [{"model": name, "state": "ready"} for name in self.loaded]
                return {"/v1/models": {"data": names}, "/running": {"running": running}}
            case "router":
                rows = [{**n, "owned_by": "llamacpp", "status": {"value": self._state(n["id"])}} for n in names]
                return {"/v1/models": {"data": rows}, "/health": {"status": "ok"}}
            case "llama.cpp":
                return {"/v1/models": {"data": [{"id": OURS, "owned_by": "llamacpp"}]}, "/health": {"status": "ok"}}
            case "lm-studio":
                held = {n: [{"id": n}] if n in self.loaded else [] for n in (OURS, OTHERS)}
                instances = [{"key": n, "loaded_instances": ids} for n, ids in held.items()]
                return {"/v1/models": {"data": names}, "/api/v1/models": {"models": instances}}
        return {"/v1/models": {"data": [{"id": OURS, "owned_by": "vllm"}]}, "/health": {}}

    def _state(self, name: str) -> str:
        return "loaded" if name in self.loaded else "unloaded"


def unload(url: str, models: Collection[str] = (OURS,)) -> bool:
    """Ask the server at a URL in the way that a worker does."""

    async def run() -> bool:
        backend = connect("openai", f"{url}/v1", "gpu")
        try:
            return await backend.unload(models)
        finally:
            await backend.aclose()

    return asyncio.run(run())


@pytest.mark.parametrize(
    ("kind", "path", "body"),
    [
        ("llama-swap", f"/api/models/unload/{OURS}", {}),
        ("router", "/models/unload", {"model": OURS}),
        ("lm-studio", "/api/v1/models/unload", {"instance_id": OURS}),
    ],
)
def test_a_server_is_asked_for_the_pools_models(kind: str, path: str, body: dict[str, Any]) -> None:
    """One request for each model of ours that it holds; what others loaded stays."""
    with plain_server() as server:
        server.answers = holding = Holding(kind)
        assert unload(server.url)
        assert holding.loaded == [OTHERS]
        assert [(p, b) for method, p, b in server.requests if method == "POST"] == [(path, body)]


def test_an_old_llama_swap_is_asked_for_all() -> None:
    """Before it knew a route for one model, it had one for all."""
    with plain_server() as server:
        server.answers = holding = Holding("old llama-swap")
        assert unload(server.url)
        assert holding.loaded == []


@pytest.mark.parametrize("kind", ["llama.cpp", "vllm"])
def test_a_server_without_a_way_is_asked_nothing(kind: str) -> None:
    """llama.cpp with one model, and vLLM, hold what they were started with; the answer says so."""
    with plain_server() as server:
        server.answers = Holding(kind)
        assert not unload(server.url)
        assert {method for method, _, _ in server.requests} == {"GET"}


def test_a_model_that_stays_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """A model that somebody else uses is no silent success."""
    monkeypatch.setattr(unloading, "EMPTY_S", 0.2)
    with plain_server() as server:
        server.answers = Holding("router", stuck=True)
        with pytest.raises(Busy, match=f"gpu still holds {OURS}"):
            unload(server.url)


def test_nobody_there_is_offline() -> None:
    """A server that is down holds nothing, and cannot be asked."""
    with pytest.raises(Offline):
        unload("http://127.0.0.1:9")


@pytest.mark.parametrize("kind", ["ollama", "openai"])
def test_ollama_forgets_by_either_protocol(kind: str) -> None:
    """Chat and embedding models of ours go, under the names that Ollama lists them by."""

    async def run() -> tuple[list[str], list[str]]:
        simulator = await start(SimulatorConfig(loaded_limit=8))
        backend = connect(kind, simulator.url + ("/v1" if kind == "openai" else ""), "gpu")
        try:
            await backend.call(Call("embed", "bge-m3", inputs=["x"]))
            for model in ("gemma3:4b", "gemma4:31b"):
                await backend.call(Call("chat", model, messages=[{"role": "user", "content": "hi"}]))
            before = simulator.stats()["loaded"]
            assert await backend.unload({"bge-m3", "gemma3:4b", "never-loaded"})
            return before, simulator.stats()["loaded"]
        finally:
            await backend.aclose()
            await simulator.stop()

    before, after = asyncio.run(run())
    assert set(before) == {"bge-m3", "gemma3:4b", "gemma4:31b"}
    assert after == ["gemma4:31b"]
