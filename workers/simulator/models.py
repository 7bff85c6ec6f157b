"""Slots, the queue before them, and which models are in memory.

    enter ──► slot free? ──no──► queue (full: 503) ──► slot ──► loaded, same options? ──yes──► serve ──► leave
                                                                   └─no─► wait until one is idle, evict, load

Models are chosen in the order of asking: while one request waits for an idle model, later ones wait behind
it, even for models in memory, as in Ollama's scheduler.  A load goes on when the client that caused it has
gone.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter, deque
from dataclasses import dataclass, field
from typing import Any

from workers.simulator.config import ModelSpec, SimulatorConfig

#: a change of one of these, absent included, reloads the model (contracts/model-servers.md)
RUNNER_OPTIONS = ("num_ctx", "num_batch", "num_gpu", "main_gpu", "use_mmap", "num_thread")
NO_RUNNER_OPTIONS = (None,) * len(RUNNER_OPTIONS)


class QueueFull(Exception):
    """More requests wait than the queue takes."""


@dataclass(slots=True, eq=False)
class Loaded:
    """A model in memory, loaded with the RUNNER_OPTIONS `runner`.

    Times are of time.monotonic; `expires` may be infinite.
    """

    name: str
    runner: tuple[Any, ...]
    users: int = 0
    used: float = 0.0
    expires: float = 0.0
    ready: asyncio.Event | None = None  #: None once loaded


@dataclass(slots=True)
class PoolCounts:
    """What never drops. in_flight counts requests accepted and not yet answered, waiting ones included."""

    loads: Counter[str] = field(default_factory=Counter)
    evictions: int = 0
    unloads: int = 0
    max_in_flight: int = 0
    max_serving: int = 0


class ModelPool:
    """The memory and the slots of one server."""

    def __init__(self, config: SimulatorConfig) -> None:
        self.config = config
        self.counts = PoolCounts()
        self.serving = 0
        self._queue: deque[asyncio.Future[None]] = deque()
        self._loaded: dict[str, Loaded] = {}
        self._choosing = asyncio.Lock()
        self._idle = asyncio.Event()
        self._loads: set[asyncio.Task[None]] = set()

    @property
    def waiting(self) -> int:
        """Requests in the queue."""
        return len(self._queue)

    @property
    def in_flight(self) -> int:
        """Requests served or waiting."""
        return self.serving + len(self._queue)

    def loaded(self) -> list[Loaded]:
        """The models in memory, the least recently used first."""
        self._expire()
        return sorted(self._loaded.values(), key=lambda model: model.used)

    async def enter(self, name: str, spec: ModelSpec, runner: tuple[Any, ...]) -> Loaded | None:
        """Take a slot with the model in memory; None for a hosted one. Raises QueueFull.

        Whoever entered must leave.
        """
        await self._take_slot()
        if spec.hosted:
            return None
        try:
            return await self._model(name, runner)
        except BaseException:
            self._free_slot()
            raise

    def leave(self, model: Loaded | None, keep_alive: float) -> None:
        """Give the slot back; the model stays `keep_alive` seconds (0: unloaded now if idle; negative: for
        ever).
        """
        if model is not None:
            self._release(model, keep_alive)
        self._free_slot()

    def unload(self, name: str) -> None:
        """Drop a model as soon as it is idle."""
        if model := self._loaded.get(name):
            model.expires = 0.0
            self._drop_if_due(model)

    def reset(self) -> None:
        """Counters to nothing; idle models out of memory."""
        self.counts = PoolCounts(max_in_flight=self.in_flight, max_serving=self.serving)
        for model in list(self._loaded.values()):
            if model.users == 0:
                del self._loaded[model.name]

    def apply(self, config: SimulatorConfig) -> None:
        """Take a new configuration; more slots let waiting requests in."""
        self.config = config
        self._admit()
        self._idle.set()

    # -- slots

    async def _take_slot(self) -> None:
        if self.serving < self.config.slots and not self._queue:
            self.serving += 1
            self._note()
            return
        if len(self._queue) >= self.config.queue_limit:
            raise QueueFull
        turn = asyncio.get_running_loop().create_future()
        self._queue.append(turn)
        self._note()
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self._free_slot()
            else:
                self._queue.remove(turn)
            raise

    def _free_slot(self) -> None:
        self.serving -= 1
        if self._queue:
            self._admit()

    def _admit(self) -> None:
        while self._queue and self.serving < self.config.slots:
            turn = self._queue.popleft()
            if not turn.done():
                self.serving += 1
                turn.set_result(None)
        self._note()

    def _note(self) -> None:
        counts = self.counts
        counts.max_in_flight = max(counts.max_in_flight, self.serving + len(self._queue))
        counts.max_serving = max(counts.max_serving, self.serving)

    # -- memory

    async def _model(self, name: str, runner: tuple[Any, ...]) -> Loaded:
        model = self._fit(name, runner)
        if model is None or self._choosing.locked():
            async with self._choosing:
                model = await self._choose(name, runner)
        model.users += 1
        if model.ready is not None:
            try:
                await model.ready.wait()
            except BaseException:
                self._release(model, 300.0)
                raise
        return model

    async def _choose(self, name: str, runner: tuple[Any, ...]) -> Loaded:
        while True:
            if model := self._fit(name, runner):
                return model
            self._idle.clear()
            if self._make_room(name):
                return self._load(name, runner)
            await self._idle.wait()

    def _fit(self, name: str, runner: tuple[Any, ...]) -> Loaded | None:
        """The model in memory, if its options are these and its time has not run out."""
        model = self._loaded.get(name)
        if model is None or model.runner != runner:
            return None
        if model.users == 0 and model.expires < time.monotonic():
            self._drop_if_due(model)
            return None
        return model

    def _make_room(self, name: str) -> bool:
        """Whether `name` can be loaded now; drops its other version, or the idle model used longest ago."""
        if (old := self._loaded.get(name)) is not None:
            if old.users:
                return False
            del self._loaded[name]
        self._expire()
        if len(self._loaded) < self.config.loaded_limit:
            return True
        idle = [model for model in self._loaded.values() if model.users == 0]
        if not idle:
            return False
        del self._loaded[min(idle, key=lambda model: model.used).name]
        self.counts.evictions += 1
        return True

    def _load(self, name: str, runner: tuple[Any, ...]) -> Loaded:
        model = Loaded(name, runner, used=time.monotonic(), expires=float("inf"))
        self._loaded[name] = model
        self.counts.loads[name] += 1
        if self.config.load_s:
            model.ready = asyncio.Event()
            model.users = 1  # a model that is loading is not idle
            task = asyncio.get_running_loop().create_task(self._finish_load(model, self.config.load_s))
            self._loads.add(task)
            task.add_done_callback(self._loads.discard)
        return model

    async def _finish_load(self, model: Loaded, seconds: float) -> None:
        await asyncio.sleep(seconds)
        assert model.ready is not None
        model.ready.set()
        model.ready = None
        self._release(model, 300.0)

    def _release(self, model: Loaded, keep_alive: float) -> None:
        model.users -= 1
        model.used = now = time.monotonic()
        model.expires = float("inf") if keep_alive < 0 else now + keep_alive
        if model.users == 0:
            if keep_alive == 0:
                self._drop_if_due(model)
            self._idle.set()

    def _expire(self) -> None:
        for model in list(self._loaded.values()):
            self._drop_if_due(model)

    def _drop_if_due(self, model: Loaded) -> None:
        if model.users == 0 and model.expires <= time.monotonic() and self._loaded.get(model.name) is model:
            del self._loaded[model.name]
            self.counts.unloads += 1
