"""Results are written once, in groups, and only under the fence they were claimed with."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import psycopg
import pytest
from sqlalchemy import Connection, event
from sqlalchemy.exc import DBAPIError, OperationalError

from tasks.ledger import endings, record, sweeping
from tasks.ledger.claims import Claimed
from tasks.ledger.record import Outcome
from tasks.states import ANSWERED, TERMINAL, JobState
from tasks.tables import AT_ONCE, Output
from tests.support.waiting import eventually
from tests.unit.databases import ClockedDatabase
from tests.unit.ledgers import REGISTRY, TIMES, Ledger, call_row, outcome


def test_a_result_is_one_commit(ledger: Ledger) -> None:
    """State, output, call row and counters appear together, and the last result closes the batch."""
    batch_id, _, (first, second) = ledger.running(2)
    ledger.wait(4)
    said: dict[str, Any] = {
        "served_model": "m",
        "provider": "gpu",
        "node": "node",
        "tokens_in": 3,
        "tokens_out": 5,
        "duration_ms": 9.5,
    }
    assert ledger.record(outcome(first, output=b'"text"', **said)) == 0
    job = ledger.job(first.id)
    assert (job.state, job.attempts, job.finished_at, job.lease_until) == ("done", 1, ledger.db.time, None)
    assert {name: getattr(job, name) for name in said} == said
    assert [(o.job_id, o.output) for o in ledger.all(Output)] == [(first.id, b'"text"')]
    assert [(c.job_id, c.fence, c.stale) for c in ledger.calls()] == [(first.id, 1, False)]
    assert (ledger.batch(batch_id).done, ledger.batch(batch_id).state) == (1, "open")
    ledger.record(outcome(second))
    batch = ledger.batch(batch_id)
    assert (batch.done, batch.state, batch.finished_at) == (2, "finished", ledger.db.time)


@pytest.mark.parametrize("state", sorted(TERMINAL))
def test_every_ending_is_counted(ledger: Ledger, state: JobState) -> None:
    """Each terminal state has its own counter, and all of them close the batch."""
    batch_id, _, (job,) = ledger.running(1)
    ledger.record(outcome(job, state, output=b"1" if state in ANSWERED else None))
    batch = ledger.batch(batch_id)
    assert (getattr(batch, state.value), batch.open, batch.state) == (1, 0, "finished")


def test_a_retry_is_queued_until_it_is_due(ledger: Ledger) -> None:
    """The attempt is counted, the reason kept, the lease gone, and the job not due before its delay."""
    batch_id, _, (job,) = ledger.running(1)
    ledger.record(outcome(job, JobState.QUEUED, attempts=1, delay=2.5, error_code="stalled", error_message="late"))
    row = ledger.job(job.id)
    assert (row.state, row.attempts, row.due_at) == ("queued", 1, ledger.db.time + 2.5)
    assert (row.error_code, row.error_message) == ("stalled", "late")
    assert (row.lease_until, row.started_at, row.finished_at) == (None, None, None)
    assert ledger.batch(batch_id).open == 1
    assert not ledger.calls(stale=True)


def test_a_job_given_back_burns_nothing(ledger: Ledger) -> None:
    """A drained job is queued as if it had never been claimed, but for its fence."""
    _, _, (job,) = ledger.running(1)
    ledger.record(outcome(job, JobState.QUEUED, call=None))
    row = ledger.job(job.id)
    assert (row.state, row.attempts, row.fence, row.due_at) == ("queued", 0, 1, AT_ONCE)
    assert not ledger.calls()


def test_an_answer_replaces_the_reason_of_the_last_try(ledger: Ledger) -> None:
    """A job that succeeds on its second try has no error."""
    _, me, (job,) = ledger.running(1)
    ledger.record(outcome(job, JobState.QUEUED, attempts=1, error_code="stalled", error_message="late"))
    ledger.fill()
    (again,) = ledger.claim(me)
    assert again.attempts == 1
    ledger.record(outcome(again))
    row = ledger.job(job.id)
    assert (row.attempts, row.error_code, row.error_message) == (2, None, None)


def _later_claim(ledger: Ledger, job: Claimed) -> None:
    ledger.wait(TIMES.lease)
    sweeping.take_back_expired(ledger.db, REGISTRY)
    ledger.fill()
    ledger.claim(ledger.worker("other/gpu"))


def _taken_back(ledger: Ledger, job: Claimed) -> None:
    ledger.wait(TIMES.lease)
    sweeping.take_back_expired(ledger.db, REGISTRY)


def _given_back(ledger: Ledger, job: Claimed) -> None:
    ledger.record(outcome(job, JobState.QUEUED, call=None))


def _done(ledger: Ledger, job: Claimed) -> None:
    ledger.record(outcome(job, output=b'"first"', call=None))


def _cancelled(ledger: Ledger, job: Claimed) -> None:
    endings.cancel(ledger.db, job.batch_id)


@pytest.mark.parametrize("since", [_later_claim, _taken_back, _given_back, _done, _cancelled])
@pytest.mark.parametrize("state", [JobState.DONE, JobState.FAILED, JobState.QUEUED])
def test_a_stale_result_changes_nothing_but_leaves_its_call(
    ledger: Ledger, since: Callable[[Ledger, Claimed], None], state: JobState
) -> None:
    """Once its claim is over a result is counted, its call row is marked stale, and job and batch are as they were."""
    batch_id, _, (job,) = ledger.running(1)
    since(ledger, job)
    before = ledger.job(job.id), ledger.batch(batch_id), ledger.all(Output)
    late = outcome(job, state, call=call_row(job) | {"model_served": "late"}, attempts=1)
    assert ledger.record(late) == 1
    assert (ledger.job(job.id), ledger.batch(batch_id), ledger.all(Output)) == before
    assert [c.model_served for c in ledger.calls(stale=True)] == ["late"]


def test_a_group_is_sorted_into_fresh_and_stale(ledger: Ledger) -> None:
    """One stale result in a group takes nothing from the others."""
    batch_id, _, held = ledger.running(5)
    ledger.record(outcome(held[2], JobState.FAILED, call=None))
    assert ledger.record(*[outcome(h) for h in reversed(held)]) == 1
    assert ledger.states(batch_id) == {"done": 4, "failed": 1}


def test_the_same_result_twice_in_a_group_is_one_result(ledger: Ledger) -> None:
    """Whatever hands a result over twice, it is recorded once."""
    batch_id, _, (one, two) = ledger.running(2)
    assert ledger.record(outcome(one, JobState.FAILED), outcome(one), outcome(two)) == 1
    assert ledger.states(batch_id) == {"failed": 1, "done": 1}
    assert (ledger.batch(batch_id).failed, ledger.batch(batch_id).done) == (1, 1)


def test_a_late_result_beside_the_one_that_counts(ledger: Ledger) -> None:
    """Two claims of one job in one group: the newer one's result counts, in whatever order they came."""
    batch_id, _, (old,) = ledger.running(1)
    ledger.record(outcome(old, JobState.QUEUED, call=None))
    ledger.fill()
    (new,) = ledger.claim(ledger.worker("other/gpu"))
    assert ledger.record(outcome(old, JobState.FAILED), outcome(new), outcome(old)) == 2
    assert ledger.states(batch_id) == {"done": 1}


