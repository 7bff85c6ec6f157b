"""When traces are made, and that whatever goes wrong with them is no job's."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest

from tasks.errors import Transient
from tasks.providers import Provider
from tests.support.logs import said_by
from tests.unit.workers.jobs import ME, REGISTRY, asked, claimed
from workers import tracing
from workers.backends import Reply
from workers.judging import failed, succeeded
from workers.tracing import attributes, fixed, wanted

ENDPOINT = "OTEL_EXPORTER_OTLP_ENDPOINT"


@pytest.mark.parametrize(
    ("environment", "on"),
    [
        ({}, False),
        ({ENDPOINT: ""}, False),
        ({ENDPOINT: "http://127.0.0.1:4318"}, True),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://127.0.0.1:4318/v1/traces"}, True),
        ({"OTEL_EXPORTER_OTLP_METRICS_ENDPOINT": "http://127.0.0.1:4318/v1/metrics"}, False),
        ({ENDPOINT: "http://127.0.0.1:4318", "OTEL_SDK_DISABLED": "True"}, False),
        ({ENDPOINT: "http://127.0.0.1:4318", "OTEL_TRACES_EXPORTER": "none"}, False),
    ],
)
def test_traces_are_off_unless_a_collector_is_named(environment: dict[str, str], on: bool) -> None:
    """By the variables that OpenTelemetry has for it."""
    assert wanted(environment) is on


@pytest.mark.slow
def test_nothing_is_imported_when_they_are_off() -> None:
    """A worker without traces loads nothing that makes or sends them."""
    made = "'opentelemetry.sdk.trace', 'opentelemetry.exporter'"
    code = f"import sys; from workers import process; print([m for m in sys.modules if m.startswith(({made}))])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def start(monkeypatch: pytest.MonkeyPatch, **environment: str) -> tuple[Any, list[Any]]:
    """What a worker's start makes of an environment, and what it says."""
    for name, value in ({ENDPOINT: "http://127.0.0.1:9"} | environment).items():
        monkeypatch.setenv(name, value)
    with said_by(tracing) as said:
        return tracing.start(ME, REGISTRY.providers["gpu"]), said


def test_a_missing_extra_is_one_clear_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    """It names what to install; the worker runs without traces."""
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.http.trace_exporter", None)
    made, said = start(monkeypatch)
    assert made is None
    ((warning),) = said
    assert warning["log_level"] == "warning"
    assert "pip install 'offload[otel]'" in warning["event"]


def test_a_variable_that_opentelemetry_refuses_stops_no_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    """One warning, and no traces."""
    made, said = start(monkeypatch, OTEL_BSP_MAX_QUEUE_SIZE="-1")
    assert made is None
    assert [line["log_level"] for line in said] == ["warning"]


def test_another_protocol_is_said_to_be_another(monkeypatch: pytest.MonkeyPatch) -> None:
    """Traces go by HTTP, with a warning to who asked for gRPC."""
    made, said = start(monkeypatch, OTEL_EXPORTER_OTLP_PROTOCOL="grpc")
    assert made is not None
    made.close()
    assert [line["asked"] for line in said] == ["grpc"]


def test_a_call_without_an_answer_has_no_tokens() -> None:
    """Its error's code, and nothing that nobody measured."""
    job = claimed()
    call = asked(job)
    row = failed(job, Transient("http_500", "words of a server"), ME, call, 1.0, 5.0).call
    assert row is not None
    found = attributes(job, call, "queued", row)
    assert found["error.type"] == "http_500"
    assert not [n for n in found if n.startswith(("gen_ai.usage", "gen_ai.response"))]
    assert "words" not in str(found)


def test_an_answer_is_in_no_attribute() -> None:
    """What was asked and answered is counted and not told."""
    job = claimed("warm", prompt="zanzibar")
    call = asked(job)
    reply = Reply(model="tiny", text="an answer of zanzibar", reasoning="zanzibar", tokens_thinking=3)
    row = succeeded(job, call, reply, ME, 1.0).call
    assert row is not None
    found = attributes(job, call, "done", row)
    assert found["gen_ai.usage.reasoning.output_tokens"] == 3
    assert found["gen_ai.request.max_tokens"] == 77
    assert "zanzibar" not in str(found)


def test_a_server_is_named_by_host_and_port() -> None:
    """With its scheme's port where none is said; a file or a command has neither."""
    cloud = Provider(name="far", kind="anthropic")
    assert (fixed(ME, cloud)["server.address"], fixed(ME, cloud)["server.port"]) == ("api.anthropic.com", 443)
    file = Provider.model_validate({"kind": "gguf", "path": "/m.gguf"})
    assert "server.address" not in fixed(ME, file)
    assert fixed(ME, file)["gen_ai.provider.name"] == "llama.cpp"


class Broken:
    """A tracer that always fails."""

    def get_tracer(self, name: str) -> Broken:
        return self

    def start_span(self, *_: Any, **__: Any) -> Any:
        raise RuntimeError("a fault of the tracer's")


def test_a_fault_of_the_tracer_is_no_fault_of_a_job() -> None:
    """It is said, and nothing is raised."""
    job = claimed()
    call = asked(job)
    outcome = succeeded(job, call, Reply(model="tiny", text="An answer."), ME, 1.0)
    traces = tracing.Traces(Broken(), ME, REGISTRY.providers["gpu"])  # type: ignore[arg-type]
    with said_by(tracing) as said:
        traces.claimed("s", [])
        traces.called(job, call, outcome)
        traces.recorded([outcome])
    assert [line["event"] for line in said] == ["a trace could not be made"] * 2
