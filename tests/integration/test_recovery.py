"""What breaks while a batch runs loses nothing and records nothing twice."""

from __future__ import annotations

import json
import os
import signal
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
from sqlalchemy import select

from tasks.app import make_app
from tasks.ledger import nodes, reading
from tasks.queues import RUN_SLICE, class_queue
from tasks.tables import CallRow
from tests.support.pool import TestPool, running, simulated
from tests.support.waiting import eventually
from workers.simulator import BackgroundSimulator, SimulatorConfig, in_thread

pytestmark = pytest.mark.slow

calls = CallRow.__table__  # type: ignore[attr-defined]


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[TestPool, BackgroundSimulator]]:
    """One Redis, ledger, simulator and beat for all that is broken here; workers are each test's own."""
    with (
        in_thread(SimulatorConfig(slots=64, loaded_limit=8)) as simulator,
        running(tmp_path_factory.mktemp("recovery"), simulated(simulator.url)) as pool,
    ):
        pool.beat()
        yield pool, simulator


@pytest.fixture
def simulator(shared: tuple[TestPool, BackgroundSimulator]) -> BackgroundSimulator:
    """The model server, as if fresh."""
    shared[1].reset()
    return shared[1]


@pytest.fixture
def pool(shared: tuple[TestPool, BackgroundSimulator]) -> Iterator[TestPool]:
    """The pool, with beat and without a worker."""
    yield shared[0]
    shared[0].kill_workers()


def jobs(n: int, text: str = "Summarize this short note number") -> list[dict[str, Any]]:
    return [{"id": f"j{i}", "category": "summarize", "prompt": f"{text} {i}."} for i in range(n)]


def assert_each_once(results: list[dict[str, Any]], n: int) -> None:
    assert Counter(r["id"] for r in results) == Counter({f"j{i}": 1 for i in range(n)})
    assert {r["state"] for r in results} == {"done"}


def test_a_worker_that_is_told_to_stop_while_it_starts_ends_in_order(pool: TestPool) -> None:
    """SIGTERM before Celery listens to signals: its status is 0, as at any other time."""
    process = pool.start("worker", "--provider", "sim", "--node", "early")
    eventually(lambda: any(row.name == "early/sim" for row, _ in nodes.seen(pool.db)), "it is in the ledger")
    process.terminate()
    assert process.wait(30) == 0


@pytest.mark.parametrize("successor", ["here", "there"])
def test_a_worker_killed_in_the_middle_of_a_batch_loses_and_doubles_nothing(
    pool: TestPool, simulator: BackgroundSimulator, successor: str
) -> None:
    """kill -9 of a worker: another process, of the same name or another, ends every job exactly once."""
    simulator.configure(ttft_s=0.15)
    first = pool.worker()
    batch = pool.submit(jobs(120))
    eventually(lambda: pool.batch(batch).done >= 20, "some jobs are done")

    def stopped_with_calls() -> int:
        os.kill(first.pid, signal.SIGSTOP)
        if in_flight := int(simulator.stats()["in_flight"]):
            return in_flight
        os.kill(first.pid, signal.SIGCONT)
        return 0

    in_flight = eventually(stopped_with_calls, "it has calls in flight")
    os.kill(first.pid, signal.SIGKILL)
    assert pool.batch(batch).open > 0, "the fault must hit work in flight"
    pool.worker(node=successor)
    assert_each_once(pool.finished(batch), 120)
    requests = simulator.stats()["requests"]
    assert requests - 120 <= in_flight + 8, "at most the calls in flight are wasted"
    assert _call_rows(pool, batch, error_code="worker_died"), "the sweep wrote the rows the dead worker could not"


def test_a_flushed_redis_loses_nothing(pool: TestPool, simulator: BackgroundSimulator) -> None:
    """FLUSHALL under load: the sweep sends the lost slices again."""
    simulator.configure(ttft_s=0.3)
    pool.worker()
    batch = pool.submit(jobs(100))
    eventually(lambda: pool.batch(batch).done >= 5, "some jobs are done")
    pool.redis.client.flushall()
    assert pool.batch(batch).open > 0, "the fault must hit work in flight"
    assert_each_once(pool.finished(batch), 100)


