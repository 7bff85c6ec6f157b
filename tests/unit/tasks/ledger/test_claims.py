"""Claiming, holding and losing: a message takes only what is there, and only the newest fence counts."""

from __future__ import annotations

import pytest

from tasks.errors import StaleWorker
from tasks.ledger import claims, endings, sweeping
from tasks.ledger.claims import Claimed, Identity
from tasks.states import JobState
from tests.unit.ledgers import REGISTRY, TIMES, Ledger, outcome


def test_a_claim_takes_its_slice(ledger: Ledger) -> None:
    """The jobs run under a new fence and a lease, in the order of their ranks, and the slice is gone."""
    batch_id = ledger.submit(4, prefixes=[1, 2, 1, 2], priority=3)
    me = ledger.worker(capacity=8)
    ledger.fill()
    held = ledger.claim(me)
    first, second, third, fourth = ledger.jobs(batch_id)
    assert [j.id for j in held] == [first.id, third.id, second.id, fourth.id]
    assert held[0] == Claimed(
        first.id, 1, batch_id, "summarize", "small", None, 3, 0, 0, b'{"prompt":"x"}',
        claimed_at=ledger.db.time, queued_at=first.queued_at,
    )  # fmt: skip
    for job in ledger.jobs(batch_id):
        assert (job.state, job.fence, job.worker, job.run_id) == ("running", 1, me.name, me.run_id)
        assert job.lease_until == ledger.db.time + TIMES.lease
        assert job.started_at == ledger.db.time
    assert not ledger.slices()


def test_a_claim_that_waits_has_not_started(ledger: Ledger) -> None:
    """Jobs that wait for room are held, and no crash counts against them until they start."""
    _, _, held = ledger.running(2, started=False)
    assert {j.started_at for j in map(ledger.job, (h.id for h in held))} == {None}
    ledger.wait(3)
    claims.mark_started(ledger.db, held)
    assert {j.started_at for j in map(ledger.job, (h.id for h in held))} == {ledger.db.time}


def test_only_what_isstill_held_starts(ledger: Ledger) -> None:
    """A lease that was lost while waiting is not marked."""
    _, _, held = ledger.running(2, started=False)
    ledger.record(outcome(held[0], JobState.QUEUED))
    claims.mark_started(ledger.db, held)
    assert ledger.job(held[0].id).started_at is None
    assert ledger.job(held[1].id).started_at is not None


@pytest.mark.parametrize("slice_id", ["", "no-such-slice", "' OR 1=1 --", "x" * 10_000])
def test_a_forged_message_takes_nothing(ledger: Ledger, slice_id: str) -> None:
    """A slice that was never cut has no jobs."""
    batch_id = ledger.submit(2)
    me = ledger.worker()
    ledger.fill()
    assert ledger.claim(me, slices=[slice_id]) == []
    assert ledger.states(batch_id) == {"dispatched": 2}


def test_a_doubled_message_takes_nothing_twice(ledger: Ledger) -> None:
    """The second claim of a slice finds nothing, whoever makes it."""
    batch_id = ledger.submit(2)
    me, other = ledger.worker("a/gpu"), ledger.worker("b/gpu")
    ledger.fill()
    ids = [s[0] for s in ledger.sender.slices]
    assert len(ledger.claim(me, slices=ids)) == 2
    assert ledger.claim(other, slices=ids) == []
    assert ledger.claim(me, slices=ids) == []
    assert {j.fence for j in ledger.jobs(batch_id)} == {1}


def test_a_stale_message_takes_nothing(ledger: Ledger) -> None:
    """A slice that was put back, cancelled or finished is claimed in vain."""
    ledger.submit(1)
    me = ledger.worker()
    ledger.fill()
    (old, *_), *_ = ledger.sender.slices
    claims.put_back(ledger.db, old)
    ledger.fill()
    assert ledger.claim(me, slices=[old]) == []
    held = ledger.claim(me)
    ledger.record(outcome(held[0]))
    assert ledger.claim(me, slices=[old]) == []


def test_a_slice_that_lost_jobs_gives_the_rest(ledger: Ledger) -> None:
    """A batch cancelled after the slice was sent leaves nothing of itself in it."""
    batch_id = ledger.submit(2)
    me = ledger.worker()
    ledger.fill()
    endings.cancel(ledger.db, batch_id)
    assert ledger.claim(me) == []


def test_putting_back_a_slice_returns_its_jobs(ledger: Ledger) -> None:
    """Unclaimed jobs are queued again at once; claimed ones are not touched; repeating it changes nothing."""
    batch_id = ledger.submit(2)
    me = ledger.worker(capacity=1)
    ledger.fill()
    first, second = (s[0] for s in ledger.sender.slices)
    ledger.claim(me, slices=[first])
    for _ in range(2):
        claims.put_back(ledger.db, first)
        claims.put_back(ledger.db, second)
    assert ledger.states(batch_id) == {"running": 1, "queued": 1}
    assert not ledger.slices()


