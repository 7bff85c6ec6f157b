"""Messages and their batches; the official `anthropic` package is the judge (shared/contracts/anthropic-batches.md)."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from sqlalchemy import select, update

from tasks.tables import Batch, CallRow
from tests.support.api import Api
from tests.support.lazily import Lazily
from tests.support.pool import TestPool, running, simulated
from tests.support.servers import Server
from tests.support.waiting import eventually

if TYPE_CHECKING:
    import anthropic
    from anthropic.types.messages import MessageBatch, MessageBatchIndividualResponse
else:
    anthropic = Lazily("anthropic")

batches = Batch.__table__  # type: ignore[attr-defined]
calls = CallRow.__table__  # type: ignore[attr-defined]

ASK: Any = [{"role": "user", "content": "Is it raining in Rome?"}]
TOOLS: Any = [
    {
        "name": "weather",
        "description": "Say whether it rains.",
        "input_schema": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    }
]
PNG = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    """A model server."""
    made = Server(slots=64)
    yield made
    made.close()


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory, server: Server) -> Iterator[TestPool]:
    """A whole pool; class `other` speaks OpenAI's protocol."""
    config = simulated(server.url, in_flight=32)
    config["providers"].append({"name": "oai", "kind": "openai", "url": f"{server.url}/v1", "reach": "local"})
    config["classes"]["other"] = {"serve": [{"provider": "oai", "model": "gemma4:26b"}], "think": True}
    config["classes"]["tiny"] = {"serve": [{"provider": "sim", "model": "gemma3:4b"}], "options": {"num_ctx": 256}}
    config["categories"] = {"once": {"class": "small", "attempts": 1}, "other": {"class": "other"}}
    config["aliases"] = {"claude-mine-*": "category:reason"}
    with running(tmp_path_factory.mktemp("anthropic"), config) as made:
        made.up()
        yield made


@pytest.fixture(scope="module")
def api(pool: TestPool) -> Api:
    """Its API, open to this machine until a key is made."""
    return Api(pool)


def judge(api: Api, key: str = "none") -> anthropic.Anthropic:
    return anthropic.Anthropic(base_url=api.url, api_key=key, max_retries=0)


@pytest.fixture(scope="module")
def client(api: Api) -> Iterator[anthropic.Anthropic]:
    """The judge."""
    with judge(api) as made:
        yield made


def words(message: Any) -> str:
    return "".join(block.text for block in message.content if block.type == "text")


# --- messages -------------------------------------------------------------------------------------------------


def test_a_message(client: anthropic.Anthropic, pool: TestPool) -> None:
    """A message is answered in Anthropic's shape; it and the headers name what served, and telemetry has the call."""
    raw = client.messages.with_raw_response.create(
        model="claude-opus-9",
        max_tokens=100,
        system=[{"type": "text", "text": "Be brief.", "cache_control": {"type": "ephemeral"}}],
        messages=ASK,
        metadata={"user_id": "somebody"},
        extra_headers={"X-Offload-App": "a-test"},
    )
    message = raw.parse()
    assert message.id.startswith("msg_")
    assert words(message)
    assert (message.type, message.role, message.model) == ("message", "assistant", "qwen2.5-coder:7b")
    assert (message.stop_reason, message.stop_sequence) == ("end_turn", None)
    assert message.usage.input_tokens > 0 < message.usage.output_tokens
    assert raw.request_id == raw.headers["x-request-id"]
    named = {name: raw.headers[f"x-offload-{name}"] for name in ("provider", "model", "class", "attempts")}
    assert named == {"provider": "sim", "model": "qwen2.5-coder:7b", "class": "coder", "attempts": "1"}

    def row() -> Any:
        with pool.db.read() as c:
            return c.execute(select(calls).where(calls.c.app == "a-test")).first()

    kept = eventually(row, "its row is there")
    assert (kept.ended, kept.validated, kept.tokens_out) == ("done", True, message.usage.output_tokens)


@pytest.mark.parametrize(
    ("asked", "served"),
    [
        ("small", "gemma3:4b"),
        ("auto", "gemma3:4b"),
        ("gemma4:26b", "gemma4:26b"),
        ("category:code", "qwen2.5-coder:7b"),
        ("claude-haiku-9", "gemma3:4b"),
        ("claude-mine-9", "gemma4:26b"),
    ],
)
def test_names_of_models(client: anthropic.Anthropic, asked: str, served: str) -> None:
    """A class, a category, a model, auto, or a name that an alias gives a meaning; the answer says what served."""
    message = client.messages.create(model=asked, max_tokens=1_000, messages=ASK)
    assert message.model == served