def test_a_killed_redis_loses_nothing(pool: TestPool, simulator: BackgroundSimulator) -> None:
    """kill -9 of Redis and a start from its file: everything goes on by itself."""
    simulator.configure(ttft_s=0.3)
    pool.worker()
    batch = pool.submit(jobs(100))
    eventually(lambda: pool.batch(batch).done >= 5, "some jobs are done")
    pool.redis.kill()
    assert pool.batch(batch).open > 0, "the fault must hit work in flight"
    pool.redis.start()
    assert_each_once(pool.finished(batch, within_s=90), 100)


def test_doubled_stale_and_forged_messages_claim_nothing(pool: TestPool, simulator: BackgroundSimulator) -> None:
    """A message is a reference: sending it again, or one that names nothing, runs nothing twice."""
    pool.worker()
    batch = pool.submit(jobs(30))
    app = make_app(pool.redis.url)
    with pool.db.read() as c:
        slices = [
            row.id for row in c.exec_driver_sql("SELECT DISTINCT slice_id AS id FROM jobs WHERE slice_id NOT NULL")
        ]
    for slice_id in [*slices, *slices, "no-such-slice", "' OR 1=1 --"]:
        app.send_task(RUN_SLICE, kwargs={"slice": slice_id}, queue=class_queue("small"))
    assert_each_once(pool.finished(batch), 30)
    assert simulator.stats()["requests"] == 30


def test_a_message_that_is_no_task_of_ours_harms_no_job(pool: TestPool, simulator: BackgroundSimulator) -> None:
    """Unknown tasks, wrong arguments and pickles are dropped, and the batch ends as if they were not there."""
    simulator.configure(ttft_s=0.05)
    pool.worker()
    app = make_app(pool.redis.url)
    queue = class_queue("small")
    app.send_task("os.system", args=["true"], queue=queue)
    app.send_task(RUN_SLICE, kwargs={"other": 1}, queue=queue)
    app.send_task(RUN_SLICE, args=[["x"]], queue=queue)
    pool.redis.client.lpush(
        queue, b'{"body": "gASVBQ==", "content-type": "application/x-python-serialize", "headers": {}}'
    )
    batch = pool.submit(jobs(30))
    assert_each_once(pool.finished(batch), 30)


def test_a_message_that_died_with_its_worker_is_sent_again(pool: TestPool, simulator: BackgroundSimulator) -> None:
    """What a killed worker had received and not claimed is not waited for until Celery gives it back."""
    batch = pool.submit(jobs(8))
    broker = pool.redis.client
    while raw := broker.rpop(class_queue("small")):
        assert isinstance(raw, bytes)
        message = json.loads(raw)
        held = json.dumps([message, "", class_queue("small")])
        broker.hset("unacked", message["properties"]["delivery_tag"], held)
    pool.worker()
    assert_each_once(pool.finished(batch), 8)
    broker.delete("unacked")


def test_sigterm_drains_without_burning_attempts(pool: TestPool, simulator: BackgroundSimulator) -> None:
    """A rolling restart: calls in flight end, the rest is given back, no attempt is burned and no call doubled."""
    simulator.configure(ttft_s=0.4)
    first = pool.worker()
    batch = pool.submit(jobs(60))
    eventually(lambda: pool.batch(batch).done >= 8, "some jobs are done")
    first.terminate()
    assert first.wait(timeout=30) == 0
    assert pool.batch(batch).open > 0, "the drain must hit work in flight"
    assert "here/sim" not in {w.name for w in reading.all_workers(pool.db)}, (
        "a worker that leaves takes its row with it"
    )
    pool.worker()
    results = pool.finished(batch)
    assert_each_once(results, 60)
    assert {r["attempts"] for r in results} == {1}
    assert simulator.stats()["requests"] == 60


def test_jobs_submitted_while_the_pool_is_down_run_when_it_is_up(pool: TestPool) -> None:
    """The ledger's commit is the promise; Redis is not needed to keep it."""
    pool.redis.kill()
    with pytest.raises(Exception, match="Redis"):
        pool.submit(jobs(10))
    batch = reading.recent_batches(pool.db, 1)[0].id
    assert pool.batch(batch).open == 10
    pool.redis.start()
    pool.worker()
    assert_each_once(pool.finished(batch), 10)


def _call_rows(pool: TestPool, batch: str, **where: Any) -> list[Any]:
    with pool.db.read() as c:
        query = select(calls).where(calls.c.batch_id == batch)
        for name, value in where.items():
            query = query.where(calls.c[name] == value)
        return list(c.execute(query).all())
