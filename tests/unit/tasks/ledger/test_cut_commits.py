"""A connection to PostgreSQL that breaks in a commit: what was done is found, what was not is done, nothing twice."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from sqlalchemy import Connection, event, text
from sqlalchemy.exc import OperationalError

from tasks.ledger import submit
from tasks.ledger.record import GROUP_TRIES, record
from tasks.states import JobState
from tasks.tables import Batch, Body, Job, Output
from tests.unit.databases import ClockedDatabase
from tests.unit.ledgers import Ledger, outcome

#: seconds that a commit takes which is cut while it runs, and after which it is cut
COMMIT_S, CUT_S = 1.0, 0.05


@pytest.fixture
def ledger(postgres_db: ClockedDatabase) -> Iterator[Ledger]:
    """A ledger in PostgreSQL."""
    made = Ledger(postgres_db)
    yield made
    made.check()


def before(driver: Any) -> None:
    """The commit never arrives."""
    driver.close()


def after(driver: Any) -> None:
    """It is done, and nobody hears of it."""
    driver.commit()
    driver.close()


def during(driver: Any) -> None:
    """The server goes on with it while we look whether it is done."""
    driver.execute(f"SET LOCAL cut.seconds = {COMMIT_S}")
    wire = socket.socket(fileno=os.dup(driver.pgconn.socket))
    threading.Timer(CUT_S, _break, (wire,)).start()


def _break(wire: socket.socket) -> None:
    with wire:
        wire.shutdown(socket.SHUT_RDWR)


@pytest.fixture(params=[before, after, during])
def cut(request: pytest.FixtureRequest, ledger: Ledger) -> Iterator[Callable[[int], None]]:
    """cut(n): the n-th commit from now on loses its connection."""
    left = [0]

    def on_commit(c: Connection) -> None:
        left[0] -= 1
        if left[0] == 0:
            request.param(c.connection.driver_connection)

    event.listen(ledger.db.engine, "commit", on_commit)
    if request.param is during:
        _say(
            ledger,
            "CREATE FUNCTION slowly() RETURNS trigger LANGUAGE plpgsql AS"
            " $$BEGIN PERFORM pg_sleep(('0' || current_setting('cut.seconds', true))::float); RETURN NULL; END$$",
            "CREATE CONSTRAINT TRIGGER slowly AFTER INSERT OR UPDATE ON batches DEFERRABLE INITIALLY DEFERRED"
            " FOR EACH ROW EXECUTE FUNCTION slowly()",
        )
    yield lambda n: left.__setitem__(0, n)
    assert left[0] <= 0, "it was cut"
    if request.param is during:
        _say(ledger, "DROP FUNCTION slowly CASCADE")


def _say(ledger: Ledger, *statements: str) -> None:
    with ledger.db.write() as c:
        for statement in statements:
            c.execute(text(statement))


@pytest.mark.parametrize("commit", [1, 2, 3], ids=["begun", "added", "opened"])
def test_a_submit_is_one_batch(ledger: Ledger, cut: Callable[[int], None], commit: int) -> None:
    """With every line once, whichever of its commits was cut; and no other batch is taken for it."""
    other = ledger.submit(1)
    cut(commit)
    batch_id = ledger.submit(3)
    assert {b.id for b in ledger.all(Batch)} == {other, batch_id}
    assert (ledger.batch(batch_id).state, ledger.batch(batch_id).total) == ("open", 3)
    assert [j.line for j in ledger.jobs(batch_id)] == [1, 2, 3]
    assert {b.job_id for b in ledger.all(Body)} == {j.id for j in ledger.all(Job)}


def test_a_submit_with_a_key_goes_on(ledger: Ledger, cut: Callable[[int], None]) -> None:
    """Its own first commit is not taken for somebody else's submit."""
    cut(1)
    batch_id, fresh = submit.begin(ledger.db, name=None, key="k", body_hash="h")
    assert fresh
    assert [b.id for b in ledger.all(Batch)] == [batch_id]


def test_results_are_written_once(ledger: Ledger, cut: Callable[[int], None]) -> None:
    """One answer and one call row for each call; nothing is counted twice, nothing called stale."""
    batch_id, _, held = ledger.running(4)
    endings = (JobState.DONE, JobState.FAILED, JobState.QUEUED)
    group = [*map(outcome, held, endings), outcome(held[3], JobState.QUEUED, call=None)]
    cut(1)
    record(ledger.db, group)
    assert ledger.states(batch_id) == {"done": 1, "failed": 1, "queued": 2}
    assert sorted((c.job_id, c.stale) for c in ledger.calls()) == sorted((j.id, False) for j in held[:3])
    assert [o.job_id for o in ledger.all(Output)] == [held[0].id]


def test_results_wait_for_a_ledger_that_stays_away(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was committed as it went is found when it is back, however long that took."""
    monkeypatch.setattr("tasks.ledger.record.time.sleep", lambda _: None)
    batch_id, _, held = ledger.running(3)
    away = [GROUP_TRIES + 2]

    def on_commit(c: Connection) -> None:
        if away[0] == GROUP_TRIES + 2:
            away[0] -= 1
            after(c.connection.driver_connection)

    def on_begin(c: Connection) -> None:
        if 0 < away[0] < GROUP_TRIES + 2:
            away[0] -= 1
            raise OperationalError("BEGIN", None, Exception("gone"), connection_invalidated=True)

    event.listen(ledger.db.engine, "commit", on_commit)
    event.listen(ledger.db.engine, "begin", on_begin)
    group = [outcome(job) for job in held]
    for _ in range(2):
        try:
            record(ledger.db, group)
            break
        except OperationalError:
            assert len(group) == 3, "they stay with the caller"
    assert not group
    assert not away[0]
    assert ledger.states(batch_id) == {"done": 3}
    assert [c.stale for c in ledger.calls()] == [False] * 3
