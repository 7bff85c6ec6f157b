"""One generation request from its body to its reply.

    read ──► fault before? ──► slot and model ──► first token ──► answer ──► deliver ──► log
       └───────────┴── Refusal: an error in the dialect's own shape

A client that goes away cancels the request wherever it stands; its slot is freed and the call logged
`closed`.
"""

from __future__ import annotations

import asyncio
import time
from hashlib import sha256

import orjson
from aiohttp import web

from workers.simulator import delivery
from workers.simulator.answers import compose, fits
from workers.simulator.asks import Ask, Body, Dialect, Refusal, Reply
from workers.simulator.call_log import Call
from workers.simulator.config import SimulatorConfig
from workers.simulator.delivery import JSON
from workers.simulator.faults import NOTHING, Meeting
from workers.simulator.models import QueueFull
from workers.simulator.state import Simulator

HTML = b"<!doctype html><html><body><h1>502 Bad Gateway</h1>simulated</body></html>"


async def handle(sim: Simulator, dialect: Dialect, request: web.BaseRequest) -> web.StreamResponse:
    """Answer one generation request and log it."""
    started = time.perf_counter_ns()
    headers = request.headers
    call = Call(time.time(), dialect.path, request_id=headers.get("x-request-id"), job=headers.get("x-offload-job"))
    try:
        return await _Exchange(sim, dialect, request, call, started).run()
    except Refusal as refusal:
        call.status = refusal.status
        extra = {"Retry-After": refusal.retry_after} if refusal.retry_after else None
        return delivery.at_once(dialect.refusal(refusal), JSON, refusal.status, extra)
    except ConnectionError:
        call.closed = True
        return web.Response()  # goes nowhere; raising would be logged as an error of the server's own
    except asyncio.CancelledError:
        call.closed = True
        raise
    finally:
        call.ms = (time.perf_counter_ns() - started) / 1e6
        sim.log.add(call)


