"""Requests that are answered while somebody waits: read, judged and routed as a job's line is."""

from __future__ import annotations

import random
import threading
import time
from collections import deque
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import orjson
import structlog
from sqlalchemy.exc import SQLAlchemyError

from api.use_cases.pool import Pool
from tasks.errors import LineFault
from tasks.ledger import direct, nodes
from tasks.ledger.claims import Claimed
from tasks.ledger.direct import Done
from tasks.ledger.nodes import Phase
from tasks.openai_lines import OpenAIBody
from tasks.privacy import Reach
from tasks.routing import Said
from tasks.schemas import MAX_DEPTH, MOST_FAULTS, NewJob, deeper_than, parse_line
from tasks.validation import clean_row
from workers.direct import Given, Wish

#: what is passed on to servers that know it
PASSED_ON = frozenset(
    {"top_k", "min_p", "repeat_penalty", "logit_bias", "reasoning_effort", "parallel_tool_calls", "verbosity"}
)
#: what the request itself is about, and not the job
APART = frozenset({"stream", "stream_options", "tools", "tool_choice", "encoding_format"})
#: seconds between two commits of telemetry; and rows, beyond which the oldest are dropped while the ledger is away
EVERY_S, MOST_ROWS = 0.5, 10_000
#: seconds between tries while the ledger is away
RETRY_S = 1.0
#: seconds for which it is remembered which providers are drained, or on another machine
REMEMBERED_S = 1.0

log = structlog.get_logger(__name__)

_KNOWN = frozenset(OpenAIBody.model_fields)
_TAKEN = _KNOWN | APART | PASSED_ON


@dataclass(frozen=True, slots=True)
class Request:
    """A request that may be answered. stream: piece by piece. usage: counts at the end of a stream."""

    job: NewJob
    wish: Wish
    stream: bool = False
    usage: bool = False
    base64: bool = False


def read(path: str, body: dict[str, Any], pool: Pool, said: Said) -> Request | list[LineFault]:
    """The request that a body of OpenAI's makes, or its faults. path: as in a line of a batch."""
    faults = list(islice(_faults(body), MOST_FAULTS))
    if faults:
        return faults
    asked = {name: value for name, value in body.items() if name in _KNOWN and name not in APART and value is not None}
    line = {"custom_id": "direct", "method": "POST", "url": path, "body": asked}
    try:
        raw = orjson.dumps(line)
    except orjson.JSONEncodeError:  # it reads more levels than it writes
        return [LineFault(0, "", "nests too deep")]
    job = parse_line(raw, 0, pool.registry, said)
    if not isinstance(job, NewJob):
        return job
    options = body.get("stream_options") or {}
    extras = {name: body[name] for name in PASSED_ON if body.get(name) is not None}
    wish = Wish(tuple(body.get("tools") or ()), body.get("tool_choice"), extras)
    return Request(
        job,
        wish,
        stream=bool(body.get("stream")),
        usage=isinstance(options, dict) and bool(options.get("include_usage")),
        base64=body.get("encoding_format") == "base64",
    )


def _faults(body: dict[str, Any]) -> Any:
    for name in body:
        if name in ("logprobs", "top_logprobs") and body[name]:
            yield LineFault(0, name, "is not supported: this pool's answers carry no log probabilities")
        elif name not in _TAKEN and body[name] is not None:
            yield LineFault(0, name, "is unknown")
    for name in ("tools", "tool_choice", *PASSED_ON):  # the line's own fields are looked at as those of a file
        if deeper_than(MAX_DEPTH, body.get(name)):
            yield LineFault(0, name, f"nests deeper than {MAX_DEPTH} levels")
    tools = body.get("tools")
    if tools is not None and not (isinstance(tools, list) and all(isinstance(tool, dict) for tool in tools)):
        yield LineFault(0, "tools", "is no list of objects")
    if body.get("encoding_format") not in (None, "float", "base64"):
        yield LineFault(0, "encoding_format", "is neither float nor base64")
    if not isinstance(body.get("stream"), bool | None):
        yield LineFault(0, "stream", "is no boolean")


