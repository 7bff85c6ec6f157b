"""Calls that somebody waits for, without a job: the HTTP API's own way to the providers, on its event loop.

Each provider has slots for them beside those of its worker, a gate that shuts while it is away, and a probe that opens
it again, so that a dead server costs the next caller nothing. Another provider is tried until the first piece of an
answer has gone out. Policy and privacy are those of jobs: `ask` and the backends hold them.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import structlog

from tasks.errors import BadOutput, Busy, CallError, Misconfigured, Offline, OutOfReach, Permanent
from tasks.ledger.claims import Claimed, Identity
from tasks.ledger.database import Database
from tasks.privacy import Reach, Tier
from tasks.providers import Provider
from tasks.registry import Registry
from tasks.routing import why_not
from tasks.states import JobState
from tasks.streamed_leaks import Parting
from workers import choosing
from workers.asking import Asked, ask
from workers.backends import Backend, Delta, Health, Reply, for_provider
from workers.gate import Gate
from workers.judging import accept, answered_row, avoided_usd, broken_row
from workers.meter import FREE, Meter

#: seconds a call waits for a free slot
WAITS_S = 30.0
#: of a provider's calls in flight, the share that the API takes besides, where the configuration reserves none
SHARE = 4

log = structlog.get_logger(__name__)

#: is given the columns of a row of `calls`
Note = Callable[[dict[str, Any]], None]


@dataclass(frozen=True, slots=True)
class Wish:
    """What is asked for besides the job's own fields, in OpenAI's shape."""

    tools: tuple[Mapping[str, Any], ...] = ()
    tool_choice: Any = None
    extras: Mapping[str, Any] | None = None
    on_delta: Callable[[Delta], None] | None = None
    on_way: Callable[[str], None] = lambda provider: None  #: is told whom each call goes to


@dataclass(frozen=True, slots=True)
class Given:
    """An answer. output: JSON, where it was checked; None for one that goes out as it came. attempts: calls it took."""

    reply: Reply
    asked: Asked
    output: bytes | None
    attempts: int


class Way:
    """One provider, as this process sees it."""

    def __init__(self, provider: Provider, registry: Registry, db: Database, node: str) -> None:
        self.provider = provider
        self.me = Identity(node, provider.name, "", 0)
        self.slots = provider.interactive or max(1, provider.in_flight // SHARE)
        self.gate = Gate(self.slots)
        self.running = 0
        self.used_at = 0.0  #: monotonic
        self.meter = Meter(db, provider) if provider.limits else FREE
        self._markers = registry.markers
        self._backend: Backend | None = None
        self._probing: asyncio.Task[None] | None = None

    @property
    def backend(self) -> Backend:
        """Its backend, made when it is first needed."""
        if self._backend is None:
            self._backend = for_provider(self.provider, self._markers)
        return self._backend

    def lost(self, error: CallError) -> None:
        """Nobody answers there, or it refuses us: nothing is sent until a probe is fine."""
        self.gate.lost(Health.OFFLINE if isinstance(error, Offline) else Health.MISCONFIGURED, str(error))
        if self._probing is None or self._probing.done():
            self._probing = asyncio.get_running_loop().create_task(self._probe())

    async def _probe(self) -> None:
        while self.gate.away:
            await asyncio.sleep(self.gate.probe_wait())
            with contextlib.suppress(Exception):  # a probe that fails must not be the last one
                probe = await self.backend.probe()
                if probe.health not in (Health.OFFLINE, Health.MISCONFIGURED):
                    self.gate.found()

    async def aclose(self) -> None:
        """Close its connections."""
        if self._probing is not None:
            self._probing.cancel()
        if self._backend is not None:
            await self._backend.aclose()


class Direct:
    """Every provider of the configuration. unusable: names of those that must not be used now, drained ones say."""

    def __init__(
        self, db: Database, registry: Registry, node: str, note: Note, unusable: Callable[[], frozenset[str]]
    ) -> None:
        self._registry, self._note, self._unusable = registry, note, unusable
        kinds = [p for p in registry.providers.values() if p.kind not in ("gguf", "command")]
        self._ways = {p.name: Way(p, registry, db, node) for p in kinds}
        self._freed = asyncio.Condition()

    async def ask(self, job: Claimed, wish: Wish) -> Given:
        """The answer to one request; raises CallError: the last one, when every way was tried."""
        began, tried, attempts = time.monotonic(), dict[str, CallError](), 0
        told = _Told(wish.on_delta)
        most = self._registry.categories[job.category].attempts
        rows: list[dict[str, Any]] = []
        try:
            while True:
                async with self._way(job, tried, began) as way:
                    attempts += 1
                    try:
                        given = await self._once(way, replace(job, attempts=attempts - 1), wish, told, rows)
                        return replace(given, attempts=attempts)
                    except (Permanent, OutOfReach):
                        raise
                    except CallError as error:
                        self._note_trouble(way, error)
                        if told.anything or (attempts >= most and not isinstance(error, Offline | Busy)):
                            raise
                        if not isinstance(error, BadOutput):  # the same model, asked otherwise, may do better
                            tried[way.provider.name] = error
        except CallError:
            if rows:
                rows[-1]["ended"] = JobState.FAILED
            raise
        finally:
            for row in rows:
                self._note(row)

    @contextlib.asynccontextmanager
    async def _way(self, job: Claimed, tried: Mapping[str, CallError], began: float) -> AsyncIterator[Way]:
        """A slot of the provider with most of them free, in turns; raises CallError where there will be none."""
        while (way := self._free(ways := self._ways_of(job, tried))) is None:
            self._check_any_open(job, ways, tried)
            left = began + WAITS_S - time.monotonic()
            try:
                async with asyncio.timeout(left), self._freed:
                    await asyncio.wait_for(self._freed.wait(), min(left, 1.0))
            except TimeoutError:
                if time.monotonic() >= began + WAITS_S:
                    raise Busy("busy", "every slot for calls that do not wait is taken", 1.0) from None
        way.running += 1
        way.used_at = time.monotonic()
        try:
            yield way
        finally:
            way.running -= 1
            async with self._freed:
                self._freed.notify_all()

    def _ways_of(self, job: Claimed, tried: Mapping[str, CallError]) -> list[Way]:
        """The providers that may run it and were not tried; raises CallError where no provider may."""
        able = [way for way in self._ways.values() if not self._hindrance(way, job)]
        if not able:
            raise Permanent("no_provider", f"no provider that calls can be sent to serves class {job.model_class}")
        unusable = self._unusable()
        return [way for way in able if way.provider.name not in tried and way.provider.name not in unusable]

    def _hindrance(self, way: Way, job: Claimed) -> str:
        return why_not(
            way.provider, job.model_class, Tier(job.tier), job.model, self._registry, escalated=job.escalated
        )

    def _free(self, ways: list[Way]) -> Way | None:
        now = time.monotonic()
        free = [(way.gate.free(way.running, now), -way.used_at, way) for way in ways]
        best = max(free, key=lambda one: one[:2], default=(0, 0.0, None))
        return best[2] if best[0] else None

    def _check_any_open(self, job: Claimed, ways: list[Way], tried: Mapping[str, CallError]) -> None:
        """Raise where waiting for a slot is in vain: every provider is away, drained or was tried."""
        now = time.monotonic()
        if any(way.gate.takes(now) for way in ways):
            return
        if tried:
            raise list(tried.values())[-1]
        if busy := [way.gate for way in ways if not way.gate.away]:
            first = min(busy, key=lambda gate: gate.pause(now))
            words = f"no provider of class {job.model_class} takes more now: {first.detail}"
            raise Busy("busy", words, first.pause(now))
        words = next((way.gate.detail for way in ways if way.gate.detail), "it is drained, or its server is elsewhere")
        raise Offline("offline", f"no provider of class {job.model_class} can be used now: {words}")

    async def _once(self, way: Way, job: Claimed, wish: Wish, told: _Told, rows: list[dict[str, Any]]) -> Given:
        """One request to one provider, and its row of telemetry."""
        asked = ask(job, self._registry, way.provider.name)
        tools, choice, must_call = choosing.offered(way.provider.kind, wish.tools, wish.tool_choice)
        call = replace(
            asked.call,
            tools=tools,
            tool_choice=choice,
            extras={**asked.call.extras, **(wish.extras or {})},
            on_delta=told.take if wish.on_delta is not None else None,
        )
        wish.on_way(way.provider.name)
        started_at, began = time.time(), time.monotonic()
        try:
            async with way.meter.measured(replace(asked, call=call)) as took:
                reply = took(await way.backend.call(call))
        except OutOfReach:
            raise
        except CallError as error:
            rows.append(broken_row(job, way.me, asked, started_at, _ms_since(began), error) | {"ended": None})
            raise
        except asyncio.CancelledError:
            closed = CallError("closed", "")
            rows.append(broken_row(job, way.me, asked, started_at, _ms_since(began), closed) | {"ended": None})
            raise
        way.gate.succeeded(time.monotonic())
        row = answered_row(job, way.me, asked, started_at, reply.duration_ms, reply) | {"ended": None}
        rows.append(row)
        output: bytes | None = None
        try:
            if must_call:
                choosing.check_called(reply)
            if not (wish.on_delta is not None or reply.tool_calls or reply.finish_reason == "length"):
                output, row["leaked"] = accept(asked, reply)
                row["validated"] = True
            elif wish.on_delta is not None:
                told.end()
                row["leaked"] = told.leaked
        except BadOutput as error:
            row |= {"validated": False, "error_code": error.code}
            raise
        row["avoided_usd"] = avoided_usd(job, asked, reply)
        row["ended"] = JobState.ESCALATED if asked.reach is Reach.CLOUD else JobState.DONE
        return Given(reply, asked, output, 0)

    def _note_trouble(self, way: Way, error: CallError) -> None:
        match error:
            case Busy():
                loading = error.code == "loading"
                way.gate.busy(time.monotonic(), error.retry_after, str(error), loading=loading)
            case Misconfigured() if error.code == "model_not_found":
                pass  # its other models are there, and this request goes elsewhere
            case Offline() | Misconfigured():
                way.lost(error)

    def standing(self) -> dict[str, tuple[int, int, str]]:
        """provider -> (calls running, slots, health)."""
        return {name: (way.running, way.slots, way.gate.health.value) for name, way in self._ways.items()}

    async def aclose(self) -> None:
        """Close every connection."""
        for way in self._ways.values():
            await way.aclose()


class _Told:
    """Hands pieces on, without thoughts in the answer, and knows whether there were any: then nobody else answers."""

    def __init__(self, on_delta: Callable[[Delta], None] | None) -> None:
        self.anything = False
        self._on_delta = on_delta
        self._parting = Parting()

    @property
    def leaked(self) -> bool:
        """Whether thoughts stood in the answer."""
        return self._parting.leaked

    def take(self, delta: Delta) -> None:
        self.anything = True
        if delta.tool_calls:
            self.end()
        text, thought = self._parting.take(delta.text)
        self._tell(Delta(text, delta.reasoning + thought, delta.tool_calls))

    def end(self) -> None:
        """No more comes before this: what was held goes out."""
        self._tell(Delta(*self._parting.end()))

    def _tell(self, delta: Delta) -> None:
        if self._on_delta is not None and (delta.text or delta.reasoning or delta.tool_calls):
            self._on_delta(delta)


def _ms_since(began: float) -> float:
    return (time.monotonic() - began) * 1000.0
