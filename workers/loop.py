"""Runs the jobs in hand on one asyncio loop, as many at once as the gate allows.

Everything here happens on the loop's own thread, but for the few methods that say otherwise.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import functools
import heapq
import threading
import time
from collections.abc import Callable, Coroutine, Iterable
from contextvars import Context
from itertools import count
from typing import Any, TypeVar

import structlog
from structlog.contextvars import bind_contextvars

from tasks.errors import Busy, CallError, Misconfigured, Offline
from tasks.ledger.claims import Claimed, Identity
from tasks.ledger.record import Outcome
from tasks.registry import Registry
from tasks.settings import Times
from workers.asking import Asked, ask
from workers.backends import Backend, Call, Health, Probe
from workers.gate import Gate
from workers.hand import Hand, Held
from workers.judging import failed, given_back, succeeded
from workers.line import Line
from workers.meter import FREE, Meter
from workers.saying import named, say, unheard, where
from workers.tracing import Traces

#: seconds between two looks of the loop at itself: leases, pauses, a sign of life
TICK_S = 0.2
#: seconds a model is taken to stay in memory; Ollama keeps one for 5 minutes
KEPT_LOADED_S = 240.0

T = TypeVar("T")

log = structlog.get_logger(__name__)


class Loop(threading.Thread):
    """One provider's calls."""

    def __init__(
        self,
        backend: Backend,
        registry: Registry,
        me: Identity,
        capacity: int,
        times: Times,
        put: Callable[[Outcome], None],
        meter: Meter | None = None,
        full: Callable[[], bool] = lambda: False,
        cut_off: Callable[[], bool] = lambda: False,
        traces: Traces | None = None,
    ) -> None:
        super().__init__(name="loop", daemon=True)
        self._traces = traces
        self._full = full  # whether so many results wait to be recorded that nothing more may start
        self._cut_off = cut_off  # whether nothing can be claimed
        self._meter = meter or FREE
        self.hand = Hand()
        self.gate = Gate(capacity)
        self.ticked_at = time.monotonic()
        self._backend = backend
        self._registry = registry
        self._me = me
        self._times = times
        self._put = put
        self._waiting: list[tuple[int, int, Held]] = []  # heap: (-priority, order, job)
        self._order = count()
        self._running: set[asyncio.Task[None]] = set()
        self._probing: asyncio.Task[None] | None = None
        self._loop = asyncio.new_event_loop()
        self._stopping = False
        self._quiet = ""  #: why nothing is started although the provider may be well; see hold
        self._handed = 0  # jobs handed over and not yet accepted
        self._handing = threading.Lock()
        self._warm: tuple[str, float] = ("", 0.0)  # the model that answered last, and when
        self._absent: dict[str, str] = {}  # classes whose model the provider does not have -> model
        self.line = Line(self._little_waits, self._empty, lambda: self.takes)

    # --- from any thread ---------------------------------------------------------------------------------

    @property
    def in_flight(self) -> int:
        """Calls running now."""
        return len(self._running)

    @property
    def busy(self) -> bool:
        """Whether anything runs or waits."""
        return bool(self._running or self._waiting or self._handed)

    def _empty(self) -> bool:
        """Whether a crash now would be put down to nothing that went in before."""
        return not self.busy and not self.hand.unrecorded()

    @property
    def takes(self) -> bool:
        """Whether this worker should be sent slices."""
        return not self._stopping and not self._quiet and not self._full() and self.gate.takes(time.monotonic())

    @property
    def detail(self) -> str:
        """What keeps this worker from its work, in words; empty when nothing does."""
        missing = ", ".join(f"{model} (class {name})" for name, model in sorted(self._absent.items()))
        return self._quiet or self.gate.detail or (f"the provider does not have {missing}" if missing else "")

    def serves(self, model_class: str) -> bool:
        """Whether this worker should be sent slices of a class."""
        return self._runs(model_class) and not self._cut_off()

    def _runs(self, model_class: str) -> bool:
        return self.takes and model_class not in self._absent

    def _little_waits(self) -> bool:
        return len(self._waiting) + self._handed < max(1, self.gate.capacity // 2)

    def hand_over(self, held: list[Held]) -> None:
        """Run these jobs."""
        with self._handing:
            self._handed += len(held)
        self._soon(self._accept, held)

    def drop(self, held: Iterable[Held]) -> None:
        """Stop these jobs: their calls are closed, and they are given back if they are still ours."""
        self._soon(self._drop, list(held))

    def stop_taking(self) -> None:
        """Start nothing more and give back what waits; calls in flight go on."""
        self._stopping = True
        self._soon(self._give_back_waiting)

    def hold(self, why: str, *, stopped: bool = False) -> None:
        """Take and start nothing and give back what waits, until `release`; calls in flight go on.

        why: for people. stopped: the provider's server was stopped as well.
        """
        self._quiet = why
        self._soon(self._quieten, stopped)

    def release(self) -> None:
        """Take work again as soon as a probe is fine."""
        self._quiet = ""
        self._soon(self._lost, Health.OFFLINE, "not asked yet")

    def with_backend(self, what: Callable[[Backend], Coroutine[Any, Any, T]], within_s: float) -> T:
        """Ask the backend something that is no job's call, and wait for it; raises CallError, TimeoutError."""

        async def ask_it() -> T:
            try:
                async with asyncio.timeout(within_s):
                    return await what(self._backend)
            except (CallError, TimeoutError):
                raise
            except Exception as error:  # a fault of ours
                raise CallError("internal", f"the worker failed at it ({type(error).__name__})") from None

        return asyncio.run_coroutine_threadsafe(ask_it(), self._loop).result(within_s + TICK_S)

    def drain(self, grace_s: float) -> None:
        """Let calls in flight end for so long, close the others, and end the thread."""
        self.stop_taking()
        asyncio.run_coroutine_threadsafe(self._drain(grace_s), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self.join()

    def _soon(self, callback: Callable[..., object], *args: Any) -> None:
        with contextlib.suppress(RuntimeError):  # the loop has ended: nothing runs any more
            self._loop.call_soon_threadsafe(callback, *args)

    # --- on the loop's thread ----------------------------------------------------------------------------

    def run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.set_exception_handler(unheard)
        ticking = self._loop.create_task(self._tick())
        ticking.add_done_callback(lambda _: self._loop.stop())
        self._loop.call_soon(self._lost, Health.OFFLINE, "not asked yet")  # the first probe opens the gate
        self._loop.run_forever()
        if ticking.done() and not ticking.cancelled():
            ticking.result()  # raises what ended it, and with it this thread
        ticking.cancel()
        self._loop.run_until_complete(self._loop.shutdown_asyncgens())
        self._loop.close()

    async def _tick(self) -> None:
        while True:
            self.ticked_at = time.monotonic()
            overdue = self.hand.overdue(self._times.fence_margin)
            if overdue:
                batches = named(held.job.batch_id for held in overdue)
                log.warning("leases could not be renewed: closing their calls", jobs=len(overdue), batches=batches)
                self._drop(overdue)
            self._pump()
            await asyncio.sleep(TICK_S)

    def _accept(self, held: list[Held]) -> None:
        for one in held:
            heapq.heappush(self._waiting, (-one.job.priority, next(self._order), one))
        with self._handing:
            self._handed -= len(held)
        if not all(self._runs(one.job.model_class) for one in held):
            self._give_back_waiting()
        self._pump()

    def _pump(self) -> None:
        """Start waiting jobs while the gate has room."""
        if self._stopping or self._quiet:
            return
        if self._waiting and not self.takes:
            self._give_back_waiting()
        free = self.gate.free(len(self._running), time.monotonic())
        while free > 0 and self._waiting:
            held = heapq.heappop(self._waiting)[2]
            if held.dropped:
                continue
            held.call = self._loop.create_task(self._run_job(held), context=Context())  # not that of who handed it over
            held.call.add_done_callback(functools.partial(self._settle, held))
            self._running.add(held.call)
            free -= 1
        self.line.moved()

    async def _run_job(self, held: Held) -> None:
        """One job, from its call to its outcome, which every way through here ends in."""
        job, asked, started_at, began = held.job, None, held.unix_time(), time.monotonic()
        bind_contextvars(job=job.id, batch=job.batch_id)
        try:
            asked = ask(job, self._registry, self._me.provider)
            async with self._meter.measured(asked) as took:
                reply = took(await self._backend.call(self._timed(asked.call)))
            outcome = succeeded(job, asked, reply, self._me, started_at)
            self._warm = (asked.call.model, time.monotonic())
            self.gate.succeeded(time.monotonic())
        except CallError as error:
            outcome = failed(job, error, self._me, asked, started_at, _ms_since(began))
            self._note(error, outcome, job, asked)
        except asyncio.CancelledError:
            outcome = given_back(job, self._me, asked, started_at, _ms_since(began))
        except Exception as error:  # a fault of ours must not take the other jobs with it
            log.error("a job failed inside the worker", error=type(error).__name__, where=where(error))
            internal = CallError("internal", f"the worker failed on it ({type(error).__name__})")
            outcome = failed(job, internal, self._me, asked, started_at, _ms_since(began))
        say(outcome, job)
        if self._traces is not None:
            self._traces.called(job, asked, outcome)
        self._end(held, outcome)

    def _end(self, held: Held, outcome: Outcome) -> None:
        if held.call is not None:
            self._running.discard(held.call)
        held.ended = True
        self._put(outcome)
        self._pump()

    def _settle(self, held: Held, _: asyncio.Task[None]) -> None:
        """A task that was closed before its first step has no outcome yet."""
        if not held.ended:
            self._end(held, given_back(held.job, self._me, None, 0, 0))

    def _timed(self, call: Call) -> Call:
        """A model that answered, with no call to another since, is in memory: its next call needs no time to load."""
        model, at = self._warm
        if model != call.model:
            self._warm = ("", 0.0)
            return call
        if time.monotonic() - at > KEPT_LOADED_S:
            return call
        return dataclasses.replace(call, timeouts=dataclasses.replace(call.timeouts, load=0.0))

    def _note(self, error: CallError, outcome: Outcome, job: Claimed, asked: Asked | None) -> None:
        """What an error says of the provider rather than of the job."""
        now = time.monotonic()
        if error.code == "first_token_timeout":
            self._warm = ("", 0.0)
        match error:
            case Busy():
                pause = self.gate.busy(now, error.retry_after, str(error), loading=error.code == "loading")
                outcome.delay = max(outcome.delay, pause)
            case Offline():
                self._lost(Health.OFFLINE, str(error))
            case Misconfigured() if error.code == "model_not_found" and asked is not None:
                self._absent[job.model_class] = asked.call.model
                self._give_back_waiting()
                self._probe()
            case Misconfigured():
                self._lost(Health.MISCONFIGURED, str(error))

    def _lost(self, health: Health, detail: str) -> None:
        self._warm = ("", 0.0)  # it may have been restarted
        self.gate.lost(health, detail)
        self._give_back_waiting()
        self._probe()

    def _quieten(self, stopped: bool) -> None:
        """Nobody asks a server that may be off, and a probe would start llama.cpp's again."""
        self._warm = ("", 0.0)  # its models are about to be unloaded
        if self._probing is not None:
            self._probing.cancel()
            self._probing = None
        if stopped:
            self.gate.lost(Health.OFFLINE, self._quiet)
        self._give_back_waiting()

    def _probe(self) -> None:
        if not self._quiet and (self._probing is None or self._probing.done()):
            self._probing = self._loop.create_task(self._probe_until_whole(), context=Context())  # it is no job's

    async def _probe_until_whole(self) -> None:
        """Ask the provider until it answers and has every model, with growing waits."""
        told = False
        while True:
            self._learn(await self._asked_how_it_is())
            if not self.gate.away and not self._absent:
                break
            if not told:
                log.warning("the provider is not whole", health=self.gate.health.value, missing=sorted(self._absent))
            told = True
            await asyncio.sleep(self.gate.probe_wait())
        log.info("the provider answers", provider=self._me.provider)
        self._pump()

    async def _asked_how_it_is(self) -> Probe:
        try:
            return await self._backend.probe()
        except Exception as error:  # a probe that fails must not be the last one
            log.error("a probe failed inside the worker", error=type(error).__name__, where=where(error))
            return Probe(Health.MISCONFIGURED, f"its probe failed ({type(error).__name__})")

    def _learn(self, probe: Probe) -> None:
        """What a probe says of the provider's health, and of the models it was missing."""
        if probe.health in (Health.OFFLINE, Health.MISCONFIGURED):
            self.gate.lost(probe.health, probe.detail)
            return
        if self.gate.away:
            self.gate.found()
        self._absent = {name: model for name, model in self._absent.items() if not probe.has(model)}

    def _give_back_waiting(self) -> None:
        """Give back what waits and cannot run here now; all of it, unless only some classes' models are missing."""
        keep = [item for item in self._waiting if self.serves(item[2].job.model_class)]
        waiting, self._waiting = self._waiting, keep
        heapq.heapify(keep)
        kept = {id(item[2]) for item in keep}
        for _, _, held in waiting:
            if id(held) not in kept and not held.ended:
                self._end(held, given_back(held.job, self._me, None, 0, 0))
        self.line.moved()

    def _drop(self, held: list[Held]) -> None:
        for one in held:
            if one.dropped or one.ended:
                continue
            one.dropped = True
            if one.call is not None:
                one.call.cancel()
            else:
                self._end(one, given_back(one.job, self._me, None, 0, 0))

    async def _drain(self, grace_s: float) -> None:
        if self._running:
            await asyncio.wait(self._running, timeout=grace_s)
        self._drop([h for h in self.hand.all() if h.call is not None])
        if self._running:
            await asyncio.wait(self._running, timeout=5)
        if self._probing is not None:
            self._probing.cancel()
        await self._backend.aclose()


def _ms_since(began: float) -> float:
    return (time.monotonic() - began) * 1000