def claimed(job: NewJob) -> Claimed:
    """The job as a worker would hold it."""
    route = job.route
    return Claimed(
        id=0,
        fence=0,
        batch_id="",
        category=job.category,
        model_class=route.model_class,
        model=job.model,
        priority=0,
        attempts=0,
        crashes=0,
        body=job.body,
        tier=route.tier.value,
        verdict=orjson.dumps(route.verdict) if route.verdict else None,
        escalated=route.escalated_from is not None,
        queued_at=time.time(),
        decision=route.decision.value,
        reason=route.words if route.escalated_from else None,
        app=job.app,
    )


class Telling(threading.Thread):
    """Writes rows of telemetry, off the way of whoever waits."""

    def __init__(self, pool: Pool) -> None:
        super().__init__(name="telling", daemon=True)
        self._pool = pool
        self._rows: deque[Done] = deque(maxlen=MOST_ROWS)
        self._stopping = threading.Event()

    def tell(self, call: dict[str, Any]) -> None:
        """A call was made; nobody is woken for it, as whoever waits for the answer would wait for that, too."""
        self._rows.append(Done(call))

    def refused(self, job: NewJob) -> None:
        """Nothing was sent."""
        self._rows.append(direct.refused(job, time.time()))

    def keep(self, job: NewJob, given: Given) -> None:
        """An answer was given: it may be one of those that are audited."""
        draw = random.random()
        if given.output is None or given.asked.reach is Reach.CLOUD or not direct.is_drawn(job, draw):
            return
        facts = {
            "served_model": given.reply.model,
            "provider": given.asked.provider.name,
            "node": self._pool.settings.node,
            "tokens_in": given.reply.tokens_in,
            "tokens_out": given.reply.tokens_out,
            "duration_ms": given.reply.duration_ms,
        }
        self._rows.append(Done({}, job, given.output, draw, facts))

    def stop(self) -> None:
        """Write what is there, and end."""
        self._stopping.set()
        self.join(10)

    def run(self) -> None:
        waiting: list[Done] = []
        is_over = False
        while not is_over:
            is_over = self._stopping.wait(RETRY_S if waiting else EVERY_S)
            self._take(waiting)
            try:
                if waiting:
                    direct.record(self._pool.db, waiting, _say_left_out)
            except SQLAlchemyError as error:
                log.warning("calls are not recorded yet", rows=len(waiting), error=type(error).__name__)

    def _take(self, waiting: list[Done]) -> None:
        while self._rows:
            one = self._rows.popleft()
            waiting.append(replace(one, call=clean_row(one.call), facts=clean_row(one.facts)))
        del waiting[:-MOST_ROWS]


def _say_left_out(error: Exception) -> None:
    """A row was refused for what it holds; the error may quote it."""
    log.error("a call cannot be recorded", error=type(getattr(error, "orig", None) or error).__name__)


class Unusable:
    """Which providers must not be asked from here: all their workers are drained, or on other machines."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._names: frozenset[str] = frozenset()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="unusable", daemon=True)

    def start(self) -> None:
        """Look from now on."""
        self._thread.start()

    def stop(self) -> None:
        """Look no more."""
        self._stopping.set()

    def names(self) -> frozenset[str]:
        """As it was a moment ago."""
        return self._names

    def _run(self) -> None:
        while not self._stopping.wait(REMEMBERED_S):
            try:
                self._names = self._look()
            except SQLAlchemyError as error:
                log.warning("the workers cannot be looked at", error=type(error).__name__)

    def _look(self) -> frozenset[str]:
        gone_s, here = self._pool.settings.times.worker_gone, self._pool.settings.node
        live = [row for row, ago in nodes.seen(self._pool.db) if ago < gone_s]
        found = set()
        for provider in self._pool.registry.providers.values():
            mine = [row for row in live if row.provider == provider.name]
            drained = mine and all(row.phase != Phase.SERVING for row in mine)
            elsewhere = mine and provider.reach is Reach.LOCAL and all(row.node != here for row in mine)
            if drained or elsewhere:
                found.add(provider.name)
        return frozenset(found)
