"""The official `anthropic` package drives the simulator."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from tests.support.lazily import Lazily
from workers.simulator import BackgroundSimulator, SimulatorConfig, in_thread

if TYPE_CHECKING:
    import anthropic
else:
    anthropic = Lazily("anthropic")

MODEL = "claude-simulated"


@pytest.fixture
def sim() -> Iterator[BackgroundSimulator]:
    """A simulator that asks for a key."""
    with in_thread(SimulatorConfig(api_key="k")) as running:
        yield running


@pytest.fixture
def client(sim: BackgroundSimulator) -> Iterator[anthropic.Anthropic]:
    """The official client, without retries of its own."""
    with anthropic.Anthropic(base_url=sim.url, api_key="k", max_retries=0) as official:
        yield official


def ask(text: str = "hello") -> dict[str, Any]:
    """The arguments of one message."""
    return {"model": MODEL, "max_tokens": 500, "messages": [{"role": "user", "content": text}]}


def test_message_whole(sim: BackgroundSimulator, client: anthropic.Anthropic) -> None:
    """A message is answered by any claude model, and nothing is loaded for it."""
    reply = client.messages.create(system="Task: naming. x", **ask())
    assert reply.content[0].type == "text"
    assert reply.content[0].text.startswith("simulated_name_")
    assert reply.stop_reason == "end_turn"
    assert reply.usage.output_tokens > 0
    assert sim.stats()["loads_total"] == 0


def test_stream_adds_up(client: anthropic.Anthropic) -> None:
    """The client's stream gathers the same message."""
    whole = client.messages.create(**ask())
    with client.messages.stream(**ask()) as stream:
        final = stream.get_final_message()
    assert final.content[0].type == whole.content[0].type == "text"
    assert final.content[0].text == whole.content[0].text
    assert (final.stop_reason, final.usage.output_tokens) == (whole.stop_reason, whole.usage.output_tokens)


def test_thinking_is_a_block(client: anthropic.Anthropic) -> None:
    """Thinking comes as a block of its own when asked for, whole and streamed."""
    thinking: Any = {"type": "adaptive"}
    kinds = [block.type for block in client.messages.create(thinking=thinking, **ask()).content]
    with client.messages.stream(thinking=thinking, **ask()) as stream:
        streamed = [block.type for block in stream.get_final_message().content]
    assert kinds == streamed == ["thinking", "text"]


def test_schema_is_obeyed(client: anthropic.Anthropic) -> None:
    """output_config.format with a schema gives JSON of that shape."""
    schema: dict[str, object] = {"type": "object", "properties": {"n": {"const": 4}}, "required": ["n"]}
    reply = client.messages.create(output_config={"format": {"type": "json_schema", "schema": schema}}, **ask())
    assert reply.content[0].type == "text"
    assert json.loads(reply.content[0].text) == {"n": 4}


def test_tools_are_called(client: anthropic.Anthropic) -> None:
    """The first tool is called."""
    reply = client.messages.create(tools=[{"name": "f", "input_schema": {"type": "object"}}], **ask())
    assert (reply.stop_reason, reply.content[-1].type, reply.content[-1].name) == ("tool_use", "tool_use", "f")


def test_max_tokens(client: anthropic.Anthropic) -> None:
    """A short max_tokens ends with its own reason."""
    reply = client.messages.create(**{**ask(), "max_tokens": 2})
    assert (reply.stop_reason, reply.usage.output_tokens) == ("max_tokens", 2)


def test_count_tokens(client: anthropic.Anthropic) -> None:
    """The count is what the usage says then."""
    counted = client.messages.count_tokens(model=MODEL, messages=[{"role": "user", "content": "hello there"}])
    assert counted.input_tokens == client.messages.create(**ask("hello there")).usage.input_tokens


@pytest.mark.parametrize(("name", "default"), [("temperature", 1.0), ("top_p", 1.0), ("top_k", 0)])
def test_sampling_parameters_are_refused(sim: BackgroundSimulator, name: str, default: float) -> None:
    """temperature, top_p and top_k are a 400 even at their defaults."""
    reply = httpx.post(f"{sim.url}/v1/messages", json={**ask(), name: default}, headers={"x-api-key": "k"})
    assert reply.status_code == 400
    assert reply.json()["error"]["type"] == "invalid_request_error"
    assert name in reply.json()["error"]["message"]


@pytest.mark.parametrize("missing", ["max_tokens", "messages", "model"])
def test_required_fields(sim: BackgroundSimulator, missing: str) -> None:
    """Each required field is a 400 in Anthropic's shape when absent."""
    body = {key: value for key, value in ask().items() if key != missing}
    reply = httpx.post(f"{sim.url}/v1/messages", json=body, headers={"x-api-key": "k"})
    assert (reply.status_code, reply.json()["type"]) == (400, "error")


def test_a_wrong_key_is_401(client: anthropic.Anthropic) -> None:
    """A wrong key is the client's AuthenticationError."""
    with pytest.raises(anthropic.AuthenticationError):
        client.with_options(api_key="wrong").messages.create(**ask())


def test_models_are_listed(client: anthropic.Anthropic) -> None:
    """The same path as OpenAI's answers this client in its own shape."""
    assert "gemma3:4b" in {model.id for model in client.models.list()}


@pytest.mark.parametrize(
    ("status", "kind"),
    [(400, "invalid_request_error"), (401, "authentication_error"), (404, "not_found_error"),
     (429, "rate_limit_error"), (500, "api_error"), (503, "overloaded_error")],
)  # fmt: skip
def test_status_faults_are_the_clients_errors(client: anthropic.Anthropic, status: int, kind: str) -> None:
    """Each status raises the client's own class with Anthropic's type."""
    with pytest.raises(anthropic.APIStatusError) as caught:
        client.messages.create(**ask(f"[[sim:{status}]]"))
    assert caught.value.status_code == status
    body = caught.value.body
    assert isinstance(body, dict)
    assert body["error"]["type"] == kind


def test_an_error_in_the_stream(client: anthropic.Anthropic) -> None:
    """midstream-error raises while the stream is read."""
    with (
        pytest.raises(anthropic.APIStatusError, match="middle of the stream"),
        client.messages.stream(**ask("[[sim:midstream-error]]")) as stream,
    ):
        stream.get_final_message()
