"""What nobody reports: leases that ran out, crashes and their suspects, lost slices, deadlines, dead submits."""

from __future__ import annotations

import pytest
import yaml

from tasks.config import parse
from tasks.ledger import endings, submit, sweeping
from tasks.ledger.claims import Claimed, Identity
from tasks.ledger.sweeping import POISON_CRASHES
from tasks.states import JobState
from tasks.tables import AT_ONCE, Batch, Job
from tasks.turns import slice_size
from tests.unit.ledgers import REGISTRY, TIMES, Ledger, outcome


def crash(ledger: Ledger, me: Identity) -> Identity:
    """The worker dies and is started again; what it held is taken back."""
    new = ledger.worker(me.name, capacity=ledger.workers()[me.name].capacity)
    sweeping.take_back_expired(ledger.db, REGISTRY)
    return new


def test_a_lease_holds_until_it_is_over(ledger: Ledger) -> None:
    """A job is taken back when its lease ends, and not before."""
    batch_id, _, (job,) = ledger.running(1)
    ledger.wait(TIMES.lease - 0.1)
    assert sweeping.take_back_expired(ledger.db, REGISTRY)["leases"] == 0
    ledger.wait(0.1)
    assert sweeping.take_back_expired(ledger.db, REGISTRY)["leases"] == 1
    row = ledger.job(job.id)
    assert (row.state, row.due_at, row.lease_until, row.started_at) == ("queued", AT_ONCE, None, None)
    assert (row.attempts, row.crashes, row.crashes_alone) == (0, 1, 1)
    assert ledger.batch(batch_id).open == 1


def test_the_call_row_of_a_dead_worker_is_written_for_it(ledger: Ledger) -> None:
    """A call that had started is in the telemetry, with its worker, its time and why it ended."""
    _, me, (job,) = ledger.running(1)
    ledger.wait(TIMES.lease)
    sweeping.take_back_expired(ledger.db, REGISTRY)
    (call,) = ledger.calls()
    assert (call.job_id, call.fence, call.error_code, call.stale) == (job.id, 1, "worker_died", False)
    assert (f"{call.node}/{call.provider}", call.duration_ms) == (me.name, TIMES.lease * 1000)


def test_a_dead_workers_call_says_who_was_considered(ledger: Ledger) -> None:
    """Every provider and why not it, as the worker would have written it: by class, by tier, by who was asked."""
    providers = [
        {"name": "gpu", "kind": "openai", "url": "http://127.0.0.1:9"},
        {"name": "other", "kind": "openai", "url": "http://127.0.0.1:10"},
        {"name": "far", "kind": "openai", "url": "https://example.com", "reach": "cloud"},
        {"name": "coder", "kind": "openai", "url": "http://127.0.0.1:11"},
    ]
    serve = [{"provider": name, "model": "m"} for name in ("gpu", "other")]
    classes = {
        "small": {"serve": serve},
        "coder": {"serve": [{"provider": "coder", "model": "m"}]},
        "cloud": {"serve": [{"provider": "far", "model": "m"}]},
    }
    registry = parse(yaml.safe_dump({"providers": providers, "classes": classes}), "a test's")
    ledger.running(1)
    ledger.wait(TIMES.lease)
    sweeping.take_back_expired(ledger.db, registry)
    (call,) = ledger.calls()
    assert call.considered == {
        "gpu": "",
        "other": "another worker had room first",
        "far": "it is cloud, and the job is lan_ok",
        "coder": "the job is for class small, and it serves coder",
    }


def test_a_job_that_only_waited_is_no_suspect(ledger: Ledger) -> None:
    """A worker that dies takes nothing from jobs whose call it had not started."""
    _, _, (job,) = ledger.running(1, started=False)
    ledger.wait(TIMES.lease)
    sweeping.take_back_expired(ledger.db, REGISTRY)
    assert (ledger.job(job.id).crashes, ledger.job(job.id).crashes_alone) == (0, 0)
    assert not ledger.calls()


def test_jobs_that_ran_together_are_all_suspects_and_none_alone(ledger: Ledger) -> None:
    """Nobody can say which of several jobs killed the worker."""
    batch_id, _, _ = ledger.running(3)
    ledger.wait(TIMES.lease)
    sweeping.take_back_expired(ledger.db, REGISTRY)
    assert [(j.crashes, j.crashes_alone) for j in ledger.jobs(batch_id)] == [(1, 0)] * 3


