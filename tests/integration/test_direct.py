"""Answers that somebody waits for; the official `openai` package is the judge."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from sqlalchemy import select

from tasks.tables import Audit, CallRow
from tests.support.api import Api
from tests.support.lazily import Lazily
from tests.support.pool import TestPool, running, simulated
from tests.support.servers import Server
from tests.support.waiting import eventually

if TYPE_CHECKING:
    import openai
else:
    openai = Lazily("openai")

calls = CallRow.__table__  # type: ignore[attr-defined]
audits = Audit.__table__  # type: ignore[attr-defined]

TOOLS: Any = [
    {
        "type": "function",
        "function": {
            "name": "weather",
            "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
        },
    }
]
ASK: Any = [{"role": "user", "content": "Is it raining in Rome?"}]


@pytest.fixture(scope="module")
def servers() -> Iterator[tuple[Server, Server]]:
    """Two model servers."""
    both = Server(slots=64), Server(slots=64)
    yield both
    for one in both:
        one.close()


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory, servers: tuple[Server, Server]) -> Iterator[TestPool]:
    """A ledger and a configuration; no worker runs, as none is needed."""
    first, second = servers
    config = simulated(first.url, in_flight=32)
    config["providers"].append(
        {"name": "other", "kind": "ollama", "url": second.url, "reach": "local", "in_flight": 32}
    )
    config["classes"]["pair"] = {
        "serve": [{"provider": "sim", "model": "gemma3:4b"}, {"provider": "other", "model": "gemma3:4b"}]
    }
    config["categories"] = {
        "pair": {"class": "pair", "attempts": 1},
        "watched": {"class": "small", "audit": 1.0},
        "strict": {"class": "small", "json": True},
    }
    with running(tmp_path_factory.mktemp("direct"), config) as made:
        yield made


@pytest.fixture(scope="module")
def api(pool: TestPool) -> Api:
    """Its API."""
    return Api(pool)


@pytest.fixture(scope="module")
def client(api: Api) -> Iterator[openai.OpenAI]:
    """The judge."""
    with api.client() as made:
        yield made


def rows(pool: TestPool, **where: Any) -> list[Any]:
    with pool.db.read() as c:
        query = select(calls).where(*(calls.c[name] == value for name, value in where.items()))
        return list(c.execute(query).all())


def test_a_chat(client: openai.OpenAI, pool: TestPool) -> None:
    """A chat is answered, and its headers name who answered; its row in `calls` says what it took."""
    raw = client.chat.completions.with_raw_response.create(
        model="small", messages=ASK, extra_headers={"X-Offload-App": "a-test"}
    )
    reply = raw.parse()
    assert reply.choices[0].message.content
    assert (reply.model, reply.choices[0].finish_reason) == ("gemma3:4b", "stop")
    assert reply.usage is not None
    assert reply.usage.total_tokens == reply.usage.prompt_tokens + reply.usage.completion_tokens > 0
    named = {name: raw.headers[f"x-offload-{name}"] for name in ("provider", "model", "class", "attempts", "decision")}
    assert named == {
        "provider": "sim",
        "model": "gemma3:4b",
        "class": "small",
        "attempts": "1",
        "decision": "offload",
    }
    (row,) = eventually(lambda: rows(pool, app="a-test"), "its row is there")
    assert (row.ended, row.validated, row.tokens_out) == ("done", True, reply.usage.completion_tokens)


def test_a_stream(client: openai.OpenAI) -> None:
    """A streamed chat adds up to what is answered whole, with counts at its end where they were asked for."""
    whole = client.chat.completions.create(model="small", messages=ASK).choices[0].message.content
    stream = client.chat.completions.create(
        model="small", messages=ASK, stream=True, stream_options={"include_usage": True}
    )
    chunks = list(stream)
    pieces = [chunk.choices[0] for chunk in chunks if chunk.choices]
    assert "".join(piece.delta.content or "" for piece in pieces) == whole
    assert (pieces[0].delta.role, pieces[-1].finish_reason) == ("assistant", "stop")
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens > 0


@pytest.mark.parametrize("family", ["think", "kimi", "gpt-oss", "gemma", "granite", "mistral"])
def test_a_stream_without_thoughts(client: openai.OpenAI, family: str) -> None:
    """Thoughts that leak into a streamed answer go out as thoughts: the answer is what is answered whole."""
    asked: Any = [{"role": "user", "content": f"x [[sim:leak={family}]]"}]
    whole = client.chat.completions.create(model="small", messages=asked).choices[0].message.content
    chunks = list(client.chat.completions.create(model="small", messages=asked, stream=True))
    deltas = [chunk.choices[0].delta for chunk in chunks]
    assert "".join(delta.content or "" for delta in deltas) == whole
    assert "thoughts about" in "".join(getattr(delta, "reasoning_content", "") for delta in deltas)


@pytest.mark.parametrize(
    ("path", "asked"),
    [("chat/completions", {"messages": ASK}), ("completions", {"prompt": "Rome"}), ("messages", {"messages": ASK})],
)
def test_a_stream_names_who_answers(api: Api, path: str, asked: dict[str, Any]) -> None:
    """A stream's headers say all that those of a whole answer do, and its first event the model that serves."""
    body = {"model": "small", "max_tokens": 50, **asked}
    whole, streamed = (api.ask("POST", f"/v1/{path}", json=body | {"stream": stream}) for stream in (False, True))
    named, again = ({k: v for k, v in one.headers.items() if k.startswith("x-offload-")} for one in (whole, streamed))
    assert named == again
    assert '"model":"gemma3:4b"' in streamed.text.split("\n\n")[0]


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
def test_tools(client: openai.OpenAI, stream: bool) -> None:
    """A tool is called, and its result is answered, in OpenAI's shape over a server that speaks Ollama's."""
    if stream:
        with client.chat.completions.stream(model="small", messages=ASK, tools=TOOLS) as events:
            message: Any = events.get_final_completion().choices[0].message
    else:
        message = client.chat.completions.create(model="small", messages=ASK, tools=TOOLS).choices[0].message
    (called,) = message.tool_calls
    assert (called.function.name, set(json.loads(called.function.arguments))) == ("weather", {"city"})
    made = {"id": called.id, "type": "function", "function": {"name": "weather", "arguments": "{}"}}
    told = [
        *ASK,
        {"role": "assistant", "content": None, "tool_calls": [made]},
        {"role": "tool", "tool_call_id": called.id, "content": "It is."},
    ]
    answered = client.chat.completions.create(model="small", messages=told, tools=TOOLS)
    assert answered.choices[0].message.content


