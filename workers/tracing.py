"""Traces by OpenTelemetry, under its names for generative AI and without any content; off unless a collector is named.

    slice small              from its claim until its last result is recorded
      ├─ chat gemma3:4b      a request to a backend, with what its row in `calls` has
      └─ chat gemma3:4b

A span is made when its call is over, from what telemetry keeps of it anyhow, by the ledger's clock.  It goes into a
bounded queue that a thread of its own empties: a collector that is down costs spans and nothing else.  The environment
is OpenTelemetry's own: OTEL_EXPORTER_OTLP_ENDPOINT, _HEADERS, _TIMEOUT, OTEL_SERVICE_NAME, OTEL_TRACES_SAMPLER …
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import structlog

from tasks.ledger.claims import Claimed, Identity
from tasks.ledger.record import Outcome
from tasks.providers import Provider
from workers.asking import Asked
from workers.hand import Held
from workers.saying import where

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.trace import Span

#: the variables of which one names the collector
ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
PROTOCOLS = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
PROTOCOL = "http/protobuf"
#: seconds a worker that ends waits for what is not sent yet
CLOSE_S = 2.0
#: kind of a call -> gen_ai.operation.name
OPERATIONS = {"chat": "chat", "complete": "text_completion", "embed": "embeddings"}
#: kind of a provider -> gen_ai.provider.name, where they differ
PROVIDERS = {"gguf": "llama.cpp"}

log = structlog.get_logger(__name__)


def start(me: Identity, provider: Provider) -> Traces | None:
    """A worker's traces; None where nobody wants them, or where they cannot be made, with one warning."""
    if not wanted(os.environ):
        return None
    try:
        return Traces(_tracer_provider(me), me, provider)
    except ImportError:
        log.warning("traces are off: a collector is named and the extra is missing: pip install 'offload[otel]'")
    except Exception as error:  # of a variable of OpenTelemetry's: jobs are run all the same
        log.warning("traces are off: OpenTelemetry does not start", error=type(error).__name__, where=where(error))
    return None


def wanted(environment: Mapping[str, str]) -> bool:
    """Whether a collector is named, and traces are not switched off otherwise."""
    off = environment.get("OTEL_SDK_DISABLED", "").strip().lower() == "true"
    off |= environment.get("OTEL_TRACES_EXPORTER", "").strip().lower() == "none"
    return not off and any(environment.get(name, "").strip() for name in ENDPOINTS)


def _tracer_provider(me: Identity) -> TracerProvider:
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    asked = next((os.environ[name] for name in PROTOCOLS if os.environ.get(name)), PROTOCOL)
    if asked != PROTOCOL:
        log.warning(f"traces are sent by {PROTOCOL}", asked=asked[:32])
    named = {"service.instance.id": me.name, "offload.node": me.node, "offload.provider": me.provider}
    given = os.environ.get("OTEL_RESOURCE_ATTRIBUTES", "")
    if not os.environ.get("OTEL_SERVICE_NAME") and "service.name=" not in given:
        named["service.name"] = "offload-worker"
    logging.getLogger("opentelemetry.exporter").setLevel(logging.ERROR)  # of a collector that is down, not each try
    made = TracerProvider(resource=Resource.create(named), shutdown_on_exit=False)  # it would wait without end
    made.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    return made


@dataclass(slots=True)
class _Slice:
    """A slice whose jobs are in hand. left: those that are not recorded."""

    span: Span
    context: Context
    first: Held
    left: int