class _Exchange:
    """The steps of one request, and what they share."""

    __slots__ = ("call", "config", "dialect", "request", "sim", "started")

    def __init__(self, sim: Simulator, dialect: Dialect, request: web.BaseRequest, call: Call, started: int) -> None:
        self.sim, self.config, self.dialect, self.request = sim, sim.config, dialect, request
        self.call, self.started = call, started

    async def run(self) -> web.StreamResponse:
        check_key(self.config, self.request)
        body = await self._body()
        self.call.model = str(body.get("model", ""))
        try:
            ask = self.dialect.read(body, self.config)
        except (TypeError, ValueError, AttributeError) as error:
            raise Refusal(400, f"malformed request: {type(error).__name__}", "invalid") from None
        meeting = self._meet(ask)
        if meeting.fault is not None and (response := self._before(meeting)) is not None:
            return response
        self.call.truncated_prompt = not fits(ask)
        return await self._served(ask, meeting)

    async def _body(self) -> Body:
        try:
            body = orjson.loads(await self.request.read())
        except ValueError:
            raise Refusal(400, "the body is not JSON", "invalid") from None
        if not isinstance(body, dict):
            raise Refusal(400, "the body must be a JSON object", "invalid")
        return body

    def _meet(self, ask: Ask) -> Meeting:
        digest = sha256(ask.prompt.encode("utf-8", "replace"))
        self.call.prompt = digest.hexdigest()[:16]
        try:
            meeting = self.sim.faults.choose(ask.prompt, digest.digest())
        except ValueError as error:
            raise Refusal(400, str(error), "invalid") from None
        if meeting is not NOTHING:
            self.call.fault = str(meeting)
        return meeting

    def _before(self, meeting: Meeting) -> web.Response | None:
        """The faults that never reach a model."""
        fault = meeting.fault
        assert fault is not None
        if fault.status:
            raise _status_refusal(fault.status, fault.arg, self.call.model)
        if fault.name == "reset":
            self.call.closed = True
            return delivery.reset(self.request)
        if fault.name == "notjson":
            self.call.status = 200
            return delivery.at_once(HTML, "text/html")
        return None

    async def _served(self, ask: Ask, meeting: Meeting) -> web.StreamResponse:
        if ask.only == "unload":
            self.sim.pool.unload(ask.model)
            return await self._deliver(ask, compose(ask), meeting)
        try:
            model = await self.sim.pool.enter(ask.model, ask.spec, ask.runner)
        except QueueFull:
            raise _status_refusal(503, "", ask.asked, full=True) from None
        try:
            had = time.perf_counter_ns()
            reply = await self._generate(ask, meeting)
            reply.load_ns = had - self.started
            return await self._deliver(ask, reply, meeting)
        finally:
            self.sim.pool.leave(model, ask.keep_alive)

    async def _generate(self, ask: Ask, meeting: Meeting) -> Reply:
        if meeting.name == "hang":
            await asyncio.Event().wait()
        if wait := self.config.ttft_s + meeting.slow_s:
            await asyncio.sleep(wait)
        reply = compose(ask, meeting, paced=bool(self.config.tokens_per_s))
        reply.number = self.sim.log.requests + 1
        reply.first_ns = time.perf_counter_ns() - self.started
        self.call.tokens_in, self.call.tokens_out = reply.tokens_in, reply.tokens_out
        return reply

    async def _deliver(self, ask: Ask, reply: Reply, meeting: Meeting) -> web.StreamResponse:
        seconds = meeting.delay_s
        if speed := self.config.tokens_per_s:
            seconds += reply.tokens_out / speed
        self.call.status = 200
        if ask.stream:
            return await self._streamed(ask, reply, meeting, seconds)
        if seconds:
            await asyncio.sleep(seconds)
        reply.total_ns = time.perf_counter_ns() - self.started
        body = self.dialect.whole(ask, reply)
        if meeting.fault is not None:
            if meeting.name == "midstream-error":
                return delivery.at_once(self.dialect.refusal(_status_refusal(500, "", ask.asked)), JSON)
            if meeting.name in ("half", "stall"):
                self.call.closed = True
                return await delivery.broken_off(self.request, body, JSON, hang=meeting.name == "stall")
            if meeting.name == "vectors-nan":
                body = body.replace(b"[null,", b"[NaN,")
        return delivery.at_once(body, JSON)

    async def _streamed(self, ask: Ask, reply: Reply, meeting: Meeting, seconds: float) -> web.StreamResponse:
        # the last frame is written before the time that it tells has passed: what is still to come is added
        reply.total_ns = time.perf_counter_ns() - self.started + int(seconds * 1e9)
        frames, media = self.dialect.frames(ask, reply), self.dialect.stream_type
        if meeting.name in ("half", "stall"):
            self.call.closed = True
            return await delivery.broken_stream(self.request, frames, media, hang=meeting.name == "stall")
        if meeting.name == "midstream-error":
            error = self.dialect.stream_error("simulated error in the middle of the stream")
            frames = [*frames[: max(1, len(frames) // 2)], error]
        return await delivery.stream(self.request, frames, media, seconds)


def check_key(config: SimulatorConfig, request: web.BaseRequest) -> None:
    """Raise a Refusal unless the request carries the key, where one is asked for."""
    if config.api_key is None:
        return
    bearer = request.headers.get("Authorization", "").removeprefix("Bearer ")
    if config.api_key not in (bearer, request.headers.get("x-api-key")):
        raise Refusal(401, "invalid or missing API key", "key")


_MESSAGES = {
    400: ("simulated bad request", "invalid"),
    401: ("invalid or missing API key", "key"),
    403: ("simulated: not allowed", "permission"),
    404: ("model '{model}' not found", "model"),
    429: ("simulated rate limit reached, try again later", "rate"),
    503: ("Loading model", "loading"),
}


def _status_refusal(status: int, arg: str, model: str, full: bool = False) -> Refusal:
    if full:
        return Refusal(503, "server busy, please try again.  maximum pending requests exceeded", "busy")
    message, kind = _MESSAGES.get(status, (f"simulated error {status}", "server" if status >= 500 else "invalid"))
    refusal = Refusal(status, message.format(model=model), kind)
    if status == 429:
        refusal.retry_after = arg or "1"
    elif status == 503:
        refusal.retry_after = arg
    return refusal
