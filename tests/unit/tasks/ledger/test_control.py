"""Batches that are paused, resumed, retried, and that wait for others."""

from __future__ import annotations

import json
import threading
from typing import Any

import orjson
import pytest

from tasks.categories import DEFAULT_CATEGORIES
from tasks.errors import NotFound, OffloadError, PoolError, UsageError
from tasks.ledger import control, endings, reading, retries, submit, sweeping
from tasks.privacy import Tier
from tasks.routing import Route
from tasks.states import JobState
from tasks.tables import Batch, Body, Dependency, Job, Sample
from tests.unit.ledgers import Ledger, new_jobs, outcome

EXPIRED = 25 * 3600


def fail(ledger: Ledger, n: int = 3, bad: int = 2, **submitted: Any) -> str:
    """A batch of n jobs whose first `bad` failed and whose others are done."""
    batch_id, _, held = ledger.running(n, **submitted)
    ledger.record(*[outcome(job, JobState.FAILED if i < bad else JobState.DONE) for i, job in enumerate(held)])
    return batch_id


def answer(ledger: Ledger, batch_id: str, *states: JobState) -> None:
    """Run a batch's next jobs; the states that they end in, by line."""
    me = ledger.worker(capacity=64)
    ledger.fill()
    held = sorted((job for job in ledger.claim(me) if job.batch_id == batch_id), key=lambda job: job.id)
    ledger.record(*[outcome(job, state) for job, state in zip(held, states, strict=True)])


def results(ledger: Ledger, batch_id: str, state: str | None = None) -> dict[str, tuple[str, str | None]]:
    """id -> state, and the retry that it is from."""
    found = list(reading.results(ledger.db, batch_id, state))
    assert sorted(reading.recorded(ledger.db, batch_id, state)) == sorted(found)
    lines = map(json.loads, found)
    return {line["id"]: (line["state"], line.get("retry")) for line in lines}


# --- pause and resume ------------------------------------------------------------------------------------


def test_a_paused_batch_is_not_sent(ledger: Ledger) -> None:
    """What was sent and not claimed waits again and its messages claim nothing; what runs goes on and is recorded."""
    batch_id = ledger.submit(20)
    me = ledger.worker(capacity=4)
    ledger.fill()
    first, *others = [s[0] for s in ledger.sender.slices]
    running = ledger.claim(me, slices=[first])
    control.pause(ledger.db, batch_id)
    assert ledger.states(batch_id) == {"running": len(running), "queued": 20 - len(running)}
    assert not ledger.slices()
    assert ledger.claim(me, slices=others) == []
    assert ledger.fill() == 0
    ledger.record(*map(outcome, running))
    assert ledger.fill() == 0
    assert ledger.states(batch_id)["done"] == len(running)


def test_a_resumed_batch_is_sent_again(ledger: Ledger) -> None:
    """Pausing and resuming twice is as once; the deadline went on."""
    batch_id = ledger.submit(3)
    ledger.worker()
    before = ledger.batch(batch_id)
    for _ in range(2):
        control.pause(ledger.db, batch_id)
        ledger.wait(1)
    assert ledger.batch(batch_id).paused_at == before.opened_at
    for _ in range(2):
        control.resume(ledger.db, batch_id)
    after = ledger.batch(batch_id)
    assert (after.paused_at, after.deadline_at) == (None, before.deadline_at)
    assert ledger.fill() == 3


def test_a_paused_batch_expires_and_can_be_cancelled(ledger: Ledger) -> None:
    """Pausing stops dispatch, and nothing else."""
    expires, cancelled = ledger.submit(2, deadline_s=60), ledger.submit(2)
    for batch_id in (expires, cancelled):
        control.pause(ledger.db, batch_id)
    assert endings.cancel(ledger.db, cancelled) == 2
    ledger.wait(61)
    sweeping.expire_batches(ledger.db)
    assert (ledger.batch(expires).state, ledger.batch(expires).expired) == ("finished", 2)


