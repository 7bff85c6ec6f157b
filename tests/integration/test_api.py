"""The HTTP API beside OpenAI's own paths: keys, limits, the pool's own words, and requests nobody should make."""

from __future__ import annotations

import json
import re
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPResponse
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from sqlalchemy import update

from api.http.heads import MOST_HEAD
from tasks.tables import ApiKey
from tests.support.api import Api
from tests.support.cli import jsonl
from tests.support.lazily import Lazily
from tests.support.pool import TestPool, running, simulated
from tests.support.servers import Server
from tests.support.waiting import eventually

if TYPE_CHECKING:
    import openai
else:
    openai = Lazily("openai")

#: requests of each kind that are made up
STRANGE = 10
#: submits at once, more than an event loop has threads of its own
MANY = 40
LINES = [{"id": f"line-{i}", "category": "summarize", "prompt": f"Note {i}."} for i in range(5)]


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    """A model server."""
    made = Server(slots=64)
    yield made
    made.close()


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory, server: Server) -> Iterator[TestPool]:
    """A whole pool."""
    with running(tmp_path_factory.mktemp("api"), simulated(server.url, in_flight=32)) as made:
        made.up()
        yield made


@pytest.fixture(scope="module")
def open_api(pool: TestPool) -> Iterator[Api]:
    """Its API before any key is made."""
    api = Api(pool)
    yield api
    api.kill()


@pytest.fixture(scope="module")
def keys(open_api: Api, pool: TestPool) -> dict[str, str]:
    """Keys of several kinds; from now on nobody gets in without."""
    wanted: dict[str, tuple[str, ...]] = {
        "one": (),
        "other": (),
        "reader": ("--scope", "read"),
        "admin": ("--scope", "admin"),
        "seldom": ("--per-minute", "3"),
        "few": ("--most-queued", "7"),
        "private": ("--privacy", "local_only"),
    }
    made = {
        name: pool.cli("keys", "create", name, *options).stdout.decode().strip() for name, options in wanted.items()
    }
    eventually(lambda: open_api.ask("GET", "/v1/models").status_code == 401, "keys are needed")
    return made


@pytest.fixture(scope="module")
def api(open_api: Api, keys: dict[str, str]) -> Api:
    """The API, closed to those without a key."""
    return open_api


