"""One question straight to a server: the body a worker would send, the answer read, no way out of reach."""

from __future__ import annotations

import socket
from typing import Any

import pytest

from api.helpers import plan as plans
from api.helpers.making import of_registry
from api.helpers.raw import Asked, _question
from tasks.categories import DEFAULT_CATEGORIES
from tasks.config import parse
from tasks.errors import CallError
from tasks.privacy import Reach
from tasks.registry import Registry
from tests.support.plain_server import OLLAMA, plain_server
from tests.unit.workers.jobs import claimed
from workers import asking, straight, straight_bodies
from workers.backends import ollama_api, openai_api
from workers.straight import Server
from workers.straight_bodies import Question

CONFIG = """
providers: [{{name: sim, kind: {kind}, url: "http://127.0.0.1:1/v1"}}]
classes:
  small:
    serve: [{{provider: sim, model: tiny}}]
    options: {{num_ctx: 1000, top_p: 0.5, stop: "END"}}
    think: false
  coder: {{serve: [{{provider: sim, model: coder}}]}}
  reason: {{serve: [{{provider: sim, model: big}}]}}
  embed: {{serve: [{{provider: sim, model: bge}}]}}
categories:
  warm: {{class: small, temperature: 0.5, max_tokens: 77, think: true, system: "Task: warm. Be kind."}}
  form: {{class: small, json: true, system: "Task: form. Answer in prose."}}
  plain: {{class: small}}
"""
QUESTION = Question("chat", "gemma3:4b", "Hello")


def bodies(registry: Registry, category: str, json: bool) -> tuple[Any, Any]:
    """What the pool's worker sends for a job, and what is sent straight."""
    model_class = registry.categories[category].model_class
    body: dict[str, Any] = {"prompt": "Hello"} | ({"json": True} if json else {})
    job = claimed(category, model_class=model_class, **body)
    call = asking.ask(job, registry, "sim").call
    way = plans.understood(of_registry(registry)).way(category)
    question = _question(way, Asked(category, "Hello", json=json))
    kind = registry.providers["sim"].kind
    worker = ollama_api.chat_body(call) if kind == "ollama" else openai_api.text_body(call)
    return worker, straight_bodies.text(kind, question)[1]


@pytest.mark.parametrize("json", [False, True])
@pytest.mark.parametrize("kind", ["ollama", "openai"])
def test_the_body_is_a_workers(kind: str, json: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of every category and both protocols, it is what a worker sends, but for the stream."""
    registry = parse(CONFIG.format(kind=kind), "offload.yaml")
    monkeypatch.setattr("tests.unit.workers.jobs.REGISTRY", registry)
    for name, category in registry.categories.items():
        if category.kind == "chat" and category.model_class != "cloud":
            worker, ours = bodies(registry, name, json)
            assert ours.pop("stream") is False
            assert worker.pop("stream") is True
            worker.pop("stream_options", None)
            assert ours == worker, name


def test_what_is_written_twice_is_equal() -> None:
    """The words and names that straight_bodies.py repeats, because it may import nothing, are those of the backends."""
    assert straight_bodies.JSON_ONLY == asking.JSON_ONLY
    assert straight_bodies.SHARED_OPTIONS == openai_api.SHARED_OPTIONS
    assert plans.DEFAULT in DEFAULT_CATEGORIES


def test_a_name_that_leads_out_of_reach_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where one address of a name lies beyond the declared reach, nothing is sent to any of them."""
    with plain_server() as server:
        port = int(server.url.rpartition(":")[2])
        found = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (host, port)) for host in ("127.0.0.1", "93.184.216.34")]
        monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: found)
        for reach in (Reach.LOCAL, Reach.LAN):
            with pytest.raises(CallError, match="beyond the reach"):
                straight.ask(Server("far", "ollama", f"http://far.example:{port}", reach), QUESTION)
        assert server.requests == []


