"""A simulator that can go away and come back at the same address."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

from tests.support.ports import free_port
from workers.simulator import BackgroundSimulator, SimulatorConfig, in_thread


class Server:
    """A model server for tests that break it; `close` it."""

    def __init__(self, **config: Any) -> None:
        self._config = SimulatorConfig(**config)
        self._stack = ExitStack()
        self._port = free_port()
        self.start()
        self.url = self.simulator.url

    def stop(self) -> None:
        """Nobody answers any more; every connection is cut."""
        self._stack.close()

    def start(self) -> None:
        """It answers again, with everything it remembered forgotten."""
        self.simulator: BackgroundSimulator = self._stack.enter_context(in_thread(self._config, self._port))

    def close(self) -> None:
        """End it for good."""
        self._stack.close()
