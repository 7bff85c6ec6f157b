"""The official `ollama` package drives the simulator, and the wire is Ollama's."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from tests.support.lazily import Lazily
from workers.simulator import BackgroundSimulator, in_thread

if TYPE_CHECKING:
    import ollama
else:
    ollama = Lazily("ollama")

USER = [{"role": "user", "content": "hello"}]


@pytest.fixture
def sim() -> Iterator[BackgroundSimulator]:
    """A simulator with default settings."""
    with in_thread() as running:
        yield running


@pytest.fixture
def client(sim: BackgroundSimulator) -> Iterator[ollama.Client]:
    """The official client."""
    with ollama.Client(sim.url) as official:
        yield official


def post(sim: BackgroundSimulator, path: str, **body: Any) -> httpx.Response:
    """One plain request."""
    return httpx.post(sim.url + path, json=body, timeout=30)


def test_liveness(sim: BackgroundSimulator) -> None:
    """`/` and `/api/version` answer as Ollama does."""
    assert httpx.get(sim.url).text == "Ollama is running"
    assert "version" in httpx.get(f"{sim.url}/api/version").json()


def test_chat_whole(client: ollama.Client) -> None:
    """A chat is answered at once with counts and a reason."""
    reply = client.chat("gemma3:4b", messages=USER)
    assert reply.done
    assert reply.done_reason == "stop"
    assert "simulated" in (reply.message.content or "")
    assert reply.eval_count
    assert reply.total_duration


def test_chat_stream_adds_up(client: ollama.Client) -> None:
    """The pieces of a stream are the whole answer; counts come in the last chunk only."""
    whole = client.chat("gemma3:4b", messages=USER)
    parts = list(client.chat("gemma3:4b", messages=USER, stream=True))
    assert "".join(part.message.content or "" for part in parts) == whole.message.content
    assert [part.done for part in parts][-2:] == [False, True]
    assert parts[0].eval_count is None
    assert parts[-1].eval_count == whole.eval_count


def test_generate_both_ways(client: ollama.Client) -> None:
    """generate gives the same text whole and streamed."""
    whole = client.generate("gemma3:4b", "hello", system="Task: plan. x")
    parts = list(client.generate("gemma3:4b", "hello", system="Task: plan. x", stream=True))
    assert "".join(part.response or "" for part in parts) == whole.response
    assert (whole.response or "").startswith("1. ")


def test_stream_is_the_default(sim: BackgroundSimulator) -> None:
    """Without `stream` the reply is NDJSON."""
    reply = post(sim, "/api/chat", model="gemma3:4b", messages=USER)
    assert reply.headers["content-type"] == "application/x-ndjson"
    assert json.loads(reply.text.splitlines()[-1])["done"] is True


def test_thinking_is_on_unless_switched_off(client: ollama.Client) -> None:
    """A capable model thinks when `think` is unset, and not when it is false."""
    assert client.chat("gemma4:26b", messages=USER).message.thinking
    assert not client.chat("gemma4:26b", messages=USER, think=False).message.thinking
    parts = list(client.chat("gemma4:26b", messages=USER, stream=True))
    assert "".join(part.message.thinking or "" for part in parts).startswith("Simulated thoughts")


def test_thinking_on_an_incapable_model_is_refused(client: ollama.Client) -> None:
    """`think: true` is a 400 where the model cannot."""
    with pytest.raises(ollama.ResponseError, match="does not support thinking") as caught:
        client.chat("gemma3:4b", messages=USER, think=True)
    assert caught.value.status_code == 400


def test_format_with_think_unset_is_empty(client: ollama.Client) -> None:
    """On a thinking model the JSON ends up in the thoughts, until `think` is false."""
    assert client.chat("gemma4:26b", messages=USER, format="json").message.content == ""
    content = client.chat("gemma4:26b", messages=USER, format="json", think=False).message.content
    assert json.loads(content or "")["simulated"] is True


def test_schema_is_obeyed(client: ollama.Client) -> None:
    """`format` with a schema gives JSON of that shape."""
    schema = {"type": "object", "properties": {"n": {"type": "integer", "minimum": 3}}, "required": ["n"]}
    content = client.chat("gemma3:4b", messages=USER, format=schema).message.content
    assert json.loads(content or "")["n"] >= 3


def test_num_predict_cuts(client: ollama.Client) -> None:
    """A shorter num_predict ends with done_reason length."""
    reply = client.chat("gemma3:4b", messages=USER, options={"num_predict": 2})
    assert (reply.done_reason, reply.eval_count) == ("length", 2)


def test_embeddings(client: ollama.Client) -> None:
    """One vector an input, of the model's dimensions, the same for the same text."""
    first = client.embed("bge-m3", input=["a", "b", "a"])
    assert [len(vector) for vector in first.embeddings] == [1024] * 3
    assert first.embeddings[0] == first.embeddings[2] != first.embeddings[1]
    assert len(client.embed("nomic-embed-text:latest", input="a").embeddings[0]) == 768