@pytest.mark.parametrize("model", ["category:reason", "other"], ids=["Ollama", "OpenAI"])
def test_a_stream(client: anthropic.Anthropic, model: str) -> None:
    """A streamed message adds up to what is answered whole: thoughts, text, and counts at its end."""
    whole = client.messages.create(model=model, max_tokens=1_000, messages=ASK)
    with client.messages.stream(model=model, max_tokens=1_000, messages=ASK) as stream:
        seen = [event.type for event in stream]
        message = stream.get_final_message()
    assert [block.type for block in message.content] == ["thinking", "text"]
    assert words(message) == words(whole)
    assert message.content[0] == whole.content[0]
    assert (message.model, message.stop_reason) == ("gemma4:26b", "end_turn")
    assert message.usage.input_tokens == whole.usage.input_tokens
    assert message.usage.output_tokens == whole.usage.output_tokens
    assert (seen[0], seen[-2], seen[-1]) == ("message_start", "message_delta", "message_stop")


def test_events(api: Api) -> None:
    """On the wire every event has its name, a ping follows the beginning, and headers name what serves."""
    body = {"model": "small", "max_tokens": 100, "messages": ASK, "stream": True}
    reply = api.ask("POST", "/v1/messages?beta=true", json=body)
    events = re.findall(r"^event: (.*)\ndata: (.*)\n$", reply.text, re.M)
    assert [name for name, _ in events][:3] == ["message_start", "ping", "content_block_start"]
    assert all(json.loads(data)["type"] == name for name, data in events)
    assert reply.headers["content-type"].startswith("text/event-stream")
    assert (reply.headers["x-offload-provider"], reply.headers["x-offload-model"]) == ("sim", "gemma3:4b")


@pytest.mark.parametrize("model", ["small", "other"], ids=["Ollama", "OpenAI"])
@pytest.mark.parametrize("streamed", [False, True], ids=["whole", "streamed"])
def test_a_tool_is_used(client: anthropic.Anthropic, model: str, streamed: bool) -> None:
    """An agent's loop of two turns: the model calls a tool, and answers when it has the result."""
    conversation: list[Any] = list(ASK)
    asked: Any = {"model": model, "max_tokens": 1_000, "tools": TOOLS, "tool_choice": {"type": "auto"}}
    stops = []
    for _ in range(2):
        if streamed:
            with client.messages.stream(messages=conversation, **asked) as stream:
                message: Any = stream.get_final_message()
        else:
            message = client.messages.create(messages=conversation, **asked)
        stops.append(message.stop_reason)
        conversation.append({"role": "assistant", "content": message.content})
        results = []
        for block in message.content:
            if block.type == "tool_use":
                assert (block.name, list(block.input)) == ("weather", ["city"])
                results.append({"type": "tool_result", "tool_use_id": block.id, "content": "It is."})
        conversation.append({"role": "user", "content": results})
    assert stops == ["tool_use", "end_turn"]
    assert words(message)


def test_the_official_loop(client: anthropic.Anthropic) -> None:
    """The package's own runner of tools, streamed, with the fields that agents send, comes to its end."""
    asked = []

    @anthropic.beta_tool
    def weather(city: str) -> str:
        """Say whether it rains.

        Args:
            city: where
        """
        asked.append(city)
        return "It is."

    runner = client.beta.messages.tool_runner(
        model="claude-sonnet-9",
        max_tokens=32_000,
        tools=[weather],
        messages=ASK,
        stream=True,
        betas=["context-management-2025-06-27"],
        thinking={"type": "adaptive"},
        output_config={"effort": "high"},
        context_management={"edits": [{"type": "clear_thinking_20251015", "keep": "all"}]},
    )
    stops = [stream.get_final_message().stop_reason for stream in runner]
    assert stops == ["tool_use", "end_turn"]
    assert len(asked) == 1


def test_an_image_and_a_schema(client: anthropic.Anthropic) -> None:
    """Images go to the server as they came, and an answer of a schema is held to it."""
    image: Any = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": PNG}}
    schema: Any = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
    message = client.messages.create(
        model="small",
        max_tokens=100,
        messages=[{"role": "user", "content": [image, {"type": "text", "text": "How many?"}]}],
        output_config={"format": {"type": "json_schema", "schema": schema}},
    )
    assert isinstance(json.loads(words(message))["n"], int)


