"""Message batches on their way into the ledger, and lists of them."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson
import pytest
from sqlalchemy import select

from api.use_cases.anthropic_views import ENDPOINT
from api.use_cases.message_batches import submit
from api.use_cases.pool import Pool
from tasks.errors import Conflict, UsageError
from tasks.ledger import api_batches
from tasks.ledger.api_batches import Whose
from tasks.routing import NOTHING
from tasks.settings import Settings
from tasks.tables import Batch, Body, Job

bodies = Body.__table__  # type: ignore[attr-defined]
jobs = Job.__table__  # type: ignore[attr-defined]
batches = Batch.__table__  # type: ignore[attr-defined]


@pytest.fixture
def pool(tmp_path: Path) -> Iterator[Pool]:
    """A pool that nothing was done in; Redis is not there."""
    made = Pool(Settings(home=tmp_path, redis_url="redis://127.0.0.1:1/0"))
    yield made
    made.db.close()


def request(custom_id: Any = "a", **params: Any) -> dict[str, Any]:
    asked = {"model": "small", "max_tokens": 10, "messages": [{"role": "user", "content": "A note."}]}
    return {"custom_id": custom_id, "params": asked | params}


def sent(pool: Pool, body: Any, key: str | None = None, owner: str = "") -> str:
    with tempfile.TemporaryFile() as file:
        file.write(body if isinstance(body, bytes) else orjson.dumps(body))
        return submit(pool, file, owner, NOTHING, key)


def test_requests_are_jobs(pool: Pool) -> None:
    """Each request is a job under its custom_id, with all that it says of sampling."""
    batch_id = sent(
        pool, {"requests": [request("a", top_k=3, stop_sequences=["END"]), request("b", system="Be kind.")]}
    )
    with pool.db.read() as c:
        found = c.execute(select(jobs.c.line_id, bodies.c.body).join(bodies, bodies.c.job_id == jobs.c.id)).all()
        assert c.execute(select(batches.c.state, batches.c.open)).one() == ("open", 2)
    kept = {name: orjson.loads(body) for name, body in found}
    assert kept["a"]["extras"] == {"top_k": 3, "stop": ["END"]}
    assert [m["role"] for m in kept["b"]["messages"]] == ["system", "user"]
    assert api_batches.seen(pool.db, batch_id, Whose("")) is not None


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"", "requests: "),
        (b"{nonsense", "The body is not JSON."),
        ([], "requests: "),
        ({"requests": []}, "requests: "),
        ({"requests": [request(), "x"]}, "requests.1.custom_id: "),
        ({"requests": [request(), request("x" * 65)]}, "requests.1.custom_id: "),
        ({"requests": [request(), request()]}, "requests.1.custom_id: is used before"),
        ({"requests": [request(), {"custom_id": "b"}]}, "requests.1.params: "),
        ({"requests": [request(), request("b", max_tokens=0)]}, "requests.1.params.max_tokens: "),
        ({"requests": [request(), request("b", model="nonsense")]}, "requests.1.params.model: "),
        ({"requests": [request(), request("b", temperature=9)]}, "requests.1.params.temperature: "),
        ({"requests": [request(), request("b", stream=True)]}, "requests.1.params.stream: "),
        ({"requests": [request(), request("b", messages=[{"role": "user", "content": "\0"}])]}, "requests.1.params: "),
    ],
)
def test_one_fault_and_nothing_is_submitted(pool: Pool, body: Any, words: str) -> None:
    """The first fault is told with its field, and nothing of the batch is left."""
    with pytest.raises(UsageError) as caught:
        sent(pool, body)
    assert str(caught.value).startswith(words)
    with pool.db.read() as c:
        assert not c.execute(select(batches.c.id)).all()
        assert not c.execute(select(jobs.c.id)).all()


def test_the_same_requests_again(pool: Pool) -> None:
    """Under an idempotency key the same requests are the same batch, and others a conflict."""
    first = sent(pool, {"requests": [request()]}, "k")
    assert sent(pool, {"requests": [request()]}, "k") == first
    with pytest.raises(Conflict):
        sent(pool, {"requests": [request("b")]}, "k")


def test_pages(pool: Pool) -> None:
    """A list goes on from any batch of one's own, to older ones and to newer ones, and ends."""
    made = [sent(pool, {"requests": [request()]}, owner="me") for _ in range(5)][::-1]
    sent(pool, {"requests": [request()]}, owner="other")
    given = (pool.db, Whose("me"), ENDPOINT)
    shown = [seen.api.id for seen in api_batches.of_endpoint(*given, 5) or ()]
    assert shown == made
    assert [s.api.id for s in api_batches.of_endpoint(*given, 1, after=made[1]) or ()] == made[2:4]
    assert [s.api.id for s in api_batches.of_endpoint(*given, 1, before=made[3]) or ()] == made[1:3]
    assert api_batches.of_endpoint(*given, 1, after=made[4]) == []
    assert api_batches.of_endpoint(pool.db, Whose("other"), ENDPOINT, 1, after=made[4]) is None


def test_one_that_is_forgotten(pool: Pool) -> None:
    """Nobody has a batch that was forgotten, and its jobs are still the ledger's."""
    batch_id = sent(pool, {"requests": [request()]})
    api_batches.forget(pool.db, batch_id)
    assert api_batches.seen(pool.db, batch_id, Whose(everybody=True)) is None
    assert api_batches.of_endpoint(pool.db, Whose(""), ENDPOINT, 5) == []
    with pool.db.read() as c:
        assert len(c.execute(select(jobs.c.id)).all()) == 1
