"""The official `openai` package drives the simulator."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from tests.support.lazily import Lazily
from workers.simulator import BackgroundSimulator, SimulatorConfig, in_thread

if TYPE_CHECKING:
    import openai
else:
    openai = Lazily("openai")


@pytest.fixture
def sim() -> Iterator[BackgroundSimulator]:
    """A simulator that asks for a key."""
    with in_thread(SimulatorConfig(api_key="k")) as running:
        yield running


@pytest.fixture
def client(sim: BackgroundSimulator) -> Iterator[openai.OpenAI]:
    """The official client, without retries of its own."""
    with openai.OpenAI(base_url=f"{sim.url}/v1", api_key="k", max_retries=0) as official:
        yield official


def chat(client: openai.OpenAI, text: str = "hello", model: str = "gemma3:4b", **fields: Any) -> Any:
    """One chat."""
    return client.chat.completions.create(model=model, messages=[{"role": "user", "content": text}], **fields)


def test_chat_whole(client: openai.OpenAI) -> None:
    """A chat is answered with a choice and consistent usage."""
    reply = chat(client)
    assert reply.choices[0].finish_reason == "stop"
    assert "simulated" in reply.choices[0].message.content
    assert reply.usage.total_tokens == reply.usage.prompt_tokens + reply.usage.completion_tokens


def test_chat_stream_adds_up(client: openai.OpenAI) -> None:
    """The deltas are the whole answer, and usage comes last when asked for."""
    chunks = list(chat(client, stream=True, stream_options={"include_usage": True}))
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    whole = chat(client)
    assert text == whole.choices[0].message.content
    assert chunks[-1].usage == whole.usage
    assert chunks[-2].choices[0].finish_reason == "stop"


def test_no_usage_unless_asked_for(client: openai.OpenAI) -> None:
    """A stream without include_usage has none."""
    assert all(chunk.usage is None for chunk in chat(client, stream=True))


def test_thoughts_are_a_field(sim: BackgroundSimulator, client: openai.OpenAI) -> None:
    """A thinking model's thoughts are in reasoning_content, whole and streamed, or in reasoning if so set."""
    assert chat(client, model="gemma4:26b").choices[0].message.reasoning_content
    deltas = [chunk.choices[0].delta for chunk in chat(client, model="gemma4:26b", stream=True)]
    assert any(getattr(delta, "reasoning_content", None) for delta in deltas)
    sim.configure(reasoning_field="reasoning")
    assert chat(client, model="gemma4:26b").choices[0].message.reasoning


@pytest.mark.parametrize("switch", [{"reasoning_effort": "none"}, {"chat_template_kwargs": {"enable_thinking": False}}])
def test_thinking_can_be_switched_off(client: openai.OpenAI, switch: dict[str, Any]) -> None:
    """Both usual switches leave the thoughts out."""
    message = chat(client, model="gemma4:26b", extra_body=switch).choices[0].message
    assert getattr(message, "reasoning_content", None) is None


def test_json_mode_and_schema(client: openai.OpenAI) -> None:
    """Both response formats are obeyed."""
    assert json.loads(chat(client, response_format={"type": "json_object"}).choices[0].message.content)["simulated"]
    schema = {"type": "object", "properties": {"colour": {"enum": ["red"]}}, "required": ["colour"]}
    wanted = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    assert json.loads(chat(client, response_format=wanted).choices[0].message.content) == {"colour": "red"}


def test_tools_are_called(client: openai.OpenAI) -> None:
    """The first tool is called, unless the choice is none."""
    tools = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}]
    choice = chat(client, tools=tools).choices[0]
    assert (choice.finish_reason, choice.message.tool_calls[0].function.name) == ("tool_calls", "f")
    assert chat(client, tools=tools, tool_choice="none").choices[0].finish_reason == "stop"


