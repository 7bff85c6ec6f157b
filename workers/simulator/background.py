"""A simulator on a loop and thread of its own, for tests and programs that are not asynchronous."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from workers.simulator.config import SimulatorConfig
from workers.simulator.server import RunningSimulator, start

T = TypeVar("T")


class BackgroundSimulator:
    """A RunningSimulator whose methods may be called from any thread."""

    def __init__(self, running: RunningSimulator, loop: asyncio.AbstractEventLoop) -> None:
        self._running, self._loop = running, loop
        self.url, self.port = running.url, running.port

    def stats(self) -> dict[str, Any]:
        """What GET /sim/stats answers."""
        return self._there(self._running.stats)

    def calls(self, limit: int = 100) -> list[dict[str, Any]]:
        """What GET /sim/calls answers."""
        return self._there(lambda: self._running.calls(limit))

    def configure(self, **changes: Any) -> None:
        """Change fields of the configuration. Raises pydantic.ValidationError."""
        self._there(lambda: self._running.configure(**changes))

    def reset(self) -> None:
        """Back to how it started."""
        self._there(self._running.reset)

    def _there(self, function: Callable[[], T]) -> T:
        async def run() -> T:
            return function()

        return asyncio.run_coroutine_threadsafe(run(), self._loop).result(timeout=30)


@contextmanager
def in_thread(config: SimulatorConfig | None = None, port: int = 0) -> Iterator[BackgroundSimulator]:
    """A simulator for the length of a `with` block. Raises UsageError when the port is in use."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name="simulator", daemon=True)
    thread.start()
    try:
        running = asyncio.run_coroutine_threadsafe(start(config, port=port), loop).result(timeout=30)
        try:
            yield BackgroundSimulator(running, loop)
        finally:
            asyncio.run_coroutine_threadsafe(running.stop(), loop).result(timeout=30)
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join(timeout=30)
        loop.close()