def test_renewing_moves_exactly_the_leases_that_are_held(ledger: Ledger) -> None:
    """Old fences, ended jobs and unknown ids are reported lost, and their rows are not touched."""
    _, _, held = ledger.running(4)
    ledger.record(outcome(held[1]))
    ledger.record(outcome(held[2], JobState.QUEUED))
    ledger.wait(10)
    pairs = {h.id: h.fence for h in held} | {held[3].id: 7, 999: 1}
    assert claims.renew(ledger.db, pairs, TIMES.lease) == {held[0].id}
    assert ledger.job(held[0].id).lease_until == ledger.db.time + TIMES.lease
    assert ledger.job(held[3].id).lease_until == ledger.db.time - 10 + TIMES.lease
    assert claims.renew(ledger.db, {}, TIMES.lease) == set()


def test_renewing_takes_any_number(ledger: Ledger) -> None:
    """More leases than one statement takes parameters for are all renewed."""
    _, _, held = ledger.running(1200)
    assert len(claims.renew(ledger.db, {h.id: h.fence for h in held}, 60)) == len(held) == 1200
    assert {ledger.job(h.id).lease_until for h in (held[0], held[-1])} == {ledger.db.time + 60}


def test_a_renewed_job_of_an_older_claim_is_lost(ledger: Ledger) -> None:
    """After another claim of the job the first holder learns that it holds nothing."""
    _, me, (old,) = ledger.running(1)
    ledger.wait(TIMES.lease)
    sweeping.take_back_expired(ledger.db, REGISTRY)
    ledger.beat(me)
    ledger.fill()
    (new,) = ledger.claim(me)
    assert new.fence == old.fence + 1
    assert claims.renew(ledger.db, {old.id: old.fence}, TIMES.lease) == set()
    assert claims.renew(ledger.db, {new.id: new.fence}, TIMES.lease) == {new.id}


def test_which_batches_are_to_be_dropped(ledger: Ledger) -> None:
    """Workers drop what was cancelled or has ended, and keep what is open."""
    open_, cancelled, ended = ledger.submit(1), ledger.submit(1), ledger.submit(0)
    endings.cancel(ledger.db, cancelled)
    assert claims.ended_batches(ledger.db, [open_, cancelled, ended, "unknown"]) == {cancelled, ended}
    assert claims.ended_batches(ledger.db, []) == set()


def test_a_worker_enters_and_is_not_yet_sent_work(ledger: Ledger) -> None:
    """Until it has asked its provider a worker takes nothing."""
    me = Identity("node", "gpu", "r1", 42)
    claims.register(ledger.db, me, ["small", "coder"], 8)
    row = ledger.workers()["node/gpu"]
    assert (row.classes, row.capacity, row.pid, row.consuming) == (["small", "coder"], 8, 42, False)
    claims.report(ledger.db, me, in_flight=3, serving=["small"], consuming=True, health="busy", detail="d")
    row = ledger.workers()["node/gpu"]
    assert (row.in_flight, row.classes, row.consuming, row.health, row.detail) == (3, ["small"], True, "busy", "d")


def test_a_new_process_takes_over_a_name(ledger: Ledger) -> None:
    """The former process's leases are over at once, its heartbeat and its results are stale."""
    batch_id, old, (job,) = ledger.running(1)
    ledger.wait(1)
    new = ledger.worker(old.name)
    assert ledger.workers()[old.name].run_id == new.run_id
    with pytest.raises(StaleWorker, match=old.name):
        ledger.beat(old)
    assert sweeping.take_back_expired(ledger.db, REGISTRY)["leases"] == 1
    ledger.fill()
    (again,) = ledger.claim(new)
    assert ledger.record(outcome(job)) == 1
    assert ledger.record(outcome(again)) == 0
    assert ledger.states(batch_id) == {"done": 1}


def test_a_take_over_leaves_other_workers_alone(ledger: Ledger) -> None:
    """Only the leases of that name end; a lease that is over already is not prolonged."""
    _, old, (job,) = ledger.running(1)
    ledger.wait(TIMES.lease + 5)
    ledger.worker("other/gpu")
    assert ledger.job(job.id).lease_until == ledger.db.time - 5
    ledger.worker(old.name)
    assert ledger.job(job.id).lease_until == ledger.db.time - 5


def test_a_worker_leaves_with_its_row(ledger: Ledger) -> None:
    """A worker that stops in order is not waited for; one that was replaced removes nobody else's row."""
    old = ledger.worker()
    new = ledger.worker(old.name)
    claims.leave(ledger.db, old)
    assert set(ledger.workers()) == {old.name}
    claims.leave(ledger.db, new)
    assert not ledger.workers()
