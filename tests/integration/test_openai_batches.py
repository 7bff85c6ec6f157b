"""Files and batches over HTTP; the official `openai` package is the judge (shared/contracts/openai-batch.md)."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.support.api import Api
from tests.support.lazily import Lazily
from tests.support.pool import TestPool, running, simulated
from tests.support.servers import Server
from tests.support.waiting import eventually

if TYPE_CHECKING:
    import openai
    from openai.types import Batch
else:
    openai = Lazily("openai")

OVER = {"completed", "failed", "expired", "cancelled"}


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    """A model server."""
    made = Server(slots=64)
    yield made
    made.close()


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory, server: Server) -> Iterator[TestPool]:
    """A whole pool."""
    config = simulated(server.url, in_flight=32)
    config["categories"] = {"once": {"class": "small", "attempts": 1}}
    with running(tmp_path_factory.mktemp("batches"), config) as made:
        made.up()
        yield made


@pytest.fixture(scope="module")
def api(pool: TestPool) -> Api:
    """Its API, open to this machine."""
    return Api(pool)


@pytest.fixture(scope="module")
def client(api: Api) -> Iterator[openai.OpenAI]:
    """The judge."""
    with api.client() as made:
        yield made


def chat(custom_id: str, text: str = "A note.", model: str = "small", **body: Any) -> dict[str, Any]:
    messages = [{"role": "user", "content": text}]
    return line(custom_id, "/v1/chat/completions", {"model": model, "messages": messages, **body})


def line(custom_id: str, url: str, body: dict[str, Any]) -> dict[str, Any]:
    return {"custom_id": custom_id, "method": "POST", "url": url, "body": body}


def uploaded(client: openai.OpenAI, lines: list[Any], name: str = "lines.jsonl") -> str:
    content = b"".join((one if isinstance(one, bytes) else json.dumps(one).encode()) + b"\n" for one in lines)
    return client.files.create(file=(name, content), purpose="batch").id


def created(client: openai.OpenAI, lines: list[Any], endpoint: Any = "/v1/chat/completions", **more: Any) -> Batch:
    return client.batches.create(
        input_file_id=uploaded(client, lines), endpoint=endpoint, completion_window="24h", **more
    )


def ended(client: openai.OpenAI, batch: Batch, within_s: float = 60.0) -> Batch:
    """The batch once it is over; whoever sees `completed` sees its files."""

    eventually(lambda: client.batches.retrieve(batch.id).status in OVER, f"{batch.id} is over", within_s)
    return client.batches.retrieve(batch.id)


def results(client: openai.OpenAI, file_id: str | None) -> list[dict[str, Any]]:
    if file_id is None:
        return []
    return [json.loads(one) for one in client.files.content(file_id).text.splitlines()]


# --- files ----------------------------------------------------------------------------------------------------


def test_a_file_comes_back_as_it_was(client: openai.OpenAI) -> None:
    """An uploaded file has OpenAI's fields, its bytes come back, and once deleted it is not there."""
    content = json.dumps(chat("a")).encode() + b"\n\n"
    made = client.files.create(file=("some.jsonl", content), purpose="batch")
    assert (made.object, made.bytes, made.filename, made.purpose) == ("file", len(content), "some.jsonl", "batch")
    assert (made.status, made.expires_at) == ("processed", made.created_at + 30 * 86_400)
    assert client.files.retrieve(made.id) == made
    assert client.files.content(made.id).content == content
    assert made in client.files.list(purpose="batch").data
    assert client.files.delete(made.id).model_dump() == {"id": made.id, "object": "file", "deleted": True}
    for look in (client.files.retrieve, client.files.content, client.files.delete):
        with pytest.raises(openai.NotFoundError):
            look(made.id)


