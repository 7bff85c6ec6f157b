"""A PostgreSQL that keeps the connection and says nothing more is given up, and found again."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing

import psycopg
import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError, OperationalError

from tasks.ledger import patience, sweeping
from tasks.ledger.database import Database
from tests.chaos.proxy import Proxy, Wire
from tests.support.postgres import Postgres
from tests.support.waiting import eventually


@pytest.fixture
def proxy(postgres: Postgres) -> Iterator[Proxy]:
    """What stands before the server."""
    wire = Wire()
    made = Proxy(wire, postgres.url("postgres"))
    yield made
    made.close()
    wire.close()


@pytest.mark.parametrize("at", ["the statement", "the commit"])
def test_a_server_that_says_nothing_is_not_waited_for_without_end(
    proxy: Proxy, monkeypatch: pytest.MonkeyPatch, at: str
) -> None:
    """The transaction fails as one whose connection broke, and the next one has a new connection."""
    monkeypatch.setattr(patience, "PATIENCE_S", 1.0)
    db = Database(proxy.url)
    with pytest.raises(OperationalError, match="did not answer in time") as error:
        _write(db, proxy, twice=at == "the statement")
    assert error.value.connection_invalidated
    proxy.heal(dead=True)
    with db.read() as c:
        assert c.execute(text("SELECT 2")).scalar() == 2
    db.close()


def _write(db: Database, proxy: Proxy, *, twice: bool) -> None:
    with db.write() as c:
        c.execute(text("SELECT 1"))
        proxy.hole()
        if twice:
            c.execute(text("SELECT 1"))


@pytest.mark.slow
def test_an_answer_that_is_slow_is_waited_for(postgres: Postgres, monkeypatch: pytest.MonkeyPatch) -> None:
    """A long answer is no silence: every piece of it starts the time anew."""
    monkeypatch.setattr(patience, "PATIENCE_S", 1.0)
    db = Database(postgres.url("postgres"))
    with db.read() as c:
        slow = text("SELECT pg_sleep(0.1), repeat('x', 100000) FROM generate_series(1, 24)")
        assert len(c.execute(slow).all()) == 24
    db.close()


@pytest.mark.parametrize("rows", [1, 3])
def test_a_frozen_writer_holds_its_locks_no_longer_than_it_may(
    postgres: Postgres, monkeypatch: pytest.MonkeyPatch, rows: int
) -> None:
    """The sweep ends its transaction, whether its last statement had one row or many."""
    monkeypatch.setattr(sweeping, "STANDS_STILL_S", 0.2)
    db, other = Database(postgres.url("postgres")), Database(postgres.url("postgres"))
    with pytest.raises(DBAPIError, match="terminat"):
        _freeze(db, other, rows)
    eventually(lambda: sweeping.end_frozen(other) == 0, "it is gone", 10)
    db.close()
    other.close()


@pytest.mark.parametrize("at", ["the next row", "the answer"])
def test_a_writer_that_freezes_within_a_statement_holds_its_locks_no_longer(
    postgres: Postgres, monkeypatch: pytest.MonkeyPatch, at: str
) -> None:
    """The sweep ends its transaction, while the server waits for more of it as while it cannot answer."""
    monkeypatch.setattr(sweeping, "STANDS_STILL_S", 0.2)
    monkeypatch.setattr(sweeping, "STATEMENT_S", 0.5)
    with (
        closing(Database(postgres.url("postgres"))) as other,
        closing(psycopg.connect(postgres.url("postgres"), application_name="offload")) as writer,
    ):
        assert sweeping.end_frozen(other) == 0
        writer.execute("CREATE TEMPORARY TABLE written (n INTEGER)")
        if at == "the answer":
            writer.pgconn.send_query(b"SELECT repeat('x', 1000000) FROM generate_series(1, 100)")
        else:
            writer.pgconn.enter_pipeline_mode()
            writer.pgconn.send_query_params(b"INSERT INTO written VALUES (1)", [])
            writer.pgconn.send_flush_request()
        writer.pgconn.flush()
        eventually(lambda: sweeping.end_frozen(other), "it is ended", 10)
        eventually(lambda: sweeping.end_frozen(other) == 0, "it is gone", 10)


def _freeze(db: Database, other: Database, rows: int) -> None:
    with db.write() as c:
        c.execute(text("CREATE TEMPORARY TABLE written (n INTEGER)"))
        c.execute(text("INSERT INTO written VALUES (:n)"), [{"n": n} for n in range(rows)])
        eventually(lambda: sweeping.end_frozen(other), "it is ended", 10)
