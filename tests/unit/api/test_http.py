"""What of the HTTP API no client brings about at will: errors of the ledger, leaving at one moment or another."""

from __future__ import annotations

import asyncio
import errno
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import httpx2  # what anthropic speaks
import pytest
from fastapi import FastAPI, Request
from pydantic import ValidationError, field_validator
from sqlalchemy.exc import DataError, OperationalError
from sqlalchemy.exc import TimeoutError as NoConnection
from starlette.requests import ClientDisconnect
from structlog.testing import capture_logs

from api.http import bodies, direct, errors, files
from api.http.app import create_app
from api.http.batches import NewBatch
from api.http.fan_outs import FanOutBody
from api.use_cases import direct as requests
from api.use_cases.pool import Pool
from api.use_cases.validating import validate
from tasks.ledger import api_keys, endings
from tasks.ledger.api_batches import Seen
from tasks.ledger.api_keys import Scope
from tasks.settings import Settings
from tests.unit.api.test_validating import batch_of
from workers.backends import Delta
from workers.direct import Wish


def ask(app: FastAPI, path: str, method: str = "GET", **more: Any) -> httpx.Response:
    async def run() -> httpx.Response:
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            return await client.request(method, path, **more)

    return asyncio.run(run())


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (OperationalError("", None, Exception()), 503),
        (NoConnection(), 503),
        (DataError("", None, Exception()), 400),
        (OSError(errno.ENOSPC, "No space left on device", "/a/path"), 503),
        (OSError(errno.EACCES, "Permission denied", "/a/path"), 500),
    ],
)
def test_errors_of_the_ledger(error: Exception, status: int) -> None:
    """A ledger without a connection left, or a full disk, is away; what it cannot keep is a fault; no path is told."""
    app = FastAPI()
    errors.install(app)

    @app.get("/")
    def fails() -> None:
        raise error

    found = ask(app, "/")
    assert (found.status_code, "retry-after" in found.headers) == (status, status == 503)
    assert "error" in found.json()
    assert "/a/path" not in found.text


