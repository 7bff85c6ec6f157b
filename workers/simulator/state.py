"""What all routes share: the configuration, the models, the faults and the log."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any

from aiohttp import web

from workers.simulator.call_log import CallLog
from workers.simulator.config import SimulatorConfig
from workers.simulator.faults import FaultBook
from workers.simulator.models import ModelPool


class Simulator:
    """One server's state; `first` is the configuration it started with."""

    def __init__(self, config: SimulatorConfig) -> None:
        self.first = self.config = config
        self.pool = ModelPool(config)
        self.faults = FaultBook(config.faults, config.seed)
        self.log = CallLog(config.call_log)

    def apply(self, patch: dict[str, Any]) -> None:
        """Change fields while running. Raises pydantic.ValidationError, OSError."""
        new = SimulatorConfig.model_validate({**self.config.model_dump(), **patch})
        if new.call_log != self.config.call_log:
            self.log.open(new.call_log)
        if "faults" in patch or "seed" in patch:
            self.faults.set_rates(new.faults, new.seed)
        self.config = new
        self.pool.apply(new)

    def reset(self) -> None:
        """Back to how it started: configuration, counters, seen prompts, memory. Requests under way go on."""
        self.apply(self.first.model_dump())
        self.log.forget()
        self.faults.forget()
        self.pool.reset()

    def stats(self) -> dict[str, Any]:
        """Every number of /sim/stats."""
        pool, counts = self.pool, self.pool.counts
        return {
            **self.log.counts(),
            "loads": dict(counts.loads),
            "loads_total": counts.loads.total(),
            "evictions": counts.evictions,
            "unloads": counts.unloads,
            "loaded": [model.name for model in pool.loaded()],
            "in_flight": pool.in_flight,
            "max_in_flight": counts.max_in_flight,
            "serving": pool.serving,
            "max_serving": counts.max_serving,
            "waiting": pool.waiting,
        }


#: what answers a route that generates nothing
Plain = Callable[[Simulator, web.BaseRequest], Coroutine[Any, Any, web.Response]]
#: by method and path
PlainRoutes = dict[tuple[str, str], Plain]