@pytest.mark.parametrize(
    ("choice", "name"),
    [("required", "weather"), ({"type": "function", "function": {"name": "now"}}, "now")],
    ids=["any", "one"],
)
@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
def test_a_tool_that_must_be_called(client: openai.OpenAI, choice: Any, name: str, stream: bool) -> None:
    """It is, over a server that cannot make its model do so; an answer without a call is an error, and no answer."""
    now: Any = {"type": "function", "function": {"name": "now", "parameters": {"type": "object"}}}
    asked: Any = {"model": "small", "tools": [*TOOLS, now], "tool_choice": choice}

    def called(messages: Any) -> list[str]:
        if not stream:
            message = client.chat.completions.create(messages=messages, **asked).choices[0].message
            return [call.function.name for call in message.tool_calls or ()]
        chunks = client.chat.completions.create(messages=messages, stream=True, **asked)
        pieces = [piece for chunk in chunks for piece in chunk.choices[0].delta.tool_calls or ()]
        return [piece.function.name for piece in pieces]

    assert called(ASK) == [name]
    made = {"id": "c1", "type": "function", "function": {"name": "now", "arguments": "{}"}}
    told = [{"role": "assistant", "tool_calls": [made]}, {"role": "tool", "tool_call_id": "c1", "content": "Noon."}]
    with pytest.raises(openai.APIError, match="called no tool"):
        called([*ASK, *told])