def test_only_files_that_are_shown_are_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A page of a list counts the bytes of its own files of results, not of all there are, and each only once."""
    counted: list[str] = []

    def lines(request: Request, seen: Seen, file_id: str) -> Any:
        counted.append(file_id)
        return real(request, seen, file_id)

    real = files.lines
    monkeypatch.setattr(files, "lines", lines)
    pool = Pool(Settings(home=tmp_path, redis_url="redis://127.0.0.1:1/0"))
    try:
        for _ in range(3):
            batch_id = batch_of(pool, 1)
            validate(pool, batch_id)
            endings.cancel(pool.db, batch_id)
        app = create_app(pool)
        found = ask(app, "/v1/files?purpose=batch_output&limit=1").json()
        assert found["has_more"]
        assert [file["bytes"] > 0 for file in found["data"]] == [True]
        assert counted == [file["id"] for file in found["data"]]
        again = ask(create_app(pool), "/v1/files?purpose=batch_output&limit=1").json()
        assert again == found
        assert ask(app, f"/v1/files/{counted[0]}").json() == found["data"][0]
        assert len(counted) == 1
        content = ask(app, f"/v1/files/{counted[0]}/content").content
        assert len(content) == found["data"][0]["bytes"]
    finally:
        pool.db.close()


CHAT = {"model": "small", "max_tokens": 9, "messages": [{"role": "user", "content": "x"}]}
SUBMITS: dict[str, dict[str, Any]] = {
    "/jobs": {"content": b'{"category": "summarize", "prompt": "x"}'},
    "/v1/batches": {
        "json": {"input_file_id": "file-x", "endpoint": "/v1/chat/completions", "completion_window": "24h"}
    },
    "/v1/messages/batches": {"json": {"requests": [{"custom_id": "a", "params": CHAT}]}},
    "/fan-outs": {"json": {"inputs": [{"line": "x"}], "each": "{line}", "merge": "concat"}},
}


@pytest.mark.parametrize(("path", "body"), SUBMITS.items(), ids=SUBMITS)
def test_a_submit_repeated_by_a_key_that_is_full(tmp_path: Path, path: str, body: dict[str, Any]) -> None:
    """A submit whose answer was lost is the same batch again, though that batch is all that its key may have."""
    pool = Pool(Settings(home=tmp_path, redis_url="redis://127.0.0.1:1/0"))
    try:
        app = create_app(pool)
        bearer = {"authorization": f"Bearer {api_keys.make(pool.db, 'few', [Scope.SUBMIT, Scope.READ], most_queued=1)}"}
        made = [ask(app, path, "POST", headers=bearer | {"idempotency-key": "k"}, **body) for _ in range(2)]
        assert [one.status_code for one in made] == [200, 200], made[1].text
        assert made[0].json()["id"] == made[1].json()["id"]
        for new in ({}, {"idempotency-key": "another"}):
            assert ask(app, path, "POST", headers=bearer | new, **body).status_code == 429
    finally:
        pool.db.close()


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/messages", "/jobs", "/fan-outs"])
def test_a_client_that_leaves_within_its_body(tmp_path: Path, path: str) -> None:
    """Nothing is wrong with this server then, and its log says nothing of it."""
    address = {"method": "POST", "path": path, "raw_path": path.encode(), "query_string": b"", "scheme": "http"}
    sides = {"client": ("127.0.0.1", 1), "server": ("127.0.0.1", 2), "http_version": "1.1"}
    scope = {"type": "http", "headers": [(b"host", b"localhost")], **address, **sides}
    messages = [{"type": "http.request", "body": b"{", "more_body": True}]
    sent: list[Any] = []

    async def receive() -> Any:
        return messages.pop(0) if messages else {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        sent.append(message)

    pool = Pool(Settings(home=tmp_path, redis_url="redis://127.0.0.1:1/0"))
    try:
        with capture_logs() as logs:
            asyncio.run(create_app(pool)(scope, receive, send))  # an error of this server's would be raised here
    finally:
        pool.db.close()
    assert (sent[0]["status"], logs) == (499, [])


class TlsProxy(httpx2.AsyncBaseTransport):
    """https://pool.example/offload, in front of an application that knows neither its name nor its folder."""

    def __init__(self, app: FastAPI) -> None:
        self.asked: list[str] = []
        self._app = httpx2.ASGITransport(app)

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        self.asked.append(str(request.url))
        path = request.url.raw_path.removeprefix(b"/offload")
        request.url = request.url.copy_with(scheme="http", host="10.0.0.7", port=8484, raw_path=path)
        request.headers["host"] = "10.0.0.7:8484"
        return await self._app.handle_async_request(request)


@pytest.mark.slow
def test_results_behind_a_proxy(tmp_path: Path) -> None:
    """Anthropic's own client fetches results from the address that it was given, and sends its key nowhere else."""
    import anthropic  # only here: it takes seconds

    pool = Pool(Settings(home=tmp_path, redis_url="redis://127.0.0.1:1/0"))
    proxy = TlsProxy(create_app(pool))

    async def run(key: str) -> list[Any]:
        web = httpx2.AsyncClient(transport=proxy)
        async with anthropic.AsyncAnthropic(base_url="https://pool.example/offload", api_key=key, http_client=web) as c:
            made = await c.messages.batches.create(requests=[{"custom_id": "a", "params": CHAT}])  # type: ignore[typeddict-item]
            await c.messages.batches.cancel(made.id)
            return [line.result.type async for line in await c.messages.batches.results(made.id)]

    try:
        assert asyncio.run(run(api_keys.make(pool.db, "mine", [Scope.SUBMIT, Scope.READ]))) == ["canceled"]
    finally:
        pool.db.close()
    assert proxy.asked[-1].endswith("/results")
    assert all(url.startswith("https://pool.example/offload/v1/messages/batches") for url in proxy.asked)


MANY = 5_000
NUMBERS, BATCH = {str(i): i for i in range(MANY)}, {"input_file_id": "x", "endpoint": "x", "completion_window": "24h"}


