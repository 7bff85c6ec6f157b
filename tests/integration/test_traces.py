"""Traces of a real worker, taken by a real receiver of OTLP over HTTP."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

from tests.support.nursery import Role
from tests.support.pool import TestPool, running, simulated
from tests.support.waiting import eventually
from workers.simulator import BackgroundSimulator, SimulatorConfig, in_thread

pytestmark = pytest.mark.slow

#: stands in every prompt
MARK = "zanzibar"


class Receiver:
    """Takes traces as a collector does."""

    def __init__(self) -> None:
        self.bodies: list[bytes] = []
        self.paths: set[str] = set()
        taken = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                taken.paths.add(self.path)
                taken.bodies.append(self.rfile.read(int(self.headers["Content-Length"])))
                self.send_response(200)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, format: str, *args: Any) -> None:
                """Nothing."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def requests(self) -> list[ExportTraceServiceRequest]:
        """What came, decoded."""
        return [ExportTraceServiceRequest.FromString(body) for body in list(self.bodies)]

    def spans(self) -> list[Span]:
        """Every span that came."""
        return [s for r in self.requests() for of in r.resource_spans for scope in of.scope_spans for s in scope.spans]

    def close(self) -> None:
        """Listen no more."""
        self._server.shutdown()
        self._server.server_close()


def said(attributes: Any) -> dict[str, Any]:
    """Attributes as a mapping."""
    return {pair.key: _value(pair.value) for pair in attributes}


def _value(value: Any) -> Any:
    kind = value.WhichOneof("value")
    return [_value(one) for one in value.array_value.values] if kind == "array_value" else getattr(value, kind)


@pytest.fixture(scope="module")
def simulator() -> Iterator[BackgroundSimulator]:
    with in_thread(SimulatorConfig(slots=64, loaded_limit=8)) as made:
        yield made


@contextmanager
def traced(folder: Path, simulator: BackgroundSimulator, endpoint: str) -> Iterator[tuple[TestPool, Role]]:
    """A pool with a worker that has this collector, and the worker."""
    config = simulated(simulator.url)
    config["categories"] = {
        "plain": {"class": "small", "audit": 0, "attempts": 1, "max_tokens": 90, "temperature": 0.5},
        "form": {"class": "small", "json": True, "audit": 0, "attempts": 1},
    }
    with running(folder, config) as pool:
        pool.environment |= {
            "OTEL_EXPORTER_OTLP_ENDPOINT": endpoint,
            "OTEL_BSP_SCHEDULE_DELAY": "100",
            "OFFLOAD_LOG_FORMAT": "json",
        }
        yield pool, pool.up()