def test_a_worker_of_its_own_makes_a_job_no_less_alone(ledger: Ledger) -> None:
    """Who else runs in another process does not matter, nor who only waited in this one."""
    first = ledger.submit(2)
    me, other = ledger.worker("a/gpu", capacity=1), ledger.worker("b/gpu", capacity=1)
    ledger.fill()
    one, two = (s[0] for s in ledger.sender.slices)
    ledger.claim(me, slices=[one])
    ledger.claim(other, slices=[two])
    second = ledger.submit(1)
    ledger.sender.slices.clear()
    ledger.fill()
    ledger.claim(me, started=False)
    ledger.wait(TIMES.lease)
    sweeping.take_back_expired(ledger.db, REGISTRY)
    assert [j.crashes_alone for j in ledger.jobs(first)] == [1, 1]
    assert [j.crashes for j in ledger.jobs(second)] == [0]


def test_leases_that_end_one_after_another_are_one_crash(ledger: Ledger) -> None:
    """Jobs claimed at different times die together, whichever lease ends last."""
    ledger.submit(2)
    me = ledger.worker(capacity=1)
    ledger.fill()
    first, second = (s[0] for s in ledger.sender.slices)
    (one,) = ledger.claim(me, slices=[first])
    ledger.wait(8)
    (two,) = ledger.claim(me, slices=[second])
    ledger.wait(TIMES.lease - 8)
    assert sweeping.take_back_expired(ledger.db, REGISTRY)["leases"] == 1
    ledger.wait(8)
    assert sweeping.take_back_expired(ledger.db, REGISTRY)["leases"] == 1
    assert [(j.crashes, j.crashes_alone) for j in map(ledger.job, (one.id, two.id))] == [(1, 0), (1, 0)]