def test_expires_after_is_heard(client: openai.OpenAI) -> None:
    """A file lives for as long as was asked, between an hour and 30 days."""
    made = client.files.create(
        file=("a.jsonl", b"{}\n"), purpose="batch", expires_after={"anchor": "created_at", "seconds": 3_600}
    )
    assert made.expires_at == made.created_at + 3_600
    with pytest.raises(openai.BadRequestError):
        client.files.create(
            file=("a.jsonl", b"{}\n"), purpose="batch", expires_after={"anchor": "created_at", "seconds": 10}
        )


@pytest.mark.parametrize(
    ("name", "content", "purpose"),
    [
        ("lines.txt", b"{}\n", "batch"),
        ("lines.jsonl", b"", "batch"),
        ("lines.jsonl", b"\n \n", "batch"),
        ("lines.jsonl", b"\x89PNG\r\n\x1a\n", "batch"),
        ("lines.jsonl", b"{}\n", "fine-tune"),
    ],
    ids=["its name", "empty", "blank", "no JSON at all", "another purpose"],
)
def test_what_is_no_batch_file_is_refused(client: openai.OpenAI, name: str, content: bytes, purpose: Any) -> None:
    """What cannot be a batch's file at all is refused when it is uploaded."""
    with pytest.raises(openai.BadRequestError):
        client.files.create(file=(name, content), purpose=purpose)


def test_lists_have_pages(client: openai.OpenAI) -> None:
    """Lists are walked by `after`, in either order, each file once."""
    made = [uploaded(client, [chat("a")], f"page{i}.jsonl") for i in range(5)]
    walked = [file.id for file in client.files.list(limit=2, order="asc", purpose="batch") if file.id in made]
    assert walked == sorted(made, key=lambda id_: (client.files.retrieve(id_).created_at, id_))
    page = client.files.list(limit=2)
    assert (len(page.data), page.has_more) == (2, True)


# --- a batch --------------------------------------------------------------------------------------------------


def test_a_batch_is_done(client: openai.OpenAI) -> None:
    """Every line is answered once, in a file that is there as soon as the batch is completed."""
    batch = created(client, [chat(f"line-{i}", f"Note {i}.") for i in range(40)], metadata={"for": "a test"})
    assert (batch.object, batch.status, batch.metadata) == ("batch", "validating", {"for": "a test"})
    assert (batch.output_file_id, batch.error_file_id, batch.errors) == (None, None, None)
    assert batch.expires_at == batch.created_at + 86_400
    over = ended(client, batch)
    assert (over.status, over.error_file_id, over.errors, over.model) == ("completed", None, None, "small")
    assert over.request_counts is not None
    assert over.request_counts.model_dump() == {"total": 40, "completed": 40, "failed": 0}
    assert over.in_progress_at is not None
    assert over.completed_at is not None
    assert batch.created_at <= over.in_progress_at <= over.completed_at
    assert over.usage is not None
    assert over.usage.total_tokens == over.usage.input_tokens + over.usage.output_tokens > 0
    found = results(client, over.output_file_id)
    assert Counter(one["custom_id"] for one in found) == Counter(f"line-{i}" for i in range(40))
    first = found[0]
    assert (first["error"], first["response"]["status_code"]) == (None, 200)
    body = openai.types.chat.ChatCompletion.model_validate(first["response"]["body"])
    assert body.choices[0].message.content
    assert (body.model, body.choices[0].finish_reason) == ("gemma3:4b", "stop")


def test_its_files_are_files(client: openai.OpenAI) -> None:
    """Output and error files are retrieved, listed, sized and deleted as any, and never change."""
    over = ended(client, created(client, [chat("good"), chat("bad", "x [[sim:500]]", model="category:once")]))
    assert over.output_file_id is not None
    assert over.error_file_id is not None
    for file_id in (over.output_file_id, over.error_file_id):
        shown = client.files.retrieve(file_id)
        content = client.files.content(file_id).content
        assert (shown.purpose, shown.bytes) == ("batch_output", len(content))
        assert client.files.content(file_id).content == content
        assert shown in client.files.list(purpose="batch_output").data
    client.files.delete(over.output_file_id)
    with pytest.raises(openai.NotFoundError):
        client.files.content(over.output_file_id)
    assert client.batches.retrieve(over.id).output_file_id is None
    assert results(client, over.error_file_id)