def test_every_call_is_a_span_of_its_slice(tmp_path: Path, simulator: BackgroundSimulator) -> None:
    """Under the names of the conventions, with job and batch, in the time of the call, and without a word of it."""
    receiver = Receiver()
    with traced(tmp_path, simulator, receiver.url) as (pool, _):
        jobs = [{"id": f"j{i}", "category": "plain", "prompt": f"A note of {MARK}, number {i}."} for i in range(6)]
        jobs += [{"id": "bad", "category": "plain", "prompt": f"[[sim:400]] {MARK}"}]
        jobs += [{"id": "form", "category": "form", "prompt": f"[[sim:badjson]] {MARK}"}]
        jobs += [{"id": "vec", "category": "embed", "input": f"{MARK}"}]
        batch = pool.submit(jobs)
        results = {r["id"]: r for r in pool.finished(batch)}
        eventually(lambda: len([s for s in receiver.spans() if not s.name.startswith("slice ")]) == 9, "all calls came")
        eventually(lambda: _all_slices_ended(receiver), "all slices ended")
        with pool.db.read() as c:
            rows = {r.job_id: r for r in c.exec_driver_sql("SELECT * FROM calls WHERE batch_id = ?", (batch,))}
            ids: dict[str, int] = dict(
                c.exec_driver_sql("SELECT line_id, id FROM jobs WHERE batch_id = ?", (batch,)).all()
            )
        assert "a trace could not be made" not in (tmp_path / "roles.log").read_text()
    receiver.close()

    assert receiver.paths == {"/v1/traces"}
    resource = said(receiver.requests()[0].resource_spans[0].resource.attributes)
    assert (resource["service.name"], resource["service.instance.id"]) == ("offload-worker", "here/sim")
    spans = receiver.spans()
    slices = {s.span_id: s for s in spans if s.name.startswith("slice ")}
    calls = {said(s.attributes)["offload.job_id"]: s for s in spans if s.span_id not in slices}
    assert set(calls) == set(rows)

    there = urlsplit(simulator.url)
    for line_id, job_id in ids.items():
        span, row, own = calls[job_id], rows[job_id], said(calls[job_id].attributes)
        assert span.parent_span_id in slices
        assert span.trace_id == slices[span.parent_span_id].trace_id
        assert span.kind == Span.SPAN_KIND_CLIENT
        assert span.start_time_unix_nano == pytest.approx(row.started_at * 1e9, abs=1e6)
        assert span.end_time_unix_nano - span.start_time_unix_nano == pytest.approx(row.duration_ms * 1e6, abs=2e6)
        assert own["gen_ai.provider.name"] == "ollama"
        assert (own["server.address"], own["server.port"]) == (there.hostname, there.port)
        assert (own["offload.batch_id"], own["offload.attempt"]) == (batch, 1)
        assert own["offload.state"] == results[line_id]["state"]
    good = said(calls[ids["j0"]].attributes)
    row = rows[ids["j0"]]
    assert calls[ids["j0"]].name == "chat gemma3:4b"
    assert {n: good[n] for n in good if n.startswith("gen_ai.")} == {
        "gen_ai.provider.name": "ollama",
        "gen_ai.operation.name": "chat",
        "gen_ai.request.model": "gemma3:4b",
        "gen_ai.request.max_tokens": 90,
        "gen_ai.request.temperature": 0.5,
        "gen_ai.output.type": "text",
        "gen_ai.response.model": row.model_served,
        "gen_ai.response.finish_reasons": ["stop"],
        "gen_ai.response.time_to_first_chunk": pytest.approx(row.first_token_ms / 1000),
        "gen_ai.usage.input_tokens": row.tokens_in,
        "gen_ai.usage.output_tokens": row.tokens_out,
    }
    assert "error.type" not in good
    assert (good["offload.category"], good["offload.model_class"], good["offload.decision"]) == (
        "plain",
        "small",
        "offload",
    )
    for line_id, code in (("bad", "bad_request"), ("form", "bad_json")):
        failed = calls[ids[line_id]]
        assert said(failed.attributes)["error.type"] == code
        assert failed.status.code == Status.STATUS_CODE_ERROR
        assert failed.status.message == ""
    assert said(calls[ids["form"]].attributes)["gen_ai.output.type"] == "json"
    assert calls[ids["vec"]].name.startswith("embeddings ")
    assert sum(said(s.attributes)["offload.jobs"] for s in slices.values()) == 9
    answers = {r["output"] for r in results.values() if isinstance(r["output"], str)}
    assert not [words for words in (MARK, *answers) if words.encode() in b"".join(receiver.bodies)]


def _all_slices_ended(receiver: Receiver) -> bool:
    spans = receiver.spans()
    return {s.parent_span_id for s in spans if s.parent_span_id} <= {s.span_id for s in spans}


@pytest.mark.parametrize("answers", [False, True], ids=["refused", "black hole"])
def test_a_collector_that_is_down_harms_nothing(tmp_path: Path, simulator: BackgroundSimulator, answers: bool) -> None:
    """Jobs end as ever, and the worker does not wait for it when it stops."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        if not answers:
            listener.close()
        with traced(tmp_path, simulator, f"http://127.0.0.1:{port}") as (pool, worker):
            batch = pool.submit(
                [{"id": f"j{i}", "category": "plain", "prompt": f"A note of {MARK}, {i}."} for i in range(40)]
            )
            assert {r["state"] for r in pool.finished(batch)} == {"done"}
            began = time.monotonic()
            worker.terminate()
            assert worker.wait(20) == 0
            assert time.monotonic() - began < 10
            assert MARK not in (tmp_path / "roles.log").read_text()