def test_only_an_open_batch_is_paused(ledger: Ledger) -> None:
    """One that is over, unknown or still being submitted: a clear error, and nothing changes."""
    over, loading = ledger.submit(1), ledger.submit(1, opened=False)
    endings.cancel(ledger.db, over)
    for act in (control.pause, control.resume):
        with pytest.raises(UsageError, match="is cancelled"):
            act(ledger.db, over)
        with pytest.raises(NotFound):
            act(ledger.db, "batch_x")
        with pytest.raises(PoolError, match="being submitted"):
            act(ledger.db, loading)


# --- depends on ------------------------------------------------------------------------------------------


def test_a_batch_waits_for_those_it_needs(ledger: Ledger) -> None:
    """Nothing of it is sent until all of them have ended, whatever became of their jobs."""
    first, _, (one,) = ledger.running(1)
    second, _, (other,) = ledger.running(1)
    batch_id = ledger.submit(3, needs=[first, second, first])
    ledger.record(outcome(one, JobState.FAILED))
    assert ledger.fill() == 0
    ledger.record(outcome(other))
    assert ledger.fill() > 0
    assert ledger.states(batch_id)["dispatched"] > 0


def test_what_needs_a_cancelled_batch_is_cancelled(ledger: Ledger) -> None:
    """The whole chain, each saying why; nothing of it was sent in between."""
    first = ledger.submit(2)
    second = ledger.submit(2, needs=[first])
    third = ledger.submit(2, needs=[second])
    other = ledger.submit(1)
    endings.cancel(ledger.db, first)
    ledger.worker()
    assert ledger.fill() == 1
    assert control.cancel_dependents(ledger.db) == {second: 2, third: 2}
    assert control.cancelled_with(ledger.db, first) == {second: 2, third: 2}
    assert ledger.batch(third).state == "cancelled"
    assert {job.error_message for job in ledger.jobs(third)} == {f"batch {second}, which it depends on, was cancelled"}
    assert {job.error_message for job in ledger.jobs(first)} == {"the batch was cancelled"}
    assert ledger.states(other) == {"dispatched": 1}
    assert control.cancel_dependents(ledger.db) == {}


def test_who_cancels_is_told_what_another_cancelled_with_it(ledger: Ledger) -> None:
    """Dependents that a sweep reached first are named as well, done to their end; those of other batches are not."""
    first, ended, other = ledger.submit(1), ledger.submit(1), ledger.submit(1)
    second, third = ledger.submit(2, needs=[first]), ledger.submit(1, needs=[other])
    endings.cancel(ledger.db, other)
    endings.cancel(ledger.db, first)
    control.cancel_dependents(ledger.db)
    assert control.cancelled_with(ledger.db, first) == {second: 2}
    assert control.cancelled_with(ledger.db, other) == {third: 1}
    assert control.cancelled_with(ledger.db, ended) == {}


def test_only_batches_that_are_there_are_needed(ledger: Ledger) -> None:
    """Unknown, still loading or cancelled: nothing is begun. A known idempotency key comes first."""
    loading, first = ledger.submit(1, opened=False), ledger.submit(1)
    known = ledger.submit(1, key="k", needs=[first])
    endings.cancel(ledger.db, first)
    for needed, error in (("batch_x", NotFound), (loading, NotFound), (first, UsageError)):
        with pytest.raises(error):
            submit.begin(ledger.db, name=None, needs=[needed])
    assert len(ledger.all(Batch)) == 3
    assert submit.begin(ledger.db, name=None, key="k", needs=[first]) == (known, False)


def test_a_load_that_is_given_up_leaves_no_dependency(ledger: Ledger) -> None:
    """Its row goes with what pointed from it."""
    loading = ledger.submit(1, opened=False, needs=[ledger.submit(1)])
    submit.drop_loading(ledger.db, loading)
    assert not ledger.all(Dependency)


# --- retry -----------------------------------------------------------------------------------------------