def test_listing_and_showing(client: ollama.Client) -> None:
    """tags lists every model, untagged ones as latest; show tells what one can do."""
    names = {model.model for model in client.list().models}
    assert {"gemma3:4b", "bge-m3:latest"} <= names
    assert "thinking" in (client.show("gemma4:26b").capabilities or [])
    with pytest.raises(ollama.ResponseError, match="not found"):
        client.show("no-such")


def test_ps_follows_keep_alive(client: ollama.Client) -> None:
    """ps lists what is in memory; keep_alive 0 unloads when idle."""
    client.chat("gemma3:4b", messages=USER, options={"num_ctx": 4096})
    assert [(m.model, m.context_length) for m in client.ps().models] == [("gemma3:4b", 4096)]
    client.chat("gemma3:4b", messages=USER, options={"num_ctx": 4096}, keep_alive=0)
    assert client.ps().models == []


def test_empty_requests_load_and_unload(client: ollama.Client) -> None:
    """A request without a prompt loads the model, with keep_alive 0 it unloads it."""
    assert client.generate("gemma3:4b").done_reason == "load"
    assert len(client.ps().models) == 1
    assert client.generate("gemma3:4b", keep_alive=0).done_reason == "unload"
    assert client.ps().models == []


def test_delete_and_pull(client: ollama.Client) -> None:
    """A deleted model is 404 until it is pulled again; an unknown one fails inside the stream."""
    client.delete("gemma3:4b")
    with pytest.raises(ollama.ResponseError) as caught:
        client.chat("gemma3:4b", messages=USER)
    assert caught.value.status_code == 404
    assert [part.status for part in client.pull("gemma3:4b", stream=True)][-1] == "success"
    assert client.chat("gemma3:4b", messages=USER).done
    with pytest.raises(ollama.ResponseError, match="does not exist"):
        list(client.pull("no-such", stream=True))


def test_a_pull_that_fails_is_status_200(sim: BackgroundSimulator) -> None:
    """The error of a pull is a line of a stream of status 200."""
    reply = post(sim, "/api/pull", model="no-such")
    assert reply.status_code == 200
    assert "error" in json.loads(reply.text.splitlines()[-1])


@pytest.mark.parametrize("body", [{"model": "no-such"}, {}, {"model": "bge-m3"}, {"model": "gemma3:4b", "messages": 7}])
def test_errors_are_a_text(sim: BackgroundSimulator, body: dict[str, Any]) -> None:
    """A refused request is `{"error": text}`."""
    reply = post(sim, "/api/chat", **{"messages": USER, **body})
    assert reply.status_code in (400, 404)
    assert isinstance(reply.json()["error"], str)


def test_runner_options_reload(sim: BackgroundSimulator, client: ollama.Client) -> None:
    """A changed num_ctx, or an absent one, is another load; other options are none."""
    for options in ({"num_ctx": 4096}, {"num_ctx": 4096, "seed": 3}, {"num_ctx": 8192}, {}):
        client.chat("gemma3:4b", messages=USER, options=options)
    assert sim.stats()["loads"] == {"gemma3:4b": 3}


def test_long_prompts_are_cut_in_silence(sim: BackgroundSimulator, client: ollama.Client) -> None:
    """A prompt beyond num_ctx is answered, and only the call log says that it was cut."""
    reply = client.chat("gemma3:4b", messages=[{"role": "user", "content": "x" * 400}], options={"num_ctx": 100})
    assert reply.prompt_eval_count == 100
    assert sim.calls()[-1]["truncated_prompt"] is True


def test_full_queue(sim: BackgroundSimulator, client: ollama.Client) -> None:
    """Beyond the queue a request is 503 with Ollama's own words."""
    sim.configure(slots=1, queue_limit=0)
    body = {"model": "gemma3:4b", "messages": [{"role": "user", "content": "[[sim:stall]]"}]}
    with (
        httpx.stream("POST", f"{sim.url}/api/chat", json=body),
        pytest.raises(ollama.ResponseError) as caught,
    ):
        client.chat("gemma3:4b", messages=USER)
    assert caught.value.status_code == 503
    assert caught.value.error == "server busy, please try again.  maximum pending requests exceeded"