def test_limits_of_an_answer(client: anthropic.Anthropic) -> None:
    """An answer that outgrows max_tokens says so, whole and streamed."""
    asked: Any = {"model": "small", "max_tokens": 3, "messages": ASK}
    assert client.messages.create(**asked).stop_reason == "max_tokens"
    with client.messages.stream(**asked) as stream:
        assert stream.get_final_message().stop_reason == "max_tokens"


def test_count_tokens(client: anthropic.Anthropic) -> None:
    """A prompt's tokens are estimated by its characters, tools and system included; nothing is sent."""
    few = client.messages.count_tokens(model="small", messages=[{"role": "user", "content": "x" * 350}])
    more = client.messages.count_tokens(
        model="small", messages=[{"role": "user", "content": "x" * 350}], tools=TOOLS, system="y" * 350
    )
    assert 100 <= few.input_tokens < 110
    assert more.input_tokens > 200
    with pytest.raises(anthropic.NotFoundError):
        client.messages.count_tokens(model="nonsense", messages=ASK)


@pytest.mark.parametrize(
    ("body", "kind", "field"),
    [
        ({"model": "nonsense"}, "NotFoundError", "model"),
        ({"messages": []}, "BadRequestError", "messages"),
        ({"max_tokens": 0}, "BadRequestError", "max_tokens"),
        ({"temperature": 9}, "BadRequestError", "temperature"),
        ({"tools": [{"type": "web_search_20250305", "name": "web_search"}]}, "BadRequestError", "tools.0.type"),
        (
            {"model": "tiny", "messages": [{"role": "user", "content": "x " * 1_000}]},
            "BadRequestError",
            "prompt is too long",
        ),
    ],
    ids=["model", "no messages", "no tokens", "number", "a tool of Anthropic's servers", "too long"],
)
def test_what_is_wrong_is_told(client: anthropic.Anthropic, body: Any, kind: str, field: str) -> None:
    """Each fault has its kind, its field and a request id; nothing of the prompt is repeated."""
    asked: Any = {"model": "small", "max_tokens": 10, "messages": ASK}
    with pytest.raises(getattr(anthropic, kind)) as caught:
        client.messages.create(**{name: asked[name] for name in asked if name not in body}, **_said(asked, body))
    error: Any = caught.value
    assert error.body["error"]["message"].startswith(f"{field}: ")
    assert error.body["request_id"] == error.request_id
    assert "Rome" not in str(error.body)


@pytest.mark.parametrize("path", ["/v1/messages", "/v1/messages/count_tokens"])
@pytest.mark.parametrize("levels", [300, 400])
def test_a_tool_that_nests_too_deep(api: Api, path: str, levels: int) -> None:
    """A tool whose schema could not be written again is a fault, streamed or only counted."""
    schema = '{"a":' * levels + "{}" + "}" * levels
    asked = {"model": "small", "max_tokens": 10, "messages": ASK, "stream": True, "tools": [{"name": "deep"}]}
    content = json.dumps(asked).replace('"deep"', f'"deep", "input_schema": {schema}')
    answer = api.ask("POST", path, content=content)
    assert answer.status_code == 400
    assert answer.json()["error"]["message"].startswith("tools: nests deeper than")


def _said(asked: Any, body: Any) -> dict[str, Any]:
    """What the package takes as it is, and the rest as `extra_body`."""
    known = {name: body[name] for name in body if name in asked}
    return known | {"extra_body": {name: body[name] for name in body if name not in asked}}


def test_privacy_holds(client: anthropic.Anthropic) -> None:
    """What the policy sends to the cloud, and privacy keeps at home, is refused."""
    said: Any = {"offload": {"touches": ["deploy/prod.env"]}}
    with pytest.raises(anthropic.PermissionDeniedError) as caught:
        client.messages.create(model="coder", max_tokens=10, messages=ASK, metadata=said)
    assert caught.value.type == "permission_error"


def test_a_stream_that_breaks(client: anthropic.Anthropic) -> None:
    """A stream that breaks in its middle ends in an error event, which the package raises."""
    asked: Any = [{"role": "user", "content": "x [[sim:half]]"}]
    stream = client.messages.create(model="category:once", max_tokens=100, messages=asked, stream=True)
    with pytest.raises(anthropic.APIStatusError) as caught:
        list(stream)
    assert caught.value.type == "api_error"


def test_a_client_that_goes_away(api: Api, server: Server) -> None:
    """Whoever hangs up ends the call at the model server, streamed or not."""
    for stream in (False, True):
        text = "x [[sim:delay=600]]"
        body = {"model": "small", "max_tokens": 9, "stream": stream, "messages": [{"role": "user", "content": text}]}
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(f"{api.url}/v1/messages", json=body, timeout=httpx.Timeout(5, read=0.5))
        eventually(lambda: server.simulator.stats()["in_flight"] == 0, "the call is closed")