def test_max_tokens(client: openai.OpenAI) -> None:
    """Both names of the limit cut the answer."""
    for name in ("max_tokens", "max_completion_tokens"):
        limit: dict[str, Any] = {name: 2}
        reply = chat(client, **limit)
        assert (reply.choices[0].finish_reason, reply.usage.completion_tokens) == ("length", 2)


def test_completions(client: openai.OpenAI) -> None:
    """Completions give the same text whole and streamed."""
    whole = client.completions.create(model="gemma3:4b", prompt="hello")
    parts = client.completions.create(model="gemma3:4b", prompt="hello", stream=True)
    assert "".join(part.choices[0].text for part in parts) == whole.choices[0].text != ""


def test_embeddings_in_both_encodings(client: openai.OpenAI) -> None:
    """The client's own base64 and plain floats are the same vectors."""
    packed = client.embeddings.create(model="bge-m3", input=["a", "b"])
    plain = client.embeddings.create(model="bge-m3", input=["a", "b"], encoding_format="float")
    assert len(packed.data) == len(plain.data) == 2
    assert packed.data[1].embedding == pytest.approx(plain.data[1].embedding, abs=1e-6)
    assert packed.usage.prompt_tokens == 2


def test_models_and_health(sim: BackgroundSimulator, client: openai.OpenAI) -> None:
    """Models are listed; health needs no key."""
    assert "gemma3:4b" in {model.id for model in client.models.list()}
    assert httpx.get(f"{sim.url}/health").json() == {"status": "ok"}


def test_a_wrong_key_is_401(sim: BackgroundSimulator, client: openai.OpenAI) -> None:
    """Every way in but liveness asks for the key."""
    other = client.with_options(api_key="wrong")
    with pytest.raises(openai.AuthenticationError):
        chat(other)
    with pytest.raises(openai.AuthenticationError):
        other.models.list()
    assert httpx.get(f"{sim.url}/api/tags").status_code == 401


def test_unknown_model_is_404(client: openai.OpenAI) -> None:
    """A model that is not served is model_not_found."""
    with pytest.raises(openai.NotFoundError) as caught:
        chat(client, model="no-such")
    assert caught.value.code == "model_not_found"


def test_too_long_a_prompt_is_llama_cpps_400(sim: BackgroundSimulator, client: openai.OpenAI) -> None:
    """A prompt beyond the context is exceed_context_size_error with both numbers."""
    sim.configure(models={"tiny": {"context": 10}})
    with pytest.raises(openai.BadRequestError) as caught:
        chat(client, "x" * 36, model="tiny")
    error = caught.value.body
    assert isinstance(error, dict)
    assert (error["type"], error["n_prompt_tokens"], error["n_ctx"]) == ("exceed_context_size_error", 11, 10)


@pytest.mark.parametrize("status", [400, 401, 404, 429, 500, 503])
def test_status_faults_are_the_clients_errors(client: openai.OpenAI, status: int) -> None:
    """Each status raises the client's own class, with Retry-After on a 429."""
    with pytest.raises(openai.APIStatusError) as caught:
        chat(client, f"[[sim:{status}]]")
    assert caught.value.status_code == status
    assert caught.value.response.headers.get("retry-after") == ("1" if status == 429 else None)


def test_an_error_in_the_stream(client: openai.OpenAI) -> None:
    """midstream-error raises after the first pieces."""
    stream = chat(client, "[[sim:midstream-error]]", stream=True)
    assert next(stream).choices
    with pytest.raises(openai.APIError, match="middle of the stream"):
        list(stream)


def test_the_clients_own_retry_succeeds(sim: BackgroundSimulator, client: openai.OpenAI) -> None:
    """A counted fault spares the retry, so the official client gets through by itself."""
    retrying = client.with_options(max_retries=2)
    assert chat(retrying, "[[sim:500*1]]").choices[0].finish_reason == "stop"
    assert sim.stats()["statuses"] == {"500": 1, "200": 1}
