"""A provider of kind `gguf`: llama.cpp's own server is started with the worker and started again when it dies."""

from __future__ import annotations

import asyncio
from collections.abc import Collection

from tasks.errors import Offline, PoolError
from workers.backends import Backend, Call, Health, Probe, Reply, connect
from workers.backends.gguf_server import GgufServer


class ServedGguf:
    """The backend of a file: its first probe starts the server, so nothing is sent before it has loaded."""

    def __init__(self, server: GgufServer, name: str) -> None:
        self._server = server
        self._name = name
        self._backend: Backend | None = None
        self._starting = asyncio.Lock()

    async def call(self, call: Call) -> Reply:
        """Send one request; Offline while the server does not run."""
        if self._backend is None or not self._server.alive:
            raise Offline("gguf_down", f"{self._name}: its llama.cpp server does not run")
        return await self._backend.call(call)

    async def probe(self) -> Probe:
        """Start the server if it does not run, then ask it."""
        async with self._starting:
            if not self._server.alive:
                try:
                    await self._restart()
                except PoolError as error:
                    return Probe(Health.MISCONFIGURED, str(error))
        assert self._backend is not None  # it was connected when the server started
        return await self._backend.probe()

    async def _restart(self) -> None:
        await self.aclose()
        await self._server.start()
        self._backend = connect("gguf", self._server.url, self._name, self._server.api_key)

    async def unload(self, models: Collection[str]) -> bool:
        """End the server, which holds one model; the next probe starts it again."""
        await self.aclose()
        return True

    async def aclose(self) -> None:
        """Close the connections and end the server."""
        backend, self._backend = self._backend, None
        if backend is not None:
            await backend.aclose()
        await self._server.stop()
