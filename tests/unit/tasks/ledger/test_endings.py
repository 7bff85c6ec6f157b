"""Cancelled and expired batches end whole, in bounded steps, and what has ended never changes."""

from __future__ import annotations

import pytest
from sqlalchemy import event

from tasks.ledger import claims, endings, sweeping
from tasks.ledger.claims import Claimed, Identity
from tasks.states import TERMINAL, JobState
from tests.unit.ledgers import REGISTRY, TIMES, Ledger, outcome


def mixed(ledger: Ledger) -> tuple[str, Identity, list[Claimed]]:
    """A batch with a job done, one running, one dispatched and three queued."""
    batch_id = ledger.submit(6)
    me = ledger.worker(capacity=2)
    ledger.fill()
    slices = [s[0] for s in ledger.sender.slices]
    held = ledger.claim(me, slices=slices[:2])
    ledger.record(outcome(held[0]))
    for slice_id in slices[3:]:
        claims.put_back(ledger.db, slice_id)
    assert ledger.states(batch_id) == {"done": 1, "running": 1, "dispatched": 1, "queued": 3}
    return batch_id, me, held


@pytest.mark.parametrize("state", [JobState.CANCELLED, JobState.EXPIRED])
def test_a_batch_ends_whatever_its_jobs_do(ledger: Ledger, state: JobState) -> None:
    """Queued, dispatched and running jobs end alike with their reason; answered ones keep their answer."""
    batch_id, _, held = mixed(ledger)
    ended = endings.cancel(ledger.db, batch_id) if state == "cancelled" else endings.end_all(ledger.db, batch_id, state)
    assert ended == 5
    assert ledger.states(batch_id) == {"done": 1, state.value: 5}
    assert {j.error_code for j in ledger.jobs(batch_id)} == {None, state.value}
    batch = ledger.batch(batch_id)
    assert (batch.done, getattr(batch, state.value), batch.open) == (1, 5, 0)
    assert batch.state == ("cancelled" if state is JobState.CANCELLED else "finished")
    assert ledger.record(outcome(held[1])) == 1, "the call in flight comes too late"


def test_cancelling_twice_changes_nothing(ledger: Ledger) -> None:
    """The first cancel counts; its time stays."""
    batch_id, _, _ = mixed(ledger)
    endings.cancel(ledger.db, batch_id)
    before = ledger.batch(batch_id)
    ledger.wait(5)
    assert endings.cancel(ledger.db, batch_id) == 0
    assert ledger.batch(batch_id) == before


def test_a_batch_that_has_ended_cannot_be_cancelled(ledger: Ledger) -> None:
    """A finished batch stays finished."""
    batch_id, _, (job,) = ledger.running(1)
    ledger.record(outcome(job))
    assert endings.cancel(ledger.db, batch_id) == 0
    assert (ledger.batch(batch_id).state, ledger.batch(batch_id).cancelled_at) == ("finished", None)


def test_a_batch_that_is_loading_or_unknown_is_left_alone(ledger: Ledger) -> None:
    """Only what was promised can be cancelled."""
    batch_id = ledger.submit(2, opened=False)
    assert endings.cancel(ledger.db, batch_id) == 0
    assert endings.cancel(ledger.db, "unknown") == 0
    assert ledger.states(batch_id) == {"queued": 2}


def test_steps_are_bounded(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    """However large the batch, no transaction ends more jobs than the bound."""
    monkeypatch.setattr(endings, "CHUNK", 4)
    batch_id = ledger.submit(10)
    left: list[int] = []
    event.listen(ledger.db.engine, "commit", lambda _: left.append(1))
    assert endings.cancel(ledger.db, batch_id) == 10
    assert len(left) >= 4
    assert ledger.states(batch_id) == {"cancelled": 10}


def test_a_cancel_that_was_cut_short_is_finished_by_the_sweep(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    """A client that dies between two steps leaves a batch that still ends, cancelled."""
    monkeypatch.setattr(endings, "CHUNK", 2)
    batch_id = ledger.submit(5)
    with ledger.db.write() as c:
        c.execute(endings.batches.update().values(cancelled_at=ledger.db.time))
    endings._end_some(ledger.db, batch_id, JobState.CANCELLED, 0)
    assert ledger.states(batch_id) == {"cancelled": 2, "queued": 3}
    ledger.worker()
    assert ledger.fill() == 0, "what is left of it is not sent"
    assert sweeping.expire_batches(ledger.db) == 3
    assert ledger.batch(batch_id).state == "cancelled"


def _claim(ledger: Ledger, job: Claimed) -> None:
    ledger.worker("late/gpu")
    ledger.fill()
    assert ledger.claim(ledger.worker("late/gpu")) == []


def _record(ledger: Ledger, job: Claimed) -> None:
    for state in JobState:
        if state is not JobState.RUNNING:
            assert ledger.record(outcome(job, state)) == 1


def _cancel(ledger: Ledger, job: Claimed) -> None:
    assert endings.cancel(ledger.db, job.batch_id) == 0


def _expire(ledger: Ledger, job: Claimed) -> None:
    ledger.wait(10 * 24 * 3600)
    assert sweeping.expire_batches(ledger.db) == 0
    assert endings.end_all(ledger.db, job.batch_id, JobState.EXPIRED) == 0


def _sweep(ledger: Ledger, job: Claimed) -> None:
    ledger.wait(TIMES.lease)
    assert sweeping.take_back_expired(ledger.db, REGISTRY)["leases"] == 0


def _hold(ledger: Ledger, job: Claimed) -> None:
    assert claims.renew(ledger.db, {job.id: job.fence}, TIMES.lease) == set()
    claims.mark_started(ledger.db, [job])


def _take_over(ledger: Ledger, job: Claimed) -> None:
    ledger.worker("node/gpu")


@pytest.mark.parametrize("state", sorted(TERMINAL))
def test_a_terminal_job_never_changes(ledger: Ledger, state: JobState) -> None:
    """Nothing the ledger does touches the row of a job that has ended, or the counts of its batch."""
    batch_id, _, (job,) = ledger.running(1)
    match state:
        case JobState.CANCELLED:
            endings.cancel(ledger.db, batch_id)
        case JobState.EXPIRED:
            endings.end_all(ledger.db, batch_id, state)
        case _:
            answered = state in (JobState.DONE, JobState.ESCALATED)
            ledger.record(outcome(job, state, output=b"1" if answered else None))
    before = ledger.job(job.id), ledger.batch(batch_id)
    for operation in (_claim, _record, _cancel, _expire, _sweep, _hold, _take_over):
        operation(ledger, job)
        assert (ledger.job(job.id), ledger.batch(batch_id)) == before, operation