def test_a_retry_is_those_lines_again(ledger: Ledger) -> None:
    """Same lines, ids, bodies, categories, models, tiers and verdicts; linked, with priority and name of the first."""
    verdict = {"action": "offload", "consent": {"why": "w", "who": "p", "at": "t"}}
    route = Route("small", Tier.LOCAL_ONLY, verdict=verdict)
    batch_id = fail(ledger, 4, bad=2, name="mine", priority=3, job={"route": route, "model": "m"})
    again = control.retry(ledger.db, batch_id)
    row = ledger.batch(again)
    assert (row.retry_of, row.name, row.priority, row.total, row.open) == (batch_id, "mine", 3, 2, 2)
    before, after = ledger.jobs(batch_id)[:2], ledger.jobs(again)
    kept = ("line", "line_id", "category", "model", "model_class", "tier", "verdict", "rank", "priority")
    assert [[getattr(job, name) for name in kept] for job in after] == [
        [getattr(job, name) for name in kept] for job in before
    ]
    assert {(job.state, job.fence, job.attempts, job.crashes) for job in after} == {("queued", 0, 0, 0)}
    assert {body.body for body in ledger.all(Body)} == {b'{"prompt":"x"}'}


def test_what_is_retried_by_default(ledger: Ledger) -> None:
    """Failed, expired and cancelled lines; neither done nor refused ones. Or only those of one state."""
    batch_id = ledger.submit(4)
    answer(ledger, batch_id, JobState.DONE, JobState.FAILED, JobState.FAILED, JobState.REFUSED)
    assert [job.line for job in ledger.jobs(control.retry(ledger.db, batch_id))] == [2, 3]

    cancelled = ledger.submit(2)
    endings.cancel(ledger.db, cancelled)
    with pytest.raises(UsageError, match="nothing to retry"):
        control.retry(ledger.db, cancelled, [JobState.FAILED])
    assert ledger.batch(control.retry(ledger.db, cancelled, [JobState.CANCELLED])).total == 2
    expired = ledger.submit(2)
    ledger.wait(EXPIRED)
    sweeping.expire_batches(ledger.db)
    assert ledger.batch(control.retry(ledger.db, expired)).total == 2


def test_results_follow_the_chain(ledger: Ledger) -> None:
    """A line shows its newest answer; while a retry runs, what was there before. A retry's own results follow too."""
    first = fail(ledger, 3, bad=3)
    second = control.retry(ledger.db, first)
    assert results(ledger, first) == dict.fromkeys(("j1", "j2", "j3"), ("failed", None))
    assert results(ledger, second) == {}
    answer(ledger, second, JobState.DONE, JobState.FAILED, JobState.FAILED)
    third = control.retry(ledger.db, second)
    answer(ledger, third, JobState.FAILED, JobState.DONE)
    newest = {"j1": ("done", second), "j2": ("failed", third), "j3": ("done", third)}
    assert results(ledger, first) == newest
    assert results(ledger, first, "done") == {"j1": newest["j1"], "j3": newest["j3"]}
    assert results(ledger, second) == newest | {"j1": ("done", None)}
    fourth = control.retry(ledger.db, first)
    assert [job.line_id for job in ledger.jobs(fourth)] == ["j2"]
    answer(ledger, fourth, JobState.DONE)
    assert results(ledger, first) == results(ledger, third, None) | {"j1": ("done", second), "j3": ("done", third)}
    with ledger.db.read() as c:
        assert [row.id for row in retries.below(c, first)] == [*sorted([second, fourth]), third]