def bearer(key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"}


def result_ids(api: Api, path: str, asked: str = "") -> list[str]:
    return [json.loads(line)["id"] for line in api.ask("GET", f"{path}/results{asked}").text.splitlines()]


@pytest.mark.slow
def test_jobs_without_keys(open_api: Api) -> None:
    """Lines are submitted, watched event by event, and read from where one likes; all on an API that is still open."""
    made = open_api.ask("POST", "/jobs?name=mine&priority=3", content=jsonl(LINES)).json()
    assert (made["jobs"], made["new"]) == (5, True)
    path = f"/batches/{made['id']}"
    told = [json.loads(one) for one in re.findall(r"^data: (.*)$", open_api.ask("GET", f"{path}/events").text, re.M)]
    assert (told[-1]["state"], told[-1]["done"]) == ("finished", 5)
    shown = open_api.ask("GET", path).json()
    assert (shown["name"], shown["priority"], shown["total"]) == ("mine", 3, 5)
    whole = result_ids(open_api, path)
    assert sorted(whole) == [line["id"] for line in LINES]
    assert result_ids(open_api, path, "?offset=1&limit=3") == whole[1:4]


@pytest.mark.slow
def test_a_running_batch_is_read_in_pieces(open_api: Api) -> None:
    """Read on from the number of lines read so far, a batch that runs gives every line once and none twice."""
    slow = [{"id": f"line-{i}", "category": "summarize", "prompt": f"{i} [[sim:delay={i * 7 % 3}]]"} for i in range(60)]
    path = f"/batches/{open_api.ask('POST', '/jobs', content=jsonl(slow)).json()['id']}"
    found: list[str] = []

    def read_on() -> bool:
        is_over = open_api.ask("GET", path).json()["state"] == "finished"
        more = result_ids(open_api, path, f"?offset={len(found)}&limit=7")
        found.extend(more)
        return is_over and not more

    eventually(read_on, "it is read to its end", 60)
    assert found == result_ids(open_api, path)
    assert sorted(found) == sorted(line["id"] for line in slow)


def test_metrics(open_api: Api) -> None:
    """Prometheus reads here what the exporter says."""
    text = open_api.ask("GET", "/metrics").text
    assert "offload_ledger_up 1.0" in text
    assert "offload_provider_limit" in text


def test_a_fault_in_a_line(open_api: Api) -> None:
    """Every fault is told with its line, and nothing is submitted."""
    bad = [*LINES, {"category": "nonsense", "prompt": "x"}, {"category": "summarize"}]
    reply = open_api.ask("POST", "/jobs", content=jsonl(bad))
    message = reply.json()["error"]["message"]
    assert reply.status_code == 400
    assert "line 6: category: unknown category" in message
    assert "line 7:" in message
    assert "nothing was submitted" in message


@pytest.mark.slow
def test_pause_resume_retry(open_api: Api, pool: TestPool) -> None:
    """A batch is paused, resumed, cancelled, and its lines submitted again."""
    slow = [line | {"prompt": "x [[sim:delay=600]]"} for line in LINES]
    batch = open_api.ask("POST", "/jobs", content=jsonl(slow)).json()["id"]
    assert open_api.ask("POST", f"/batches/{batch}/pause").json()["paused"] is True
    assert open_api.ask("POST", f"/batches/{batch}/resume").json()["paused"] is False
    assert open_api.ask("POST", f"/batches/{batch}/cancel").status_code == 200
    eventually(lambda: pool.batch(batch).state == "cancelled", "it is cancelled")
    again = open_api.ask("POST", f"/batches/{batch}/retry").json()
    assert (again["total"], again["id"] != batch) == (5, True)
    open_api.ask("POST", f"/batches/{again['id']}/cancel")


def test_the_same_lines_twice(open_api: Api) -> None:
    """With an Idempotency-Key the same lines are the same batch, and others a conflict."""
    headers = {"idempotency-key": "lines"}
    first = open_api.ask("POST", "/jobs", content=jsonl(LINES), headers=headers).json()
    second = open_api.ask("POST", "/jobs", content=jsonl(LINES), headers=headers).json()
    assert (second["id"], second["new"]) == (first["id"], False)
    assert open_api.ask("POST", "/jobs", content=jsonl(LINES[:2]), headers=headers).status_code == 409


# --- keys -----------------------------------------------------------------------------------------------------


def test_a_key_is_shown_once(keys: dict[str, str], pool: TestPool) -> None:
    """Of a key the ledger and the list have its first characters, and nothing that it could be made of."""
    listed = pool.cli("keys", "list", "--json").stdout.decode()
    kept = (pool.home / "ledger.db").read_bytes() + (pool.home / "ledger.db-wal").read_bytes()
    for key in keys.values():
        assert key[:12] in listed
        assert key not in listed
        assert key.encode() not in kept


@pytest.mark.parametrize("headers", [{}, bearer("nonsense"), {"authorization": "Basic eDp5"}, bearer("ofl_é")])
def test_nobody_without_a_key(api: Api, headers: dict[str, str]) -> None:
    """Without a key that is in force there is a 401 in OpenAI's shape."""
    encoded = {name: value.encode("utf-8") for name, value in headers.items()}
    reply = api.ask("GET", "/v1/models", headers=encoded)
    assert (reply.status_code, reply.json()["error"]["type"]) == (401, "authentication_error")


def test_either_way_of_giving_it(api: Api, keys: dict[str, str]) -> None:
    """A key is taken as OpenAI's clients send it and as Anthropic's do."""
    for headers in (bearer(keys["one"]), {"x-api-key": keys["one"]}):
        assert api.ask("GET", "/v1/models", headers=headers).status_code == 200


@pytest.mark.slow
def test_one_never_sees_anothers(api: Api, keys: dict[str, str]) -> None:
    """Files and batches of one key are not there for another; an administrator sees them all."""
    with api.client(keys["one"]) as one, api.client(keys["other"]) as other, api.client(keys["admin"]) as admin:
        line = {"custom_id": "a", "method": "POST", "url": "/v1/chat/completions"}
        body = {"model": "small", "messages": [{"role": "user", "content": "A note."}]}
        content = json.dumps({**line, "body": body}).encode()
        file = one.files.create(file=("a.jsonl", content), purpose="batch")
        batch = one.batches.create(input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h")
        eventually(lambda: one.batches.retrieve(batch.id).status == "completed", "it is done")
        output = one.batches.retrieve(batch.id).output_file_id
        assert output is not None
        looks: list[Any] = [
            lambda client: client.files.retrieve(file.id),
            lambda client: client.files.content(output),
            lambda client: client.batches.retrieve(batch.id),
            lambda client: client.batches.cancel(batch.id),
        ]
        for look in looks:
            with pytest.raises(openai.NotFoundError):
                look(other)
        for look in looks[:3]:
            look(admin)
        assert batch.id not in [b.id for b in other.batches.list()]
        assert batch.id in [b.id for b in admin.batches.list()]
        stolen = other.batches.create(input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h")
        eventually(lambda: other.batches.retrieve(stolen.id).status == "failed", "another's file is none")
        for path in ("", "/results", "/events", "/audits"):
            assert api.ask("GET", f"/batches/{batch.id}{path}", headers=bearer(keys["other"])).status_code == 404


@pytest.mark.slow
def test_scopes(api: Api, keys: dict[str, str]) -> None:
    """A key for reading submits nothing."""
    with api.client(keys["reader"]) as client:
        assert client.models.list().data
        with pytest.raises(openai.PermissionDeniedError):
            client.chat.completions.create(model="small", messages=[{"role": "user", "content": "x"}])


def test_requests_a_minute(api: Api, keys: dict[str, str]) -> None:
    """Beyond its requests a minute a key is told when to come again."""
    replies = [api.ask("GET", "/v1/models", headers=bearer(keys["seldom"])) for _ in range(4)]
    assert [one.status_code for one in replies] == [200, 200, 200, 429]
    assert 0 < int(replies[-1].headers["retry-after"]) <= 60


@pytest.mark.slow
def test_unfinished_jobs(api: Api, keys: dict[str, str], pool: TestPool) -> None:
    """What would give a key more unfinished jobs than it may have is refused, however it comes."""
    mine, prompt = bearer(keys["few"]), "x [[sim:delay=600]]"
    slow = jsonl({**line, "prompt": prompt} for line in LINES)
    first = api.ask("POST", "/jobs", content=slow, headers=mine).json()["id"]
    api.ask("POST", f"/batches/{first}/cancel", headers=mine)
    eventually(lambda: pool.batch(first).open == 0, "it is cancelled")
    batch = api.ask("POST", "/jobs", content=slow, headers=mine).json()["id"]
    params = {"model": "small", "max_tokens": 9, "messages": [{"role": "user", "content": "x"}]}
    fan_out = {"inputs": [{"line": str(i)} for i in range(3)], "each": "x {line}", "merge": "concat"}
    for path, body in (
        ("/jobs", {"content": slow}),
        (f"/batches/{first}/retry", {}),
        ("/v1/messages/batches", {"json": {"requests": [{"custom_id": str(i), "params": params} for i in range(3)]}}),
        ("/fan-outs", {"json": fan_out}),
    ):
        refused = api.ask("POST", path, headers=mine, **body)
        assert (path, refused.status_code, refused.headers["retry-after"]) == (path, 429, "30")
        assert path.startswith("/v1/messages") or refused.json()["error"]["code"] == "queue_limit"
    api.ask("POST", f"/batches/{batch}/cancel", headers=mine)
    eventually(lambda: pool.batch(batch).open == 0, "it is cancelled")
    assert api.ask("POST", "/jobs", content=jsonl(LINES), headers=mine).status_code == 200


def test_a_ceiling_of_privacy(api: Api, keys: dict[str, str], pool: TestPool) -> None:
    """Jobs of a key go no further than it may, whatever they say."""
    far = [line | {"privacy": "cloud_ok"} for line in LINES]
    batch = api.ask("POST", "/jobs", content=jsonl(far), headers=bearer(keys["private"])).json()["id"]
    assert {line["privacy"] for line in pool.finished(batch)} == {"local_only"}


def test_the_last_key_opens_nothing(pool: TestPool, api: Api, keys: dict[str, str]) -> None:
    """Once there was a key nobody gets in without one, and if all of them are revoked."""
    mine = bearer(keys["one"])
    with pool.db.write() as c:
        c.execute(update(ApiKey).values(revoked_at=1.0))
    try:
        eventually(lambda: api.ask("GET", "/v1/models", headers=mine).status_code == 401, "it is revoked")
        assert api.ask("GET", "/v1/models").status_code == 401
    finally:
        with pool.db.write() as c:
            c.execute(update(ApiKey).values(revoked_at=None))
    eventually(lambda: api.ask("GET", "/v1/models", headers=mine).status_code == 200, "it is back")


def test_a_revoked_key(api: Api, pool: TestPool, keys: dict[str, str]) -> None:
    """A revoked key stops working within seconds, and its name is not given again."""
    key = pool.cli("keys", "create", "brief").stdout.decode().strip()
    assert api.ask("GET", "/v1/models", headers=bearer(key)).status_code == 200
    assert pool.cli("keys", "revoke", "brief").code == 0
    eventually(lambda: api.ask("GET", "/v1/models", headers=bearer(key)).status_code == 401, "it is out of force")
    assert pool.cli("keys", "create", "brief").code == 2


# --- what nobody should do ------------------------------------------------------------------------------------


def test_a_body_that_is_too_large(api: Api, keys: dict[str, str]) -> None:
    """A body beyond its limit is refused before it is read, whether it says how long it is or not."""
    headers = bearer(keys["one"])
    with socket.create_connection(("127.0.0.1", api.port)) as said:
        head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\ncontent-length: {1 << 40}\r\n\r\n"
        said.sendall(head.encode())
        assert said.recv(100).startswith(b"HTTP/1.1 413")

    def endless() -> Iterator[bytes]:
        for _ in range(64):
            yield b" " * (1 << 20)

    unsaid = api.ask("POST", "/v1/chat/completions", headers=headers, content=endless())
    assert unsaid.status_code == 413


@pytest.mark.parametrize("path", ["/v1/files/%00", "/batches/%00/results", "/v1/batches?after=%00"])
def test_nul_characters(api: Api, keys: dict[str, str], path: str) -> None:
    """No id has a NUL character, which PostgreSQL cannot even look for."""
    assert api.ask("GET", path, headers=bearer(keys["one"])).status_code == 400


@pytest.mark.slow
def test_long_submits_hold_nobody_else_up(api: Api, keys: dict[str, str], pool: TestPool) -> None:
    """While many submits wait for the ledger's write lock, what only reads is answered at once."""
    mine = bearer(keys["one"])
    batch = api.ask("POST", "/jobs", content=jsonl(LINES), headers=mine).json()["id"]
    pool.finished(batch)
    with ThreadPoolExecutor(MANY) as threads:
        with pool.db.write():
            asked = [threads.submit(api.ask, "POST", "/jobs", content=jsonl(LINES), headers=mine) for _ in range(MANY)]
            for _ in range(3):
                told = httpx.get(f"{api.url}/batches/{batch}/events", headers=mine, timeout=5).text
                assert '"state":"finished"' in told
            assert not any(one.done() for one in asked)
        assert {one.result().status_code for one in asked} == {200}


@pytest.mark.parametrize("path", ["/v1/files", "/v1/batches", "/fan-outs", "/jobs", "/v1/messages/batches"])
def test_a_body_of_a_stranger(api: Api, keys: dict[str, str], path: str) -> None:
    """Who may not send a body is told so while it still comes."""
    form = "multipart/form-data; boundary=x" if path == "/v1/files" else "application/json"
    for key, status in (("nonsense", b"401"), (keys["reader"], b"403")):
        with socket.create_connection(("127.0.0.1", api.port), timeout=10) as sending:
            head = f"POST {path} HTTP/1.1\r\nhost: localhost\r\nauthorization: Bearer {key}\r\ncontent-type: {form}\r\n"
            sending.sendall(f"{head}content-length: {10 << 20}\r\n\r\n".encode() + b"x" * 1000)
            assert sending.recv(100).startswith(b"HTTP/1.1 " + status)


def test_a_strangers_upload(api: Api, keys: dict[str, str]) -> None:
    """OpenAI's own client understands that its key is wrong, however much it had to send."""
    with api.client("nonsense") as client, pytest.raises(openai.AuthenticationError):
        client.files.create(file=("a.jsonl", b" " * (32 << 20)), purpose="batch")


def test_a_body_that_never_comes(api: Api, keys: dict[str, str]) -> None:
    """A client that stops in the middle of its body holds nobody up."""
    with socket.create_connection(("127.0.0.1", api.port)) as slow:
        slow.sendall(
            f"POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\nauthorization: Bearer {keys['one']}\r\n"
            "content-length: 1000\r\n\r\n{".encode()
        )
        assert api.ask("GET", "/healthz").status_code == 200


@pytest.mark.slow
def test_no_request_is_too_strange(api: Api, keys: dict[str, str]) -> None:
    """Whatever the OpenAPI document allows, no answer is a 500, and every error has the shape of its path's clients."""
    import schemathesis  # only here: it takes seconds
    from schemathesis.checks import not_a_server_error

    schema = schemathesis.openapi.from_url(f"{api.url}/openapi.json")
    headers = bearer(keys["admin"])
    for found in schema.get_all_operations():
        operation: Any = found.ok()  # type: ignore[union-attr]

        @settings(max_examples=STRANGE, deadline=None, database=None, suppress_health_check=list(HealthCheck))
        @given(case=operation.as_strategy())
        def ask(case: Any) -> None:
            response = case.call(headers=headers, timeout=30)
            case.validate_response(response, checks=[not_a_server_error])
            if response.status_code >= 400:
                anthropics = case.path.startswith("/v1/messages")
                shape = {"message", "type"} if anthropics else {"message", "type", "param", "code"}
                assert set(response.json()["error"]) == shape

        ask()


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"GET /healthz HTTP/1.1\r\nhost: localhost\r\nx: ".ljust(MOST_HEAD + 1, b"y"), 431),
        (b"no HTTP at all\r\n\r\n", 400),
    ],
)
def test_what_is_no_head(open_api: Api, sent: bytes, status: int) -> None:
    """A head without an end, or one that is none, ends its connection with an error like any other."""
    with socket.create_connection(("127.0.0.1", open_api.port), timeout=30) as client:
        client.sendall(sent)
        reply = HTTPResponse(client)
        reply.begin()
        assert (reply.status, reply.headers["x-request-id"][:4]) == (status, "req_")
        assert json.loads(reply.read())["error"]["type"] == "invalid_request_error"
    assert open_api.ask("GET", "/healthz").status_code == 200