def test_results_of_several_batches_are_one_group(ledger: Ledger) -> None:
    """Each batch gets its own counts."""
    first, second = ledger.submit(2), ledger.submit(1)
    me = ledger.worker(capacity=8)
    ledger.fill()
    ledger.record(*[outcome(h) for h in ledger.claim(me)])
    assert [(ledger.batch(b).done, ledger.batch(b).state) for b in (first, second)] == [
        (2, "finished"),
        (1, "finished"),
    ]


def test_an_empty_group_is_no_fault(ledger: Ledger) -> None:
    """Nothing to write writes nothing."""
    assert ledger.record() == 0


UNRECORDABLE: dict[str, dict[str, Any]] = {
    "a lone surrogate as the model": {"served_model": "m\ud800"},
    "a lone surrogate in an error": {"state": JobState.FAILED, "output": None, "error_message": "\udc00"},
    "an integer beyond 64 bits": {"tokens_out": 10**30},
    "a value of no SQL type": {"tokens_in": {}},
    "a null where there must be a value": {"tokens_in": None},
    "an output that is no bytes": {"output": "text"},
}


@pytest.mark.parametrize("bad", UNRECORDABLE.values(), ids=UNRECORDABLE)
def test_a_result_that_cannot_be_written_harms_itself_only(ledger: Ledger, bad: dict[str, Any]) -> None:
    """The rest of the group is recorded; that job ends failed as `unrecordable`, without what it held."""
    batch_id, _, held = ledger.running(3)
    group = [outcome(h) for h in held]
    for name, value in bad.items():
        setattr(group[1], name, value)
    ledger.record(*group)
    assert [j.state for j in ledger.jobs(batch_id)] == ["done", "failed", "done"]
    assert ledger.jobs(batch_id)[1].error_code == "unrecordable"
    assert ledger.batch(batch_id).state == "finished"


