"""What tests read and turn while the simulator runs; no key is asked for here.

GET  /sim/stats          every counter (exchange.Simulator.stats)
GET  /sim/calls?limit=N  the latest N calls (100), the oldest of them first (call_log.Call)
POST /sim/config         {field: value} of SimulatorConfig; 400 names what is wrong
POST /sim/reset          back to how it started
"""

from __future__ import annotations

import orjson
from aiohttp import web
from pydantic import ValidationError

from workers.simulator.asks import Refusal
from workers.simulator.delivery import JSON, at_once
from workers.simulator.state import PlainRoutes, Simulator


async def stats(sim: Simulator, request: web.BaseRequest) -> web.Response:
    """GET /sim/stats."""
    return at_once(orjson.dumps(sim.stats()), JSON)


async def calls(sim: Simulator, request: web.BaseRequest) -> web.Response:
    """GET /sim/calls."""
    limit = request.query.get("limit", "100")
    if not limit.isdecimal():
        raise Refusal(400, "limit must be a number", "invalid")
    return at_once(orjson.dumps({"calls": sim.log.latest(int(limit))}), JSON)


async def config(sim: Simulator, request: web.BaseRequest) -> web.Response:
    """GET and POST /sim/config."""
    if request.method == "POST":
        try:
            sim.apply(orjson.loads(await request.read()))
        except (ValidationError, ValueError, TypeError, OSError) as error:
            raise Refusal(400, str(error), "invalid") from None
    return at_once(sim.config.model_dump_json().encode(), JSON)


async def reset(sim: Simulator, request: web.BaseRequest) -> web.Response:
    """POST /sim/reset."""
    sim.reset()
    return at_once(b"{}", JSON)


ROUTES: PlainRoutes = {
    ("GET", "/sim/stats"): stats,
    ("GET", "/sim/calls"): calls,
    ("GET", "/sim/config"): config,
    ("POST", "/sim/config"): config,
    ("POST", "/sim/reset"): reset,
}
