"""The HTTP API of a pool, as a process of its own, and the official client for it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import httpx

from tests.support.lazily import Lazily
from tests.support.nursery import Role
from tests.support.pool import TestPool
from tests.support.ports import free_port
from tests.support.waiting import eventually

if TYPE_CHECKING:
    import openai
else:
    openai = Lazily("openai")


class Api:
    """`offload api` on a free port."""

    def __init__(self, pool: TestPool) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.log = pool.log
        self._pool = pool
        self.start()

    def start(self) -> None:
        """Start it, and wait until it answers."""
        self.process: Role = self._pool.start("api", "--port", str(self.port))
        eventually(self._answers, "the API answers", 60)

    def kill(self) -> None:
        """kill -9."""
        self.process.kill()
        self.process.wait()

    def client(self, key: str = "none", **more: Any) -> openai.OpenAI:
        """OpenAI's own client."""
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key=key, **({"max_retries": 0} | more))

    def ask(self, method: str, path: str, **more: Any) -> httpx.Response:
        """A request as anybody may make it."""
        return httpx.request(method, self.url + path, timeout=30, **more)

    def _answers(self) -> bool:
        try:
            return self.ask("GET", "/healthz").status_code == 200
        except httpx.TransportError:
            return False