# --- batches --------------------------------------------------------------------------------------------------


def request(custom_id: str, text: str = "A note.", **params: Any) -> Any:
    asked = {"model": "small", "max_tokens": 100, "messages": [{"role": "user", "content": text}]}
    return {"custom_id": custom_id, "params": asked | params}


def ended(client: anthropic.Anthropic, batch: MessageBatch, within_s: float = 60.0) -> MessageBatch:
    def over() -> bool:
        return client.messages.batches.retrieve(batch.id).processing_status == "ended"

    eventually(over, f"{batch.id} has ended", within_s)
    return client.messages.batches.retrieve(batch.id)


def results(client: anthropic.Anthropic, batch: MessageBatch) -> dict[str, MessageBatchIndividualResponse]:
    found = list(client.messages.batches.results(batch.id))
    assert set(Counter(one.custom_id for one in found).values()) == {1}
    return {one.custom_id: one for one in found}


def counts(batch: MessageBatch) -> dict[str, int]:
    return {name: n for name, n in batch.request_counts.model_dump().items() if n}


def test_a_batch(client: anthropic.Anthropic) -> None:
    """Every request is answered once, and whoever sees that the batch has ended sees its results."""
    made = client.messages.batches.create(requests=[request(f"r{i}", f"Note {i}.") for i in range(40)])
    assert re.fullmatch(r"msgbatch_[0-9a-f]{16}", made.id)
    assert (made.type, made.cancel_initiated_at, made.archived_at) == ("message_batch", None, None)
    assert sum(counts(made).values()) == 40
    assert made.expires_at - made.created_at == timedelta(hours=24)
    over = ended(client, made)
    assert counts(over) == {"succeeded": 40}
    assert over.ended_at is not None
    assert made.created_at <= over.ended_at
    found = results(client, over)
    assert set(found) == {f"r{i}" for i in range(40)}
    one: Any = found["r7"].result
    assert (one.type, one.message.model, one.message.stop_reason) == ("succeeded", "gemma3:4b", "end_turn")
    assert words(one.message)
    assert one.message.usage.output_tokens > 0


def test_what_came_of_each(client: anthropic.Anthropic) -> None:
    """Requests of one batch succeed and fail each for itself, an error in Anthropic's words."""
    said = {"offload": {"touches": ["deploy/prod.env"]}}
    asked = [
        request("fine", model="claude-opus-9"),
        request("broken", "x [[sim:500]]", model="category:once"),
        request("refused", model="coder", metadata=said),
    ]
    over = ended(client, client.messages.batches.create(requests=asked))
    assert counts(over) == {"succeeded": 1, "errored": 2}
    found: Any = {name: one.result for name, one in results(client, over).items()}
    assert found["fine"].message.model == "qwen2.5-coder:7b"
    assert (found["broken"].type, found["broken"].error.error.type) == ("errored", "api_error")
    assert (found["refused"].type, found["refused"].error.error.type) == ("errored", "permission_error")


def test_cancel(client: anthropic.Anthropic) -> None:
    """All counts but `processing` stay zero until a batch has ended; cancelled twice, it keeps what was answered."""
    slow = [request(f"slow-{i}", "x [[sim:delay=600]]") for i in range(3)]
    made = client.messages.batches.create(requests=[request("quick"), *slow])
    with pytest.raises(anthropic.AnthropicError, match="results_url"):
        client.messages.batches.results(made.id)
    with pytest.raises(anthropic.BadRequestError):
        client.messages.batches.delete(made.id)
    output = f"/batches/{made.id.removeprefix('msg')}/results"
    eventually(lambda: client.get(output, cast_to=str), "the quick one is answered")
    running = client.messages.batches.retrieve(made.id)
    assert (running.processing_status, counts(running)) == ("in_progress", {"processing": 4})
    assert (running.ended_at, running.results_url) == (None, None)
    cancelled = client.messages.batches.cancel(made.id)
    assert cancelled.cancel_initiated_at is not None
    again = client.messages.batches.cancel(made.id)
    assert again.cancel_initiated_at == cancelled.cancel_initiated_at
    over = ended(client, made)
    assert counts(over) == {"succeeded": 1, "canceled": 3}
    assert {name: one.result.type for name, one in results(client, over).items()} == {
        "quick": "succeeded",
        "slow-0": "canceled",
        "slow-1": "canceled",
        "slow-2": "canceled",
    }
    gone = client.messages.batches.delete(made.id)
    assert gone.model_dump() == {"id": made.id, "type": "message_batch_deleted"}
    with pytest.raises(anthropic.NotFoundError):
        client.messages.batches.retrieve(made.id)