def test_chunks_do_not_make_a_job_alone(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many jobs one worker held, its last ones are taken back as what they were: in company."""
    monkeypatch.setattr(sweeping, "CHUNK", 2)
    batch_id, _, _ = ledger.running(5)
    ledger.wait(TIMES.lease)
    assert sweeping.take_back_expired(ledger.db, REGISTRY)["leases"] == 5
    assert {(j.crashes, j.crashes_alone) for j in ledger.jobs(batch_id)} == {(1, 0)}


def test_a_job_that_kills_its_worker_alone_is_poison(ledger: Ledger) -> None:
    """Three crashes with nothing else running, and the job has failed."""
    batch_id, me, (job,) = ledger.running(1)
    for n in range(1, POISON_CRASHES + 1):
        me = crash(ledger, me)
        assert ledger.job(job.id).crashes_alone == n
        ledger.fill()
        ledger.claim(me)
    row = ledger.job(job.id)
    assert (row.state, row.error_code, row.attempts, row.crashes) == ("failed", "poison", 0, POISON_CRASHES)
    assert (ledger.batch(batch_id).failed, ledger.batch(batch_id).state) == (1, "finished")
    assert len(ledger.calls(error_code="worker_died")) == POISON_CRASHES


@pytest.mark.slow
@pytest.mark.parametrize(("capacity", "n"), [(1, 24), (4, 40), (16, 60), (64, 60)])
def test_the_poison_is_found_and_the_innocent_are_not_failed(ledger: Ledger, capacity: int, n: int) -> None:
    """Among many jobs one kills every worker that starts it: it alone fails, the others are done."""
    batch_id = ledger.submit(n)
    poison = ledger.jobs(batch_id)[20].id
    me = ledger.worker(capacity=capacity)
    crashes = 0
    for _ in range(400):
        if not ledger.batch(batch_id).open:
            break
        ledger.beat(me)
        ledger.fill()
        for run in ledger.runs(me):
            if any(job.id == poison for job in run):
                me = crash(ledger, me)
                crashes += 1
                break
            ledger.record(*map(outcome, run))
        ledger.wait(1)
    assert ledger.states(batch_id) == {"done": n - 1, "failed": 1}
    assert ledger.job(poison).error_code == "poison"
    assert crashes <= 12, "the search is by halves"


def test_suspects_run_in_halves_then_alone(ledger: Ledger) -> None:
    """After each crash a slice of suspects is half as large; from the second on only one of a class is out."""
    ledger.submit(32)
    me = ledger.worker(capacity=64)
    size = slice_size(64)
    sizes = []
    for _ in range(5):
        ledger.fill()
        sizes.append([s[2] for s in ledger.sender.slices])
        ledger.claim(me)
        me = crash(ledger, me)
    assert sizes[:2] == [[size], [size // 2] * 2]
    assert all(len(suspects) == 1 for suspects in sizes[2:])
    halved = [suspects[0] for suspects in sizes[2:]]
    assert halved == sorted(halved, reverse=True)
    assert halved[0] <= size / 4
    assert halved[-1] <= size / 4


def test_the_innocent_share_no_slice_with_suspects(ledger: Ledger) -> None:
    """Nor do they wait for them where they are more urgent."""
    batch_id, me, held = ledger.running(2)
    crash(ledger, me)
    late = ledger.submit(1, priority=1)
    me = ledger.worker("fresh/gpu", capacity=1)
    ledger.fill()
    assert all(len({j.crashes for j in ledger.all(Job, slice_id=s.id)}) == 1 for s in ledger.slices())
    assert {j.slice_id for j in ledger.jobs(late)} == {ledger.sender.slices[0][0]}
    assert ledger.states(batch_id) == {"dispatched": 2}
    assert held
    assert me


def test_slices_that_should_have_been_claimed(ledger: Ledger) -> None:
    """Only slices older than asked are named, the oldest first; sending them again makes them young."""
    ledger.worker(capacity=1)
    ledger.submit(1)
    ledger.fill()
    ledger.wait(6)
    ledger.submit(1)
    ledger.fill()
    ledger.wait(4)
    old = sweeping.unclaimed_slices(ledger.db, 10)
    assert [s.id for s in old] == [ledger.sender.slices[0][0]]
    sweeping.touch_slices(ledger.db, [s.id for s in old])
    assert sweeping.unclaimed_slices(ledger.db, 10) == []
    assert len(sweeping.unclaimed_slices(ledger.db, 0)) == 2


def test_empty_slices_are_forgotten(ledger: Ledger) -> None:
    """A slice all of whose jobs have ended is not looked for; one that still has a job is."""
    cancelled, kept = ledger.submit(1), ledger.submit(1)
    ledger.worker(capacity=1)
    ledger.fill()
    endings.cancel(ledger.db, cancelled)
    assert sweeping.drop_empty_slices(ledger.db) == 1
    assert [s.id for s in ledger.slices()] == [j.slice_id for j in ledger.jobs(kept)]


def test_a_deadline_ends_what_is_left(ledger: Ledger) -> None:
    """At its deadline a batch's open jobs expire; others' and what has ended do not."""
    batch_id, _, (first, _) = ledger.running(2)
    ledger.record(outcome(first))
    ledger.wait(submit.DEFAULT_DEADLINE_S - 1)
    later = ledger.submit(1)
    assert sweeping.expire_batches(ledger.db) == 0
    ledger.wait(1)
    assert sweeping.expire_batches(ledger.db) == 1
    assert ledger.states(batch_id) == {"done": 1, "expired": 1}
    assert ledger.batch(batch_id).state == "finished"
    assert ledger.states(later) == {"queued": 1}


def test_a_deadline_does_not_touch_a_load(ledger: Ledger) -> None:
    """What was never promised does not expire; it is dropped when it is silent."""
    batch_id = ledger.submit(2, opened=False)
    ledger.wait(submit.DEFAULT_DEADLINE_S + 1)
    assert sweeping.expire_batches(ledger.db) == 0
    assert ledger.batch(batch_id).state == "loading"


def test_silent_loads_are_dropped(ledger: Ledger) -> None:
    """A load somebody still adds to is kept, a silent one leaves nothing, an open batch is not asked."""
    silent, ours = ledger.submit(2, opened=False), ledger.submit(1)
    ledger.wait(100)
    busy = ledger.submit(2, opened=False)
    assert sweeping.drop_abandoned_loads(ledger.db, 100) == 1
    assert {b.id for b in ledger.all(Batch)} == {ours, busy}
    assert {j.batch_id for j in ledger.all(Job)} == {ours, busy}
    assert silent not in {b.id for b in ledger.all(Batch)}


def test_silent_workers_are_forgotten(ledger: Ledger) -> None:
    """A worker that beats is kept."""
    ledger.worker("old/gpu")
    ledger.wait(50)
    ledger.worker("new/gpu")
    assert sweeping.drop_gone_workers(ledger.db, 50) == 1
    assert set(ledger.workers()) == {"new/gpu"}


def test_a_take_back_meets_a_result_and_one_of_them_wins(ledger: Ledger) -> None:
    """A job recorded just before the sweep is not taken back."""
    batch_id, _, held = ledger.running(2)
    ledger.wait(TIMES.lease)
    assert ledger.record(outcome(held[0])) == 0, "nobody else holds it yet: its result counts"
    assert sweeping.take_back_expired(ledger.db, REGISTRY)["leases"] == 1
    assert ledger.states(batch_id) == {"done": 1, "queued": 1}


def test_an_expired_lease_of_a_stopped_batch_is_nothing(ledger: Ledger) -> None:
    """A cancelled job has no lease to run out."""
    batch_id, _, _ = ledger.running(1)
    endings.cancel(ledger.db, batch_id)
    ledger.wait(TIMES.lease)
    assert sweeping.take_back_expired(ledger.db, REGISTRY)["leases"] == 0
    assert ledger.states(batch_id) == {JobState.CANCELLED.value: 1}


def test_claimed_jobs_are_plain_values(ledger: Ledger) -> None:
    """What a worker holds does not change with the row."""
    _, _, (job,) = ledger.running(1)
    ledger.wait(TIMES.lease)
    sweeping.take_back_expired(ledger.db, REGISTRY)
    assert isinstance(job, Claimed)
    assert job.fence == ledger.job(job.id).fence == 1