@pytest.mark.parametrize(
    ("tags", "model"),
    [
        ([{"name": "gemma3:4b", "remote_host": "https://ollama.com"}], "gemma3:4b"),
        ([{"name": "mine:latest", "remote_host": "https://ollama.com"}], "mine"),
        ([], "big:cloud"),
        ([], "big-cloud"),
    ],
)
def test_a_model_on_somebody_elses_machine_is_not_asked(tags: list[Any], model: str) -> None:
    """Ollama's cloud models, by their names or by what /api/tags lists, get no prompt."""
    with plain_server(OLLAMA | {"/api/tags": {"models": tags}}) as server:
        with pytest.raises(CallError, match="does not run on that machine"):
            straight.ask(Server("here", "ollama", server.url, Reach.LOCAL), Question("chat", model, "Hello"))
        assert server.count("/api/chat") == 0


def test_an_answer_that_came_from_elsewhere_is_no_answer() -> None:
    """A server that says in its reply that another host gave it is not believed to be local."""
    answer = OLLAMA["/api/chat"] | {"remote_host": "https://ollama.com"}
    with plain_server(OLLAMA | {"/api/chat": answer}) as server, pytest.raises(CallError, match="does not run"):
        straight.ask(Server("here", "ollama", server.url, Reach.LOCAL), QUESTION)


def test_a_redirect_and_a_proxy_are_not_followed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The prompt goes to the configured address and nowhere else."""
    with plain_server() as other, plain_server(OLLAMA | {"/api/chat": 307, "location": f"{other.url}/"}) as server:
        monkeypatch.setenv("http_proxy", other.url)
        monkeypatch.setenv("HTTP_PROXY", other.url)
        with pytest.raises(CallError, match="not followed"):
            straight.ask(Server("here", "ollama", server.url, Reach.LOCAL), QUESTION)
        assert other.requests == []


OPENAI = {
    "/v1/models": {"data": []},
    "/v1/chat/completions": {
        "choices": [{"message": {"content": "hello"}, "finish_reason": "stop"}],
        "usage": {"completion_tokens": 5},
    },
    "/v1/embeddings": {"data": [{"embedding": [0.5, 1]}]},
}


def test_openais_protocol_is_spoken(monkeypatch: pytest.MonkeyPatch) -> None:
    """Chats, embeddings and the probe of a server of kind openai, with its key."""
    monkeypatch.setenv("A_KEY", "word\n")
    with plain_server(OPENAI) as server:
        here = Server("here", "openai", f"{server.url}/v1/", Reach.LOCAL, "A_KEY")
        straight.probe(here)
        reply = straight.ask(here, QUESTION)
        assert (reply.text, reply.tokens, reply.cut) == ("hello", 5, False)
        assert straight.ask(here, Question("embed", "bge", "Hello")).vector == [0.5, 1]
        asked = [path for _, path, _ in server.requests if path != "/api/tags"]  # whether it is an Ollama after all
        assert asked == list(OPENAI)
        assert {headers["Authorization"] for headers in server.headers} == {"Bearer word"}
        assert {headers["Host"] for headers in server.headers} == {server.url.removeprefix("http://")}


@pytest.mark.parametrize("vector", [[], [0, 0], ["a"], [None], [True], None, [10**400]])
def test_a_vector_that_can_be_none_is_an_error(vector: Any) -> None:
    """Empty, zero and odd vectors raise a CallError."""
    with pytest.raises(CallError):
        straight_bodies.embedding_reply("ollama", "here", {"embeddings": [vector]})


@pytest.mark.parametrize(
    "value", [{}, {"message": None}, {"message": {"content": 1}, "done": True}, {"message": {"content": "x"}}]
)
def test_a_reply_of_another_shape_is_an_error(value: dict[str, Any]) -> None:
    """What is no whole answer raises a CallError, whatever it is."""
    with pytest.raises(CallError):
        straight_bodies.text_reply("ollama", "here", value)
    with pytest.raises(CallError):
        straight_bodies.text_reply("openai", "here", value)