def test_expired(client: anthropic.Anthropic, pool: TestPool) -> None:
    """Requests whose day is over before they are answered are expired."""
    made = client.messages.batches.create(requests=[request("late", "x [[sim:delay=600]]")])
    mine = batches.c.id == made.id.removeprefix("msg")
    with pool.db.write() as c:
        c.execute(update(batches).where(mine).values(deadline_at=pool.db.now(c) - 1))
    over = ended(client, made)
    assert counts(over) == {"expired": 1}
    assert results(client, over)["late"].result.type == "expired"


def test_lists(client: anthropic.Anthropic) -> None:
    """Lists are walked by the package, from the newest on and back again."""
    made = [client.messages.batches.create(requests=[request("a")]).id for _ in range(5)][::-1]
    assert [batch.id for batch in client.messages.batches.list(limit=2)][:5] == made
    page = client.messages.batches.list(limit=2, after_id=made[0])
    assert ([batch.id for batch in page.data], page.has_more) == (made[1:3], True)
    assert (page.first_id, page.last_id) == (made[1], made[2])
    newer = client.messages.batches.list(limit=2, before_id=made[3])
    assert ([batch.id for batch in newer.data], newer.has_more) == (made[1:3], True)
    assert [batch.id for batch in client.messages.batches.list(before_id=made[2])] == made[:2]
    wrong: list[Any] = [{"limit": 0}, {"limit": 1001}, {"after_id": "msgbatch_0000000000000000"}, {"before_id": "x"}]
    for cursor in wrong:
        with pytest.raises(anthropic.BadRequestError):
            client.messages.batches.list(**cursor)


def test_a_fault_in_a_request(client: anthropic.Anthropic) -> None:
    """The first fault of any request is told with its field, and nothing is submitted."""
    newest = [batch.id for batch in client.messages.batches.list(limit=1).data]
    for faulty, field in (
        (request("x" * 65), "requests.1.custom_id"),
        (request("a"), "requests.1.custom_id"),
        (request("b", model="nonsense"), "requests.1.params.model"),
        (request("b", tools=TOOLS), "requests.1.params.tools"),
    ):
        with pytest.raises(anthropic.BadRequestError) as caught:
            client.messages.batches.create(requests=[request("a"), faulty])
        assert caught.value.body["error"]["message"].startswith(f"{field}: ")  # type: ignore[index]
    assert [batch.id for batch in client.messages.batches.list(limit=1).data] == newest


def test_an_api_that_dies(api: Api, client: anthropic.Anthropic) -> None:
    """A batch outlives the process that took it, and its results are at the next one's address."""
    made = client.messages.batches.create(requests=[request(f"r{i}") for i in range(20)])
    api.kill()
    api.start()
    assert set(results(client, ended(client, made))) == {f"r{i}" for i in range(20)}


# --- keys; from here on nobody gets in without -----------------------------------------------------------------


def test_keys(api: Api, pool: TestPool) -> None:
    """Without a key there is a 401 in Anthropic's shape; one key never sees another's batches."""
    one, other = (pool.cli("keys", "create", name).stdout.decode().strip() for name in ("one", "other"))
    asked: Any = {"model": "small", "max_tokens": 100, "messages": ASK}
    eventually(lambda: api.ask("POST", "/v1/messages", json=asked).status_code == 401, "keys are needed")
    with judge(api, "nonsense") as nobody, pytest.raises(anthropic.AuthenticationError) as caught:
        nobody.messages.create(**asked)
    assert caught.value.type == "authentication_error"
    with judge(api, one) as mine, judge(api, other) as others:
        made = mine.messages.batches.create(requests=[request("a")])
        ended(mine, made)
        batch = others.messages.batches
        for look in (batch.retrieve, batch.cancel, batch.delete, batch.results):
            with pytest.raises(anthropic.NotFoundError):
                look(made.id)
        assert made.id not in [b.id for b in batch.list()]
        assert made.id in [b.id for b in mine.messages.batches.list()]
        path = f"/v1/messages/batches/{made.id}/results"
        assert api.ask("GET", path, headers={"x-api-key": other}).status_code == 404
        assert "a" in results(mine, made)
    with anthropic.Anthropic(base_url=api.url, auth_token=one, max_retries=0) as bearer:
        assert words(bearer.messages.create(**asked))