@pytest.mark.parametrize("bad", ["m\ud800", None, 10**30])
def test_a_call_row_that_cannot_be_written_harms_its_job_only(ledger: Ledger, bad: Any) -> None:
    """A telemetry row of nonsense neither stops the recorder nor the jobs of its group."""
    batch_id, _, held = ledger.running(3)
    group = [outcome(h) for h in held]
    group[1].call = call_row(held[1]) | {"provider": bad}
    if bad == 10**30:
        group[1].call = call_row(held[1]) | {"started_at": bad, "fence": bad}
    ledger.record(*group)
    assert [j.state for j in ledger.jobs(batch_id)] == ["done", "failed", "done"]


def _fails(times: int) -> Callable[..., None]:
    left = [times]

    def fail(connection: Connection) -> None:
        if left[0]:
            left[0] -= 1
            raise OperationalError("COMMIT", None, Exception("database is locked"))

    return fail


def test_a_locked_ledger_is_tried_again(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    """A group that meets a lock is written when the lock is gone."""
    monkeypatch.setattr("tasks.ledger.record.time.sleep", lambda _: None)
    batch_id, _, held = ledger.running(2)
    event.listen(ledger.db.engine, "begin", _fails(record.GROUP_TRIES - 1))
    assert ledger.record(*[outcome(h) for h in held]) == 0
    assert ledger.states(batch_id) == {"done": 2}


def test_a_ledger_that_stays_locked_is_an_error(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is called unrecordable because the ledger is away; the results stay with the caller."""
    monkeypatch.setattr("tasks.ledger.record.time.sleep", lambda _: None)
    batch_id, _, held = ledger.running(2)
    fail = _fails(1000)
    event.listen(ledger.db.engine, "begin", fail)
    with pytest.raises(OperationalError):
        ledger.record(*[outcome(h) for h in held])
    event.remove(ledger.db.engine, "begin", fail)
    assert ledger.states(batch_id) == {"running": 2}


def _read_only(connection: Connection) -> None:
    connection.exec_driver_sql("SET TRANSACTION READ ONLY")


def _idle_too_long(connection: Connection) -> None:
    pid = connection.exec_driver_sql("SELECT pg_backend_pid()").scalar_one()
    connection.exec_driver_sql("SET LOCAL idle_in_transaction_session_timeout = 1")
    there = "SELECT count(*) FROM pg_stat_activity WHERE pid = %s"
    with psycopg.connect(connection.engine.url.set(drivername="postgresql").render_as_string(False)) as other:
        eventually(lambda: other.execute(there, (pid,)).fetchone() == (0,), "PostgreSQL ends the transaction")


#: what becomes of a transaction -> what psycopg says, and whether a commit may have been under way
UNABLE: dict[str, tuple[Callable[[Connection], None], type[psycopg.Error], bool]] = {
    "a replica": (_read_only, psycopg.errors.ReadOnlySqlTransaction, False),
    "a standstill": (_idle_too_long, psycopg.errors.IdleInTransactionSessionTimeout, True),
}


@pytest.mark.parametrize(("trouble", "said", "unsure"), UNABLE.values(), ids=UNABLE)
def test_a_ledger_that_can_write_nothing_is_no_fault_of_the_result(
    postgres_db: ClockedDatabase,
    monkeypatch: pytest.MonkeyPatch,
    trouble: Callable[[Connection], None],
    said: type[psycopg.Error],
    unsure: bool,
) -> None:
    """During a failover psycopg names internal errors: they are tried again and raised, and the results stay."""
    monkeypatch.setattr("tasks.ledger.record.time.sleep", lambda _: None)
    ledger = Ledger(postgres_db)
    batch_id, _, held = ledger.running(2)
    group = [outcome(h) for h in held]
    seen: list[BaseException] = []
    event.listen(ledger.db.engine, "begin", trouble)
    event.listen(ledger.db.engine, "handle_error", lambda context: seen.append(context.original_exception))
    with pytest.raises(DBAPIError):
        record.record(ledger.db, group)
    event.remove(ledger.db.engine, "begin", trouble)
    assert len(seen) == record.GROUP_TRIES
    # once in a while the end of the connection is met before the words that were sent ahead of it
    assert {type(error) for error in seen} <= {said, psycopg.OperationalError}
    assert [o.unsure for o in group] == [unsure] * 2
    assert ledger.states(batch_id) == {"running": 2}
    assert record.record(ledger.db, group) == 0
    assert ledger.states(batch_id) == {"done": 2}
    ledger.check()


def test_no_refusal_shows_what_was_answered(ledger: Ledger) -> None:
    """The error of an unrecordable result names its kind, not its text."""
    batch_id, _, (job,) = ledger.running(1)
    ledger.record(Outcome(job.id, job.fence, batch_id, JobState.DONE, output="private text"))  # type: ignore[arg-type]
    assert "private" not in str(ledger.job(job.id))