@pytest.mark.parametrize("model", ["small", "reason"])
def test_an_answer_goes_back(client: openai.OpenAI, model: str) -> None:
    """A conversation goes on with the answer's own message, as it came or as a dict: nothing of it is a fault."""
    message = client.chat.completions.create(model=model, messages=ASK).choices[0].message
    with client.chat.completions.stream(model=model, messages=ASK) as events:
        streamed = events.get_final_completion().choices[0].message
    for said in (message, message.to_dict(), message.model_dump(), streamed):
        told: Any = [*ASK, said, *ASK]
        assert client.chat.completions.create(model=model, messages=told).choices[0].message.content


def test_a_schema(client: openai.OpenAI) -> None:
    """response_format is passed on, and what comes back is held to it."""
    schema = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
    wanted: Any = {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema}}
    reply = client.chat.completions.create(model="small", messages=ASK, response_format=wanted)
    assert isinstance(json.loads(reply.choices[0].message.content or "")["n"], int)


def test_what_is_not_what_was_asked_for(client: openai.OpenAI) -> None:
    """An answer that fails its checks every time is an error, and not an answer."""
    asked: Any = [{"role": "user", "content": "x [[sim:badjson]]"}]
    with pytest.raises(openai.InternalServerError) as caught:
        client.chat.completions.create(model="category:strict", messages=asked)
    assert caught.value.status_code == 502


def test_a_completion(client: openai.OpenAI) -> None:
    """A prompt is completed, whole and streamed."""
    reply = client.completions.create(model="small", prompt="Once upon a time")
    assert reply.choices[0].text
    pieces = client.completions.create(model="small", prompt="Once upon a time", stream=True)
    assert "".join(piece.choices[0].text for piece in pieces) == reply.choices[0].text


def test_embeddings(client: openai.OpenAI) -> None:
    """Vectors come in order, as floats and in the form that the official client asks for by itself."""
    by_itself = client.embeddings.create(model="embed", input=["a", "b"])
    floats = client.embeddings.create(model="embed", input=["a", "b"], encoding_format="float")
    assert [one.index for one in by_itself.data] == [0, 1]
    for one, other in zip(by_itself.data, floats.data, strict=True):
        assert one.embedding == pytest.approx(other.embedding, rel=1e-6)


@pytest.mark.parametrize("tokens", [[1, 2], [[1, 2], [3]]], ids=["one text's", "several texts'"])
def test_tokens_are_no_texts(api: Api, tokens: list[Any]) -> None:
    """Tokens, which a client may make of texts by itself, are refused in words that say how to send the texts."""
    reply = api.ask("POST", "/v1/embeddings", json={"model": "embed", "input": tokens})
    error = reply.json()["error"]
    assert (reply.status_code, error["param"]) == (400, "input")
    assert "check_embedding_ctx_length=False" in error["message"]


def test_models(client: openai.OpenAI) -> None:
    """What `model` may be is listed, and what is listed can be looked up."""
    listed = {model.id for model in client.models.list()}
    assert {"auto", "small", "gemma3:4b", "category:summarize"} <= listed
    assert client.models.retrieve("category:summarize").id == "category:summarize"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("gpt-nonsense")


def test_nothing_is_wrong_with_nothing(api: Api) -> None:
    """A null is taken as if it were not there, whatever it is called, and a list of one prompt as that one."""
    body = {"model": "small", "prompt": ["Rome"], "suffix": None, "logprobs": None, "best_of": None, "stop": None}
    assert api.ask("POST", "/v1/completions", json=body).json()["choices"][0]["text"]


@pytest.mark.parametrize(
    ("body", "status", "param"),
    [
        ({"model": "gpt-nonsense"}, 404, "model"),
        ({"temperature": 9}, 400, "temperature"),
        ({"logprobs": True}, 400, "logprobs"),
        ({"nonsense": 1}, 400, "nonsense"),
        ({"n": 2}, 400, "n"),
        ({"messages": []}, 400, "messages"),
    ],
    ids=["model", "number", "log probabilities", "unknown", "several", "no messages"],
)
def test_what_is_wrong_is_told(api: Api, body: dict[str, Any], status: int, param: str | None) -> None:
    """Each fault has its status, the parameter, and a request id; the prompt is not repeated."""
    reply = api.ask("POST", "/v1/chat/completions", json={"model": "small", "messages": ASK} | body)
    error = reply.json()["error"]
    assert (reply.status_code, error["param"]) == (status, param)
    assert reply.headers["x-request-id"]
    assert "Rome" not in reply.text