@pytest.mark.parametrize(
    ("endpoint", "body", "kind"),
    [
        ("/v1/completions", {"model": "small", "prompt": "A note."}, lambda: openai.types.Completion),
        ("/v1/embeddings", {"model": "embed", "input": ["a", "b"]}, lambda: openai.types.CreateEmbeddingResponse),
        ("/v1/responses", {"model": "small", "input": "A note."}, lambda: openai.types.responses.Response),
        (
            "/v1/responses",
            {
                "model": "auto",
                "instructions": "Be brief.",
                "input": [{"role": "user", "content": [{"type": "input_text", "text": "A note."}]}],
                "max_output_tokens": 200,
            },
            lambda: openai.types.responses.Response,
        ),
    ],
    ids=["completions", "embeddings", "responses", "a conversation"],
)
def test_each_endpoint_answers_in_its_own_shape(client: openai.OpenAI, endpoint: Any, body: Any, kind: Any) -> None:
    """The official types read every endpoint's answers."""
    over = ended(client, created(client, [line("a", endpoint, body)], endpoint))
    (found,) = results(client, over.output_file_id)
    answer = kind().model_validate(found["response"]["body"])
    match answer:
        case openai.types.CreateEmbeddingResponse():
            assert [one.index for one in answer.data] == [0, 1]
            assert len(answer.data[0].embedding) == len(answer.data[1].embedding) > 0
        case openai.types.responses.Response():
            assert answer.output_text
        case _:
            assert answer.choices[0].text


def test_every_line_failed(client: openai.OpenAI) -> None:
    """A batch of which every line failed is completed, without an output file, and its errors are HTTP's."""
    over = ended(client, created(client, [chat(str(i), "x [[sim:500]]", model="category:once") for i in range(3)]))
    assert (over.status, over.output_file_id) == ("completed", None)
    assert over.request_counts is not None
    assert over.request_counts.model_dump() == {"total": 3, "completed": 0, "failed": 3}
    found = results(client, over.error_file_id)
    assert {(one["error"], one["response"]["status_code"]) for one in found} == {(None, 500)}
    assert all(one["response"]["body"]["error"]["code"] == "http_500" for one in found)


def test_mixed_models(client: openai.OpenAI) -> None:
    """One file may ask for several classes, categories and models; each goes its own way."""
    lines = [
        chat("class", model="coder"),
        chat("category", model="category:classify"),
        chat("model", model="gemma4:26b"),
        chat("auto", model="auto"),
        chat("said", model="auto", metadata={"offload": {"category": "reason"}}),
    ]
    over = ended(client, created(client, lines))
    served = {one["custom_id"]: one["response"]["body"]["model"] for one in results(client, over.output_file_id)}
    assert served == {
        "class": "qwen2.5-coder:7b",
        "category": "gemma3:4b",
        "model": "gemma4:26b",
        "auto": "gemma3:4b",
        "said": "gemma4:26b",
    }


def test_policy_holds(client: openai.OpenAI) -> None:
    """What the policy takes away from the models at home, and privacy keeps from the cloud, is refused: 403."""
    said = {"offload": {"touches": ["deploy/prod.env"], "privacy": "local_only"}}
    over = ended(client, created(client, [chat("secret", model="coder", metadata=said), chat("fine")]))
    (refused,) = results(client, over.error_file_id)
    assert (refused["custom_id"], refused["response"]["status_code"]) == ("secret", 403)
    assert refused["response"]["body"]["error"]["code"] == "refused"


# --- what is wrong is told ------------------------------------------------------------------------------------

