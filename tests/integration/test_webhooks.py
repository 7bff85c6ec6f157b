"""The end of a batch is told as OpenAI tells it; `client.webhooks.unwrap` of the official package is the judge."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.support.api import Api
from tests.support.lazily import Lazily
from tests.support.pool import TestPool, running, simulated
from tests.support.servers import Server
from tests.support.waiting import eventually

pytestmark = pytest.mark.slow

if TYPE_CHECKING:
    import openai
else:
    openai = Lazily("openai")

SECRET = "whsec_" + base64.b64encode(b"thirty-two bytes of a test's key").decode()


class Hook:
    """An address that is told things. refusals: what it answers with before it answers 200."""

    def __init__(self) -> None:
        self.refusals: list[int] = []
        self.got: list[tuple[dict[str, str], bytes]] = []
        hook = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                hook.got.append((dict(self.headers), self.rfile.read(int(self.headers["content-length"]))))
                self.send_response(hook.refusals.pop() if hook.refusals else 200)
                self.send_header("location", "/elsewhere")
                self.send_header("content-length", "0")
                self.end_headers()

            def log_message(self, *words: Any) -> None:
                """Nothing on stderr."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}/hook"
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def told(self, batch_id: str) -> list[tuple[dict[str, str], bytes]]:
        """What it was told of a batch."""
        return [one for one in self.got if json.loads(one[1])["data"]["id"] == batch_id]

    def close(self) -> None:
        """End it."""
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture(scope="module")
def hook() -> Iterator[Hook]:
    """Who is told."""
    made = Hook()
    yield made
    made.close()


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory, hook: Hook) -> Iterator[TestPool]:
    """A pool that tells `hook` of three kinds of ends, and would tell a private address that it may not."""
    server = Server(slots=64)
    config = simulated(server.url, in_flight=16)
    events = ["batch.completed", "batch.failed", "batch.cancelled"]
    allowed = {"url_env": "HOOK", "secret_env": "HOOK_SECRET", "private": True, "events": events}
    config["api"] = {"webhooks": [allowed, {"url_env": "FORBIDDEN", "secret_env": "HOOK_SECRET"}]}
    with running(tmp_path_factory.mktemp("hooks"), config) as pool:
        pool.environment |= {"HOOK": hook.url, "HOOK_SECRET": SECRET, "FORBIDDEN": f"{hook.url}/forbidden"}
        pool.up()
        yield pool
    server.close()


@pytest.fixture(scope="module")
def api(pool: TestPool) -> Api:
    """Its API."""
    return Api(pool)


def batch(client: openai.OpenAI, prompt: str = "A note.", model: str = "small") -> str:
    body = {"model": model, "messages": [{"role": "user", "content": prompt}]}
    line = {"custom_id": "a", "method": "POST", "url": "/v1/chat/completions", "body": body}
    file = client.files.create(file=("a.jsonl", json.dumps(line).encode()), purpose="batch")
    return client.batches.create(input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h").id


def test_the_official_package_reads_them(api: Api, hook: Hook, pool: TestPool) -> None:
    """Each kind of end is told once, signed; a private address is told only where it may be, which doctor says."""
    with api.client(webhook_secret=SECRET) as client:
        wanted = {"batch.completed": batch(client), "batch.failed": batch(client, model="gpt-nonsense")}
        slow = wanted["batch.cancelled"] = batch(client, "x [[sim:delay=600]]")
        eventually(lambda: client.batches.retrieve(slow).status == "in_progress", "it runs")
        client.batches.cancel(slow)
        for kind, batch_id in wanted.items():
            ((headers, body),) = eventually(lambda batch_id=batch_id: hook.told(batch_id), f"{kind} is told")  # type: ignore[misc]
            event: Any = client.webhooks.unwrap(body, headers)
            assert (event.type, event.data.id, event.object) == (kind, batch_id, "event")
            with pytest.raises(openai.InvalidWebhookSignatureError):
                client.webhooks.unwrap(body.replace(b"batch.", b"batch,"), headers)
    found = {one["check"]: one["ok"] for one in pool.cli("doctor", "--json").json}
    assert (found["webhook HOOK"], found["webhook FORBIDDEN"]) == (True, False)


@pytest.mark.parametrize("status", [500, 302], ids=["an error", "a redirect"])
def test_who_does_not_take_it_is_told_again(api: Api, hook: Hook, status: int) -> None:
    """What was not taken is told again under the same id, and a redirect is not followed."""
    hook.refusals.append(status)
    with api.client() as client:
        batch_id = batch(client)
        told = eventually(lambda: len(hook.told(batch_id)) == 2 and hook.told(batch_id), "it is told again")
    assert told
    assert len({headers["webhook-id"] for headers, _ in told}) == 1


def test_no_address_in_logs(api: Api, hook: Hook, tmp_path: Path) -> None:
    """Why an address was not told is logged by its variable's name, not by itself."""
    log = Path(api.log)
    eventually(lambda: b"FORBIDDEN" in log.read_bytes(), "its refusal is logged")
    assert hook.url.encode() not in log.read_bytes()
    assert SECRET.encode() not in log.read_bytes()
