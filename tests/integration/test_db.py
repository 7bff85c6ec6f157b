"""`offload db upgrade`, by its words and exit codes."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
from sqlalchemy import text

from api.use_cases.pool import Pool
from api.use_cases.watching import watch
from tasks.ledger import schema, submit
from tasks.ledger.database import Database
from tasks.settings import Settings
from tests.support.cli import offload
from tests.support.pool import clean_environment
from tests.support.postgres import Postgres
from tests.support.waiting import eventually


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """A home that nothing was done in."""
    return clean_environment() | {"OFFLOAD_HOME": str(tmp_path / "home")}


def mark(home: str, revision: str) -> None:
    db = Database(Path(home) / "ledger.db")
    with db.write() as c:
        c.execute(text(f"UPDATE {schema.VERSIONS} SET version_num = :revision"), {"revision": revision})
    db.close()


def test_the_tables_are_made_and_then_left_alone(environment: dict[str, str]) -> None:
    """A first upgrade makes the ledger, a second one changes nothing and says so."""
    first, second = (offload(environment, "db", "upgrade", "--json") for _ in range(2))
    assert (first.code, first.json) == (0, {"before": None, "after": schema.REVISION})
    assert (second.code, second.json) == (0, {"before": schema.REVISION, "after": schema.REVISION})
    assert "already" in offload(environment, "db", "upgrade").stderr


@pytest.mark.slow
def test_waiting_for_a_batch_outlives_a_restart_of_the_database(tmp_path: Path) -> None:
    """`wait` goes on when PostgreSQL is back, and ends with the batch."""
    server = Postgres()
    pool = Pool(Settings(home=tmp_path, database_url=server.create("waited")))
    try:
        batch_id, _ = submit.begin(pool.db, name=None)
        watched = watch(pool, batch_id, timeout_s=60)
        assert not next(watched).over
        server.stop()
        again = threading.Timer(1, server.start)
        again.start()
        assert not next(watched).over
        again.join()
        submit.open_batch(pool.db, batch_id, 0)  # without jobs: it is over at once
        eventually(lambda: next(watched).over, "the wait ends")
    finally:
        pool.db.close()
        server.close()


def test_newer_tables_are_nobodys_to_touch(environment: dict[str, str]) -> None:
    """Every command refuses a ledger of a newer Offload in one line that says what to update."""
    offload(environment, "db", "upgrade")
    mark(environment["OFFLOAD_HOME"], "9999")
    for command in (("db", "upgrade"), ("batches",), ("status",)):
        done = offload(environment, *command)
        assert done.code == 1
        assert done.stderr.count("\n") == 1
        assert "update it on this machine" in done.stderr