#: a line -> code, param, and words of the fault it has
FAULTS: dict[str, tuple[Any, str, str | None, str]] = {
    "no JSON": (b"{nonsense", "invalid_json_line", None, "This line is not parseable as valid JSON."),
    "a list": (b"[1]", "invalid_json_line", None, "not parseable"),
    "no custom_id": (
        {"method": "POST", "url": "/v1/chat/completions", "body": chat("a")["body"]},
        "missing_required_parameter",
        "custom_id",
        "Missing required parameter: 'custom_id'.",
    ),
    "no body": (
        {"custom_id": "x", "method": "POST", "url": "/v1/chat/completions"},
        "missing_required_parameter",
        "body",
        "Missing required parameter: 'body'.",
    ),
    "another endpoint": (
        line("x", "/v1/embeddings", {"model": "embed", "input": "a"}),
        "invalid_url",
        "url",
        "The URL provided for this request does not match the batch endpoint.",
    ),
    "a field of its own": (chat("own") | {"nonsense": 1}, "invalid_request", "nonsense", "nonsense: unknown field"),
    "an unknown model": (
        chat("x", model="gpt-nonsense"),
        "model_not_found",
        "body.model",
        "The provided model 'gpt-nonsense' is not supported by the Batch API.",
    ),
    "no model": (
        line("x", "/v1/chat/completions", {"messages": [{"role": "user", "content": "a"}]}),
        "invalid_request",
        "body.model",
        "Model parameter is required.",
    ),
    "no messages": (
        line("x", "/v1/chat/completions", {"model": "small"}),
        "invalid_request",
        "body.messages",
        "Messages parameter is required.",
    ),
    "a stream": (
        chat("x", stream=True),
        "streaming_unsupported",
        "body.stream",
        "Chat Completions: Streaming is not supported in the Batch API.",
    ),
    "a body as a string": (
        line("x", "/v1/chat/completions", "{}"),  # type: ignore[arg-type]
        "invalid_request",
        "body",
        "must be an object",
    ),
    "a long id": (chat("x" * 65), "invalid_request", "custom_id", "64"),
    "a used id": (chat("good"), "duplicate_custom_id", "custom_id", "duplicate of another request"),
    "a bad number": (chat("x", temperature=9), "invalid_request", "body.temperature", "less than or equal to 2"),
}


def test_every_fault_is_told_at_once(client: openai.OpenAI) -> None:
    """All lines are checked, each fault has its code, line, param and words, and nothing of the batch runs."""
    bad = [fault[0] for fault in FAULTS.values()]
    failed = ended(client, created(client, [chat("good"), b"", *bad]))
    assert failed.status == "failed"
    assert (failed.output_file_id, failed.error_file_id) == (None, None)
    assert failed.failed_at is not None
    assert failed.errors is not None
    found = {error.line: error for error in failed.errors.data or ()}
    for number, (_, code, param, words) in enumerate(FAULTS.values(), start=3):
        error = found[number]
        assert (error.code, error.param) == (code, param)
        assert words in (error.message or "")
    assert len(found) == len(FAULTS)


def test_a_file_that_is_not_there(client: openai.OpenAI) -> None:
    """A batch of an unknown file is made, and then fails."""
    batch = client.batches.create(
        input_file_id="file-nonsense", endpoint="/v1/chat/completions", completion_window="24h"
    )
    failed = ended(client, batch)
    assert failed.errors is not None
    assert failed.errors.data is not None
    (error,) = failed.errors.data
    assert (failed.status, error.code, error.param, error.line) == ("failed", "invalid_request", "file_id", None)
    assert (error.message or "").startswith("Cannot find file")


