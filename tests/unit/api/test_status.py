"""`offload status` of a pool."""

from __future__ import annotations

from pathlib import Path

from sqlalchemy import insert

from api.embedded.state import held_lock, write_pool
from tasks.ledger.reading import batches
from tasks.ledger.schema import open_ledger
from tasks.settings import Settings
from tests.support.cli import offload


def test_an_open_batch_is_shown_however_many_are_newer(tmp_path: Path) -> None:
    """A thousand batches that ended since hide neither it nor its jobs."""
    db = open_ledger(Settings(home=tmp_path).ledger())
    ended = {"state": "finished", "created_at": 2.0, "touched_at": 2.0, "deadline_at": 9e9, "open": 0}
    with db.write() as c:
        c.execute(insert(batches), [{"id": f"batch_{n}", **ended} for n in range(1_000)])
        c.execute(insert(batches), [{"id": "batch_old", **ended, "state": "open", "created_at": 1.0, "open": 7}])
        c.execute(insert(batches), [{"id": "batch_own", **ended, "state": "open", "kind": "audit", "open": 5}])
    db.close()
    environment = {"OFFLOAD_HOME": str(tmp_path)}
    assert [row["id"] for row in offload(environment, "status", "--json").json["open_batches"]] == ["batch_old"]
    assert "jobs open: 7, batches open: 1" in offload(environment, "status").text


def test_a_pool_that_runs_says_where_its_api_is(tmp_path: Path) -> None:
    """Where 8484 was taken it listens elsewhere; the status says where, and nothing once the pool is gone."""
    settings = Settings(home=tmp_path)
    environment = {"OFFLOAD_HOME": str(tmp_path)}
    with held_lock(settings):
        write_pool(settings, {"api": "http://127.0.0.1:45678"})
        assert "API: http://127.0.0.1:45678/v1" in offload(environment, "status").text
        assert offload(environment, "status", "--json").json["api"] == "http://127.0.0.1:45678"
    assert "API" not in offload(environment, "status").text