def test_results_follow_over_pages(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    """Page by page, with lines that were not retried in between."""
    monkeypatch.setattr(reading, "PAGE", 2)
    monkeypatch.setattr(control, "PAGE", 2)
    batch_id, _, held = ledger.running(7)
    ledger.record(*[outcome(j, JobState.FAILED if i % 2 else JobState.DONE) for i, j in enumerate(held)])
    again = control.retry(ledger.db, batch_id)
    answer(ledger, again, *[JobState.DONE] * 3)
    assert results(ledger, batch_id) == {f"j{i + 1}": ("done", again if i % 2 else None) for i in range(7)}


def test_a_line_is_retried_once_at_a_time(ledger: Ledger) -> None:
    """While a retry has them they are not retried again; the error names it. Lines that failed since are."""
    batch_id, _, held = ledger.running(3)
    ledger.record(outcome(held[0], JobState.FAILED))
    again = control.retry(ledger.db, batch_id)
    with pytest.raises(UsageError, match=again):
        control.retry(ledger.db, batch_id)
    ledger.record(outcome(held[1], JobState.FAILED))
    assert [job.line for job in ledger.jobs(control.retry(ledger.db, batch_id))] == [2]
    answer(ledger, again, JobState.DONE)
    with pytest.raises(UsageError, match="nothing to retry"):
        control.retry(ledger.db, again)


def test_two_retries_at_once_are_one(ledger: Ledger) -> None:
    """Of many that start together one is made; the others say which."""
    batch_id = fail(ledger, 30, bad=30)
    made: list[str] = []
    refused: list[str] = []

    def go() -> None:
        try:
            made.append(control.retry(ledger.db, batch_id))
        except OffloadError as error:
            refused.append(str(error))

    threads = [threading.Thread(target=go) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == 1
    assert len(refused) == 5
    assert all(made[0] in words for words in refused)
    assert len(ledger.all(Batch)) == 2
    assert len(ledger.all(Job)) == 60


def test_a_retry_whose_submit_died_is_replaced(ledger: Ledger) -> None:
    """Half a retry blocks its lines only while its submit may still live."""
    batch_id = fail(ledger, 3, bad=2)
    dead, _ = submit.begin(ledger.db, name=None, retry_of=batch_id)
    submit.add(ledger.db, dead, new_jobs(1))
    with pytest.raises(retries.BeingRetried, match=dead):
        submit.begin(ledger.db, name=None, retry_of=batch_id)
    ledger.wait(submit.LOADING_SILENT_S + 1)
    assert ledger.batch(control.retry(ledger.db, batch_id)).total == 2
    assert not ledger.all(Batch, id=dead)


def test_where_an_escalated_job_is_retried(ledger: Ledger) -> None:
    """What the policy sent to the cloud goes there again; what went there because home failed starts at home."""
    verdict = {"action": "escalate", "reasons": [{"id": "r", "reason": "why"}]}
    for route, place in (
        (Route("cloud", Tier.CLOUD_OK, escalated_from="coder", verdict=verdict), ("cloud", "coder", "why")),
        (Route("cloud", Tier.CLOUD_OK, escalated_from="coder", verdict={"action": "offload"}), ("coder", None, None)),
        (Route("cloud", Tier.CLOUD_OK), ("cloud", None, None)),
    ):
        batch_id = ledger.submit(1, job={"route": route})
        endings.cancel(ledger.db, batch_id)
        (job,) = ledger.jobs(control.retry(ledger.db, batch_id))
        assert (job.model_class, job.escalated_from, job.escalation, job.tier) == (*place, "cloud_ok")
        assert job.verdict == (orjson.dumps(route.verdict) if route.verdict else None)


def test_a_tightened_tier_stays(ledger: Ledger) -> None:
    """What a worker found out about a job holds for its retry: it may go no further than before."""
    batch_id, _, (job,) = ledger.running(1, job={"route": Route("small", Tier.CLOUD_OK)})
    ledger.record(outcome(job, JobState.FAILED, tier="local_only"))
    assert ledger.jobs(control.retry(ledger.db, batch_id))[0].tier == "local_only"


def test_a_retry_may_be_audited(ledger: Ledger) -> None:
    """It is drawn as the line of the first batch that it is."""
    batch_id = fail(ledger, 2, bad=2)
    again = control.retry(ledger.db, batch_id, categories=DEFAULT_CATEGORIES)
    assert {row.job_id for row in ledger.all(Sample)} == {job.id for job in ledger.jobs(again)}


def test_what_cannot_be_retried(ledger: Ledger) -> None:
    """Unknown batches, those being submitted, the pool's own, and those of which nothing went wrong."""
    fine = fail(ledger, 2, bad=0)
    for batch_id, error in (
        ("batch_x", NotFound),
        (ledger.submit(1, opened=False), PoolError),
        (ledger.submit(1, kind="audit"), UsageError),
        (fine, UsageError),
    ):
        with pytest.raises(error):
            control.retry(ledger.db, batch_id)
    assert len(ledger.all(Batch)) == 3