@pytest.mark.parametrize(
    ("wrong", "code", "param"),
    [
        ({"endpoint": "/v1/moderations"}, "invalid_value", "endpoint"),
        ({"completion_window": "1h"}, "invalid_value", "completion_window"),
        ({"metadata": {"a": 1}}, "invalid_type", "metadata.a"),
        ({"metadata": {str(i): "x" for i in range(17)}}, "invalid_value", "metadata"),
    ],
    ids=["endpoint", "window", "metadata", "much metadata"],
)
def test_what_is_refused_at_once(client: openai.OpenAI, wrong: Any, code: str, param: str) -> None:
    """What is wrong about the batch itself is a 400 with code and param."""
    asked: Any = {"input_file_id": "file-x", "endpoint": "/v1/chat/completions", "completion_window": "24h"} | wrong
    with pytest.raises(openai.BadRequestError) as caught:
        client.batches.create(**asked)
    assert (caught.value.code, caught.value.param) == (code, param)
    assert caught.value.request_id


@pytest.mark.parametrize("field", ["input_file_id", "endpoint", "completion_window", "metadata"])
def test_half_a_character(api: Api, field: str) -> None:
    """What Python reads as JSON and nobody can write again is a 400 that names the field."""
    asked: Any = {"input_file_id": "file-x", "endpoint": "/v1/chat/completions", "completion_window": "24h"}
    asked[field] = {"a": "\ud800"} if field == "metadata" else "\ud800"
    headers = {"content-type": "application/json"}
    answer = api.ask("POST", "/v1/batches", content=json.dumps(asked), headers=headers)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, field)


@pytest.mark.parametrize(
    ("charset", "name", "status"),
    [
        ("unicode_escape", rb"\ud800.jsonl", 400),
        ("utf-7", b"+2AA-.jsonl", 400),
        ("punycode", b"\xff-\xff.jsonl", 400),
        ("nonsense", b"lines.jsonl", 200),
        ("hex", b"lines.jsonl", 200),
    ],
)
def test_a_form_in_another_charset(api: Api, charset: str, name: bytes, status: int) -> None:
    """A file's name that cannot be kept is a 400 in OpenAI's shape, whatever charset the form says it is in."""
    part = b'--XBX\r\nContent-Disposition: form-data; name="%b"'
    form = (
        part % b"purpose" + b"\r\n\r\nbatch\r\n" + part % b"file" + b'; filename="%b"\r\n\r\n{}\r\n--XBX--\r\n' % name
    )
    headers = {"content-type": f"multipart/form-data; boundary=XBX; charset={charset}"}
    answer = api.ask("POST", "/v1/files", content=form, headers=headers)
    assert answer.status_code == status
    assert ("error" in answer.json()) == (status == 400)


def test_an_unknown_batch(client: openai.OpenAI) -> None:
    """A batch that is not there is a 404."""
    for ask in (client.batches.retrieve, client.batches.cancel):
        with pytest.raises(openai.NotFoundError):
            ask("batch_nonsense")


# --- cancelling -----------------------------------------------------------------------------------------------


def test_cancel(client: openai.OpenAI) -> None:
    """A cancelled batch keeps what was answered; its other lines are in the error file, and are not `failed`."""
    lines = [chat(f"quick-{i}") for i in range(3)] + [chat(f"slow-{i}", "x [[sim:delay=600]]") for i in range(40)]
    batch = created(client, lines)

    def has_answers() -> bool:
        counts = client.batches.retrieve(batch.id).request_counts
        return counts is not None and counts.completed == 3

    eventually(has_answers, "three are answered")
    assert client.batches.cancel(batch.id).status in ("cancelling", "cancelled")
    over = ended(client, batch)
    assert (over.status, client.batches.cancel(batch.id).status) == ("cancelled", "cancelled")
    assert over.cancelling_at is not None
    assert over.cancelled_at is not None
    assert over.request_counts is not None
    assert over.request_counts.model_dump() == {"total": 43, "completed": 3, "failed": 0}
    errors = results(client, over.error_file_id)
    assert {(one["response"], one["error"]["code"]) for one in errors} == {(None, "batch_cancelled")}
    answered = results(client, over.output_file_id)
    assert Counter(one["custom_id"] for one in [*answered, *errors]) == Counter(one["custom_id"] for one in lines)