def test_privacy_holds(client: openai.OpenAI, pool: TestPool) -> None:
    """What the policy sends to the cloud, and privacy keeps at home, is refused and counted."""
    said: Any = {"offload": {"touches": ["deploy/prod.env"], "app": "secret-test"}}
    with pytest.raises(openai.PermissionDeniedError) as caught:
        client.chat.completions.create(model="coder", messages=ASK, metadata=said)
    assert caught.value.code == "refused"
    (row,) = eventually(lambda: rows(pool, app="secret-test"), "its row is there")
    assert (row.ended, row.sent) == ("refused", False)


def test_one_that_is_away_costs_nothing(api: Api, servers: tuple[Server, Server]) -> None:
    """With one of two servers gone the other answers everything; with both gone there is a 503 at once."""
    body = {"model": "category:pair", "messages": ASK}
    servers[0].stop()
    try:
        replies = [api.ask("POST", "/v1/chat/completions", json=body) for _ in range(6)]
        assert {(one.status_code, one.headers["x-offload-provider"]) for one in replies} == {(200, "other")}
        servers[1].stop()
        try:
            eventually(lambda: api.ask("POST", "/v1/chat/completions", json=body).status_code == 503, "nobody is there")
            reply = api.ask("POST", "/v1/chat/completions", json=body)
            assert (reply.status_code, reply.headers["retry-after"]) == (503, "2")
        finally:
            servers[1].start()
    finally:
        servers[0].start()
    for provider in ("sim", "other"):
        eventually(
            lambda provider=provider: (  # type: ignore[misc]
                api.ask("POST", "/v1/chat/completions", json=body).headers.get("x-offload-provider") == provider
            ),
            f"{provider} is used again",
        )


def test_no_second_answer_after_the_first_piece(client: openai.OpenAI) -> None:
    """A stream that breaks in its middle is an error, and nobody else's answer is put behind it."""
    asked: Any = [{"role": "user", "content": "x [[sim:half]]"}]
    stream = client.chat.completions.create(model="category:pair", messages=asked, stream=True)
    with pytest.raises(openai.APIError):
        list(stream)


def test_a_client_that_goes_away(api: Api, servers: tuple[Server, Server]) -> None:
    """Whoever hangs up ends the call at the model server, streamed or not."""
    simulator = servers[0].simulator
    for stream in (False, True):
        body = {
            "model": "small",
            "stream": stream,
            "messages": [{"role": "user", "content": "x [[sim:delay=600]]"}],
        }
        patience = httpx.Timeout(5, read=0.5)
        with pytest.raises(httpx.ReadTimeout), httpx.Client(timeout=patience) as asking:
            asking.post(f"{api.url}/v1/chat/completions", json=body)
        eventually(lambda: simulator.stats()["in_flight"] == 0, "the call is closed")


def test_batches_are_not_waited_for(api: Api, pool: TestPool, servers: tuple[Server, Server]) -> None:
    """While a batch takes all that its worker may send, a chat is answered at once."""
    pool.worker("sim")
    batch = pool.submit({"id": str(i), "category": "summarize", "prompt": "x [[sim:delay=600]]"} for i in range(40))
    eventually(lambda: servers[0].simulator.stats()["in_flight"] >= 32, "the batch runs")
    answered = threading.Event()

    def ask() -> None:
        assert api.ask("POST", "/v1/chat/completions", json={"model": "small", "messages": ASK}).status_code == 200
        answered.set()

    threading.Thread(target=ask, daemon=True).start()
    eventually(answered.is_set, "the chat is answered", 20)
    assert pool.batch(batch).open == 40
    pool.cli("cancel", batch)
    pool.kill_workers()


def test_some_are_audited(client: openai.OpenAI, pool: TestPool) -> None:
    """An answer that is drawn is kept with its question, and gets its second opinion as a job's would."""
    pool.beat()
    client.chat.completions.create(model="category:watched", messages=ASK)

    def audited() -> Any:
        with pool.db.read() as c:
            return c.execute(select(audits).where(audits.c.category == "watched")).first()

    eventually(audited, "an audit is there")