@pytest.mark.parametrize(
    ("kind", "body", "where"),
    [
        (FanOutBody, {"merge": "vote", "inputs": [{"a": 1}] * MANY}, ("inputs", 0, "a")),
        (FanOutBody, {"merge": "vote", "inputs": [NUMBERS]}, ("inputs", 0, "0")),
        (FanOutBody, {"merge": "vote", "agents": [{"samples": 1}] * MANY}, ("agents", 0, "name")),
        (FanOutBody, {"merge": "vote", "agents": [{"name": "x"} | NUMBERS]}, ("agents", 0)),
        (FanOutBody, {"merge": "vote", "file": {"path": "x", "content": "x"} | NUMBERS}, ("file", "0", "[key]")),
        (FanOutBody, {"merge": "vote", "touches": [1] * MANY}, ("touches", 0)),
        (FanOutBody, {"merge": "vote"} | NUMBERS, ()),
        (NewBatch, BATCH | {"metadata": NUMBERS}, ("metadata", "0")),
    ],
)
def test_many_mistakes_are_few_faults(kind: type[bodies.Body], body: Any, where: tuple[Any, ...]) -> None:
    """A body that is wrong thousands of times is told so once: its faults cost no more than the body itself."""
    with pytest.raises(ValidationError) as caught:
        kind.model_validate(body)
    assert [error["loc"] for error in caught.value.errors()] == [where]


def test_a_large_body_is_read_off_the_loop() -> None:
    """While a large body is read, whoever else asks is answered."""
    read_by: list[threading.Thread] = []

    class Noted(bodies.Body):
        text: str

        @field_validator("text")
        @classmethod
        def _note(cls, text: str) -> str:
            read_by.append(threading.current_thread())
            return text

    async def run(text: str) -> None:
        async def receive() -> Any:
            return {"type": "http.request", "body": b'{"text": "%b"}' % text.encode(), "more_body": False}

        assert (await bodies.read(Request({"type": "http"}, receive), Noted)).text == text
        read_by.append(threading.current_thread())

    asyncio.run(run("x" * direct.LARGE))
    assert read_by[0] is not read_by[1]


def test_bodies_are_described(tmp_path: Path) -> None:
    """The OpenAPI document says what bodies there are that FastAPI does not read, and all it refers to is there."""
    pool = Pool(Settings(home=tmp_path, redis_url="redis://127.0.0.1:1/0"))
    try:
        document = create_app(pool).openapi()
    finally:
        pool.db.close()
    for path, field in (("/fan-outs", "inputs"), ("/v1/batches", "input_file_id")):
        schema = document["paths"][path]["post"]["requestBody"]["content"]["application/json"]["schema"]
        assert field in schema["properties"]
        refs = list(_refs(schema))
        assert refs
        for ref in refs:
            found = document
            for step in ref.removeprefix("#/").split("/"):
                found = found[step.replace("~1", "/")]


def _refs(schema: Any) -> Iterator[str]:
    for key, value in schema.items() if isinstance(schema, dict) else enumerate(schema):
        if key == "$ref":
            yield value
        elif isinstance(value, dict | list):
            yield from _refs(value)


@pytest.mark.parametrize("moment", ["before the first piece is sent", "after"])
def test_a_client_that_leaves_a_stream(monkeypatch: pytest.MonkeyPatch, moment: str) -> None:
    """Whenever the client of a stream goes away, the call at the model server is closed."""
    ended: list[str] = []

    async def call(request: Request, asked: requests.Request) -> Any:
        assert asked.wish.on_delta is not None
        asked.wish.on_delta(Delta("first"))
        try:
            await asyncio.Event().wait()
        finally:
            ended.append("closed")

    async def send(message: Any) -> None:
        if moment != "after" or message["type"] == "http.response.body":
            raise OSError("the client is gone")

    async def run() -> None:
        request = Request({"type": "http", "asgi": {"spec_version": "2.4"}, "headers": []})
        pieces = direct.Pieces(request, requests.Request(job=None, wish=Wish()))  # type: ignore[arg-type]
        await pieces.begin()

        async def events() -> Any:
            async for delta in pieces:
                yield delta.text.encode()

        answer = direct.Streamed(pieces, events(), {})
        with pytest.raises(ClientDisconnect):
            await answer(request.scope, request.receive, send)
        assert ended == ["closed"]

    monkeypatch.setattr(direct, "run", call)
    asyncio.run(run())