def test_completed_cannot_be_cancelled(client: openai.OpenAI) -> None:
    """Cancelling what is completed is a 409 that the official client does not try again."""
    over = ended(client, created(client, [chat("a")]))
    with pytest.raises(openai.ConflictError) as caught:
        client.with_options(max_retries=5).batches.cancel(over.id)
    assert "Cannot cancel a batch with status 'completed'." in str(caught.value)
    assert caught.value.response.headers["x-should-retry"] == "false"


def test_lists_of_batches(client: openai.OpenAI) -> None:
    """Batches are listed the newest first, in pages."""
    made = [created(client, [chat("a")]).id for _ in range(3)]
    assert [batch.id for batch in client.batches.list(limit=3).data] == made[::-1]
    walked = []
    for batch in client.batches.list(limit=2):
        walked.append(batch.id)
        if batch.id == made[0]:
            break
    assert walked[:3] == made[::-1]


# --- other servers' bugs --------------------------------------------------------------------------------------


def test_the_same_request_twice(api: Api, client: openai.OpenAI) -> None:
    """With an Idempotency-Key a repeated create is the same batch, and another body under it a conflict."""
    file_id = uploaded(client, [chat("a")])
    asked: Any = {"input_file_id": file_id, "endpoint": "/v1/chat/completions", "completion_window": "24h"}
    headers = {"Idempotency-Key": "one"}
    first = client.batches.create(**asked, extra_headers=headers)
    assert client.batches.create(**asked, extra_headers=headers).id == first.id
    with pytest.raises(openai.ConflictError):
        client.batches.create(**asked, metadata={"a": "b"}, extra_headers=headers)


@pytest.mark.slow
def test_kill_while_it_is_checked(api: Api, client: openai.OpenAI, pool: TestPool) -> None:
    """An API that dies after its answer loses no batch and runs none twice: the next one goes on."""
    made = [created(client, [chat(f"{n}-{i}") for i in range(25)]) for n in range(4)]
    api.kill()
    api.start()
    for n, batch in enumerate(made):
        over = ended(client, batch)
        assert (over.status, over.error_file_id) == ("completed", None)
        found = Counter(one["custom_id"] for one in results(client, over.output_file_id))
        assert found == Counter(f"{n}-{i}" for i in range(25))


def test_what_is_there_so_far(api: Api, client: openai.OpenAI) -> None:
    """While a batch runs, its output so far can be had."""
    batch = created(client, [chat("quick"), chat("slow", "x [[sim:delay=600]]")])
    path = f"/v1/batches/{batch.id}/output"
    eventually(lambda: api.ask("GET", path).text, "one line is there")
    assert [json.loads(one)["custom_id"] for one in api.ask("GET", path).text.splitlines()] == ["quick"]
    client.batches.cancel(batch.id)


def test_beyond_this_machine_it_wants_keys(pool: TestPool) -> None:
    """Without keys the API refuses to listen on any address but this machine's."""
    ran = pool.cli("api", "--address", "0.0.0.0", "--port", "0")
    assert ran.code == 2
    assert "offload keys create" in ran.stderr


def test_a_page_from_elsewhere(api: Api) -> None:
    """While it is open, nobody reaches it by another name: a web page's own name may point here."""
    odd = [{"origin": "http://["}, {"host": "evil.example:"}, {"host": "evil.example:x"}, {"host": "a b"}]
    for said in ({"host": "evil.example"}, {"origin": "https://evil.example"}, {"origin": "null"}, *odd):
        assert api.ask("GET", "/v1/batches", headers=said).status_code == 403
    assert api.ask("GET", "/v1/batches", headers={"origin": "http://localhost:3000"}).status_code == 200


def test_no_files_of_the_machine(api: Api, tmp_path: Path) -> None:
    """An id is no path: what is not a file of ours is not there."""
    for id_ in ("..%2F..%2Foffload.yaml", "....//offload.yaml", "%00", "file-../../ledger.db"):
        assert api.ask("GET", f"/v1/files/{id_}/content").status_code == (400 if id_ == "%00" else 404)