class Traces:
    """One worker's; its methods may be called from any thread, and raise nothing."""

    def __init__(self, provider: TracerProvider, me: Identity, of: Provider) -> None:
        self._provider = provider
        self._tracer = provider.get_tracer("offload")
        self._fixed = fixed(me, of)
        self._lock = threading.Lock()
        self._slices: dict[tuple[int, int], _Slice] = {}  # by job and fence

    def claimed(self, slice_id: str, held: Sequence[Held]) -> None:
        """A slice begins."""
        try:
            self._begin(slice_id, held)
        except Exception as error:
            _failed(error)

    def called(self, job: Claimed, asked: Asked | None, outcome: Outcome) -> None:
        """A call is over; where none was sent there is no span."""
        if asked is None or outcome.call is None:
            return
        try:
            self._call(job, asked, outcome, outcome.call)
        except Exception as error:
            _failed(error)

    def recorded(self, outcomes: Iterable[Outcome]) -> None:
        """These jobs are out of hand; a slice of which it was the last one ends."""
        try:
            for outcome in outcomes:
                self._forget(outcome.job_id, outcome.fence)
        except Exception as error:
            _failed(error)

    def close(self) -> None:
        """Send what is left, if that is quick."""
        closing = threading.Thread(target=self._provider.shutdown, name="traces", daemon=True)
        closing.start()
        closing.join(CLOSE_S)

    def _begin(self, slice_id: str, held: Sequence[Held]) -> None:
        from opentelemetry.trace import set_span_in_context

        first = held[0]
        attributes: dict[str, Any] = {
            "offload.slice_id": slice_id,
            "offload.batch_id": first.job.batch_id,
            "offload.model_class": first.job.model_class,
            "offload.jobs": len(held),
        }
        name = f"slice {first.job.model_class}"
        span = self._tracer.start_span(name, attributes=attributes, start_time=_ns(first.job.claimed_at))
        begun = _Slice(span, set_span_in_context(span), first, len(held))
        with self._lock:
            self._slices.update({(h.job.id, h.job.fence): begun for h in held})

    def _call(self, job: Claimed, asked: Asked, outcome: Outcome, row: Mapping[str, Any]) -> None:
        from opentelemetry.trace import SpanKind, StatusCode

        with self._lock:
            mine = self._slices.get((job.id, job.fence))
        given = self._fixed | attributes(job, asked, outcome.state.value, row)
        name = f"{given['gen_ai.operation.name']} {asked.call.model}"
        parent = mine.context if mine is not None else None
        began = row["started_at"]
        span = self._tracer.start_span(name, parent, SpanKind.CLIENT, given, start_time=_ns(began))
        if row["error_code"] is not None:
            span.set_status(StatusCode.ERROR)
        span.end(_ns(began + row["duration_ms"] / 1000))

    def _forget(self, job_id: int, fence: int) -> None:
        with self._lock:
            mine = self._slices.pop((job_id, fence), None)
            if mine is None:
                return
            mine.left -= 1
            is_last = not mine.left
        if is_last:
            mine.span.end(_ns(mine.first.unix_time()))


def fixed(me: Identity, of: Provider) -> dict[str, Any]:
    """The attributes that all calls of a worker have."""
    found: dict[str, Any] = {
        "gen_ai.provider.name": PROVIDERS.get(of.kind, of.kind),
        "offload.provider": me.provider,
        "offload.node": me.node,
    }
    if of.url is not None:
        there = urlsplit(of.url)
        found["server.address"] = there.hostname or ""
        found["server.port"] = there.port or (443 if there.scheme == "https" else 80)
    return found


def attributes(job: Claimed, asked: Asked, state: str, row: Mapping[str, Any]) -> dict[str, Any]:
    """What a call's span says, from its row in `calls`. state: what became of the job."""
    served = row["model_served"] is not None
    first_ms, reason = row["first_token_ms"], row["finish_reason"]
    found: dict[str, Any] = {
        "gen_ai.operation.name": OPERATIONS[asked.call.kind],
        "gen_ai.request.model": asked.call.model,
        "gen_ai.request.max_tokens": asked.call.max_tokens,
        "gen_ai.request.temperature": asked.call.temperature,
        "gen_ai.output.type": None if asked.call.kind == "embed" else "json" if asked.json else "text",
        "gen_ai.response.model": row["model_served"],
        "gen_ai.response.finish_reasons": [reason] if reason else None,
        "gen_ai.response.time_to_first_chunk": first_ms / 1000 if first_ms else None,
        "gen_ai.usage.input_tokens": row["tokens_in"] if served else None,
        "gen_ai.usage.output_tokens": row["tokens_out"] if served else None,
        "gen_ai.usage.reasoning.output_tokens": row["tokens_thinking"],
        "error.type": row["error_code"],
        "offload.job_id": job.id,
        "offload.batch_id": job.batch_id,
        "offload.category": job.category,
        "offload.model_class": job.model_class,
        "offload.attempt": row["attempt"],
        "offload.decision": row["decision"],
        "offload.state": state,
    }
    return {name: value for name, value in found.items() if value is not None}


def _ns(at: float) -> int:
    return int(at * 1e9)


def _failed(error: Exception) -> None:
    log.error("a trace could not be made", error=type(error).__name__, where=where(error))
