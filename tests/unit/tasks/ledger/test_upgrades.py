"""A ledger of an older release is brought to this one: nothing in it is lost, and it goes on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import psycopg
import pytest
from sqlalchemy import Connection, Engine, MetaData, event, insert, inspect, select, text
from sqlmodel import SQLModel

from tasks import dispatch
from tasks.ledger import claims, database, endings, invariants, notices, patience, schema, submit, sweeping, ticks
from tasks.ledger.claims import Identity
from tasks.ledger.database import Database
from tasks.ledger.events import tell
from tasks.ledger.record import record
from tasks.notices import Kind, News
from tasks.privacy import Reach
from tasks.states import JobState
from tasks.tables import Job
from tests.support.postgres import Postgres
from tests.unit.databases import ClockedDatabase, opened
from tests.unit.ledgers import REGISTRY, TIMES, Ledger, Sender, outcome

#: the first release's
FIRST = "0001"
#: seconds after the test's clock, which stands in 1970
FAR = 1e11
ME = Identity("node", "gpu", "run", 1)
#: a table's rows: column -> value
Content = dict[str, list[dict[str, Any]]]

jobs = Job.__table__  # type: ignore[attr-defined]


def live_in(ledger: Ledger) -> str:
    """Jobs in every state, answers, calls, a slice, a dependency, a worker that is gone; a batch with key `k`."""
    keyed, _, (one, two) = ledger.running(2, key="k", body_hash="h", deadline_s=FAR)
    ledger.record(outcome(one), outcome(two, JobState.FAILED, error_code="stalled", error_message="late"))
    _, _, held = ledger.running(3, name="mine", deadline_s=FAR)
    ledger.record(outcome(held[0], JobState.QUEUED, attempts=1, error_code="stalled", error_message="late"))
    endings.cancel(ledger.db, ledger.submit(1))
    ledger.submit(2, deadline_s=FAR)
    ledger.worker(capacity=8)
    ledger.fill()
    ledger.submit(2, deadline_s=FAR, needs=[keyed])
    ticks.tick(ledger.db, "sweep", {"leases": 1})
    with ledger.db.write() as c:
        tell(c, ledger.db.now(c), News(Kind.BROKER, "redis"))
    return keyed


def copy(source: Database, place: str, revision: str) -> None:
    """A ledger as that revision made it, with the rows of another."""
    with opened(place) as db:
        schema._make_file(db)
        if db.path is not None:
            schema._set_wal(db)
        schema.migrate(db, revision)
        with db.write() as c, source.read() as there:
            made = MetaData()
            made.reflect(c)
            for table in SQLModel.metadata.sorted_tables:
                if (old := made.tables.get(table.name)) is not None:
                    found = there.execute(select(*[table.c[column.name] for column in old.columns])).mappings()
                    if rows := [dict(row) for row in found]:
                        c.execute(insert(old), rows)
                    if db.is_postgres and table.autoincrement_column is not None:
                        c.exec_driver_sql(f"SELECT setval('{old}_id_seq', {len(rows) + 1}, false)")


def content(place: str) -> Content:
    """Everything that is in a ledger but its revision."""
    with opened(place) as db, db.read() as c:
        tables = set(inspect(c).get_table_names()) - {schema.VERSIONS}
        return {name: [dict(row) for row in c.execute(text(f"SELECT * FROM {name}")).mappings()] for name in tables}


def only(rows: Sequence[dict[str, Any]], columns: Sequence[str]) -> list[dict[str, Any]]:
    """The rows, in a fixed order, without columns that came later."""
    return sorted(({name: row[name] for name in columns} for row in rows), key=repr)


def run_all(db: Database) -> None:
    """Be a worker until nothing is left."""
    claims.register(db, ME, ["small"], 4)
    claims.report(db, ME, in_flight=0, serving=["small"], consuming=True, health="healthy", detail="")
    while dispatch.fill(db, Sender(), {"small": Reach.LOCAL}, TIMES) or sweeping.unclaimed_slices(db, 0):
        for row in sweeping.unclaimed_slices(db, 0):
            record(db, [outcome(job) for job in claims.claim(db, row.id, ME, TIMES.lease, started=True)])


def test_a_ledger_of_the_first_release_is_brought_to_this_one(sqlite_db: ClockedDatabase, place: str) -> None:
    """Every row is there as it was; what was running, sent or waiting ends, and keys still name their batches."""
    keyed = live_in(Ledger(sqlite_db))
    copy(sqlite_db, place, FIRST)
    before = content(place)
    states = {row["state"] for row in before["jobs"]}
    assert states == {"done", "failed", "running", "queued", "cancelled", "dispatched"}
    assert all(before[name] for name in ("outputs", "bodies", "calls", "slices", "dependencies", "workers", "pool"))

    assert schema.upgrade(place, TIMES) == (FIRST, schema.REVISION)
    after = content(place)
    for name, rows in before.items():
        columns = list(rows[0]) if rows else []
        assert only(after[name], columns) == only(rows, columns), name

    db = schema.open_ledger(place)
    try:
        assert notices.make(db, ["TEAM"], 0) == 0, "what happened before is no news"
        assert sweeping.take_back_expired(db, REGISTRY)["leases"] == 2
        run_all(db)
        assert submit.begin(db, name=None, key="k", body_hash="h") == (keyed, False)
        with db.read() as c:
            ended = set(c.execute(select(jobs.c.state)).scalars())
        assert ended == {"done", "failed", "cancelled"}
        assert not [rule.name for rule in invariants.rules({}) if invariants.broken(db, rule, 0)]
        assert not [page for page in invariants.batch_pages(db) if invariants.miscounted(db, page)]
    finally:
        db.close()


@pytest.mark.slow
def test_a_large_table_is_given_its_time(postgres: Postgres, monkeypatch: pytest.MonkeyPatch) -> None:
    """Indexing half an hour ends in no timeout of the server's or of ours, nor does a pause; after it all are back."""
    limits = "-c statement_timeout=1000 -c idle_in_transaction_session_timeout=1000"
    monkeypatch.setitem(database._POSTGRES, "options", limits)
    monkeypatch.setattr(patience, "PATIENCE_S", 1.0)
    place = postgres.create("large")
    with psycopg.connect(place, autocommit=True) as other, opened(place) as db:

        def pause(_c: Connection, _cursor: Any, statement: str, *_: Any) -> None:
            if statement.startswith("ALTER TABLE"):
                other.execute("SELECT pg_sleep(1.2)")

        schema.migrate(db, FIRST)
        other.execute(
            "CREATE FUNCTION slowly() RETURNS event_trigger LANGUAGE plpgsql AS 'BEGIN PERFORM pg_sleep(1.2); END'"
        )
        other.execute(
            "CREATE EVENT TRIGGER slowly ON ddl_command_start WHEN TAG IN ('CREATE INDEX') EXECUTE FUNCTION slowly()"
        )
        event.listen(Engine, "after_cursor_execute", pause)
        try:
            schema.migrate(db)
        finally:
            event.remove(Engine, "after_cursor_execute", pause)
        assert schema.revision(db) == schema.REVISION
        with db.read() as c:
            shown = [c.execute(text(f"SHOW {word.split('=')[0]}")).scalar() for word in limits.split("-c ")[1:]]
            driver: Any = c.connection.driver_connection
            assert (shown, driver.patient) == (["1s", "1s"], False)
    postgres.drop("large")
